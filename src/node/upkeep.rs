//! What a leader proposes by itself: expiries and session ends that are due, and ticks.
//!
//! What is due is judged by what a proposal would be stamped with now, and once more by its own stamp when it is applied:
//! late by a look, never early. Ticks let time pass in an idle cluster: a new leader begins where the last entry was, so
//! without them each change of leader would give idle files more life.
//!
//! Cost: one entry a second in an idle cluster as long as there is a deadline (a session is one).

use crate::fs::{ClusterTime, Command, State};
use crate::raft::Replica;
use crate::volume::sessionless;
use bytes::Bytes;
use futures_util::future::join_all;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How often the leader looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest time without a stamp while deadlines wait.
const TICK_AFTER: Duration = Duration::from_secs(1);
/// Proposals under way at one time. If so many were due and have been applied, there is no pause before the next look.
pub(super) const BATCH_MAX: usize = 64;
/// How long a batch may take before the leader looks anew.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// What is proposed at one look.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Tick,
    Commands(Vec<Command>),
}

/// Since when, on this node's steady clock, nothing has been stamped.
struct Silence {
    last: ClusterTime,
    since: Instant,
}

impl Silence {
    fn see(&mut self, last: ClusterTime, now: Instant) {
        if last != self.last {
            *self = Silence { last, since: now };
        }
    }

    fn is_long(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= TICK_AFTER
    }
}

/// Propose what is due, while this node leads, until `stop`.
pub async fn run(replica: Replica, stop: CancellationToken) {
    let mut silence = Silence { last: ClusterTime(0), since: Instant::now() };
    let mut more = false;
    while more || stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
        more = false;
        let Some(time) = replica.cluster_time() else { continue };
        let (root, now) = (replica.state(), Instant::now());
        silence.see(root.cluster_time(), now);
        let commands = match due(&root, time, silence.is_long(now)) {
            Due::Nothing => continue,
            Due::Tick => vec![Command::Tick],
            Due::Commands(commands) => commands,
        };
        drop(root);
        let full = commands.len() == BATCH_MAX;
        let applied = stop.run_until_cancelled(propose(&replica, commands)).await == Some(true);
        more = full && applied;
    }
}

fn due(root: &State, time: ClusterTime, silent: bool) -> Due {
    let Some(next) = root.next_deadline() else { return Due::Nothing };
    let commands = if next <= time { root.due(time, BATCH_MAX) } else { Vec::new() };
    match commands.is_empty() {
        false => Due::Commands(commands),
        true if silent => Due::Tick,
        true => Due::Nothing,
    }
}

/// Propose all, and wait: what was applied is no longer due at the next look. `true`: all of it was.
async fn propose(replica: &Replica, commands: Vec<Command>) -> bool {
    let proposals = commands.into_iter().map(|command| replica.propose(sessionless(command), Bytes::new()));
    let Ok(results) = timeout(BATCH_TIME, join_all(proposals)).await else {
        tracing::debug!("what was due could not be committed in {BATCH_TIME:?}");
        return false;
    };
    let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    errors.iter().for_each(|error| tracing::debug!("what was due was not committed: {error}"));
    errors.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{LogIndex, Reply, SessionId, Stamp, Timestamp};

    fn stamp(index: u64, cluster: ClusterTime) -> Stamp {
        Stamp { index: LogIndex(index), cluster, wall: Timestamp { seconds: index as i64, nanos: 0 } }
    }

    #[test]
    fn a_session_is_ended_when_its_time_has_passed_and_ticks_fill_the_silence() {
        let (at, mut root) = (ClusterTime(5_000_000_000), State::new());
        assert_eq!(due(&root, at, true), Due::Nothing, "without deadlines no entry is needed");
        let open = sessionless(Command::OpenSession { label: "test".into() });
        assert_eq!(root.apply(stamp(3, at), &open, 0), Ok(Reply::Session(SessionId(3))));
        let end = ClusterTime(at.0 + crate::limits::SESSION_TTL_NS);
        let before = ClusterTime(end.0 - 1_000_000_000);
        assert_eq!((due(&root, before, false), due(&root, before, true)), (Due::Nothing, Due::Tick));
        let ended = Command::EndSession { session: SessionId(3), last_seen: at };
        assert_eq!(due(&root, ClusterTime(end.0 + 1), true), Due::Commands(vec![ended]));
    }

    #[test]
    fn silence_begins_anew_with_each_stamp() {
        let start = Instant::now();
        let mut silence = Silence { last: ClusterTime(1), since: start };
        silence.see(ClusterTime(1), start + TICK_AFTER);
        assert!(silence.is_long(start + TICK_AFTER));
        silence.see(ClusterTime(2), start + TICK_AFTER);
        assert!(!silence.is_long(start + TICK_AFTER));
    }
}
