//! Receiving a snapshot: items, then the bodies that are lacking, then openraft.
//!
//! ```text
//! begin ─ items ─ items ─ … ─ end │ importing: one item at a time becomes state, nothing is kept serialized
//!                                 │ fetching: bodies that the state refers to and this node lacks, made durable
//!                                 │ staging: the state as a file under a temporary name, durable
//!                                 │ installing: openraft truncates; the file is renamed into place; the state is swapped
//! ```
//!
//! Crash safety is in this order: until the rename, what is on disk is the old log and the old snapshot, a file that the
//! next opening removes, and some bodies to which nothing refers, which the next reclaiming removes. After the rename everything that the new state refers to is
//! durable.
//!
//! Absent on purpose: resuming. An interrupted transmission starts again, but most of the bodies that have come are
//! here by then.
//! One transmission at a time: a new one ends the one before.

use super::Machine;
use super::bodies::{Fetcher, Mending, Verified};
use super::messages::{self, Progress, SnapshotBegin, SnapshotItems, SnapshotQuestion};
use super::payload::StoredMeta;
use super::peers::Peers;
use super::publish::Published;
use super::snapshot::{self, Received, SnapshotData};
use super::store::{blocking, io_error};
use super::types::*;
use crate::fs::{Importer, LogIndex, State};
use crate::log::Log;
use crate::net::{Message, NodeId};
use bytes::Bytes;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Messages of items that wait to be imported.
const QUEUED_ITEMS_MAX: usize = 2;
/// A sender that has been silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What an install needs of the replica.
#[derive(Clone)]
pub struct Target {
    pub raft: Raft<Types, Machine>,
    pub log: Log,
    pub peers: Arc<Peers>,
    pub published: Arc<Published>,
    /// Held while bodies are here to which the published state does not refer yet.
    pub space: Arc<Mutex<()>>,
    pub mending: Arc<Mending>,
}

/// The transmission that is under way, if any.
#[derive(Default)]
pub struct Intake {
    current: Mutex<Option<Transfer>>,
}

struct Transfer {
    from: NodeId,
    name: u64,
    next_sequence: u64,
    /// `None`: the end has been told.
    items: Option<mpsc::Sender<Bytes>>,
    progress: watch::Receiver<Progress>,
    /// Ends the install when the transfer is replaced.
    _stop: DropGuard,
}

impl Transfer {
    /// How far it is. An install that ended without a word, by a panic, is given up.
    fn progress(&self) -> io::Result<Progress> {
        let ended = self.progress.has_changed().is_err();
        match self.progress.borrow().clone() {
            Progress::Working { .. } if ended => Err(given_up()),
            progress => Ok(progress),
        }
    }
}

impl Intake {
    /// Answer one of a sender's messages.
    pub async fn handle(&self, target: Target, from: NodeId, message: Message) -> Message {
        let answer = match message.kind {
            messages::SNAPSHOT_BEGIN => self.begin(target, from, &message).await,
            messages::SNAPSHOT_ITEMS => self.items(from, &message).await,
            _ => self.question(from, &message).await,
        };
        match answer.and_then(|progress| messages::message(message.kind, &progress, Bytes::new()).map_err(io_error)) {
            Ok(answer) => answer,
            Err(e) => Message::refused(e.to_string()),
        }
    }

    async fn begin(&self, target: Target, from: NodeId, message: &Message) -> io::Result<Progress> {
        let begin: SnapshotBegin = messages::header(message).map_err(io_error)?;
        let own = target.raft.metrics().borrow_watched().vote;
        let needless = begin.meta.last.index <= target.published.applied().0 && target.published.applied().0 > 0;
        if needless || own > Vote::from(begin.vote) {
            return Ok(Progress::Installed { vote: (&own).into() });
        }
        let stop = CancellationToken::new();
        let (items, queue) = mpsc::channel(QUEUED_ITEMS_MAX);
        let (tell, progress) = watch::channel(Progress::Working { bodies_fetched: 0 });
        let transfer = Transfer {
            from,
            name: begin.transfer,
            next_sequence: 0,
            items: Some(items),
            progress,
            _stop: stop.clone().drop_guard(),
        };
        // Dropping the one before stops it; its lock on the space is then free.
        *self.current.lock().await = Some(transfer);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let done = match target.install(from, begin, queue, &tell).await {
                Ok(vote) => Progress::Installed { vote: (&vote).into() },
                Err(e) => Progress::Failed { why: e.to_string() },
            };
            tell.send_replace(done);
        }));
        Ok(Progress::Working { bodies_fetched: 0 })
    }

    async fn items(&self, from: NodeId, message: &Message) -> io::Result<Progress> {
        let SnapshotItems { transfer, sequence } = messages::header(message).map_err(io_error)?;
        let mut current = self.current.lock().await;
        let current = this(&mut current, from, transfer)?;
        if sequence != current.next_sequence {
            return Err(io::Error::other(format!("items {sequence} came when {} were due", current.next_sequence)));
        }
        current.next_sequence += 1;
        if let Some(items) = &current.items {
            // If the importer has ended, its progress says why.
            let _ = items.send(message.body.clone()).await;
        }
        current.progress()
    }

    async fn question(&self, from: NodeId, message: &Message) -> io::Result<Progress> {
        let SnapshotQuestion { transfer } = messages::header(message).map_err(io_error)?;
        let mut current = self.current.lock().await;
        let current = this(&mut current, from, transfer)?;
        if message.kind == messages::SNAPSHOT_END {
            // An empty message ends the items: a channel that merely closes is a transmission that broke.
            if let Some(items) = current.items.take() {
                let _ = items.send(Bytes::new()).await;
            }
        }
        current.progress()
    }
}

fn this(current: &mut Option<Transfer>, from: NodeId, name: u64) -> io::Result<&mut Transfer> {
    match current {
        Some(transfer) if transfer.from == from && transfer.name == name => Ok(transfer),
        _ => Err(given_up()),
    }
}

fn given_up() -> io::Error {
    io::Error::other("this snapshot transmission has been given up; start again")
}

impl Target {
    async fn install(
        &self,
        from: NodeId,
        begin: SnapshotBegin,
        queue: mpsc::Receiver<Bytes>,
        tell: &watch::Sender<Progress>,
    ) -> io::Result<Vote> {
        let space = self.space.clone().lock_owned().await;
        let (state, bytes) = import(&begin, queue).await?;
        let meta = begin.meta.snapshot_meta().map_err(io_error)?;
        let fetcher = self.fetcher(from, &meta.last_membership);
        let told = |bodies_fetched| drop(tell.send_replace(Progress::Working { bodies_fetched }));
        // No end: what a leader appends meanwhile may be truncated again, and its bodies with it. What was fetched stays.
        let doubtful = self.published.applied().0 + 1..u64::MAX;
        let bodies = fetcher.fetch_missing(&state, doubtful, told).await?;
        let (room, needed) = self.log.room_for_snapshot();
        // Ours may have been small: as a file this one is about as long as it was on its way.
        if room < needed.max(bytes + bytes / 8) {
            return Err(io::Error::other("this node's disk is full: there is no room for a snapshot; make room on it"));
        }
        let received = self.stage(begin.meta, state, bodies, space).await?;
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(Box::new(received)) };
        let installed = self.raft.install_full_snapshot(begin.vote.into(), snapshot).await;
        installed.map(|response| response.vote).map_err(io_error)
    }

    /// Whatever can fail of an install is to fail here: what openraft is told to install it installs, or ends.
    async fn stage(
        &self,
        meta: StoredMeta,
        state: State,
        bodies: Verified,
        space: OwnedMutexGuard<()>,
    ) -> io::Result<Received> {
        let log = self.log.clone();
        // The space goes along: a transmission that replaces this one stages nothing before this has ended.
        blocking(move || {
            bodies.check(&log, &state)?;
            let staged = snapshot::stage(&log, &meta, &state)?;
            Ok(Received { state, bodies, staged, space })
        })
        .await
    }

    /// Asks `first`, then the others.
    fn fetcher(&self, first: NodeId, members: &StoredMembership) -> Fetcher {
        let own = *self.raft.node_id();
        let nodes = members.nodes().filter(|(node, _)| **node != own);
        let mut sources: Vec<(NodeId, SocketAddr)> =
            nodes.filter_map(|(node, at)| Some((*node, self.peers.address(*node, &at.address)?))).collect();
        sources.sort_by_key(|(node, _)| *node != first);
        Fetcher { log: self.log.clone(), peers: self.peers.clone(), sources, mends: false }
    }

    /// Fetch one body to which the published state refers.
    pub async fn fetch_body(&self, index: LogIndex) -> io::Result<()> {
        if !self.published.root().refers_to(index) {
            return Err(io::Error::other(format!("no file refers to the body of entry {}", index.0)));
        }
        let (leader, members) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.current_leader, metrics.membership_config.clone())
        };
        let fetcher = Fetcher { mends: true, ..self.fetcher(leader.unwrap_or_default(), &members) };
        match fetcher.fetch(vec![index.0]).await?.is_empty() {
            true => Ok(()),
            false => Err(io::Error::other(format!("no file refers to the body of entry {} any more", index.0))),
        }
    }
}

impl Target {
    /// Fetch one body in a task of its own, unless that is being done or was tried in vain a moment ago.
    pub fn mend_soon(self, index: LogIndex, damage: String) {
        if self.mending.begin(index.0) {
            tokio::spawn(async move { self.mend_body(index, &damage).await });
        }
    }

    /// Fetch one body because of this damage. `false`: it stays damaged, as has been told.
    pub async fn mend_body(&self, index: LogIndex, damage: &str) -> bool {
        let fetched = self.fetch_body(index).await;
        match &fetched {
            Err(_) if !self.published.root().refers_to(index) => {}
            Ok(()) => tracing::warn!("the body of entry {} was mended with a peer's copy: {damage}", index.0),
            Err(why) => tracing::error!("the body of entry {} stays damaged: {damage}; {why}", index.0),
        }
        if fetched.is_ok() {
            self.mending.mended(index.0);
        }
        fetched.is_ok()
    }
}

/// Turn items into a state as they come.
/// The state, and the bytes that it came in.
async fn import(begin: &SnapshotBegin, mut queue: mpsc::Receiver<Bytes>) -> io::Result<(State, u64)> {
    let (mut importer, mut bytes) = (Importer::new(), 0);
    loop {
        let body = match tokio::time::timeout(SILENCE_MAX, queue.recv()).await {
            Ok(Some(body)) => body,
            Ok(None) => return Err(io::Error::other("the transmission broke")),
            Err(_) => return Err(io::Error::other("the sender fell silent")),
        };
        if body.is_empty() {
            let meta = begin.meta.clone();
            return Ok((blocking(move || snapshot::finish(importer, &meta)).await?, bytes));
        }
        bytes += body.len() as u64;
        importer = blocking(move || {
            for item in messages::items(body).map_err(io_error)? {
                snapshot::add(&mut importer, &item)?;
            }
            Ok(importer)
        })
        .await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::messages::SNAPSHOT_PROGRESS;

    #[tokio::test]
    async fn an_install_that_ended_without_a_word_is_given_up() {
        let (tell, progress) = watch::channel(Progress::Working { bodies_fetched: 7 });
        let stop = CancellationToken::new().drop_guard();
        let transfer = Transfer { from: 1, name: 5, next_sequence: 0, items: None, progress, _stop: stop };
        let intake = Intake { current: Mutex::new(Some(transfer)) };
        let question = SnapshotQuestion { transfer: 5 };
        let question = messages::message(SNAPSHOT_PROGRESS, &question, Bytes::new()).unwrap();
        assert!(matches!(intake.question(1, &question).await, Ok(Progress::Working { bodies_fetched: 7 })));
        // As when its task panics.
        drop(tell);
        assert!(intake.question(1, &question).await.unwrap_err().to_string().contains("start again"));
    }
}
