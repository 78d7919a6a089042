//! Locks of one mount: `flock`, `fcntl` and open file description locks, all kept by the cluster.
//!
//! The kernel tells of a close only with numbers: `flush` with the process's lock owner (fcntl locks go then), `release`
//! with the flock owner, and nothing at all for open file description locks. So the mount remembers which owner took
//! locks through which handle: what is left of a handle when it is released goes with it. An inode that nobody locked
//! costs no log entry at close.
//!
//! A close is answered before its locks are surely gone (without a majority they cannot go), so giving back goes on in the
//! background until it is done, and a lock request on the same inode waits for it: who locks right after a close
//! does not meet the lock of the closed file.
//!
//! A wait for a lock has no deadline. It ends with the grant or with a signal of the caller; a grant that wins the race
//! against the signal is the caller's, as POSIX allows. A caller that is killed leaves nothing behind: what its request
//! may have got is given back.
//!
//! Locks end with the session that took them. A handle whose session has lapsed answers `EIO` until it is opened again, so
//! that who has lost a lock cannot go on as if it held it.

use super::call::{Call, Mounted, unexpected};
use super::errno::{Kind, of_failure};
use super::waiting;
use crate::fs::{
    Answer, Command, Credentials, Ino, LockHolder, LockMode, LockOwner, LockRange, LockStanding, LogIndex, Query,
    Refusal, Reply, SessionId,
};
use crate::volume::Failure;
use bytes::Bytes;
use fuser::Errno;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How often a caller that waits for a lock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Least time between two questions whether a lock has been granted, however busy the cluster is.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Time of one try to give locks back, and the pause before the next.
const GIVE_BACK_TIME: Duration = Duration::from_secs(30);
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);

const WHOLE_FILE: LockRange = LockRange { start: 0, end: u64::MAX };

/// Who took locks on what, through which handles.
#[derive(Default)]
pub struct LockTable {
    state: Mutex<State>,
    left: Notify,
}

#[derive(Default)]
struct State {
    taken: HashMap<Ino, Vec<Taken>>,
    /// Owners whose locks are being given back, counted by inode.
    leaving: HashMap<Ino, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    owner: LockOwner,
    handle: u64,
    session: SessionId,
}

impl LockTable {
    /// Remember, before asking for it, that an owner may get a lock. `false`: the handle's session has lapsed.
    fn take(&self, ino: Ino, taken: Taken) -> bool {
        let mut state = self.state.lock();
        let all = state.taken.entry(ino).or_default();
        if all.iter().any(|other| other.handle == taken.handle && other.session != taken.session) {
            return false;
        }
        if !all.contains(&taken) {
            all.push(taken);
        }
        true
    }

    /// The session that locks were taken in through this handle.
    fn session(&self, ino: Ino, handle: u64) -> Option<SessionId> {
        let state = self.state.lock();
        state.taken.get(&ino)?.iter().find(|taken| taken.handle == handle).map(|taken| taken.session)
    }

    /// Forget the chosen locks of an inode; their owners, each once. Without `leave` they hold nothing any more,
    /// with it they are about to be given back.
    fn forget(&self, ino: Ino, leave: bool, chosen: impl Fn(&Taken) -> bool) -> Vec<LockOwner> {
        let mut state = self.state.lock();
        let Some(all) = state.taken.get_mut(&ino) else { return Vec::new() };
        let mut owners: Vec<_> = all.extract_if(.., |taken| chosen(taken)).map(|taken| taken.owner).collect();
        if all.is_empty() {
            state.taken.remove(&ino);
        }
        owners.sort_unstable();
        owners.dedup();
        if leave && !owners.is_empty() {
            *state.leaving.entry(ino).or_default() += owners.len();
        }
        owners
    }

    /// A process closed a descriptor of the inode: its fcntl locks go, whichever descriptor they were taken through.
    pub fn flushed(&self, ino: Ino, owner: u64) -> Vec<LockOwner> {
        self.forget(ino, true, |taken| taken.owner == LockOwner::Posix(owner))
    }

    /// The last descriptor of a handle was closed: everything taken through it goes.
    pub fn released(&self, ino: Ino, handle: u64) -> Vec<LockOwner> {
        self.forget(ino, true, |taken| taken.handle == handle)
    }

    /// The mount has ended.
    pub fn all_released(&self) -> Vec<(Ino, LockOwner)> {
        let inodes: Vec<Ino> = self.state.lock().taken.keys().copied().collect();
        let owners = |ino| self.forget(ino, true, |_| true).into_iter().map(move |owner| (ino, owner));
        inodes.into_iter().flat_map(owners).collect()
    }

    fn is_leaving(&self, ino: Ino) -> bool {
        self.state.lock().leaving.contains_key(&ino)
    }

    fn leaves(&self, ino: Ino) {
        *self.state.lock().leaving.entry(ino).or_default() += 1;
    }

    fn has_left(&self, ino: Ino) {
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
    async fn settled(&self, ino: Ino) {
        loop {
            let left = self.left.notified();
            if !self.is_leaving(ino) {
                return;
            }
            left.await;
        }
    }
}

/// A lock that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub ino: Ino,
    pub handle: u64,
    pub owner: LockOwner,
    pub range: LockRange,
    pub mode: LockMode,
    pub pid: u32,
    pub wait: bool,
}

impl Wish {
    fn command(&self) -> Command {
        let Wish { ino, owner, range, mode, pid, wait, .. } = *self;
        Command::Lock { ino, owner, range, mode, pid, wait }
    }

    fn cancel(&self) -> Command {
        let Wish { ino, owner, range, .. } = *self;
        Command::CancelLock { ino, owner, range }
    }
}

impl Call {
    /// `fcntl(F_GETLK)`: the first lock in the way.
    pub async fn test_lock(
        &self,
        ino: Ino,
        owner: LockOwner,
        range: LockRange,
        mode: LockMode,
    ) -> Result<Option<LockHolder>, Errno> {
        let session = self.volume().session(self.deadline).await;
        let session = session.map_err(|failure| of_failure(&failure, Kind::Question))?;
        match self.query(Query::TestLock { ino, session, owner, range, mode }).await? {
            Answer::Lock(holder) => Ok(holder),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn lock(&self, wish: Wish) -> Result<(), Errno> {
        match wish.mode {
            LockMode::Unlock => self.unlock(wish).await,
            LockMode::Shared | LockMode::Exclusive => self.acquire(wish).await,
        }
    }

    async fn unlock(&self, wish: Wish) -> Result<(), Errno> {
        self.submit(wish.command()).await?;
        if wish.range == WHOLE_FILE {
            self.mounted.locks.forget(wish.ino, false, |taken| taken.owner == wish.owner);
        }
        Ok(())
    }

    async fn acquire(&self, wish: Wish) -> Result<(), Errno> {
        loop {
            let late =
                tokio::time::timeout_at(self.deadline.into(), self.mounted.locks.settled(wish.ino)).await.is_err();
            if late && !wish.wait {
                return Err(Errno::ETIMEDOUT);
            }
            match self.try_acquire(wish).await {
                Err(Failure::Refused(Refusal::LockConflict)) if self.mounted.locks.is_leaving(wish.ino) => {}
                Err(Failure::NoMajority | Failure::Unknown) if wish.wait => self.go_on_waiting(wish)?,
                Err(failure) => return Err(of_failure(&failure, Kind::Change)),
                Ok(Progress::Held) => return Ok(()),
                Ok(Progress::Interrupted) => return Err(Errno::EINTR),
                Ok(Progress::Lost) => self.go_on_waiting(wish)?,
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Unless the caller has been signalled; then the wait that the cluster may know of is cancelled behind its back.
    fn go_on_waiting(&self, wish: Wish) -> Result<(), Errno> {
        if !waiting::interrupted(self.tid) {
            return Ok(());
        }
        let mounted = self.mounted.clone();
        mounted.locks.leaves(wish.ino);
        self.mounted.runtime.spawn(async move {
            mounted.insist(wish.cancel()).await;
            mounted.locks.has_left(wish.ino);
        });
        Err(Errno::EINTR)
    }

    async fn try_acquire(&self, wish: Wish) -> Result<Progress, Failure> {
        let deadline = if wish.wait { Instant::now() + GIVE_BACK_TIME } else { self.deadline };
        let session = self.volume().session(deadline).await?;
        let taken = Taken { owner: wish.owner, handle: wish.handle, session };
        if !self.mounted.locks.take(wish.ino, taken) {
            return Err(Failure::Refused(Refusal::SessionEnded));
        }
        let mut attempt = Attempt::start(self, wish, session, deadline);
        let progress = match attempt.reply().await {
            Ok(Reply::Waiting) => self.await_grant(wish, session).await,
            Ok(_) => Ok(Progress::Held),
            Err(failure) => Err(failure),
        };
        attempt.ended = true;
        let progress = progress?;
        // Another thread of this owner may have unlocked the whole file meanwhile, and so have it forgotten.
        if matches!(progress, Progress::Held) && !self.mounted.locks.take(wish.ino, taken) {
            return Err(Failure::Refused(Refusal::SessionEnded));
        }
        Ok(progress)
    }

    async fn await_grant(&self, wish: Wish, session: SessionId) -> Result<Progress, Failure> {
        let mut seen = LogIndex(0);
        loop {
            if waiting::interrupted(self.tid) {
                return self.cancel(wish).await;
            }
            match self.standing(wish, session).await {
                Some(LockStanding::Held { .. }) => return Ok(Progress::Held),
                Some(LockStanding::Gone) => return Ok(Progress::Lost),
                Some(LockStanding::Waiting) | None => {}
            }
            tokio::time::sleep(ASK_EVERY).await;
            seen = self.volume().changed_since(seen, Instant::now() + LOOK_EVERY).await;
        }
    }

    /// What became of the wait; `None`: nobody could say in time. The nearest state filters the questions, because it knows
    /// of a grant as soon as any; but only the truth counts as one, since an old state may show an older lock.
    async fn standing(&self, wish: Wish, session: SessionId) -> Option<LockStanding> {
        let Wish { ino, owner, range, .. } = wish;
        let query = Query::LockStanding { ino, session, owner, range };
        let deadline = Instant::now() + LOOK_EVERY;
        if let Ok(Answer::LockStanding(LockStanding::Waiting)) = self.volume().peek(query.clone(), deadline).await {
            return Some(LockStanding::Waiting);
        }
        match self.volume().query(query, deadline).await {
            Ok(Answer::LockStanding(standing)) => Some(standing),
            Ok(other) => {
                unexpected(&other);
                None
            }
            // The inode is gone with everything on it.
            Err(Failure::Refused(_)) => Some(LockStanding::Gone),
            Err(_) => None,
        }
    }

    async fn cancel(&self, wish: Wish) -> Result<Progress, Failure> {
        let deadline = Instant::now() + LOOK_EVERY * 5;
        match self.volume().submit(self.credentials, wish.cancel(), Bytes::new(), deadline).await? {
            Reply::Locked { .. } => Ok(Progress::Held),
            _ => Ok(Progress::Interrupted),
        }
    }

    /// `EIO` if the session has lapsed in which locks were taken through this handle; else that session, if any.
    pub async fn lock_session(&self, ino: Ino, handle: u64) -> Result<Option<SessionId>, Errno> {
        let Some(taken_in) = self.mounted.locks.session(ino, handle) else { return Ok(None) };
        let session = self.volume().session(self.deadline).await;
        match session.map_err(|failure| of_failure(&failure, Kind::Question))? {
            session if session == taken_in => Ok(Some(session)),
            _ => Err(Errno::EIO),
        }
    }
}

/// What a request for a lock came to.
enum Progress {
    Held,
    /// Cancelled for a signal; nothing was granted.
    Interrupted,
    /// Neither held nor waiting: ask anew.
    Lost,
}

/// A lock command under way. It runs to its end even if the caller is killed and the request dropped; then whatever it
/// got is given back, because nobody would.
struct Attempt {
    mounted: Arc<Mounted>,
    wish: Wish,
    task: Option<JoinHandle<Result<Reply, Failure>>>,
    /// The request came to its end: it knows what it got.
    ended: bool,
}

impl Attempt {
    fn start(call: &Call, wish: Wish, session: SessionId, deadline: Instant) -> Attempt {
        let (mounted, credentials) = (call.mounted.clone(), call.credentials);
        let volume = mounted.volume.clone();
        let task = mounted.runtime.spawn(async move {
            volume.submit_within(session, credentials, wish.command(), Bytes::new(), deadline).await
        });
        Attempt { mounted, wish, task: Some(task), ended: false }
    }

    async fn reply(&mut self) -> Result<Reply, Failure> {
        let Some(task) = &mut self.task else { return Err(Failure::Unknown) };
        let joined = task.await;
        self.task = None;
        joined.unwrap_or(Err(Failure::Unknown))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (mounted, wish, task) = (self.mounted.clone(), self.wish, self.task.take());
        mounted.locks.leaves(wish.ino);
        let runtime = mounted.runtime.clone();
        runtime.spawn(async move {
            if let Some(task) = task {
                // Whatever it came to, it has ended.
                let _ = task.await;
            }
            mounted.undo(wish).await;
            mounted.locks.has_left(wish.ino);
        });
    }
}

impl Mounted {
    /// Give back, in the background and until it is done, all that these owners hold on the inode.
    pub fn give_back(self: &Arc<Self>, ino: Ino, owners: Vec<LockOwner>) -> JoinHandle<()> {
        let mounted = self.clone();
        self.runtime.spawn(async move {
            for owner in owners {
                mounted.insist(Command::ReleaseOwner { ino, owner }).await;
                mounted.locks.has_left(ino);
            }
        })
    }

    async fn undo(&self, wish: Wish) {
        if let Some(Reply::Locked { .. }) = self.insist(wish.cancel()).await {
            self.insist(Wish { mode: LockMode::Unlock, wait: false, ..wish }.command()).await;
        }
    }

    /// Submit until the cluster has said something. The commands of this room may be repeated.
    async fn insist(&self, command: Command) -> Option<Reply> {
        loop {
            let deadline = Instant::now() + GIVE_BACK_TIME;
            match self.volume.submit(Credentials::default(), command.clone(), Bytes::new(), deadline).await {
                Ok(reply) => return Some(reply),
                // The inode or the session has gone, and the locks with it; or the process is about to.
                Err(Failure::Refused(_) | Failure::Stopped(_)) => return None,
                Err(Failure::NoMajority | Failure::Unknown | Failure::Damaged(_)) => {
                    tokio::time::sleep(GIVE_BACK_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);

    fn taken(owner: LockOwner, handle: u64) -> Taken {
        Taken { owner, handle, session: SessionId(1) }
    }

    /// The kernel releases a handle some time after the close: what its process has locked since must stay.
    #[test]
    fn a_late_release_takes_nothing_that_was_locked_after_the_close() {
        let (table, process) = (LockTable::default(), LockOwner::Posix(1));
        assert!(table.take(INO, taken(process, 3)));
        assert_eq!(table.flushed(INO, 1), [process]);
        table.has_left(INO);
        assert!(table.take(INO, taken(process, 4)));
        assert!(table.released(INO, 3).is_empty());
        assert_eq!(table.released(INO, 4), [process]);
    }

    #[test]
    fn what_no_flush_speaks_of_goes_with_the_handle() {
        let table = LockTable::default();
        let (description, flock) = (LockOwner::Posix(9), LockOwner::Flock(9));
        for owner in [description, flock, flock] {
            assert!(table.take(INO, taken(owner, 3)));
        }
        assert!(table.flushed(INO, 1).is_empty(), "another owner's flush");
        assert_eq!(table.released(INO, 3), [description, flock]);
        assert!(table.is_leaving(INO));
        table.has_left(INO);
        table.has_left(INO);
        assert!(!table.is_leaving(INO));
        assert!(table.state.lock().taken.is_empty());
    }

    #[test]
    fn a_lapsed_handle_locks_nothing_until_reopened() {
        let (table, owner) = (LockTable::default(), LockOwner::Flock(1));
        assert!(table.take(INO, taken(owner, 3)));
        let later = Taken { session: SessionId(2), ..taken(owner, 3) };
        assert!(!table.take(INO, later));
        assert!(table.take(INO, Taken { handle: 4, ..later }));
        assert_eq!(table.session(INO, 3), Some(SessionId(1)));
    }

    #[tokio::test]
    async fn a_lock_request_waits_for_what_is_being_given_back() {
        let table = Arc::new(LockTable::default());
        table.take(INO, taken(LockOwner::Flock(1), 3));
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
