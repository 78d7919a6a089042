//! What durability costs, counted at the disk.

use std::sync::Arc;

use super::super::disk::Disk;
use super::super::simulated::SimulatedDisk;
use super::super::{Entry, Log, Options, StorageError, Threading};
use super::{body, entry, waiter};

fn open(disk: &SimulatedDisk, options: Options) -> Log {
    Log::open_on(Arc::new(disk.clone()), options).unwrap()
}

fn pumped() -> Options {
    Options { threading: Threading::Pumped, seed: 1, ..Options::default() }
}

fn queue(log: &Log, entries: &[Entry]) {
    for entry in entries {
        let (done, _) = waiter();
        log.append(vec![entry.clone()], done);
    }
}

#[test]
fn bodies_are_written_once() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, pumped());
    let before = disk.counters();
    for i in 0..256 {
        queue(&log, &[entry(1, i, 200, 1 << 20)]);
        log.pump();
    }
    let written = disk.counters().bytes_written - before.bytes_written;
    let ratio = written as f64 / (256u64 << 20) as f64;
    assert!(ratio <= 1.03, "{ratio}");
    assert_eq!(log.state().durable, log.state().last);
}

#[test]
fn a_batch_is_one_write_and_one_sync() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, pumped());
    let before = disk.counters();
    queue(&log, &(0..500).map(|i| entry(1, i, 100, 4096)).collect::<Vec<_>>());
    log.save_committed(log.state().last);
    assert!(log.pump());
    let after = disk.counters();
    assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
    let overhead = (after.bytes_written - before.bytes_written) as f64 / (500.0 * 4196.0);
    assert!(overhead < 1.03, "{overhead}");
}

#[test]
fn opening_reads_no_bodies_of_sealed_segments() {
    let disk = SimulatedDisk::new();
    let options = Options { segment_bytes: 4 << 20, ..pumped() };
    let log = open(&disk, options.clone());
    for i in 0..40 {
        queue(&log, &[entry(1, i, 200, 1 << 20)]);
        log.pump();
    }
    while log.pump() {}
    drop(log);
    let disk = disk.kill();
    let log = open(&disk, Options { seed: 2, ..options });
    // The last segment is searched behind its end.
    assert!(disk.counters().bytes_read < 5 << 20, "{}", disk.counters().bytes_read);
    assert_eq!(log.state().last.unwrap().index, 39);
}

#[test]
fn dead_space_is_given_back_and_segment_files_are_used_again() {
    let disk = SimulatedDisk::new();
    let options = Options { segment_bytes: 1 << 20, ..pumped() };
    let log = open(&disk, options);
    let mut largest = 0;
    for round in 0..40u64 {
        let entries: Vec<_> = (0..8).map(|i| entry(1, round * 8 + i, 50, 100_000)).collect();
        queue(&log, &entries);
        while log.pump() {}
        let (done, _) = waiter();
        log.purge(entries[7].id, done);
        // One body of all stays live.
        log.reclaim(&|index| index == 3).unwrap();
        largest = largest.max(log.bytes_on_disk());
        assert!(disk.list().unwrap().len() <= 6, "{:?}", disk.list());
    }
    assert!(largest < 3 << 20, "{largest}");
    assert_eq!(log.read_body(3, 0, 100_000).unwrap(), body(&entry(1, 3, 50, 100_000)));
}

/// Readers of every kind while the writer writes and segments are taken away under them: right bytes or `NoBody`.
#[test]
fn readers_are_never_told_wrong_bytes() {
    let disk = SimulatedDisk::new();
    let options = Options { segment_bytes: 512 << 10, cache_bytes: 100_000, seed: 1, threading: Threading::Own };
    let log = open(&disk, options);
    let make = |index| entry(1, index, 30, [100, 20_000, 70_000][index as usize % 3]);
    let (total, reader) = (400u64, log.clone());
    let readers: Vec<_> = (0..2)
        .map(|offset| {
            let log = reader.clone();
            std::thread::spawn(move || {
                let mut seen = 0;
                while seen + 1 < total {
                    seen = log.state().last.map_or(0, |last| last.index);
                    for index in (seen.saturating_sub(60)..=seen).skip(offset).step_by(7) {
                        let want = make(index);
                        match log.read_body(index, 0, body(&want).len() as u32) {
                            Ok(bytes) => assert_eq!(bytes, body(&want)),
                            Err(StorageError::NoBody { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                        for entry in log.entries(index, index + 3, 1 << 20, true).unwrap() {
                            assert_eq!(entry, make(entry.id.index));
                        }
                    }
                }
            })
        })
        .collect();
    for index in 0..total {
        let (done, appended) = waiter();
        log.append(vec![make(index)], done);
        if index % 10 == 9 {
            appended.recv().unwrap().unwrap();
            let (done, _) = waiter();
            log.purge(make(index - 5).id, done);
            log.reclaim(&|index| index % 50 == 1).unwrap();
        }
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    for index in (1..total - 10).step_by(50) {
        assert_eq!(
            log.read_body(index, 0, 20_000.min(body(&make(index)).len() as u32)).unwrap(),
            body(&make(index)).slice(..20_000.min(body(&make(index)).len()))
        );
    }
}
