//! The bytes on the disk do not change by accident: what this build writes is what the committed files hold, and what
//! they hold is read.
//!
//! After a deliberate change of the format (with a new number), `KEELFS_WRITE_FIXTURES=1` writes the files anew.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::super::disk::{Disk, RealDisk};
use super::super::simulated::SimulatedDisk;
use super::super::{Body, Entry, EntryId, Log, Options, Threading};
use super::{body, waiter};

const FILES: [&str; 3] = ["0000000000000001.seg", "0000000000000002.seg", "snapshot-00000000000000000001"];

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/log")
}

fn options(seed: u64) -> Options {
    Options { segment_bytes: 96 << 10, cache_bytes: 0, seed, threading: Threading::Pumped }
}

fn entry(term: u64, index: u64, body: usize) -> Entry {
    let id = EntryId { term, node: 3, index };
    let command = Bytes::from(format!("command {index} of term {term}"));
    Entry { id, command, body: Body::Bytes(vec![b'a' + index as u8; body].into()) }
}

fn entries() -> Vec<Entry> {
    vec![entry(1, 0, 0), entry(1, 1, 100), entry(2, 2, 65_536), entry(2, 3, 30_000), entry(2, 4, 5)]
}

/// A log with one record of every kind.
fn write(disk: Arc<dyn Disk>) {
    let log = Log::open_on(disk, options(0x6b65_656c)).unwrap();
    let step = |call: &dyn Fn(&Log, super::super::Done)| {
        let (done, result) = waiter();
        call(&log, done);
        assert!(log.pump());
        result.recv().unwrap().unwrap();
    };
    step(&|log, done| log.save_vote(Bytes::from_static(b"a vote"), done));
    step(&|log, done| log.append([&entries()[..2], &[entry(1, 2, 9)]].concat(), done));
    step(&|log, done| log.truncate_after(Some(entries()[1].id), done));
    step(&|log, done| log.append(entries()[2..].to_vec(), done));
    step(&|log, done| log.import_body(0, Bytes::from_static(b"imported"), done));
    step(&|log, done| log.purge(entries()[1].id, done));
    step(&|log, done| log.mend_entry(entries()[3].clone(), done));
    log.save_committed(Some(entries()[3].id));
    while log.pump() {}
    let items = [&b"one"[..], b"", b"three"].map(Bytes::from_static);
    log.write_snapshot(entries()[1].id, Bytes::from_static(b"meta"), &mut items.into_iter().map(Ok)).unwrap();
}

fn check(log: &Log) {
    assert_eq!(log.entries(0, 99, usize::MAX, true).unwrap(), entries()[2..]);
    assert_eq!(log.read_body(1, 0, 100).unwrap(), body(&entries()[1]));
    assert_eq!(log.read_body(0, 0, 8).unwrap(), "imported");
    assert_eq!((log.vote().unwrap(), log.committed()), (Bytes::from_static(b"a vote"), Some(entries()[3].id)));
    assert_eq!(log.state().last_purged, Some(entries()[1].id));
    let reader = log.open_snapshot().unwrap().unwrap();
    assert_eq!((reader.last, &reader.meta[..]), (entries()[1].id, &b"meta"[..]));
    assert_eq!(reader.collect::<Result<Vec<_>, _>>().unwrap(), ["one", "", "three"]);
}

#[test]
fn what_is_written_is_what_was_always_written() {
    let disk = SimulatedDisk::new();
    write(Arc::new(disk.clone()));
    assert_eq!(disk.list().unwrap(), FILES);
    for name in FILES {
        let content = disk.content(name).unwrap();
        if std::env::var_os("KEELFS_WRITE_FIXTURES").is_some() {
            std::fs::create_dir_all(fixtures()).unwrap();
            std::fs::write(fixtures().join(name), &content).unwrap();
        }
        assert!(content == std::fs::read(fixtures().join(name)).unwrap(), "{name} is not as the fixture");
    }
}

#[test]
fn the_fixtures_are_read() {
    let directory = tempfile::tempdir().unwrap();
    for name in FILES {
        std::fs::copy(fixtures().join(name), directory.path().join(name)).unwrap();
    }
    for seed in 1..3 {
        let disk = RealDisk::open(directory.path()).unwrap();
        check(&Log::open_on(Arc::new(disk), options(seed)).unwrap());
    }
}
