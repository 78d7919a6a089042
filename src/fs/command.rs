//! The verbs: every change that can be made to the tree, as plain data.
//!
//! A command that removes or replaces a name may carry the inode that its proposer saw there; if the name has come to
//! mean another inode by the time of apply, the answer is [`Refusal::Raced`](super::Refusal::Raced) and nothing changes.
//! The bulk bytes of a command (its *body*) travel beside it; the command holds only their length.

use super::nodes::{NodeHolds, NodeStart};
use super::types::*;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A command with what makes it exactly-once (Ongaro's thesis, section 6.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// `SessionId(0)` only for [`Command::OpenSession`] and for what a leader proposes by itself
    /// ([`Command::Expire`], [`Command::EndSession`], [`Command::Tick`], [`Command::Node`]).
    pub session: SessionId,
    pub sequence: Sequence,
    /// Every sequence number below this has been answered or given up by the client: apply forgets their replies, and
    /// ignores a request that is itself below it.
    pub first_outstanding: Sequence,
    pub credentials: Credentials,
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    // --- sessions and time
    /// Start a session for a client. `label` names it to people (node and process).
    OpenSession {
        label: String,
    },
    /// A sign of life; and the orphans that this session does not hold open (any more).
    KeepAlive {
        closed: Vec<Ino>,
    },
    /// End the request's own session: its locks, orphans and ephemeral files go.
    CloseSession,
    /// Proposed by the leader: end a session that has been silent since `last_seen` for its time to live. Re-checked.
    EndSession {
        session: SessionId,
        last_seen: ClusterTime,
    },
    /// Proposed by the leader: remove the inode's names if its deadline is still this one and has passed. Re-checked.
    Expire {
        ino: Ino,
        deadline: ClusterTime,
    },
    /// Proposed by the leader: moves cluster time, changes nothing else.
    Tick,

    // --- names
    /// The umask counts only where the directory has no default access list.
    Make {
        parent: Ino,
        name: Name,
        node: NewNode,
        mode: u32,
        umask: u32,
    },
    Link {
        ino: Ino,
        parent: Ino,
        name: Name,
    },
    Unlink {
        parent: Ino,
        name: Name,
        expected: Option<Ino>,
    },
    RemoveDirectory {
        parent: Ino,
        name: Name,
        expected: Option<Ino>,
    },
    Rename {
        from: Place,
        to: Place,
        mode: RenameMode,
        moved: Option<Ino>,
        replaced: Option<Option<Ino>>,
    },

    // --- contents
    /// The body's bytes at `offset`.
    Write {
        ino: Ino,
        offset: u64,
        length: u32,
    },
    /// The body's bytes at the end of the file, wherever that is when the command is applied.
    Append {
        ino: Ino,
        length: u32,
    },
    /// The whole content becomes the body, if the version matches; the expiry becomes `expiry`.
    Replace {
        ino: Ino,
        expected: LogIndex,
        expiry: ExpiryChange,
        length: u32,
    },
    /// Create or replace a whole file by name: what the CLI's `write` and `cas` and the cs733 protocol do. No umask.
    Put {
        parent: Ino,
        name: Name,
        expected: Expected,
        expiry: ExpiryChange,
        mode: u32,
        length: u32,
    },
    Allocate {
        ino: Ino,
        mode: AllocateMode,
        offset: u64,
        length: u64,
    },
    /// Share extents: no byte is copied (`copy_file_range(2)`).
    CopyRange {
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    },

    // --- attributes
    SetAttributes {
        ino: Ino,
        changes: AttributeChanges,
    },
    SetXattr {
        ino: Ino,
        name: Bytes,
        value: Bytes,
        mode: XattrMode,
    },
    RemoveXattr {
        ino: Ino,
        name: Bytes,
    },
    /// An access control list in the kernel's form; `None` removes. An access list sets the mode too, and clears the
    /// setgid bit unless the caller may keep it.
    SetAcl {
        ino: Ino,
        kind: AclKind,
        acl: Option<Bytes>,
        keep_setgid: bool,
    },
    /// `user.keelfs.replace-if`; `None` clears.
    SetReplaceIf {
        ino: Ino,
        version: Option<LogIndex>,
    },
    /// `user.keelfs.ttl`, `.expires`.
    SetExpiry {
        ino: Ino,
        expiry: ExpiryChange,
    },
    /// `user.keelfs.default-ttl`, in nanoseconds; `None` clears.
    SetDefaultTtl {
        ino: Ino,
        ttl_ns: Option<u64>,
    },
    /// `user.keelfs.ephemeral`: removed when the request's session ends; `false` clears.
    SetEphemeral {
        ino: Ino,
        ephemeral: bool,
    },

    // --- locks
    /// Take, convert or (with `LockMode::Unlock`) give back a range. With `wait`, a conflict queues the request:
    /// the reply is `Waiting` and the grant shows in the state later.
    Lock {
        ino: Ino,
        owner: LockOwner,
        range: LockRange,
        mode: LockMode,
        pid: u32,
        wait: bool,
    },
    /// Stop waiting. Replies whether the lock had been granted meanwhile.
    CancelLock {
        ino: Ino,
        owner: LockOwner,
        range: LockRange,
    },
    /// Everything that this owner of the request's session holds on the inode (close of a descriptor).
    ReleaseOwner {
        ino: Ino,
        owner: LockOwner,
    },

    // --- the cluster's own
    /// About the nodes themselves; only outside sessions, and never from a client.
    Node(NodeCommand),
}

/// What the cluster notes about its nodes (see `nodes`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeCommand {
    /// Proposed by a leader: give out the next node number. The reply is `Node`.
    Allocate,
    /// Proposed by the node: this start of it is running.
    Start { node: u64, start: NodeStart },
    /// Proposed by a leader: how far the logs of nodes reach durably, as they said themselves.
    Holds(Vec<NodeHolds>),
}

impl Command {
    /// Whether this makes the tree grow: by data, by an inode, or by what an inode holds. On full disks such commands are
    /// refused before they are proposed. What only changes, removes or unlocks is not; neither is what a session lives of.
    pub fn grows(&self) -> bool {
        match self {
            Command::Make { .. } | Command::Link { .. } | Command::CopyRange { .. } | Command::SetXattr { .. } => true,
            Command::Write { length, .. } | Command::Append { length, .. } => *length > 0,
            Command::Replace { length, .. } => *length > 0,
            // An empty one may still make the file.
            Command::Put { .. } => true,
            Command::Allocate { mode, .. } => !matches!(mode, AllocateMode::PunchHole | AllocateMode::Collapse),
            Command::Rename { mode, .. } => matches!(mode, RenameMode::Whiteout),
            Command::SetAcl { acl, .. } => acl.is_some(),
            Command::OpenSession { .. }
            | Command::KeepAlive { .. }
            | Command::CloseSession
            | Command::EndSession { .. }
            | Command::Expire { .. }
            | Command::Tick
            | Command::Node(_)
            | Command::Unlink { .. }
            | Command::RemoveDirectory { .. }
            | Command::SetAttributes { .. }
            | Command::RemoveXattr { .. }
            | Command::SetReplaceIf { .. }
            | Command::SetExpiry { .. }
            | Command::SetDefaultTtl { .. }
            | Command::SetEphemeral { .. }
            | Command::Lock { .. }
            | Command::CancelLock { .. }
            | Command::ReleaseOwner { .. } => false,
        }
    }
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub parent: Ino,
    pub name: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    File,
    Directory,
    Symlink { target: Bytes },
    Fifo,
    Socket,
    CharDevice { rdev: u32 },
    BlockDevice { rdev: u32 },
}

/// Flags of `renameat2(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
    /// As `Replace`, and a character device 0:0 stays at the old name: overlayfs' sign for "nothing here".
    Whiteout,
}

/// What a [`Command::Put`] demands of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    Anything,
    /// This version; 0: the name must not exist.
    Version(LogIndex),
}

/// What becomes of an expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExpiryChange {
    Keep,
    Clear,
    /// Nanoseconds from the entry's cluster time.
    After {
        ns: u64,
    },
    /// Seconds since 1970; turned into cluster time once, by the entry's stamp.
    At {
        unix_seconds: i64,
    },
}

/// Modes of `fallocate(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocateMode {
    /// Mode 0: the size grows to cover the range.
    Extend,
    /// `FALLOC_FL_KEEP_SIZE`.
    KeepSize,
    /// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`, with or without `FALLOC_FL_KEEP_SIZE`.
    ZeroRange { keep_size: bool },
    /// `FALLOC_FL_COLLAPSE_RANGE`.
    Collapse,
    /// `FALLOC_FL_INSERT_RANGE`.
    Insert,
}

/// `utimensat(2)`: `Now` is the entry's wall stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeChange {
    Now,
    To(Timestamp),
}

/// What `setattr` changes; `None` leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeChanges {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeChange>,
    pub mtime: Option<TimeChange>,
}

/// Flags of `setxattr(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    Any,
    Create,
    Replace,
}

/// The two access control lists that an inode may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AclKind {
    /// Decides about access.
    Access,
    /// Of a directory: given to what is made in it.
    Default,
}

/// Who owns a lock within its session, and of which family. The families never conflict with each other
/// (`flock(2)`, section NOTES).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockOwner {
    /// `fcntl(2)` and open file description locks: the kernel's lock owner.
    Posix(u64),
    /// `flock(2)`: the kernel's lock owner; its range is the whole file.
    Flock(u64),
}

/// Bytes `start..=end`; `end` is `u64::MAX` for "to the end of the file".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockRange {
    pub start: u64,
    pub end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LockMode {
    Shared,
    Exclusive,
    Unlock,
}
