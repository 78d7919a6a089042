//! What is in a file: extents, which point into the bodies of log entries, and the changes of them.
//!
//! The bytes of a write stay where the log put them; the file only learns which range of which entry's body is now its own.
//! An overwrite cuts what it covers out of older extents. A range without an extent is a hole and reads as zeros, so
//! what a shrinking file gives up is cut away at once: grown again, it reads as zeros.
//!
//! Absent on purpose: the bytes. Nothing here looks at a body, and replicas agree without reading one.

use super::*;
use crate::limits::FILE_BYTES_MAX;
use inode::{Inode, Node};
use serde::{Deserialize, Serialize};
use state::Cause;

/// A range of a file that lies in the body of an entry. Its offset in the file is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub(super) length: u32,
    pub(super) index: LogIndex,
    /// Where the range begins in the body.
    pub(super) offset: u32,
}

impl Extent {
    pub(super) fn end(&self, start: u64) -> u64 {
        start.saturating_add(u64::from(self.length))
    }

    /// The part of an extent at `start` that lies in `from..to`, with the part's own start; `None` if nothing does.
    pub(super) fn clip(&self, start: u64, from: u64, to: u64) -> Option<(u64, Extent)> {
        let (first, last) = (start.max(from), self.end(start).min(to));
        let length = u32::try_from(last.checked_sub(first)?).ok().filter(|length| *length > 0)?;
        let skipped = u32::try_from(first.saturating_sub(start)).ok()?;
        Some((first, Extent { length, offset: self.offset.saturating_add(skipped), ..*self }))
    }
}

impl State {
    pub(super) fn write(&mut self, cause: &Cause, ino: Ino, offset: u64, length: u32) -> Outcome {
        self.file(ino)?;
        let end = sound_end(offset, u64::from(length))?;
        if length > 0 {
            self.edit(cause, ino, |state, size| {
                state.cut(ino, offset, end);
                state.put_extent(ino, offset, Extent { length, index: cause.index, offset: 0 });
                size.max(end)
            });
        }
        self.shown(ino)
    }

    pub(super) fn append(&mut self, cause: &Cause, ino: Ino, length: u32) -> Outcome {
        let end_of_file = self.file(ino)?.size();
        self.write(cause, ino, end_of_file, length)
    }

    /// The whole content becomes the entry's body.
    pub(super) fn rewrite(&mut self, cause: &Cause, ino: Ino, length: u32) {
        self.edit(cause, ino, |state, _| {
            state.cut(ino, 0, u64::MAX);
            if length > 0 {
                state.put_extent(ino, 0, Extent { length, index: cause.index, offset: 0 });
            }
            u64::from(length)
        });
    }

    /// Give a file another size. The times move in any case, as with `ftruncate(2)`; the version only if the size does.
    pub(super) fn resize(&mut self, cause: &Cause, ino: Ino, size: u64) {
        let Some(before) = self.inodes.get(&ino).cloned() else { return };
        self.edit(cause, ino, |state, _| {
            state.cut(ino, size, u64::MAX);
            size
        });
        if before.size() == size {
            self.change(ino, |inode| inode.version = before.version);
        }
    }

    /// Change the extents of one file, and then its inode accordingly: bytes covered, times, version, privileges.
    /// `change` is given the size and returns the new one.
    pub(super) fn edit(&mut self, cause: &Cause, ino: Ino, change: impl FnOnce(&mut State, u64) -> u64) {
        let Some(old_size) = self.inodes.get(&ino).map(|inode| inode.size()) else { return };
        let covered_before = self.derived.allocated;
        let new_size = change(self, old_size);
        let covered_after = self.derived.allocated;
        self.change(ino, |inode| {
            if let Node::File { size, allocated } = &mut inode.node {
                *size = new_size;
                *allocated = allocated.saturating_add(covered_after).saturating_sub(covered_before);
            }
            stamp_content(inode, cause);
        });
        self.drop_capabilities(ino);
    }

    /// Space is not reserved, but who asks for it is taken to be about to write.
    pub(super) fn prepare(&mut self, cause: &Cause, ino: Ino) {
        self.amend(cause, ino, |inode| drop_privileges(inode, cause));
        self.drop_capabilities(ino);
    }

    // --- extents

    pub(super) fn extents_of(&self, ino: Ino) -> impl Iterator<Item = (u64, Extent)> + '_ {
        self.extents_from(ino, 0)
    }

    /// The extents that start at or behind an offset, in order.
    fn extents_from(&self, ino: Ino, offset: u64) -> impl Iterator<Item = (u64, Extent)> + '_ {
        self.extents.range((ino, offset)..=(ino, u64::MAX)).map(|((_, start), extent)| (*start, *extent))
    }

    /// The extents that have bytes in `from..to`, whole, in order.
    pub(super) fn extents_within(&self, ino: Ino, from: u64, to: u64) -> impl Iterator<Item = (u64, Extent)> + '_ {
        self.extent_across(ino, from)
            .into_iter()
            .chain(self.extents_from(ino, from))
            .take_while(move |(start, _)| *start < to)
    }

    /// The extent that starts before an offset and reaches beyond it.
    fn extent_across(&self, ino: Ino, offset: u64) -> Option<(u64, Extent)> {
        let ((_, start), extent) = self.extents.range((ino, 0)..(ino, offset)).next_back()?;
        if extent.end(*start) > offset { Some((*start, *extent)) } else { None }
    }

    /// Make a hole of `from..to`.
    pub(super) fn cut(&mut self, ino: Ino, from: u64, to: u64) {
        let covered: Vec<_> = self.extents_within(ino, from, to).collect();
        for (start, extent) in covered {
            self.take_extent(ino, start);
            let left = extent.clip(start, 0, from);
            let right = extent.clip(start, to, u64::MAX);
            for (start, part) in left.into_iter().chain(right) {
                self.put_extent(ino, start, part);
            }
        }
    }

    /// Take out all extents behind an offset, and put them back where `place` says.
    pub(super) fn shift(&mut self, ino: Ino, from: u64, place: impl Fn(u64) -> u64) {
        let moved: Vec<_> = self
            .extents_within(ino, from, u64::MAX)
            .filter_map(|(start, extent)| extent.clip(start, from, u64::MAX))
            .collect();
        self.cut(ino, from, u64::MAX);
        for (start, extent) in moved {
            self.put_extent(ino, place(start), extent);
        }
    }
}

/// The end of a range that is about to be written.
pub(super) fn sound_end(offset: u64, length: u64) -> Result<u64, Refusal> {
    offset.checked_add(length).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Refusal::FileTooLarge)
}

fn stamp_content(inode: &mut Inode, cause: &Cause) {
    inode.version = cause.index;
    inode.change = cause.index;
    inode.mtime = cause.wall;
    inode.ctime = cause.wall;
    drop_privileges(inode, cause);
}

/// Root may write a program without taking its rights from it.
fn drop_privileges(inode: &mut Inode, cause: &Cause) {
    if cause.who.uid != 0 {
        inode.drop_privileges(cause.who);
    }
}
