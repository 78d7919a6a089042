//! Files mapped into memory. On one side a map and the calls agree; between the sides `msync` is the border: what it has
//! written is seen by every read there, and by maps that are made there after a look at the file's attributes.

use crate::ground::{Ground, assert_same, content, pattern};
use crate::system::Map;
use std::fs;
use std::os::unix::fs::FileExt;

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
