//! What the gateway says: one line for each outcome, and which outcome each failure is.
//!
//! The protocol has four words for everything that can go wrong; the match below gives each refusal one of them, without
//! a wildcard, so that a new refusal does not compile until somebody has thought about it.

use crate::fs::{LogIndex, Refusal};
use crate::volume::Failure;
use std::io::Write;

/// One whole answer, or the first line of `CONTENTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Deleted,
    Written {
        version: LogIndex,
    },
    /// The content's bytes and CRLF follow. `seconds_left` is 0 for a file without an expiry.
    Contents {
        version: LogIndex,
        bytes: u64,
        seconds_left: u64,
    },
    VersionMismatch {
        current: LogIndex,
    },
    FileNotFound,
    Malformed,
    /// Not done, or not known to be done: no majority, storage, or a name that is not a file's.
    Internal,
}

impl Answer {
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let written = match self {
            Answer::Deleted => write!(out, "OK\r\n"),
            Answer::Written { version } => write!(out, "OK {}\r\n", version.0),
            Answer::Contents { version, bytes, seconds_left } => {
                write!(out, "CONTENTS {} {bytes} {seconds_left}\r\n", version.0)
            }
            Answer::VersionMismatch { current } => write!(out, "ERR_VERSION {}\r\n", current.0),
            Answer::FileNotFound => write!(out, "ERR_FILE_NOT_FOUND\r\n"),
            Answer::Malformed => write!(out, "ERR_CMD_ERR\r\n"),
            Answer::Internal => write!(out, "ERR_INTERNAL\r\n"),
        };
        written.expect("writing into a vector cannot fail");
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Answer {
        match failure {
            Failure::Refused(refusal) => refused(&refusal),
            Failure::NoMajority | Failure::Unknown | Failure::Damaged(_) | Failure::Stopped(_) => Answer::Internal,
        }
    }
}

fn refused(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::VersionMismatch { current } => Answer::VersionMismatch { current: *current },
        // whoever asks to read or delete a *file* of this name is told that there is none
        Refusal::NoSuchName | Refusal::NoSuchInode | Refusal::IsDirectory | Refusal::WrongKind => Answer::FileNotFound,
        Refusal::NameTaken
        | Refusal::NotDirectory
        | Refusal::NotEmpty
        | Refusal::IntoItself
        | Refusal::TooManyLinks
        | Refusal::FileTooLarge
        | Refusal::NoSpace
        | Refusal::Invalid
        | Refusal::NotPermitted
        | Refusal::NoSuchXattr
        | Refusal::XattrExists
        | Refusal::XattrTooLarge
        | Refusal::XattrsFull
        | Refusal::LockConflict
        | Refusal::Deadlock
        | Refusal::TooManyLocks
        | Refusal::Raced
        | Refusal::SessionEnded
        | Refusal::GivenUp
        | Refusal::TooManySessions
        | Refusal::TooManyOutstanding
        | Refusal::Unsupported => Answer::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_lines_of_the_protocol() {
        let rows = [
            (Answer::Deleted, "OK\r\n"),
            (Answer::Written { version: LogIndex(7) }, "OK 7\r\n"),
            (Answer::Contents { version: LogIndex(7), bytes: 3, seconds_left: 30 }, "CONTENTS 7 3 30\r\n"),
            (Failure::Refused(Refusal::VersionMismatch { current: LogIndex(9) }).into(), "ERR_VERSION 9\r\n"),
            (Failure::Refused(Refusal::NoSuchName).into(), "ERR_FILE_NOT_FOUND\r\n"),
            (Failure::Unknown.into(), "ERR_INTERNAL\r\n"),
            (Answer::Malformed, "ERR_CMD_ERR\r\n"),
        ];
        for (answer, line) in rows {
            let mut out = Vec::new();
            answer.append_to(&mut out);
            assert_eq!(out, line.as_bytes());
        }
    }
}
