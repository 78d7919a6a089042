//! What can be set: Raft's timing, and how much of the log is kept.

use crate::limits::{SCRUB_BYTES_PER_SECOND, SNAPSHOT_AFTER_BYTES};
use crate::seeded::{Bug, planted};
use anyhow::Context;
use openraft::{Config, SnapshotPolicy};
use std::sync::Arc;
use std::time::Duration;

/// Messages that wait for Raft's core.
const CORE_QUEUE_MAX: u64 = 8192;

/// Raft's timing. Defaults: heartbeat 200 ms, election 500 to 900 ms.
///
/// openraft lets a follower stand for election once it has heard nothing for a lease of `election_max` and then for a time
/// of its own between `election_min` and `election_max` (`Leased::is_expired`): with the defaults 1.4 to 1.8 s after the
/// last heartbeat, and the first of four followers at about 1.5 s. A slow disk does not prolong that time: a follower
/// takes note of a heartbeat before it writes anything, and a leader sends them while it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(900),
        }
    }
}

/// When the log is snapshotted and how much of it is kept behind; the defaults are right but for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes of log behind the last snapshot that make the next one due.
    pub snapshot_after_bytes: u64,
    /// Entries that are kept behind the snapshot and apply, …
    pub keep_entries: u64,
    /// … but no more than these bytes of log, …
    pub keep_bytes: u64,
    /// … and at least so many entries.
    pub keep_entries_min: u64,
    /// How fast the scrub reads by itself; 0: it does not.
    pub scrub_bytes_per_second: u64,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            snapshot_after_bytes: SNAPSHOT_AFTER_BYTES,
            keep_entries: 1000,
            keep_bytes: 16 << 20,
            keep_entries_min: 100,
            scrub_bytes_per_second: SCRUB_BYTES_PER_SECOND,
        }
    }
}

/// openraft's configuration: what is not the timing is never to be set otherwise.
pub(super) fn config(timing: Timing) -> anyhow::Result<Arc<Config>> {
    let config = Config {
        cluster_name: "keelfs".into(),
        heartbeat_interval: timing.heartbeat.as_millis() as u64,
        election_timeout_min: timing.election_min.as_millis() as u64,
        election_timeout_max: timing.election_max.as_millis() as u64,
        enable_pre_vote: Some(true),
        // Followers compare log ids only. A leader that resumed its term after a restart could give the id of an entry that
        // it had lost with its unflushed tail to another entry, and followers would keep the first one silently.
        enable_leader_restore: Some(planted(Bug::RestoredLeader)),
        allow_log_reversion: Some(false),
        // Snapshots and purges are the keeper's.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        api_channel_size: Some(CORE_QUEUE_MAX),
        ..Config::default()
    };
    Ok(Arc::new(config.validate().context("raft's timing does not fit together")?))
}
