//! Orphans: inodes without a name that somebody may still have open.
//!
//! Opens cost no log entry, so nobody knows who has a file open when its last name goes. Every session that lives at that
//! moment therefore counts as a holder, until it says otherwise (`KeepAlive`) or ends. A session that is opened later is
//! none: it finds no name to open, and if it had looked the name up before, its descriptor ends (`ESTALE`) with the last
//! holder. With the last holder the inode, its extents, attributes and locks go.

use super::*;

impl State {
    /// Orphans above `after` that wait for this session's answer, in order (at most `limit`).
    pub fn orphans_of(&self, session: SessionId, after: Ino, limit: usize) -> Vec<Ino> {
        self.holds_of(session, Ino(after.0.saturating_add(1))).take(limit).collect()
    }

    fn holds_of(&self, session: SessionId, from: Ino) -> impl Iterator<Item = Ino> + '_ {
        self.holds.range((session, from)..=(session, Ino(u64::MAX))).map(|((_, ino), ())| *ino)
    }

    /// Called when a name of this inode has gone.
    pub(super) fn orphan_if_nameless(&mut self, ino: Ino) {
        if self.inodes.get(&ino).is_none_or(|inode| inode.is_named()) {
            return;
        }
        let holders: Vec<_> = self.sessions.iter().map(|(id, _)| *id).collect();
        if holders.is_empty() {
            return self.free(ino);
        }
        for session in &holders {
            self.holds.insert((*session, ino), ());
        }
        self.orphans.insert(ino, u32::try_from(holders.len()).unwrap_or(u32::MAX));
    }

    /// This session does not hold the inode open, or not any more.
    pub(super) fn release_hold(&mut self, session: SessionId, ino: Ino) {
        if self.holds.remove(&(session, ino)).is_none() {
            return;
        }
        match self.orphans.get(&ino).copied() {
            Some(holders) if holders > 1 => drop(self.orphans.insert(ino, holders.saturating_sub(1))),
            _ => {
                self.orphans.remove(&ino);
                self.free(ino);
            }
        }
    }

    pub(super) fn end_holds(&mut self, session: SessionId) {
        let held: Vec<_> = self.holds_of(session, Ino(0)).collect();
        held.iter().for_each(|ino| self.release_hold(session, *ino));
    }

    /// The inode goes, with all that belongs to it.
    fn free(&mut self, ino: Ino) {
        let offsets: Vec<_> = self.extents_of(ino).map(|(offset, _)| offset).collect();
        offsets.iter().for_each(|offset| self.take_extent(ino, *offset));
        self.forget_xattrs(ino);
        self.locks.forget(ino);
        self.take_inode(ino);
    }
}
