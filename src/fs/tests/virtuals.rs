//! Attributes that are computed when they are read.

use super::*;
use crate::limits::XATTR_VALUE_BYTES_MAX;

#[test]
fn of_very_many_locks_those_are_shown_that_an_attribute_can_hold_each_one_whole() {
    let mut play = Play::new();
    let ino = play.file("f");
    for start in 0..600 {
        let range = LockRange { start: 2 * start, end: 2 * start };
        let (owner, mode) = (LockOwner::Posix(1), LockMode::Exclusive);
        let lock = Command::Lock { ino, owner, range, mode, pid: 1, wait: false };
        play.sequence += 1;
        let request = request(play.session, play.sequence, play.sequence, play.who, lock);
        // Testing every invariant after each of so many takes minutes.
        let stamp = play.stamp();
        assert!(play.state.apply(stamp, &request, 0).is_ok());
    }
    for attribute in ["user.keelfs.locks", "user.keelfs.info"] {
        let shown = play.xattr(ino, attribute).unwrap();
        assert!((XATTR_VALUE_BYTES_MAX / 2..=XATTR_VALUE_BYTES_MAX).contains(&shown.len()), "{}", shown.len());
        assert!(shown.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }
}
