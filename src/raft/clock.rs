//! Cluster time: steady nanoseconds that only leaders move (LogCabin's ClusterClock; DESIGN section 3).
//!
//! A stamp is the cluster time of the last entry that was stamped or applied here, plus the steady time that has passed on
//! this node since then. Without a leader it stands still, and a new leader starts from what it has applied, so cluster
//! time may fall behind real time and never runs ahead of it by more than two clocks drift apart: files end late, never
//! early. Apply clamps stamps once more, because proposals may enter the log in another order than they were stamped.
//!
//! Decision: the steady clock is `CLOCK_MONOTONIC`, which goes on while a process is stopped (SIGSTOP). A leader that
//! wakes up counts that time; if another leader was elected meanwhile, its stamps never commit.

use crate::fs::{ClusterTime, Timestamp};
use parking_lot::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The clock of one node.
#[derive(Default)]
pub struct Clock {
    /// `None`: has not led since the process started.
    leading: Mutex<Option<Leading>>,
}

/// Cluster time was `then` at `at`, in the term that this node leads.
#[derive(Clone, Copy)]
struct Leading {
    term: u64,
    then: ClusterTime,
    at: Instant,
}

impl Clock {
    /// The time to stamp on a proposal in `term`, at `now`, when `applied` is the cluster time of the last entry applied
    /// here. Never falls within a term.
    pub fn stamp(&self, term: u64, applied: ClusterTime, now: Instant) -> ClusterTime {
        let mut leading = self.leading.lock();
        let time = reading(*leading, term, applied, now);
        // Two callers may come in another order than they read the clock: time that has been counted is not counted again.
        let at = leading.filter(|leading| leading.term == term).map_or(now, |leading| leading.at.max(now));
        *leading = Some(Leading { term, then: time, at });
        time
    }

    /// The same, without setting the clock.
    pub fn peek(&self, term: u64, applied: ClusterTime, now: Instant) -> ClusterTime {
        reading(*self.leading.lock(), term, applied, now)
    }
}

fn reading(leading: Option<Leading>, term: u64, applied: ClusterTime, now: Instant) -> ClusterTime {
    match leading {
        Some(leading) if leading.term == term => {
            let elapsed = now.saturating_duration_since(leading.at).as_nanos() as u64;
            ClusterTime(leading.then.0.saturating_add(elapsed)).max(applied)
        }
        _ => applied,
    }
}

/// The system's wall clock; before 1970 as 1970.
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

/// [`Bug::WallClockExpiry`](crate::seeded::Bug::WallClockExpiry)
pub fn of_the_wall(wall: Timestamp) -> ClusterTime {
    ClusterTime((wall.seconds as u64).saturating_mul(1_000_000_000).saturating_add(wall.nanos.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_starts_at_what_was_applied_and_passes_only_while_leading() {
        let clock = Clock::default();
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        assert_eq!(clock.stamp(1, ClusterTime(100), start), ClusterTime(100));
        assert_eq!(clock.stamp(1, ClusterTime(100), after(1)), ClusterTime(1_000_000_100));
        assert_eq!(clock.peek(1, ClusterTime(100), after(2)), ClusterTime(2_000_000_100));
        assert_eq!(clock.stamp(1, ClusterTime(100), after(1)), ClusterTime(1_000_000_100), "a peek sets nothing");
        // Deposed for an hour, then elected again: the hour does not count.
        assert_eq!(clock.stamp(3, ClusterTime(1_000_000_200), after(3600)), ClusterTime(1_000_000_200));
        // What was applied meanwhile is never undercut.
        assert_eq!(clock.stamp(3, ClusterTime(9_000_000_000), after(3601)), ClusterTime(9_000_000_000));
        assert_eq!(clock.stamp(3, ClusterTime(0), after(3600)), ClusterTime(9_000_000_000), "never falls");
    }
}
