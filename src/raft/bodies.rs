//! Bodies from one node to another.
//!
//! A body is named by the index of its entry, the same on all nodes, so any node that has it can give it. What is given has
//! passed the checksums of the giver's log. A giver that no longer has a body says whether that is right: *dead at index X*
//! means that no file refers to it in the committed state at X, so a receiver that will apply up to X before it answers
//! linearizable reads can do without.

use super::messages::{self, FETCH_BODIES, FetchBodies, FetchedBodies, FetchedBody};
use super::peers::Peers;
use super::publish::Published;
use super::store::{blocking, completion, durable, io_error, is_full};
use crate::fs::{LogIndex, State};
use crate::limits::BODY_BYTES_MAX;
use crate::log::{Log, StorageError};
use crate::net::{Message, NodeId, Purpose};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of bodies in one answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Bodies asked for at once.
const ASKED_MAX: usize = 256;
/// Time for one answer.
const FETCH_TIME: Duration = Duration::from_secs(30);
/// Bodies that are mended at one time, or wait for another try.
const MENDING_MAX: usize = 1024;
/// How long a body that could not be mended is left alone.
const MEND_AGAIN_AFTER: Duration = Duration::from_secs(60);

const _: () = assert!(ANSWER_BYTES_MAX + BODY_BYTES_MAX <= crate::limits::FRAME_BODY_BYTES_MAX);

/// Proof that every body which a state refers to was found here, or is rightly gone.
pub struct Verified {
    dead: BTreeSet<u64>,
}

impl Verified {
    /// Look once more, after openraft has truncated what contradicts the state.
    pub fn check(&self, log: &Log, state: &State) -> io::Result<()> {
        match state.live_bodies(LogIndex(0)).find(|index| !self.dead.contains(&index.0) && !log.has_body(index.0)) {
            None => Ok(()),
            Some(index) => Err(io::Error::other(format!("the body of entry {} was lost during an install", index.0))),
        }
    }
}

/// Answer a peer's question. Reads the disk.
pub fn serve(log: &Log, published: &Published, question: FetchBodies) -> Message {
    let (mut found, mut bodies, mut bytes) = (Vec::new(), Vec::new(), 0);
    for index in question.indexes {
        if bytes >= ANSWER_BYTES_MAX {
            break;
        }
        found.push(match find(log, published, index) {
            Ok(Ok(body)) => {
                bytes += body.len();
                bodies.push(body);
                FetchedBody::Here { length: bodies.last().map_or(0, Bytes::len) as u32 }
            }
            Ok(Err(at)) => FetchedBody::Dead { at: at.0 },
            Err(e) => FetchedBody::Unreadable { why: e.to_string() },
        });
    }
    messages::message(FETCH_BODIES, &FetchedBodies { found }, messages::joined(bodies))
        .unwrap_or_else(|e| Message::refused(e.to_string()))
}

/// The body of an entry, or the index at which nothing refers to it.
fn find(log: &Log, published: &Published, index: u64) -> Result<Result<Bytes, LogIndex>, StorageError> {
    // What is not applied here may not be committed: then it is another entry's body.
    if published.applied().0 < index {
        return Err(StorageError::NoBody { index });
    }
    let read = match log.body_length(index) {
        Some(length) => log.read_body(index, 0, length),
        None => Err(StorageError::NoBody { index }),
    };
    match read {
        Ok(body) => Ok(Ok(body)),
        Err(e) => {
            // Looked at after the read has failed: the body may have died and been reclaimed meanwhile.
            let state = published.root();
            match state.applied().0 >= index && !state.refers_to(LogIndex(index)) {
                true => Ok(Err(state.applied())),
                false => Err(e),
            }
        }
    }
}

/// Fetches bodies from peers into the log.
pub struct Fetcher {
    pub log: Log,
    pub peers: Arc<Peers>,
    /// Whom to ask, the best first.
    pub sources: Vec<(NodeId, SocketAddr)>,
    /// What comes stands for what is damaged here, so it must have the checksums that are known here.
    pub mends: bool,
}

impl Fetcher {
    /// Bring everything here that `state` refers to. What is here is good, but for the `doubtful` indexes, all of them above
    /// the purge point: the log's entries there may never have been committed, so only a body counts that came from a peer,
    /// for a peer gives none but of entries that it has applied ([`serve`]). `fetched` is told how many have come so far.
    pub async fn fetch_missing(
        &self,
        state: &State,
        doubtful: Range<u64>,
        fetched: impl Fn(u64),
    ) -> io::Result<Verified> {
        let mut dead = BTreeSet::new();
        let (mut from, mut count) = (LogIndex(0), 0);
        loop {
            let missing = self.missing(state, from, doubtful.clone()).await?;
            let Some(last) = missing.last() else { return Ok(Verified { dead }) };
            from = LogIndex(last + 1);
            count += missing.len() as u64;
            dead.extend(self.fetch(missing).await?);
            fetched(count);
        }
    }

    /// The next bodies that are to be fetched, at most [`ASKED_MAX`].
    async fn missing(&self, state: &State, from: LogIndex, doubtful: Range<u64>) -> io::Result<Vec<u64>> {
        let (state, log) = (state.clone(), self.log.clone());
        blocking(move || {
            let lacking = |index: &u64| match doubtful.contains(index) {
                true => !log.has_import(*index),
                false => !log.has_body(*index),
            };
            Ok(state.live_bodies(from).map(|index| index.0).filter(lacking).take(ASKED_MAX).collect())
        })
        .await
    }

    /// Fetch these, from whoever has them; what comes back are those that are dead.
    pub async fn fetch(&self, mut wanted: Vec<u64>) -> io::Result<Vec<u64>> {
        let mut dead = Vec::new();
        let mut why = "there is no other node".to_string();
        for (node, address) in &self.sources {
            match self.fetch_from(*node, *address, &mut wanted, &mut dead).await {
                Ok(()) if wanted.is_empty() => return Ok(dead),
                Ok(()) => why = format!("node {node} cannot read it"),
                // Here, whoever gives it.
                Err(e) if is_full(&e) => return Err(e),
                Err(e) => why = format!("node {node}: {e}"),
            }
        }
        let first = wanted.first().copied().unwrap_or_default();
        Err(io::Error::other(format!("cannot fetch the body of entry {first}: {why}")))
    }

    /// Ask one node until it has answered for all. What is not stored here afterwards stays in `wanted`, whether it could
    /// not be read there or something failed on the way.
    async fn fetch_from(
        &self,
        node: NodeId,
        address: SocketAddr,
        wanted: &mut Vec<u64>,
        dead: &mut Vec<u64>,
    ) -> io::Result<()> {
        let mut unreadable = Vec::new();
        let mut result = Ok(());
        while !wanted.is_empty() && result.is_ok() {
            result = self.fetch_some(node, address, wanted, &mut unreadable, dead).await;
        }
        wanted.append(&mut unreadable);
        result
    }

    /// One question, and what comes of it: taken out of `wanted` once it is stored.
    async fn fetch_some(
        &self,
        node: NodeId,
        address: SocketAddr,
        wanted: &mut Vec<u64>,
        unreadable: &mut Vec<u64>,
        dead: &mut Vec<u64>,
    ) -> io::Result<()> {
        let (found, body) = self.ask(node, address, wanted).await?;
        let answered = wanted[..found.len()].to_vec();
        let count = answered.len();
        unreadable.extend(self.take_in(answered, found, body, dead).await?);
        wanted.drain(..count);
        Ok(())
    }

    async fn ask(&self, node: NodeId, address: SocketAddr, wanted: &[u64]) -> io::Result<(Vec<FetchedBody>, Bytes)> {
        let question = FetchBodies { indexes: wanted.to_vec() };
        let question = messages::message(FETCH_BODIES, &question, Bytes::new()).map_err(io::Error::other)?;
        let link = self.peers.link(node, address, Purpose::Snapshot);
        let answer = link.call(question, Instant::now() + FETCH_TIME).await.map_err(io::Error::other)?;
        let FetchedBodies { found } = messages::header(&answer).map_err(io::Error::other)?;
        match found.len() {
            0 => Err(io::Error::other("an empty answer")),
            n if n > wanted.len() => Err(io::Error::other("more answers than questions")),
            _ => Ok((found, answer.body)),
        }
    }

    /// Store what came, durably, before more is asked for. Returns what the peer could not read.
    async fn take_in(
        &self,
        asked: Vec<u64>,
        found: Vec<FetchedBody>,
        mut body: Bytes,
        dead: &mut Vec<u64>,
    ) -> io::Result<Vec<u64>> {
        if self.log.room().with_reserve < body.len() as u64 {
            return Err(io_error(no_room()));
        }
        let (mut imports, mut unreadable) = (Vec::new(), Vec::new());
        for (index, found) in asked.into_iter().zip(found) {
            match found {
                FetchedBody::Here { length } => {
                    let bytes = messages::take(&mut body, length as usize).map_err(io::Error::other)?;
                    if !self.accepts(index, &bytes).await? {
                        tracing::warn!("a peer's body of entry {index} is not the one whose checksums are here");
                        unreadable.push(index);
                        continue;
                    }
                    let (done, imported) = completion();
                    self.log.import_body(index, bytes, done);
                    imports.push(imported);
                }
                FetchedBody::Dead { .. } => dead.push(index),
                FetchedBody::Unreadable { why } => {
                    tracing::warn!("a peer cannot read the body of entry {index}: {why}");
                    unreadable.push(index);
                }
            }
        }
        messages::taken(&body).map_err(io::Error::other)?;
        for imported in imports {
            durable(imported).await?;
        }
        Ok(unreadable)
    }

    async fn accepts(&self, index: u64, body: &Bytes) -> io::Result<bool> {
        if !self.mends {
            return Ok(true);
        }
        let (log, body) = (self.log.clone(), body.clone());
        blocking(move || log.accepts_body(index, &body).map_err(io_error)).await
    }
}

/// This node's disk, before anything is written to it.
fn no_room() -> StorageError {
    let source = io::Error::new(io::ErrorKind::StorageFull, "this node's disk is full: make room on it");
    StorageError::Io { operation: "import", file: "a peer's bodies".into(), source }
}

/// The bodies that are being mended, or that could not be: until when they are left alone.
#[derive(Default)]
pub struct Mending {
    until: Mutex<BTreeMap<u64, Instant>>,
}

impl Mending {
    /// Whether it is this caller's turn to mend this body.
    pub fn begin(&self, index: u64) -> bool {
        let (mut until, now) = (self.until.lock(), Instant::now());
        until.retain(|_, until| *until > now);
        until.len() < MENDING_MAX && until.insert(index, now + MEND_AGAIN_AFTER).is_none()
    }

    /// It is whole again: a new damage is mended at once.
    pub fn mended(&self, index: u64) {
        self.until.lock().remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Body, Entry, EntryId};

    /// The tail of a deposed leader holds bodies of entries that are others for everybody else.
    #[test]
    fn the_body_of_an_entry_that_is_not_applied_here_is_given_to_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path()).unwrap();
        let entry = |index| Entry {
            id: EntryId { term: 1, node: 1, index },
            command: Bytes::from_static(b"command"),
            body: Body::Bytes(Bytes::from_static(b"perhaps another's")),
        };
        let (done, _appended) = completion();
        log.append(vec![entry(0), entry(1)], done);
        let mut state = State::new();
        assert!(matches!(find(&log, &Published::new(state.clone()), 1), Err(StorageError::NoBody { index: 1 })));
        // Applied, and nothing refers to it: read while it is there.
        state.skip(LogIndex(1));
        assert_eq!(find(&log, &Published::new(state), 1).unwrap(), Ok(Bytes::from_static(b"perhaps another's")));
    }
}
