//! Whose word counts. A node whose disk was emptied, or is an old copy, has forgotten what it voted and acknowledged; it
//! must never do either again under its number.
//!
//! What betrays it is in the replicated state ([`crate::fs::Unfit`]). Each node holds what it knows there against whoever
//! calls it, and against whoever it calls: that is the [`Registrar`].
//!
//! Decision: a process that has just started neither votes nor asks for votes before a majority (itself counted) has let
//! it in. One peer that is behind could not know better, several rarely are. It costs no availability to speak of, since
//! an election takes a majority that can be reached anyway. Entries are taken from a leader without that: what this
//! process then acknowledges is on its disk.

use super::Machine;
use super::membership::Member;
use super::messages::INTRODUCE;
use super::peers::Peers;
use super::publish::Published;
use super::types::Types;
use crate::fs::{LogIndex, NodeStart, Unfit};
use crate::net::{Expulsion, Judge, Message, NodeId, Purpose, Start};
use bytes::Bytes;
use futures_util::future::join_all;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often those that have not let us in yet are asked again.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How often a process calls on one of the others even when all is well: one that was removed while it was away learns of
/// it so, for nobody calls on it any more.
const CALL_EVERY: Duration = Duration::from_secs(1);
/// How long one of them may take.
const ASK_TIME: Duration = Duration::from_secs(1);

/// What this node knows of the others' starts, and what the others think of ours.
pub struct Registrar {
    /// Empty until the state has been loaded: then nothing is known to hold against anyone.
    published: OnceLock<Arc<Published>>,
    expelled: watch::Sender<Option<Expulsion>>,
    /// Set once it runs.
    raft: OnceLock<Raft<Types, Machine>>,
    /// Runs that were held against what this node, leading, knew of the run before.
    compared: Mutex<BTreeMap<NodeId, u64>>,
}

impl Default for Registrar {
    fn default() -> Registrar {
        let (published, expelled, raft, compared) =
            (OnceLock::new(), watch::Sender::new(None), OnceLock::new(), Mutex::default());
        Registrar { published, expelled, raft, compared }
    }
}

impl Registrar {
    /// Judge by this state from now on.
    pub fn judge_by(&self, published: Arc<Published>) {
        // Called once, by the replica that made this.
        let _ = self.published.set(published);
    }

    pub fn follow(&self, raft: Raft<Types, Machine>) {
        // Once, where the replica starts.
        let _ = self.raft.set(raft);
    }

    /// The nodes of the membership; empty: it is not known yet.
    pub fn members(&self) -> BTreeMap<NodeId, Member> {
        let members = self.raft.get().map(|raft| {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.nodes().map(|(node, member)| (*node, member.clone())).collect()
        });
        members.unwrap_or_default()
    }

    /// What leaders note comes seconds late; the leader itself knows at once what a run before has acknowledged to it. A
    /// run is compared when it first shows itself: later its log has grown.
    fn compare(&self, node: NodeId, start: &Start) -> Result<(), Unfit> {
        let mut compared = self.compared.lock();
        if compared.get(&node) == Some(&start.run) {
            return Ok(());
        }
        let known = self.raft.get().map_or(0, |raft| acknowledged_by(raft, node));
        if start.log_end < known {
            return Err(Unfit::OldLog { node, found: start.log_end, known });
        }
        compared.insert(node, start.run);
        Ok(())
    }

    pub fn watch(&self) -> watch::Receiver<Option<Expulsion>> {
        self.expelled.subscribe()
    }
}

impl Judge for Registrar {
    fn admit(&self, node: NodeId, start: &Start) -> Result<(), Expulsion> {
        let Some(published) = self.published.get() else { return Ok(()) };
        let fit = published.root().fit(node, &noted(start));
        fit.and_then(|()| self.compare(node, start)).map_err(expulsion)
    }

    fn expelled(&self, expulsion: Expulsion) {
        self.expelled.send_if_modified(|said| said.is_none() && said.replace(expulsion).is_none());
    }
}

/// While this node leads: the last committed entry that another is known to hold. What is committed is never taken back, so
/// also a leader that does not know yet that it is none any more says nothing wrong.
fn acknowledged_by(raft: &Raft<Types, Machine>, node: NodeId) -> u64 {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let committed = metrics.cluster_committed.map_or(0, |id| id.index);
    let matched = metrics.replication.as_ref().filter(|_| node != metrics.id);
    let matched = matched.and_then(|matched| matched.get(&node).copied().flatten());
    matched.map_or(0, |id| id.index.min(committed))
}

/// A start as the state notes it.
pub fn noted(start: &Start) -> NodeStart {
    let Start { instance, incarnation, run, log_end } = *start;
    NodeStart { instance: instance.as_u128(), incarnation, run, log_end: LogIndex(log_end) }
}

fn expulsion(unfit: Unfit) -> Expulsion {
    let removed = matches!(unfit, Unfit::Removed { .. });
    let next = match unfit {
        Unfit::Removed { .. } => "join again as a new node, with an empty data directory and `keelfs join`".into(),
        Unfit::Wiped { node } | Unfit::OldStart { node, .. } | Unfit::OldLog { node, .. } => format!(
            "it must not vote again; put a new node in its place, with an empty data directory and `keelfs member replace \
             {node}`"
        ),
    };
    Expulsion { removed, why: format!("{unfit}; {next}") }
}

/// Call on the others until a majority has let this process in; then on one after the other, for as long as it runs.
pub async fn introduce(raft: Raft<Types, Machine>, peers: Arc<Peers>, own: NodeId, stop: CancellationToken) {
    let mut admitted_by = BTreeSet::from([own]);
    while !stop.is_cancelled() {
        let (configs, others) = known(&raft, &peers);
        if is_majority(&configs, &admitted_by) {
            peers.set_introduced();
            return stay_known(&raft, &peers, own, &stop).await;
        }
        let asked = others.into_iter().filter(|(node, _)| !admitted_by.contains(node));
        let asked = asked.map(|(node, address)| let_in_by(&peers, node, address)).collect::<Vec<_>>();
        admitted_by.extend(join_all(asked).await.into_iter().flatten());
        if !is_majority(&configs, &admitted_by) {
            stop.run_until_cancelled(tokio::time::sleep(ASK_EVERY)).await;
        }
    }
}

async fn stay_known(raft: &Raft<Types, Machine>, peers: &Peers, own: NodeId, stop: &CancellationToken) {
    let mut last = own;
    while stop.run_until_cancelled(tokio::time::sleep(CALL_EVERY)).await.is_some() {
        let (_, others) = known(raft, peers);
        let mut others = others.into_iter().filter(|(node, _)| *node != own);
        let first = others.clone().next();
        let Some((node, address)) = others.find(|(node, _)| *node > last).or(first) else { continue };
        last = node;
        let_in_by(peers, node, address).await;
    }
}

/// Who votes, as far as this node knows, and where all nodes are.
fn known(raft: &Raft<Types, Machine>, peers: &Peers) -> (Vec<BTreeSet<NodeId>>, Vec<(NodeId, SocketAddr)>) {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let configs = membership.get_joint_config().clone();
    if configs.is_empty() {
        let configured = peers.configured();
        return (vec![configured.keys().copied().collect()], configured.iter().map(|(n, at)| (*n, *at)).collect());
    }
    let at = |(node, member): (&NodeId, &Member)| Some((*node, peers.address(*node, &member.address)?));
    (configs, membership.nodes().filter_map(at).collect())
}

pub(super) fn is_majority(configs: &[BTreeSet<NodeId>], of: &BTreeSet<NodeId>) -> bool {
    configs.iter().all(|voters| voters.intersection(of).count() > voters.len() / 2)
}

async fn let_in_by(peers: &Peers, node: NodeId, address: SocketAddr) -> Option<NodeId> {
    let message = Message { kind: INTRODUCE, header: Bytes::new(), body: Bytes::new() };
    let answer = peers.link(node, address, Purpose::Pulse).call(message, Instant::now() + ASK_TIME).await;
    match answer {
        Ok(_) => Some(node),
        Err(e) => {
            tracing::debug!("not let in by node {node}: {e}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_set_of_voters_more_than_half_must_have_let_us_in() {
        let set = |nodes: &[NodeId]| BTreeSet::from_iter(nodes.iter().copied());
        assert!(is_majority(&[set(&[1])], &set(&[1])));
        assert!(!is_majority(&[set(&[1, 2])], &set(&[1])));
        assert!(is_majority(&[set(&[1, 2, 3, 4, 5])], &set(&[1, 4, 5])));
        assert!(!is_majority(&[set(&[1, 2, 3]), set(&[3, 4, 5])], &set(&[1, 2, 3])));
    }

    #[test]
    fn who_is_expelled_is_told_what_to_do() {
        let reverted = expulsion(Unfit::OldLog { node: 3, found: 5, known: 9 });
        assert!(reverted.why.contains("keelfs member replace 3") && !reverted.removed, "{reverted:?}");
        assert!(expulsion(Unfit::Wiped { node: 3 }).why.contains("member replace 3"));
        assert!(expulsion(Unfit::Removed { node: 3 }).removed);
    }
}
