//! What this mount knows of its locks: who holds something through which handle, and who has asked.
//!
//! A request is counted before it is sent and until its outcome is known, so that whatever a close gives back, and what
//! it need not, is decided here, under one lock. A request that got nothing leaves nothing behind: its handle is as if it
//! had never asked. What is not known counts as held.

use crate::fs::{Ino, LockOwner, LockRange, SessionId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Ranges that are remembered of one owner and handle; of more, only that there are some.
const RANGES_MAX: usize = 64;
const WHOLE_FILE: LockRange = LockRange { start: 0, end: u64::MAX };

/// Who took locks on what, through which handles.
#[derive(Default)]
pub struct LockTable {
    state: Mutex<State>,
    left: Notify,
    cancels: AtomicU64,
}

#[derive(Default)]
struct State {
    dealings: HashMap<Ino, Vec<Dealing>>,
    /// Owners whose locks are being given back, counted by inode.
    leaving: HashMap<Ino, usize>,
    /// Requests that were granted so far, on any inode.
    grants: u64,
}

/// Who asks, through which handle, in which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub owner: LockOwner,
    pub handle: u64,
    pub session: SessionId,
}

/// What an asker has and wants on an inode.
#[derive(Debug)]
struct Dealing {
    asker: Asker,
    /// Requests without an outcome.
    asking: usize,
    /// Those of them that nobody waits for any more: what they get is given back.
    undoing: usize,
    granted: Granted,
}

/// What was granted and has not been unlocked since: at least all that is held.
#[derive(Debug, Default)]
struct Granted(Vec<Grant>);

#[derive(Clone, Copy, Debug)]
struct Grant {
    /// One of [`State::grants`].
    number: u64,
    range: LockRange,
}

/// May a request be sent?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It may, and is counted until [`LockTable::end`].
    Counted,
    /// Something on the inode is being given back: not before that is over.
    Leaving,
    /// Not through this handle: the session has lapsed in which it held locks.
    Lapsed,
    /// The kernel gave the owner's number, that of an open file, to another one: the first has been closed, and what it
    /// held is to be given back before anything else. It counts as leaving from now on, until [`LockTable::has_left`].
    Reused,
}

impl LockTable {
    /// Count a request that is about to be sent.
    pub fn begin(&self, ino: Ino, asker: Asker) -> Begin {
        let mut state = self.state.lock();
        if state.leaving.contains_key(&ino) {
            return Begin::Leaving;
        }
        let all = state.dealings.entry(ino).or_default();
        let lapsed = |d: &Dealing| d.asker.handle == asker.handle && d.asker.session != asker.session;
        if all.iter().any(|dealing| dealing.granted.is_any() && lapsed(dealing)) {
            return Begin::Lapsed;
        }
        let closed = |d: &Dealing| d.asker.owner == asker.owner && d.asker.handle != asker.handle;
        if matches!(asker.owner, LockOwner::Flock(_)) && state.take(ino, closed) {
            state.leaves(ino, 1);
            return Begin::Reused;
        }
        let all = state.dealings.entry(ino).or_default();
        match all.iter_mut().find(|dealing| dealing.asker == asker) {
            Some(dealing) => dealing.asking += 1,
            None => all.push(Dealing { asker, asking: 1, undoing: 0, granted: Granted::default() }),
        }
        Begin::Counted
    }

    /// A counted request has come to its end. `holds`: the range that it got, or may have got.
    pub fn end(&self, ino: Ino, asker: Asker, holds: Option<LockRange>) {
        self.state.lock().end(ino, asker, holds);
    }

    /// Nobody waits for a counted request any more.
    pub fn abandon(&self, ino: Ino, asker: Asker) {
        let mut state = self.state.lock();
        if let Some(dealing) = state.dealing(ino, asker) {
            dealing.undoing += 1;
        }
    }

    /// What an abandoned request got: is that all that its owner has on the inode, beside what other abandoned requests
    /// got? Then it is to be given back, and the request stays counted until [`LockTable::undone`]. If not, the one cannot
    /// be told from the other, and counts as held from now on: it goes with the owner's close.
    pub fn is_to_be_given_back(&self, ino: Ino, asker: Asker, range: LockRange) -> bool {
        let mut state = self.state.lock();
        let mut own = state.dealings.get(&ino).into_iter().flatten().filter(|d| d.asker.owner == asker.owner);
        let is_in_use = own.any(|dealing| dealing.granted.is_any() || dealing.asking > dealing.undoing);
        if is_in_use {
            state.undone(ino, asker, Some(range));
        }
        !is_in_use
    }

    /// An abandoned request has got nothing, or that has been given back.
    pub fn undone(&self, ino: Ino, asker: Asker) {
        self.state.lock().undone(ino, asker, None);
    }

    /// The session that locks were taken in through this handle.
    pub fn session(&self, ino: Ino, handle: u64) -> Option<SessionId> {
        let state = self.state.lock();
        let through = |dealing: &&Dealing| dealing.asker.handle == handle && dealing.granted.is_any();
        state.dealings.get(&ino)?.iter().find(through).map(|dealing| dealing.asker.session)
    }

    /// The number of the newest grant.
    pub fn grants(&self) -> u64 {
        self.state.lock().grants
    }

    /// The owner has unlocked a range: what had been granted of it up to here is gone, later grants are not.
    pub fn unlocked(&self, ino: Ino, owner: LockOwner, range: LockRange, up_to: u64) {
        let mut state = self.state.lock();
        let all = state.dealings.get_mut(&ino).into_iter().flatten();
        all.filter(|dealing| dealing.asker.owner == owner).for_each(|dealing| dealing.granted.unlocked(range, up_to));
        tidy(&mut state, ino);
    }

    /// A process closed a descriptor of the inode: its fcntl locks go, whichever descriptor they were taken through.
    pub fn flushed(&self, ino: Ino, owner: u64) -> Vec<LockOwner> {
        self.forget(ino, |asker| asker.owner == LockOwner::Posix(owner), |_| false)
    }

    /// The last descriptor of a handle was closed: everything taken through it goes. But the kernel tells of it late, and
    /// may have given the owner's number to another open file meanwhile: what an owner has through another handle is
    /// in use, and what it had through this one goes with that.
    pub fn released(&self, ino: Ino, handle: u64) -> Vec<LockOwner> {
        self.forget(ino, |asker| asker.handle == handle, |asker| asker.handle != handle)
    }

    /// The mount has ended.
    pub fn all_released(&self) -> Vec<(Ino, LockOwner)> {
        let inodes: Vec<Ino> = self.state.lock().dealings.keys().copied().collect();
        let owners = |ino| self.forget(ino, |_| true, |_| false).into_iter().map(move |owner| (ino, owner));
        inodes.into_iter().flat_map(owners).collect()
    }

    /// Forget what the chosen ones hold; their owners, each once, but for those of `users` that have something too. It is
    /// about to be given back. Requests under way stay counted: what they get comes after this.
    fn forget(&self, ino: Ino, chosen: impl Fn(&Asker) -> bool, users: impl Fn(&Asker) -> bool) -> Vec<LockOwner> {
        let mut state = self.state.lock();
        let mut all: Vec<&mut Dealing> = state.dealings.get_mut(&ino).into_iter().flatten().collect();
        let gone = all.iter_mut().filter_map(|d| (chosen(&d.asker) && d.granted.take()).then_some(d.asker.owner));
        let mut owners: Vec<LockOwner> = gone.collect();
        let used = |owner: &LockOwner| {
            all.iter().any(|d| d.asker.owner == *owner && users(&d.asker) && (d.granted.is_any() || d.asking > 0))
        };
        owners.retain(|owner| !used(owner));
        owners.sort_unstable();
        owners.dedup();
        state.leaves(ino, owners.len());
        tidy(&mut state, ino);
        owners
    }

    pub fn is_leaving(&self, ino: Ino) -> bool {
        self.state.lock().leaving.contains_key(&ino)
    }

    /// Something on the inode is about to be given back; until [`LockTable::has_left`].
    pub fn leaves(&self, ino: Ino) {
        self.state.lock().leaves(ino, 1);
    }

    pub fn has_left(&self, ino: Ino) {
        let mut state = self.state.lock();
        if let Some(count) = state.leaving.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                state.leaving.remove(&ino);
            }
        }
        self.left.notify_waiters();
    }

    /// Until nothing on the inode is being given back.
    pub async fn settled(&self, ino: Ino) {
        loop {
            let left = self.left.notified();
            if !self.is_leaving(ino) {
                return;
            }
            left.await;
        }
    }

    /// How many waits of this mount have been cancelled, or are about to be. A cancel ends every wait of an owner for a
    /// range, also those of its other threads: while this stands still, nobody's wait has been ended for him.
    pub fn cancels(&self) -> u64 {
        self.cancels.load(Ordering::SeqCst)
    }

    /// To be called before a cancel is sent.
    pub fn cancelling(&self) {
        self.cancels.fetch_add(1, Ordering::SeqCst);
    }
}

impl State {
    fn end(&mut self, ino: Ino, asker: Asker, holds: Option<LockRange>) {
        self.grants += u64::from(holds.is_some());
        let number = self.grants;
        if let Some(dealing) = self.dealing(ino, asker) {
            dealing.asking = dealing.asking.saturating_sub(1);
            holds.into_iter().for_each(|range| dealing.granted.add(Grant { number, range }));
        }
        tidy(self, ino);
    }

    fn undone(&mut self, ino: Ino, asker: Asker, holds: Option<LockRange>) {
        if let Some(dealing) = self.dealing(ino, asker) {
            dealing.undoing = dealing.undoing.saturating_sub(1);
        }
        self.end(ino, asker, holds);
    }

    fn leaves(&mut self, ino: Ino, owners: usize) {
        if owners > 0 {
            *self.leaving.entry(ino).or_default() += owners;
        }
    }

    /// Forget what the chosen ones hold. True: they held something.
    fn take(&mut self, ino: Ino, chosen: impl Fn(&Dealing) -> bool) -> bool {
        let all = self.dealings.get_mut(&ino).into_iter().flatten().filter(|dealing| chosen(dealing));
        let held = all.filter_map(|dealing| dealing.granted.take().then_some(())).count();
        tidy(self, ino);
        held > 0
    }

    fn dealing(&mut self, ino: Ino, asker: Asker) -> Option<&mut Dealing> {
        self.dealings.get_mut(&ino)?.iter_mut().find(|dealing| dealing.asker == asker)
    }
}

impl Granted {
    fn is_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Forget all. True: there was something.
    fn take(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
    }

    fn add(&mut self, grant: Grant) {
        // Granted anew, in this mode or the other.
        self.0.retain(|older| !(grant.range.start <= older.range.start && older.range.end <= grant.range.end));
        self.0.push(grant);
        self.bound();
    }

    fn unlocked(&mut self, range: LockRange, up_to: u64) {
        let (older, mut left): (Vec<Grant>, Vec<Grant>) = self.0.iter().partition(|grant| grant.number <= up_to);
        for grant in older {
            left.extend(outside(grant.range, range).map(|range| Grant { range, ..grant }));
        }
        self.0 = left;
        self.bound();
    }

    fn bound(&mut self) {
        if self.0.len() > RANGES_MAX {
            let number = self.0.iter().map(|grant| grant.number).max().unwrap_or_default();
            self.0 = vec![Grant { number, range: WHOLE_FILE }];
        }
    }
}

/// What of a range is in front of another one and behind it. Both ends belong to a range.
fn outside(range: LockRange, other: LockRange) -> impl Iterator<Item = LockRange> {
    let before = other.start.checked_sub(1).map(|last| LockRange { end: range.end.min(last), ..range });
    let behind = other.end.checked_add(1).map(|first| LockRange { start: range.start.max(first), ..range });
    before.into_iter().chain(behind).filter(|range| range.start <= range.end)
}

/// Drop what is neither held nor asked for.
fn tidy(state: &mut State, ino: Ino) {
    let Some(all) = state.dealings.get_mut(&ino) else { return };
    all.retain(|dealing| dealing.asking > 0 || dealing.granted.is_any());
    if all.is_empty() {
        state.dealings.remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const INO: Ino = Ino(7);

    fn asker(owner: LockOwner, handle: u64) -> Asker {
        Asker { owner, handle, session: SessionId(1) }
    }

    fn take(table: &LockTable, asker: Asker) {
        assert_eq!(table.begin(INO, asker), Begin::Counted);
        table.end(INO, asker, Some(WHOLE_FILE));
    }

    /// The kernel releases a handle some time after the close: what its process has locked since must stay.
    #[test]
    fn a_late_release_takes_nothing_that_was_locked_after_the_close() {
        let (table, process) = (LockTable::default(), LockOwner::Posix(1));
        take(&table, asker(process, 3));
        assert_eq!(table.flushed(INO, 1), [process]);
        table.has_left(INO);
        take(&table, asker(process, 4));
        assert!(table.released(INO, 3).is_empty());
        assert_eq!(table.released(INO, 4), [process]);
    }

    /// The kernel may give the number of a closed file, which is the owner of its locks, to another one before it tells
    /// of the close.
    #[test]
    fn a_late_release_takes_nothing_from_a_file_that_got_the_number_of_the_closed_one() {
        let table = LockTable::default();
        let (flock, description) = (LockOwner::Flock(9), LockOwner::Posix(9));
        take(&table, asker(flock, 3));
        assert_eq!(table.begin(INO, asker(flock, 4)), Begin::Reused);
        assert_eq!(table.begin(INO, asker(flock, 4)), Begin::Leaving);
        table.has_left(INO);
        take(&table, asker(flock, 4));
        assert!(table.released(INO, 3).is_empty(), "that has been given back");
        assert_eq!(table.released(INO, 4), [flock]);
        table.has_left(INO);
        // These may also be a process with two handles, so the older one's lock stays until the newer one is closed.
        take(&table, asker(description, 3));
        take(&table, asker(description, 4));
        assert!(table.released(INO, 3).is_empty());
        assert_eq!(table.released(INO, 4), [description]);
        table.has_left(INO);
        assert!(table.state.lock().dealings.is_empty());
    }

    /// Else a handle through which nothing is locked any more would be useless after a session.
    #[test]
    fn ranges_that_were_unlocked_one_by_one_are_not_held() {
        let (table, first) = (LockTable::default(), asker(LockOwner::Posix(1), 3));
        let range = |start, end| LockRange { start, end };
        let lock = |range| {
            assert_eq!(table.begin(INO, first), Begin::Counted);
            table.end(INO, first, Some(range));
        };
        let unlock = |range| table.unlocked(INO, first.owner, range, table.grants());
        let holds = || table.session(INO, 3).is_some();
        lock(range(0, 9));
        lock(range(20, u64::MAX));
        unlock(range(0, 4));
        unlock(range(6, 30));
        assert!(holds());
        unlock(range(5, 5));
        assert!(holds(), "31 and what is behind");
        unlock(range(31, u64::MAX));
        assert!(!holds());
        // Too many to remember: something is held until all is unlocked.
        (0..=RANGES_MAX as u64).for_each(|number| lock(range(2 * number, 2 * number)));
        unlock(range(0, 4 * RANGES_MAX as u64));
        assert!(holds());
        unlock(WHOLE_FILE);
        assert!(!holds());
    }

    #[test]
    fn what_no_flush_speaks_of_goes_with_the_handle() {
        let table = LockTable::default();
        let (description, flock) = (LockOwner::Posix(9), LockOwner::Flock(9));
        for owner in [description, flock, flock] {
            take(&table, asker(owner, 3));
        }
        assert!(table.flushed(INO, 1).is_empty(), "another owner's flush");
        assert_eq!(table.released(INO, 3), [description, flock]);
        assert_eq!(table.begin(INO, asker(flock, 4)), Begin::Leaving);
        table.has_left(INO);
        table.has_left(INO);
        assert!(!table.is_leaving(INO));
        assert!(table.state.lock().dealings.is_empty());
    }

    /// Holds [L7].
    #[test]
    fn a_lapsed_handle_locks_nothing_until_reopened() {
        let (table, owner) = (LockTable::default(), LockOwner::Flock(1));
        take(&table, asker(owner, 3));
        let later = Asker { session: SessionId(2), ..asker(owner, 3) };
        assert_eq!(table.begin(INO, later), Begin::Lapsed);
        take(&table, Asker { owner: LockOwner::Flock(2), handle: 4, ..later });
        assert_eq!(table.session(INO, 3), Some(SessionId(1)));
    }

    /// Else the handle would be useless after the session, although it never held a lock.
    #[test]
    fn a_refused_request_leaves_nothing_behind() {
        let (table, first) = (LockTable::default(), asker(LockOwner::Flock(1), 3));
        assert_eq!(table.begin(INO, first), Begin::Counted);
        assert_eq!(table.session(INO, 3), None, "asked for, and not held");
        table.end(INO, first, None);
        let later = Asker { session: SessionId(2), ..first };
        take(&table, later);
        assert_eq!(table.session(INO, 3), Some(SessionId(2)));
        assert_eq!(table.begin(INO, later), Begin::Counted);
        table.end(INO, later, None);
        assert_eq!(table.released(INO, 3), [first.owner], "a refusal takes nothing away");
    }

    /// Two threads of one owner: whoever is granted is remembered, in whatever order they end.
    #[test]
    fn one_refusal_does_not_hide_the_grant_of_another_thread() {
        for granted_first in [true, false] {
            let (table, asker) = (LockTable::default(), asker(LockOwner::Posix(1), 3));
            assert_eq!(table.begin(INO, asker), Begin::Counted);
            assert_eq!(table.begin(INO, asker), Begin::Counted);
            table.end(INO, asker, granted_first.then_some(WHOLE_FILE));
            table.end(INO, asker, (!granted_first).then_some(WHOLE_FILE));
            assert_eq!(table.flushed(INO, 1), [asker.owner]);
        }
    }

    /// Threads of one owner, killed: what each got goes, unless another one may be using it.
    #[test]
    fn what_killed_waiters_got_is_given_back_unless_others_use_it() {
        let (table, asker) = (LockTable::default(), asker(LockOwner::Posix(1), 3));
        let abandoned = || {
            assert_eq!(table.begin(INO, asker), Begin::Counted);
            table.abandon(INO, asker);
        };
        // Two at once: neither stays for the sake of the other.
        abandoned();
        abandoned();
        assert!(table.is_to_be_given_back(INO, asker, WHOLE_FILE));
        assert!(table.is_to_be_given_back(INO, asker, WHOLE_FILE));
        table.undone(INO, asker);
        table.undone(INO, asker);
        assert!(table.state.lock().dealings.is_empty());
        // A third thread lives.
        abandoned();
        assert_eq!(table.begin(INO, asker), Begin::Counted);
        assert!(!table.is_to_be_given_back(INO, asker, WHOLE_FILE));
        table.end(INO, asker, None);
        assert_eq!(table.flushed(INO, 1), [asker.owner], "it goes with the close");
        table.has_left(INO);
        // The close came first.
        take(&table, asker);
        abandoned();
        assert_eq!(table.flushed(INO, 1), [asker.owner]);
        assert!(table.is_to_be_given_back(INO, asker, WHOLE_FILE));
        table.undone(INO, asker);
        assert!(table.state.lock().dealings.is_empty());
    }

    /// One thread unlocks or closes while another one's request is on its way: what that gets is not forgotten.
    #[test]
    fn what_is_granted_after_an_unlock_is_given_back_at_the_close() {
        let (table, asker) = (LockTable::default(), asker(LockOwner::Flock(1), 3));
        take(&table, asker);
        let up_to = table.grants();
        take(&table, asker);
        table.unlocked(INO, asker.owner, WHOLE_FILE, up_to);
        assert_eq!(table.session(INO, 3), Some(SessionId(1)));
        assert_eq!(table.begin(INO, asker), Begin::Counted);
        table.unlocked(INO, asker.owner, WHOLE_FILE, table.grants());
        assert_eq!(table.session(INO, 3), None);
        table.end(INO, asker, Some(WHOLE_FILE));
        assert_eq!(table.released(INO, 3), [asker.owner]);
    }

    #[tokio::test]
    async fn a_lock_request_waits_for_what_is_being_given_back() {
        let table = Arc::new(LockTable::default());
        take(&table, asker(LockOwner::Flock(1), 3));
        assert_eq!(table.released(INO, 3).len(), 1);
        let waiter = tokio::spawn({
            let table = table.clone();
            async move { table.settled(INO).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        table.has_left(INO);
        waiter.await.unwrap();
    }
}
