//! What a command returns. Replies and refusals are both part of the replicated truth: all replicas agree on them, and a
//! retried command gets the one that its first execution produced.

use super::types::*;
use serde::{Deserialize, Serialize};

/// What applying a request came to.
pub type Outcome = Result<Reply, Refusal>;

/// A command was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Session(SessionId),
    /// The inode that was made, linked or changed, as it is after the command.
    Attributes(Attributes),
    /// Bytes that a CopyRange really covered.
    Copied(u64),
    /// The lock is held; `generation` rises with every exclusive grant on the inode (the fencing token).
    Locked {
        generation: u64,
    },
    Waiting,
    /// The number of a node that has never been.
    Node(u64),
}

/// A command or a query was understood and refused; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("no such file or directory")]
    NoSuchName,
    #[error("the inode does not exist any more")]
    NoSuchInode,
    #[error("the name exists")]
    NameTaken,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("a directory cannot be moved into itself")]
    IntoItself,
    #[error("the operation does not fit this kind of file")]
    WrongKind,
    #[error("too many links")]
    TooManyLinks,
    #[error("the file would be too large")]
    FileTooLarge,
    /// Not from apply, which must come to the same everywhere: a leader refuses so what it does not propose.
    #[error("no space left")]
    NoSpace,
    #[error("invalid argument")]
    Invalid,
    #[error("not permitted")]
    NotPermitted,
    #[error("no such attribute")]
    NoSuchXattr,
    #[error("the attribute exists")]
    XattrExists,
    #[error("the attribute is too large")]
    XattrTooLarge,
    #[error("the attributes of this inode are full")]
    XattrsFull,
    /// A `cas`, `replace-if` or `Put` met another version.
    #[error("the version is {current:?}, not the expected one")]
    VersionMismatch { current: LogIndex },
    #[error("another holds a conflicting lock")]
    LockConflict,
    #[error("waiting for this lock would never end")]
    Deadlock,
    #[error("too many locks")]
    TooManyLocks,
    /// The name has come to mean another inode than the proposer saw: look again and submit anew.
    #[error("the name changed meanwhile")]
    Raced,
    /// The session is unknown or has ended: the command is not executed now. An earlier copy of it may have been.
    #[error("the session has ended")]
    SessionEnded,
    /// The request is below its session's `first_outstanding`: it was given up; not executed now.
    #[error("the request was given up")]
    GivenUp,
    #[error("too many sessions")]
    TooManySessions,
    #[error("the session has too many unanswered requests")]
    TooManyOutstanding,
    #[error("not supported")]
    Unsupported,
}
