//! How full the disks of the members are, and what that means for commands.
//!
//! A full disk is foreseen. Every answer to a heartbeat tells the leader how much room its sender has left, and up to which
//! entry that counts; what the log holds behind that entry is taken off it, and what is under way too. From this the
//! leader judges, before it proposes a command that makes the tree grow ([`crate::fs::Command::grows`]):
//!
//! | its own disk | a majority has room | then |
//! |---|---|---|
//! | has room | yes, or no majority answers at all | propose |
//! | has room | no | refuse: `NoSpace` |
//! | is full | yes | hand the lead to a node with room, which proposes |
//! | is full | no | refuse: `NoSpace` |
//!
//! Everything else is proposed at all times, and lives off the reserve ([`crate::log::Room`]): deletes above all, so a full
//! cluster can be emptied. A leader whose reserve is used up too proposes nothing and waits for room, or for another to
//! lead. A follower without room takes entries as long as its reserve lasts but for the last segment;
//! then it says so instead of taking them, goes on voting, and is caught up once it has room again.
//!
//! Never refused in apply: that must come to the same on all replicas, and their disks are not the same.
//!
//! Cost: near the end a refusal may come early, by what is under way (64 MiB at most).

use crate::limits::{BODY_BYTES_MAX, FRAME_BODY_BYTES_MAX};
use crate::log::{Log, Room};
use crate::net::NodeId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A disk that does not take so much more counts as full: the largest body.
const FULL_BYTES: u64 = BODY_BYTES_MAX as u64;
/// What is left for votes when nothing else is taken any more.
const VOTES_BYTES: u64 = 1 << 20;
/// A leader sends entries that were refused again within this time.
const LEFT_BEHIND_TIME: Duration = Duration::from_secs(10);
/// How old a look at the own disk may be.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// With less room than this every look is a new one, and the keeper gives space back as soon as it can.
const NEAR_BYTES: u64 = 256 << 20;
/// A peer that has not told about its disk for so long does not count as alive.
const SILENT_AFTER: Duration = Duration::from_secs(5);

/// How long a full leader may look for a successor.
const STEP_ASIDE_TIME: Duration = Duration::from_secs(5);

/// What a node tells about its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Bytes that may be written before its reserve is touched.
    free: u64,
    /// The last entry that had been written by then; 0: none.
    durable: u64,
}

/// What a leader does with a command that makes the tree grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Propose,
    /// Another node can, and should lead.
    StepAside,
    Refuse,
}

/// How one voter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Silent,
    Full,
    HasRoom,
}

/// The voters: one set, or two while the membership changes.
pub type Voters = Vec<BTreeSet<NodeId>>;

/// What this node knows about the disks of the members.
pub struct Disks {
    own: NodeId,
    log: Log,
    looked: Mutex<Option<(Instant, Room)>>,
    peers: Mutex<BTreeMap<NodeId, (Instant, DiskReport)>>,
    /// Bytes of entries that were taken from a leader and may not be written yet.
    taking: AtomicU64,
    /// When this node last did not take entries.
    refused: Mutex<Option<Instant>>,
    /// Since when this node, as the leader, should make way for another.
    stepping_aside: Mutex<Option<Instant>>,
    /// Since when this node has judged as the leader.
    judging: Mutex<Option<Instant>>,
}

impl Disks {
    pub fn new(own: NodeId, log: Log) -> Disks {
        Disks {
            own,
            log,
            looked: Mutex::default(),
            peers: Mutex::default(),
            taking: AtomicU64::new(0),
            refused: Mutex::default(),
            stepping_aside: Mutex::default(),
            judging: Mutex::default(),
        }
    }

    /// Room on this node's disk.
    pub fn room(&self) -> Room {
        let mut looked = self.looked.lock();
        match *looked {
            Some((at, room)) if at.elapsed() < LOOK_AGAIN && room.free > NEAR_BYTES => room,
            _ => {
                let room = self.log.room();
                *looked = Some((Instant::now(), room));
                room
            }
        }
    }

    /// For the leader. The entry is looked up first: what is written meanwhile is then counted twice, not missed.
    pub fn report(&self) -> DiskReport {
        let durable = self.log.state().durable.map_or(0, |id| id.index);
        DiskReport { free: self.room().free, durable }
    }

    pub fn hear(&self, node: NodeId, report: DiskReport) {
        self.peers.lock().insert(node, (Instant::now(), report));
    }

    pub fn is_full(&self) -> bool {
        self.room().free < FULL_BYTES
    }

    /// Whether this node, as the leader, must not append any more, when so many bytes are under way: what is left is for
    /// votes, and for the few entries that Raft makes by itself.
    pub fn is_exhausted(&self, under_way: u64) -> bool {
        self.room().all < VOTES_BYTES + under_way
    }

    pub fn is_nearly_full(&self) -> bool {
        self.room().free < NEAR_BYTES
    }

    /// Whether this node, as a follower, can take so many bytes of entries, beside those that it has taken and not written
    /// yet. Entries without bodies are what frees space: they may use all but the last. What comes back is to be kept until
    /// they are durable.
    pub fn take(self: &Arc<Disks>, bytes: u64, with_bodies: bool) -> Option<Taken> {
        let before = self.taking.fetch_add(bytes, Ordering::AcqRel);
        let taken = Taken { disks: self.clone(), bytes };
        let room = self.room();
        let room = if with_bodies { room.with_reserve } else { room.all.saturating_sub(VOTES_BYTES) };
        let fits = before + bytes <= room;
        *self.refused.lock() = (!fits).then(Instant::now);
        fits.then_some(taken)
    }

    /// Whether the others go on without this node, because it cannot take their entries, or has not lately.
    pub fn is_left_behind(&self) -> bool {
        self.room().with_reserve < FRAME_BODY_BYTES_MAX as u64
            || self.refused.lock().is_some_and(|at| at.elapsed() < LEFT_BEHIND_TIME)
    }

    /// Judge a command that makes the tree grow, when so many bytes are under way here. For the leader. One that is new
    /// takes the disks that it has not heard of yet for such with room.
    pub fn judge(&self, voters: &Voters, under_way: u64) -> Verdict {
        let is_new = self.judging.lock().get_or_insert_with(Instant::now).elapsed() < SILENT_AFTER;
        judge(voters, self.own, |node| match self.free_at(node, under_way) {
            None if is_new => Standing::HasRoom,
            None => Standing::Silent,
            Some(bytes) if bytes < FULL_BYTES => Standing::Full,
            Some(_) => Standing::HasRoom,
        })
    }

    /// This node, which leads, should make way for another. True: that may still happen, and whoever proposes looks for
    /// the other. Not for ever: a cluster in which nobody takes over is full to its users.
    pub fn step_aside(&self) -> bool {
        let mut since = self.stepping_aside.lock();
        if since.is_none_or(|since| since.elapsed() > 3 * STEP_ASIDE_TIME) {
            *since = Some(Instant::now());
        }
        since.is_some_and(|since| since.elapsed() < STEP_ASIDE_TIME)
    }

    pub fn is_stepping_aside(&self) -> bool {
        self.stepping_aside.lock().is_some_and(|since| since.elapsed() < STEP_ASIDE_TIME)
    }

    /// This node does not lead (any more).
    pub fn does_not_lead(&self) {
        *self.stepping_aside.lock() = None;
        *self.judging.lock() = None;
    }

    /// The voter with room that is furthest in the log.
    pub fn successor(&self, voters: &Voters) -> Option<NodeId> {
        let others = voters.last()?.iter().filter(|node| **node != self.own);
        let candidates: Vec<NodeId> =
            others.filter(|node| self.free_at(**node, 0) >= Some(FULL_BYTES)).copied().collect();
        let peers = self.peers.lock();
        candidates.into_iter().max_by_key(|node| peers.get(node).map(|(_, report)| report.durable))
    }

    /// Bytes that can be written now, as far as this node knows: a majority has room for them.
    pub fn writable(&self, voters: &Voters) -> u64 {
        let of_one = |voters: &BTreeSet<NodeId>| {
            let mut free: Vec<u64> = voters.iter().map(|node| self.free_at(*node, 0).unwrap_or(0)).collect();
            free.sort_unstable_by(|a, b| b.cmp(a));
            free.get(voters.len() / 2).copied().unwrap_or(0)
        };
        voters.iter().map(of_one).min().unwrap_or_else(|| self.room().free)
    }

    /// Bytes that a node may still write when it has written all that the log holds; `None`: it is silent.
    fn free_at(&self, node: NodeId, under_way: u64) -> Option<u64> {
        let report = match node == self.own {
            true => self.report(),
            false => {
                let (at, report) = *self.peers.lock().get(&node)?;
                (at.elapsed() < SILENT_AFTER).then_some(report)?
            }
        };
        Some(report.free.saturating_sub(self.log.bytes_since(report.durable)).saturating_sub(under_way))
    }
}

/// Entries that were let in and may not be durable yet.
pub struct Taken {
    disks: Arc<Disks>,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.disks.taking.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

fn judge(voters: &Voters, own: NodeId, standing: impl Fn(NodeId) -> Standing) -> Verdict {
    let majority = |counts: &dyn Fn(Standing) -> bool| {
        voters.iter().all(|voters| {
            let counted = voters.iter().filter(|node| counts(standing(**node))).count();
            counted > voters.len() / 2
        })
    };
    let (able, alive) = (majority(&|s| s == Standing::HasRoom), majority(&|s| s != Standing::Silent));
    match (standing(own) == Standing::HasRoom, able) {
        (true, true) => Verdict::Propose,
        // Nothing is committed anyway: the caller's patience decides, as ever.
        (true, false) if !alive => Verdict::Propose,
        (false, true) => Verdict::StepAside,
        _ => Verdict::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::Standing::{Full, HasRoom, Silent};
    use super::*;
    use crate::log::simulated::SimulatedDisk;
    use crate::log::{Options, Threading};

    /// Nodes are numbered from 1; node 1 leads.
    fn verdict(standings: &[Standing]) -> Verdict {
        let voters = vec![(1..=standings.len() as u64).collect()];
        judge(&voters, 1, |node| standings[node as usize - 1])
    }

    #[test]
    fn a_majority_with_room_is_enough_and_a_full_leader_steps_aside() {
        assert_eq!(verdict(&[HasRoom, HasRoom, HasRoom, Full, Full]), Verdict::Propose);
        assert_eq!(verdict(&[HasRoom, HasRoom, Full, Full, Full]), Verdict::Refuse);
        assert_eq!(verdict(&[Full, HasRoom, HasRoom, HasRoom, Full]), Verdict::StepAside);
        assert_eq!(verdict(&[Full, HasRoom, HasRoom, Full, Full]), Verdict::Refuse);
        assert_eq!(verdict(&[HasRoom, HasRoom, Full, Silent, Silent]), Verdict::Refuse, "the third is needed");
        assert_eq!(verdict(&[HasRoom, Full, Silent, Silent, Silent]), Verdict::Propose, "there is no majority at all");
        assert_eq!(verdict(&[Full, Silent, Silent]), Verdict::Refuse);
        assert_eq!(verdict(&[HasRoom]), Verdict::Propose);
        assert_eq!(verdict(&[Full]), Verdict::Refuse);
    }

    fn disks(capacity: Option<u64>) -> Arc<Disks> {
        let disk = SimulatedDisk::new();
        disk.set_capacity(capacity);
        let options = Options { segment_bytes: 1 << 20, cache_bytes: 0, seed: 1, threading: Threading::Pumped };
        Arc::new(Disks::new(1, Log::open_on(Arc::new(disk), options).unwrap()))
    }

    #[test]
    fn what_was_taken_and_is_not_written_yet_takes_room() {
        let disks = disks(Some(8 << 20));
        let room = disks.room().with_reserve;
        let first = disks.take(room - 1000, true).unwrap();
        assert!(disks.take(1001, true).is_none() && disks.is_left_behind());
        let second = disks.take(1000, true).unwrap();
        assert!(disks.take(1, true).is_none());
        drop((first, second));
        assert!(disks.take(room, true).is_some());
    }

    #[test]
    fn a_new_leader_refuses_nothing_because_others_have_not_told_yet() {
        let (disks, voters) = (disks(None), vec![(1..=5).collect()]);
        let tell = |node, free| disks.hear(node, DiskReport { free, durable: 0 });
        tell(2, 0);
        tell(3, 1 << 30);
        assert_eq!(disks.judge(&voters, 0), Verdict::Propose, "4 and 5 may have room");
        *disks.judging.lock() = Instant::now().checked_sub(SILENT_AFTER);
        assert_eq!(disks.judge(&voters, 0), Verdict::Refuse, "they are dead, and 2 would be needed");
        disks.does_not_lead();
        tell(4, 0);
        tell(5, 0);
        assert_eq!(disks.judge(&voters, 0), Verdict::Refuse, "three have told that they are full");
    }

    #[test]
    fn while_the_membership_changes_both_majorities_need_room() {
        let voters = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        let full = |full: &'static [u64]| move |node| if full.contains(&node) { Full } else { HasRoom };
        assert_eq!(judge(&voters, 1, full(&[2, 4])), Verdict::Propose);
        assert_eq!(judge(&voters, 1, full(&[4, 5])), Verdict::Refuse);
        assert_eq!(judge(&voters, 1, full(&[1])), Verdict::StepAside);
    }
}
