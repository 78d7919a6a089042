//! Parts of the disk that cannot be read: as damaged as what reads wrongly, and no reason to end at every start.

use bytes::Bytes;

use super::super::disk::Disk;
use super::super::simulated::{SimulatedDisk, Survival};
use super::super::{Body, Entry, Log, StorageError};
use super::faults::{append, header_of, open, written};
use super::mend::{last_segment, opened_with};
use super::{entry, waiter};

const FIRST: &str = "0000000000000001.seg";
const BLOCK_BYTES: u64 = 4096;

/// Entries 0 and 1, and behind them, written by one write of which no later one tells, these.
fn with_unproven(last: &[Entry]) -> SimulatedDisk {
    let disk = SimulatedDisk::new();
    let log = open(&disk, 1).unwrap();
    append(&log, &[entry(1, 0, 20, 100), entry(1, 1, 20, 100)]).unwrap();
    let (done, _) = waiter();
    log.append(last.to_vec(), done);
    log.pump();
    disk.copy()
}

fn indexes(log: &Log) -> Vec<u64> {
    log.entries(0, 99, usize::MAX, false).unwrap().iter().map(|entry| entry.id.index).collect()
}

/// In the middle of the last record: whatever had proven that durable would be found behind it.
#[test]
fn what_was_never_acknowledged_is_cut_though_the_disk_cannot_read_it() {
    let zeros = Entry { body: Body::Bytes(Bytes::from(vec![0; 70_000])), ..entry(1, 2, 20, 0) };
    for big in [entry(1, 2, 20, 70_000), zeros, entry(1, 2, 70_000, 0)] {
        for behind in [vec![], vec![entry(1, 3, 20, 100)]] {
            let disk = with_unproven(&[std::slice::from_ref(&big), &behind[..]].concat());
            let at = disk.content(FIRST).unwrap().windows(20).position(|bytes| bytes == &big.command[..20]).unwrap();
            assert!(disk.lose(FIRST, at as u64 + 30_000, 1));
            let log = open(&disk, 2).unwrap();
            assert_eq!(indexes(&log), [0, 1]);
            assert!(disk.list().unwrap().iter().any(|name| name.starts_with("torn-1-")));
            // The log goes on there.
            let next: Vec<_> = (2..9).map(|index| entry(2, index, 20, 10_000)).collect();
            append(&log, &next).unwrap();
            let log = open(&disk.crash(Survival::Nothing), 3).unwrap();
            assert_eq!(log.entries(2, 99, usize::MAX, true).unwrap(), next);
        }
    }
}

/// The header of a record that was never acknowledged, with another one behind it that tells so.
#[test]
fn a_lost_header_in_front_of_what_was_never_acknowledged_is_cut() {
    let batch = [entry(1, 2, 20, 70_000), entry(1, 3, 20, 10_000), entry(1, 4, 20, 70_000)];
    let disk = with_unproven(&batch);
    assert!(disk.lose(FIRST, header_of(&disk, FIRST, &batch[1]), 64));
    let log = open(&disk, 2).unwrap();
    assert_eq!(indexes(&log), [0, 1]);
    append(&log, &batch).unwrap();
    assert_eq!(indexes(&open(&disk.crash(Survival::Nothing), 3).unwrap()), [0, 1, 2, 3, 4]);
}

/// Every block of every segment, once: nothing proven is cut, what a peer has comes from there, and no start ends as if
/// another try could help.
#[test]
fn a_block_that_cannot_be_read_is_met_as_damage_wherever_it_is() {
    let (whole, entries) = written();
    let last = last_segment(&whole);
    let (mut refused, mut opened, mut supplied) = (Vec::new(), 0, 0);
    for name in whole.list().unwrap() {
        for at in (0..whole.content(&name).unwrap().len() as u64).step_by(BLOCK_BYTES as usize) {
            let disk = whole.copy();
            assert!(disk.lose(&name, at, 1));
            let (log, asked) = opened_with(&disk, &entries);
            let log = match log {
                Ok(log) => log,
                Err(StorageError::Damaged { file, .. }) => {
                    assert_eq!(file, name);
                    refused.push((name.clone(), at));
                    continue;
                }
                Err(other) => panic!("{name} {at}: {other}"),
            };
            opened += 1;
            supplied += usize::from(!asked.is_empty());
            assert_eq!((log.state().last, log.vote().unwrap()), (Some(entries[11].id), "vote".into()));
            for entry in &entries {
                match log.entries(entry.id.index, entry.id.index + 1, usize::MAX, true) {
                    Ok(read) => assert_eq!(read, std::slice::from_ref(entry)),
                    Err(StorageError::Damaged { index, .. }) => assert_eq!(index, Some(entry.id.index)),
                    Err(other) => panic!("{name} {at}: {other}"),
                }
            }
            // Until the next segment is begun, over all that is left of this one.
            let next: Vec<_> = (12..20).map(|index| entry(1, index, 20, 60_000)).collect();
            next.iter().for_each(|entry| append(&log, std::slice::from_ref(entry)).unwrap());
            let (log, _) = opened_with(&disk.crash(Survival::Nothing), &entries);
            assert_eq!(log.unwrap().entries(12, 99, usize::MAX, true).unwrap(), next);
        }
    }
    // Nobody can do without the head of a segment; nor tell how much is lost in front of a lost Seal or with the head of the
    // last entry, nor what was acknowledged where the log ends.
    let ends =
        whole.content(&last).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64 / BLOCK_BYTES * BLOCK_BYTES;
    assert!(refused.contains(&(last, ends)) && refused.iter().filter(|(_, at)| *at > 0).count() <= 3, "{refused:?}");
    assert!(opened > 100 && supplied > 0, "{opened} opened, {supplied} with a peer");
}
