//! Locks of one mount: `flock`, `fcntl` and open file description locks, all kept by the cluster.
//!
//! The kernel tells of a close only with numbers: `flush` with the process's lock owner (fcntl locks go then), `release`
//! with the flock owner, and nothing at all for open file description locks. So the mount remembers which owner took
//! locks through which handle ([`lock_table`](super::lock_table)): what is left of a handle when it is released goes with
//! it. An inode that nobody locked costs no log entry at close.
//!
//! A close is answered before its locks are surely gone (without a majority they cannot go), so giving back goes on in the
//! background until it is done, and a lock request on the same inode waits for it: who locks right after a close
//! does not meet the lock of the closed file.
//!
//! A wait for a lock has no deadline, but for callers whose signals we could not see. It ends with the grant or with a signal of the caller; a grant that wins the race
//! against the signal is the caller's, as POSIX allows. A caller that is killed leaves nothing behind: what its request
//! may have got is given back.
//!
//! Locks end with the session that took them. A handle whose session has lapsed answers `EIO` until it is opened again, so
//! that who has lost a lock cannot go on as if it held it.

use super::call::{Call, Mounted, unexpected};
use super::errno::{Kind, of_failure};
use super::lock_table::{Asker, Begin};
use super::waiting;
use crate::fs::{
    Answer, Command, Credentials, Ino, LockHolder, LockMode, LockOwner, LockRange, LockStanding, LogIndex, Query,
    Refusal, Reply, SessionId,
};
use crate::volume::Failure;
use bytes::Bytes;
use fuser::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often a caller that waits for a lock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Least time between two questions whether a lock has been granted, however busy the cluster is.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Time of one try to give locks back, and the pause before the next.
const GIVE_BACK_TIME: Duration = Duration::from_secs(30);
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);

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
        // What has been closed on this mount is no longer in the way.
        let settled = tokio::time::timeout_at(self.deadline.into(), self.mounted.locks.settled(ino)).await;
        settled.map_err(|_| Errno::ETIMEDOUT)?;
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
        let grants = self.mounted.locks.grants();
        self.submit(wish.command()).await?;
        self.mounted.locks.unlocked(wish.ino, wish.owner, wish.range, grants);
        Ok(())
    }

    async fn acquire(&self, wish: Wish) -> Result<(), Errno> {
        loop {
            self.settled(wish).await?;
            match self.try_acquire(wish).await {
                Ok(Progress::Held) => return Ok(()),
                Ok(Progress::Interrupted) => return Err(Errno::EINTR),
                Ok(Progress::Lost) => {}
                Err(Failure::Refused(Refusal::LockConflict)) if self.mounted.locks.is_leaving(wish.ino) => {}
                Err(Failure::NoMajority | Failure::Unknown) if wish.wait => {}
                Err(failure) => return Err(of_failure(&failure, Kind::Change)),
            }
            if wish.wait && waiting::interrupted(self.tid) {
                return Err(Errno::EINTR);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Until nothing on the inode is being given back; for those who do not wait for a lock, until the deadline.
    async fn settled(&self, wish: Wish) -> Result<(), Errno> {
        loop {
            let until = if wish.wait { Instant::now() + LOOK_EVERY } else { self.deadline };
            match tokio::time::timeout_at(until.into(), self.mounted.locks.settled(wish.ino)).await {
                Ok(()) => return Ok(()),
                Err(_) if !wish.wait => return Err(Errno::ETIMEDOUT),
                Err(_) if waiting::interrupted(self.tid) => return Err(Errno::EINTR),
                Err(_) => {}
            }
        }
    }

    async fn try_acquire(&self, wish: Wish) -> Result<Progress, Failure> {
        let deadline = if wish.wait { Instant::now() + GIVE_BACK_TIME } else { self.deadline };
        let session = self.volume().session(deadline).await?;
        let asker = Asker { owner: wish.owner, handle: wish.handle, session };
        let cancels = self.mounted.locks.cancels();
        match self.mounted.locks.begin(wish.ino, asker) {
            Begin::Counted => {}
            Begin::Leaving => return Ok(Progress::Lost),
            Begin::Reused => {
                self.mounted.give_back(wish.ino, vec![wish.owner]);
                return Ok(Progress::Lost);
            }
            Begin::Lapsed => return Err(Failure::Refused(Refusal::SessionEnded)),
        }
        let mut attempt = Attempt::start(self, wish, asker, deadline);
        let outcome = match attempt.reply().await {
            Ok(Reply::Waiting) => self.await_grant(wish, session, cancels).await,
            Ok(_) => Ok(Progress::Held),
            // Whether that matters to this handle, the next try finds out.
            Err(Failure::Refused(Refusal::SessionEnded)) => Ok(Progress::Lost),
            Err(failure) => Err(failure),
        };
        attempt.end(&outcome);
        outcome
    }

    async fn await_grant(&self, wish: Wish, session: SessionId, cancels: u64) -> Result<Progress, Failure> {
        let mut seen = LogIndex(0);
        loop {
            if waiting::interrupted(self.tid) {
                return self.cancel(wish, session, cancels).await;
            }
            match self.standing(wish, session).await {
                Some(LockStanding::Held { .. }) if self.mounted.locks.cancels() == cancels => {
                    return Ok(Progress::Held);
                }
                Some(LockStanding::Held { .. }) => return self.make_sure(wish, session, Progress::Lost).await,
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

    async fn cancel(&self, wish: Wish, session: SessionId, cancels: u64) -> Result<Progress, Failure> {
        self.mounted.locks.cancelling();
        match self.submit_soon(wish.cancel(), session).await? {
            Reply::Locked { .. } if self.mounted.locks.cancels() == cancels + 1 => Ok(Progress::Held),
            Reply::Locked { .. } => self.make_sure(wish, session, Progress::Interrupted).await,
            _ => Ok(Progress::Interrupted),
        }
    }

    /// The wait is over, and its owner holds the range. But a wait may have been cancelled for another thread of the
    /// owner, and the range been held before, in another mode: so ask for it once more, without waiting.
    async fn make_sure(&self, wish: Wish, session: SessionId, otherwise: Progress) -> Result<Progress, Failure> {
        match self.submit_soon(Wish { wait: false, ..wish }.command(), session).await {
            Ok(_) => Ok(Progress::Held),
            Err(Failure::Refused(Refusal::LockConflict)) => Ok(otherwise),
            // It may be held for all that.
            Err(_) => Err(Failure::Unknown),
        }
    }

    /// For a wait that is already known to the cluster: whatever fails, it may still be granted.
    async fn submit_soon(&self, command: Command, session: SessionId) -> Result<Reply, Failure> {
        let deadline = Instant::now() + LOOK_EVERY * 5;
        let reply = self.volume().submit_within(session, self.credentials, command, Bytes::new(), deadline).await;
        reply.map_err(|failure| if failure == Failure::NoMajority { Failure::Unknown } else { failure })
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
    asker: Asker,
    task: Option<JoinHandle<Result<Reply, Failure>>>,
    /// The request came to its end, and the table knows what it got.
    ended: bool,
}

impl Attempt {
    fn start(call: &Call, wish: Wish, asker: Asker, deadline: Instant) -> Attempt {
        let (mounted, credentials) = (call.mounted.clone(), call.credentials);
        let volume = mounted.volume.clone();
        let task = mounted.runtime.spawn(async move {
            volume.submit_within(asker.session, credentials, wish.command(), Bytes::new(), deadline).await
        });
        Attempt { mounted, wish, asker, task: Some(task), ended: false }
    }

    /// Tell the table what the request got. A wait of which that is not known goes on with another attempt: this one is
    /// undone before.
    fn end(&mut self, outcome: &Result<Progress, Failure>) {
        let holds = match outcome {
            Ok(Progress::Held) => true,
            Ok(Progress::Interrupted | Progress::Lost) => false,
            Err(Failure::Refused(_) | Failure::NoMajority) => false,
            Err(_) if self.wish.wait => return,
            Err(_) => true,
        };
        self.ended = true;
        self.mounted.locks.end(self.wish.ino, self.asker, holds.then_some(self.wish.range));
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
        let (mounted, wish, asker, task) = (self.mounted.clone(), self.wish, self.asker, self.task.take());
        mounted.locks.leaves(wish.ino);
        mounted.locks.abandon(wish.ino, asker);
        let runtime = mounted.runtime.clone();
        runtime.spawn(async move {
            if let Some(task) = task {
                // Whatever it came to, it has ended.
                let _ = task.await;
            }
            mounted.undo(wish, asker).await;
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

    /// Give back what a request got that nobody waits for any more, unless others of its owner may be using it.
    async fn undo(&self, wish: Wish, asker: Asker) {
        self.locks.cancelling();
        let got = matches!(self.insist(wish.cancel()).await, Some(Reply::Locked { .. }));
        if got && !self.locks.is_to_be_given_back(wish.ino, asker, wish.range) {
            return;
        }
        if got {
            self.insist(Wish { mode: LockMode::Unlock, wait: false, ..wish }.command()).await;
        }
        self.locks.undone(wish.ino, asker);
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
