//! Power cuts: at random in random sequences, and at every single step of a fixed one.

use proptest::prelude::*;

use super::super::simulated::Survival;
use super::rig::{Op, Rig};

const SEGMENT_BYTES: u64 = 256 << 10;

fn op() -> impl Strategy<Value = Op> {
    let size = || prop_oneof![4 => 0usize..2000, 2 => 2000usize..20_000, 2 => 65_536usize..90_000];
    let command = || prop_oneof![8 => 1usize..300, 1 => 300usize..5000];
    prop_oneof![
        8 => prop::collection::vec((command(), size()), 1..5).prop_map(Op::Append),
        2 => Just(Op::Vote),
        2 => (0u64..6).prop_map(Op::Truncate),
        2 => (0u64..8).prop_map(Op::Purge),
        1 => (0u64..4).prop_map(Op::PurgeAhead),
        1 => (0u64..4).prop_map(Op::PurgeOther),
        2 => (0u64..40, size()).prop_map(|(index, size)| Op::Import(index, size)),
        2 => Just(Op::Commit),
        1 => (0usize..6).prop_map(Op::Snapshot),
        3 => (1u64..5).prop_map(Op::Reclaim),
        6 => Just(Op::Pump),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// Whatever happens, whenever the power goes, whatever survives: what was acknowledged is there, in order, and
    /// nothing else but what was asked for.
    #[test]
    fn nothing_acknowledged_is_lost(
        ops in prop::collection::vec(op(), 1..60),
        crashes in prop::collection::vec((0u64..60, any::<u64>()), 1..12),
    ) {
        let mut rig = Rig::new(SEGMENT_BYTES);
        let mut crashes = crashes.into_iter();
        let mut next = crashes.next();
        rig.open(Survival::Nothing);
        for op in &ops {
            if let Some((operations, _)) = next {
                rig.disk.halt_after(operations);
            }
            let left = next.map(|(operations, _)| operations + rig.disk.counters().operations);
            rig.run(op);
            if rig.disk.is_off() {
                let seed = next.map_or(0, |(_, seed)| seed);
                next = crashes.next();
                rig.crash(Survival::Random(seed));
            } else if let (Some(left), Some((operations, _))) = (left, next.as_mut()) {
                *operations = left.saturating_sub(rig.disk.counters().operations);
            }
        }
        rig.crash(Survival::Random(ops.len() as u64));
    }
}

/// `KEELFS_CASES=20000` for a long run.
fn cases() -> u32 {
    std::env::var("KEELFS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

/// Everything that the log does, in one go.
fn story() -> Vec<Op> {
    let small = |count| Op::Append(vec![(40, 300); count]);
    vec![
        Op::Vote,
        small(3),
        Op::Pump,
        Op::Append(vec![(40, 70_000), (10, 0)]),
        Op::Commit,
        Op::Pump,
        small(2),
        Op::Truncate(1),
        Op::Vote,
        Op::Append(vec![(20, 66_000); 3]),
        Op::Pump,
        Op::Purge(4),
        Op::Snapshot(3),
        Op::Reclaim(3),
        Op::Append(vec![(20, 66_000); 3]),
        Op::Pump,
        Op::Import(30, 80_000),
        Op::PurgeAhead(20),
        Op::Reclaim(5),
        small(4),
        Op::Pump,
        Op::Append(vec![(20, 80_000); 3]),
        Op::Commit,
        Op::Pump,
        Op::Vote,
        small(3),
        Op::Pump,
    ]
}

/// Run the story until the power goes after this many changes. False: it did not go.
fn tell(operations: u64) -> (Rig, bool) {
    let mut rig = Rig::new(SEGMENT_BYTES);
    rig.disk.halt_after(operations);
    if rig.try_open().is_err() {
        return (rig, true);
    }
    for op in story() {
        rig.run(&op);
        if rig.disk.is_off() {
            return (rig, true);
        }
    }
    (rig, false)
}

#[test]
fn every_step_may_be_the_last() {
    for operations in 0.. {
        let mut survivals = vec![Survival::Nothing, Survival::Everything];
        survivals.extend((0..6).map(|seed| Survival::Random(seed * 1000 + operations)));
        let mut more = false;
        for survival in survivals {
            let (mut rig, off) = tell(operations);
            more |= off;
            rig.crash(survival);
        }
        if !more {
            assert!(operations > 60, "the story is shorter than it should be: {operations}");
            return;
        }
    }
}

#[test]
fn the_last_batch_may_be_torn_anywhere() {
    let batch = |rig: &mut Rig| {
        rig.run(&Op::Append(vec![(40, 300), (7, 0), (100, 70_000), (30, 900)]));
        rig.run(&Op::Vote);
        rig.disk.halt_after(1);
        rig.run(&Op::Pump);
    };
    let (mut rig, _) = tell(u64::MAX);
    batch(&mut rig);
    let unsynced = rig.disk.unsynced_bytes();
    assert!(unsynced > 72_000);
    let near = [0, 1, 63, 64, 65, 511, 512].map(|back| unsynced - back);
    for keep in (0..1100).step_by(5).chain((1100..unsynced).step_by(1999)).chain(near) {
        let (mut rig, _) = tell(u64::MAX);
        batch(&mut rig);
        assert!(rig.disk.is_off());
        rig.crash(Survival::Prefix(keep));
        // The log goes on behind the cut, and nothing of the torn batch comes back.
        rig.run(&Op::Append(vec![(40, 300)]));
        rig.run(&Op::Pump);
        rig.crash(Survival::Nothing);
        assert_eq!(rig.acknowledged() + 1, rig.states.len());
    }
}

/// The process ends first, at any step, and the power goes when the next one has built on what it found.
#[test]
fn a_process_may_end_at_every_step_and_the_power_go_later() {
    for operations in 0.. {
        let (mut rig, off) = tell(operations);
        rig.kill();
        rig.run(&Op::Append(vec![(20, 66_000), (40, 300)]));
        rig.run(&Op::Pump);
        rig.crash(Survival::Nothing);
        if !off {
            return;
        }
    }
}
