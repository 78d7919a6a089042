//! Histories whose answer is known, and random ones that were made by an object that is linearizable, and spoilt.

use super::linearizable::{Call, Verdict};
use super::register::{self, Input, Output, State};
use proptest::prelude::*;

type Register1 = Call<Input, Output>;

fn check(calls: &[Register1]) -> Verdict {
    register::check(State { value: 0, version: None, at_least: 0 }, calls, 1_000_000)
}

fn call(client: u64, begin: u64, end: u64, input: Input, output: Output) -> Register1 {
    Call { client, begin, input, end: Some((end, output)) }
}

fn write(client: u64, begin: u64, end: u64, value: u64) -> Register1 {
    call(client, begin, end, Input::Write(value), Output::Written(None))
}

fn read(client: u64, begin: u64, end: u64, value: u64) -> Register1 {
    call(client, begin, end, Input::Read, Output::Value(value, None))
}

fn lost(client: u64, begin: u64, input: Input) -> Register1 {
    Call { client, begin, input, end: None }
}

fn holds(calls: &[Register1]) -> bool {
    match check(calls) {
        Verdict::Linearizable => true,
        Verdict::Violated(_) => false,
        Verdict::Undecided(after) => panic!("undecided after {after}"),
    }
}

#[test]
fn known_histories_are_judged_right() {
    assert!(holds(&[]));
    // Overlapping: either order. One behind the other: only that one.
    assert!(holds(&[write(1, 0, 10, 1), write(2, 0, 10, 2), read(3, 11, 12, 1)]));
    assert!(!holds(&[write(1, 0, 10, 1), write(2, 11, 12, 2), read(3, 13, 14, 1)]));
    // Two reads that see two writes in opposite orders.
    assert!(!holds(&[write(1, 0, 10, 1), write(2, 0, 10, 2), read(3, 11, 12, 1), read(3, 13, 14, 2)]));
    // A read that overlaps a write may see it or not, but the next one not less.
    assert!(holds(&[write(1, 0, 10, 1), read(2, 1, 2, 0), read(2, 3, 4, 1)]));
    assert!(!holds(&[write(1, 0, 10, 1), read(2, 1, 2, 1), read(2, 3, 4, 0)]));
    // What was lost may have been done at any time, or never, but once.
    let doubtful = lost(1, 0, Input::Write(1));
    assert!(holds(&[doubtful.clone(), read(2, 1, 2, 0), read(2, 100, 101, 1)]));
    assert!(holds(&[doubtful.clone(), read(2, 100, 101, 0)]));
    assert!(!holds(&[doubtful.clone(), read(2, 1, 2, 1), write(2, 3, 4, 2), read(2, 5, 6, 2), read(2, 7, 8, 1)]));
    assert!(!holds(&[read(2, 0, 1, 1), lost(1, 2, Input::Write(1))]), "not before it began");
}

#[test]
fn of_two_swaps_of_one_version_one_wins() {
    let cas = |client, expected, new, output| call(client, 10, 20, Input::Cas { expected, new }, output);
    let first = call(1, 0, 1, Input::Write(1), Output::Written(Some(7)));
    let won = |version| Output::Written(Some(version));
    assert!(holds(&[first.clone(), cas(1, 7, 2, won(9)), cas(2, 7, 3, Output::Mismatch(None))]));
    assert!(!holds(&[first.clone(), cas(1, 7, 2, won(9)), cas(2, 7, 3, won(11))]));
    assert!(!holds(&[first.clone(), cas(1, 7, 2, Output::Mismatch(None))]), "a loser without a winner");
    assert!(!holds(&[first.clone(), cas(1, 7, 2, won(6))]), "versions rise");
    let doubtful = lost(3, 5, Input::Cas { expected: 7, new: 4 });
    assert!(holds(&[first.clone(), doubtful.clone(), cas(1, 7, 2, Output::Mismatch(None)), read(2, 30, 31, 4)]));
    assert!(!holds(&[first.clone(), doubtful.clone(), cas(1, 7, 2, won(9)), read(2, 30, 31, 4)]));
    // Nobody ever saw the doubtful value, but without it the loser has no winner; a version that is told narrows it down.
    assert!(holds(&[first.clone(), doubtful.clone(), cas(1, 7, 2, Output::Mismatch(None))]));
    assert!(holds(&[first.clone(), doubtful.clone(), cas(1, 7, 2, Output::Mismatch(Some(8)))]));
    assert!(!holds(&[first.clone(), doubtful, cas(1, 7, 2, Output::Mismatch(Some(6)))]));
    assert!(!holds(&[first, cas(1, 7, 2, Output::Mismatch(Some(8)))]));
}

/// Each call takes effect at an instant between its begin and its end; some answers are lost.
fn honest() -> impl Strategy<Value = Vec<Register1>> {
    // Begin, length, when it takes effect, what, and whether it does and is answered.
    let one = (0..400u64, 1..40u64, 0..40u64, 0..10u8, 0..12u8);
    prop::collection::vec(one, 1..40).prop_map(|rows| {
        let mut rows: Vec<_> = rows.into_iter().enumerate().collect();
        rows.sort_by_key(|(number, (begin, length, at, ..))| (begin + at.min(length), *number));
        let (mut value, mut calls) = (0, Vec::new());
        for (number, (begin, length, _, kind, fate)) in rows {
            let (input, output) = match kind {
                0..5 => (Input::Read, Output::Value(value, None)),
                _ => {
                    let new = number as u64 + 1;
                    // A call whose answer is lost was done all the same, or not at all.
                    if fate != 1 {
                        value = new;
                    }
                    (Input::Write(new), Output::Written(None))
                }
            };
            let end = (fate > 1).then_some((begin + length, output));
            calls.push(Call { client: number as u64, begin, input, end });
        }
        calls
    })
}

proptest! {
    #[test]
    fn what_one_object_did_is_linearizable_and_a_stale_read_is_seen(calls in honest()) {
        prop_assert_eq!(check(&calls), Verdict::Linearizable);
        let mut more = calls.clone();
        more.push(write(0, 1000, 1001, 998));
        more.push(write(0, 1002, 1003, 999));
        more.push(read(0, 1004, 1005, 999));
        prop_assert_eq!(check(&more), Verdict::Linearizable);
        // What was written, and has been overwritten since.
        more.push(read(0, 1006, 1007, 998));
        prop_assert!(matches!(check(&more), Verdict::Violated(_)));
    }
}
