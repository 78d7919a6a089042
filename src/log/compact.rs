//! Compaction: what is still live in a segment that is mostly dead is written anew, so that the segment can go.
//!
//! A large dead body is punched out where it is; small ones leave their blocks to the segment for as long as anything in
//! it is live. The live bodies of such a segment are read, verified and queued as imports, like bodies that come from a
//! peer: from then on they are found by the same index at the new place. The segment is removed once that is durable.
//!
//! Bounded: so many bytes in one call, so many in the writer's queue at a time, so that appends pass in between. The least
//! live segments come first, where a byte that is written gives most back (Rosenblum and Ousterhout, "The Design and
//! Implementation of a Log-Structured File System", section 3.5, has the trade).
//!
//! A body that does not verify stays where it is, for the scrub to repair; its segment is left alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::format::Kind;
use super::index::BodyPlace;
use super::queue::{Memory, Shared};
use super::recovery::known_rows;
use super::segment::Segment;
use super::{Log, StorageError};

/// Bytes of live records that one call writes anew.
const ROUND_BYTES_MAX: u64 = 32 << 20;
/// Bytes of them that are in memory at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Only what gives back this part of a segment is worth the work.
const GAIN_PARTS: u64 = 256;

impl Log {
    /// Empty the mostly dead segments below this one, as far as one call may. True: there is more to do.
    pub(super) fn compact(&self, below: u32) -> Result<bool, StorageError> {
        let mut written = 0;
        for (segment, live) in self.shared.mostly_dead(below) {
            if written > 0 && written + live > ROUND_BYTES_MAX {
                return Ok(true);
            }
            if !self.shared.has_room_for(live) {
                return Ok(false);
            }
            match self.empty(&segment, &mut written) {
                Err(damaged @ (StorageError::Damaged { .. } | StorageError::NoBody { .. })) => {
                    tracing::warn!(file = segment.path, "cannot compact this segment: {damaged}");
                }
                other => other?,
            }
            drop(segment);
            if self.shared.room().free == 0 {
                self.shared.remove_segments(below)?;
            }
        }
        Ok(false)
    }

    /// Write everything live of a segment anew; durable on return. What was moved, even if not all could be, counts as
    /// `written`.
    fn empty(&self, segment: &Arc<Segment>, written: &mut u64) -> Result<(), StorageError> {
        let mut rows = known_rows(segment)?.into_iter().peekable();
        while rows.peek().is_some() {
            let (mut piece, mut bytes) = (Vec::new(), 0);
            while bytes < PIECE_BYTES
                && let Some(row) = rows.next()
            {
                // A mended entry is found like any other.
                let kind = if row.kind == Kind::Mend { Kind::Entry } else { row.kind };
                let body = BodyPlace { kind, place: row.place };
                if self.shared.is_at(row.id.index, body) {
                    let content = segment.read_body(&body.place, body.kind, row.id.index, 0, body.place.body)?;
                    bytes += content.len();
                    piece.push((row.id.index, body, content));
                }
            }
            if piece.is_empty() {
                continue;
            }
            self.barrier(|memory| {
                piece.into_iter().for_each(|(index, from, content)| move_body(memory, index, from, content))
            })?;
            *written += bytes as u64;
        }
        Ok(())
    }
}

/// Queue a body to be written anew, unless it has moved or died since it was read.
fn move_body(memory: &mut Memory, index: u64, from: BodyPlace, content: Bytes) {
    if memory.index.body(index) == Some(from) {
        memory.import(index, content);
    }
}

impl Shared {
    /// Whether so much can be written. The segment that is emptied comes back, but if it was full of holes that is less than
    /// a whole one: so all of the last segment is only begun for what leaves most of it, and never used up.
    fn has_room_for(&self, bytes: u64) -> bool {
        let (room, bytes) = (self.room(), bytes + bytes / 4);
        let segment = self.options.segment_bytes;
        let rest = self.memory.lock().active_rest;
        bytes <= room.with_reserve || bytes + segment / 4 <= rest || (bytes <= segment / 4 && room.all >= segment)
    }

    fn is_at(&self, index: u64, body: BodyPlace) -> bool {
        matches!(body.kind, Kind::Entry | Kind::Import) && self.memory.lock().index.body(index) == Some(body)
    }

    /// Segments below this one that hold at least twice as much as what is live in them, and the live bytes; the least
    /// live first.
    fn mostly_dead(&self, below: u32) -> Vec<(Arc<Segment>, u64)> {
        let candidates: Vec<(Arc<Segment>, u64)> = {
            let memory = self.memory.lock();
            let segments = memory.segments.range(..below);
            let live = segments.filter_map(|(at, segment)| Some((segment, memory.index.live_in(*at)?.bytes)));
            // One that tells of a truncation does not go before all that are older: emptying it would gain nothing.
            let can_go = |(at, (segment, _)): &(usize, (&Arc<Segment>, u64))| {
                *at == 0 || !segment.truncates.load(Ordering::Relaxed)
            };
            live.enumerate().filter(can_go).map(|(_, (segment, bytes))| (segment.clone(), bytes)).collect()
        };
        let mut sparse: Vec<_> =
            candidates.into_iter().filter(|(segment, live)| is_mostly_dead(segment, *live)).collect();
        sparse.sort_by_key(|(segment, live)| (*live, segment.header.sequence));
        sparse
    }
}

fn is_mostly_dead(segment: &Segment, live: u64) -> bool {
    let allocated = segment.file.allocated().unwrap_or(segment.header.bytes);
    allocated >= 2 * live && allocated - live >= segment.header.bytes / GAIN_PARTS
}
