//! Good copies for what this node's disk has lost: of entries of the Raft log, from peers that have applied them.
//!
//! What a peer has applied is committed, so it is the one entry of its index for ever; whatever was here may be replaced by
//! it. It is taken only if its id is the one that is known here, or, where nothing is known, if its neighbours are.
//! Bodies alone come the way of [`super::bodies`], also below the purge point.

use super::messages::{self, FETCH_ENTRIES, FetchEntries};
use super::peers::Peers;
use super::publish::Published;
use super::store::{completion, durable, io_error};
use crate::limits::APPEND_BYTES_MAX;
use crate::log::{Entry, EntryId, Log, StorageError};
use crate::net::{Identity, Message, NodeId, Purpose};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for one answer.
const FETCH_TIME: Duration = Duration::from_secs(5);
/// How long peers that do not have the entries yet, or do not answer, are asked again: all may be starting.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Bytes of commands and bodies in one answer; the commands travel in the header of a frame.
const ANSWER_BYTES_MAX: usize = 2 << 20;
/// Bytes of one hole in the log that are fetched; a larger one is a lost disk.
const HOLE_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(ANSWER_BYTES_MAX <= APPEND_BYTES_MAX);

/// Answer a peer's question. Reads the disk.
pub fn serve(log: &Log, published: &Published, question: FetchEntries) -> Message {
    let applied_next = published.applied().0 + 1;
    let entries = log.entries(question.from, question.to.min(applied_next), ANSWER_BYTES_MAX, true);
    let answer = entries
        .map_err(|e| e.to_string())
        .and_then(|entries| messages::entries_message(entries).map_err(|e| e.to_string()));
    answer.unwrap_or_else(Message::refused)
}

/// Entries of this range from the peer that has most of them, before the log is open: the membership stands in the log, so
/// `members` is what the node has noted of it elsewhere. Blocks; must be called on a thread that may, within a runtime.
pub fn supply(own: &Identity, members: &BTreeMap<NodeId, SocketAddr>, range: Range<u64>) -> Vec<Entry> {
    let peers = Peers::new(own.clone(), members.clone(), Arc::default());
    tokio::runtime::Handle::current().block_on(async {
        tracing::warn!("entries of {range:?} are damaged here; asking the other nodes for them");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (found, why) = best(&peers, range.clone()).await;
            // The two at the ends are only there to be compared.
            let inner = range.end.saturating_sub(range.start).saturating_sub(2) as usize;
            if found.len() >= inner.max(1) || Instant::now() >= deadline {
                if found.is_empty() {
                    tracing::error!("no other node could give the entries of {range:?}: {why}");
                }
                return found;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    })
}

async fn best(peers: &Peers, range: Range<u64>) -> (Vec<Entry>, String) {
    let (mut best, mut why) = (Vec::new(), "there is no other node".to_string());
    for (node, address) in peers.others() {
        match fetch(peers, node, address, range.clone()).await {
            Ok(found) if found.len() > best.len() => best = found,
            Ok(_) => why = format!("node {node} does not have them"),
            Err(e) => why = format!("node {node}: {e}"),
        }
    }
    (best, why)
}

/// What one node has of a range, from its first entry that this one has on.
async fn fetch(peers: &Peers, node: NodeId, address: SocketAddr, range: Range<u64>) -> io::Result<Vec<Entry>> {
    let link = peers.link(node, address, Purpose::Snapshot);
    let (mut found, mut bytes) = (Vec::<Entry>::new(), 0);
    loop {
        let from = found.last().map_or(range.start, |last| last.id.index + 1);
        if from >= range.end || bytes > HOLE_BYTES_MAX {
            return Ok(found);
        }
        let question = FetchEntries { from, to: range.end };
        let question = messages::message(FETCH_ENTRIES, &question, Bytes::new()).map_err(io_error)?;
        let answer = link.call(question, Instant::now() + FETCH_TIME).await.map_err(io_error)?;
        let entries = messages::fetched_entries(&answer).map_err(io_error)?;
        let first = entries.first().map(|first| first.id.index);
        let in_order = entries.iter().zip(first.unwrap_or(from)..).all(|(entry, index)| entry.id.index == index);
        let follows = found.is_empty() || first == Some(from);
        if entries.is_empty() || !in_order || !follows || first < Some(from) {
            return Ok(found);
        }
        bytes += answer.header.len() + answer.body.len();
        found.extend(entries);
    }
}

/// Mends entries of an open log.
pub struct Mender {
    pub log: Log,
    pub peers: Arc<Peers>,
}

impl Mender {
    /// Put a good copy in the place of a damaged entry; the error is the damage, with why it stays.
    pub async fn mend(&self, index: u64, damage: &StorageError) -> Result<(), StorageError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_mend(index).await {
                Ok(node) => {
                    tracing::warn!("entry {index} was mended with the copy of node {node}: {damage}");
                    return Ok(());
                }
                Err(why) if Instant::now() >= deadline => return Err(unmended(damage, &why)),
                Err(_) => tokio::time::sleep(ASK_EVERY).await,
            }
        }
    }

    /// The same with one try. An entry that is not in the Raft log is none of ours.
    pub async fn mend_once(&self, index: u64, damage: &StorageError) -> Result<(), String> {
        if self.log.entry_id(index).is_none() {
            return Err("it is not in the log".into());
        }
        let node = self.try_mend(index).await?;
        tracing::warn!("entry {index} was mended with the copy of node {node}: {damage}");
        Ok(())
    }

    async fn try_mend(&self, index: u64) -> Result<NodeId, String> {
        let mut why = "there is no other node".to_string();
        for (node, address) in self.peers.others() {
            why = match fetch(&self.peers, node, address, index..index + 1).await.map(|mut found| found.pop()) {
                Ok(Some(entry)) => match self.take(entry).await {
                    Ok(true) => return Ok(node),
                    Ok(false) => format!("node {node} has another entry there"),
                    Err(e) => return Err(e.to_string()),
                },
                Ok(None) => format!("node {node} does not have it"),
                Err(e) => format!("node {node}: {e}"),
            };
        }
        Err(why)
    }

    async fn take(&self, entry: Entry) -> io::Result<bool> {
        let log = self.log.clone();
        let fits = super::store::blocking(move || Ok(log.accepts_entry(&entry).map_err(io_error)?.then_some(entry)));
        let Some(entry) = fits.await? else { return Ok(false) };
        let (done, mended) = completion();
        self.log.mend_entry(entry, done);
        durable(mended).await.map(|()| true)
    }
}

/// Entries that the newest snapshot covers are here for peers that lag a little. If one of them is damaged, all that it
/// covers leaves the Raft log; bodies to which files refer stay, and are mended when they are read.
pub async fn drop_damaged_margin(log: &Log, snapshot: EntryId) -> io::Result<()> {
    let reading = log.clone();
    let damage = super::store::blocking(move || Ok(first_damage(&reading, snapshot.index + 1))).await?;
    if let Some(damage) = damage {
        tracing::warn!("dropped the log up to entry {}, which a snapshot covers: {damage}", snapshot.index);
        let (done, purged) = completion();
        log.purge(snapshot, done);
        durable(purged).await?;
    }
    Ok(())
}

/// Of headers and commands in the Raft log in front of `end`. Any other error is for those who meet it again.
fn first_damage(log: &Log, end: u64) -> Option<StorageError> {
    let mut from = 0;
    loop {
        match log.entries(from, end, ANSWER_BYTES_MAX, false) {
            Ok(entries) => from = entries.last()?.id.index + 1,
            Err(damage @ StorageError::Damaged { .. }) => return Some(damage),
            Err(_) => return None,
        }
    }
}

/// A damage, with why it stays.
pub fn unmended(damage: &StorageError, why: &str) -> StorageError {
    match damage.again() {
        StorageError::Damaged { file, offset, index, what } => {
            StorageError::Damaged { file, offset, index, what: format!("{what}; no good copy could be had: {why}") }
        }
        other => other,
    }
}
