//! The scrub: everything that is stored is read and verified from time to time, before it is needed.
//!
//! A pass goes over the Raft log, the bodies that files refer to, and the newest snapshot, in this order, reading from the
//! disk and not from its cache. What is damaged or missing is mended from a peer at once: an entry or a body is appended
//! anew, a snapshot is built anew from the state in memory. The rate is bounded, so that it costs the disk little; a
//! pass that someone waits for runs at full speed and may be told to mend nothing.
//!
//! Absent on purpose: heads, seals and trailers of segment files. They are read at the next start, which does without a seal
//! or a trailer, and refuses without both or the head; nothing else is lost by that, since every entry is on a majority.

use super::Machine;
use super::intake::Target;
use super::mend::Mender;
use super::store::{blocking, io_error};
use super::types::Types;
use crate::fs::LogIndex;
use crate::log::{Log, StorageError};
use openraft::Raft;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The first pass begins so long after the start, …
const FIRST_AFTER: Duration = Duration::from_secs(300);
/// … and later ones so long after the one before began, or when it is done.
const PASS_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Findings of one pass that are kept in full.
const FINDINGS_MAX: usize = 32;
/// Missing bodies that are looked up at once.
const LACKING_MAX: usize = 256;
/// Files that are named with a finding.
const FILES_MAX: usize = 3;
/// How long a new snapshot may take to be built.
const SNAPSHOT_TIME: Duration = Duration::from_secs(60);
/// Passes that are asked for and not begun.
const DEMANDS_MAX: usize = 4;

/// What the scrub under way has found, or the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    pub running: bool,
    /// Passes that were completed since this process started.
    pub passes: u64,
    /// The last of the passes that someone asked for, by its number, that is done.
    pub demand_done: u64,
    /// Records and bytes that were read.
    pub records: u64,
    pub bytes: u64,
    /// What was damaged or missing, and how much of that is whole again.
    pub damaged: u64,
    pub mended: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// One thing that was damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub what: String,
    /// Paths of files with bytes in it.
    pub files: Vec<String>,
    pub mended: bool,
}

/// A pass that someone waits for.
struct Demand {
    number: u64,
    mend: bool,
}

/// What the others hold of the scrubber.
#[derive(Clone)]
pub struct ScrubHandle {
    status: Arc<Mutex<ScrubStatus>>,
    demanded: Arc<Mutex<u64>>,
    demands: mpsc::Sender<Demand>,
}

impl ScrubHandle {
    pub fn status(&self) -> ScrubStatus {
        self.status.lock().clone()
    }

    /// Ask for a pass now. Its number, which [`ScrubStatus::demand_done`] reaches when it is done; `None`: too many wait.
    pub fn demand(&self, mend: bool) -> Option<u64> {
        let mut demanded = self.demanded.lock();
        let number = *demanded + 1;
        self.demands.try_send(Demand { number, mend }).ok()?;
        *demanded = number;
        Some(number)
    }
}

pub struct Scrubber {
    pub raft: Raft<Types, Machine>,
    pub target: Target,
    pub mender: Arc<Mender>,
    /// Bytes in a second; 0: only on demand.
    pub rate: u64,
}

/// One pass.
struct Pass {
    mend: bool,
    rate: Option<u64>,
}

impl Scrubber {
    /// Start it; it runs until `stop`.
    pub fn start(self, stop: CancellationToken) -> ScrubHandle {
        let (demands, wanted) = mpsc::channel(DEMANDS_MAX);
        let handle = ScrubHandle { status: Arc::default(), demanded: Arc::default(), demands };
        let status = handle.status.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move { self.run(&status, wanted).await }));
        handle
    }

    async fn run(self, status: &Mutex<ScrubStatus>, mut wanted: mpsc::Receiver<Demand>) {
        let mut next = Instant::now() + FIRST_AFTER;
        loop {
            let due = tokio::time::sleep_until(next.into());
            let demand = tokio::select! {
                demand = wanted.recv() => match demand {
                    Some(demand) => Some(demand),
                    None => return,
                },
                () = due, if self.rate > 0 => None,
            };
            match demand {
                Some(demand) => self.on_demand(demand, status).await,
                None => {
                    next = Instant::now() + PASS_EVERY;
                    let pass = Pass { mend: true, rate: Some(self.rate) };
                    // A pass that someone waits for looks at the same things, sooner.
                    tokio::select! {
                        () = self.pass(pass, status) => {}
                        Some(demand) = wanted.recv() => self.on_demand(demand, status).await,
                    }
                }
            }
        }
    }

    async fn on_demand(&self, demand: Demand, status: &Mutex<ScrubStatus>) {
        self.pass(Pass { mend: demand.mend, rate: None }, status).await;
        status.lock().demand_done = demand.number;
    }

    async fn pass(&self, pass: Pass, status: &Mutex<ScrubStatus>) {
        {
            let mut status = status.lock();
            let (passes, demand_done) = (status.passes, status.demand_done);
            *status = ScrubStatus { running: true, passes, demand_done, ..ScrubStatus::default() };
        }
        self.records(&pass, status).await;
        self.missing_bodies(&pass, status).await;
        self.snapshot(&pass, status).await;
        let mut status = status.lock();
        status.running = false;
        status.passes += 1;
        if status.damaged > 0 {
            tracing::warn!("a scrub found {} damaged, of which {} were mended", status.damaged, status.mended);
        }
    }

    async fn records(&self, pass: &Pass, status: &Mutex<ScrubStatus>) {
        let log = &self.target.log;
        let mut next = log.next_stored(0);
        while let Some(index) = next {
            next = log.next_stored(index + 1);
            if !self.is_wanted(index) {
                continue;
            }
            let reading = log.clone();
            match blocking(move || Ok(reading.verify(index))).await {
                Ok(Ok(bytes)) => {
                    pace(pass, bytes).await;
                    let mut status = status.lock();
                    status.records += 1;
                    status.bytes += bytes;
                }
                Ok(Err(damage)) => self.found(index, damage, pass, status).await,
                Err(e) => return tracing::error!("the scrub has failed: {e}"),
            }
        }
    }

    /// In the Raft log, or a body to which a file refers.
    fn is_wanted(&self, index: u64) -> bool {
        let purged = self.target.log.state().last_purged.map_or(0, |purged| purged.index + 1);
        index >= purged || self.target.published.root().refers_to(LogIndex(index))
    }

    async fn missing_bodies(&self, pass: &Pass, status: &Mutex<ScrubStatus>) {
        let mut from = LogIndex(0);
        loop {
            let lacking = self.lacking_bodies(from).await;
            let Some(last) = lacking.last() else { return };
            from = LogIndex(last + 1);
            let counts = |status: &ScrubStatus| (status.mended, status.damaged);
            let (mended, damaged) = counts(&status.lock());
            for index in lacking {
                // It may have been given up and given back since the root was taken.
                if self.is_wanted(index) {
                    self.found(index, StorageError::NoBody { index }, pass, status).await;
                    pace(pass, self.target.log.body_length(index).unwrap_or(0).into()).await;
                }
            }
            let (mended_now, damaged_now) = counts(&status.lock());
            if pass.mend && mended_now == mended && damaged_now > damaged {
                // Nobody gives them now: the next pass asks again.
                return;
            }
        }
    }

    /// The next bodies that a file refers to and that are not here.
    async fn lacking_bodies(&self, from: LogIndex) -> Vec<u64> {
        let (root, log) = (self.target.published.root(), self.target.log.clone());
        let lacking = blocking(move || {
            let bodies = root.live_bodies(from).map(|index| index.0);
            Ok(bodies.filter(|index| !log.has_body(*index)).take(LACKING_MAX).collect())
        });
        lacking.await.unwrap_or_default()
    }

    async fn found(&self, index: u64, damage: StorageError, pass: &Pass, status: &Mutex<ScrubStatus>) {
        let mended = pass.mend && self.mend(index, &damage).await;
        if !mended && !self.is_wanted(index) {
            return;
        }
        if status.lock().is_long() {
            return status.lock().note(Finding { what: damage.to_string(), files: Vec::new(), mended });
        }
        let root = self.target.published.root();
        let files = blocking(move || Ok(root.files_of_body(LogIndex(index), FILES_MAX))).await.unwrap_or_default();
        let files: Vec<String> = files.iter().map(|path| path.escape_ascii().to_string()).collect();
        tracing::warn!("the scrub found: {damage}; files {files:?}; mended: {mended}");
        status.lock().note(Finding { what: damage.to_string(), files, mended });
    }

    /// From a peer: the entry if it is in the Raft log, else the body.
    async fn mend(&self, index: u64, damage: &StorageError) -> bool {
        if self.mender.mend_once(index, damage).await.is_err() {
            // An entry that no peer has any more may lack only its body.
            let _ = self.target.fetch_body(LogIndex(index)).await;
        }
        let log = self.target.log.clone();
        blocking(move || log.verify(index).map_err(io_error)).await.is_ok()
            && self.target.log.next_stored(index) == Some(index)
    }

    async fn snapshot(&self, pass: &Pass, status: &Mutex<ScrubStatus>) {
        match verify_snapshot(&self.target.log).await {
            Ok(bytes) => {
                pace(pass, bytes).await;
                status.lock().bytes += bytes;
            }
            Err(damage) => {
                let mended = pass.mend && self.rebuild_snapshot().await;
                tracing::warn!("the scrub found: {damage}; built anew: {mended}");
                status.lock().note(Finding { what: damage.to_string(), files: Vec::new(), mended });
            }
        }
    }

    async fn rebuild_snapshot(&self) -> bool {
        let deadline = Instant::now() + SNAPSHOT_TIME;
        if self.raft.trigger().snapshot().await.is_err() {
            return false;
        }
        while verify_snapshot(&self.target.log).await.is_err() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    }
}

impl ScrubStatus {
    /// No more is told than that something was found.
    fn is_long(&self) -> bool {
        self.findings.len() >= FINDINGS_MAX
    }

    fn note(&mut self, finding: Finding) {
        self.damaged += 1;
        self.mended += u64::from(finding.mended);
        if !self.is_long() {
            self.findings.push(finding);
        }
    }
}

async fn verify_snapshot(log: &Log) -> io::Result<u64> {
    let log = log.clone();
    blocking(move || log.verify_snapshot().map_err(io_error)).await
}

/// Take as long for these bytes as the rate says.
async fn pace(pass: &Pass, bytes: u64) {
    match pass.rate {
        Some(rate) => tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)).await,
        None => tokio::task::yield_now().await,
    }
}
