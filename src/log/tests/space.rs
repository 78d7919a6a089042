//! Space: the reserve, a full disk, compaction, and what a crash may find of them.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;

use super::super::disk::{Disk, DiskFile};
use super::super::simulated::{SimulatedDisk, Survival};
use super::super::{Body, Done, Entry, EntryId, Log, Options, StorageError, Threading};
use super::rig::snapshot;
use super::{body, entry, waiter};

const SEGMENT_BYTES: u64 = 256 << 10;

fn open(disk: &SimulatedDisk, seed: u64) -> Result<Log, StorageError> {
    let options = Options { segment_bytes: SEGMENT_BYTES, cache_bytes: 0, seed, threading: Threading::Pumped };
    Log::open_on(Arc::new(disk.clone()), options)
}

fn append(log: &Log, entries: &[Entry]) -> Result<(), Arc<StorageError>> {
    let (done, result) = waiter();
    log.append(entries.to_vec(), done);
    while log.pump() {}
    result.recv().unwrap()
}

fn purge(log: &Log, upto: EntryId) {
    let (done, result) = waiter();
    log.purge(upto, done);
    while log.pump() {}
    result.recv().unwrap().unwrap();
}

fn segments(disk: &SimulatedDisk) -> usize {
    disk.list().unwrap().iter().filter(|name| name.ends_with(".seg")).count()
}

fn spares(disk: &SimulatedDisk) -> usize {
    disk.list().unwrap().iter().filter(|name| name.ends_with(".free")).count()
}

/// 600 entries of about 2 KB over several segments, all but the last few purged.
fn purged() -> (SimulatedDisk, Vec<Entry>) {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    let entries: Vec<_> = (0..600).map(|i| entry(1, i, 60, 1500 + i as usize)).collect();
    entries.chunks(20).for_each(|chunk| append(&log, chunk).unwrap());
    log.save_committed(Some(entries[599].id));
    purge(&log, entries[590].id);
    drop(log);
    (disk.kill(), entries)
}

fn is_live(index: u64) -> bool {
    index.is_multiple_of(25)
}

fn expect_live_bodies(log: &Log, entries: &[Entry]) {
    for entry in entries.iter().filter(|entry| is_live(entry.id.index) || entry.id.index > 590) {
        let length = body(entry).len() as u32;
        assert_eq!(log.read_body(entry.id.index, 0, length).unwrap(), body(entry), "{}", entry.id.index);
    }
}

#[test]
fn mostly_dead_segments_are_emptied_and_go() {
    let (disk, entries) = purged();
    let log = open(&disk, 2).unwrap();
    assert!(segments(&disk) >= 5);
    assert!(!log.reclaim(&is_live).unwrap(), "one round is enough for this");
    expect_live_bodies(&log, &entries);
    assert!(segments(&disk) <= 2, "{:?}", disk.list());
    assert!(matches!(log.read_body(7, 0, 10), Err(StorageError::NoBody { index: 7 })));
    let before = disk.counters();
    log.reclaim(&is_live).unwrap();
    assert!(disk.counters().bytes_written - before.bytes_written < 1000, "something is moved twice");
    drop(log);
    let log = open(&disk.crash(Survival::Nothing), 3).unwrap();
    expect_live_bodies(&log, &entries);
    assert_eq!(log.entries(591, 600, usize::MAX, true).unwrap(), entries[591..]);
}

/// The record of a mended entry is another one than that of an entry, and its body is found like any.
#[test]
fn a_mended_body_does_not_keep_its_segment() {
    let (disk, entries) = (SimulatedDisk::new(), (0..600).map(|i| entry(1, i, 60, 1500)).collect::<Vec<_>>());
    let log = open(&disk, 1).unwrap();
    for chunk in entries.chunks(20) {
        append(&log, chunk).unwrap();
        if chunk[0].id.index == 200 {
            log.mend_entry(entries[25].clone(), Box::new(|_| ()));
        }
    }
    purge(&log, entries[590].id);
    drop(log);
    for log in [open(&disk.copy(), 2).unwrap(), open(&disk, 2).unwrap()] {
        assert!(!log.reclaim(&is_live).unwrap());
        expect_live_bodies(&log, &entries);
    }
    assert!(segments(&disk) <= 2, "{:?}", disk.list());
}

/// Two segments that cannot be emptied, with more live bytes than one call moves: there is nothing to come back for.
#[test]
fn what_cannot_be_moved_is_no_reason_to_try_again_at_once() {
    const LARGE_SEGMENT_BYTES: u64 = 36 << 20;
    let disk = SimulatedDisk::new();
    let options = Options { segment_bytes: LARGE_SEGMENT_BYTES, cache_bytes: 0, seed: 1, threading: Threading::Pumped };
    let log = Log::open_on(Arc::new(disk.clone()), options).unwrap();
    // Too small to be punched out.
    let content = body(&entry(1, 0, 0, 65_000)).clone();
    let whole = |index| Entry { body: Body::Bytes(content.clone()), ..entry(1, index, 60, 0) };
    let entries: Vec<_> = (0..1200).map(whole).collect();
    entries.chunks(50).for_each(|chunk| append(&log, chunk).unwrap());
    purge(&log, entries[1199].id);
    // A bit less than half, which is 17 MiB of each segment.
    let is_live = |index: u64| index % 32 < 15;
    let names: Vec<_> = disk.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")).collect();
    assert!(names.len() > 2, "{names:?}");
    for name in &names[..2] {
        // In the first two bodies, of which one is live.
        assert!(disk.flip_bit(name, 30_000, 1) && disk.flip_bit(name, 98_000, 1));
    }
    assert!(!log.reclaim(&is_live).unwrap());
    assert!(names.iter().all(|name| disk.list().unwrap().contains(name)));
}

#[test]
fn a_crash_at_any_step_of_a_compaction_loses_nothing_live() {
    let (disk, entries) = purged();
    let whole = {
        let disk = disk.copy();
        open(&disk, 2).unwrap().reclaim(&is_live).unwrap();
        disk.counters().operations
    };
    assert!(whole > 20, "{whole} changes");
    for at in 0..whole {
        for survival in [Survival::Nothing, Survival::Everything, Survival::Random(at)] {
            let disk = disk.copy();
            disk.halt_after(at);
            let log = open(&disk, 2);
            if let Ok(log) = &log {
                let _ = log.reclaim(&is_live);
            }
            drop(log);
            let disk = disk.crash(survival);
            let log = open(&disk, 3).unwrap();
            expect_live_bodies(&log, &entries);
            log.reclaim(&is_live).unwrap();
            expect_live_bodies(&log, &entries);
        }
    }
}

#[test]
fn a_body_that_does_not_verify_is_left_for_the_repair() {
    let (disk, entries) = purged();
    let content = disk.content("0000000000000001.seg").unwrap();
    let bytes = body(&entries[25]);
    let at = content.windows(bytes.len()).position(|window| window == bytes).unwrap();
    assert!(disk.flip_bit("0000000000000001.seg", at as u64 + 9, 1));
    let log = open(&disk, 2).unwrap();
    log.reclaim(&is_live).unwrap();
    assert!(matches!(log.read_body(25, 0, 100), Err(StorageError::Damaged { index: Some(25), .. })));
    let (done, _) = waiter();
    log.import_body(25, bytes.clone(), done);
    log.reclaim(&is_live).unwrap();
    expect_live_bodies(&log, &entries);
    assert!(segments(&disk) <= 2, "{:?}", disk.list());
}

/// What is truncated or replaced while space is given back is not durably so: a crash may bring it back.
#[test]
fn nothing_is_given_back_for_what_is_not_durable() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    let entries: Vec<_> = (0..12).map(|i| entry(1, i, 50, 66_000)).collect();
    entries.chunks(2).for_each(|chunk| append(&log, chunk).unwrap());
    purge(&log, entries[1].id);
    let log_too = log.clone();
    let truncated = std::cell::Cell::new(false);
    let truncate = |_| {
        if !truncated.replace(true) {
            log_too.truncate_after(Some(entries[2].id), Box::new(|_| ()));
        }
        true
    };
    log.reclaim(&truncate).unwrap();
    assert!(truncated.get());
    let log = open(&disk.crash(Survival::Everything), 2).unwrap();
    assert_eq!(log.entries(2, 12, usize::MAX, true).unwrap(), entries[2..]);

    let (disk, entries) = purged();
    let log = open(&disk, 2).unwrap();
    let (log_too, replaced) = (log.clone(), std::cell::Cell::new(false));
    let replace = |index| {
        if !replaced.replace(true) {
            for entry in &entries[..100] {
                log_too.import_body(entry.id.index, body(entry).clone(), Box::new(|_| ()));
            }
        }
        index < 100
    };
    log.reclaim(&replace).unwrap();
    let log = open(&disk.crash(Survival::Everything), 3).unwrap();
    for entry in &entries[..100] {
        assert_eq!(log.read_body(entry.id.index, 0, 100).unwrap(), body(entry).slice(..100));
    }
}

#[test]
fn the_reserve_outlives_a_full_disk_and_a_restart() {
    let (disk, entries) = purged();
    let log = open(&disk, 2).unwrap();
    log.replenish().unwrap();
    assert_eq!(spares(&disk), 2);
    assert!(log.room().free > SEGMENT_BYTES);

    // Someone else takes all the rest.
    let used = |disk: &SimulatedDisk| {
        let names = disk.list().unwrap();
        names.iter().map(|name| disk.open(name).unwrap().allocated().unwrap()).sum::<u64>()
    };
    disk.set_capacity(Some(used(&disk)));
    assert!(log.room().free < SEGMENT_BYTES && log.room().with_reserve >= SEGMENT_BYTES, "{:?}", log.room());
    drop(log);
    let disk = disk.kill();
    let log = open(&disk, 3).unwrap();
    assert_eq!(spares(&disk), 2, "kept over the restart");

    // As many entries as the room with the reserve promises, then a vote.
    let mut next = 600;
    while log.room().with_reserve > 8000 {
        append(&log, &[entry(2, next, 100, 2000)]).unwrap();
        next += 1;
    }
    assert_eq!((log.room().free, spares(&disk)), (0, 1));
    let (done, voted) = waiter();
    log.save_vote(Bytes::from_static(b"vote"), done);
    while log.pump() {}
    voted.recv().unwrap().unwrap();

    // Freeing brings the room and the reserve back: first the dead segments, then the compacted.
    log.reclaim(&is_live).unwrap();
    log.replenish().unwrap();
    expect_live_bodies(&log, &entries);
    assert_eq!(spares(&disk), 2);
    assert!(log.room().free >= SEGMENT_BYTES, "{:?}", log.room());
    drop(log);
    let log = open(&disk.crash(Survival::Nothing), 4).unwrap();
    assert_eq!(log.state().last.unwrap().index, next - 1);
}

/// Giving space back takes its time: what is taken from the reserve meanwhile is replaced meanwhile.
#[test]
fn the_reserve_is_filled_up_during_a_reclaim() {
    let (disk, entries) = purged();
    let log = open(&disk, 2).unwrap();
    let filled = std::cell::OnceCell::new();
    let looked_at = |index| {
        filled.get_or_init(|| {
            let (log, (done, result)) = (log.clone(), std::sync::mpsc::channel());
            std::thread::spawn(move || done.send(log.replenish()));
            result.recv_timeout(Duration::from_secs(20)).expect("it waits for the reclaim").unwrap();
            spares(&disk)
        });
        is_live(index)
    };
    log.reclaim(&looked_at).unwrap();
    assert_eq!(filled.get(), Some(&2));
    log.replenish().unwrap();
    assert!((2..=3).contains(&spares(&disk)), "{:?}", disk.list());
    expect_live_bodies(&log, &entries);
}

#[test]
fn a_snapshot_on_a_full_disk_uses_the_reserve_but_its_last_segment() {
    let (disk, entries) = purged();
    let log = open(&disk, 2).unwrap();
    log.replenish().unwrap();
    disk.set_capacity(Some(0));
    let write = |index: usize, items| {
        let (meta, bytes) = snapshot(entries[index].id, items);
        log.write_snapshot(entries[index].id, meta, &mut bytes.map(Ok))
    };
    disk.set_capacity(Some(disk_bytes(&disk)));
    write(500, 20).unwrap();
    assert_eq!(spares(&disk), 1);
    assert_eq!(log.open_snapshot().unwrap().unwrap().last, entries[500].id);

    disk.set_capacity(Some(disk_bytes(&disk)));
    let error = write(510, 300).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(spares(&disk), 1, "the last is for votes");
    assert_eq!(log.open_snapshot().unwrap().unwrap().last, entries[500].id, "the older one stays");
    assert!(!disk.list().unwrap().iter().any(|name| name.ends_with(".tmp")));
    append(&log, &[entry(2, 600, 100, 100)]).unwrap();
}

fn disk_bytes(disk: &SimulatedDisk) -> u64 {
    let names = disk.list().unwrap();
    names.iter().map(|name| disk.open(name).unwrap().allocated().unwrap()).sum()
}

/// Every power cut leaves a torn write; each is kept a while, and a full disk does not stop the node.
#[test]
fn copies_of_torn_writes_are_few_and_a_full_disk_does_without() {
    let mut disk = SimulatedDisk::new();
    let copies = |disk: &SimulatedDisk| {
        let names = disk.list().unwrap();
        names.into_iter().filter(|name| name.starts_with("torn-")).collect::<Vec<_>>()
    };
    let mut newest = Vec::new();
    for round in 0..8 {
        let log = open(&disk, round).unwrap();
        log.replenish().unwrap();
        let next = log.state().last.map_or(0, |last| last.index + 1);
        if round == 7 {
            disk.set_capacity(Some(disk_bytes(&disk)));
        }
        append(&log, &[entry(1, next, 10, 3000)]).unwrap();
        let before = disk.counters();
        disk.fail_write_after(0, libc::EIO);
        assert!(append(&log, &[entry(1, next + 1, 10, 3000)]).is_err());
        assert!(disk.counters().writes > before.writes);
        drop(log);
        disk = disk.crash(Survival::Everything);
        let found = copies(&disk);
        assert!(found.len() <= 4, "{found:?}");
        if round < 7 {
            newest = found;
        }
    }
    // And one that has nothing to give back, because its only spare is the last one.
    let poor = disk.copy();
    let spare = poor.list().unwrap().into_iter().find(|name| name.ends_with(".free")).unwrap();
    poor.remove(&spare).unwrap();
    poor.set_capacity(Some(disk_bytes(&poor)));
    for disk in [disk, poor] {
        let log = open(&disk, 9).unwrap();
        assert_eq!(log.state().last.unwrap().index, 7);
        assert_eq!(copies(&disk).len(), 4, "{:?} after {newest:?}", copies(&disk));
        append(&log, &[entry(1, 8, 10, 3000)]).unwrap();
    }
}

/// A disk on which the first sync of a segment's records waits once the directory was synced for that segment: the log is
/// between the two halves of a batch.
#[derive(Clone)]
struct HalfwayDisk {
    disk: SimulatedDisk,
    armed: Arc<AtomicBool>,
    rolled: Arc<AtomicBool>,
    halfway: Arc<Barrier>,
}

struct HalfwayFile {
    file: Arc<dyn DiskFile>,
    disk: HalfwayDisk,
}

impl HalfwayDisk {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HalfwayFile { file, disk: self.clone() })
    }
}

impl Disk for HalfwayDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.open(name)?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.create(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.rolled.store(self.armed.load(Ordering::SeqCst), Ordering::SeqCst);
        self.disk.sync_dir()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
    fn path_of(&self, name: &str) -> String {
        self.disk.path_of(name)
    }
}

impl DiskFile for HalfwayFile {
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        self.file.preallocate(bytes)
    }
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.file.write_at(offset, slices)
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.disk.rolled.swap(false, Ordering::SeqCst) {
            self.disk.armed.store(false, Ordering::SeqCst);
            self.disk.halfway.wait();
            // Time for the reclaim to look; it then waits for this batch.
            std::thread::sleep(Duration::from_millis(300));
        }
        self.file.sync_data()
    }
    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.file.punch_hole(offset, bytes)
    }
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }
}

/// The log is empty, as after an install, and the batch behind it goes over the end of a segment: its first half is durable
/// before the log knows where it is.
#[test]
fn a_segment_with_half_of_a_batch_outlives_a_reclaim() {
    let disk = SimulatedDisk::new();
    let halfway = HalfwayDisk {
        disk: disk.clone(),
        armed: Arc::default(),
        rolled: Arc::default(),
        halfway: Arc::new(Barrier::new(2)),
    };
    let options = Options { segment_bytes: SEGMENT_BYTES, cache_bytes: 0, seed: 1, threading: Threading::Own };
    let log = Log::open_on(Arc::new(halfway.clone()), options).unwrap();
    let wait = |call: &dyn Fn(Done)| {
        let (done, result) = waiter();
        call(done);
        result.recv().unwrap().unwrap();
    };
    wait(&|done| log.append(vec![entry(1, 0, 10, 100_000)], done));
    wait(&|done| log.purge(EntryId { term: 2, node: 9, index: 10 }, done));
    let batch: Vec<_> = (11..15).map(|i| entry(2, i, 10, 60_000)).collect();
    halfway.armed.store(true, Ordering::SeqCst);
    let (done, appended) = waiter();
    log.append(batch.clone(), done);
    halfway.halfway.wait();
    log.reclaim(&|_| false).unwrap();
    appended.recv().unwrap().unwrap();
    assert_eq!(log.entries(11, 99, usize::MAX, true).unwrap(), batch);
    drop(log);
    let log = open(&disk.crash(Survival::Nothing), 2).unwrap();
    assert_eq!(log.entries(11, 99, usize::MAX, true).unwrap(), batch);
}
