//! Extended attributes that are stored. Those of keelfs's own prefix are computed (`virtuals`) and never stored here; the
//! two that are access control lists are stored here, but set by a command of their own (`acl`).

use super::*;
use crate::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX};
use bytes::Bytes;
use state::Cause;

/// The attribute that holds a program's file capabilities; a kernel judges by it when the program is started.
pub const CAPABILITIES: &[u8] = b"security.capability";

impl State {
    pub(super) fn set_xattr(
        &mut self,
        cause: &Cause,
        ino: Ino,
        name: &Bytes,
        value: &Bytes,
        mode: XattrMode,
    ) -> Outcome {
        self.inode(ino)?;
        sound_name(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Refusal::XattrTooLarge);
        }
        match (mode, self.xattrs.contains(&(ino, name.clone()))) {
            (XattrMode::Create, true) => return Err(Refusal::XattrExists),
            (XattrMode::Replace, false) => return Err(Refusal::NoSuchXattr),
            _ => {}
        }
        self.room_for(ino, name, Some(value))?;
        self.put_xattr(ino, name, Some(value));
        self.amend(cause, ino, |_| {});
        Ok(Reply::Done)
    }

    pub(super) fn remove_xattr(&mut self, cause: &Cause, ino: Ino, name: &Bytes) -> Outcome {
        self.inode(ino)?;
        sound_name(name)?;
        if !self.xattrs.contains(&(ino, name.clone())) {
            return Err(Refusal::NoSuchXattr);
        }
        self.put_xattr(ino, name, None);
        self.amend(cause, ino, |_| {});
        Ok(Reply::Done)
    }

    /// Could an attribute have this value, within the bound of its inode?
    pub(super) fn room_for(&self, ino: Ino, name: &[u8], value: Option<&[u8]>) -> Result<(), Refusal> {
        let total = self.xattr_bytes_with(ino, name, value);
        if total as usize > XATTRS_BYTES_MAX { Err(Refusal::XattrsFull) } else { Ok(()) }
    }

    /// Give an attribute this value, for which there is room; with `None` take it away. The inode counts the bytes; that
    /// it has changed is for the caller to say.
    pub(super) fn put_xattr(&mut self, ino: Ino, name: &[u8], value: Option<&[u8]>) {
        let total = self.xattr_bytes_with(ino, name, value);
        let key = (ino, Bytes::copy_from_slice(name));
        match value {
            Some(value) => drop(self.xattrs.insert(key, Bytes::copy_from_slice(value))),
            None => drop(self.xattrs.remove(&key)),
        }
        self.change(ino, |inode| inode.xattr_bytes = total);
    }

    /// What all attributes of an inode come to once this one has this value.
    fn xattr_bytes_with(&self, ino: Ino, name: &[u8], value: Option<&[u8]>) -> u32 {
        let now = self.inodes.get(&ino).map_or(0, |inode| inode.xattr_bytes);
        let freed = self.xattrs.get(&(ino, Bytes::copy_from_slice(name))).map_or(0, |old| item_bytes(name, old));
        now.saturating_sub(freed).saturating_add(value.map_or(0, |value| item_bytes(name, value)))
    }

    /// A program that is changed or given away loses its file capabilities, whoever does it (capabilities(7)).
    pub(super) fn drop_capabilities(&mut self, ino: Ino) {
        if self.xattrs.contains(&(ino, Bytes::from_static(CAPABILITIES))) {
            self.put_xattr(ino, CAPABILITIES, None);
        }
    }

    /// An inode's stored attributes, by name.
    pub(super) fn xattrs_of(&self, ino: Ino) -> impl Iterator<Item = (&Bytes, &Bytes)> + '_ {
        let next = Ino(ino.0.saturating_add(1));
        self.xattrs.range((ino, Bytes::new())..(next, Bytes::new())).map(|((_, name), value)| (name, value))
    }

    pub(super) fn forget_xattrs(&mut self, ino: Ino) {
        let names: Vec<_> = self.xattrs_of(ino).map(|(name, _)| name.clone()).collect();
        names.into_iter().for_each(|name| drop(self.xattrs.remove(&(ino, name))));
    }
}

/// What an attribute counts against the bound of its inode.
pub(super) fn item_bytes(name: &[u8], value: &[u8]) -> u32 {
    u32::try_from(name.len().saturating_add(value.len())).unwrap_or(u32::MAX)
}

fn sound_name(name: &Bytes) -> Result<(), Refusal> {
    let sound = !name.is_empty() && name.len() <= XATTR_NAME_BYTES_MAX && !name.contains(&0);
    let plain = words::virtual_name(name).is_none() && AclKind::named(name).is_none();
    if sound && plain { Ok(()) } else { Err(Refusal::Invalid) }
}
