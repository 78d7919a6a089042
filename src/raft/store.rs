//! openraft's log storage over [`Log`].
//!
//! Which reader serves what in openraft 0.10.0-alpha.37 (read in its source; look again at every bump):
//!
//! | method | caller | bodies |
//! |---|---|---|
//! | `limited_get_log_entries` | replication only (`replication/stream_state.rs`) | yes |
//! | `entries_stream` | apply only (`core/sm/worker.rs`) | no |
//! | `try_get_log_entries` | start only: replay in steps of 64, the last memberships, log ids (`storage/helper.rs`) | no |
//! | `leader_bounded_stream` | nobody | default |
//!
//! Order: [`Log`] has one writer, so votes, appends, truncations and purges are durable in the order of these calls. Votes
//! and truncations are durable before their call returns. A purge is not waited for: forgetting one in a crash brings back
//! entries that a snapshot covers, which does no harm, and openraft's core stands still while it waits.

use super::ending::{Endings, storage_error};
use super::mend::Mender;
use super::payload::{self, StoredVote};
use super::tail::{Tail, weight};
use super::types::*;
use crate::limits::APPEND_BYTES_MAX;
use crate::log::{self, Log, StorageError};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// Entries in one AppendEntries request.
const APPEND_ENTRIES_MAX: u64 = 1024;
/// Bytes of commands in one AppendEntries request: they travel in the header of a frame.
const APPEND_COMMAND_BYTES_MAX: usize = 2 << 20;
/// Bytes of commands that are read at once to be applied; bodies are not read.
const APPLY_BYTES: usize = 1 << 20;

const _: () = assert!(
    APPEND_COMMAND_BYTES_MAX + crate::limits::COMMAND_BYTES_MAX + (APPEND_ENTRIES_MAX as usize) * 64
        < crate::limits::FRAME_HEADER_BYTES_MAX
);

/// The log as openraft sees it. Clones share it.
#[derive(Clone)]
pub struct Store {
    log: Log,
    tail: Arc<Mutex<Tail>>,
    /// `None`: there are no peers to mend from.
    mender: Option<Arc<Mender>>,
    endings: Endings,
}

/// An error of the disk or of a format, for openraft: the node ends with it.
pub fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// Whether an error that came through here says that the disk is full.
pub fn is_full(error: &io::Error) -> bool {
    let storage = error.get_ref().and_then(|inner| inner.downcast_ref::<StorageError>());
    storage.is_some_and(StorageError::is_full)
}

/// Run a call of the log that may wait for the disk. On a runtime of one thread it is run at once, on that thread: such a
/// runtime is a simulation, whose disk does not wait and whose order of events must follow from nothing but its seed.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => call(),
        _ => tokio::task::spawn_blocking(call).await.unwrap_or_else(|e| Err(io::Error::other(e))),
    }
}

impl Store {
    pub fn new(log: Log, mender: Option<Arc<Mender>>, endings: Endings) -> Store {
        Store { log, tail: Arc::default(), mender, endings }
    }

    /// The part of a range that the log holds.
    fn held(&self, range: impl RangeBounds<u64>) -> Range<u64> {
        let state = self.log.state();
        let first = state.last_purged.map_or(0, |id| id.index + 1);
        let end = state.last.map_or(first, |id| id.index + 1);
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => end,
        };
        from.max(first)..to.min(end)
    }

    /// The first entries of a range: at least one, unless it is empty, and as many as `bytes_max` allows.
    async fn read(&self, range: Range<u64>, bytes_max: usize, bodies: bool) -> io::Result<Vec<Entry>> {
        let Range { start, end } = range;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.read_held(range, bytes_max, bodies).await?;
        match entries.first() {
            Some(first) if first.log_id.index == start => Ok(entries),
            _ => Err(io::Error::other(format!("entry {start} of {start}..{end} is missing from the log"))),
        }
    }

    /// The same, but for entries in front that the log does not hold.
    async fn read_held(&self, range: Range<u64>, bytes_max: usize, bodies: bool) -> io::Result<Vec<Entry>> {
        let Range { start, end } = range;
        if let Some(entries) = self.tail.lock().get(start, end, bytes_max) {
            return Ok(entries);
        }
        let stored = self.endings.note(self.read_mended(range, bytes_max, bodies).await)?;
        stored.into_iter().map(payload::from_stored).collect::<Result<Vec<_>, _>>().map_err(io_error)
    }

    /// What the log holds; damaged entries are mended on the way, each at most once.
    async fn read_mended(&self, range: Range<u64>, bytes_max: usize, bodies: bool) -> io::Result<Vec<log::Entry>> {
        let mut mended = BTreeSet::new();
        loop {
            let (log, Range { start, end }) = (self.log.clone(), range.clone());
            let read = blocking(move || log.entries(start, end, bytes_max, bodies).map_err(io_error)).await;
            let Err(error) = read else { return read };
            match (storage_error(&error), &self.mender) {
                (Some(damage @ StorageError::Damaged { index: Some(index), .. }), Some(mender))
                    if mended.insert(*index) =>
                {
                    mender.mend(*index, damage).await.map_err(io_error)?;
                }
                _ => return Err(error),
            }
        }
    }

    /// A range in pieces of bounded size, read when they are wanted. Nothing may be missing.
    fn pieces(&self, range: Range<u64>) -> impl Stream<Item = io::Result<Vec<Entry>>> + Send + use<> {
        stream::try_unfold((self.clone(), range), async |(store, range)| {
            if range.is_empty() {
                return Ok(None);
            }
            let piece = store.read(range.clone(), APPLY_BYTES, false).await?;
            let next = range.start + piece.len() as u64;
            Ok(Some((piece, (store, next..range.end))))
        })
    }
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = self.held(range);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut entries = self.read_held(range.clone(), APPLY_BYTES, false).await?;
        let next = entries.last().map_or(range.end, |last| last.log_id.index + 1);
        entries.extend(self.pieces(next..range.end).try_concat().await?);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let Some(bytes) = self.log.vote() else { return Ok(None) };
        Ok(Some(payload::decode_vote(&bytes).map_err(io_error)?.into()))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let end = self.held(start..end).end.min(start.saturating_add(APPEND_ENTRIES_MAX));
        let range = start..end;
        let mut entries = self.read(range, APPEND_BYTES_MAX, true).await?;
        entries.truncate(sendable(&entries));
        Ok(entries)
    }

    /// Reads piece by piece: what is committed and not applied may be all that the log holds. An entry that should be here
    /// and is not is an error, never skipped.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let held = self.held(range.clone());
        // Not cut at its start: openraft never applies what it may have purged.
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            _ => held.start,
        };
        self.pieces(from..held.end).map_ok(|piece| stream::iter(piece).map(Ok)).try_flatten().boxed()
    }
}

/// How many of these entries one request may carry: at least one.
fn sendable(entries: &[Entry]) -> usize {
    let (mut bytes, mut command_bytes) = (0, 0);
    let fits = |entry: &&Entry| {
        bytes += weight(entry);
        command_bytes += match &entry.payload {
            EntryPayload::Normal(proposal) => proposal.command.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        };
        bytes <= APPEND_BYTES_MAX && command_bytes <= APPEND_COMMAND_BYTES_MAX
    };
    entries.iter().take_while(fits).count().max(1)
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.last_purged.map(log_id),
            last_log_id: state.last.or(state.last_purged).map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = payload::encode_formatted("vote", &StoredVote::from(vote)).map_err(io_error)?;
        let (done, saved) = completion();
        self.log.save_vote(bytes, done);
        durable(saved).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(entry_id));
        Ok(())
    }

    /// At most what is durable, as the log promises: openraft replays up to here and fails to start if an entry is missing.
    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.log.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let stored = entries.iter().map(payload::to_stored).collect::<Result<Vec<_>, _>>().map_err(io_error)?;
        let done = Box::new(|result: Result<(), Arc<StorageError>>| callback.io_completed(result.map_err(io_error)));
        self.log.append(stored, done);
        let mut tail = self.tail.lock();
        entries.into_iter().for_each(|entry| tail.push(entry));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.tail.lock().truncate_from(last.map_or(0, |id| id.index + 1));
        let (done, truncated) = completion();
        self.log.truncate_after(last.as_ref().map(entry_id), done);
        durable(truncated).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        // A failure is fatal to the log, which says so by itself.
        self.log.purge(entry_id(&upto), Box::new(|_| ()));
        Ok(())
    }
}

type Completed = oneshot::Receiver<Result<(), Arc<StorageError>>>;

/// The call that the log makes when something is durable, and where to wait for it.
pub fn completion() -> (crate::log::Done, Completed) {
    let (sender, receiver) = oneshot::channel();
    // Whoever waited may have gone.
    let done = Box::new(move |result| drop(sender.send(result)));
    (done, receiver)
}

pub async fn durable(completed: Completed) -> io::Result<()> {
    match completed.await {
        Ok(result) => result.map_err(io_error),
        Err(_) => Err(io::Error::other("the log has stopped")),
    }
}
