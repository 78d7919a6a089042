//! The questions: what can be asked of one state, as plain data, so that a client without a replica can ask too.

use super::command::{LockMode, LockOwner, LockRange};
use super::types::*;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A question. `State::answer` answers each from one root, so every answer is consistent in itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// → [`Answer::Attributes`]
    Lookup { parent: Ino, name: Name },
    /// Walk `path` from the root without following symlinks; components separated by `/`. → [`Answer::Attributes`]
    Resolve { path: Bytes },
    /// → [`Answer::Attributes`]
    Attributes { ino: Ino },
    /// → [`Answer::Attributes`] of the parent directory (the root's is itself)
    Parent { ino: Ino },
    /// → [`Answer::Bytes`]
    ReadLink { ino: Ino },
    /// At most `limit` entries whose cookie is above `after`, in cookie order. An entry keeps its cookie as long as it
    /// exists; what is added during a walk gets a higher one. → [`Answer::Directory`]
    ReadDirectory { ino: Ino, after: u64, limit: u32 },
    /// Any attribute, also the virtual ones under `user.keelfs.`, as the bytes that `getfattr` shows. → [`Answer::Bytes`]
    Xattr { ino: Ino, name: Bytes },
    /// Names of the stored ones, each followed by NUL as `listxattr(2)` wants. → [`Answer::Bytes`]
    ListXattrs { ino: Ino },
    /// → [`Answer::Content`]
    Content { ino: Ino, offset: u64, length: u64 },
    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`: → [`Answer::Offset`]
    Seek { ino: Ino, offset: u64, hole: bool },
    /// `F_GETLK`: the first lock that would conflict. → [`Answer::Lock`]
    TestLock { ino: Ino, session: SessionId, owner: LockOwner, range: LockRange, mode: LockMode },
    /// What became of a queued request. → [`Answer::LockStanding`]
    LockStanding { ino: Ino, session: SessionId, owner: LockOwner, range: LockRange },
    /// Counts for `statfs(2)`. → [`Answer::Usage`]
    Usage,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Attributes(Attributes),
    Bytes(Bytes),
    /// Every entry of the directory, now, has a cookie below `end`.
    Directory {
        entries: Vec<DirectoryEntry>,
        end: u64,
    },
    Content(Content),
    /// `None`: ENXIO
    Offset(Option<u64>),
    Lock(Option<LockHolder>),
    LockStanding(LockStanding),
    Usage(Usage),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    pub name: Name,
    pub cookie: u64,
    pub attributes: Attributes,
}

/// Where the bytes of a range of a file are. Pieces are in order and cover the range up to the end of the file exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub version: LogIndex,
    pub size: u64,
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    Hole {
        length: u64,
    },
    /// `length` bytes of the body of entry `index`, from `offset` within it.
    Body {
        index: LogIndex,
        offset: u32,
        length: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    pub session: SessionId,
    pub owner: LockOwner,
    pub range: LockRange,
    pub mode: LockMode,
    pub pid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockStanding {
    Held {
        generation: u64,
    },
    Waiting,
    /// Neither held nor waiting: the session ended, or the wait was cancelled.
    Gone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub inodes: u64,
    /// Bytes that files hold, holes not counted, shared bytes counted once for each file.
    pub bytes: u64,
}
