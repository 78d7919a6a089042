//! Refusals and failures → error numbers: the table of the user's page, as exhaustive matches.
//!
//! Decision: an inode that is gone is `ESTALE`, not `ENOENT`. The kernel asks in steps (look a name up, then open the
//! inode); when another node replaces the name between two steps, `ESTALE` makes the kernel walk the path again, so a
//! file that is replaced atomically is never seen as missing. If the name is really gone, the second walk says `ENOENT`.
//!
//! Absent on purpose: a wildcard. A new refusal does not compile until it has a number.

use crate::fs::{BadName, Refusal};
use crate::volume::Failure;
use fuser::Errno;

/// The number of a refusal.
pub fn of_refusal(refusal: &Refusal) -> Errno {
    match refusal {
        Refusal::NoSuchName => Errno::ENOENT,
        Refusal::NoSuchInode => Errno::ESTALE,
        Refusal::NameTaken => Errno::EEXIST,
        Refusal::NotDirectory => Errno::ENOTDIR,
        Refusal::IsDirectory => Errno::EISDIR,
        Refusal::NotEmpty => Errno::ENOTEMPTY,
        Refusal::IntoItself => Errno::EINVAL,
        Refusal::WrongKind => Errno::EINVAL,
        Refusal::TooManyLinks => Errno::EMLINK,
        Refusal::FileTooLarge => Errno::EFBIG,
        Refusal::NoSpace => Errno::ENOSPC,
        Refusal::Invalid => Errno::EINVAL,
        Refusal::NotPermitted => Errno::EPERM,
        Refusal::NoSuchXattr => Errno::ENODATA,
        Refusal::XattrExists => Errno::EEXIST,
        Refusal::XattrTooLarge => Errno::E2BIG,
        Refusal::XattrsFull => Errno::ENOSPC,
        // Not EAGAIN: the VFS turns that into EOPNOTSUPP when it comes from setxattr.
        Refusal::VersionMismatch { .. } => Errno::EBUSY,
        Refusal::LockConflict => Errno::EAGAIN,
        Refusal::Deadlock => Errno::EDEADLK,
        Refusal::TooManyLocks => Errno::ENOLCK,
        // Only reached when the name kept changing until the deadline; EBUSY would read as a version mismatch.
        Refusal::Raced => Errno::ETIMEDOUT,
        Refusal::SessionEnded => Errno::EIO,
        Refusal::GivenUp => Errno::ETIMEDOUT,
        Refusal::TooManySessions => Errno::EUSERS,
        Refusal::TooManyOutstanding => Errno::ENOBUFS,
        Refusal::Unsupported => Errno::EOPNOTSUPP,
    }
}

/// Whether a call would have changed something: without a majority the two kinds fail differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Change,
    Question,
}

/// The number of a failed call.
pub fn of_failure(failure: &Failure, kind: Kind) -> Errno {
    match failure {
        Failure::Refused(refusal) => of_refusal(refusal),
        Failure::NoMajority => match kind {
            Kind::Change => Errno::EROFS,
            Kind::Question => Errno::ETIMEDOUT,
        },
        Failure::Unknown => Errno::ETIMEDOUT,
        Failure::Damaged(_) => Errno::EIO,
        Failure::Stopped(_) => Errno::EIO,
    }
}

/// The number of a name that cannot be one.
pub fn of_bad_name(bad: BadName) -> Errno {
    match bad {
        BadName::TooLong => Errno::ENAMETOOLONG,
        BadName::Empty | BadName::BadByte | BadName::Dots => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::LogIndex;

    /// The rows of the user's page; the rest of the table is held by the compiler.
    #[test]
    fn documented_numbers() {
        let mismatch = Refusal::VersionMismatch { current: LogIndex(7) };
        assert_eq!(of_refusal(&mismatch), Errno::EBUSY);
        assert_eq!(of_refusal(&Refusal::NoSuchXattr), Errno::ENODATA);
        assert_eq!(of_refusal(&Refusal::LockConflict), Errno::EAGAIN);
        assert_eq!(of_failure(&Failure::NoMajority, Kind::Change), Errno::EROFS);
        assert_eq!(of_failure(&Failure::NoMajority, Kind::Question), Errno::ETIMEDOUT);
        for kind in [Kind::Change, Kind::Question] {
            assert_eq!(of_failure(&Failure::Unknown, kind), Errno::ETIMEDOUT);
            assert_eq!(of_failure(&Failure::Damaged(String::new()), kind), Errno::EIO);
            assert_eq!(of_failure(&Failure::Refused(Refusal::FileTooLarge), kind), Errno::EFBIG);
        }
    }
}
