//! Bytes that others wrote, in any shape: the targets of `fuzz/`, run briefly. `KEELFS_CASES=20000` tries more.
//!
//! Mere noise never gets past a checksum, so most of what is tried is something sound with a few bytes changed and all
//! checksums put right again.

#[path = "hostile/checksums.rs"]
mod checksums;
#[path = "hostile/targets.rs"]
mod targets;

use checksums::{records, segment_with_checksums, snapshot_with_checksums};
use proptest::prelude::*;
use proptest::sample::Index;
use std::path::Path;

/// Of the frames between nodes.
const VERSION: u8 = 2;

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("KEELFS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, ..ProptestConfig::default() }
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The sound values of the formats of Raft's room, by line.
fn sound_commands() -> Vec<Vec<u8>> {
    let text = String::from_utf8(fixture("raft-formats.txt")).expect("text");
    let hex = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    let byte = |hex: &str, at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    text.lines().filter_map(hex).map(|hex| (0..hex.len()).step_by(2).map(|at| byte(&hex, at)).collect()).collect()
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

fn edits() -> impl Strategy<Value = Vec<(Index, u8)>> {
    let byte = prop_oneof![Just(0), Just(1), Just(255), any::<u8>()];
    prop::collection::vec((any::<Index>(), byte), 1..6)
}

fn edit(mut bytes: Vec<u8>, edits: &[(Index, u8)], places: &[usize]) -> Vec<u8> {
    for (at, byte) in edits {
        let at = match places {
            [] => at.index(bytes.len()),
            places => *at.get(places),
        };
        bytes[at] = *byte;
    }
    bytes
}

/// What is changed is sound before: else the tests below would try nothing.
#[test]
fn the_beginnings_are_sound() {
    assert!(targets::segment(&segment_with_checksums(fixture("log/0000000000000001.seg"))));
    assert!(targets::snapshot(&snapshot_with_checksums(fixture("log/snapshot-00000000000000000001"))));
    assert!(sound_commands()[..4].iter().all(|command| targets::command(command)));
    assert!(targets::attribute(b"\x0230s"));
    assert_eq!(targets::cs733(b"\x05read a\r\nwrite b 3 60\r\nabc\r\n"), 2);
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn no_frame_is_poison(bytes in noise(), header in noise(), body in noise(), kind: u8, lie in prop::option::of(any::<u32>())) {
        targets::frame(&bytes);
        let mut frame = vec![b'k', b'f', VERSION, kind, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        frame.extend_from_slice(&lie.unwrap_or(header.len() as u32).to_le_bytes());
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&frame), &header);
        frame.extend_from_slice(&sum.to_le_bytes());
        frame.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        frame.extend_from_slice(&header);
        frame.extend_from_slice(&body);
        prop_assert_eq!(targets::frame(&frame), lie.is_none_or(|lie| lie as usize == header.len()));
    }

    #[test]
    fn no_message_is_poison(kind in prop_oneof![1..14u8, 64..66u8, any::<u8>()], cut: u8, rest in noise()) {
        targets::message(&[&[kind, cut][..], &rest].concat());
        targets::message(&[&[kind, cut, 1][..], &rest].concat());
    }

    #[test]
    fn no_command_is_poison(which: Index, edits in edits(), noise in noise()) {
        targets::command(&noise);
        let sound = sound_commands();
        targets::command(&edit(which.get(&sound).clone(), &edits, &[]));
    }

    #[test]
    fn no_attribute_value_is_poison(which: u8, noise in noise(), word in "[0-9]{0,30}[-+.a-zA-Z0-9:\\n= ]{0,30}") {
        targets::attribute(&[&[which][..], &noise].concat());
        targets::attribute(&[&[which][..], word.as_bytes()].concat());
    }

    #[test]
    fn no_request_of_cs733_is_poison(piece: u8, noise in noise(), line in "((read|write|cas|delete|x) [a-z ]{0,9} -?[0-9]{0,25} ?[0-9]{0,5}\r?\n?){1,9}") {
        targets::cs733(&[&[piece][..], &noise].concat());
        targets::cs733(&[&[piece][..], line.as_bytes(), &noise].concat());
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn no_segment_is_poison(which in 1..3u8, edits in edits(), anywhere: bool, right in prop::bool::weighted(0.8)) {
        let sound = fixture(&format!("log/000000000000000{which}.seg"));
        let heads: Vec<usize> = records(&sound).iter().flat_map(|at| *at + 8..*at + 56).chain(8..60).collect();
        let commands = records(&sound).into_iter().flat_map(|at| at + 64..at + 200);
        let places: Vec<usize> = if anywhere { commands.collect() } else { heads };
        let wild = edit(sound, &edits, &places);
        targets::segment(&if right { segment_with_checksums(wild) } else { wild });
    }

    /// Numbers that no writer writes, in every field of a record and in the ids that commands hold.
    #[test]
    fn no_number_in_a_segment_is_poison(
        which in 1..3u8,
        wild in prop::collection::vec((any::<Index>(), any::<Index>(), any::<Index>()), 1..4),
    ) {
        const FIELDS: [usize; 13] = [16, 24, 32, 40, 44, 48, 56, 65, 73, 81, 90, 98, 106];
        const VALUES: [u64; 6] = [u64::MAX, u64::MAX - 1, 1 << 63, u32::MAX as u64, 1 << 31, 0];
        let mut segment = fixture(&format!("log/000000000000000{which}.seg"));
        let records = records(&segment);
        for (record, field, value) in wild {
            let at = record.get(&records) + field.get(&FIELDS);
            let width = if (40..64).contains(field.get(&FIELDS)) { 4 } else { 8 };
            segment[at..at + width].copy_from_slice(&value.get(&VALUES).to_le_bytes()[..width]);
        }
        targets::segment(&segment_with_checksums(segment));
    }

    #[test]
    fn no_snapshot_is_poison(edits in edits(), right: bool) {
        let wild = edit(fixture("log/snapshot-00000000000000000001"), &edits, &[]);
        targets::snapshot(&if right { snapshot_with_checksums(wild) } else { wild });
    }
}
