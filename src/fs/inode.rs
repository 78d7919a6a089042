//! One inode: everything about a file but its names, extents, attributes and locks, which live in maps of their own.
//!
//! Kept small and of fixed size (but for a symlink's target), because every change of an inode copies it and hashes it.

use super::types::*;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(super) const SETUID: u32 = 0o4000;
pub(super) const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
/// All bits of a mode that can be set.
pub(super) const MODE_BITS: u32 = 0o7777;

/// The first cookie of a directory's entries. 0 is "before the first", for whoever starts a walk.
pub(super) const COOKIE_FIRST: u64 = 1;
/// What a directory's size grows by, in bytes, and about how many entries fill that.
const DIRECTORY_BLOCK_BYTES: u64 = 4096;
const DIRECTORY_BLOCK_ENTRIES: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub(super) node: Node,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: Timestamp,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
    pub(super) btime: Timestamp,
    pub(super) version: LogIndex,
    pub(super) change: LogIndex,
    /// The session whose command made it.
    pub(super) maker: SessionId,
    /// Names and values of its extended attributes together.
    pub(super) xattr_bytes: u32,
    /// When it ends by itself.
    pub(super) deadline: Option<ClusterTime>,
    /// The session with which it ends.
    pub(super) ephemeral: Option<SessionId>,
    /// The version that its next rename onto a name demands of that name; 0: that it be free.
    pub(super) replace_if: Option<LogIndex>,
}

/// What an inode is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    File {
        size: u64,
        /// Bytes that its extents cover.
        allocated: u64,
    },
    Directory {
        entries: u64,
        /// The cookie of the next entry; every entry has a smaller one.
        cookie_next: u64,
        default_ttl_ns: Option<u64>,
    },
    Symlink {
        target: Bytes,
    },
    Fifo,
    Socket,
    CharDevice {
        rdev: u32,
    },
    BlockDevice {
        rdev: u32,
    },
}

impl Node {
    pub(super) const EMPTY_FILE: Node = Node::File { size: 0, allocated: 0 };
    pub(super) const EMPTY_DIRECTORY: Node =
        Node::Directory { entries: 0, cookie_next: COOKIE_FIRST, default_ttl_ns: None };
}

impl Inode {
    pub(super) fn kind(&self) -> FileKind {
        match self.node {
            Node::File { .. } => FileKind::File,
            Node::Directory { .. } => FileKind::Directory,
            Node::Symlink { .. } => FileKind::Symlink,
            Node::Fifo => FileKind::Fifo,
            Node::Socket => FileKind::Socket,
            Node::CharDevice { .. } => FileKind::CharDevice,
            Node::BlockDevice { .. } => FileKind::BlockDevice,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.node, Node::Directory { .. })
    }

    /// Has a name. An inode without one is an orphan.
    pub(super) fn is_named(&self) -> bool {
        self.nlink > 0
    }

    pub(super) fn entries(&self) -> u64 {
        match self.node {
            Node::Directory { entries, .. } => entries,
            _ => 0,
        }
    }

    pub(super) fn cookie_next(&self) -> u64 {
        match self.node {
            Node::Directory { cookie_next, .. } => cookie_next,
            _ => 0,
        }
    }

    /// As `stat(2)` has it.
    pub(super) fn size(&self) -> u64 {
        match &self.node {
            Node::File { size, .. } => *size,
            Node::Symlink { target } => target.len() as u64,
            Node::Directory { entries, .. } => {
                let blocks = entries.div_ceil(DIRECTORY_BLOCK_ENTRIES).max(1);
                blocks.saturating_mul(DIRECTORY_BLOCK_BYTES)
            }
            _ => 0,
        }
    }

    /// Bytes of the only part that is not of fixed size.
    pub(super) fn size_of_target(&self) -> usize {
        match &self.node {
            Node::Symlink { target } => target.len(),
            _ => 0,
        }
    }

    pub(super) fn allocated(&self) -> u64 {
        match self.node {
            Node::File { allocated, .. } => allocated,
            _ => 0,
        }
    }

    fn rdev(&self) -> u32 {
        match self.node {
            Node::CharDevice { rdev } | Node::BlockDevice { rdev } => rdev,
            _ => 0,
        }
    }

    /// The deadline at which there is something to do: an entry still in the directory, or no name left, suspends it.
    pub(super) fn effective_deadline(&self) -> Option<ClusterTime> {
        if self.is_named() && self.entries() == 0 { self.deadline } else { None }
    }

    /// What a changed content or owner does to the bits that give the file's own rights to whoever runs it: setuid goes,
    /// and setgid if the group may execute, or if who changes the file could not have set it (Linux, fs/attr.c,
    /// `setattr_should_drop_sgid`). Of supplementary groups nothing is known here, so they do not keep the bit.
    pub(super) fn drop_privileges(&mut self, who: Credentials) {
        self.mode &= !SETUID;
        if self.mode & GROUP_EXECUTE != 0 || (who.uid != 0 && who.gid != self.gid) {
            self.mode &= !SETGID;
        }
    }

    pub(super) fn attributes(&self, ino: Ino) -> Attributes {
        Attributes {
            ino,
            kind: self.kind(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev(),
            size: self.size(),
            allocated: self.allocated(),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            version: self.version,
            change: self.change,
        }
    }
}
