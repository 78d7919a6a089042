//! Damage is found, and good copies take its place for good.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::super::disk::Disk;
use super::super::simulated::{SimulatedDisk, Survival};
use super::super::{Body, Entry, EntryId, Log, Options, StorageError, Threading};
use super::faults::{SEGMENT_BYTES, append, header_of, open, purge, written};
use super::{body, entry, waiter};

const FIRST: &str = "0000000000000001.seg";

fn options(seed: u64) -> Options {
    Options { segment_bytes: SEGMENT_BYTES, cache_bytes: 0, seed, threading: Threading::Pumped }
}

fn mend(log: &Log, entry: &Entry) {
    let (done, result) = waiter();
    log.mend_entry(entry.clone(), done);
    while log.pump() {}
    result.recv().unwrap().unwrap();
}

/// The indexes that a scrub of the whole log complains about.
fn damaged(log: &Log) -> Vec<u64> {
    let mut found = Vec::new();
    let mut next = log.next_stored(0);
    while let Some(index) = next {
        match log.verify(index) {
            Ok(_) => {}
            Err(StorageError::Damaged { index: Some(at), .. }) if at == index => found.push(index),
            Err(other) => panic!("entry {index}: {other}"),
        }
        next = log.next_stored(index + 1);
    }
    found
}

/// The last segment, in which headers are read at each opening.
pub fn last_segment(disk: &SimulatedDisk) -> String {
    disk.list().unwrap().into_iter().rfind(|name| name.ends_with(".seg")).unwrap()
}

#[test]
fn every_flipped_bit_of_a_record_is_found_by_looking() {
    let (disk, entries) = written();
    let log = open(&disk, 2).unwrap();
    assert!(damaged(&log).is_empty());
    for index in [0usize, 1] {
        let at = header_of(&disk, FIRST, &entries[index]);
        let table = 4 * body(&entries[index]).len().div_ceil(16 << 10) as u64;
        let command = at + 64 + table;
        let content = disk.content(FIRST).unwrap();
        let in_body = content.windows(64).position(|w| w == &body(&entries[index])[..64]).unwrap() as u64;
        for offset in (at..at + 64).chain([at + 64, command, command + 49, in_body, in_body + 399]) {
            disk.flip_bit(FIRST, offset, 3);
            assert_eq!(damaged(&log), [index as u64], "byte {}", offset - at);
            disk.flip_bit(FIRST, offset, 3);
        }
    }
}

#[test]
fn a_mended_entry_is_whole_after_a_crash_and_nothing_else_changes() {
    let (disk, entries) = written();
    let at = header_of(&disk, FIRST, &entries[0]);
    for offset in [at + 20, at + 64, at + 64 + 20 + 7] {
        let disk = disk.copy();
        assert!(disk.flip_bit(FIRST, offset, 1));
        let log = open(&disk, 2).unwrap();
        assert!(log.entries(0, 1, usize::MAX, true).is_err());
        assert!(log.accepts_entry(&entries[0]).unwrap());
        mend(&log, &entries[0]);
        let whole = |log: Log| {
            assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), entries);
            assert_eq!(log.read_body(0, 0, 66_000).unwrap(), body(&entries[0]));
            assert!(damaged(&log).is_empty());
            assert_eq!((log.state().last, log.vote().unwrap()), (Some(entries[11].id), "vote".into()));
        };
        whole(log);
        whole(open(&disk.crash(Survival::Nothing), 3).unwrap());
    }
}

#[test]
fn only_the_entry_itself_can_mend_it() {
    let (disk, entries) = written();
    let log = open(&disk, 2).unwrap();
    let good = &entries[0];
    let id = |id: EntryId| Entry { id, ..good.clone() };
    let flipped = |bytes: &Bytes| -> Bytes { bytes.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 5)).collect() };
    let others = [
        id(EntryId { term: 2, ..good.id }),
        id(EntryId { node: 4, ..good.id }),
        id(EntryId { index: 3, ..good.id }),
        Entry { command: good.command.slice(1..), ..good.clone() },
        Entry { command: flipped(&good.command), ..good.clone() },
        Entry { body: Body::Bytes(flipped(body(good))), ..good.clone() },
        Entry { body: Body::Bytes(body(good).slice(1..)), ..good.clone() },
        Entry { body: Body::Absent(66_000), ..good.clone() },
    ];
    for other in others {
        assert!(!log.accepts_entry(&other).unwrap(), "{:?}", other.id);
    }
    assert!(log.accepts_entry(good).unwrap());
    assert!(!log.accepts_body(0, &flipped(body(good))).unwrap());
    assert!(log.accepts_body(0, body(good)).unwrap());
}

#[test]
fn a_mended_entry_may_be_truncated_and_purged_like_any_other() {
    let (disk, entries) = written();
    let log = open(&disk, 2).unwrap();
    mend(&log, &entries[3]);
    mend(&log, &entries[10]);
    // The mended copy of entry 3 lies behind entries 4 to 11: these are not given back with what is in front of it.
    purge(&log, entries[2].id);
    log.reclaim(&|_| false).unwrap();
    assert_eq!(open(&disk.copy(), 3).unwrap().entries(3, 99, usize::MAX, true).unwrap(), entries[3..]);
    let (done, _) = waiter();
    log.truncate_after(Some(entries[8].id), done);
    let newer = entry(2, 9, 50, 300);
    append(&log, std::slice::from_ref(&newer)).unwrap();
    drop(log);
    let log = open(&disk.copy(), 3).unwrap();
    assert_eq!(log.entries(3, 99, usize::MAX, true).unwrap(), [&entries[3..9], &[newer]].concat());
    // What is not in the log is not mended into it.
    mend(&log, &entries[10]);
    assert_eq!(log.state().last.map(|last| last.index), Some(9));
}

/// What an opening asks for, and what it is given.
pub fn opened_with(disk: &SimulatedDisk, peer: &[Entry]) -> (Result<Log, StorageError>, Vec<Range<u64>>) {
    let asked = std::cell::RefCell::new(Vec::new());
    let supply = |range: Range<u64>| {
        asked.borrow_mut().push(range.clone());
        peer.iter().filter(|entry| range.contains(&entry.id.index)).cloned().collect()
    };
    let log = Log::open_supplied_on(Arc::new(disk.clone()), options(2), &supply);
    (log, asked.into_inner())
}

#[test]
fn an_entry_whose_header_is_lost_comes_from_a_peer_at_the_opening() {
    let (disk, entries) = written();
    let name = last_segment(&disk);
    let content = disk.content(&name).unwrap();
    let held = |entry: &&Entry| content.windows(entry.command.len()).any(|window| window == entry.command);
    let victim = entries.iter().filter(held).nth(1).expect("the last segment holds several entries").id.index as usize;
    assert!(victim < 11);
    assert!(disk.flip_bit(&name, header_of(&disk, &name, &entries[victim]) + 20, 3));

    let (refused, asked) = opened_with(&disk.copy(), &[]);
    let hole_and_neighbours = victim as u64 - 1..victim as u64 + 2;
    assert!(asked.iter().eq([&hole_and_neighbours]), "{asked:?}");
    match refused.map(|log| log.state()).unwrap_err() {
        StorageError::Damaged { file, index, .. } => assert_eq!((file, index), (name.clone(), Some(victim as u64))),
        other => panic!("{other}"),
    }
    // A peer whose neighbours are others has another history there.
    let mut other = entries.clone();
    other[victim + 1].id.term += 1;
    assert!(opened_with(&disk.copy(), &other).0.is_err());

    let (log, _) = opened_with(&disk, &entries);
    let log = log.unwrap();
    assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), entries, "readable at once");
    while log.pump() {}
    drop(log);
    let (log, asked) = opened_with(&disk.crash(Survival::Nothing), &[]);
    assert!(asked.is_empty(), "it is whole again");
    let log = log.unwrap();
    assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), entries);
    assert!(damaged(&log).is_empty());
}
