//! Files mapped into memory. On one side a map and the calls agree; between the sides `msync` is the border: what it has
//! written is seen by every read there, and by maps that are made there after a look at the file's attributes.

use crate::ground::{Ground, assert_same, content, pattern};
use crate::system::Map;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

const LENGTH: usize = 50_000;

/// Holds [V6].
pub fn a_shared_map_and_calls_agree_on_one_side(ground: &Ground) {
    let mut expected = pattern(LENGTH, 1);
    let (file, _) = ground.open_on_both("file", &expected);
    let (map, second) = (Map::shared(&file, LENGTH), Map::shared(&file, LENGTH));
    assert_same(&map.read(0, LENGTH), &expected, "a new map");
    for round in 0..10 {
        let at = round * 4321;
        map.write(at, b"stored");
        expected[at..at + 6].copy_from_slice(b"stored");
        assert_same(&content(&file), &expected, "a store, read by a call");
        assert_same(&second.read(0, LENGTH), &expected, "a store, seen in another map");
        file.write_all_at(b"called", at as u64 + 100).expect("a write");
        expected[at + 100..at + 106].copy_from_slice(b"called");
        assert_same(&map.read(0, LENGTH), &expected, "a write, seen in the map");
    }
    drop((map, second));
    assert_same(&content(&file), &expected, "after the maps");
}

/// A page is written back whole, and a call writes around it: neither may bring back what the other has replaced, nor
/// an append's bytes go because a page ended where they begin.
/// Holds [V6].
pub fn stores_writes_and_appends_into_one_page_lose_nothing(ground: &Ground) {
    let (path, _) = ground.both("file");
    let before = pattern(1000, 5);
    let (file, there) = ground.open_on_both("file", &before);
    let rounds = 0..200u64;
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    let stored = std::thread::scope(|scope| {
        let storing = scope.spawn(|| {
            let map = Map::shared(&file, 1000);
            for round in 1u64.. {
                map.write(8, &round.to_le_bytes());
                match round % 8 {
                    0 => assert_eq!(number_at(&file, 8), round, "a store, read by a call"),
                    _ => map.sync(),
                }
                if is_over() {
                    return round;
                }
            }
            0
        });
        // The kernel writes back what lies before the size that it knows.
        scope.spawn(|| while !is_over() && file.metadata().is_ok() {});
        let writing = scope.spawn(|| {
            let map = Map::shared(&file, 1000);
            for round in rounds.clone() {
                file.write_all_at(&round.to_le_bytes(), 504).expect("a write");
                assert_eq!(map.read(504, 8), round.to_le_bytes(), "a write, seen in a map");
            }
        });
        let appending = scope.spawn(|| {
            let mut file = OpenOptions::new().append(true).open(&path).expect("a descriptor that appends");
            rounds.clone().for_each(|round| file.write_all(&round.to_le_bytes()).expect("an append"));
        });
        let ended = [writing.join(), appending.join()];
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        storing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let mut expected = before;
    expected[8..16].copy_from_slice(&stored.to_le_bytes());
    expected[504..512].copy_from_slice(&(rounds.end - 1).to_le_bytes());
    expected.extend(rounds.flat_map(u64::to_le_bytes));
    assert_same(&content(&file), &expected, "all of it, here");
    assert_same(&content(&there), &expected, "all of it, on the other side");
}

fn number_at(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).expect("a read");
    u64::from_le_bytes(bytes)
}

/// Holds [D3], [V7].
pub fn what_msync_has_written_is_seen_there(ground: &Ground) {
    let mut expected = pattern(LENGTH, 2);
    let (one, other) = ground.open_on_both("file", &expected);
    for round in 0..10 {
        let (file, there) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let at = round * 3000;
        file.metadata().expect("its attributes");
        let map = Map::shared(file, LENGTH);
        assert_same(&map.read(0, LENGTH), &expected, "a map made after a look at the attributes");
        map.write(at, b"stored and synced");
        map.sync();
        expected[at..at + 17].copy_from_slice(b"stored and synced");
        assert_same(&content(there), &expected, "read on the other side after msync");
        drop(map);
        there.write_all_at(b"answered", at as u64 + 1000).expect("a write");
        expected[at + 1000..at + 1008].copy_from_slice(b"answered");
    }
}

pub fn a_private_map_changes_no_file(ground: &Ground) {
    let expected = pattern(LENGTH, 3);
    let (one, other) = ground.open_on_both("file", &expected);
    let map = Map::private(&one, LENGTH);
    map.write(100, b"mine");
    assert_eq!(map.read(100, 4), b"mine");
    drop(map);
    assert_same(&content(&one), &expected, "here");
    assert_same(&content(&other), &expected, "there");
    // made afresh, it has what was written there meanwhile
    other.write_all_at(b"theirs", 200).expect("a write");
    assert_eq!(Map::private(&one, LENGTH).read(200, 6), b"theirs");
}

/// The rest of the last page is zeros, and what is stored there belongs to no file.
pub fn a_map_behind_the_end_is_not_written(ground: &Ground) {
    let expected = pattern(5000, 4);
    let (one, other) = ground.open_on_both("file", &expected);
    let map = Map::shared(&one, 8192);
    assert_eq!(map.read(5000, 3192), vec![0; 3192], "behind the end");
    map.write(4990, &[b'x'; 20]);
    map.sync();
    drop(map);
    let mut expected = expected[..4990].to_vec();
    expected.resize(5000, b'x');
    assert_same(&fs::read(ground.there.join("file")).expect("a read"), &expected, "the size stays");
    other.set_len(8192).expect("a longer file");
    expected.resize(8192, 0);
    assert_same(&content(&one), &expected, "what was stored behind the end has not become part of the file");
}
