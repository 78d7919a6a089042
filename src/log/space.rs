//! Room on the disk: how much there is, and the reserve that keeps a full disk usable.
//!
//! The reserve is files, not a number: spare segments whose blocks are allocated, so that nobody else who fills the disk
//! can take them. Whatever needs a segment takes a spare; [`Log::replenish`](super::Log::replenish) makes new ones while
//! the disk has room. A snapshot or the copy of a torn tail that meets a full disk gives a spare back to the disk and tries
//! again; all but the last, which is kept for votes and for entries that free space.
//!
//! A spare that becomes a segment needs no block of its own, but its new name may: XFS and ext4 make a directory longer by
//! a block. XFS also wants a few for a hole. For that there is the slack, a small file that is removed when a rename or a
//! hole meets a disk without a free block.
//!
//! Who may use how much of it is decided above: see [`Room`].
//!
//! Cost: two segments of disk a node (128 MiB), and more if the metadata snapshot is large: half again its size.
//! On file systems that copy on write, or cannot allocate in advance, the reserve is as firm as they are.

use std::io;
use std::sync::atomic::Ordering;

use super::StorageError;
use super::disk::{Disk, DiskFile};
use super::queue::{Memory, Shared};

/// Segments that are always kept in reserve: one to free space with, one for votes.
const RESERVE_SEGMENTS: u64 = 2;
/// A spare is only made if this part of a segment is left free behind it, for the file system's own needs.
const SLACK_PARTS: u64 = 16;
/// The slack is this part of a segment: 1 MiB of 64.
const SLACK_FILE_PARTS: u64 = 64;
/// Name of the slack.
const SLACK: &str = "slack";
/// How the name of a spare ends.
const SPARE: &str = ".free";

/// Room on the disk of a log, in bytes of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What may be written before the reserve is touched. 0: the disk counts as full.
    pub free: u64,
    /// What may be written if all of the reserve is used but its last segment.
    pub with_reserve: u64,
    /// What may be written at all.
    pub all: u64,
}

/// Whether an error means that there is no room, rather than that the disk has failed.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Do this; if the disk is full, have `relieve` give some of the reserve back and do it again, while it can.
pub fn relieved<T>(relieve: &dyn Fn() -> bool, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match work() {
            Err(error) if is_full(&error) && relieve() => continue,
            done => return done,
        }
    }
}

/// Do this, which needs no more than a few blocks; a disk that has none left gets the slack back.
pub fn with_slack<T>(disk: &dyn Disk, work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    relieved(&|| disk.remove(SLACK).is_ok(), work)
}

/// Rename; the new name may need a block.
pub fn rename(disk: &dyn Disk, from: &str, to: &str) -> io::Result<()> {
    with_slack(disk, || disk.rename(from, to))
}

/// Allocate all blocks of a file. Where it has them, a full disk is no obstacle: XFS (`xfs_alloc_file_space`) wants room
/// for the whole range before it looks.
pub fn allocate(file: &dyn DiskFile, bytes: u64) -> io::Result<()> {
    match file.preallocate(bytes) {
        Err(error) if is_full(&error) && file.length()? >= bytes && file.allocated()? >= bytes => Ok(()),
        other => other,
    }
}

/// Whether this is the name of a spare.
pub fn is_spare(name: &str) -> bool {
    name.ends_with(SPARE)
}

/// Name of the spare that is made of the segment with this sequence, or in its honour.
pub fn spare_name(sequence: u32) -> String {
    format!("{sequence:016}{SPARE}")
}

/// Give one spare back to a disk that is being recovered; the last one stays.
pub fn release_spare_of(disk: &dyn Disk) -> bool {
    let names = disk.list().unwrap_or_default();
    let spares: Vec<_> = names.iter().filter(|name| is_spare(name)).collect();
    spares.len() > 1 && disk.remove(spares[0]).is_ok()
}

impl Shared {
    /// How many spare segments there should be.
    pub fn spares_wanted(&self) -> usize {
        let snapshot = self.snapshot_bytes.load(Ordering::Relaxed);
        (RESERVE_SEGMENTS + (snapshot + snapshot / 2) / self.options.segment_bytes) as usize
    }

    pub fn room(&self) -> Room {
        let segment = self.options.segment_bytes;
        let (free, made, rest) = self.free_and_made();
        // Only whole segments count: less than that cannot be allocated.
        let segments = free.saturating_sub(segment / SLACK_PARTS) / segment + made;
        Room {
            free: (segments * segment + rest).saturating_sub(self.spares_wanted() as u64 * segment),
            // Without another segment, what is left of this one is for votes.
            with_reserve: segments.checked_sub(1).map_or(0, |more| more * segment + rest),
            all: segments * segment + rest,
        }
    }

    /// Free bytes of the disk, segments that are made and not in use, and what the one in use still takes. A segment on the
    /// way from one to the other is counted once or not at all, never twice.
    fn free_and_made(&self) -> (u64, u64, u64) {
        let made_of = |memory: &Memory| memory.spares.len() as u64 + memory.in_making;
        let mut before = made_of(&self.memory.lock());
        loop {
            let free = self.disk.free_bytes().unwrap_or_else(|error| {
                tracing::error!("cannot tell how much of the disk of {} is free: {error}", self.disk.path_of(""));
                0
            });
            let memory = self.memory.lock();
            match made_of(&memory) {
                made if made == before => return (free, made, memory.active_rest),
                changed => before = changed,
            }
        }
    }

    /// Bytes that a snapshot may take: what is free, and the reserve but for its last segment.
    pub fn room_for_snapshot(&self) -> u64 {
        let spares = self.memory.lock().spares.len() as u64;
        self.disk.free_bytes().unwrap_or(0) + spares.saturating_sub(1) * self.options.segment_bytes
    }

    /// Give one spare back to the disk; the last one stays.
    pub fn release_spare(&self) -> bool {
        let spare = {
            let mut memory = self.memory.lock();
            if memory.spares.len() > 1 { memory.spares.pop() } else { None }
        };
        let Some(spare) = spare else { return false };
        let removed = self.disk.remove(&spare).and_then(|()| self.disk.sync_dir());
        if let Err(error) = &removed {
            tracing::error!("cannot release {}: {error}", self.disk.path_of(&spare));
        }
        tracing::info!("the disk is full: gave {} of the reserve back to it", self.disk.path_of(&spare));
        removed.is_ok()
    }

    /// Make the slack, and spares until there are as many as there should be, or the disk has no room for another; remove
    /// those that are too many.
    pub fn replenish(&self) -> Result<(), StorageError> {
        self.keep_slack()?;
        loop {
            let (have, wanted) = (self.memory.lock().spares.len(), self.spares_wanted());
            if have > wanted + 1 {
                self.release_spare();
                continue;
            }
            let needed = self.options.segment_bytes + self.options.segment_bytes / SLACK_PARTS;
            if have >= wanted || self.disk.free_bytes().unwrap_or(0) < needed {
                return Ok(());
            }
            match self.make_spare() {
                Err((_, error)) if is_full(&error) => return Ok(()),
                Err((operation, source)) => {
                    return Err(StorageError::Io { operation, file: self.disk.path_of(SPARE), source });
                }
                Ok(()) => {}
            }
        }
    }

    fn keep_slack(&self) -> Result<(), StorageError> {
        let bytes = self.options.segment_bytes / SLACK_FILE_PARTS;
        let is_there = self.disk.open(SLACK).and_then(|file| file.length()).is_ok_and(|length| length >= bytes);
        if is_there || self.disk.free_bytes().unwrap_or(0) < 2 * bytes {
            return Ok(());
        }
        match self.disk.create(SLACK).and_then(|file| file.preallocate(bytes)) {
            Err(error) if !is_full(&error) => {
                Err(StorageError::Io { operation: "allocate", file: self.disk.path_of(SLACK), source: error })
            }
            _ => Ok(()),
        }
    }

    fn make_spare(&self) -> Result<(), (&'static str, io::Error)> {
        let step = |operation| move |error| (operation, error);
        let names = self.disk.list().map_err(step("list"))?;
        // Numbered from the top: below are the names of spares that were segments.
        let name = (0..).map(|n| spare_name(u32::MAX - n)).find(|name| !names.contains(name)).unwrap_or_default();
        let temporary = format!("{name}.tmp");
        let file = self.disk.create(&temporary).map_err(step("create"))?;
        let allocated = file.preallocate(self.options.segment_bytes).map_err(step("allocate"));
        // Its bytes are not free any more: a look at the room must find them here.
        let is_allocated = u64::from(allocated.is_ok());
        self.memory.lock().in_making += is_allocated;
        let made = allocated
            .and_then(|()| file.sync_data().map_err(step("sync")))
            .and_then(|()| self.disk.rename(&temporary, &name).map_err(step("rename")))
            .and_then(|()| self.disk.sync_dir().map_err(step("sync the directory of")));
        let mut memory = self.memory.lock();
        memory.in_making -= is_allocated;
        match made {
            Ok(()) => memory.spares.push(name),
            Err(_) => {
                drop(memory);
                // What is left of it must not take the room either; the next opening removes it too.
                let _ = self.disk.remove(&temporary);
            }
        }
        made
    }
}
