//! Extended attributes and symbolic links' targets.
//!
//! `user.*` and `trusted.*` are stored, `user.keelfs.*` (alias `keelfs.*`) are the virtual ones. `security.*` and
//! `system.*` (POSIX access lists) are refused with `EOPNOTSUPP`: to store what nobody enforces would be a lie. The
//! kernel asks for `security.capability` and the access lists often, so the refusal is given without asking anyone.

use super::call::{Call, bytes_of};
use super::errno::of_refusal;
use super::translate;
use crate::fs::{FileKind, Ino, Query, words};
use bytes::Bytes;
use fuser::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

const VIRTUAL_PREFIX: &[u8] = b"user.keelfs.";

/// May an attribute of this name exist here at all?
pub fn is_offered(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"user.") || name.starts_with(b"trusted.") || words::virtual_name(name).is_some()
}

impl Call {
    pub async fn set_xattr(&self, ino: Ino, name: &OsStr, value: Bytes, flags: i32) -> Result<(), Errno> {
        let mode = translate::xattr_mode(flags)?;
        let set = words::set_attribute(ino, name.as_bytes(), &value, mode);
        let (command, body) = set.map_err(|refusal| of_refusal(&refusal))?;
        self.may_change(ino, name).await?;
        self.submit_with(command, body).await.map(drop)
    }

    pub async fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        let command = words::remove_attribute(ino, name.as_bytes()).map_err(|refusal| of_refusal(&refusal))?;
        self.may_change(ino, name).await?;
        self.submit(command).await.map(drop)
    }

    /// The kernel keeps `user.*` off symbolic links, whose mode lets everybody write, and off sticky directories of others;
    /// the alias it does not know. So there the owner's word counts, or else anybody could let anybody's link expire, or
    /// give what others make in `/tmp` a time to live.
    async fn may_change(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        if name.as_bytes().starts_with(b"user.") || self.credentials.uid == 0 {
            return Ok(());
        }
        let attributes = self.attributes(ino).await?;
        let open_to_all = match attributes.kind {
            FileKind::Symlink => true,
            FileKind::Directory => attributes.mode & libc::S_ISVTX != 0,
            _ => false,
        };
        match open_to_all && attributes.uid != self.credentials.uid {
            true => Err(Errno::EPERM),
            false => Ok(()),
        }
    }

    pub async fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Bytes, Errno> {
        bytes_of(self.query(Query::Xattr { ino, name: full_name(name) }).await?)
    }

    /// Names, each followed by NUL. `trusted.*` is for root's eyes, as on other file systems.
    pub async fn xattr_names(&self, ino: Ino) -> Result<Bytes, Errno> {
        let names = bytes_of(self.query(Query::ListXattrs { ino }).await?)?;
        match self.credentials.uid {
            0 => Ok(names),
            _ => Ok(without_trusted(&names)),
        }
    }

    pub async fn read_link(&self, ino: Ino) -> Result<Bytes, Errno> {
        bytes_of(self.query(Query::ReadLink { ino }).await?)
    }
}

/// An alias of a virtual name is spelled out; every other name stays.
fn full_name(name: &OsStr) -> Bytes {
    match words::virtual_name(name.as_bytes()) {
        Some(word) => Bytes::from([VIRTUAL_PREFIX, word].concat()),
        None => Bytes::copy_from_slice(name.as_bytes()),
    }
}

fn without_trusted(names: &[u8]) -> Bytes {
    let kept = names.split_inclusive(|&byte| byte == 0).filter(|name| !name.starts_with(b"trusted."));
    Bytes::from(kept.collect::<Vec<_>>().concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_names_are_hidden_from_users() {
        assert_eq!(without_trusted(b"user.a\0trusted.b\0user.trusted.c\0").as_ref(), b"user.a\0user.trusted.c\0");
        assert_eq!(without_trusted(b"").as_ref(), b"");
    }
}
