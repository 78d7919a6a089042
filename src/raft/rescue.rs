//! The whole state from a peer, when this node's snapshot is damaged and its log does not reach back to the beginning.
//!
//! Asked for before Raft starts, and streamed out of the giver's state as it stands. What a giver has applied is committed,
//! so whatever it has may stand here too: the vote and the log behind it stay as they are. The order is that of any install
//! ([`super::intake`]): bodies, then the snapshot file, then what contradicts it is purged; a crash leaves the damaged
//! snapshot or the new one.

use super::Machine;
use super::bodies::Fetcher;
use super::ending::storage_error;
use super::messages::{self, FETCH_STATE, FetchState, FetchedState};
use super::payload::StoredMeta;
use super::peers::Peers;
use super::snapshot;
use super::store::{blocking, completion, durable, io_error, is_full};
use super::types::Types;
use crate::fs::{Importer, State};
use crate::log::{Log, StorageError};
use crate::net::{Message, NodeId, Purpose};
use bytes::{Bytes, BytesMut};
use openraft::Raft;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Time for one message.
const MESSAGE_TIME: Duration = Duration::from_secs(30);
/// How long peers that cannot give anything are asked again: all may be starting.
const PATIENCE: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(500);
/// An asker that has been silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Bytes of items in one message, about.
const ITEMS_BYTES: usize = 1 << 20;
/// Nodes that are given the state at one time.
const EXPORTS_MAX: usize = 8;

/// What is being given, by asker.
#[derive(Default)]
pub struct Exports {
    current: Mutex<BTreeMap<NodeId, Export>>,
}

struct Export {
    meta: StoredMeta,
    items: Arc<tokio::sync::Mutex<mpsc::Receiver<Bytes>>>,
}

impl Exports {
    /// Answer one of an asker's messages; sequence 0 begins anew.
    pub async fn serve(&self, raft: &Raft<Types, Machine>, to: NodeId, sequence: u64) -> Message {
        if sequence == 0
            && let Err(why) = self.begin(raft, to).await
        {
            return Message::refused(why);
        }
        let found = self.current.lock().get(&to).map(|export| (export.meta.clone(), export.items.clone()));
        let Some((meta, items)) = found else { return Message::refused("this has not been begun") };
        let body = items.lock().await.recv().await;
        let ended = body.is_none();
        if ended {
            self.current.lock().remove(&to);
        }
        messages::message(FETCH_STATE, &FetchedState { meta, ended }, body.unwrap_or_default())
            .unwrap_or_else(|e| Message::refused(e.to_string()))
    }

    async fn begin(&self, raft: &Raft<Types, Machine>, to: NodeId) -> Result<(), String> {
        let whole = raft.with_state_machine(|machine| Box::pin(std::future::ready(machine.whole()))).await;
        let (meta, state) = whole.map_err(|e| e.to_string())?.ok_or("nothing is applied here yet")?;
        let (send, items) = mpsc::channel(1);
        let export = Export { meta, items: Arc::new(tokio::sync::Mutex::new(items)) };
        let mut current = self.current.lock();
        if current.len() >= EXPORTS_MAX && !current.contains_key(&to) {
            return Err("too many nodes are being given the state".into());
        }
        current.insert(to, export);
        drop(current);
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            for body in frames(&state) {
                // A receiver that is gone, or silent, wants no more.
                let sent = runtime.block_on(tokio::time::timeout(SILENCE_MAX, send.send(body)));
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
        });
        Ok(())
    }
}

/// The items of a state as bodies of messages.
fn frames(state: &State) -> impl Iterator<Item = Bytes> {
    let mut items = state.export().filter_map(|item| snapshot::encode(&item).ok()).peekable();
    std::iter::from_fn(move || {
        let mut body = BytesMut::new();
        while body.len() < ITEMS_BYTES && items.peek().is_some_and(|item| messages::push_item(&mut body, item)) {
            items.next();
        }
        (!body.is_empty()).then(|| body.freeze())
    })
}

/// Have a whole snapshot in this log again; the error is the damage, with why it stays.
pub async fn fetch_snapshot(log: &Log, peers: &Arc<Peers>, damage: &StorageError) -> Result<(), StorageError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut why = "there is no other node".to_string();
        for (node, address) in peers.others() {
            match fetch_from(log, peers, node, address).await {
                Ok(index) => {
                    tracing::warn!("the state came from node {node}, at entry {index}, because here {damage}");
                    return Ok(());
                }
                // Nobody's copy helps, and the damage is not what keeps this node from starting.
                Err(e) if is_full(&e) => return Err(storage_error(&e).unwrap_or(damage).again()),
                Err(e) => why = format!("node {node}: {e}"),
            }
        }
        if Instant::now() >= deadline {
            return Err(super::mend::unmended(damage, &why));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn fetch_from(log: &Log, peers: &Arc<Peers>, node: NodeId, address: SocketAddr) -> io::Result<u64> {
    let (meta, state) = receive(peers, node, address).await?;
    let held = log.state();
    if held.last_purged.is_some_and(|purged| purged.index > meta.last.index) {
        return Err(io::Error::other(format!("it is only at entry {}", meta.last.index)));
    }
    let mut sources = peers.others();
    sources.sort_by_key(|(source, _)| *source != node);
    let fetcher = Fetcher { log: log.clone(), peers: peers.clone(), sources, mends: false };
    // The bodies of entries that are not known to be committed may be others.
    let trusted = log.committed().or(held.last_purged).map_or(0, |id| id.index + 1);
    let doubtful = trusted..held.last.map_or(trusted, |last| last.index + 1);
    let bodies = fetcher.fetch_missing(&state, doubtful, |_| ()).await?;
    let (writing, stored) = (log.clone(), meta.clone());
    blocking(move || {
        bodies.check(&writing, &state)?;
        snapshot::write(&writing, &stored, &state)
    })
    .await?;
    if log.entry_id(meta.last.index) != Some(meta.last) {
        let (done, purged) = completion();
        log.purge(meta.last, done);
        durable(purged).await?;
    }
    Ok(meta.last.index)
}

async fn receive(peers: &Peers, node: NodeId, address: SocketAddr) -> io::Result<(StoredMeta, State)> {
    let link = peers.link(node, address, Purpose::Snapshot);
    let mut importer = Importer::new();
    for sequence in 0.. {
        let question = messages::message(FETCH_STATE, &FetchState { sequence }, Bytes::new()).map_err(io_error)?;
        let answer = link.call(question, Instant::now() + MESSAGE_TIME).await.map_err(io_error)?;
        let FetchedState { meta, ended } = messages::header(&answer).map_err(io_error)?;
        if ended {
            return blocking(move || Ok((meta.clone(), snapshot::finish(importer, &meta)?))).await;
        }
        importer = blocking(move || {
            for item in messages::items(answer.body).map_err(io_error)? {
                snapshot::add(&mut importer, &item)?;
            }
            Ok(importer)
        })
        .await?;
    }
    Err(io::Error::other("it does not end"))
}
