//! Do all replicas have the same state? Asked all the time, by each of all.
//!
//! Every few hundred entries, or seconds while there are fewer, a node asks the voters for the hash of their state at the
//! index that it has just applied. If a majority of the voters have one hash there and this node another, this node is the
//! one that is wrong: it fences itself, which means that it serves nothing more, leaves Raft and ends. A difference that no
//! majority can decide is told to the operator, and nobody is fenced: two of five that agree may be the two that are wrong.
//!
//! Cost: one small message to each voter for each [`COMPARE_ENTRIES`] entries, but no more often than [`LOOK_EVERY`]; so
//! beyond 2000 entries a second a divergence goes on for more entries, and never for more than a look.

use super::Machine;
use super::ending::{Ending, Endings};
use super::messages::{self, HASH_AT, HashAt, HashTold};
use super::peers::Peers;
use super::publish::Published;
use super::types::Types;
use crate::fs::LogIndex;
use crate::net::{NodeId, Purpose};
use bytes::Bytes;
use futures_util::future::join_all;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Entries after which the states are compared.
const COMPARE_ENTRIES: u64 = 500;
/// Time after which they are compared if anything was applied.
const COMPARE_TIME: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time for one answer; the asked one may have to apply the entry first.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What the last comparison came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Comparison {
    /// Where the states were compared.
    pub index: u64,
    /// Voters, this node among them if it is one, that had this node's state there.
    pub agree: Vec<NodeId>,
    pub differ: Vec<NodeId>,
}

pub struct Comparer {
    pub own: NodeId,
    pub raft: Raft<Types, Machine>,
    pub peers: Arc<Peers>,
    pub published: Arc<Published>,
    pub endings: Endings,
    pub last: Arc<Mutex<Comparison>>,
}

/// What is to be done about the hashes that came.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Agreed,
    /// Some differ, and no majority says who is right.
    Undecided,
    /// These are a majority, and of one mind.
    Fenced(Vec<NodeId>),
}

impl Comparer {
    pub async fn run(self, stop: CancellationToken) {
        let (mut compared, mut at) = (None, Instant::now());
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let applied = self.published.applied();
            let behind = compared.map_or(u64::MAX, |index: LogIndex| applied.0.saturating_sub(index.0));
            let due = behind >= COMPARE_ENTRIES || (behind > 0 && at.elapsed() >= COMPARE_TIME);
            if !due || applied.0 == 0 {
                continue;
            }
            (compared, at) = (Some(applied), Instant::now());
            if let Some(Some(why)) = stop.run_until_cancelled(self.compare(applied)).await {
                self.fence(why).await;
                return;
            }
        }
    }

    /// `Some`: this node is wrong, and why.
    async fn compare(&self, index: LogIndex) -> Option<String> {
        let own = self.published.hash_at(index)?;
        let voters = self.voters();
        let others = voters.iter().filter(|(node, _)| **node != self.own);
        let asked = others.map(async |(node, address)| Some((*node, self.ask(*node, *address, index).await?)));
        let told: BTreeMap<NodeId, u128> = join_all(asked).await.into_iter().flatten().collect();
        let votes = voters.contains_key(&self.own).then_some((self.own, own));
        let told: BTreeMap<NodeId, u128> = told.into_iter().chain(votes).collect();
        self.note(index, own, &told);
        match judge(own, &told, voters.len()) {
            Judgement::Agreed => None,
            Judgement::Undecided => {
                tracing::error!(
                    "the state after entry {} is not the same everywhere, and no majority says which is right: {}; \
                     stop writing, and look with keelfs check",
                    index.0,
                    listed(&told)
                );
                None
            }
            Judgement::Fenced(others) => Some(format!(
                "the state of node {} after entry {} ({own:032x}) is not the one that a majority has ({}): it has diverged and \
                 serves nothing more",
                self.own,
                index.0,
                listed(&told.into_iter().filter(|(node, _)| others.contains(node)).collect())
            )),
        }
    }

    /// Where the voters are; nil addresses are never asked.
    fn voters(&self) -> BTreeMap<NodeId, SocketAddr> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let nodes = membership.nodes().filter(|(node, _)| voters.contains(node));
        nodes.filter_map(|(node, at)| Some((*node, self.peers.address(*node, &at.address)?))).collect()
    }

    async fn ask(&self, node: NodeId, address: SocketAddr, index: LogIndex) -> Option<u128> {
        let question = messages::message(HASH_AT, &HashAt { index: index.0 }, Bytes::new()).ok()?;
        let link = self.peers.link(node, address, Purpose::Snapshot);
        let answer = link.call(question, Instant::now() + ANSWER_TIME).await.ok()?;
        messages::header::<HashTold>(&answer).ok()?.hash
    }

    fn note(&self, index: LogIndex, own: u128, told: &BTreeMap<NodeId, u128>) {
        let of = |same: bool| told.iter().filter(|(_, hash)| (**hash == own) == same).map(|(node, _)| *node).collect();
        *self.last.lock() = Comparison { index: index.0, agree: of(true), differ: of(false) };
    }

    /// Nothing is served from the moment that the ending is told; then Raft is left.
    async fn fence(&self, why: String) {
        tracing::error!("{why}");
        self.endings.tell(Ending::Diverged(why));
        if let Err(e) = self.raft.shutdown().await {
            tracing::error!("raft did not stop in order: {e}");
        }
    }
}

fn judge(own: u128, told: &BTreeMap<NodeId, u128>, voters: usize) -> Judgement {
    let mut groups: BTreeMap<u128, Vec<NodeId>> = BTreeMap::new();
    for (node, hash) in told {
        groups.entry(*hash).or_default().push(*node);
    }
    let mine = groups.remove(&own);
    match groups.into_values().max_by_key(Vec::len) {
        None => Judgement::Agreed,
        Some(others) if others.len() > voters / 2 => Judgement::Fenced(others),
        // This node is with the majority: it is the others' to end.
        Some(_) if mine.is_some_and(|mine| mine.len() > voters / 2) => Judgement::Agreed,
        Some(_) => Judgement::Undecided,
    }
}

fn listed(told: &BTreeMap<NodeId, u128>) -> String {
    let each: Vec<String> = told.iter().map(|(node, hash)| format!("node {node} {hash:032x}")).collect();
    each.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_of_all_voters_can_say_who_is_wrong() {
        let judged = |own: u128, told: &[(NodeId, u128)], voters| judge(own, &told.iter().copied().collect(), voters);
        assert_eq!(judged(7, &[(1, 7), (2, 7), (3, 7)], 5), Judgement::Agreed);
        assert_eq!(judged(7, &[(1, 7)], 5), Judgement::Agreed, "nobody else answers");
        assert_eq!(judged(7, &[(1, 7), (2, 8), (3, 8), (4, 8)], 5), Judgement::Fenced(vec![2, 3, 4]));
        assert_eq!(judged(8, &[(1, 7), (2, 8), (3, 8), (4, 8)], 5), Judgement::Agreed);
        assert_eq!(judged(7, &[(1, 7), (2, 8), (3, 8)], 5), Judgement::Undecided, "two of five are no majority");
        assert_eq!(judged(7, &[(1, 7), (2, 8), (3, 9), (4, 9), (5, 8)], 5), Judgement::Undecided);
        assert_eq!(judged(7, &[(1, 7), (2, 8)], 2), Judgement::Undecided);
        // A learner has no voice, and can be wrong.
        assert_eq!(judged(7, &[(1, 8), (2, 8), (3, 7)], 3), Judgement::Fenced(vec![1, 2]));
    }
}
