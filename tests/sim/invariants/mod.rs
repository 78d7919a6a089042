//! What must hold, whatever happens: one file each, with its source.
//!
//! The white-box ones look at every node's log, vote and state after every tick; the black-box ones know only what
//! clients wrote down. Each is told of the same few events and keeps what it needs.

mod acknowledged;
mod durable;
mod election_safety;
mod equal_hashes;
mod exactly_once;
pub mod expiry;
mod file_system;
mod leader_completeness;
mod linearizability;
pub mod locks;
mod log_matching;
mod state_machine_safety;
mod votes;

use crate::diary::Diary;
use keelfs::log::{Body, Entry, EntryId, Log};
use keelfs::net::NodeId;
use keelfs::raft::Replica;
use std::collections::BTreeMap;

/// `Err`: what is broken, in words.
pub type Held = Result<(), String>;

/// An entry, as far as two of them are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: EntryId,
    pub command_sum: u32,
    pub body_sum: u32,
}

impl Record {
    fn of(entry: &Entry) -> Record {
        let body_sum = match &entry.body {
            Body::Bytes(bytes) => crc32c::crc32c(bytes),
            Body::Absent(length) => *length,
        };
        Record { id: entry.id, command_sum: crc32c::crc32c(&entry.command), body_sum }
    }
}

#[derive(Default)]
pub struct Invariants {
    pub election_safety: election_safety::ElectionSafety,
    pub log_matching: log_matching::LogMatching,
    pub leader_completeness: leader_completeness::LeaderCompleteness,
    pub state_machine_safety: state_machine_safety::StateMachineSafety,
    pub votes: votes::Votes,
    pub durable: durable::Durable,
    pub equal_hashes: equal_hashes::EqualHashes,
    mirrors: BTreeMap<NodeId, Mirror>,
}

/// What one node's open log was last seen to hold.
#[derive(Default)]
struct Mirror {
    ids: BTreeMap<u64, EntryId>,
    last: Option<EntryId>,
    /// Where the log began when it was last read.
    first: u64,
    /// The next entry whose content is to be read.
    next: u64,
    /// The next applied one that is to be read, and the next whose state is to be compared.
    applied: u64,
    hashed: u64,
}

impl Invariants {
    /// A log was opened: before anything else happens to it.
    pub fn opened(&mut self, node: NodeId, log: &Log) -> Held {
        self.mirrors.remove(&node);
        self.leader_completeness.role(node, None);
        self.votes.opened(node, log)?;
        self.durable.opened(node, log)
    }

    /// Everything that this log had queued is durable, it says.
    pub fn pumped(&mut self, node: NodeId, log: &Log) -> Held {
        self.look_at_log(node, log)?;
        self.votes.durable(node, log)?;
        self.durable.synced(node, log);
        Ok(())
    }

    /// Look at what is new in a log.
    pub fn look_at_log(&mut self, node: NodeId, log: &Log) -> Held {
        let state = log.state();
        let mirror = self.mirrors.entry(node).or_default();
        let last = state.last.map_or(0, |id| id.index);
        if state.last != mirror.last {
            mirror.first = state.last_purged.map_or(0, |id| id.index + 1);
            mirror.ids = mirror.ids.split_off(&mirror.first);
            while let Some((index, id)) = mirror.ids.last_key_value() {
                if log.entry_id(*index) == Some(*id) {
                    break;
                }
                mirror.ids.pop_last();
            }
            mirror.last = state.last;
            let from = mirror.ids.last_key_value().map_or(mirror.first, |(index, _)| index + 1);
            mirror.ids.extend((from..=last).filter_map(|index| Some((index, log.entry_id(index)?))));
            mirror.next = mirror.next.min(from);
            self.durable.truncated(node, from);
        }
        if mirror.next > last {
            return Ok(());
        }
        let (entries, next) = readable(log, mirror.next, last);
        mirror.next = next;
        for entry in entries {
            let before = entry.id.index.checked_sub(1).and_then(|index| log.entry_id(index));
            self.log_matching.holds(node, Record::of(&entry), before)?;
        }
        Ok(())
    }

    /// Look at what a node has applied, and whether it leads.
    pub fn look_at_replica(&mut self, node: NodeId, incarnation: u64, log: &Log, replica: &Replica) -> Held {
        let status = replica.status();
        let leads = status.role == "leader";
        if leads && self.election_safety.leads(node, incarnation, status.term)? {
            self.leader_completeness.leads(node, status.term, log)?;
        }
        self.leader_completeness.role(node, leads.then_some(status.term));
        let mirror = self.mirrors.entry(node).or_default();
        // Not of 0: that is also the number of a state to which nothing has been applied.
        for index in mirror.hashed.max(1)..=status.applied {
            if let Some(hash) = replica.hash_at(keelfs::fs::LogIndex(index)) {
                self.equal_hashes.applied(node, index, hash)?;
            }
        }
        mirror.hashed = mirror.hashed.max(status.applied + 1);
        let (entries, next) = readable(log, mirror.applied, status.applied);
        mirror.applied = mirror.applied.max(next);
        for entry in entries {
            let record = Record::of(&entry);
            self.state_machine_safety.applied(node, record)?;
            if self.leader_completeness.committed(record.id, status.term) {
                self.later_leaders_have(record.id, status.term)?;
            }
        }
        Ok(())
    }

    /// As their logs were last seen: a leader never loses what it began with.
    fn later_leaders_have(&self, id: EntryId, committed_by: u64) -> Held {
        self.leader_completeness.later_than(committed_by).try_for_each(|(leader, term)| {
            match self.mirrors.get(&leader) {
                Some(mirror) if mirror.first <= id.index => {
                    leader_completeness::holds(leader, term, id, mirror.ids.get(&id.index).copied())
                }
                _ => Ok(()),
            }
        })
    }

    pub fn look_at_state(&self, node: NodeId, replica: &Replica) -> Held {
        file_system::holds(node, replica)
    }

    /// What clients have seen so far; their calls that are under way may still come to anything.
    pub fn so_far(&self, diary: &Diary) -> Held {
        exactly_once::holds(diary)?;
        locks::hold(diary)?;
        linearizability::holds(diary)
    }

    /// When all is over.
    pub fn in_the_end(&self, diary: &Diary, replicas: &[(NodeId, Replica)]) -> Held {
        acknowledged::hold(diary, &self.state_machine_safety)?;
        exactly_once::holds(diary)?;
        expiry::holds(diary)?;
        locks::hold(diary)?;
        linearizability::holds(diary)?;
        replicas.iter().try_for_each(|(node, replica)| file_system::holds(*node, replica))
    }
}

/// The entries of `from..=to` up to the first that cannot be read, and where to go on: damage may be mended, and what is
/// behind it is not forgotten.
fn readable(log: &Log, from: u64, to: u64) -> (Vec<Entry>, u64) {
    if let Ok(entries) = log.entries(from, to + 1, usize::MAX, true) {
        return (entries, from.max(to + 1));
    }
    let mut entries = Vec::new();
    for index in from..=to {
        match log.entries(index, index + 1, usize::MAX, true) {
            Ok(one) => entries.extend(one),
            Err(_) => return (entries, index),
        }
    }
    (entries, to + 1)
}
