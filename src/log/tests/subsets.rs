//! Crash points, enumerated: of random stories every prefix, and at the end of each every subset of what was not synced.
//!
//! `crash` draws where the power goes and what survives; here nothing is drawn but the story. Where so much is not synced
//! that its subsets are too many, these are taken: nothing, everything, every prefix, every single piece lost, every single
//! piece kept, and some drawn ones.

use proptest::prelude::*;

use super::super::simulated::Survival;
use super::rig::{Op, Rig};

const SEGMENT_BYTES: u64 = 32 << 10;
/// All subsets of so many pieces are tried.
const PIECES_MAX: u32 = 6;
const DRAWN: u64 = 16;

fn op() -> impl Strategy<Value = Op> {
    let entry = || (1usize..120, prop_oneof![6 => 0usize..400, 1 => 1500usize..6000]);
    prop_oneof![
        6 => prop::collection::vec(entry(), 1..4).prop_map(Op::Append),
        3 => Just(Op::Vote),
        2 => (0u64..4).prop_map(Op::Truncate),
        2 => (0u64..5).prop_map(Op::Purge),
        1 => (0u64..3).prop_map(Op::PurgeAhead),
        1 => (0u64..3).prop_map(Op::PurgeOther),
        1 => (0u64..12, 1usize..900).prop_map(|(index, size)| Op::Import(index, size)),
        2 => Just(Op::Commit),
        1 => (0usize..3).prop_map(Op::Snapshot),
        2 => (1u64..4).prop_map(Op::Reclaim),
        6 => Just(Op::Pump),
        1 => Just(Op::Restart),
    ]
}

/// The story until the power goes after this many changes of the disk, and whether it went.
fn tell(story: &[Op], operations: u64) -> (Rig, bool) {
    let mut rig = Rig::new(SEGMENT_BYTES);
    rig.disk.halt_after(operations);
    if rig.try_open().is_err() {
        return (rig, true);
    }
    for op in story {
        rig.run(op);
        if rig.disk.is_off() {
            return (rig, true);
        }
    }
    (rig, false)
}

fn subsets(pieces: u32) -> Vec<u64> {
    if pieces <= PIECES_MAX {
        return (0..1 << pieces).collect();
    }
    let singles = (0..pieces.min(64)).map(|piece| 1u64 << piece);
    let mut these: Vec<u64> = singles.clone().flat_map(|one| [one, !one, one - 1]).collect();
    these.extend([0, u64::MAX]);
    these.extend((1..=DRAWN).map(|drawn| drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    these
}

/// What survives is what the log makes of it; then it goes on, and that is durable too.
fn survives(rig: &Rig, these: u64) {
    let mut branch = rig.after(Survival::Subset(these));
    branch.run(&Op::Append(vec![(40, 300)]));
    branch.run(&Op::Vote);
    branch.run(&Op::Pump);
    assert_eq!(branch.acknowledged() + 1, branch.states.len());
    branch.crash(Survival::Nothing);
    assert_eq!(branch.acknowledged() + 1, branch.states.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_and_every_subset(story in prop::collection::vec(op(), 1..24)) {
        for operations in 0.. {
            let (rig, off) = tell(&story, operations);
            if !off {
                break;
            }
            subsets(rig.disk.unsynced_pieces()).into_iter().for_each(|these| survives(&rig, these));
        }
    }
}

/// A tenth of what the drawn stories get: each of these is some thousand crashes.
fn cases() -> u32 {
    let given = std::env::var("KEELFS_CASES").ok().and_then(|cases| cases.parse::<u32>().ok());
    (given.unwrap_or(200) / 10).max(1)
}
