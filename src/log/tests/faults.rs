//! Failing writes and syncs, a full disk, rot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::super::disk::Disk;
use super::super::simulated::{SimulatedDisk, Survival};
use super::super::{Entry, EntryId, Log, Options, StorageError, Threading};
use super::rig::snapshot;
use super::{body, entry, waiter};

pub const SEGMENT_BYTES: u64 = 256 << 10;

fn open_with(disk: &SimulatedDisk, seed: u64, threading: Threading) -> Result<Log, StorageError> {
    let options = Options { segment_bytes: SEGMENT_BYTES, cache_bytes: 0, seed, threading };
    Log::open_on(Arc::new(disk.clone()), options)
}

pub fn open(disk: &SimulatedDisk, seed: u64) -> Result<Log, StorageError> {
    open_with(disk, seed, Threading::Pumped)
}

/// Append and pump; what the callback was told.
pub fn append(log: &Log, entries: &[Entry]) -> Result<(), Arc<StorageError>> {
    let (done, result) = waiter();
    log.append(entries.to_vec(), done);
    while log.pump() {}
    result.recv().unwrap()
}

pub fn purge(log: &Log, upto: EntryId) {
    let (done, result) = waiter();
    log.purge(upto, done);
    while log.pump() {}
    result.recv().unwrap().unwrap();
}

/// Twelve entries over three segments, the last one unsealed, every one proven durable by a mark.
pub fn written() -> (SimulatedDisk, Vec<Entry>) {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    let (done, _) = waiter();
    log.save_vote(Bytes::from_static(b"vote"), done);
    let entries: Vec<_> = (0..12).map(|i| entry(1, i, 50, [66_000, 400, 20_000][i as usize % 3])).collect();
    entries.chunks(2).for_each(|chunk| append(&log, chunk).unwrap());
    log.save_committed(Some(entries[11].id));
    while log.pump() {}
    assert!(disk.list().unwrap().len() >= 2);
    drop(log);
    (disk.kill(), entries)
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_nothing_is_tried_again() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let disk = SimulatedDisk::new();
        let log = open(&disk, 1).unwrap();
        let failures = Arc::new(AtomicUsize::new(0));
        let count = failures.clone();
        log.on_failure(Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        let entries: Vec<_> = (0..4).map(|i| entry(1, i, 10, 1000)).collect();
        append(&log, &entries[..1]).unwrap();
        disk.fail_sync_after(0, errno);
        let (done, second) = waiter();
        log.append(entries[1..2].to_vec(), done);
        let (done, third) = waiter();
        log.append(entries[2..3].to_vec(), done);
        assert!(!log.pump());
        let counters = disk.counters();
        assert!(matches!(&*second.recv().unwrap().unwrap_err(), StorageError::Io { operation: "sync", .. }));
        assert!(third.recv().unwrap().is_err());
        assert!(append(&log, &entries[3..4]).is_err());
        let (done, vote) = waiter();
        log.save_vote(Bytes::from_static(b"v"), done);
        assert!(vote.recv().unwrap().is_err());
        assert!(log.reclaim(&|_| true).is_err());
        assert_eq!(log.state().durable, Some(entries[0].id));
        assert_eq!(log.entries(0, 9, usize::MAX, true).unwrap(), entries[..3], "reads go on");
        drop(log);
        assert_eq!(failures.load(Ordering::SeqCst), 1);
        assert_eq!(disk.counters().writes, counters.writes, "no write after the failure");
        assert_eq!(disk.counters().syncs, counters.syncs, "no sync after the failure");

        // The page cache still shows the lost batch. What the next process serves must survive a power cut.
        let disk = disk.kill();
        let log = open(&disk, 2).unwrap();
        let held = log.entries(0, 9, usize::MAX, true).unwrap();
        assert!(!held.is_empty());
        let log = open(&disk.crash(Survival::Nothing), 3).unwrap();
        assert_eq!(log.entries(0, 9, usize::MAX, true).unwrap(), held);
    }
}

#[test]
fn a_failed_write_ends_the_log_and_the_next_opening_recovers() {
    for at in 0..3 {
        let disk = SimulatedDisk::new();
        let log = open_with(&disk, 1, Threading::Own).unwrap();
        let entries: Vec<_> = (0..20).map(|i| entry(1, i, 10, 66_000)).collect();
        disk.fail_write_after(at, libc::EIO);
        let receivers: Vec<_> = (entries.iter())
            .map(|entry| {
                let (done, result) = waiter();
                log.append(vec![entry.clone()], done);
                result
            })
            .collect();
        let good = receivers.iter().take_while(|result| result.recv().unwrap().is_ok()).count();
        assert!(good < 20);
        assert!(receivers[good + 1..].iter().all(|result| result.recv().unwrap().is_err()), "in order");
        drop(log);
        let log = open(&disk.crash(Survival::Random(at)), 2).unwrap();
        assert_eq!(log.entries(0, good as u64, usize::MAX, true).unwrap(), entries[..good]);
    }
}

#[test]
fn a_full_disk_fails_cleanly_and_recovers_when_there_is_room() {
    let (disk, entries) = written();
    let log = open(&disk, 2).unwrap();
    disk.set_capacity(Some(4 * SEGMENT_BYTES));
    let more: Vec<_> = (12..40).map(|i| entry(1, i, 50, 66_000)).collect();
    let good = more.iter().take_while(|entry| append(&log, std::slice::from_ref(entry)).is_ok()).count();
    assert!(good < more.len());
    drop(log);
    let disk = disk.crash(Survival::Nothing);
    disk.set_capacity(Some(6 * SEGMENT_BYTES));
    let log = open(&disk, 3).unwrap();
    assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), [&entries[..], &more[..good]].concat());
    append(&log, &more[good..good + 3]).unwrap();
}

/// What a log says about one entry: its right bytes, or that it is damaged.
fn read_all(log: &Log, entries: &[Entry]) -> usize {
    let mut damaged = 0;
    for entry in entries {
        let index = entry.id.index;
        match log.entries(index, index + 1, usize::MAX, true) {
            Ok(read) => assert_eq!(read, std::slice::from_ref(entry)),
            Err(StorageError::Damaged { index: Some(at), .. }) => {
                assert_eq!(at, index);
                damaged += 1;
            }
            Err(other) => panic!("{other}"),
        }
        match log.read_body(index, 0, body(entry).len() as u32) {
            Ok(bytes) => assert_eq!(bytes, body(entry)),
            Err(StorageError::Damaged { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    damaged
}

#[test]
fn a_flipped_bit_is_never_served_and_never_cut() {
    let (disk, entries) = written();
    let names = disk.list().unwrap();
    let (mut refused, mut met, mut harmless) = (0, 0, 0);
    for (i, name) in names.iter().enumerate() {
        let bytes = disk.content(name).unwrap();
        let end = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        // Every byte near the head and the end, where headers and seals are; samples of the bodies between.
        let offsets = (0..1500).chain((1500..end).step_by(601)).chain(end.saturating_sub(400)..end);
        for offset in offsets {
            let disk = disk.copy();
            assert!(disk.flip_bit(name, offset as u64, (offset + i) as u8));
            match open(&disk, 2) {
                Ok(log) => {
                    assert_eq!(log.state().last, Some(entries[11].id), "{name} {offset}: cut");
                    assert_eq!(log.vote().unwrap(), "vote");
                    match read_all(&log, &entries) {
                        0 => harmless += 1,
                        _ => met += 1,
                    }
                }
                Err(StorageError::Damaged { file, .. }) => {
                    assert_eq!(&file, name);
                    refused += 1;
                }
                Err(other) => panic!("{name} {offset}: {other}"),
            }
        }
    }
    assert!(refused > 300 && met > 1500 && harmless > 100, "{refused} refused, {met} met, {harmless} harmless");
}

/// Headers and trailer show together that nothing else is missing; and what the segment holds can still be moved.
#[test]
fn a_lost_seal_costs_nothing_and_its_segment_can_be_emptied() {
    let (disk, entries) = written();
    let (name, content) = ("0000000000000001.seg", disk.content("0000000000000001.seg").unwrap());
    let trailer: &[u8; 64] = content[content.len() - 64..].try_into().unwrap();
    let seal = u32::from_le_bytes([trailer[12], trailer[13], trailer[14], trailer[15]]) as u64;
    for at in (seal..seal + 64).chain([seal + 64]) {
        let disk = disk.copy();
        assert!(disk.flip_bit(name, at, at as u8));
        let log = open(&disk, 2).unwrap();
        assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), entries);
        purge(&log, entries[11].id);
        log.reclaim(&|index| index == 1).unwrap();
        assert!(!disk.list().unwrap().contains(&name.into()), "byte {}", at - seal);
        assert_eq!(log.read_body(1, 0, 400).unwrap(), body(&entries[1]));
    }
    // With the record in front of it, something is missing; and without the trailer, nobody knows.
    let last = entries.iter().rfind(|entry| content.windows(50).any(|window| window == entry.command)).unwrap();
    for other in [header_of(&disk, name, last) + 20, SEGMENT_BYTES - 60] {
        let disk = disk.copy();
        assert!(disk.flip_bit(name, seal + 20, 1) && disk.flip_bit(name, other, 1));
        assert!(matches!(open(&disk, 2), Err(StorageError::Damaged { .. })), "offset {other}");
    }
}

/// No entry follows that would show the hole; what was written behind it still proves that it was durable.
#[test]
fn the_last_entry_is_never_cut_when_a_later_record_proves_it_durable() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    let entries: Vec<_> = (0..4).map(|i| entry(1, i, 50, 300)).collect();
    entries.iter().for_each(|entry| append(&log, std::slice::from_ref(entry)).unwrap());
    drop(log);
    let name = "0000000000000001.seg";
    let at = header_of(&disk, name, &entries[3]);
    let (mut refused, mut whole) = (0, 0);
    for byte in 0..64 {
        let disk = disk.copy();
        assert!(disk.flip_bit(name, at + byte, byte as u8));
        match open(&disk, 2) {
            Ok(log) => {
                assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), entries, "byte {byte}: cut");
                whole += 1;
            }
            Err(StorageError::Damaged { file, offset, index, .. }) => {
                assert_eq!((file.as_str(), offset, index), (name, at, Some(3)));
                refused += 1;
            }
            Err(other) => panic!("byte {byte}: {other}"),
        }
    }
    assert_eq!((refused, whole), (64, 0));
}

#[test]
fn damage_that_a_snapshot_covers_is_dropped_with_the_log_in_front_of_it() {
    let (disk, entries) = written();
    let name = "0000000000000001.seg";
    // The trailer, so that headers are read; then the header of an entry.
    assert!(disk.flip_bit(name, SEGMENT_BYTES - 60, 0));
    let at = header_of(&disk, name, &entries[2]);
    assert!(disk.flip_bit(name, at + 20, 3));
    match open(&disk.copy(), 2) {
        Err(StorageError::Damaged { file, offset, index, .. }) => {
            assert_eq!((file.as_str(), offset, index), (name, at, Some(2)));
        }
        other => panic!("{:?}", other.map(|log| log.state())),
    }
    let snapshot_disk = disk.copy();
    {
        let whole = SimulatedDisk::new();
        let log = open(&whole, 1).unwrap();
        log.write_snapshot(entries[4].id, Bytes::new(), &mut std::iter::empty()).unwrap();
        let bytes = whole.content(&format!("snapshot-{:020}", 4)).unwrap();
        let file = snapshot_disk.create(&format!("snapshot-{:020}", 4)).unwrap();
        file.write_at(0, &mut [std::io::IoSlice::new(&bytes)]).unwrap();
    }
    let log = open(&snapshot_disk, 2).unwrap();
    assert_eq!(log.state().last_purged, Some(entries[4].id));
    assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), entries[5..]);
    assert_eq!(log.read_body(0, 0, 66_000).unwrap(), body(&entries[0]));
    assert!(matches!(log.read_body(2, 0, 1), Err(StorageError::NoBody { index: 2 })));
}

/// Where the header of this entry's record is, found by its command.
pub fn header_of(disk: &SimulatedDisk, name: &str, entry: &Entry) -> u64 {
    let bytes = disk.content(name).unwrap();
    let at = bytes.windows(entry.command.len()).position(|window| window == entry.command).unwrap();
    let table = body(entry).len().div_ceil(16 << 10) * 4;
    (at - table - 64) as u64
}

#[test]
fn a_damaged_body_is_repaired_by_an_import() {
    let (disk, entries) = written();
    let log = open(&disk, 2).unwrap();
    let at = header_of(&disk, "0000000000000001.seg", &entries[1]);
    assert!(disk.flip_bit("0000000000000001.seg", at + 64 + 4 + 50 + 17, 1));
    assert!(matches!(log.read_body(1, 0, 400), Err(StorageError::Damaged { index: Some(1), .. })));
    assert!(matches!(log.entries(1, 2, 9999, true), Err(StorageError::Damaged { index: Some(1), .. })));
    let (done, _) = waiter();
    log.import_body(1, body(&entries[1]).clone(), done);
    for _ in 0..2 {
        assert_eq!(log.read_body(1, 0, 400).unwrap(), body(&entries[1]));
        assert_eq!(log.entries(1, 2, 9999, true).unwrap(), entries[1..2]);
        while log.pump() {}
    }
    // A wrong body repairs nothing.
    let (done, _) = waiter();
    log.import_body(1, Bytes::from(vec![7; 400]), done);
    assert!(log.read_body(1, 0, 400).is_err());
}

#[test]
fn a_damaged_snapshot_is_skipped_and_missed_only_when_the_log_was_purged() {
    let (disk, entries) = written();
    let log = open(&disk, 2).unwrap();
    let items: Vec<Bytes> = (0..3).map(|i| Bytes::from(vec![i; 1000])).collect();
    log.write_snapshot(entries[5].id, Bytes::from_static(b"meta"), &mut items.clone().into_iter().map(Ok)).unwrap();
    let name = format!("snapshot-{:020}", 5);
    let length = disk.content(&name).unwrap().len() as u64;
    let read = |log: &Log| {
        let reader = log.open_snapshot()?.map(|reader| (reader.last, reader.meta.clone(), reader.collect::<Vec<_>>()));
        Ok::<_, StorageError>(reader)
    };
    let (last, meta, held) = read(&log).unwrap().unwrap();
    assert_eq!((last, &meta[..]), (entries[5].id, &b"meta"[..]));
    assert_eq!(held.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), items);
    let mut older = log.clone();
    for purged in [false, true] {
        if purged {
            purge(&log, entries[3].id);
        }
        for offset in 0..length {
            disk.flip_bit(&name, offset, 5);
            match (purged, read(&older)) {
                (false, Ok(None)) | (true, Err(StorageError::Damaged { .. })) => {}
                (_, other) => panic!("byte {offset}: {other:?}"),
            }
            disk.flip_bit(&name, offset, 5);
        }
        older = log.clone();
    }
}

#[test]
fn an_unknown_format_is_refused_by_both_numbers() {
    let (disk, entries) = written();
    let log = open(&disk, 2).unwrap();
    log.write_snapshot(entries[5].id, Bytes::new(), &mut std::iter::empty()).unwrap();
    drop(log);
    for name in ["0000000000000002.seg", &format!("snapshot-{:020}", 5)] {
        let mut header = disk.content(name).unwrap()[..64].to_vec();
        header[8..12].copy_from_slice(&7u32.to_le_bytes());
        let crc = crc32c::crc32c(&header[..60]).to_le_bytes();
        header[60..64].copy_from_slice(&crc);
        let disk = disk.copy();
        disk.open(name).unwrap().write_at(0, &mut [std::io::IoSlice::new(&header)]).unwrap();
        let refused = match open(&disk, 3) {
            Ok(log) => log.open_snapshot().map(drop).unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(refused.to_string(), format!("{name}: format 7, this build reads 2"));
    }
}

#[test]
fn what_was_behind_a_cut_never_comes_back() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    append(&log, &[entry(1, 0, 20, 100)]).unwrap();
    let (done, _) = waiter();
    log.append(vec![entry(1, 1, 20, 100), entry(1, 2, 20, 100)], done);
    log.pump();
    let disk = disk.copy();
    let at = header_of(&disk, "0000000000000001.seg", &entry(1, 1, 20, 100));
    assert!(disk.flip_bit("0000000000000001.seg", at + 70, 1));
    let log = open(&disk, 2).unwrap();
    assert_eq!(log.state().last.map(|last| last.index), Some(0));
    assert!(disk.list().unwrap().contains(&format!("torn-1-{at}")));
    // Exactly as long as the one that was cut: the old record 2 would follow it.
    let (done, _) = waiter();
    log.append(vec![entry(2, 1, 20, 100)], done);
    log.pump();
    let log = open(&disk.copy(), 3).unwrap();
    assert_eq!(log.state().last, Some(entry(2, 1, 20, 100).id));
}

/// A Seal without a next segment: the log goes on in its place. Whatever is lost of a batch written over it, the Seal must
/// not hide the rest of that batch from the cut.
#[test]
fn what_was_written_over_a_seal_never_comes_back() {
    let lost = [entry(1, 4, 20, 300), entry(1, 5, 20, 600)];
    for sector in 0..64 {
        let disk = SimulatedDisk::new();
        let log = open(&disk, 1).unwrap();
        (0..4).for_each(|i| append(&log, &[entry(1, i, 20, 60_000)]).unwrap());
        // The power goes before the next segment is made, with all there that was written.
        let (done, _) = waiter();
        log.append(vec![entry(1, 4, 20, 60_000)], done);
        disk.halt_after(4);
        while log.pump() {}
        let disk = disk.crash(Survival::Everything);
        let log = open(&disk, 2).unwrap();
        assert_eq!(log.state().last.map(|last| last.index), Some(3));
        assert_eq!(disk.list().unwrap().len(), 1);

        let (done, _) = waiter();
        log.append(lost.to_vec(), done);
        disk.halt_after(1);
        while log.pump() {}
        let disk = disk.crash(Survival::Subset(!(1 << sector)));
        let log = open(&disk, 3).unwrap();
        let kept = log.entries(4, 99, usize::MAX, true).unwrap();
        assert!(lost.starts_with(&kept));

        let again: Vec<_> = kept.iter().cloned().chain([entry(2, 4 + kept.len() as u64, 20, 300)]).collect();
        append(&log, &again[kept.len()..]).unwrap();
        let log = open(&disk.crash(Survival::Nothing), 4).unwrap();
        assert_eq!(log.entries(4, 99, usize::MAX, true).unwrap(), again, "without sector {sector}");
    }
}

#[test]
fn a_truncated_body_never_comes_back() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    // The first segment keeps one live body and holds another that is truncated from the second one.
    let old: Vec<_> =
        [66_000, 400, 66_000, 66_000, 66_000].iter().zip(0..).map(|(size, i)| entry(1, i, 9, *size)).collect();
    old.iter().for_each(|entry| append(&log, std::slice::from_ref(entry)).unwrap());
    let (done, _) = waiter();
    log.truncate_after(Some(old[0].id), done);
    let new: Vec<_> = (1..9).map(|i| entry(2, i, 9, if i == 1 { 0 } else { 66_000 })).collect();
    new.iter().for_each(|entry| append(&log, std::slice::from_ref(entry)).unwrap());
    log.save_committed(Some(EntryId { index: 100, ..new[7].id }));
    assert_eq!(log.committed(), Some(new[7].id), "at most what is durable");
    purge(&log, new[7].id);
    log.reclaim(&|index| index == 0).unwrap();
    for log in [log, open(&disk.copy(), 2).unwrap()] {
        assert!(matches!(log.read_body(1, 0, 400), Err(StorageError::NoBody { index: 1 })));
        assert_eq!(log.read_body(0, 0, 66_000).unwrap(), body(&old[0]));
    }
}

/// As above, when the older segment goes in one reclaim and the one with the truncation in the next, and the power goes
/// before either is durable.
#[test]
fn a_truncated_body_never_comes_back_by_halves() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    let old: Vec<_> = (0..5).map(|i| entry(1, i, 9, 60_000)).collect();
    old.iter().for_each(|entry| append(&log, std::slice::from_ref(entry)).unwrap());
    let (done, _) = waiter();
    log.truncate_after(Some(old[0].id), done);
    let new: Vec<_> = (1..9).map(|i| entry(2, i, 9, if i == 1 { 0 } else { 60_000 })).collect();
    new.iter().for_each(|entry| append(&log, std::slice::from_ref(entry)).unwrap());
    log.save_committed(Some(new[7].id));
    purge(&log, new[7].id);
    log.replenish().unwrap();
    log.reclaim(&|index| index > 1).unwrap();
    log.reclaim(&|index| index > 6).unwrap();
    assert!(!disk.list().unwrap().contains(&"0000000000000002.seg".into()));
    assert!(disk.unsynced_pieces() > 0);
    for these in 0..1 << disk.unsynced_pieces() {
        let log = open(&disk.copy().crash(Survival::Subset(these)), 2).unwrap();
        assert!(matches!(log.read_body(1, 0, 60_000), Err(StorageError::NoBody { index: 1 })), "{these:b}");
    }
}

/// A node whose disk is slow is killed between its snapshot and the purge: it holds what the snapshot has, and must not
/// be taken for an old copy of itself.
#[test]
fn a_log_that_ends_in_front_of_its_snapshot_reaches_as_far_as_that() {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    assert_eq!(log.reach(), 0);
    append(&log, &(0..3).map(|i| entry(1, i, 9, 100)).collect::<Vec<_>>()).unwrap();
    assert_eq!(log.reach(), 2);
    let last = entry(1, 10, 0, 0).id;
    let (done, _) = waiter();
    log.purge(last, done);
    let (meta, items) = snapshot(last, 3);
    log.write_snapshot(last, meta, &mut items.map(Ok)).unwrap();
    let log = open(&disk.crash(Survival::Nothing), 2).unwrap();
    assert_eq!(log.state().last.map(|last| last.index), Some(2), "the purge is lost");
    assert_eq!(log.reach(), 10);
}
