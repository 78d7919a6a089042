//! The log on a directory of the host.

use bytes::Bytes;

use super::super::{DirectoryLock, Log, Options, StorageError};
use super::{body, entry, waiter};

fn open(directory: &std::path::Path) -> Log {
    let disk = super::super::disk::RealDisk::open(directory).unwrap();
    let options = Options { segment_bytes: 1 << 20, cache_bytes: 64 << 10, ..Options::default() };
    Log::open_on(std::sync::Arc::new(disk), options).unwrap()
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = |i: u64| (100 + i as usize, [0, 1000, 70_000, 300_000][i as usize % 4]);
    let entries: Vec<_> = (0..40).map(|i| entry(1 + i / 20, i, sizes(i).0, sizes(i).1)).collect();
    for round in 0..3 {
        let log = open(directory.path());
        if round == 0 {
            let receivers: Vec<_> = (entries.chunks(3))
                .map(|chunk| {
                    let (done, receive) = waiter();
                    log.append(chunk.to_vec(), done);
                    receive
                })
                .collect();
            assert_eq!(log.entries(0, 40, usize::MAX, true).unwrap(), entries);
            let (done, voted) = waiter();
            log.save_vote(Bytes::from_static(b"vote"), done);
            receivers.iter().for_each(|receive| receive.recv().unwrap().unwrap());
            voted.recv().unwrap().unwrap();
            log.save_committed(Some(entries[30].id));
        }
        assert_eq!(log.state().durable, Some(entries[39].id));
        assert_eq!(log.entries(0, 40, usize::MAX, true).unwrap(), entries);
        assert_eq!(log.vote().unwrap(), "vote");
        assert_eq!(log.committed(), Some(entries[30].id));
        assert_eq!(log.read_body(7, 65_000, 40_000).unwrap(), body(&entries[7]).slice(65_000..105_000));
        assert!(matches!(log.read_body(8, 0, 1), Err(StorageError::NoBody { index: 8 })));
    }
    let log = open(directory.path());
    let (done, purged) = waiter();
    log.purge(entries[38].id, done);
    purged.recv().unwrap().unwrap();
    let before = log.bytes_on_disk();
    log.reclaim(&|index| index == 3).unwrap();
    assert!(log.bytes_on_disk() < before / 2, "{} of {before}", log.bytes_on_disk());
    for log in [log, open(directory.path())] {
        assert_eq!(log.read_body(3, 0, 300_000).unwrap(), body(&entries[3]));
        assert!(matches!(log.read_body(7, 0, 300_000), Err(StorageError::NoBody { index: 7 })));
        assert_eq!(log.entries(0, 100, usize::MAX, true).unwrap(), entries[39..]);
    }
}

#[test]
fn a_second_process_is_told_who_holds_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let held = DirectoryLock::acquire(directory.path()).unwrap();
    match DirectoryLock::acquire(directory.path()) {
        Err(StorageError::InUse { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
    drop(held);
    DirectoryLock::acquire(directory.path()).unwrap();
}

#[test]
fn the_default_log_opens_in_a_new_directory() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::open(&directory.path().join("log")).unwrap();
    assert_eq!(log.state(), Default::default());
}
