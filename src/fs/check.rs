//! The invariants of [`State`], executed. O(n), for tests and `keelfs check`.
//!
//! Each function holds one numbered sentence of [`State`] against the data and says what breaks it.

use super::acl::{Acl, PERMISSIONS};
use super::contents::Extent;
use super::derived::Derived;
use super::inode::{Inode, Node};
use super::*;
use crate::limits::{FILE_BYTES_MAX, SESSION_OUTSTANDING_MAX, XATTRS_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};

impl State {
    /// Test every invariant: I1 to I14 and I16 to I18 of [`State`], L1 to L8 of its locks. O(n).
    pub fn check(&self) -> Result<(), Broken> {
        self.check_sums()?;
        self.check_derived()?;
        self.check_dentries()?;
        for (ino, inode) in self.inodes.iter() {
            self.check_links(*ino, inode)?;
            self.check_numbers(*ino, inode)?;
            self.check_content(*ino, inode)?;
            self.check_orphan(*ino, inode)?;
            self.check_xattrs(*ino, inode)?;
            self.check_acls(*ino, inode)?;
            self.check_endings(*ino, inode)?;
        }
        self.check_versions()?;
        self.check_tree()?;
        self.check_strays()?;
        self.check_sessions()?;
        self.check_nodes()?;
        self.check_locks()
    }

    fn check_sums(&self) -> Result<(), Broken> {
        let sums = [
            ("inodes", self.inodes.is_sound()),
            ("dentries", self.dentries.is_sound()),
            ("extents", self.extents.is_sound()),
            ("attributes", self.xattrs.is_sound()),
            ("sessions", self.sessions.is_sound()),
            ("replies", self.replies.is_sound()),
            ("orphans", self.orphans.is_sound()),
            ("holds", self.holds.is_sound()),
            ("nodes", self.nodes.is_sound()),
        ];
        sums.iter().try_for_each(|(map, sound)| hold("I11", *sound, || format!("the sum of {map} is not theirs")))
    }

    fn check_derived(&self) -> Result<(), Broken> {
        let same = self.derived == Derived::of(self);
        hold("I10", same, || "the indexes are not those of the data".into())
    }

    fn check_dentries(&self) -> Result<(), Broken> {
        let mut entries: BTreeMap<Ino, BTreeSet<u64>> = BTreeMap::new();
        for ((parent, name), dentry) in self.dentries.iter() {
            let directory = self.inodes.get(parent).filter(|inode| inode.is_directory());
            let cookie_next = match directory.map(|directory| &directory.node) {
                Some(Node::Directory { cookie_next, .. }) => *cookie_next,
                _ => return fail("I1", format!("{name:?} lies in inode {}, which is no directory", parent.0)),
            };
            hold("I1", self.inodes.contains(&dentry.ino), || format!("{name:?} in inode {} leads nowhere", parent.0))?;
            let fresh = entries.entry(*parent).or_default().insert(dentry.cookie) && dentry.cookie < cookie_next;
            hold("I5", fresh, || format!("cookie {} of {name:?} in inode {}", dentry.cookie, parent.0))?;
        }
        for (ino, inode) in self.inodes.iter() {
            let found = entries.get(ino).map_or(0, |cookies| cookies.len() as u64);
            hold("I5", found == inode.entries(), || {
                format!("inode {} counts {} entries, and has {found}", ino.0, inode.entries())
            })?;
        }
        Ok(())
    }

    fn check_links(&self, ino: Ino, inode: &Inode) -> Result<(), Broken> {
        let names = self.places(ino).count() as u64;
        let sound = match inode.is_directory() {
            false => u64::from(inode.nlink) == names,
            true if !inode.is_named() => names == 0 && ino != Ino::ROOT,
            true => names == u64::from(ino != Ino::ROOT) && inode.nlink == self.directory_links(ino),
        };
        hold("I2", sound, || format!("inode {} has {names} names and nlink {}", ino.0, inode.nlink))
    }

    fn directory_links(&self, ino: Ino) -> u32 {
        let children = self.derived.cookies.range((ino, 0)..=(ino, u64::MAX));
        let children = children.filter_map(|(_, name)| self.dentry(ino, name));
        let subdirectories = children.filter(|dentry| self.inode(dentry.ino).is_ok_and(|inode| inode.is_directory()));
        u32::try_from(subdirectories.count()).unwrap_or(u32::MAX).saturating_add(2)
    }

    fn check_tree(&self) -> Result<(), Broken> {
        let mut rooted = BTreeSet::from([Ino::ROOT]);
        let directories = self.inodes.iter().filter(|(_, inode)| inode.is_directory() && inode.is_named());
        for (ino, _) in directories {
            let mut way = BTreeSet::new();
            let mut at = *ino;
            while !rooted.contains(&at) {
                let next = self.parent_of(at).filter(|_| way.insert(at));
                at = match next {
                    Some(parent) => parent,
                    None => return fail("I3", format!("directory {} is not below the root", ino.0)),
                };
            }
            rooted.append(&mut way);
        }
        Ok(())
    }

    fn check_numbers(&self, ino: Ino, inode: &Inode) -> Result<(), Broken> {
        hold("I4", ino.0 < self.next_ino, || format!("inode {} is not below {}", ino.0, self.next_ino))?;
        let ordered = inode.version <= inode.change && inode.change <= self.applied;
        hold("I9", ordered, || {
            format!("inode {}: version {:?}, change {:?} at {:?}", ino.0, inode.version, inode.change, self.applied)
        })
    }

    fn check_versions(&self) -> Result<(), Broken> {
        let mut seen = BTreeMap::new();
        let files = self.inodes.iter().filter(|(_, inode)| matches!(inode.node, Node::File { .. }));
        for (ino, inode) in files {
            let other = seen.insert(inode.version, *ino);
            hold("I18", other.is_none(), || format!("inodes {} and {other:?} have {:?}", ino.0, inode.version))?;
        }
        Ok(())
    }

    fn check_content(&self, ino: Ino, inode: &Inode) -> Result<(), Broken> {
        let (mut end, mut covered) = (0, 0_u64);
        for (start, extent) in self.extents_of(ino) {
            let sound = start >= end && extent.length > 0 && extent.offset.checked_add(extent.length).is_some();
            hold("I6", sound, || format!("extent at {start} of inode {}", ino.0))?;
            end = Extent::end(&extent, start);
            covered = covered.saturating_add(u64::from(extent.length));
        }
        let sound = match inode.node {
            Node::File { size, allocated } => end <= size && size <= FILE_BYTES_MAX && covered == allocated,
            _ => covered == 0,
        };
        hold("I6", sound, || format!("inode {}: extents end at {end} and cover {covered} bytes", ino.0))
    }

    fn check_orphan(&self, ino: Ino, inode: &Inode) -> Result<(), Broken> {
        let holders = self.orphans.get(&ino).copied().unwrap_or(0);
        hold("I7", inode.is_named() == (holders == 0), || {
            format!("inode {} has nlink {} and {holders} holders", ino.0, inode.nlink)
        })
    }

    fn check_xattrs(&self, ino: Ino, inode: &Inode) -> Result<(), Broken> {
        let bytes =
            self.xattrs_of(ino).fold(0_u32, |sum, (name, value)| sum.saturating_add(xattrs::item_bytes(name, value)));
        let sound = bytes == inode.xattr_bytes && bytes as usize <= XATTRS_BYTES_MAX;
        hold("I12", sound, || format!("inode {} counts {} attribute bytes, and has {bytes}", ino.0, inode.xattr_bytes))
    }

    fn check_acls(&self, ino: Ino, inode: &Inode) -> Result<(), Broken> {
        let lists = self.xattrs_of(ino).filter_map(|(name, value)| Some((AclKind::named(name)?, value)));
        for (kind, value) in lists {
            let acl = Acl::parse(value).ok().filter(|acl| acl.bytes() == value);
            let fits = acl.is_some_and(|acl| match kind {
                AclKind::Access => !acl.is_mode() && acl.mode() == inode.mode & PERMISSIONS,
                AclKind::Default => inode.is_directory(),
            });
            hold("I16", fits, || format!("{kind:?} list of inode {} with mode {:o}: {value:?}", ino.0, inode.mode))?;
        }
        Ok(())
    }

    fn check_endings(&self, ino: Ino, inode: &Inode) -> Result<(), Broken> {
        let lives = inode.ephemeral.is_none_or(|session| self.session_exists(session));
        hold("I14", lives, || format!("inode {} is ephemeral with a session that has ended", ino.0))?;
        let stays = ino != Ino::ROOT || (inode.deadline.is_none() && inode.ephemeral.is_none());
        hold("I14", stays, || "the root would end".into())
    }

    /// What belongs to inodes belongs to inodes that exist.
    fn check_strays(&self) -> Result<(), Broken> {
        let root = self.inodes.get(&Ino::ROOT).is_some_and(|inode| inode.is_directory());
        hold("I4", root, || "there is no root".into())?;
        let exists = |ino: &Ino| self.inodes.contains(ino);
        let extent = self.extents.iter().find(|((ino, _), _)| !exists(ino));
        hold("I6", extent.is_none(), || format!("an extent without its file: {extent:?}"))?;
        let xattr = self.xattrs.iter().find(|((ino, _), _)| !exists(ino));
        hold("I12", xattr.is_none(), || format!("an attribute without its inode: {xattr:?}"))?;
        let orphan = self.orphans.iter().find(|(ino, _)| !exists(ino));
        hold("I7", orphan.is_none(), || format!("an orphan without its inode: {orphan:?}"))?;
        let mut holders: BTreeMap<Ino, u32> = BTreeMap::new();
        for ((session, ino), ()) in self.holds.iter() {
            hold("I7", self.session_exists(*session), || format!("ended {session:?} holds {ino:?}"))?;
            let count = holders.entry(*ino).or_default();
            *count = count.saturating_add(1);
        }
        hold("I7", self.orphans.iter().eq(holders.iter()), || "the holders are not counted right".into())
    }

    fn check_sessions(&self) -> Result<(), Broken> {
        for (id, session) in self.sessions.iter() {
            let kept = self.replies.range((*id, Sequence(0))..=(*id, Sequence(u64::MAX)));
            let (mut count, mut sound) = (0_u64, true);
            for ((_, sequence), _) in kept {
                count = count.saturating_add(1);
                sound &= *sequence >= session.first_outstanding;
            }
            sound &= count == u64::from(session.kept) && count <= SESSION_OUTSTANDING_MAX as u64;
            hold("I8", sound, || format!("{id:?} keeps {count} replies, and counts {}", session.kept))?;
        }
        let stray = self.replies.iter().find(|((id, _), _)| !self.session_exists(*id));
        hold("I8", stray.is_none(), || format!("a reply without its session: {stray:?}"))
    }

    fn check_nodes(&self) -> Result<(), Broken> {
        let stray = self.nodes.iter().find(|(node, _)| **node >= self.next_node);
        hold("I17", stray.is_none(), || format!("the next node is {}, yet there is {stray:?}", self.next_node))
    }

    fn check_locks(&self) -> Result<(), Broken> {
        self.locks.check()?;
        for (ino, locks) in self.locks.export() {
            hold("I13", self.inodes.contains(&ino), || format!("locks on {ino:?}, which does not exist"))?;
            let sessions = locks.held().iter().map(|held| &held.lock).chain(locks.waiting()).map(|lock| lock.session);
            for session in sessions {
                hold("I13", self.session_exists(session), || format!("ended {session:?} locks {ino:?}"))?;
            }
        }
        Ok(())
    }
}

fn hold(number: &'static str, holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { fail(number, what()) }
}

fn fail(number: &'static str, what: String) -> Result<(), Broken> {
    Err(Broken { number, what })
}
