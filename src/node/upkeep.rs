//! What a leader proposes by itself: expiries and session ends that are due, and ticks.
//!
//! Cluster time is in the state as of the last entry; what has passed since then is this node's steady clock, read from
//! the moment it saw that entry applied. So the reading is late by at most one look, never early; and whatever is
//! proposed is judged once more, by its own stamp, when it is applied. Ticks let time pass in an idle cluster: a new
//! leader begins where the last entry was, so without them each change of leader would give idle files more life.
//!
//! Cost: one entry a second in an idle cluster as long as there is a deadline (a session is one).

use crate::fs::{ClusterTime, Command, State};
use crate::net::NodeId;
use crate::raft::Replica;
use crate::volume::sessionless;
use bytes::Bytes;
use futures_util::future::join_all;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest time without a stamp while deadlines wait.
const TICK_AFTER: Duration = Duration::from_secs(1);
/// Proposals under way at one time.
const BATCH_MAX: usize = 64;
/// How long a batch may take before the leader looks anew.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// What is proposed at one look.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Tick,
    Commands(Vec<Command>),
}

/// Cluster time as this node may reckon it: the newest stamp it has seen, and when it saw it.
struct Reckoning {
    stamp: ClusterTime,
    seen: Instant,
}

impl Reckoning {
    fn new(now: Instant) -> Reckoning {
        Reckoning { stamp: ClusterTime(0), seen: now }
    }

    fn see(&mut self, stamp: ClusterTime, now: Instant) {
        if stamp != self.stamp {
            *self = Reckoning { stamp, seen: now };
        }
    }

    /// While this node does not lead, no time passes for it.
    fn stand_still(&mut self, now: Instant) {
        self.seen = now;
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.seen)
    }

    fn cluster_time(&self, now: Instant) -> ClusterTime {
        ClusterTime(self.stamp.0.saturating_add(self.elapsed(now).as_nanos() as u64))
    }
}

/// Propose what is due, while this node leads, until `stop`.
pub(super) async fn run(replica: Replica, own: NodeId, stop: CancellationToken) {
    let leader = replica.leader();
    let mut reckoning = Reckoning::new(Instant::now());
    while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
        let now = Instant::now();
        if *leader.borrow() != Some(own) {
            reckoning.stand_still(now);
            continue;
        }
        let root = replica.state();
        reckoning.see(root.cluster_time(), now);
        let commands = match due(&root, &reckoning, now) {
            Due::Nothing => continue,
            Due::Tick => vec![Command::Tick],
            Due::Commands(commands) => commands,
        };
        drop(root);
        stop.run_until_cancelled(propose(&replica, commands)).await;
    }
}

fn due(root: &State, reckoning: &Reckoning, now: Instant) -> Due {
    let Some(next) = root.next_deadline() else { return Due::Nothing };
    let time = reckoning.cluster_time(now);
    let commands = if next <= time { root.due(time, BATCH_MAX) } else { Vec::new() };
    match commands.is_empty() {
        false => Due::Commands(commands),
        true if reckoning.elapsed(now) >= TICK_AFTER => Due::Tick,
        true => Due::Nothing,
    }
}

/// Propose all, and wait: what was applied is no longer due at the next look.
async fn propose(replica: &Replica, commands: Vec<Command>) {
    let proposals = commands.into_iter().map(|command| replica.propose(sessionless(command), Bytes::new()));
    match timeout(BATCH_TIME, join_all(proposals)).await {
        Err(_) => tracing::debug!("what was due could not be committed in {BATCH_TIME:?}"),
        Ok(results) => {
            for error in results.into_iter().filter_map(Result::err) {
                tracing::debug!("what was due was not committed: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{LogIndex, Reply, SessionId, Stamp, Timestamp};

    fn stamp(index: u64, cluster: ClusterTime) -> Stamp {
        Stamp { index: LogIndex(index), cluster, wall: Timestamp { seconds: index as i64, nanos: 0 } }
    }

    #[test]
    fn a_session_is_ended_when_its_time_has_passed_in_cluster_time_and_ticks_fill_the_silence() {
        let (start, mut root) = (Instant::now(), State::new());
        let mut reckoning = Reckoning::new(start);
        assert_eq!(
            due(&root, &reckoning, start + TICK_AFTER * 9),
            Due::Nothing,
            "without deadlines no entry is needed"
        );
        let open = sessionless(Command::OpenSession { label: "test".into() });
        let at = ClusterTime(5_000_000_000);
        assert_eq!(root.apply(stamp(3, at), &open, 0), Ok(Reply::Session(SessionId(3))));
        reckoning.see(root.cluster_time(), start);
        assert_eq!(due(&root, &reckoning, start), Due::Nothing);
        assert_eq!(due(&root, &reckoning, start + TICK_AFTER), Due::Tick);
        let ttl = Duration::from_nanos(crate::limits::SESSION_TTL_NS);
        let end = Command::EndSession { session: SessionId(3), last_seen: at };
        assert_eq!(due(&root, &reckoning, start + ttl + TICK_AFTER), Due::Commands(vec![end]));
        reckoning.stand_still(start + ttl);
        assert_eq!(due(&root, &reckoning, start + ttl), Due::Nothing, "another node led: no time has passed here");
    }
}
