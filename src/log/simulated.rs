//! A disk in memory that does what a disk may do: lose, tear and reorder what was not synced, fail, fill up and rot.
//!
//! Deterministic: what survives a crash follows from a seed that the caller gives. Clones are the same disk. A crash
//! makes a new disk out of what survived; the old one is off for good, so that the threads of the dead process cannot
//! write to the new one.
//!
//! Absent on purpose: time. A slow disk is the business of whoever simulates the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

mod survival;

pub use survival::Survival;
use survival::sectors;

const BLOCK_BYTES: u64 = 4096;
/// What a disk without a capacity says to be free.
const UNBOUNDED_FREE_BYTES: u64 = 1 << 50;

/// What was asked of the disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls that change anything, syncs included.
    pub operations: u64,
    pub writes: u64,
    pub bytes_written: u64,
    pub syncs: u64,
    pub bytes_read: u64,
}

/// What went wrong because it was asked for: over all processes on this disk, and not what is only to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fired {
    pub failed_writes: u64,
    pub failed_syncs: u64,
    /// Calls that were refused for want of space.
    pub full: u64,
    /// Answers that there is room for so much and no more.
    pub told_room: u64,
    /// The power went in the middle of a change.
    pub halts: u64,
}

#[derive(Clone, Default)]
struct Inode {
    /// What the running process sees.
    now: Vec<u8>,
    /// What is on the disk for sure.
    durable: Vec<u8>,
    /// Blocks that are allocated, as the running process sees it.
    blocks: BTreeSet<u64>,
    /// Blocks that cannot be read until all of them is overwritten.
    unreadable: BTreeSet<u64>,
}

#[derive(Clone)]
enum Change {
    Write {
        inode: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    Extend {
        inode: u64,
        bytes: u64,
    },
    Hole {
        inode: u64,
        offset: u64,
        bytes: u64,
    },
    Link {
        name: String,
        inode: u64,
    },
    /// Of this very file: whatever else of its history is lost, no other file takes the name.
    Rename {
        from: String,
        to: String,
        inode: u64,
    },
    Unlink {
        name: String,
    },
}

impl Change {
    fn inode(&self) -> Option<u64> {
        match self {
            Change::Write { inode, .. } | Change::Extend { inode, .. } | Change::Hole { inode, .. } => Some(*inode),
            _ => None,
        }
    }
}

#[derive(Clone, Default)]
struct World {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// In the order of the calls.
    unsynced: Vec<Change>,
    counters: Counters,
    fired: Fired,
    off: bool,
    operations_left: Option<u64>,
    failing_write: Option<(u64, i32)>,
    failing_sync: Option<(u64, i32)>,
    capacity: Option<u64>,
}

/// A simulated disk; clones share it.
#[derive(Clone, Default)]
pub struct SimulatedDisk {
    world: Arc<Mutex<World>>,
}

struct SimulatedFile {
    world: Arc<Mutex<World>>,
    inode: u64,
}

impl SimulatedDisk {
    pub fn new() -> SimulatedDisk {
        SimulatedDisk::default()
    }

    /// The power goes: a new disk with what was synced and what else survived. This one is off.
    pub fn crash(&self, survival: Survival) -> SimulatedDisk {
        let mut world = self.world.lock();
        world.off = true;
        SimulatedDisk { world: Arc::new(Mutex::new(world.after_crash(survival))) }
    }

    /// Only the process dies: a new disk with all that was written, synced or not. This one is off.
    pub fn kill(&self) -> SimulatedDisk {
        let mut world = self.world.lock();
        let next = world.next_process();
        world.off = true;
        SimulatedDisk { world: Arc::new(Mutex::new(next)) }
    }

    /// Another disk with the same content, as if only the process of this one had died; this one goes on.
    pub fn copy(&self) -> SimulatedDisk {
        SimulatedDisk { world: Arc::new(Mutex::new(self.world.lock().next_process())) }
    }

    /// Lose power in the middle of the change that comes after `operations` more of them.
    pub fn halt_after(&self, operations: u64) {
        self.world.lock().operations_left = Some(operations);
    }

    pub fn is_off(&self) -> bool {
        self.world.lock().off
    }

    /// The write after `writes` more ones fails halfway with this error number.
    pub fn fail_write_after(&self, writes: u64, errno: i32) {
        self.world.lock().failing_write = Some((writes, errno));
    }

    /// The sync after `syncs` more ones fails with this error number. What it should have made durable stays visible and
    /// is lost in a crash, and later syncs succeed: as Linux does it.
    pub fn fail_sync_after(&self, syncs: u64, errno: i32) {
        self.world.lock().failing_sync = Some((syncs, errno));
    }

    /// From now on, allocating more than this many bytes in all fails with ENOSPC. As hard as XFS: a name that is not there
    /// yet wants a free block, for the directory may have to grow, and so does a hole; allocating a range wants room for all
    /// of it, whether the file has its blocks or not.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.lock().capacity = bytes;
    }

    /// Rot: flip one bit of a file, on the disk and as it is read. False: there is no such byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> bool {
        let mut world = self.world.lock();
        let Some(inode) = world.names.get(name).copied() else { return false };
        let Some(inode) = world.inodes.get_mut(&inode) else { return false };
        let mut found = false;
        for content in [&mut inode.now, &mut inode.durable] {
            if let Some(byte) = content.get_mut(offset as usize) {
                *byte ^= 1 << (bit % 8);
                found = true;
            }
        }
        found
    }

    /// From now on reading anything of the blocks of this range fails with EIO, and so does a write to a part of one, as on
    /// Linux, which would have to read the rest; a write to a whole block heals it. False: there is no such file.
    pub fn lose(&self, name: &str, offset: u64, bytes: u64) -> bool {
        let mut world = self.world.lock();
        let Some(inode) = world.names.get(name).copied() else { return false };
        let Some(inode) = world.inodes.get_mut(&inode) else { return false };
        inode.unreadable.extend(blocks(offset, bytes));
        true
    }

    pub fn counters(&self) -> Counters {
        self.world.lock().counters
    }

    /// Which of the faults that were asked for have come to something.
    pub fn fired(&self) -> Fired {
        self.world.lock().fired
    }

    /// Bytes of writes that no sync has covered yet.
    pub fn unsynced_bytes(&self) -> u64 {
        self.world.lock().unsynced.iter().map(|change| change.weight()).sum()
    }

    /// Changes that nothing has made durable yet, each sector of a write by itself: each of them may survive a crash
    /// without the others.
    pub fn unsynced_pieces(&self) -> u32 {
        self.world.lock().unsynced.iter().map(|change| change.pieces()).sum()
    }

    /// The whole content of a file, as the running process sees it.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let world = self.world.lock();
        world.inodes.get(world.names.get(name)?).map(|inode| inode.now.clone())
    }
}

impl Change {
    fn pieces(&self) -> u32 {
        match self {
            Change::Write { offset, bytes, .. } => sectors(*offset, bytes).len() as u32,
            _ => 1,
        }
    }

    fn weight(&self) -> u64 {
        match self {
            Change::Write { bytes, .. } => bytes.len() as u64,
            _ => 0,
        }
    }
}

fn write(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(bytes);
}

fn punch(content: &mut [u8], offset: u64, bytes: u64) {
    let length = content.len();
    content[(offset as usize).min(length)..((offset + bytes) as usize).min(length)].fill(0);
}

impl Inode {
    fn apply_durable(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes, .. } => write(&mut self.durable, *offset, bytes),
            Change::Extend { bytes, .. } if self.durable.len() < *bytes as usize => {
                self.durable.resize(*bytes as usize, 0)
            }
            Change::Hole { offset, bytes, .. } => punch(&mut self.durable, *offset, *bytes),
            _ => {}
        }
    }

    fn allocate(&mut self, offset: u64, bytes: u64) {
        self.blocks.extend(blocks(offset, bytes));
    }

    fn check_readable(&self, mut blocks: Range<u64>) -> io::Result<()> {
        match blocks.any(|block| self.unreadable.contains(&block)) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    /// Before a write of this range.
    fn overwrite(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let whole = offset.div_ceil(BLOCK_BYTES)..(offset + bytes) / BLOCK_BYTES;
        for block in blocks(offset, bytes).filter(|block| !whole.contains(block)) {
            self.check_readable(block..block + 1)?;
        }
        self.unreadable.retain(|block| !whole.contains(block));
        Ok(())
    }
}

/// The blocks that this range touches.
fn blocks(offset: u64, bytes: u64) -> Range<u64> {
    offset / BLOCK_BYTES..(offset + bytes).div_ceil(BLOCK_BYTES)
}

impl World {
    fn next_process(&self) -> World {
        World {
            counters: Counters::default(),
            off: false,
            operations_left: None,
            failing_write: None,
            failing_sync: None,
            ..self.clone()
        }
    }

    /// Count one change. Err: the power is gone; `true` inside: it goes in the middle of this very change.
    fn step(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(io::Error::other("the simulated disk is off"));
        }
        self.counters.operations += 1;
        match &mut self.operations_left {
            Some(0) => {
                self.off = true;
                self.fired.halts += 1;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Make a change that is not durable yet.
    fn change(&mut self, change: Change) -> io::Result<()> {
        let interrupted = self.step()?;
        match &change {
            Change::Write { inode, offset, bytes } => {
                let inode = self.inodes.entry(*inode).or_default();
                write(&mut inode.now, *offset, bytes);
                inode.allocate(*offset, bytes.len() as u64);
            }
            Change::Extend { inode, bytes } => {
                let inode = self.inodes.entry(*inode).or_default();
                if inode.now.len() < *bytes as usize {
                    inode.now.resize(*bytes as usize, 0);
                }
                inode.allocate(0, *bytes);
            }
            Change::Hole { inode, offset, bytes } => {
                let inode = self.inodes.entry(*inode).or_default();
                punch(&mut inode.now, *offset, *bytes);
                for block in offset.div_ceil(BLOCK_BYTES)..(offset + bytes) / BLOCK_BYTES {
                    inode.blocks.remove(&block);
                }
            }
            name => apply_name(&mut self.names, name),
        }
        self.unsynced.push(change);
        match interrupted {
            true => Err(io::Error::other("the simulated disk lost power")),
            false => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        let inodes = self.names.values().filter_map(|inode| self.inodes.get(inode));
        inodes.map(|inode| inode.blocks.len() as u64 * BLOCK_BYTES).sum()
    }

    fn check_space(&mut self, inode: u64, offset: u64, bytes: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let have = self.inodes.get(&inode).map(|inode| &inode.blocks);
        let more = blocks(offset, bytes).filter(|block| !have.is_some_and(|blocks| blocks.contains(block))).count();
        match self.used_bytes() + more as u64 * BLOCK_BYTES > capacity {
            true => Err(self.is_full()),
            false => Ok(()),
        }
    }

    fn is_full(&mut self) -> io::Error {
        self.fired.full += 1;
        io::Error::from_raw_os_error(libc::ENOSPC)
    }

    fn free_bytes(&self) -> u64 {
        self.capacity.map_or(UNBOUNDED_FREE_BYTES, |capacity| capacity.saturating_sub(self.used_bytes()))
    }

    fn check_name(&mut self, name: &str) -> io::Result<()> {
        match !self.names.contains_key(name) && self.free_bytes() < BLOCK_BYTES {
            true => Err(self.is_full()),
            false => Ok(()),
        }
    }

    fn sync_fails(&mut self) -> io::Result<()> {
        due(&mut self.failing_sync).inspect_err(|_| self.fired.failed_syncs += 1)
    }

    fn write_fails(&mut self) -> io::Result<()> {
        due(&mut self.failing_write).inspect_err(|_| self.fired.failed_writes += 1)
    }

    fn sync(&mut self, inode: u64) -> io::Result<()> {
        if self.step()? {
            return Err(io::Error::other("the simulated disk lost power"));
        }
        self.counters.syncs += 1;
        let (synced, rest) = std::mem::take(&mut self.unsynced).into_iter().partition(|c| c.inode() == Some(inode));
        self.unsynced = rest;
        self.sync_fails()?;
        let synced: Vec<Change> = synced;
        let inode = self.inodes.entry(inode).or_default();
        synced.iter().for_each(|change| inode.apply_durable(change));
        Ok(())
    }
}

/// Count one call of a failure that is to come.
fn due(failing: &mut Option<(u64, i32)>) -> io::Result<()> {
    match failing {
        Some((0, errno)) => {
            let error = io::Error::from_raw_os_error(*errno);
            *failing = None;
            Err(error)
        }
        Some((left, _)) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Link { name, inode } => drop(names.insert(name.clone(), *inode)),
        Change::Unlink { name } => drop(names.remove(name)),
        Change::Rename { from, to, inode } => {
            if names.get(from) == Some(inode) {
                names.remove(from);
            }
            names.insert(to.clone(), *inode);
        }
        _ => {}
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let world = self.world.lock();
        let inode = *world.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimulatedFile { world: self.world.clone(), inode }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world.lock();
        world.check_name(name)?;
        // Emptying a file is making a new one of that name: nobody here holds the old one open.
        let inode = world.inodes.last_key_value().map_or(1, |(last, _)| last + 1);
        world.inodes.insert(inode, Inode::default());
        world.change(Change::Link { name: name.into(), inode })?;
        Ok(Arc::new(SimulatedFile { world: self.world.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world.lock();
        let inode = *world.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        world.check_name(to)?;
        world.change(Change::Rename { from: from.into(), to: to.into(), inode })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world.lock();
        world.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        world.change(Change::Unlink { name: name.into() })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.world.lock().names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut world = self.world.lock();
        if world.step()? {
            return Err(io::Error::other("the simulated disk lost power"));
        }
        world.counters.syncs += 1;
        world.sync_fails()?;
        world.durable_names = world.names.clone();
        world.unsynced.retain(|change| change.inode().is_some());
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let mut world = self.world.lock();
        world.fired.told_room += u64::from(world.capacity.is_some());
        Ok(world.free_bytes())
    }

    fn path_of(&self, name: &str) -> String {
        name.into()
    }
}

impl DiskFile for SimulatedFile {
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.world.lock();
        if world.free_bytes() < bytes {
            return Err(world.is_full());
        }
        world.change(Change::Extend { inode: self.inode, bytes })
    }

    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        let mut world = self.world.lock();
        world.check_space(self.inode, offset, bytes.len() as u64)?;
        world.inodes.entry(self.inode).or_default().overwrite(offset, bytes.len() as u64)?;
        world.counters.writes += 1;
        world.counters.bytes_written += bytes.len() as u64;
        let failed = world.write_fails();
        if failed.is_err() {
            bytes.truncate(bytes.len() / 2);
        }
        world.change(Change::Write { inode: self.inode, offset, bytes })?;
        failed
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut world = self.world.lock();
        if world.off {
            return Err(io::Error::other("the simulated disk is off"));
        }
        world.counters.bytes_read += buffer.len() as u64;
        let inode = world.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        inode.check_readable(blocks(offset, buffer.len() as u64))?;
        let content = &inode.now;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(content.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.world.lock().sync(self.inode)
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mut world = self.world.lock();
        if world.free_bytes() < BLOCK_BYTES {
            return Err(world.is_full());
        }
        world.change(Change::Hole { inode: self.inode, offset, bytes })
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.world.lock().inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.now.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        let world = self.world.lock();
        Ok(world.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.blocks.len() as u64 * BLOCK_BYTES)
    }
}
