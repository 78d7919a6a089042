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
use super::disks::{Disks, Verdict};
use super::publish::Published;
use super::settings::Tuning;
use super::store::{blocking, io_error};
use super::types::Types;
use crate::fs::LogIndex;
use crate::log::Log;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// How often the keeper looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// How soon what was taken from the reserve is replaced.
const RESERVE_INTERVAL: Duration = Duration::from_millis(50);
/// Something is reclaimed at least so often while entries are applied.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(120);
/// Pause between two rounds of compaction: each moves 32 MiB at most.
const COMPACT_INTERVAL: Duration = Duration::from_secs(2);
/// When space is short.
const SHORT_RECLAIM_INTERVAL: Duration = Duration::from_secs(1);
const SHORT_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(30);
const SHORT_SNAPSHOT_AFTER_BYTES: u64 = 4 << 20;
/// Entries that are kept behind the snapshot when space is short.
const SHORT_KEEP_ENTRIES: u64 = 10;

pub struct Keeper {
    pub raft: Raft<Types, Machine>,
    pub log: Log,
    pub published: Arc<Published>,
    /// Not held while it may be reclaimed.
    pub space: Arc<Mutex<()>>,
    pub tuning: Tuning,
    pub disks: Arc<Disks>,
}

/// What was done last.
struct Done {
    purged: u64,
    reclaimed_at: Instant,
    reclaimed_applied: LogIndex,
    /// How long the last reclaiming took, and whether it left something to compact.
    reclaiming_took: Duration,
    more: bool,
    snapshot_at: Instant,
    /// The disk was full at the last look; it was nearly so.
    full: bool,
    short: bool,
}

impl Keeper {
    pub async fn run(self, stop: CancellationToken) {
        let now = Instant::now();
        let mut done = Done {
            purged: 0,
            reclaimed_at: now,
            reclaimed_applied: self.published.applied(),
            reclaiming_took: Duration::ZERO,
            more: false,
            snapshot_at: now,
            full: false,
            short: false,
        };
        let looks = async {
            loop {
                self.look(&mut done).await;
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = looks => {}
            () = self.keep_reserve() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Fill the reserve up as soon as something was taken from it. Beside all else: giving space back takes its time, and
    /// whatever fills the disk meanwhile must find the reserve whole.
    async fn keep_reserve(&self) {
        loop {
            self.replenish().await;
            tokio::time::sleep(RESERVE_INTERVAL).await;
        }
    }

    async fn look(&self, done: &mut Done) {
        self.note_shortage(done);
        self.make_way().await;
        let (snapshot, purged) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.snapshot.map_or(0, |id| id.index), metrics.purged.map_or(0, |id| id.index))
        };
        if self.snapshot_is_due(snapshot, done) {
            done.snapshot_at = Instant::now();
            // openraft ignores this while a snapshot is being built. An error means that Raft has ended.
            let _ = self.raft.trigger().snapshot().await;
        }
        let upto = self.purge_point(snapshot, done.short);
        if upto > purged {
            let _ = self.raft.trigger().purge_log(upto).await;
        }
        if purged > done.purged || self.reclaim_is_due(done) {
            done.purged = purged;
            self.reclaim(done).await;
        }
    }

    async fn replenish(&self) {
        let log = self.log.clone();
        if let Err(e) = blocking(move || log.replenish().map_err(io_error)).await {
            tracing::error!("cannot fill up the reserve of disk space: {e}");
        }
    }

    fn note_shortage(&self, done: &mut Done) {
        let full = self.disks.is_full();
        match (done.full, full) {
            (false, true) => tracing::error!(
                "storage full: this node takes nothing more that makes the tree grow; delete files, or make room on the \
                 file system of its data directory"
            ),
            (true, false) => tracing::info!("there is room on the disk again"),
            _ => {}
        }
        (done.full, done.short) = (full, self.disks.is_nearly_full());
    }

    /// A leader whose disk is full makes way for a node whose is not.
    async fn make_way(&self) {
        let (leads, voters) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.state.is_leader(), metrics.membership_config.membership().get_joint_config().clone())
        };
        if !leads {
            self.disks.does_not_lead();
            return;
        }
        let should = self.disks.judge(&voters, 0) == Verdict::StepAside && self.disks.step_aside();
        if (should || self.disks.is_stepping_aside())
            && let Some(successor) = self.disks.successor(&voters)
        {
            tracing::warn!("the disk of this leader is full: node {successor} is to lead");
            let _ = self.raft.trigger().transfer_leader(successor).await;
        }
    }

    /// When space is short sooner, so that what was deleted can go; but only if there is room for it, and not so often that
    /// snapshots are most of what is written.
    fn snapshot_is_due(&self, snapshot: u64, done: &Done) -> bool {
        let since = self.log.bytes_since(snapshot);
        if !done.short {
            return since >= self.tuning.snapshot_after_bytes;
        }
        let (room, needed) = self.log.room_for_snapshot();
        let enough = SHORT_SNAPSHOT_AFTER_BYTES.max(4 * needed).min(self.tuning.snapshot_after_bytes);
        let overdue = done.full && since > 0 && done.snapshot_at.elapsed() >= SHORT_SNAPSHOT_INTERVAL;
        (since >= enough || overdue) && room >= needed
    }

    /// The last entry that may be purged: behind the snapshot and apply by a margin of entries, or, if these are large, of
    /// bytes; when space is short, by a few entries.
    fn purge_point(&self, snapshot: u64, short: bool) -> u64 {
        let end = snapshot.min(self.published.applied().0);
        if short {
            return end.saturating_sub(SHORT_KEEP_ENTRIES.min(self.tuning.keep_entries_min));
        }
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
        let since = done.reclaimed_at.elapsed();
        let pause = match () {
            // At most a tenth of the time.
            () if done.short => SHORT_RECLAIM_INTERVAL.max(10 * done.reclaiming_took),
            () if done.more => COMPACT_INTERVAL,
            () => RECLAIM_INTERVAL,
        };
        since >= pause && (done.more || self.published.applied() > done.reclaimed_applied)
    }

    /// Give back what nothing refers to. One at a time, and never while a snapshot is being installed, whose bodies the
    /// published state does not know yet.
    async fn reclaim(&self, done: &mut Done) {
        let Ok(space) = self.space.clone().try_lock_owned() else { return };
        let (log, state) = (self.log.clone(), self.published.root());
        (done.reclaimed_at, done.reclaimed_applied) = (Instant::now(), state.applied());
        let reclaimed = blocking(move || {
            let result = log.reclaim(&|index| state.refers_to(LogIndex(index))).map_err(io_error);
            drop(space);
            result
        });
        match reclaimed.await {
            Ok(more) => done.more = more,
            Err(e) => tracing::error!("cannot reclaim space: {e}"),
        }
        done.reclaiming_took = done.reclaimed_at.elapsed();
    }
}
