//! Access control lists: who may what beyond owner, group and others. acl(5); POSIX.1e draft 17, section 23.
//!
//! The kernel of each mount asks for a list and judges access by it; here lists are kept, inherited, and held in step with
//! the mode. A list lies among the inode's attributes under the name that Linux gives it, in the kernel's form
//! (`linux/posix_acl_xattr.h`), all numbers little-endian:
//!
//! ```text
//! list  = version u32 = 2, entry*
//! entry = tag u16, permissions u16 (4 read, 2 write, 1 execute), id u32 (2³² − 1 where the tag needs none)
//! tags  = 1 owner, 2 named user, 4 owning group, 8 named group, 16 mask, 32 others; in this order
//! ```
//!
//! The mask bounds what named users and all groups get, and the mode shows it in the place of the owning group's bits. An
//! access list without mask and names says what the mode says, and is not kept.

use super::inode::{Inode, Node, SETGID};
use super::*;
use crate::limits::ACL_BYTES_MAX;
use bytes::Bytes;
use state::Cause;

const VERSION: u32 = 2;
const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const NAMED_GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHERS: u16 = 32;
const NO_ID: u32 = u32::MAX;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// The bits of a mode that a list may hold, of all three classes.
pub(super) const PERMISSIONS: u32 = 0o777;
/// Those of one class.
const CLASS: u16 = 0o7;

impl AclKind {
    /// By the attribute's name; `None` for every other attribute.
    pub fn named(name: &[u8]) -> Option<AclKind> {
        [AclKind::Access, AclKind::Default].into_iter().find(|kind| kind.name() == name)
    }

    /// The attribute under which the kernel knows it.
    pub fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => b"system.posix_acl_access",
            AclKind::Default => b"system.posix_acl_default",
        }
    }
}

/// A valid list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl {
    owner: u16,
    users: Vec<Named>,
    group: u16,
    groups: Vec<Named>,
    /// There is one wherever somebody is named.
    mask: Option<u16>,
    others: u16,
}

/// A user or a group by number, and what it may. The order is the giver's; the kernel takes the first that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    id: u32,
    permissions: u16,
}

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

impl Acl {
    /// Refuses what acl(5) calls invalid (`Invalid`), and what no kernel would ask for again (`XattrTooLarge`).
    pub(super) fn parse(bytes: &[u8]) -> Result<Acl, Refusal> {
        if bytes.len() > ACL_BYTES_MAX {
            return Err(Refusal::XattrTooLarge);
        }
        Entries::of(bytes).and_then(Entries::list).ok_or(Refusal::Invalid)
    }

    pub(super) fn bytes(&self) -> Bytes {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        let mut put = |tag: u16, permissions: u16, id: u32| {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        };
        put(OWNER, self.owner, NO_ID);
        self.users.iter().for_each(|user| put(USER, user.permissions, user.id));
        put(GROUP, self.group, NO_ID);
        self.groups.iter().for_each(|group| put(NAMED_GROUP, group.permissions, group.id));
        self.mask.iter().for_each(|mask| put(MASK, *mask, NO_ID));
        put(OTHERS, self.others, NO_ID);
        bytes.into()
    }

    /// The permission bits of the mode that goes with this list.
    pub(super) fn mode(&self) -> u32 {
        let group_class = self.mask.unwrap_or(self.group);
        u32::from(self.owner) << 6 | u32::from(group_class) << 3 | u32::from(self.others)
    }

    /// Says no more than a mode can.
    pub(super) fn is_mode(&self) -> bool {
        self.mask.is_none()
    }

    /// After a `chmod`: the group's bits are the mask's, where there is one.
    pub(super) fn with_mode(mut self, mode: u32) -> Acl {
        let class = |shift: u32| (mode >> shift) as u16 & CLASS;
        self.owner = class(6);
        match &mut self.mask {
            Some(mask) => *mask = class(3),
            None => self.group = class(3),
        }
        self.others = class(0);
        self
    }
}

/// The entries of a list that are still to be read.
struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    fn of(bytes: &'a [u8]) -> Option<Entries<'a>> {
        let (version, entries) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let whole = entries.len().checked_rem(ENTRY_BYTES) == Some(0);
        (whole && u32::from_le_bytes(*version) == VERSION).then_some(Entries(entries))
    }

    fn list(mut self) -> Option<Acl> {
        let owner = self.take(OWNER)?.permissions;
        let users = self.take_named(USER)?;
        let group = self.take(GROUP)?.permissions;
        let groups = self.take_named(NAMED_GROUP)?;
        let mask = self.take(MASK).map(|entry| entry.permissions);
        let others = self.take(OTHERS)?.permissions;
        let acl = Acl { owner, users, group, groups, mask, others };
        let masked = acl.mask.is_some() || (acl.users.is_empty() && acl.groups.is_empty());
        let all = [acl.owner, acl.group, acl.mask.unwrap_or(0), acl.others];
        let named = acl.users.iter().chain(&acl.groups).map(|named| named.permissions);
        let sound = all.into_iter().chain(named).all(|permissions| permissions & !CLASS == 0);
        (masked && sound && self.0.is_empty()).then_some(acl)
    }

    /// The next entry, if it has this tag.
    fn take(&mut self, tag: u16) -> Option<Entry> {
        let ([t0, t1, p0, p1, i0, i1, i2, i3], rest) = self.0.split_first_chunk::<ENTRY_BYTES>()?;
        let entry = Entry {
            tag: u16::from_le_bytes([*t0, *t1]),
            permissions: u16::from_le_bytes([*p0, *p1]),
            id: u32::from_le_bytes([*i0, *i1, *i2, *i3]),
        };
        if entry.tag != tag {
            return None;
        }
        self.0 = rest;
        Some(entry)
    }

    /// All that follow with this tag; `None` if one names nobody.
    fn take_named(&mut self, tag: u16) -> Option<Vec<Named>> {
        let mut named = Vec::new();
        while let Some(Entry { permissions, id, .. }) = self.take(tag) {
            if id == NO_ID {
                return None;
            }
            named.push(Named { id, permissions });
        }
        Some(named)
    }
}

/// What a new inode has of permissions: the bits of its mode, and its lists.
pub(super) struct Inherited {
    pub(super) mode: u32,
    access: Option<Acl>,
    default: Option<Acl>,
}

impl State {
    /// An inode's list. Those that are stored are valid (I16).
    pub(super) fn acl(&self, ino: Ino, kind: AclKind) -> Option<Acl> {
        let stored = self.xattrs.get(&(ino, Bytes::from_static(kind.name())))?;
        Acl::parse(stored).ok()
    }

    /// What is made in a directory with a default list gets that list, bounded by the mode that was asked for; the umask
    /// counts only where there is none. A symlink has permissions of its own kind and gets neither.
    pub(super) fn inherit(&self, directory: Ino, node: &Node, mode: u32, umask: u32) -> Inherited {
        let plain = |mode| Inherited { mode, access: None, default: None };
        if matches!(node, Node::Symlink { .. }) {
            return plain(mode);
        }
        let Some(default) = self.acl(directory, AclKind::Default) else { return plain(mode & !(umask & PERMISSIONS)) };
        let mode = mode & (default.mode() | !PERMISSIONS);
        let access = Some(default.clone().with_mode(mode)).filter(|access| !access.is_mode());
        Inherited { mode, access, default: matches!(node, Node::Directory { .. }).then_some(default) }
    }

    /// Give a new inode its lists.
    pub(super) fn bequeath(&mut self, ino: Ino, inherited: &Inherited) {
        let Inherited { access, default, .. } = inherited;
        for (kind, acl) in [(AclKind::Access, access), (AclKind::Default, default)] {
            if let Some(acl) = acl {
                self.put_xattr(ino, kind.name(), Some(&acl.bytes()));
            }
        }
    }

    /// The mode was set: the access list follows.
    pub(super) fn follow_mode(&mut self, ino: Ino) {
        let mode = self.inodes.get(&ino).map(|inode| inode.mode);
        if let (Some(mode), Some(acl)) = (mode, self.acl(ino, AclKind::Access)) {
            self.put_xattr(ino, AclKind::Access.name(), Some(&acl.with_mode(mode).bytes()));
        }
    }

    /// `None` takes the list away, also one that is not there. `keep_setgid`: the caller may give others the owning
    /// group's rights, so an access list leaves the setgid bit.
    pub(super) fn set_acl(
        &mut self,
        cause: &Cause,
        ino: Ino,
        kind: AclKind,
        value: Option<&Bytes>,
        keep_setgid: bool,
    ) -> Outcome {
        let inode = self.inode(ino)?;
        if matches!(inode.node, Node::Symlink { .. }) {
            return Err(Refusal::Unsupported);
        }
        let acl = value.map(|value| Acl::parse(value)).transpose()?;
        if acl.is_some() && kind == AclKind::Default && !inode.is_directory() {
            return Err(Refusal::NotDirectory);
        }
        let stored = acl.as_ref().filter(|acl| kind == AclKind::Default || !acl.is_mode()).map(Acl::bytes);
        self.room_for(ino, kind.name(), stored.as_deref())?;
        if acl.is_none() && self.acl(ino, kind).is_none() {
            return Ok(Reply::Done);
        }
        self.put_xattr(ino, kind.name(), stored.as_deref());
        self.amend(cause, ino, |inode| {
            if let (AclKind::Access, Some(acl)) = (kind, &acl) {
                take_mode(inode, acl, keep_setgid);
            }
        });
        Ok(Reply::Done)
    }
}

/// An access list was set: the mode follows.
fn take_mode(inode: &mut Inode, acl: &Acl, keep_setgid: bool) {
    inode.mode = (inode.mode & !PERMISSIONS) | acl.mode();
    if !keep_setgid {
        inode.mode &= !SETGID;
    }
}
