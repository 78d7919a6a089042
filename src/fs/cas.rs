//! Whole-file replacement under a condition on the version: `user.keelfs.cas`, the CLI's `write` and `cas`, cs733.
//!
//! Judging and replacing are one command, so of any number of writers that saw one version exactly one succeeds.

use super::*;
use inode::{Inode, Node};
use state::Cause;

impl State {
    /// By inode. Expecting 0 means that it must not exist, and it does. Refused for what has no name any more: of two that
    /// expect one version, one may have taken the name away by a conditional rename, and only one may win.
    pub(super) fn replace(
        &mut self,
        cause: &Cause,
        ino: Ino,
        expected: LogIndex,
        expiry: ExpiryChange,
        length: u32,
    ) -> Outcome {
        self.file(ino)?;
        version_holds(self.named(ino)?, Expected::Version(expected))?;
        self.rewrite(cause, ino, length);
        self.move_deadline(cause, ino, expiry);
        self.shown(ino)
    }

    /// By name; makes the file if it may. `form`: the mode of a file that is made, and the length of the content.
    pub(super) fn put(
        &mut self,
        cause: &Cause,
        (parent, name): (Ino, &Name),
        expected: Expected,
        expiry: ExpiryChange,
        (mode, length): (u32, u32),
    ) -> Outcome {
        let directory = self.living_directory(parent)?.clone();
        let ino = match (self.dentry(parent, name), expected) {
            (Some(dentry), _) => {
                version_holds(self.file(dentry.ino)?, expected)?;
                self.move_deadline(cause, dentry.ino, expiry);
                dentry.ino
            }
            (None, Expected::Version(version)) if version != LogIndex(0) => return Err(Refusal::NoSuchName),
            (None, _) => {
                let ino = self.add_new(cause, (parent, &directory), name, Node::EMPTY_FILE, (mode, 0));
                self.give_deadline(cause, ino, expiry);
                ino
            }
        };
        self.rewrite(cause, ino, length);
        self.shown(ino)
    }
}

fn version_holds(inode: &Inode, expected: Expected) -> Result<(), Refusal> {
    match expected {
        Expected::Anything => Ok(()),
        Expected::Version(LogIndex(0)) => Err(Refusal::NameTaken),
        Expected::Version(version) if version == inode.version => Ok(()),
        Expected::Version(_) => Err(Refusal::VersionMismatch { current: inode.version }),
    }
}
