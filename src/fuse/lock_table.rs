//! What this mount knows of its locks: who holds something through which handle, and who has asked.
//!
//! A request is counted before it is sent and until its outcome is known, so that whatever a close gives back, and what
//! it need not, is decided here, under one lock. A request that got nothing leaves nothing behind: its handle is as if it
//! had never asked. What is not known counts as held.

use crate::fs::{Ino, LockOwner, SessionId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

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
#[derive(Clone, Copy, Debug)]
struct Dealing {
    asker: Asker,
    /// Requests without an outcome.
    asking: usize,
    /// Those of them that nobody waits for any more: what they get is given back.
    undoing: usize,
    /// The newest grant, as a number of [`State::grants`], if it holds anything.
    granted: Option<u64>,
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
        if all.iter().any(|dealing| dealing.granted.is_some() && lapsed(dealing)) {
            return Begin::Lapsed;
        }
        match all.iter_mut().find(|dealing| dealing.asker == asker) {
            Some(dealing) => dealing.asking += 1,
            None => all.push(Dealing { asker, asking: 1, undoing: 0, granted: None }),
        }
        Begin::Counted
    }

    /// A counted request has come to its end. `holds`: it got the lock, or may have.
    pub fn end(&self, ino: Ino, asker: Asker, holds: bool) {
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
    pub fn is_to_be_given_back(&self, ino: Ino, asker: Asker) -> bool {
        let mut state = self.state.lock();
        let mut own = state.dealings.get(&ino).into_iter().flatten().filter(|d| d.asker.owner == asker.owner);
        let is_in_use = own.any(|dealing| dealing.granted.is_some() || dealing.asking > dealing.undoing);
        if is_in_use {
            state.undone(ino, asker, true);
        }
        !is_in_use
    }

    /// An abandoned request has got nothing, or that has been given back.
    pub fn undone(&self, ino: Ino, asker: Asker) {
        self.state.lock().undone(ino, asker, false);
    }

    /// The session that locks were taken in through this handle.
    pub fn session(&self, ino: Ino, handle: u64) -> Option<SessionId> {
        let state = self.state.lock();
        let through = |dealing: &&Dealing| dealing.asker.handle == handle && dealing.granted.is_some();
        state.dealings.get(&ino)?.iter().find(through).map(|dealing| dealing.asker.session)
    }

    /// The number of the newest grant.
    pub fn grants(&self) -> u64 {
        self.state.lock().grants
    }

    /// The owner has unlocked the whole file: what had been granted up to here is gone, later grants are not.
    pub fn unlocked(&self, ino: Ino, owner: LockOwner, up_to: u64) {
        self.forget(ino, false, |d| d.asker.owner == owner && d.granted.is_some_and(|grant| grant <= up_to));
    }

    /// A process closed a descriptor of the inode: its fcntl locks go, whichever descriptor they were taken through.
    pub fn flushed(&self, ino: Ino, owner: u64) -> Vec<LockOwner> {
        self.forget(ino, true, |dealing| dealing.asker.owner == LockOwner::Posix(owner))
    }

    /// The last descriptor of a handle was closed: everything taken through it goes.
    pub fn released(&self, ino: Ino, handle: u64) -> Vec<LockOwner> {
        self.forget(ino, true, |dealing| dealing.asker.handle == handle)
    }

    /// The mount has ended.
    pub fn all_released(&self) -> Vec<(Ino, LockOwner)> {
        let inodes: Vec<Ino> = self.state.lock().dealings.keys().copied().collect();
        let owners = |ino| self.forget(ino, true, |_| true).into_iter().map(move |owner| (ino, owner));
        inodes.into_iter().flat_map(owners).collect()
    }

    /// Forget what the chosen ones hold; their owners, each once. With `leave` it is about to be given back. Requests
    /// under way stay counted: what they get comes after this.
    fn forget(&self, ino: Ino, leave: bool, chosen: impl Fn(&Dealing) -> bool) -> Vec<LockOwner> {
        let mut state = self.state.lock();
        let all = state.dealings.get_mut(&ino).into_iter().flatten().filter(|dealing| chosen(dealing));
        let mut owners: Vec<_> = all.filter_map(|d| d.granted.take().map(|_| d.asker.owner)).collect();
        owners.sort_unstable();
        owners.dedup();
        if leave && !owners.is_empty() {
            *state.leaving.entry(ino).or_default() += owners.len();
        }
        tidy(&mut state, ino);
        owners
    }

    pub fn is_leaving(&self, ino: Ino) -> bool {
        self.state.lock().leaving.contains_key(&ino)
    }

    /// Something on the inode is about to be given back; until [`LockTable::has_left`].
    pub fn leaves(&self, ino: Ino) {
        *self.state.lock().leaving.entry(ino).or_default() += 1;
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
    fn end(&mut self, ino: Ino, asker: Asker, holds: bool) {
        self.grants += holds as u64;
        let grants = self.grants;
        if let Some(dealing) = self.dealing(ino, asker) {
            dealing.asking = dealing.asking.saturating_sub(1);
            dealing.granted = if holds { Some(grants) } else { dealing.granted };
        }
        tidy(self, ino);
    }

    fn undone(&mut self, ino: Ino, asker: Asker, holds: bool) {
        if let Some(dealing) = self.dealing(ino, asker) {
            dealing.undoing = dealing.undoing.saturating_sub(1);
        }
        self.end(ino, asker, holds);
    }

    fn dealing(&mut self, ino: Ino, asker: Asker) -> Option<&mut Dealing> {
        self.dealings.get_mut(&ino)?.iter_mut().find(|dealing| dealing.asker == asker)
    }
}

/// Drop what is neither held nor asked for.
fn tidy(state: &mut State, ino: Ino) {
    let Some(all) = state.dealings.get_mut(&ino) else { return };
    all.retain(|dealing| dealing.asking > 0 || dealing.granted.is_some());
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
        table.end(INO, asker, true);
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
        take(&table, Asker { handle: 4, ..later });
        assert_eq!(table.session(INO, 3), Some(SessionId(1)));
    }

    /// Else the handle would be useless after the session, although it never held a lock.
    #[test]
    fn a_refused_request_leaves_nothing_behind() {
        let (table, first) = (LockTable::default(), asker(LockOwner::Flock(1), 3));
        assert_eq!(table.begin(INO, first), Begin::Counted);
        assert_eq!(table.session(INO, 3), None, "asked for, and not held");
        table.end(INO, first, false);
        let later = Asker { session: SessionId(2), ..first };
        take(&table, later);
        assert_eq!(table.session(INO, 3), Some(SessionId(2)));
        assert_eq!(table.begin(INO, later), Begin::Counted);
        table.end(INO, later, false);
        assert_eq!(table.released(INO, 3), [first.owner], "a refusal takes nothing away");
    }

    /// Two threads of one owner: whoever is granted is remembered, in whatever order they end.
    #[test]
    fn one_refusal_does_not_hide_the_grant_of_another_thread() {
        for granted_first in [true, false] {
            let (table, asker) = (LockTable::default(), asker(LockOwner::Posix(1), 3));
            assert_eq!(table.begin(INO, asker), Begin::Counted);
            assert_eq!(table.begin(INO, asker), Begin::Counted);
            table.end(INO, asker, granted_first);
            table.end(INO, asker, !granted_first);
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
        assert!(table.is_to_be_given_back(INO, asker));
        assert!(table.is_to_be_given_back(INO, asker));
        table.undone(INO, asker);
        table.undone(INO, asker);
        assert!(table.state.lock().dealings.is_empty());
        // A third thread lives.
        abandoned();
        assert_eq!(table.begin(INO, asker), Begin::Counted);
        assert!(!table.is_to_be_given_back(INO, asker));
        table.end(INO, asker, false);
        assert_eq!(table.flushed(INO, 1), [asker.owner], "it goes with the close");
        table.has_left(INO);
        // The close came first.
        take(&table, asker);
        abandoned();
        assert_eq!(table.flushed(INO, 1), [asker.owner]);
        assert!(table.is_to_be_given_back(INO, asker));
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
        table.unlocked(INO, asker.owner, up_to);
        assert_eq!(table.session(INO, 3), Some(SessionId(1)));
        assert_eq!(table.begin(INO, asker), Begin::Counted);
        table.unlocked(INO, asker.owner, table.grants());
        assert_eq!(table.session(INO, 3), None);
        table.end(INO, asker, true);
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
