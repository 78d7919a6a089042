//! Where locks meet the rest of the state: they are on inodes that exist, and end with sessions.

use super::*;
use state::Cause;

impl State {
    /// `Lock`, `CancelLock` and `ReleaseOwner`. The latter two work on an inode that has gone: nothing is held on it.
    pub(super) fn locking(&mut self, cause: &Cause, command: &Command) -> Outcome {
        let session = cause.session;
        match *command {
            Command::Lock { ino, owner, range, mode, pid, wait } => {
                self.inode(ino)?;
                self.locks.lock(ino, LockHolder { session, owner, range, mode, pid }, wait)
            }
            Command::CancelLock { ino, owner, range } => self.locks.cancel(ino, session, owner, range),
            Command::ReleaseOwner { ino, owner } => {
                self.locks.release_owner(ino, session, owner);
                Ok(Reply::Done)
            }
            _ => Err(Refusal::Invalid),
        }
    }
}
