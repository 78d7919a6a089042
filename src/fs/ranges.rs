//! `fallocate(2)` and `copy_file_range(2)`: whole ranges of a file, without a byte being moved.
//!
//! Space is not reserved: a hole costs nothing and what is written later is new log in any case, so the modes that only
//! reserve change the size at most, and `allocated` tells the truth about it.
//!
//! Departure from ext4: collapsing and inserting need no alignment, since there are no blocks.

use super::contents::sound_end;
use super::*;
use crate::limits::COPY_EXTENTS_MAX;
use state::Cause;

impl State {
    pub(super) fn allocate(
        &mut self,
        cause: &Cause,
        ino: Ino,
        mode: AllocateMode,
        offset: u64,
        length: u64,
    ) -> Outcome {
        let size = self.file(ino)?.size();
        if length == 0 {
            return Err(Refusal::Invalid);
        }
        let end = sound_end(offset, length)?;
        match mode {
            AllocateMode::Extend if end > size => self.resize(cause, ino, end),
            AllocateMode::Extend | AllocateMode::KeepSize => self.prepare(cause, ino),
            AllocateMode::PunchHole | AllocateMode::ZeroRange { keep_size: true } => {
                self.zero(cause, ino, (offset, end), size);
            }
            AllocateMode::ZeroRange { keep_size: false } => self.zero(cause, ino, (offset, end), size.max(end)),
            AllocateMode::Collapse if end >= size => return Err(Refusal::Invalid),
            AllocateMode::Collapse => self.collapse(cause, ino, offset, end),
            AllocateMode::Insert if offset >= size => return Err(Refusal::Invalid),
            AllocateMode::Insert => {
                sound_end(size, length)?;
                self.insert(cause, ino, offset, length);
            }
        }
        self.shown(ino)
    }

    fn zero(&mut self, cause: &Cause, ino: Ino, (from, to): (u64, u64), size: u64) {
        self.edit(cause, ino, |state, _| {
            state.cut(ino, from, to);
            size
        });
    }

    /// Take `from..to` out of the file; what is behind moves to the front.
    fn collapse(&mut self, cause: &Cause, ino: Ino, from: u64, to: u64) {
        let length = to.saturating_sub(from);
        self.edit(cause, ino, |state, size| {
            state.cut(ino, from, to);
            state.shift(ino, to, |start| start.saturating_sub(length));
            size.saturating_sub(length)
        });
    }

    /// Put a hole in; what is behind moves to the back.
    fn insert(&mut self, cause: &Cause, ino: Ino, offset: u64, length: u64) {
        self.edit(cause, ino, |state, size| {
            state.shift(ino, offset, |start| start.saturating_add(length));
            size.saturating_add(length)
        });
    }

    /// Copy up to `length` bytes by sharing extents; holes are copied as holes. Stops at the end of the source, and after
    /// [`COPY_EXTENTS_MAX`] extents.
    pub(super) fn copy_range(
        &mut self,
        cause: &Cause,
        (from, from_offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        length: u64,
    ) -> Outcome {
        let available = self.file(from)?.size().saturating_sub(from_offset);
        self.file(to)?;
        let length = length.min(available);
        if length == 0 {
            return Ok(Reply::Copied(0));
        }
        sound_end(to_offset, length)?;
        if from == to && from_offset.abs_diff(to_offset) < length {
            return Err(Refusal::Invalid);
        }
        let (shared, length) = self.share(from, from_offset, length);
        self.edit(cause, to, |state, size| {
            let end = to_offset.saturating_add(length);
            state.cut(to, to_offset, end);
            for (distance, extent) in shared {
                state.put_extent(to, to_offset.saturating_add(distance), extent);
            }
            size.max(end)
        });
        Ok(Reply::Copied(length))
    }

    /// The extents of a range by their distance from its start, and how many bytes they stand for.
    fn share(&self, ino: Ino, offset: u64, length: u64) -> (Vec<(u64, contents::Extent)>, u64) {
        let end = offset.saturating_add(length);
        let mut parts =
            self.extents_within(ino, offset, end).filter_map(|(start, extent)| extent.clip(start, offset, end));
        let distance = |start: u64| start.saturating_sub(offset);
        let shared: Vec<_> =
            parts.by_ref().take(COPY_EXTENTS_MAX).map(|(start, extent)| (distance(start), extent)).collect();
        let covered = parts.next().map_or(length, |(start, _)| distance(start));
        (shared, covered)
    }
}
