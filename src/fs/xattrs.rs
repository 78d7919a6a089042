//! Extended attributes that are stored. Those of keelfs's own prefix are computed (`virtuals`) and never stored here.

use super::*;
use crate::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX};
use bytes::Bytes;
use state::Cause;

impl State {
    pub(super) fn set_xattr(
        &mut self,
        cause: &Cause,
        ino: Ino,
        name: &Bytes,
        value: &Bytes,
        mode: XattrMode,
    ) -> Outcome {
        let total = self.inode(ino)?.xattr_bytes;
        sound_name(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Refusal::XattrTooLarge);
        }
        let old = self.xattrs.get(&(ino, name.clone()));
        match (mode, old) {
            (XattrMode::Create, Some(_)) => return Err(Refusal::XattrExists),
            (XattrMode::Replace, None) => return Err(Refusal::NoSuchXattr),
            _ => {}
        }
        let freed = old.map_or(0, |old| item_bytes(name, old));
        let total = total.saturating_sub(freed).saturating_add(item_bytes(name, value));
        if total as usize > XATTRS_BYTES_MAX {
            return Err(Refusal::XattrsFull);
        }
        self.xattrs.insert((ino, Bytes::copy_from_slice(name)), Bytes::copy_from_slice(value));
        self.amend(cause, ino, |inode| inode.xattr_bytes = total);
        Ok(Reply::Done)
    }

    pub(super) fn remove_xattr(&mut self, cause: &Cause, ino: Ino, name: &Bytes) -> Outcome {
        self.inode(ino)?;
        sound_name(name)?;
        let old = self.xattrs.remove(&(ino, name.clone())).ok_or(Refusal::NoSuchXattr)?;
        self.amend(cause, ino, |inode| {
            inode.xattr_bytes = inode.xattr_bytes.saturating_sub(item_bytes(name, &old));
        });
        Ok(Reply::Done)
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
pub(super) fn item_bytes(name: &Bytes, value: &Bytes) -> u32 {
    u32::try_from(name.len().saturating_add(value.len())).unwrap_or(u32::MAX)
}

fn sound_name(name: &Bytes) -> Result<(), Refusal> {
    let sound = !name.is_empty() && name.len() <= XATTR_NAME_BYTES_MAX && !name.contains(&0);
    if sound && words::virtual_name(name).is_none() { Ok(()) } else { Err(Refusal::Invalid) }
}
