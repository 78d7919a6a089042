//! `chmod`, `chown`, `truncate`, `utimensat` as one command, since the kernel sends them as one.

use super::contents::sound_end;
use super::*;
use inode::{Inode, MODE_BITS};
use state::Cause;

const NANOS_PER_SECOND: u32 = 1_000_000_000;

impl State {
    pub(super) fn set_attributes(&mut self, cause: &Cause, ino: Ino, changes: &AttributeChanges) -> Outcome {
        self.inode(ino)?;
        if !is_sound(changes.atime) || !is_sound(changes.mtime) {
            return Err(Refusal::Invalid);
        }
        if let Some(size) = changes.size {
            self.file(ino)?;
            sound_end(size, 0)?;
            self.resize(cause, ino, size);
        }
        if *changes != AttributeChanges::default() {
            self.amend(cause, ino, |inode| amend_attributes(inode, cause, changes));
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.drop_capabilities(ino);
        }
        if changes.mode.is_some() {
            self.follow_mode(ino);
        }
        self.shown(ino)
    }
}

/// A new owner costs the file its setuid and setgid bits, whoever gives it (as on Linux, also root), unless the same
/// command sets the mode.
fn amend_attributes(inode: &mut Inode, cause: &Cause, changes: &AttributeChanges) {
    if (changes.uid.is_some() || changes.gid.is_some()) && !inode.is_directory() {
        inode.drop_privileges(cause.who);
    }
    inode.mode = changes.mode.map_or(inode.mode, |mode| mode & MODE_BITS);
    inode.uid = changes.uid.unwrap_or(inode.uid);
    inode.gid = changes.gid.unwrap_or(inode.gid);
    inode.atime = moved(inode.atime, changes.atime, cause);
    inode.mtime = moved(inode.mtime, changes.mtime, cause);
}

fn moved(time: Timestamp, change: Option<TimeChange>, cause: &Cause) -> Timestamp {
    match change {
        None => time,
        Some(TimeChange::Now) => cause.wall,
        Some(TimeChange::To(time)) => time,
    }
}

fn is_sound(change: Option<TimeChange>) -> bool {
    !matches!(change, Some(TimeChange::To(time)) if time.nanos >= NANOS_PER_SECOND)
}
