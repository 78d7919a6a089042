//! Starting a replica: what it is made of, put together.

use super::Machine;
use super::clock::Clock;
use super::compare::Comparer;
use super::disks::Disks;
use super::ending::{Ending, Endings, storage_error};
use super::intake::Target;
use super::introduce::{self, Registrar};
use super::keeper::Keeper;
use super::mend::{self, Mender};
use super::network::Network;
use super::peers::Peers;
use super::replica::{Inner, PROPOSED_BYTES_MAX, Replica, leader_of};
use super::rescue;
use super::scrub::Scrubber;
use super::server::Server;
use super::settings::{Timing, Tuning, config};
use super::store::{Store, completion, durable};
use super::types::*;
use crate::log::{EntryId, Log, StorageError};
use crate::net::{Identity, NodeId};
use anyhow::Context;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;

impl Replica {
    /// Load the newest snapshot, replay what is known to be committed behind it, start Raft. `members` says where nodes
    /// are as long as there is no membership.
    pub async fn start_tuned(
        own: Identity,
        log: Log,
        members: BTreeMap<NodeId, SocketAddr>,
        timing: Timing,
        tuning: Tuning,
    ) -> anyhow::Result<Replica> {
        let node = own.node.context("a replica needs a node id")?;
        let endings = Endings::default();
        watch_log(&log, endings.clone());
        let (start, registrar) = (own.start, Arc::<Registrar>::default());
        let peers = Arc::new(Peers::new(own, members, registrar.clone()));
        let machine = load(&log, &peers, &endings).await?;
        if let Some(snapshot) = machine.loaded() {
            let what = "cannot purge the log";
            begin_behind(&log, snapshot).await.context(what)?;
            mend::drop_damaged_margin(&log, snapshot).await.context(what)?;
        }
        let published = machine.published();
        registrar.judge_by(published.clone());
        let disks = Arc::new(Disks::new(node, log.clone()));
        let network = Network { peers: peers.clone(), log: log.clone(), disks: disks.clone() };
        let mender = Arc::new(Mender { log: log.clone(), peers: peers.clone() });
        let store = Store::new(log.clone(), Some(mender.clone()), endings.clone());
        let raft = Raft::new(node, config(timing)?, network, store, machine).await;
        // Met on the way, it says more than what openraft made of it.
        let met = endings.first();
        let raft = raft.map_err(|e| met.map_or_else(|| e.into(), Ending::into_error)).context("cannot start raft")?;

        registrar.follow(raft.clone());

        let stop = CancellationToken::new();
        let space = Arc::new(Mutex::new(()));
        tokio::spawn(introduce::introduce(raft.clone(), peers.clone(), node, stop.clone()));
        let target = Target {
            raft: raft.clone(),
            log: log.clone(),
            peers,
            published: published.clone(),
            space,
            mending: Arc::default(),
        };
        let keeper = Keeper {
            raft: raft.clone(),
            log: log.clone(),
            published: published.clone(),
            space: target.space.clone(),
            tuning,
            disks: disks.clone(),
        };
        tokio::spawn(keeper.run(stop.clone()));
        let (tell_leader, leader) = watch::channel(None);
        tokio::spawn(watch_raft(raft.clone(), node, tell_leader, endings.clone(), stop.clone()));
        let compared = Arc::default();
        let comparer = Comparer {
            own: node,
            raft: raft.clone(),
            peers: target.peers.clone(),
            published: published.clone(),
            endings: endings.clone(),
            last: Arc::clone(&compared),
        };
        tokio::spawn(comparer.run(stop.clone()));
        let rate = tuning.scrub_bytes_per_second;
        let scrub = Scrubber { raft: raft.clone(), target: target.clone(), mender, rate }.start(stop.clone());
        let server = Server {
            raft: raft.clone(),
            target,
            intake: Arc::default(),
            lanes: Arc::default(),
            exports: Arc::default(),
            disks: disks.clone(),
        };
        let proposed_bytes = Arc::new(Semaphore::new(PROPOSED_BYTES_MAX));
        let clock = Clock::default();
        let inner = Inner {
            own: node,
            start,
            raft,
            log,
            published,
            clock,
            server,
            proposed_bytes,
            leader,
            endings,
            compared,
            scrub,
            disks,
            registrar,
            silence_max: timing.election_max * 2,
            stop,
        };
        Ok(Replica { inner: Arc::new(inner) })
    }
}

/// The machine as the newest snapshot has it; a damaged one is replaced by a peer's state, if the log alone will not do.
async fn load(log: &Log, peers: &Arc<Peers>, endings: &Endings) -> anyhow::Result<Machine> {
    let load = async || Machine::load(log.clone(), endings.clone()).await;
    let loaded = match load().await {
        Err(error) => match storage_error(&error) {
            Some(damage @ StorageError::Damaged { .. }) => {
                rescue::fetch_snapshot(log, peers, damage).await?;
                load().await
            }
            _ => Err(error),
        },
        loaded => loaded,
    };
    loaded.context("cannot load the newest snapshot")
}

/// Let go of what the snapshot covers, unless the log holds that very entry: a crash between writing a snapshot that came
/// from a peer and the purge leaves entries that were never committed.
async fn begin_behind(log: &Log, snapshot: EntryId) -> io::Result<()> {
    let is_ahead = log.state().last_purged.is_some_and(|purged| purged.index >= snapshot.index);
    if is_ahead || log.entry_id(snapshot.index) == Some(snapshot) {
        return Ok(());
    }
    tracing::warn!("dropped the log up to entry {}: it is not that of the snapshot", snapshot.index);
    let (done, purged) = completion();
    log.purge(snapshot, done);
    durable(purged).await
}

fn watch_log(log: &Log, endings: Endings) {
    log.on_failure(Box::new(move |error| endings.tell(Ending::Storage(error))));
}

/// Pass on who leads, and whether Raft has ended, as the metrics change.
async fn watch_raft(
    raft: Raft<Types, Machine>,
    own: NodeId,
    leader: watch::Sender<Option<NodeId>>,
    endings: Endings,
    stop: CancellationToken,
) {
    let mut metrics = raft.metrics();
    loop {
        let (now, running) = {
            let metrics = metrics.borrow_and_update();
            (leader_of(&metrics, own), metrics.running_state.clone())
        };
        if leader.send_if_modified(|before| std::mem::replace(before, now) != now) {
            match now {
                Some(node) => tracing::info!("node {node} leads"),
                None => tracing::info!("no leader is known"),
            }
        }
        let ended = match running {
            Err(fatal) => Some(fatal.to_string()),
            Ok(()) => tokio::select! {
                changed = metrics.changed() => changed.err().map(|_| "raft has ended".to_string()),
                () = stop.cancelled() => return,
            },
        };
        if let Some(why) = ended {
            if !stop.is_cancelled() {
                endings.tell(Ending::Raft(why));
            }
            return;
        }
    }
}
