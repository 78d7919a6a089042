//! The whole file system at one index: the data, its invariants, and the few functions that change one item of it.
//!
//! Everything is reachable from here and every map is persistent, so a clone is a snapshot: a few reference counts, and
//! never changed by what happens later. What other files of this room do to inodes, names and extents goes
//! through `put_*`, `take_*` and `change` below, which keep the indexes in step; hashes every map keeps by itself.
//!
//! Decision: maps over the whole tree (dentries by directory and name, extents by file and offset) instead of a map in
//! each inode. A million small files would otherwise carry a million nearly empty tree nodes of half a kilobyte each; and
//! an export is a plain walk. Cost: a lookup compares a pair, and its depth is that of the whole tree.

use super::canon::hash_of;
use super::contents::Extent;
use super::derived::Derived;
use super::inode::{Inode, Node};
use super::locks::Locks;
use super::nodes::NodeRecord;
use super::sessions::Session;
use super::summed::Summed;
use super::*;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The whole file system at one index. Cloning costs a few reference counts (persistent maps).
///
/// I1  Every dentry lies in a directory that exists and points at an inode that exists.
/// I2  A file's `nlink` is the number of its dentries; a directory's is two and its subdirectories', and it has exactly
///     one dentry (the root none), or no link and no dentry.
/// I3  Following parents from any directory that has a name reaches the root.
/// I4  Every inode number is below `next_ino`, which only rises; the root exists.
/// I5  A directory counts its entries; their cookies differ, and are below its next one.
/// I6  Extents belong to files, are not empty, do not overlap, end within the file; a file counts the bytes they cover.
/// I7  An inode without a name is an orphan, held by as many living sessions as it counts, at least one.
/// I8  Kept replies belong to living sessions, lie at or above `first_outstanding`, and are counted and bounded.
/// I9  `version` ≤ `change` ≤ the applied index, for each inode.
/// I10 Derived indexes are what the data says (see `derived`).
/// I11 Every map's sum is that of its items (see `summed`).
/// I12 Attributes belong to inodes, which count their bytes; within the limits.
/// I13 Locks are on inodes that exist, hold to their own invariants (L1 to L8), and name living sessions.
/// I14 An ephemeral inode's session lives; the root neither expires nor is ephemeral.
/// I15 What an exported state must be (see `export`).
/// I16 A stored access control list is valid and in canonical form; an access list says more than a mode, and agrees with
///     its inode's; a default list belongs to a directory.
/// I17 Every node's number is below `next_node`, which only rises.
/// I18 No two regular files have the same version.
#[derive(Clone)]
pub struct State {
    pub(super) applied: LogIndex,
    pub(super) cluster: ClusterTime,
    pub(super) wall: Timestamp,
    /// What the clock showed by which the last entry was stamped. Only answers read it from here: it is neither hashed nor
    /// exported.
    pub(super) clock: Timestamp,
    pub(super) next_ino: u64,
    pub(super) next_node: u64,
    pub(super) inodes: Summed<Ino, Arc<Inode>>,
    pub(super) dentries: Summed<(Ino, Name), Dentry>,
    pub(super) extents: Summed<(Ino, u64), Extent>,
    pub(super) xattrs: Summed<(Ino, Bytes), Bytes>,
    pub(super) sessions: Summed<SessionId, Session>,
    pub(super) replies: Summed<(SessionId, Sequence), Outcome>,
    /// How many sessions may still hold each inode without a name open.
    pub(super) orphans: Summed<Ino, u32>,
    pub(super) holds: Summed<(SessionId, Ino), ()>,
    pub(super) nodes: Summed<u64, NodeRecord>,
    pub(super) locks: Locks,
    pub(super) derived: Derived,
}

/// An invariant that does not hold, with its number and what breaks it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {number} is broken: {what}")]
pub struct Broken {
    pub number: &'static str,
    pub what: String,
}

/// A name's meaning. The cookie is its place in the order of `ReadDirectory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dentry {
    pub(super) ino: Ino,
    pub(super) cookie: u64,
}

/// The entry that is being applied, as far as it marks what it changes. Times are clamped already, but for `clock`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cause {
    pub(super) index: LogIndex,
    pub(super) now: ClusterTime,
    pub(super) wall: Timestamp,
    /// What the leader's wall clock showed. Nothing is measured by it but a wall time that somebody names.
    pub(super) clock: Timestamp,
    pub(super) session: SessionId,
    pub(super) who: Credentials,
}

impl Default for State {
    fn default() -> State {
        State::new()
    }
}

impl State {
    /// An empty tree: the root directory (mode 0755, owner 0:0) and nothing else, at index 0.
    pub fn new() -> State {
        let mut state = State::bare();
        state.next_ino = Ino::ROOT.0.saturating_add(1);
        state.next_node = 1;
        state.put_inode(Ino::ROOT, root());
        state
    }

    /// Not even a root: what an import starts from.
    pub(super) fn bare() -> State {
        State {
            applied: LogIndex(0),
            cluster: ClusterTime(0),
            wall: Timestamp::default(),
            clock: Timestamp::default(),
            next_ino: 0,
            next_node: 0,
            inodes: Summed::default(),
            dentries: Summed::default(),
            extents: Summed::default(),
            xattrs: Summed::default(),
            sessions: Summed::default(),
            replies: Summed::default(),
            orphans: Summed::default(),
            holds: Summed::default(),
            nodes: Summed::default(),
            locks: Locks::default(),
            derived: Derived::default(),
        }
    }

    /// Index of the last entry applied.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Cluster time of the last entry applied.
    pub fn cluster_time(&self) -> ClusterTime {
        self.cluster
    }

    /// Wall time of the last entry applied, as clamped.
    pub fn wall_time(&self) -> Timestamp {
        self.wall
    }

    /// 128-bit hash of the whole state, kept incrementally: equal on all replicas at equal `applied`.
    pub fn hash(&self) -> u128 {
        hash_of(&(
            (self.applied, self.cluster, self.wall, self.next_ino, self.next_node),
            [
                self.inodes.digest(),
                self.dentries.digest(),
                self.extents.digest(),
                self.xattrs.digest(),
                self.sessions.digest(),
                self.replies.digest(),
                self.orphans.digest(),
                self.holds.digest(),
                self.nodes.digest(),
            ],
            self.locks.hash(),
        ))
    }

    // --- finding

    pub(super) fn inode(&self, ino: Ino) -> Result<&Arc<Inode>, Refusal> {
        self.inodes.get(&ino).ok_or(Refusal::NoSuchInode)
    }

    pub(super) fn directory(&self, ino: Ino) -> Result<&Arc<Inode>, Refusal> {
        let inode = self.inode(ino)?;
        if inode.is_directory() { Ok(inode) } else { Err(Refusal::NotDirectory) }
    }

    /// A directory that can take entries: one without a name takes none, as on any Unix.
    pub(super) fn living_directory(&self, ino: Ino) -> Result<&Arc<Inode>, Refusal> {
        let inode = self.directory(ino)?;
        if inode.is_named() { Ok(inode) } else { Err(Refusal::NoSuchName) }
    }

    /// An inode that has a name. For commands about what a name means: whoever found the inode by a name that has gone
    /// since must look again, as if the inode were no more.
    pub(super) fn named(&self, ino: Ino) -> Result<&Arc<Inode>, Refusal> {
        let inode = self.inode(ino)?;
        if inode.is_named() { Ok(inode) } else { Err(Refusal::NoSuchInode) }
    }

    /// A regular file, for what only these have: content.
    pub(super) fn file(&self, ino: Ino) -> Result<&Arc<Inode>, Refusal> {
        let inode = self.inode(ino)?;
        match inode.kind() {
            FileKind::File => Ok(inode),
            FileKind::Directory => Err(Refusal::IsDirectory),
            _ => Err(Refusal::WrongKind),
        }
    }

    pub(super) fn dentry(&self, parent: Ino, name: &Name) -> Option<Dentry> {
        self.dentries.get(&(parent, name.clone())).copied()
    }

    pub(super) fn attributes(&self, ino: Ino) -> Result<Attributes, Refusal> {
        Ok(self.inode(ino)?.attributes(ino))
    }

    /// The reply of a command that changed this inode.
    pub(super) fn shown(&self, ino: Ino) -> Outcome {
        self.attributes(ino).map(Reply::Attributes)
    }

    /// Does any file (or orphan) refer to the body of this entry?
    pub fn refers_to(&self, index: LogIndex) -> bool {
        self.derived.bodies.contains_key(&index)
    }

    /// All log indexes whose bodies are referred to, ascending, from `from` on.
    pub fn live_bodies(&self, from: LogIndex) -> impl Iterator<Item = LogIndex> + '_ {
        self.derived.bodies.range(from..).map(|(index, _)| *index)
    }

    // --- changing one item

    pub(super) fn put_inode(&mut self, ino: Ino, inode: Inode) {
        let inode = Arc::new(inode);
        match self.inodes.insert(ino, inode.clone()) {
            Some(old) => self.derived.replace_inode(ino, &old, &inode),
            None => self.derived.add_inode(ino, &inode),
        }
    }

    pub(super) fn take_inode(&mut self, ino: Ino) {
        if let Some(old) = self.inodes.remove(&ino) {
            self.derived.drop_inode(ino, &old);
        }
    }

    /// Change an inode that exists; does nothing to one that does not.
    pub(super) fn change(&mut self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        if let Some(inode) = self.inodes.get(&ino) {
            let mut inode = Inode::clone(inode);
            change(&mut inode);
            self.put_inode(ino, inode);
        }
    }

    /// Change an inode's own data, not its content: the change index and the ctime move with it.
    pub(super) fn amend(&mut self, cause: &Cause, ino: Ino, change: impl FnOnce(&mut Inode)) {
        self.change(ino, |inode| {
            change(inode);
            inode.change = cause.index;
            inode.ctime = cause.wall;
        });
    }

    pub(super) fn put_dentry(&mut self, parent: Ino, name: &Name, dentry: Dentry) {
        if let Some(old) = self.dentries.insert((parent, name.clone()), dentry) {
            self.derived.drop_dentry(parent, old);
        }
        self.derived.add_dentry(parent, name, dentry);
    }

    pub(super) fn take_dentry(&mut self, parent: Ino, name: &Name) {
        if let Some(old) = self.dentries.remove(&(parent, name.clone())) {
            self.derived.drop_dentry(parent, old);
        }
    }

    pub(super) fn put_extent(&mut self, ino: Ino, offset: u64, extent: Extent) {
        if let Some(old) = self.extents.insert((ino, offset), extent) {
            self.derived.drop_extent(&old);
        }
        self.derived.add_extent(&extent);
    }

    pub(super) fn take_extent(&mut self, ino: Ino, offset: u64) {
        if let Some(old) = self.extents.remove(&(ino, offset)) {
            self.derived.drop_extent(&old);
        }
    }

    pub(super) fn put_session(&mut self, id: SessionId, session: Session) {
        let silence = session.last_seen;
        match self.sessions.insert(id, session) {
            Some(old) if old.last_seen == silence => {}
            Some(old) => {
                self.derived.drop_session(id, &old);
                self.derived.silences.insert((silence, id));
            }
            None => {
                self.derived.silences.insert((silence, id));
            }
        }
    }
}

fn root() -> Inode {
    Inode {
        node: Node::EMPTY_DIRECTORY,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Timestamp::default(),
        version: LogIndex(0),
        change: LogIndex(0),
        maker: SessionId(0),
        xattr_bytes: 0,
        deadline: None,
        ephemeral: None,
        replace_if: None,
    }
}
