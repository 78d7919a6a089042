//! Directories: making, linking and removing names.
//!
//! Rules are those of POSIX.1-2017 (`open`, `mkdir`, `mknod`, `symlink`, `link`, `unlink`, `rmdir`) and, where it leaves
//! them open, of Linux: `unlink` refuses directories, and a directory hands its group on when its setgid bit is set. What
//! else a new inode inherits, `acl` and `expiry` say.
//! Access is not judged here; the asking kernel did that.
//!
//! Decision: a name's new meaning keeps the name's cookie, so that a walk that runs meanwhile shows it exactly once.

use super::*;
use crate::limits::{LINKS_MAX, SYMLINK_BYTES_MAX};
use crate::seeded::{Bug, planted};
use bytes::Bytes;
use inode::{Inode, MODE_BITS, Node, SETGID};
use state::{Cause, Dentry};
use std::sync::Arc;

/// Permission bits of every symlink.
const SYMLINK_MODE: u32 = 0o777;

impl State {
    /// `permissions`: mode and umask.
    pub(super) fn make(
        &mut self,
        cause: &Cause,
        parent: Ino,
        name: &Name,
        node: &NewNode,
        permissions: (u32, u32),
    ) -> Outcome {
        let directory = self.living_directory(parent)?.clone();
        let node = node_of(node)?;
        if self.dentry(parent, name).is_some() {
            return Err(Refusal::NameTaken);
        }
        let ino = self.add_new(cause, (parent, &directory), name, node, permissions);
        self.shown(ino)
    }

    /// Make an inode in this directory, with a name that is free. `permissions`: mode and umask.
    pub(super) fn add_new(
        &mut self,
        cause: &Cause,
        (parent, directory): (Ino, &Inode),
        name: &Name,
        node: Node,
        permissions: (u32, u32),
    ) -> Ino {
        let ino = self.add_nameless(cause, (parent, directory), node, permissions);
        self.add_name(cause, parent, name, ino);
        ino
    }

    /// Make an inode in this directory. The caller's next step gives it the name that its link count speaks of.
    pub(super) fn add_nameless(
        &mut self,
        cause: &Cause,
        (parent, directory): (Ino, &Inode),
        node: Node,
        (mode, umask): (u32, u32),
    ) -> Ino {
        let inherited = self.inherit(parent, &node, mode, umask);
        let inode = new_inode(cause, directory, node, inherited.mode);
        let ino = Ino(self.next_ino);
        self.next_ino = self.next_ino.saturating_add(1);
        self.put_inode(ino, inode);
        self.bequeath(ino, &inherited);
        ino
    }

    pub(super) fn link(&mut self, cause: &Cause, ino: Ino, parent: Ino, name: &Name) -> Outcome {
        let inode = self.inode(ino)?;
        match inode {
            _ if inode.is_directory() => return Err(Refusal::NotPermitted),
            _ if !inode.is_named() => return Err(Refusal::NoSuchName),
            _ if inode.nlink >= LINKS_MAX => return Err(Refusal::TooManyLinks),
            _ => self.living_directory(parent)?,
        };
        if self.dentry(parent, name).is_some() {
            return Err(Refusal::NameTaken);
        }
        self.add_name(cause, parent, name, ino);
        self.amend(cause, ino, |inode| inode.nlink = inode.nlink.saturating_add(1));
        self.shown(ino)
    }

    pub(super) fn unlink(&mut self, cause: &Cause, parent: Ino, name: &Name, expected: Option<Ino>) -> Outcome {
        let (ino, inode) = self.expected(parent, name, expected)?;
        if inode.is_directory() {
            return Err(Refusal::IsDirectory);
        }
        self.remove_name(cause, parent, name);
        self.drop_link(cause, ino);
        Ok(Reply::Done)
    }

    pub(super) fn remove_directory(
        &mut self,
        cause: &Cause,
        parent: Ino,
        name: &Name,
        expected: Option<Ino>,
    ) -> Outcome {
        let (ino, inode) = self.expected(parent, name, expected)?;
        if !inode.is_directory() {
            return Err(Refusal::NotDirectory);
        }
        if inode.entries() > 0 {
            return Err(Refusal::NotEmpty);
        }
        self.remove_name(cause, parent, name);
        self.drop_link(cause, ino);
        Ok(Reply::Done)
    }

    /// The inode at a name, if it is the one that the proposer saw there.
    pub(super) fn expected(
        &self,
        parent: Ino,
        name: &Name,
        expected: Option<Ino>,
    ) -> Result<(Ino, &Arc<Inode>), Refusal> {
        self.directory(parent)?;
        let ino = self.dentry(parent, name).ok_or(Refusal::NoSuchName)?.ino;
        match expected {
            Some(seen) if seen != ino && !planted(Bug::UnlinkWithoutCheck) => Err(Refusal::Raced),
            _ => Ok((ino, self.inode(ino)?)),
        }
    }

    // --- changes that cannot be refused any more

    /// Add a name that is free, for an inode that exists. A subdirectory's `..` is a link of its parent.
    pub(super) fn add_name(&mut self, cause: &Cause, parent: Ino, name: &Name, ino: Ino) {
        let links = self.parent_links(ino);
        let mut cookie = 0;
        self.change(parent, |inode| {
            inode.nlink = inode.nlink.saturating_add(links);
            if let Node::Directory { entries, cookie_next, .. } = &mut inode.node {
                cookie = *cookie_next;
                *cookie_next = cookie_next.saturating_add(1);
                *entries = entries.saturating_add(1);
            }
            entries_changed(inode, cause);
        });
        self.put_dentry(parent, name, Dentry { ino, cookie });
    }

    /// Take a name away. What becomes of its inode is the caller's next step.
    pub(super) fn remove_name(&mut self, cause: &Cause, parent: Ino, name: &Name) {
        let Some(dentry) = self.dentry(parent, name) else { return };
        let links = self.parent_links(dentry.ino);
        self.take_dentry(parent, name);
        self.change(parent, |inode| {
            inode.nlink = inode.nlink.saturating_sub(links);
            if let Node::Directory { entries, .. } = &mut inode.node {
                *entries = entries.saturating_sub(1);
            }
            entries_changed(inode, cause);
        });
    }

    /// Let an existing name mean another inode of any kind.
    pub(super) fn repoint(&mut self, cause: &Cause, parent: Ino, name: &Name, ino: Ino) {
        let Some(old) = self.dentry(parent, name) else { return };
        let (gone, come) = (self.parent_links(old.ino), self.parent_links(ino));
        self.put_dentry(parent, name, Dentry { ino, cookie: old.cookie });
        self.change(parent, |inode| {
            inode.nlink = inode.nlink.saturating_sub(gone).saturating_add(come);
            entries_changed(inode, cause);
        });
    }

    /// One name of this inode has gone. A directory has only one.
    pub(super) fn drop_link(&mut self, cause: &Cause, ino: Ino) {
        self.amend(cause, ino, |inode| {
            inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
        });
        self.orphan_if_nameless(ino);
    }

    /// Take all names of an inode away, wherever they are.
    pub(super) fn remove_all_names(&mut self, cause: &Cause, ino: Ino) {
        let places: Vec<_> = self.places(ino).collect();
        for (parent, name) in &places {
            self.remove_name(cause, *parent, name);
            self.drop_link(cause, ino);
        }
    }

    /// Every directory and name under which an inode is found, in a fixed order.
    pub(super) fn places(&self, ino: Ino) -> impl Iterator<Item = (Ino, Name)> + '_ {
        let places = self.derived.places.range((ino, Ino(0), 0)..=(ino, Ino(u64::MAX), u64::MAX));
        places.filter_map(|(_, parent, cookie)| {
            self.derived.cookies.get(&(*parent, *cookie)).map(|name| (*parent, name.clone()))
        })
    }

    /// The directory in which a directory lies; the root's is itself; `None` for one without a name.
    pub(super) fn parent_of(&self, ino: Ino) -> Option<Ino> {
        if ino == Ino::ROOT {
            return Some(ino);
        }
        let place = self.derived.places.range((ino, Ino(0), 0)..).next()?;
        if place.0 == ino { Some(place.1) } else { None }
    }

    fn parent_links(&self, child: Ino) -> u32 {
        u32::from(self.inodes.get(&child).is_some_and(|inode| inode.is_directory()))
    }
}

/// The entry set of a directory is its content.
fn entries_changed(inode: &mut Inode, cause: &Cause) {
    inode.version = cause.index;
    inode.change = cause.index;
    inode.mtime = cause.wall;
    inode.ctime = cause.wall;
}

/// An inode as it is made in this directory, with one name (which the caller adds).
fn new_inode(cause: &Cause, directory: &Inode, node: Node, mode: u32) -> Inode {
    let inherits = directory.mode & SETGID != 0;
    let is_directory = matches!(node, Node::Directory { .. });
    let mode = match node {
        Node::Symlink { .. } => SYMLINK_MODE,
        Node::Directory { .. } if inherits => (mode & MODE_BITS) | SETGID,
        _ => mode & MODE_BITS,
    };
    Inode {
        node,
        mode,
        nlink: if is_directory { 2 } else { 1 },
        uid: cause.who.uid,
        gid: if inherits { directory.gid } else { cause.who.gid },
        atime: cause.wall,
        mtime: cause.wall,
        ctime: cause.wall,
        btime: cause.wall,
        version: cause.index,
        change: cause.index,
        maker: cause.session,
        xattr_bytes: 0,
        deadline: expiry::inherited_deadline(cause, directory),
        ephemeral: None,
        replace_if: None,
    }
}

fn node_of(node: &NewNode) -> Result<Node, Refusal> {
    Ok(match node {
        NewNode::File => Node::EMPTY_FILE,
        NewNode::Directory => Node::EMPTY_DIRECTORY,
        NewNode::Symlink { target } => Node::Symlink { target: sound_target(target)? },
        NewNode::Fifo => Node::Fifo,
        NewNode::Socket => Node::Socket,
        NewNode::CharDevice { rdev } => Node::CharDevice { rdev: *rdev },
        NewNode::BlockDevice { rdev } => Node::BlockDevice { rdev: *rdev },
    })
}

fn sound_target(target: &Bytes) -> Result<Bytes, Refusal> {
    let sound = !target.is_empty() && target.len() <= SYMLINK_BYTES_MAX && !target.contains(&0);
    // A copy of its own: the command's bytes may be a slice of a much larger buffer, which would stay in memory.
    if sound { Ok(Bytes::copy_from_slice(target)) } else { Err(Refusal::Invalid) }
}
