//! Replicated advisory locks: `flock(2)`, `fcntl(2)` record locks and open file description locks, over all inodes.
//!
//! A lock belongs to an owner of a session, covers a range of one inode, and is shared or exclusive. The two families
//! (POSIX and flock) never conflict. A request that cannot be granted is refused or queued; queued requests are granted
//! in their order by whatever command makes room, inside its apply, so every replica grants the same one.
//!
//! Absent on purpose: time. A lock ends with its owner's release or with its session, and it is the session that times out.
//!
//! Decisions:
//! * A new request is measured against held locks only, not against the queue, as on Linux; only among waiters does the
//!   earlier one go first. Otherwise a program that takes a shared lock twice, through two descriptors, would hang as
//!   soon as a writer queues between. Cost: readers that keep overlapping can starve a writer.
//! * A flock that is converted is kept until the new mode is granted or queued; it is given up only if the request has
//!   to wait (`flock(2)`, section NOTES, allows losing it in both cases). A refusal thus really changes nothing.
//! * Deadlocks are looked for among POSIX owners, over all inodes, when a request is about to wait (`fcntl(2)`, EDEADLK). An
//!   owner is a process: threads that wait for each other's locks are seen as one, as on Linux. An earlier waiter is waited
//!   for like a holder, because the queue keeps its order: whoever would stand behind one that waits for his own process is
//!   refused. Linux, where whoever wakes first gets the lock, looks at holders alone and lets him wait.
//! * `generation`, the fencing token, counts the exclusive grants on an inode and is remembered until the inode goes.
//!   Ranges that join take the newest.
//! * The locks of an inode are one small vector, copied on change. Cost: an inode with thousands of locks pays for each
//!   of them at each change; [`LOCKS_PER_INODE_MAX`](crate::limits::LOCKS_PER_INODE_MAX) bounds that.

mod inode;
#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests may panic")]
mod model;

pub use inode::InodeLocks;

use super::canon;
use super::command::{LockMode, LockOwner, LockRange};
use super::query::{LockHolder, LockStanding};
use super::reply::{Outcome, Refusal, Reply};
use super::state::Broken;
use super::types::{Ino, SessionId};
use imbl::{OrdMap, OrdSet};
use inode::Holder;
use std::collections::BTreeSet;
use std::sync::Arc;

/// All locks of the file system. Cloning costs a few reference counts.
///
/// L7  `sessions` holds exactly the sessions that hold or wait for something, with the inode; `waits` exactly the owners
///     that wait, with the inode.
/// L8  `hash` is the sum of the hashes of the inodes' locks.
#[derive(Clone, Debug, Default)]
pub struct Locks {
    /// Every inode that has a lock or ever had an exclusive one.
    inodes: OrdMap<Ino, Arc<InodeLocks>>,
    sessions: OrdSet<(SessionId, Ino)>,
    waits: OrdSet<(Holder, Ino)>,
    hash: u128,
}

impl Locks {
    /// [`Command::Lock`](super::Command::Lock) on an inode that exists: `Locked`, `Waiting`, or `Done` for an unlock.
    pub fn lock(&mut self, ino: Ino, request: LockHolder, wait: bool) -> Outcome {
        let request = LockHolder { range: sound_range(request.owner, request.range)?, ..request };
        if request.mode == LockMode::Unlock {
            return self.unlock(ino, &request);
        }
        let blocked = self.get(ino).is_some_and(|locks| locks.conflict(&request).is_some());
        if blocked && !wait {
            return Err(Refusal::LockConflict);
        }
        if blocked && self.would_deadlock(ino, &request) {
            return Err(Refusal::Deadlock);
        }
        if self.get(ino).is_some_and(|locks| !locks.has_room()) {
            return Err(Refusal::TooManyLocks);
        }
        Ok(self.change(ino, |locks| match blocked {
            true => {
                locks.queue(&request);
                Reply::Waiting
            }
            false => Reply::Locked { generation: locks.grant(&request) },
        }))
    }

    fn unlock(&mut self, ino: Ino, request: &LockHolder) -> Outcome {
        match self.get(ino) {
            None => {}
            Some(locks) if locks.cannot_split(request) => return Err(Refusal::TooManyLocks),
            Some(_) => self.change(ino, |locks| locks.unlock(request)),
        }
        Ok(Reply::Done)
    }

    /// [`Command::CancelLock`](super::Command::CancelLock): `Locked` if the lock had been granted before, else `Done`.
    /// All waits of the owner for the range end, also those of other threads, who find them gone and ask again.
    pub fn cancel(&mut self, ino: Ino, session: SessionId, owner: LockOwner, range: LockRange) -> Outcome {
        let range = sound_range(owner, range)?;
        let holder = Holder { session, owner };
        if self.get(ino).is_some_and(|locks| locks.waits(holder, range)) {
            self.change(ino, |locks| locks.cancel(holder, range));
            return Ok(Reply::Done);
        }
        let granted = self.get(ino).and_then(|locks| locks.covered(holder, range));
        Ok(granted.map_or(Reply::Done, |generation| Reply::Locked { generation }))
    }

    /// [`Command::ReleaseOwner`](super::Command::ReleaseOwner): give back all that the owner holds on the inode.
    pub fn release_owner(&mut self, ino: Ino, session: SessionId, owner: LockOwner) {
        if self.get(ino).is_some() {
            self.change(ino, |locks| locks.release(Holder { session, owner }));
        }
    }

    /// The session has ended: what it holds and waits for goes, on every inode.
    pub fn end_session(&mut self, session: SessionId) {
        let first = (session, Ino(0));
        let touched = self.sessions.range(first..).take_while(|(s, _)| *s == session).map(|(_, ino)| *ino);
        for ino in touched.collect::<Vec<_>>() {
            self.change(ino, |locks| locks.end_session(session));
        }
    }

    /// The inode is gone, and with it its locks, waits and generation.
    pub fn forget(&mut self, ino: Ino) {
        if self.get(ino).is_some() {
            self.change(ino, |locks| *locks = InodeLocks::default());
        }
    }

    /// [`Query::TestLock`](super::Query::TestLock): the first held lock that conflicts, `None` if the request would be granted.
    pub fn test(&self, ino: Ino, request: LockHolder) -> Result<Option<LockHolder>, Refusal> {
        let request = LockHolder { range: sound_range(request.owner, request.range)?, ..request };
        Ok(self.get(ino).and_then(|locks| locks.conflict(&request)).map(|held| held.lock))
    }

    /// [`Query::LockStanding`](super::Query::LockStanding). An owner that waits to convert what it holds is `Waiting`.
    pub fn standing(&self, ino: Ino, session: SessionId, owner: LockOwner, range: LockRange) -> LockStanding {
        let (Ok(range), Some(locks)) = (sound_range(owner, range), self.get(ino)) else { return LockStanding::Gone };
        let holder = Holder { session, owner };
        if locks.waits(holder, range) {
            return LockStanding::Waiting;
        }
        locks.covered(holder, range).map_or(LockStanding::Gone, |generation| LockStanding::Held { generation })
    }

    /// Exclusive grants on the inode so far.
    pub fn generation(&self, ino: Ino) -> u64 {
        self.get(ino).map_or(0, InodeLocks::generation)
    }

    /// What is held on the inode, by start.
    pub fn held(&self, ino: Ino) -> impl Iterator<Item = LockHolder> + '_ {
        self.get(ino).into_iter().flat_map(|locks| locks.held().iter().map(|h| h.lock))
    }

    /// Who waits on the inode, in order.
    pub fn waiting(&self, ino: Ino) -> impl Iterator<Item = LockHolder> + '_ {
        self.get(ino).into_iter().flat_map(|locks| locks.waiting().iter().copied())
    }

    /// Of all locks together, kept incrementally; does not depend on the order of their history beyond what they show.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Every inode with something to remember, by number, for [`import`](Locks::import) elsewhere.
    pub fn export(&self) -> impl Iterator<Item = (Ino, &InodeLocks)> {
        self.inodes.iter().map(|(ino, locks)| (*ino, &**locks))
    }

    /// Take one exported inode. Refuses one that breaks an invariant or is already there.
    pub fn import(&mut self, ino: Ino, locks: InodeLocks) -> Result<(), Broken> {
        locks.check()?;
        if self.get(ino).is_some() {
            return Err(Broken { number: "L7", what: format!("the locks of inode {} come twice", ino.0) });
        }
        self.change(ino, |empty| *empty = locks);
        Ok(())
    }

    /// L1 to L8. O(n).
    pub fn check(&self) -> Result<(), Broken> {
        let mut anew = Locks::default();
        for (ino, locks) in self.export() {
            anew.import(ino, locks.clone())
                .map_err(|broken| Broken { what: format!("inode {}: {}", ino.0, broken.what), ..broken })?;
        }
        if anew.sessions != self.sessions || anew.waits != self.waits {
            return Err(Broken {
                number: "L7",
                what: "the index of sessions and waits is not that of the locks".into(),
            });
        }
        if anew.hash != self.hash {
            return Err(Broken { number: "L8", what: "the hash is not that of the locks".into() });
        }
        Ok(())
    }

    fn get(&self, ino: Ino) -> Option<&InodeLocks> {
        self.inodes.get(&ino).map(|locks| &**locks)
    }

    /// The only way to change an inode's locks: keeps the indexes and the hash in step.
    fn change<R>(&mut self, ino: Ino, edit: impl FnOnce(&mut InodeLocks) -> R) -> R {
        let before = self.inodes.get(&ino).cloned().unwrap_or_default();
        let mut after = InodeLocks::clone(&before);
        let result = edit(&mut after);
        self.reindex(ino, &before, &after);
        self.hash = self.hash.wrapping_sub(hash_of(ino, &before)).wrapping_add(hash_of(ino, &after));
        match after == InodeLocks::default() {
            true => self.inodes.remove(&ino),
            false => self.inodes.insert(ino, Arc::new(after)),
        };
        result
    }

    fn reindex(&mut self, ino: Ino, before: &InodeLocks, after: &InodeLocks) {
        let (old, new) = (sessions_of(before), sessions_of(after));
        for session in old.difference(&new) {
            self.sessions.remove(&(*session, ino));
        }
        for session in new.difference(&old) {
            self.sessions.insert((*session, ino));
        }
        let (old, new) = (waiters_of(before), waiters_of(after));
        for holder in old.difference(&new) {
            self.waits.remove(&(*holder, ino));
        }
        for holder in new.difference(&old) {
            self.waits.insert((*holder, ino));
        }
    }

    /// Would this POSIX request, once queued, wait for itself?
    fn would_deadlock(&self, ino: Ino, request: &LockHolder) -> bool {
        let asker = Holder::of(request);
        let mut open = self.get(ino).map(|locks| locks.blockers(request)).unwrap_or_default();
        let mut seen: BTreeSet<Holder> = open.iter().copied().collect();
        while let Some(holder) = open.pop() {
            if holder == asker {
                return true;
            }
            if matches!(holder.owner, LockOwner::Posix(_)) {
                open.extend(self.blockers_of(holder).filter(|blocker| seen.insert(*blocker)));
            }
        }
        false
    }

    /// Whom an owner waits for, over all inodes: the edges of the wait-for graph.
    fn blockers_of(&self, holder: Holder) -> impl Iterator<Item = Holder> + '_ {
        let inodes = self.waits.range((holder, Ino(0))..).take_while(move |(h, _)| *h == holder);
        inodes.filter_map(|(_, ino)| self.get(*ino)).flat_map(move |locks| locks.blockers_of(holder))
    }
}

/// The range that a request means: a flock's is the whole file.
fn sound_range(owner: LockOwner, range: LockRange) -> Result<LockRange, Refusal> {
    match owner {
        LockOwner::Flock(_) => Ok(LockRange { start: 0, end: u64::MAX }),
        LockOwner::Posix(_) if range.start <= range.end => Ok(range),
        LockOwner::Posix(_) => Err(Refusal::Invalid),
    }
}

fn sessions_of(locks: &InodeLocks) -> BTreeSet<SessionId> {
    locks.held().iter().map(|h| h.lock.session).chain(locks.waiting().iter().map(|w| w.session)).collect()
}

fn waiters_of(locks: &InodeLocks) -> BTreeSet<Holder> {
    locks.waiting().iter().map(Holder::of).collect()
}

/// Nothing for an inode without locks, so that the sum does not depend on who was ever asked about.
fn hash_of(ino: Ino, locks: &InodeLocks) -> u128 {
    if *locks == InodeLocks::default() {
        return 0;
    }
    canon::hash_of(&(ino, locks))
}
