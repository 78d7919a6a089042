//! Indexes that are computed from the replicated maps, to find things fast. What is found by them decides what commands do, so
//! a wrong index is as bad as wrong data (I10).
//!
//! They are neither hashed nor exported; import builds them anew, and `check` compares them with what it builds. Each
//! replicated item adds its own facts and takes exactly these back when it changes or goes.

use super::contents::Extent;
use super::inode::Inode;
use super::sessions::Session;
use super::state::{Dentry, State};
use super::types::*;
use imbl::{OrdMap, OrdSet};

/// I10 Every index here equals the one computed from the replicated maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Derived {
    /// (directory, cookie) → the name that has it.
    pub(super) cookies: OrdMap<(Ino, u64), Name>,
    /// (inode, directory, cookie): every place where an inode has a name.
    pub(super) places: OrdSet<(Ino, Ino, u64)>,
    /// How many extents point into the body of an entry; at least one.
    pub(super) bodies: OrdMap<LogIndex, u64>,
    /// Inodes that end by themselves, without the directories that still hold entries.
    pub(super) deadlines: OrdSet<(ClusterTime, Ino)>,
    pub(super) ephemerals: OrdSet<(SessionId, Ino)>,
    /// Sessions by their last sign of life.
    pub(super) silences: OrdSet<(ClusterTime, SessionId)>,
    /// Bytes that all extents cover.
    pub(super) allocated: u64,
}

impl Derived {
    /// All indexes, from nothing. O(n).
    pub(super) fn of(state: &State) -> Derived {
        let mut derived = Derived::default();
        state.inodes.iter().for_each(|(ino, inode)| derived.add_inode(*ino, inode));
        state.dentries.iter().for_each(|((parent, name), dentry)| derived.add_dentry(*parent, name, *dentry));
        state.extents.iter().for_each(|(_, extent)| derived.add_extent(extent));
        state.sessions.iter().for_each(|(id, session)| derived.add_session(*id, session));
        derived
    }

    /// An inode changed: both facts are compared first, since most changes leave them as they are.
    pub(super) fn replace_inode(&mut self, ino: Ino, old: &Inode, new: &Inode) {
        if facts(old) != facts(new) {
            self.drop_inode(ino, old);
            self.add_inode(ino, new);
        }
    }

    pub(super) fn add_inode(&mut self, ino: Ino, inode: &Inode) {
        if let Some(deadline) = inode.effective_deadline() {
            self.deadlines.insert((deadline, ino));
        }
        if let Some(session) = inode.ephemeral {
            self.ephemerals.insert((session, ino));
        }
    }

    pub(super) fn drop_inode(&mut self, ino: Ino, inode: &Inode) {
        if let Some(deadline) = inode.effective_deadline() {
            self.deadlines.remove(&(deadline, ino));
        }
        if let Some(session) = inode.ephemeral {
            self.ephemerals.remove(&(session, ino));
        }
    }

    pub(super) fn add_dentry(&mut self, parent: Ino, name: &Name, dentry: Dentry) {
        self.cookies.insert((parent, dentry.cookie), name.clone());
        self.places.insert((dentry.ino, parent, dentry.cookie));
    }

    pub(super) fn drop_dentry(&mut self, parent: Ino, dentry: Dentry) {
        self.cookies.remove(&(parent, dentry.cookie));
        self.places.remove(&(dentry.ino, parent, dentry.cookie));
    }

    pub(super) fn add_extent(&mut self, extent: &Extent) {
        let users = self.bodies.get(&extent.index).copied().unwrap_or(0);
        self.bodies.insert(extent.index, users.saturating_add(1));
        self.allocated = self.allocated.saturating_add(u64::from(extent.length));
    }

    pub(super) fn drop_extent(&mut self, extent: &Extent) {
        match self.bodies.get(&extent.index).copied() {
            Some(users) if users > 1 => drop(self.bodies.insert(extent.index, users.saturating_sub(1))),
            _ => drop(self.bodies.remove(&extent.index)),
        }
        self.allocated = self.allocated.saturating_sub(u64::from(extent.length));
    }

    pub(super) fn add_session(&mut self, id: SessionId, session: &Session) {
        self.silences.insert((session.last_seen, id));
    }

    pub(super) fn drop_session(&mut self, id: SessionId, session: &Session) {
        self.silences.remove(&(session.last_seen, id));
    }
}

fn facts(inode: &Inode) -> (Option<ClusterTime>, Option<SessionId>) {
    (inode.effective_deadline(), inode.ephemeral)
}
