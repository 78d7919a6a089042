//! Names: looking up, making, removing, renaming, linking.
//!
//! A command that removes or replaces a name carries the inode that was seen there, so that a retry inside keelfs can
//! never remove a newer file of that name. The nearest state, however old, is good enough to see it: if it was wrong,
//! the cluster answers `Raced`, and only then a linearizable look is paid for. A name that the nearest state does not
//! know is looked up linearizably at once: it may have just been made on another node.

use super::call::{Call, attributes_of, changed_attributes};
use super::caller;
use super::errno::{Kind, of_failure};
use super::handles::Opened;
use super::translate;
use crate::fs::{
    AttributeChanges, Attributes, Command, Credentials, FileKind, Ino, Name, NewNode, Place, Query, Refusal, RenameMode,
};
use crate::volume::{Failure, Freshness};
use fuser::Errno;
use std::ffi::OsStr;

/// What kind of name is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    File,
    Directory,
}

/// How a name is to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renaming {
    pub mode: RenameMode,
    /// Nothing may be replaced.
    pub only_if_free: bool,
}

impl Call {
    /// `.` and `..` come from NFS export and `open_by_handle_at(2)` only; paths are walked by the kernel.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attributes, Errno> {
        let query = match name.as_encoded_bytes() {
            b"." => return self.by_number(parent).await,
            b".." => Query::Parent { ino: parent },
            _ => Query::Lookup { parent, name: translate::name(name)? },
        };
        attributes_of(self.query(query).await?)
    }

    /// An inode that a file handle names. Without a name it is only there for who has it open.
    async fn by_number(&self, ino: Ino) -> Result<Attributes, Errno> {
        let found = self.attributes(ino).await?;
        let is_gone = found.nlink == 0 && self.mounted.handles.count(ino) == 0;
        if is_gone { Err(Errno::ESTALE) } else { Ok(found) }
    }

    /// `permissions`: mode and umask.
    pub async fn make(
        &self,
        parent: Ino,
        name: &OsStr,
        node: NewNode,
        permissions: (u32, u32),
    ) -> Result<Attributes, Errno> {
        let name = translate::name(name)?;
        let (mode, umask) = (translate::permissions(permissions.0), permissions.1);
        changed_attributes(self.submit(Command::Make { parent, name, node, mode, umask }).await?)
    }

    pub async fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attributes, Errno> {
        let name = translate::name(name)?;
        changed_attributes(self.submit(Command::Link { ino, parent, name }).await?)
    }

    pub async fn remove(&self, parent: Ino, name: &OsStr, removal: Removal) -> Result<(), Errno> {
        let place = Place { parent, name: translate::name(name)? };
        let mut seen = self.glance(&place).await?;
        loop {
            self.may_remove(parent, &seen).await?;
            match self.try_submit(remove_command(&place, Some(seen.ino), removal)).await {
                Err(Failure::Refused(Refusal::Raced)) if !self.is_late() => seen = self.sight(&place).await?,
                outcome => return outcome.map(drop).map_err(|failure| of_failure(&failure, Kind::Change)),
            }
        }
    }

    pub async fn rename(&self, from: Place, to: Place, how: Renaming) -> Result<(), Errno> {
        let mut moved = self.glance(&from).await?;
        let mut replaced = self.replaced(&to, how, Look::Near).await?;
        loop {
            self.may_remove(from.parent, &moved).await?;
            if let Some(Some(replaced)) = &replaced {
                self.may_remove(to.parent, replaced).await?;
            }
            let seen = (Some(moved.ino), replaced.map(|there| there.map(|found| found.ino)));
            let places = (from.clone(), to.clone());
            let mode = how.mode;
            let command = Command::Rename { from: places.0, to: places.1, mode, moved: seen.0, replaced: seen.1 };
            match self.try_submit(command).await {
                Err(Failure::Refused(Refusal::Raced)) if !self.is_late() => {
                    moved = self.sight(&from).await?;
                    replaced = self.replaced(&to, how, Look::True).await?;
                }
                outcome => return outcome.map(drop).map_err(|failure| of_failure(&failure, Kind::Change)),
            }
        }
    }

    /// Make a file and open it; without `O_EXCL` an existing one will do. `permissions`: mode and umask.
    pub async fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        permissions: (u32, u32),
        flags: i32,
    ) -> Result<(Attributes, Opened), Errno> {
        let place = Place { parent, name: translate::name(name)? };
        let (mode, umask) = (translate::permissions(permissions.0), permissions.1);
        let make = Command::Make { parent, name: place.name.clone(), node: NewNode::File, mode, umask };
        match self.try_submit(make).await {
            Err(Failure::Refused(Refusal::NameTaken)) if flags & libc::O_EXCL == 0 => {
                self.open_existing(&place, flags).await
            }
            outcome => {
                let reply = outcome.map_err(|failure| of_failure(&failure, Kind::Change))?;
                let made = changed_attributes(reply)?;
                // Another node may have removed it already; ESTALE makes the kernel create anew.
                Ok((made, self.hold(made.ino).await?))
            }
        }
    }

    /// The name was free when the kernel looked and is taken now. The kernel checks no permission on what `create`
    /// returns, so unless the caller plainly may open it, `ESTALE` sends the kernel to look and check again.
    async fn open_existing(&self, place: &Place, flags: i32) -> Result<(Attributes, Opened), Errno> {
        let query = Query::Lookup { parent: place.parent, name: place.name.clone() };
        let found = self.query(query).await.and_then(attributes_of).map_err(|_| Errno::ESTALE)?;
        // Another's file also for the sake of fs.protected_regular, and of its access list.
        let is_own = found.kind == FileKind::File && found.uid == self.credentials.uid;
        if !is_own || !may_plainly_open(&found, self.credentials, flags) {
            return Err(Errno::ESTALE);
        }
        let opened = self.open(found.ino, flags).await?;
        let attributes = match flags & libc::O_TRUNC {
            0 => found,
            _ => self.attributes(found.ino).await?,
        };
        Ok((attributes, opened))
    }

    /// Count an open, then look whether there is something to open.
    pub async fn open(&self, ino: Ino, flags: i32) -> Result<Opened, Errno> {
        let opened = self.hold(ino).await?;
        // A file that has lost its name since the kernel looked it up is opened all the same: the kernel walks a path only
        // twice, and who opens a file that others keep replacing would meet ESTALE.
        match flags & libc::O_TRUNC {
            0 => self.attributes(ino).await.map(drop)?,
            _ => {
                let changes = AttributeChanges { size: Some(0), ..AttributeChanges::default() };
                self.set_attributes(ino, None, changes).await.map(drop)?
            }
        }
        Ok(opened)
    }

    async fn hold(&self, ino: Ino) -> Result<Opened, Errno> {
        // A mount that may read what is stale opens files without a majority too; then nobody is asked about orphans.
        if self.mounted.freshness == Freshness::Linearizable {
            let session = self.volume().session(self.deadline).await;
            session.map_err(|failure| of_failure(&failure, Kind::Question))?;
        }
        self.mounted.handles.open(ino).ok_or(Errno::ESTALE)
    }

    /// In a sticky directory the kernel has judged by the file that it saw at the name. If there is one of somebody else
    /// now, that is another file: `ESTALE` sends the kernel to look and judge again. It does so once, so the nearest state
    /// may only allow; what it would refuse is looked at as it truly is.
    async fn may_remove(&self, directory: Ino, file: &Attributes) -> Result<(), Errno> {
        let caller = self.credentials.uid;
        if caller == 0 || caller == file.uid {
            return Ok(());
        }
        let near = self.volume().peek(Query::Attributes { ino: directory }, self.deadline).await;
        let near = near.map_err(|failure| of_failure(&failure, Kind::Change)).and_then(attributes_of)?;
        if !is_restricted(&near, file, caller) || caller::acts_as_owner(self.tid) {
            return Ok(());
        }
        let (directory, file) = (self.truly(directory).await?, self.truly(file.ino).await?);
        if is_restricted(&directory, &file, caller) { Err(Errno::ESTALE) } else { Ok(()) }
    }

    async fn truly(&self, ino: Ino) -> Result<Attributes, Errno> {
        let answer = self.try_query(Query::Attributes { ino }).await;
        answer.map_err(|failure| of_failure(&failure, Kind::Change)).and_then(attributes_of)
    }

    /// What is at a name as the nearest state has it, or as it truly is if that knows nothing.
    async fn glance(&self, place: &Place) -> Result<Attributes, Errno> {
        match self.near(place).await {
            Some(found) => Ok(found),
            None => self.sight(place).await,
        }
    }

    async fn near(&self, place: &Place) -> Option<Attributes> {
        let query = Query::Lookup { parent: place.parent, name: place.name.clone() };
        let answer = self.volume().peek(query, self.deadline).await.ok()?;
        attributes_of(answer).ok()
    }

    /// What is at a name now. A change was asked for, so a missing majority is a change's.
    async fn sight(&self, place: &Place) -> Result<Attributes, Errno> {
        let query = Query::Lookup { parent: place.parent, name: place.name.clone() };
        let answer = self.try_query(query).await.map_err(|failure| of_failure(&failure, Kind::Change))?;
        attributes_of(answer)
    }

    /// What a rename expects at its target; `NoReplace` expects nothing, and apply says so itself.
    async fn replaced(&self, to: &Place, how: Renaming, look: Look) -> Result<Option<Option<Attributes>>, Errno> {
        let there = match (how.mode, look) {
            (RenameMode::NoReplace, _) => return Ok(None),
            (RenameMode::Exchange, Look::Near) => Some(self.glance(to).await?),
            (RenameMode::Exchange, Look::True) => Some(self.sight(to).await?),
            // To expect nothing is safe; if that was wrong, it is looked at truly.
            (RenameMode::Replace | RenameMode::Whiteout, Look::Near) if how.only_if_free => None,
            (RenameMode::Replace | RenameMode::Whiteout, Look::Near) => self.near(to).await,
            (RenameMode::Replace | RenameMode::Whiteout, Look::True) => match self.sight(to).await {
                Ok(_) if how.only_if_free => return Err(Errno::EEXIST),
                Ok(found) => Some(found),
                Err(Errno::ENOENT) => None,
                Err(other) => return Err(other),
            },
        };
        Ok(Some(there))
    }
}

/// How well a name is looked at.
#[derive(Clone, Copy)]
enum Look {
    Near,
    True,
}

/// Does the directory keep this caller, who is not privileged, from removing this file?
fn is_restricted(directory: &Attributes, file: &Attributes, caller: u32) -> bool {
    directory.mode & libc::S_ISVTX != 0 && ![directory.uid, file.uid].contains(&caller)
}

fn remove_command(place: &Place, expected: Option<Ino>, removal: Removal) -> Command {
    let Place { parent, name } = place.clone();
    match removal {
        Removal::File => Command::Unlink { parent, name, expected },
        Removal::Directory => Command::RemoveDirectory { parent, name, expected },
    }
}

pub fn place(parent: Ino, name: &OsStr) -> Result<Place, Errno> {
    let name: Name = translate::name(name)?;
    Ok(Place { parent, name })
}

/// Whether the mode bits allow the open whatever supplementary groups the caller is in (they are not known here).
fn may_plainly_open(attributes: &Attributes, caller: Credentials, flags: i32) -> bool {
    let wanted = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => 0o4,
        libc::O_WRONLY => 0o2,
        _ => 0o6,
    };
    let wanted = wanted | if flags & libc::O_TRUNC != 0 { 0o2 } else { 0 };
    let granted = |shift: u32| (attributes.mode >> shift) & wanted == wanted;
    match () {
        () if caller.uid == attributes.uid => granted(6),
        () if caller.gid == attributes.gid => granted(3),
        () => granted(3) && granted(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{LogIndex, Timestamp};

    fn file(mode: u32) -> Attributes {
        let time = Timestamp::default();
        Attributes {
            ino: Ino(2),
            kind: FileKind::File,
            mode,
            nlink: 1,
            uid: 10,
            gid: 20,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            version: LogIndex(1),
            change: LogIndex(1),
        }
    }

    /// A race must never open what the kernel would have refused.
    #[test]
    fn only_a_plain_permission_counts() {
        let (owner, member, other) =
            (Credentials { uid: 10, gid: 99 }, Credentials { uid: 11, gid: 20 }, Credentials { uid: 11, gid: 21 });
        assert!(may_plainly_open(&file(0o600), owner, libc::O_RDWR));
        assert!(!may_plainly_open(&file(0o066), owner, libc::O_RDONLY));
        assert!(may_plainly_open(&file(0o640), member, libc::O_RDONLY));
        assert!(!may_plainly_open(&file(0o640), member, libc::O_WRONLY));
        assert!(!may_plainly_open(&file(0o606), other, libc::O_RDONLY), "may be in the group that is denied");
        assert!(may_plainly_open(&file(0o644), other, libc::O_RDONLY));
        let root = Credentials { uid: 0, gid: 0 };
        assert!(!may_plainly_open(&file(0o600), root, libc::O_RDONLY), "may be a root without the capability");
    }
}
