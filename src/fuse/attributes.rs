//! Extended attributes and symbolic links' targets.
//!
//! `user.*`, `trusted.*` and `security.capability` are stored, `user.keelfs.*` (alias `keelfs.*`) are the virtual ones. Other
//! names of `security.*` and `system.*` are refused with `EOPNOTSUPP`: to store what nobody enforces would be a lie.
//!
//! `system.posix_acl_access` and `_default` are access control lists. The kernel checks who may set them and that they are
//! valid, asks for them anew at each access check of another user than the owner, and judges by them. Cost: that question
//! goes to the cluster each time. A descriptor is the exception: the kernel keeps what `fgetxattr(2)` found until it meets
//! the inode again (`fstat`, or a path through it).

use super::call::{Call, bytes_of};
use super::caller;
use super::errno::of_refusal;
use super::translate;
use crate::fs::{AclKind, Attributes, CAPABILITIES, Command, FileKind, Ino, Query, words};
use bytes::Bytes;
use fuser::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

const VIRTUAL_PREFIX: &[u8] = b"user.keelfs.";

/// May an attribute of this name, which is no access list, exist here at all?
pub fn is_offered(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let stored = name.starts_with(b"user.") || name.starts_with(b"trusted.") || name == CAPABILITIES;
    stored || words::virtual_name(name).is_some()
}

impl Call {
    pub async fn set_xattr(&self, ino: Ino, name: &OsStr, value: Bytes, flags: i32) -> Result<(), Errno> {
        if let Some(kind) = AclKind::named(name.as_bytes()) {
            return self.set_acl(ino, kind, value).await;
        }
        let mode = translate::xattr_mode(flags)?;
        let set = words::set_attribute(ino, name.as_bytes(), &value, mode);
        let (command, body) = set.map_err(|refusal| of_refusal(&refusal))?;
        self.may_change(ino, name).await?;
        self.submit_with(command, body).await.map(drop)
    }

    pub async fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        if let Some(kind) = AclKind::named(name.as_bytes()) {
            self.must_own(ino).await?;
            return self.submit(Command::SetAcl { ino, kind, acl: None, keep_setgid: true }).await.map(drop);
        }
        let command = words::remove_attribute(ino, name.as_bytes()).map_err(|refusal| of_refusal(&refusal))?;
        self.may_change(ino, name).await?;
        self.submit(command).await.map(drop)
    }

    /// An access list opens a file to others in the owning group's name, so it costs the setgid bit unless the caller may
    /// act for that group. (The kernel's word on that comes with SETXATTR_EXT only.)
    async fn set_acl(&self, ino: Ino, kind: AclKind, value: Bytes) -> Result<(), Errno> {
        self.must_own(ino).await?;
        let keep_setgid = match kind {
            AclKind::Access => {
                let Attributes { mode, gid, .. } = self.attributes(ino).await?;
                mode & libc::S_ISGID != 0 && caller::may_keep_setgid(self.tid, self.credentials, gid)
            }
            AclKind::Default => true,
        };
        self.submit(Command::SetAcl { ino, kind, acl: Some(value), keep_setgid }).await.map(drop)
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
