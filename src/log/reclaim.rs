//! Giving space back: whole segments that nobody needs, and holes in place of dead bodies.
//!
//! The work is done in the caller's thread. It starts with a barrier through the writer's queue: a purge or a truncation
//! that is not durable yet must not cost a body that a crash would bring back to life. The lock is held for a bounded
//! number of bodies at a time.
//!
//! A segment with a truncation goes only after all older ones: it is what tells that their truncated entries, and the
//! bodies of these, never were. Everything else that a removed segment said is repeated at the head of the next.
//!
//! A hole needs no record: a large body that reads as zeros and does not verify was given back.

use std::sync::Arc;

use super::StorageError;
use super::format::{LARGE_BODY_BYTES, Place};
use super::queue::Shared;
use super::segment::Segment;
use super::space::{allocate, rename, spare_name, with_slack};

/// Bodies that are looked at under one hold of the lock.
const STEP_BODIES: usize = 1024;

/// What was true when the barrier was queued, and is durable once it has passed.
pub struct Horizon {
    /// Bodies of entries below this index may be dead.
    purged_next: u64,
    /// Segments below this one hold no entry of the Raft log and are not written any more.
    pub segment: u32,
    /// The segment that was written then; only older ones are touched.
    active: u32,
    dead: Vec<Place>,
}

impl Shared {
    /// To be called in one step with queueing the barrier.
    pub fn horizon(&self, memory: &mut super::queue::Memory) -> Horizon {
        Horizon {
            purged_next: memory.index.purged.map_or(0, |purged| purged.index + 1),
            segment: memory.index.first_segment().unwrap_or(memory.active).min(memory.batch_from),
            active: memory.active,
            dead: std::mem::take(&mut memory.index.dead),
        }
    }

    /// After the barrier: give back what is not live.
    pub fn reclaim(&self, horizon: Horizon, is_live: &dyn Fn(u64) -> bool) -> Result<(), StorageError> {
        let found = self.drop_dead_bodies(&horizon, is_live);
        let mut dead = horizon.dead;
        dead.extend(found);
        self.remove_segments(horizon.segment)?;
        self.punch(dead, horizon.active)
    }

    /// Where the bytes of what was dropped are. What others bury meanwhile is not among it: the truncation or the import
    /// that killed it may not be durable yet.
    fn drop_dead_bodies(&self, horizon: &Horizon, is_live: &dyn Fn(u64) -> bool) -> Vec<Place> {
        let (mut from, mut dropped) = (0, Vec::new());
        loop {
            let bodies = self.memory.lock().index.bodies(from, horizon.purged_next, STEP_BODIES);
            let Some((last, _)) = bodies.last() else { return dropped };
            from = last + 1;
            // `is_live` is the caller's: it may take its own locks, so ours is not held.
            let dead: Vec<_> = bodies.into_iter().filter(|(index, _)| !is_live(*index)).collect();
            let mut memory = self.memory.lock();
            for (index, body) in dead {
                if body.place.is_written() && memory.index.body(index) == Some(body) {
                    dropped.extend(memory.index.take_body(index));
                }
            }
        }
    }

    /// Remove the segments below this one of which nothing is needed.
    pub fn remove_segments(&self, below: u32) -> Result<(), StorageError> {
        let mut detached = self.detach_segments(below).into_iter();
        while let Some(segment) = detached.next() {
            let operation = |operation| move |source| (operation, source);
            let name = super::segment::segment_name(segment.header.sequence);
            let removed = (|| {
                // The older ones, whoever removed them, must be gone for good: what this one truncates is in them.
                if segment.truncates.load(std::sync::atomic::Ordering::Relaxed) {
                    self.disk.sync_dir().map_err(operation("sync the directory of"))?;
                }
                self.retire(&segment, &name).map_err(operation("remove"))
            })();
            if let Err((operation, source)) = removed {
                // Those that stay go on to pin what truncates them.
                let stay = std::iter::once(segment.clone()).chain(detached);
                self.memory.lock().segments.extend(stay.map(|segment| (segment.header.sequence, segment)));
                return Err(segment.io(operation, source));
            }
        }
        Ok(())
    }

    /// Take the segments out of the memory that are not needed, oldest first.
    fn detach_segments(&self, below: u32) -> Vec<Arc<Segment>> {
        let mut memory = self.memory.lock();
        if !memory.imports.is_empty() {
            // A body that is being replaced counts as gone where it was, and is not durable yet where it will be.
            return Vec::new();
        }
        let candidates: Vec<Arc<Segment>> =
            memory.segments.range(..below).map(|(_, segment)| segment.clone()).collect();
        let mut detached = Vec::new();
        let mut older_remains = false;
        for segment in candidates {
            let sequence = segment.header.sequence;
            let pinned = older_remains && segment.truncates.load(std::sync::atomic::Ordering::Relaxed);
            if pinned || memory.index.live_in(sequence).is_some() {
                older_remains = true;
                continue;
            }
            memory.segments.remove(&sequence);
            detached.push(segment);
        }
        detached
    }

    /// Keep the file as a spare if nobody reads it and spares are wanted; else remove it.
    fn retire(&self, segment: &Arc<Segment>, name: &str) -> std::io::Result<()> {
        let reusable = Arc::strong_count(segment) == 1
            && segment.header.bytes == self.options.segment_bytes
            && self.memory.lock().spares.len() < self.spares_wanted();
        if !reusable {
            return self.disk.remove(name);
        }
        // A spare has all its blocks: fill the holes.
        if allocate(&*segment.file, segment.header.bytes).is_err() {
            return self.disk.remove(name);
        }
        let spare = spare_name(segment.header.sequence);
        rename(&*self.disk, name, &spare)?;
        // Before it is overwritten: else a crash could bring the old name back with the new content.
        self.disk.sync_dir()?;
        self.memory.lock().spares.push(spare);
        Ok(())
    }

    /// What cannot be punched now, or lies where it may still be written, is for the next time.
    fn punch(&self, dead: Vec<Place>, active: u32) -> Result<(), StorageError> {
        let (mut later, mut met) = (Vec::new(), Ok(()));
        for place in dead {
            if place.segment >= active || met.is_err() {
                later.push(place);
                continue;
            }
            let segment = self.memory.lock().segments.get(&place.segment).cloned();
            if let Some(segment) = segment.filter(|_| place.body >= LARGE_BODY_BYTES) {
                let punch = || segment.file.punch_hole(place.body_at(), place.body as u64);
                if let Err(error) = with_slack(&*self.disk, punch) {
                    later.push(place);
                    met = Err(segment.io("punch a hole into", error));
                }
            }
        }
        self.memory.lock().index.dead.extend(later);
        met
    }
}
