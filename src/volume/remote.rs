//! A volume's ways without a replica in this process: any node of the cluster does the work for us.
//!
//! One message to one node at a time; when that node fails, the next address. Queries may be asked twice; commands carry
//! their session and sequence, so they may be sent twice as well.
//!
//! The nodes that there are are asked for from time to time, so that a mount outlives all that it was told of at first.
//!
//! Decision: the first address is home, the node on our own machine as a rule, and is gone back to after a while: when it
//! has answered a question of nobody's, because a node that hangs with its connections open costs each call that is sent
//! there the time of a try. A node that lives and hears of no leader says so after a while, so that its clients look for
//! one that does.

use super::forward::{Lane, Links, Pauses, told};
use super::protocol::{Ask, Freshness, Head, Told, Verdict, wait_ms};
use super::{Capacity, Failure, NodeStatus, Volume};
use crate::fs::{Answer, Ino, LogIndex, Query, Refusal, Request, SessionId};
use crate::net::{Identity, Keys, NetError, NodeId, Start};
use crate::raft::{MemberChange, MemberChanged, Roster};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::time::{sleep, sleep_until, timeout_at};

/// How long one node may work on one message before the next one is tried: longer than an election.
const TRY_TIME: Duration = Duration::from_secs(8);
/// How long after home has failed it is asked whether it is well again.
const HOMESICK_TIME: Duration = Duration::from_secs(5);
/// How long it may take to say so.
const WELL_TIME: Duration = Duration::from_secs(1);
/// How often a volume asks who the members are.
const MEMBERS_EVERY: Duration = Duration::from_secs(1);
/// How long one of these questions may take.
const MEMBERS_TIME: Duration = Duration::from_secs(5);
/// What a node may take to answer beyond the time that it was given.
const GRACE: Duration = Duration::from_millis(500);

/// A client of some nodes of one cluster: what the command line uses. Cloning shares the connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    /// What this client was told of.
    given: Vec<SocketAddr>,
    away: Mutex<Away>,
    links: Links,
}

/// Whom to ask; how far from home, and since when.
#[derive(Clone, Debug)]
struct Away {
    addresses: Vec<SocketAddr>,
    /// Position of the address in use; 0 is home.
    at: usize,
    /// When home failed last, or was last asked and was not well.
    since: Instant,
    /// Where we came home from: that is gone back to if home fails again.
    refuge: Option<SocketAddr>,
}

/// Why a client has nobody to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no address of a node was given: name at least one, as HOST:PORT")]
pub struct NoAddress;

impl Client {
    /// Of nodes that have no keys. Nothing is connected yet. `cluster`: which cluster it must be (nil: whichever answers).
    pub fn new(addresses: Vec<SocketAddr>, cluster: uuid::Uuid) -> Result<Client, NoAddress> {
        Client::with_keys(addresses, cluster, None)
    }

    /// The same; with keys, only of nodes that have some of the same cluster.
    pub fn with_keys(addresses: Vec<SocketAddr>, cluster: uuid::Uuid, keys: Option<Keys>) -> Result<Client, NoAddress> {
        if addresses.is_empty() {
            return Err(NoAddress);
        }
        let own = Identity { cluster, node: None, start: Start::default(), keys };
        Ok(Client {
            inner: Arc::new(Inner {
                away: Mutex::new(Away { addresses: addresses.clone(), at: 0, since: Instant::now(), refuge: None }),
                given: addresses,
                links: Links::new(own),
            }),
        })
    }

    /// The tree, through these nodes. Must be called within a tokio runtime.
    pub fn volume(&self, label: &str) -> Volume {
        tokio::spawn(follow_members(Arc::downgrade(&self.inner)));
        Volume::remote(self.clone(), label)
    }

    /// What the first node that answers says of itself.
    pub async fn status(&self, deadline: Instant) -> Result<NodeStatus, Failure> {
        match self.ask(deadline, |_| Ask::Status).await? {
            Told::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// What the node at this address says of itself; `Err` says why it cannot be asked.
    pub async fn status_of(&self, address: SocketAddr, deadline: Instant) -> Result<NodeStatus, NetError> {
        let message = Ask::Status.message(Bytes::new());
        let message = message.map_err(|e| NetError::Refused { address, why: e.to_string() })?;
        let answer = self.inner.links.to(address, None, Lane::Small).call(message, deadline).await;
        match told(answer)? {
            Told::Status(status) => Ok(*status),
            other => Err(NetError::Refused { address, why: unexpected(&other).to_string() }),
        }
    }

    /// The state's hash right after an entry, at the first node that answers, once it has applied it. `None`: not
    /// applied in time, or no longer known there.
    pub async fn hash_at(&self, index: LogIndex, deadline: Instant) -> Result<Option<u128>, Failure> {
        match self.ask(deadline, |until| Ask::HashAt { index, wait_ms: wait_ms(until) }).await? {
            Told::Hash(hash) => Ok(hash),
            other => Err(unexpected(&other)),
        }
    }

    /// The first invariant that is broken at the node that answered last (or the first one), in words; `None`: all hold.
    pub async fn check(&self, deadline: Instant) -> Result<Option<String>, Failure> {
        // One try with all the time: it may be long work, not to be begun again and again.
        match self.try_until(self.address(), deadline, deadline, &Bytes::new(), |_| Ask::Check).await {
            Ok((Told::Checked(broken), _)) => Ok(broken),
            Ok((Told::Failed(failure), _)) => Err(failure),
            Ok((other, _)) => Err(unexpected(&other)),
            Err(_) => Err(Failure::NoMajority),
        }
    }

    /// Have this node read and verify everything that it stores; the number of that pass, if it will be made.
    pub async fn scrub(&self, mend: bool, deadline: Instant) -> Result<Option<u64>, Failure> {
        match self.ask(deadline, |_| Ask::Scrub { mend }).await? {
            Told::Scrubbing(number) => Ok(number),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn members(&self, deadline: Instant) -> Result<BTreeMap<NodeId, SocketAddr>, Failure> {
        match self.ask(deadline, |_| Ask::Members).await? {
            Told::Members(members) => Ok(members),
            other => Err(unexpected(&other)),
        }
    }

    /// The membership as the first node that answers knows it.
    pub async fn roster(&self, deadline: Instant) -> Result<Roster, Failure> {
        match self.ask(deadline, |_| Ask::Roster).await? {
            Told::Roster(roster) => Ok(*roster),
            other => Err(unexpected(&other)),
        }
    }

    /// Have the leader change the membership. The inner `Err` is a refusal in words: nothing was changed.
    pub async fn change_members(
        &self,
        change: MemberChange,
        deadline: Instant,
    ) -> Result<Result<MemberChanged, String>, Failure> {
        let (mut leader, mut pauses) = (None, Pauses::default());
        while Instant::now() < deadline {
            let node = leader.take().unwrap_or_else(|| self.address());
            let ask = |until| Ask::ChangeMembers { change: change.clone(), wait_ms: wait_ms(until) };
            match self.try_until(node, deadline, deadline, &Bytes::new(), ask).await {
                Ok((Told::MembersChanged(changed), _)) => return Ok(changed),
                Ok((Told::NotLeader { leader: Some((_, address)) }, _)) => leader = Some(address),
                // Not there, or not the leader and without one: certainly not done.
                Ok((Told::NotLeader { leader: None } | Told::Failed(Failure::Stopped(_)), _)) => self.leave(node),
                Err(e) if !e.may_have_arrived() => self.leave(node),
                _ => return Err(Failure::Unknown),
            }
            let _ = timeout_at(deadline.into(), sleep_until((Instant::now() + pauses.next()).into())).await;
        }
        Err(Failure::NoMajority)
    }

    pub(super) async fn submit(&self, request: &Request, body: &Bytes, deadline: Instant) -> Verdict {
        let mut doubt = false;
        let mut pauses = Pauses::default();
        while Instant::now() < deadline {
            let node = self.address();
            let tried = self.try_once(node, deadline, body, |until| Ask::Submit {
                request: request.clone(),
                wait_ms: wait_ms(until),
            });
            match tried.await {
                Ok((Told::Verdict(Verdict::Outcome { outcome, doubt: also }), _)) => {
                    return Verdict::Outcome { outcome, doubt: doubt || also };
                }
                Ok((Told::Verdict(Verdict::NotSent | Verdict::Stopped(_)), _)) => {}
                Ok(_) => doubt = true,
                Err(e) => doubt |= e.may_have_arrived(),
            }
            self.next_node(node, pauses.next(), deadline).await;
        }
        if doubt { Verdict::InDoubt } else { Verdict::NotSent }
    }

    pub(super) async fn query(
        &self,
        query: &Query,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Result<Answer, Refusal>, Failure> {
        let ask = |until| Ask::Query { query: query.clone(), freshness, wait_ms: wait_ms(until) };
        match self.ask(deadline, ask).await? {
            Told::Answer(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: u32,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Result<(Head, Bytes), Refusal>, Failure> {
        let ask = |until| Ask::Read { ino, offset, length, freshness, wait_ms: wait_ms(until) };
        match self.ask_for_bytes(deadline, ask).await? {
            (Told::Contents(head), bytes) => Ok(head.map(|head| (head, bytes))),
            (other, _) => Err(unexpected(&other)),
        }
    }

    pub(super) async fn capacity(&self, deadline: Instant) -> Result<Capacity, Failure> {
        match self.ask(deadline, |until| Ask::Capacity { wait_ms: wait_ms(until) }).await? {
            Told::Capacity(capacity) => Ok(capacity),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn orphans_of(
        &self,
        session: SessionId,
        after: Ino,
        deadline: Instant,
    ) -> Result<Vec<Ino>, Failure> {
        match self.ask(deadline, |_| Ask::Orphans { session, after }).await? {
            Told::Orphans(orphans) => Ok(orphans),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn changed_since(&self, seen: LogIndex, deadline: Instant) -> LogIndex {
        match self.ask(deadline, |until| Ask::Changed { seen, wait_ms: wait_ms(until) }).await {
            Ok(Told::Index(index)) => index.max(seen),
            _ => seen,
        }
    }

    async fn ask(&self, deadline: Instant, ask: impl Fn(Instant) -> Ask) -> Result<Told, Failure> {
        Ok(self.ask_for_bytes(deadline, ask).await?.0)
    }

    /// Ask one node after the other until one answers; `ask` gets the time until which the node may work on it.
    async fn ask_for_bytes(&self, deadline: Instant, ask: impl Fn(Instant) -> Ask) -> Result<(Told, Bytes), Failure> {
        let mut pauses = Pauses::default();
        while Instant::now() < deadline {
            let node = self.address();
            match self.try_once(node, deadline, &Bytes::new(), &ask).await {
                Ok((Told::Failed(Failure::Damaged(why)), _)) => return Err(Failure::Damaged(why)),
                Ok((Told::Failed(_) | Told::Unknown, _)) | Err(_) => {
                    self.next_node(node, pauses.next(), deadline).await
                }
                Ok(answer) => return Ok(answer),
            }
        }
        Err(Failure::NoMajority)
    }

    async fn try_once(
        &self,
        node: SocketAddr,
        deadline: Instant,
        body: &Bytes,
        ask: impl Fn(Instant) -> Ask,
    ) -> Result<(Told, Bytes), NetError> {
        self.try_until(node, deadline.min(Instant::now() + TRY_TIME), deadline, body, ask).await
    }

    /// One message to one node, which may work on it until `until`.
    async fn try_until(
        &self,
        address: SocketAddr,
        until: Instant,
        deadline: Instant,
        body: &Bytes,
        ask: impl Fn(Instant) -> Ask,
    ) -> Result<(Told, Bytes), NetError> {
        let message = ask(until).message(body.clone());
        let message = message.map_err(|e| NetError::Refused { address, why: e.to_string() })?;
        let lane = if body.is_empty() { Lane::Small } else { Lane::Bulk };
        let answer = self.inner.links.to(address, None, lane).call(message, deadline.min(until + GRACE)).await;
        let bytes = answer.as_ref().map(|message| message.body.clone()).unwrap_or_default();
        Ok((told(answer)?, bytes))
    }

    fn address(&self) -> SocketAddr {
        let away = self.inner.away.lock();
        away.addresses[away.at]
    }

    /// If we have been away for a while, go home, if it is well.
    async fn look_home(&self) {
        let Some(home) = self.inner.away.lock().homesick() else { return };
        let well = self.is_well(home).await;
        let mut away = self.inner.away.lock();
        match away.homesick() {
            Some(still) if still == home && well => away.go_home(),
            _ => away.since = Instant::now(),
        }
    }

    /// Does this node hear of a leader, and has it applied what the leader has?
    async fn is_well(&self, node: SocketAddr) -> bool {
        let ask =
            |until| Ask::Query { query: Query::Usage, freshness: Freshness::Linearizable, wait_ms: wait_ms(until) };
        let until = Instant::now() + WELL_TIME;
        matches!(self.try_until(node, until, until, &Bytes::new(), ask).await, Ok((Told::Answer(Ok(_)), _)))
    }

    /// The node at this address has failed: use the next one, unless another call has seen to that already.
    async fn next_node(&self, failed: SocketAddr, pause: Duration, deadline: Instant) {
        self.leave(failed);
        let _ = timeout_at(deadline.into(), sleep_until((Instant::now() + pause).into())).await;
    }

    fn leave(&self, failed: SocketAddr) {
        let mut away = self.inner.away.lock();
        if away.addresses[away.at] != failed {
            return;
        }
        let mut next = (away.at + 1) % away.addresses.len();
        if away.at == 0 {
            away.since = Instant::now();
            let refuge = away.refuge.take();
            next = away.addresses.iter().position(|address| Some(*address) == refuge).unwrap_or(next);
        }
        away.at = next;
    }
}

impl Away {
    /// Where home is, if we have been away from it for a while.
    fn homesick(&self) -> Option<SocketAddr> {
        (self.at != 0 && self.since.elapsed() >= HOMESICK_TIME).then(|| self.addresses[0])
    }

    fn go_home(&mut self) {
        self.refuge = Some(self.addresses[self.at]);
        self.at = 0;
    }
}

impl Inner {
    /// Ask these from now on, beside what was given.
    fn learn(&self, members: &BTreeSet<SocketAddr>) {
        let mut away = self.away.lock();
        let addresses = whom_to_ask(&self.given, members);
        let current = away.addresses[away.at];
        away.at = addresses.iter().position(|address| *address == current).unwrap_or(0);
        away.addresses = addresses;
    }
}

/// Those given that are members, then the other members, then what was given and is no member (any more): it may be a
/// member's other address, but home it is not. Unless none of those given is a member: then they are of another network's
/// kind, and stay first.
fn whom_to_ask(given: &[SocketAddr], members: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
    let (staying, gone): (Vec<_>, Vec<_>) = given.iter().partition(|address| members.contains(address));
    let learned = members.iter().filter(|address| !given.contains(address));
    match staying.is_empty() {
        false => staying.into_iter().chain(learned.copied()).chain(gone).collect(),
        true => gone.into_iter().chain(learned.copied()).collect(),
    }
}

/// Keep a client's addresses those of the members, and bring it home when it can be, as long as it is there.
async fn follow_members(client: Weak<Inner>) {
    loop {
        sleep(MEMBERS_EVERY).await;
        let Some(inner) = client.upgrade() else { return };
        let client = Client { inner: inner.clone() };
        match client.members(Instant::now() + MEMBERS_TIME).await {
            Ok(members) if !members.is_empty() => inner.learn(&members.into_values().collect()),
            _ => {}
        }
        client.look_home().await;
    }
}

fn unexpected(told: &Told) -> Failure {
    Failure::Damaged(format!("a node of another build answered {told:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Usage;
    use crate::net::{Caller, Handler, Message, Server};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use tokio_util::sync::{CancellationToken, DropGuard};

    /// A node that answers, or hangs with its connections open.
    #[derive(Default)]
    struct Fickle {
        hangs: AtomicBool,
        asked: AtomicUsize,
    }

    impl Handler for Fickle {
        fn handle(&self, _: &Caller, _: Message) -> impl Future<Output = Message> + Send + 'static {
            self.asked.fetch_add(1, SeqCst);
            let hangs = self.hangs.load(SeqCst);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Told::Answer(Ok(Answer::Usage(Usage { inodes: 1, bytes: 0 }))).message(Bytes::new())
            }
        }
    }

    impl Fickle {
        async fn start() -> (SocketAddr, Arc<Fickle>, DropGuard) {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, node, stop) =
                (listener.local_addr().unwrap(), Arc::<Fickle>::default(), CancellationToken::new());
            let own = Identity { cluster: uuid::Uuid::nil(), node: Some(1), start: Start::default(), keys: None };
            tokio::spawn(Server::run(listener, own, node.clone(), stop.clone()));
            (address, node, stop.drop_guard())
        }
    }

    #[tokio::test]
    async fn a_home_that_hangs_is_gone_back_to_when_it_answers_and_no_call_is_risked_before() {
        let ((at_home, home, _home), (refuge, _, _refuge)) = (Fickle::start().await, Fickle::start().await);
        let client = Client::new(vec![at_home, refuge], uuid::Uuid::nil()).unwrap();
        let time_passes = || client.inner.away.lock().since -= HOMESICK_TIME;
        let query = || client.query(&Query::Usage, Freshness::Linearizable, Instant::now() + 4 * TRY_TIME);
        home.hangs.store(true, SeqCst);
        client.leave(at_home);
        time_passes();
        assert!(matches!(query().await, Ok(Ok(_))));
        assert_eq!(home.asked.load(SeqCst), 0);
        client.look_home().await;
        assert_eq!((client.address(), home.asked.load(SeqCst)), (refuge, 1));
        home.hangs.store(false, SeqCst);
        client.look_home().await;
        assert_eq!((client.address(), home.asked.load(SeqCst)), (refuge, 1), "not again at once");
        time_passes();
        client.look_home().await;
        assert_eq!(client.address(), at_home);
        client.leave(at_home);
        assert_eq!(client.address(), refuge);
    }

    #[test]
    fn members_that_came_are_asked_and_those_that_went_are_asked_last() {
        let at = |n: u8| SocketAddr::from(([10, 0, 0, n], 7700));
        let ask = |given: &[u8], members: &[u8]| {
            let given: Vec<_> = given.iter().map(|n| at(*n)).collect();
            whom_to_ask(&given, &members.iter().map(|n| at(*n)).collect())
        };
        assert_eq!(ask(&[2, 1, 3], &[1, 2, 4, 5]), [2, 1, 4, 5, 3].map(at));
        assert_eq!(ask(&[8, 9], &[1, 2]), [8, 9, 1, 2].map(at), "given by another network's addresses");

        let client = Client::new([2, 1, 3].map(at).into(), uuid::Uuid::nil()).unwrap();
        client.leave(at(2));
        client.leave(at(1));
        client.inner.away.lock().go_home();
        assert_eq!(client.address(), at(2), "home again");
        client.leave(at(2));
        assert_eq!(client.address(), at(3), "and back to where it was");
        client.leave(at(3));
        client.leave(at(2));
        client.inner.learn(&BTreeSet::from([at(1), at(4)]));
        assert_eq!(client.address(), at(1), "still the same one");
        client.inner.learn(&BTreeSet::from([at(4)]));
        (0..3).for_each(|_| client.leave(client.address()));
        assert!([1, 2, 3, 4].map(at).contains(&client.address()));
    }
}
