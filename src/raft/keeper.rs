//! Housekeeping of one replica: snapshots, purging, reclaiming.
//!
//! A snapshot is due after so many bytes of log (a restart replays what lies behind it). After it, what it covers is purged
//! from the Raft log except for a margin behind apply, so that a follower that was away for a moment is caught up with
//! entries. Purging forgets headers only; bodies stay until reclaiming finds that no file refers to them.
//!
//! openraft's own policies are off. Its issue 2116 is a panic when a purge overtakes apply. In alpha.37 a purge waits for
//! the snapshot that covers it (`Condition::Snapshot`), replies for purged entries are discarded first, and a triggered
//! purge never passes the snapshot, which is never ahead of apply; the margin here keeps it further away still.

use super::Machine;
use super::publish::Published;
use super::replica::Tuning;
use super::types::Types;
use crate::fs::LogIndex;
use crate::log::Log;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

/// How often the keeper looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Something is reclaimed at least so often while entries are applied.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(120);

pub struct Keeper {
    pub raft: Raft<Types, Machine>,
    pub log: Log,
    pub published: Arc<Published>,
    /// Not held while it may be reclaimed.
    pub space: Arc<Mutex<()>>,
    pub tuning: Tuning,
    /// Someone needs space now.
    pub urgent: Arc<Notify>,
}

/// What was done last.
struct Done {
    purged: u64,
    reclaimed_at: Instant,
    reclaimed_applied: LogIndex,
}

impl Keeper {
    pub async fn run(self, stop: CancellationToken) {
        let mut done = Done { purged: 0, reclaimed_at: Instant::now(), reclaimed_applied: self.published.applied() };
        while !stop.is_cancelled() {
            let urgent = tokio::select! {
                () = self.urgent.notified() => true,
                () = tokio::time::sleep(INTERVAL) => false,
                () = stop.cancelled() => break,
            };
            self.look(&mut done, urgent).await;
        }
    }

    async fn look(&self, done: &mut Done, urgent: bool) {
        let (snapshot, purged) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.snapshot.map_or(0, |id| id.index), metrics.purged.map_or(0, |id| id.index))
        };
        let since = self.log.bytes_since(snapshot);
        if since >= self.tuning.snapshot_after_bytes || (urgent && since > 0) {
            // openraft ignores this while a snapshot is being built. An error means that Raft has ended.
            let _ = self.raft.trigger().snapshot().await;
        }
        let upto = self.purge_point(snapshot);
        if upto > purged {
            let _ = self.raft.trigger().purge_log(upto).await;
        }
        if purged > done.purged || self.reclaim_is_due(done) || urgent {
            done.purged = purged;
            self.reclaim(done).await;
        }
    }

    /// The last entry that may be purged: behind the snapshot and apply by a margin of entries, or, if these are large, of
    /// bytes.
    fn purge_point(&self, snapshot: u64) -> u64 {
        let end = snapshot.min(self.published.applied().0);
        let (mut low, mut high) =
            (end.saturating_sub(self.tuning.keep_entries), end.saturating_sub(self.tuning.keep_entries_min));
        // The first index between them behind which few enough bytes remain.
        while low < high {
            let middle = low + (high - low) / 2;
            match self.log.bytes_since(middle) <= self.tuning.keep_bytes {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        low
    }

    fn reclaim_is_due(&self, done: &Done) -> bool {
        done.reclaimed_at.elapsed() >= RECLAIM_INTERVAL && self.published.applied() > done.reclaimed_applied
    }

    /// Give back what nothing refers to. One at a time, and never while a snapshot is being installed, whose bodies the
    /// published state does not know yet.
    async fn reclaim(&self, done: &mut Done) {
        let Ok(space) = self.space.clone().try_lock_owned() else { return };
        let (log, state) = (self.log.clone(), self.published.root());
        (done.reclaimed_at, done.reclaimed_applied) = (Instant::now(), state.applied());
        let reclaimed = tokio::task::spawn_blocking(move || {
            let result = log.reclaim(&|index| state.refers_to(LogIndex(index)));
            drop(space);
            result
        });
        match reclaimed.await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::error!("cannot reclaim space: {e}"),
            Err(e) => tracing::error!("reclaiming space failed: {e}"),
        }
    }
}
