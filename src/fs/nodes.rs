//! The nodes of the cluster: which numbers were given out, and the last start of each that is known.
//!
//! A vote counts once and an acknowledged entry counts for ever, so a node that has forgotten what it said must never take
//! part again. Three things betray such a node, each noted here from what it once said itself:
//!
//! * its *instance*, drawn at random when its data directory was made: another one is another directory, and the first was
//!   wiped;
//! * its *incarnation*, raised with each start, and the *run*, drawn at random for each: a lower incarnation, or the same
//!   one with another run, is an old copy of the directory;
//! * how far its log *holds* durably, noted by leaders from time to time: a later start whose log ends before that is an
//!   old copy too, though it was made during the last run.
//!
//! Decision: noted in the replicated state rather than on each peer's own disk. Every node, also one that joins later or
//! has itself been repaired, then knows the same by replaying the log, snapshots carry it, and a start counts as known when
//! a majority knows it. Cost: one entry for each start of a node and one every few seconds while there is work; and a node
//! that is behind may for a moment accept what the others refuse.
//!
//! Numbers are never given twice: a node that was removed leaves `next_node` above its number, and so is told from one that
//! has not been heard of.

use super::state::Cause;
use super::*;
use serde::{Deserialize, Serialize};

/// One start of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStart {
    /// Of its data directory.
    pub instance: u128,
    pub incarnation: u64,
    /// Of this start alone.
    pub run: u64,
    /// The last entry of its log when it started.
    pub log_end: LogIndex,
}

/// How far the log of a node's run reaches durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHolds {
    pub node: u64,
    pub run: u64,
    pub upto: LogIndex,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// It has been in the membership; otherwise its number has only been given out.
    member: bool,
    start: Option<NodeStart>,
    holds: LogIndex,
}

/// Why a start of a node may never take part in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("node {node} was removed from the cluster, and numbers are not given twice")]
    Removed { node: u64 },
    #[error("node {node} has another data directory than the one that the cluster knows: its disk was lost or emptied")]
    Wiped { node: u64 },
    #[error(
        "node {node} has been reverted: this is start {found} of its data directory, and the cluster has seen another start \
         {known}, so this is an old copy of it"
    )]
    OldStart { node: u64, found: u64, known: u64 },
    #[error(
        "node {node} has been reverted: its log ends at entry {found}, and it has held entry {known} before, so this is an \
         old copy of its data directory"
    )]
    OldLog { node: u64, found: u64, known: u64 },
}

impl State {
    /// The cluster's membership is now this (learners included). Moves the applied index as [`State::skip`] does.
    pub fn set_members(&mut self, index: LogIndex, members: &[u64]) {
        self.skip(index);
        let gone = |node: &u64, record: &NodeRecord| record.member && !members.contains(node);
        let gone: Vec<u64> = self.nodes.iter().filter(|(node, record)| gone(node, record)).map(|(n, _)| *n).collect();
        for node in gone {
            self.nodes.remove(&node);
        }
        for node in members {
            let new = NodeRecord { member: true, start: None, holds: LogIndex(0) };
            let record = self.nodes.get(node).map_or(new, |known| NodeRecord { member: true, ..known.clone() });
            self.nodes.insert(*node, record);
            self.next_node = self.next_node.max(node.saturating_add(1));
        }
    }

    /// May this start of a node take part, as far as is known here? A node that is not known yet may.
    pub fn fit(&self, node: u64, start: &NodeStart) -> Result<(), Unfit> {
        let Some(record) = self.nodes.get(&node) else {
            return if node < self.next_node { Err(Unfit::Removed { node }) } else { Ok(()) };
        };
        let Some(known) = &record.start else { return Ok(()) };
        if start.instance != known.instance {
            return Err(Unfit::Wiped { node });
        }
        if start.incarnation < known.incarnation || (start.incarnation == known.incarnation && start.run != known.run) {
            return Err(Unfit::OldStart { node, found: start.incarnation, known: known.incarnation });
        }
        // Of the run that is known the log has grown since it started.
        if start.run != known.run && start.log_end < record.holds {
            return Err(Unfit::OldLog { node, found: start.log_end.0, known: record.holds.0 });
        }
        Ok(())
    }

    /// The last start of a node that the cluster knows.
    pub fn node_start(&self, node: u64) -> Option<&NodeStart> {
        self.nodes.get(&node)?.start.as_ref()
    }

    /// How far a node's log is known to reach durably.
    pub fn node_holds(&self, node: u64) -> LogIndex {
        self.nodes.get(&node).map_or(LogIndex(0), |record| record.holds)
    }

    pub(super) fn node(&mut self, cause: &Cause, command: &NodeCommand) -> Outcome {
        match command {
            NodeCommand::Allocate => self.allocate_node(),
            NodeCommand::Start { node, start } => self.start_node(*node, start),
            NodeCommand::Holds(noted) => {
                noted.iter().for_each(|holds| self.note_holds(cause, holds));
                Ok(Reply::Done)
            }
        }
    }

    fn allocate_node(&mut self) -> Outcome {
        let node = self.next_node;
        self.next_node = node.checked_add(1).ok_or(Refusal::Invalid)?;
        self.nodes.insert(node, NodeRecord { member: false, start: None, holds: LogIndex(0) });
        Ok(Reply::Node(node))
    }

    fn start_node(&mut self, node: u64, start: &NodeStart) -> Outcome {
        let known = self.nodes.get(&node).filter(|record| record.member).cloned();
        let known = known.ok_or(Refusal::NotPermitted)?;
        self.fit(node, start).map_err(|_| Refusal::NotPermitted)?;
        self.nodes.insert(node, NodeRecord { start: Some(*start), ..known });
        Ok(Reply::Done)
    }

    /// A run that is no more the known one has said this too late. What lies at or beyond this very entry is not committed.
    fn note_holds(&mut self, cause: &Cause, holds: &NodeHolds) {
        let Some(record) = self.nodes.get(&holds.node) else { return };
        let of_this_run = record.start.is_some_and(|start| start.run == holds.run);
        if of_this_run && holds.upto > record.holds && holds.upto < cause.index {
            let record = NodeRecord { holds: holds.upto, ..record.clone() };
            self.nodes.insert(holds.node, record);
        }
    }
}
