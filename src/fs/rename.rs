//! `renameat2(2)`, and the condition that `user.keelfs.replace-if` puts on it.
//!
//! Version: an inode that takes the place of another gets the rename's index, so that the version seen at a name does not go
//! back as long as there is something; without that, a reader with "version 40 of /f" could meet version 30 of /f later and
//! think it older. Of two that change places only the one that would take a version back gets it: no two files ever have one
//! version (I18), so what a `cas` expects means one content, wherever that has been moved meanwhile.

use super::*;
use inode::{Inode, Node};
use state::Cause;
use std::sync::Arc;

/// What overlayfs reads as "nothing here". Its mode is 0.
const WHITEOUT: Node = Node::CharDevice { rdev: 0 };

impl State {
    /// `seen`: what the proposer saw at the two names (moved, replaced). Answers with what was moved, as it is now.
    pub(super) fn rename(
        &mut self,
        cause: &Cause,
        from: &Place,
        to: &Place,
        mode: RenameMode,
        seen: (Option<Ino>, Option<Option<Ino>>),
    ) -> Outcome {
        let (moved, source) = self.expected(from.parent, &from.name, seen.0)?;
        self.living_directory(to.parent)?;
        let replaced = self.dentry(to.parent, &to.name).map(|dentry| dentry.ino);
        if seen.1.is_some_and(|seen| seen != replaced) {
            return Err(missed(mode, replaced));
        }
        let target = replaced.map(|ino| self.inode(ino)).transpose()?;
        may_replace(mode, source, target)?;
        if replaced == Some(moved) {
            return self.shown(moved);
        }
        self.stays_a_tree(mode, (from, moved), (to, replaced))?;
        if mode.replaces() && target.is_some_and(|target| target.entries() > 0) {
            return Err(Refusal::NotEmpty);
        }
        replace_if_holds(source, target)?;
        match replaced {
            Some(other) if mode == RenameMode::Exchange => self.exchange(cause, (from, moved), (to, other)),
            _ => {
                let whiteout_in = match mode {
                    RenameMode::Whiteout => Some(self.directory(from.parent)?.clone()),
                    _ => None,
                };
                self.relink(cause, (from, moved), (to, replaced), whiteout_in);
            }
        }
        self.shown(moved)
    }

    /// A directory must not come to lie below itself, in either direction of an exchange.
    fn stays_a_tree(
        &self,
        mode: RenameMode,
        (from, moved): (&Place, Ino),
        (to, replaced): (&Place, Option<Ino>),
    ) -> Result<(), Refusal> {
        if from.parent == to.parent {
            return Ok(());
        }
        let falls_in = match replaced {
            Some(other) if mode == RenameMode::Exchange => self.is_at_or_above(other, from.parent),
            _ => false,
        };
        if falls_in || self.is_at_or_above(moved, to.parent) { Err(Refusal::IntoItself) } else { Ok(()) }
    }

    /// Does the way from this directory to the root pass through `above`?
    fn is_at_or_above(&self, above: Ino, directory: Ino) -> bool {
        let mut at = directory;
        while at != above && at != Ino::ROOT {
            match self.parent_of(at) {
                Some(parent) => at = parent,
                None => return false,
            }
        }
        at == above
    }

    fn relink(
        &mut self,
        cause: &Cause,
        (from, moved): (&Place, Ino),
        (to, replaced): (&Place, Option<Ino>),
        whiteout_in: Option<Arc<Inode>>,
    ) {
        match whiteout_in {
            Some(directory) => {
                let ino = self.add_nameless(cause, (from.parent, &directory), WHITEOUT, (0, 0));
                self.repoint(cause, from.parent, &from.name, ino);
            }
            None => self.remove_name(cause, from.parent, &from.name),
        }
        match replaced {
            Some(other) => {
                self.repoint(cause, to.parent, &to.name, moved);
                self.drop_link(cause, other);
            }
            None => self.add_name(cause, to.parent, &to.name, moved),
        }
        self.amend(cause, moved, |inode| arrive(inode, cause, replaced.is_some()));
    }

    fn exchange(&mut self, cause: &Cause, (from, moved): (&Place, Ino), (to, other): (&Place, Ino)) {
        self.repoint(cause, to.parent, &to.name, moved);
        self.repoint(cause, from.parent, &from.name, other);
        let version = |ino| self.inode(ino).map(|inode| inode.version).unwrap_or_default();
        let moved_is_older = version(moved) <= version(other);
        self.amend(cause, moved, |inode| arrive(inode, cause, moved_is_older));
        self.amend(cause, other, |inode| {
            if !moved_is_older {
                inode.version = cause.index;
            }
        });
    }

    /// `user.keelfs.replace-if`; `None` clears.
    pub(super) fn set_replace_if(&mut self, cause: &Cause, ino: Ino, version: Option<LogIndex>) -> Outcome {
        if self.inode(ino)?.is_directory() {
            return Err(Refusal::IsDirectory);
        }
        self.amend(cause, ino, |inode| inode.replace_if = version);
        Ok(Reply::Done)
    }
}

impl RenameMode {
    /// May an existing target be replaced?
    fn replaces(self) -> bool {
        matches!(self, RenameMode::Replace | RenameMode::Whiteout)
    }
}

/// The target's name means something else than the proposer saw. An exchange needs something there.
fn missed(mode: RenameMode, replaced: Option<Ino>) -> Refusal {
    match replaced {
        None if mode == RenameMode::Exchange => Refusal::NoSuchName,
        _ => Refusal::Raced,
    }
}

fn may_replace(mode: RenameMode, source: &Inode, target: Option<&Arc<Inode>>) -> Result<(), Refusal> {
    match (mode, target) {
        (RenameMode::Exchange, None) => Err(Refusal::NoSuchName),
        (RenameMode::Exchange, Some(_)) | (_, None) => Ok(()),
        (RenameMode::NoReplace, Some(_)) => Err(Refusal::NameTaken),
        (RenameMode::Replace | RenameMode::Whiteout, Some(target)) => {
            match (source.is_directory(), target.is_directory()) {
                (true, false) => Err(Refusal::NotDirectory),
                (false, true) => Err(Refusal::IsDirectory),
                _ => Ok(()),
            }
        }
    }
}

fn replace_if_holds(source: &Inode, target: Option<&Arc<Inode>>) -> Result<(), Refusal> {
    match (source.replace_if, target) {
        (None, _) | (Some(LogIndex(0)), None) => Ok(()),
        (Some(LogIndex(0)), Some(_)) => Err(Refusal::NameTaken),
        (Some(_), None) => Err(Refusal::NoSuchName),
        (Some(version), Some(target)) if version == target.version => Ok(()),
        (Some(_), Some(target)) => Err(Refusal::VersionMismatch { current: target.version }),
    }
}

/// The moved inode at its new name; its condition is used up.
fn arrive(inode: &mut Inode, cause: &Cause, in_place_of_another: bool) {
    inode.replace_if = None;
    if in_place_of_another {
        inode.version = cause.index;
    }
}
