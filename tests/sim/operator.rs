//! The operator: adds, replaces and removes members, one after the other, as `keelfs member` does it, from a machine that has no
//! data. What it was not told it finds out from the roster, like a person.
//!
//! It only asks and waits. The machine of a new node is set up by the world, and a node that is removed learns of it by itself.

use crate::network;
use crate::node::{FIRST_NEWCOMER, NEWCOMERS_MAX};
use keelfs::net::NodeId;
use keelfs::raft::{Becomes, MemberChange, MemberChanged, Roster};
use keelfs::volume::Client;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// A new node that is not in the roster for so long never will be, its entry not having been committed; or whoever tells the
/// roster is cut off, and then a member goes.
const LOST_AFTER: Duration = Duration::from_secs(25);

/// What the operator is to bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Add,
    /// A new node in the place of this one, which may be dead.
    Replace(NodeId),
    Remove(NodeId),
}

/// A machine to be set up.
#[derive(Clone, Debug)]
pub struct Newcomer {
    pub id: NodeId,
    pub host: network::Host,
    pub members: BTreeMap<NodeId, SocketAddr>,
}

/// What the operator shares with the world.
#[derive(Clone, Default)]
pub struct Desk {
    inner: Arc<Mutex<Papers>>,
}

#[derive(Default)]
struct Papers {
    orders: VecDeque<Order>,
    done: u64,
    machines_given: u64,
    newcomers: VecDeque<Newcomer>,
    /// Whoever is not to be a member any more, from the moment at which that is asked for.
    leaving: BTreeSet<NodeId>,
    /// New nodes that never became members: their machines are switched off.
    given_up: BTreeSet<NodeId>,
}

impl Desk {
    /// `false`: the operator is busy, or has no machine left for a new node but the spare one.
    pub fn order(&self, order: Order) -> bool {
        let mut papers = self.inner.lock();
        let room = matches!(order, Order::Remove(_)) || papers.machines_given + 1 < NEWCOMERS_MAX;
        let taken = papers.orders.is_empty() && room;
        if taken {
            papers.orders.push_back(order);
        }
        taken
    }

    pub fn is_busy(&self) -> bool {
        !self.inner.lock().orders.is_empty()
    }

    pub fn done(&self) -> u64 {
        self.inner.lock().done
    }

    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.inner.lock().leaving.contains(&node)
    }

    pub fn next_newcomer(&self) -> Option<Newcomer> {
        self.inner.lock().newcomers.pop_front()
    }

    pub fn is_given_up(&self, node: NodeId) -> bool {
        self.inner.lock().given_up.contains(&node)
    }

    fn leaves(&self, node: NodeId) {
        self.inner.lock().leaving.insert(node);
    }

    fn next_host(&self) -> Option<network::Host> {
        let mut papers = self.inner.lock();
        let given = papers.machines_given;
        papers.machines_given += u64::from(given < NEWCOMERS_MAX);
        (given < NEWCOMERS_MAX).then_some(FIRST_NEWCOMER + given)
    }
}

/// Carry out what is ordered, to the end of the run.
pub async fn run(client: Client, desk: Desk) {
    let operator = Operator { client, desk };
    loop {
        let order = operator.desk.inner.lock().orders.front().copied();
        if let Some(order) = order {
            operator.carry_out(order).await;
            let mut papers = operator.desk.inner.lock();
            papers.orders.pop_front();
            papers.done += 1;
        }
        sleep(LOOK_EVERY).await;
    }
}

struct Operator {
    client: Client,
    desk: Desk,
}

impl Operator {
    async fn carry_out(&self, order: Order) {
        match order {
            Order::Add => self.bring_in(Becomes::Voter).await,
            Order::Replace(old) => {
                self.desk.leaves(old);
                self.bring_in(Becomes::Instead(old)).await;
            }
            Order::Remove(node) => {
                self.desk.leaves(node);
                self.remove(node).await;
            }
        }
    }

    /// Until the leader says that it is none any more, or that it never was.
    async fn remove(&self, node: NodeId) {
        loop {
            match self.ask(MemberChange::Remove { node }).await {
                Some(Ok(_)) => return,
                Some(Err(why)) if why.contains("is no member") => return,
                _ => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Until a new node is a voter. With one machine after the other, should what one was promised come to nothing.
    async fn bring_in(&self, becomes: Becomes) {
        while let Some(host) = self.desk.next_host() {
            let id = self.enter(host, becomes).await;
            if self.is_made_voter(id).await {
                return;
            }
            self.remove(id).await;
            self.desk.inner.lock().given_up.insert(id);
        }
    }

    /// Until there is a member at this machine's address; then the machine is set up.
    async fn enter(&self, host: network::Host, becomes: Becomes) -> NodeId {
        let address = network::address(host);
        let change = MemberChange::Add { address, name: String::new(), becomes };
        let (id, roster) = loop {
            let told = self.ask(change.clone()).await;
            if let Some(roster) = self.roster().await {
                let added = match told {
                    Some(Ok(MemberChanged::Added { node })) => Some(node),
                    _ => roster
                        .nodes
                        .iter()
                        .find(|(_, entry)| entry.member.address == address.to_string())
                        .map(|(id, _)| *id),
                };
                if let Some(id) = added {
                    break (id, roster);
                }
            }
            sleep(LOOK_EVERY).await;
        };
        let known = roster.nodes.iter().filter_map(|(node, entry)| Some((*node, entry.member.address.parse().ok()?)));
        let members = known.chain([(id, address)]).collect();
        self.desk.inner.lock().newcomers.push_back(Newcomer { id, host, members });
        id
    }

    async fn is_made_voter(&self, id: NodeId) -> bool {
        let mut seen = Instant::now();
        while seen.elapsed() < LOST_AFTER {
            sleep(LOOK_EVERY).await;
            match self.roster().await.map(|roster| roster.nodes.get(&id).map(|entry| entry.voter)) {
                Some(Some(true)) => return true,
                Some(Some(false)) | None => seen = Instant::now(),
                Some(None) => {}
            }
        }
        false
    }

    async fn ask(&self, change: MemberChange) -> Option<Result<MemberChanged, String>> {
        self.client.change_members(change, Instant::now() + PATIENCE).await.ok()
    }

    async fn roster(&self) -> Option<Roster> {
        self.client.roster(Instant::now() + PATIENCE).await.ok()
    }
}
