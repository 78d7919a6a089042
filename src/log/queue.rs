//! What the callers and the writer share: the memory of the log and the one queue that keeps the order of everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::cache::Cache;
use super::disk::Disk;
use super::format::{HEADER_BYTES, Kind, Place, ROW_BYTES};
use super::index::{BodyPlace, Index};
use super::segment::Segment;
use super::{Done, EntryId, LogState, Options, StorageError};

/// How long the writer may keep the news of the last sync to itself while nothing else is to be written.
const MARK_AFTER: Duration = Duration::from_millis(50);
/// Room that is kept at the head of a segment for its State record, whose vote is at most 1 KiB.
const STATE_BYTES_MAX: u32 = 2048;

/// One step of the writer. Order is everything.
pub enum Job {
    Entry {
        id: EntryId,
        serial: u64,
        command: Bytes,
        body: Bytes,
    },
    Import {
        index: u64,
        serial: u64,
        body: Bytes,
    },
    /// A good copy of an entry that is there already.
    Mend {
        id: EntryId,
        serial: u64,
        command: Bytes,
        body: Bytes,
    },
    Vote(Bytes),
    Truncate {
        last: Option<EntryId>,
    },
    Purge {
        upto: EntryId,
    },
    /// Call back when everything queued before is durable.
    Done(Done),
}

impl Job {
    /// A vote, or who waits for it.
    pub fn is_of_a_vote(&self) -> bool {
        matches!(self, Job::Vote(_) | Job::Done(_))
    }
}

/// What the writer takes in one go.
pub struct Batch {
    pub jobs: Vec<Job>,
    /// How far the log was known to be committed when the batch was taken: never ahead of what is in it.
    pub committed: Option<EntryId>,
}

/// What the writer should do next.
pub enum Work {
    Batch(Batch),
    /// Nothing is queued: write down how far the log is durable and committed.
    Mark(Option<EntryId>),
    Close(Option<EntryId>),
}

pub type OnFailure = Box<dyn FnOnce(Arc<StorageError>) + Send>;

pub struct Memory {
    pub index: Index,
    pub cache: Cache,
    /// Imported bodies that are still queued, with their serials.
    pub imports: BTreeMap<u64, (u64, Bytes)>,
    pub segments: BTreeMap<u32, Arc<Segment>>,
    /// Sequence of the segment that is written.
    pub active: u32,
    /// The segment in which the batch under way began: where its records are is told when all of them are durable.
    pub batch_from: u32,
    /// Bytes that the segment which is written still takes.
    pub active_rest: u64,
    /// Segments and spares that are being made: neither free any more nor there yet.
    pub in_making: u64,
    /// Names of segment files that wait to be used (again): the reserve.
    pub spares: Vec<String>,
    pub vote: Option<Bytes>,
    pub committed: Option<EntryId>,
    /// All entries below this index are durable.
    pub durable_next: u64,
    pub failed: Option<Arc<StorageError>>,
    pub on_failure: Vec<OnFailure>,
    queue: Vec<Job>,
    next_serial: u64,
    closing: bool,
    /// `committed` was told to us since the last mark.
    unmarked: bool,
}

impl Memory {
    pub fn new(index: Index, segments: BTreeMap<u32, Arc<Segment>>, active: u32, options: &Options) -> Memory {
        Memory {
            durable_next: index.next(),
            index,
            cache: Cache::new(options.cache_bytes),
            imports: BTreeMap::new(),
            segments,
            active,
            batch_from: active,
            active_rest: 0,
            in_making: 0,
            spares: Vec::new(),
            vote: None,
            committed: None,
            failed: None,
            on_failure: Vec::new(),
            queue: Vec::new(),
            next_serial: 1,
            closing: false,
            unmarked: false,
        }
    }

    pub fn push(&mut self, job: Job) {
        self.queue.push(job);
    }

    /// Queue the body of an entry that is not in the Raft log (any more). Found there from now on.
    pub fn import(&mut self, index: u64, body: Bytes) {
        let serial = self.serial();
        let place = Place { body: body.len() as u32, ..Place::default() };
        self.index.set_body(index, BodyPlace { kind: Kind::Import, place });
        self.imports.insert(index, (serial, body.clone()));
        self.push(Job::Import { index, serial, body });
    }

    pub fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    pub fn state(&self) -> LogState {
        LogState { last_purged: self.index.purged, last: self.index.last(), durable: self.durable() }
    }

    pub fn durable(&self) -> Option<EntryId> {
        self.durable_next.checked_sub(1).and_then(|index| self.index.id(index)).or(self.index.purged)
    }

    /// Never ahead of what is durable here.
    pub fn committed(&self) -> Option<EntryId> {
        let (committed, durable) = (self.committed?, self.durable()?);
        Some(if durable.index < committed.index { durable } else { committed })
    }

    pub fn set_committed(&mut self, committed: Option<EntryId>) {
        self.unmarked |= self.committed != committed;
        self.committed = committed;
    }

    /// Drop the entries from `next` on and queue the record of it.
    pub fn truncate(&mut self, next: u64) {
        self.index.truncate(next);
        self.cache.remove_from(next);
        self.durable_next = self.durable_next.min(next);
        // Else the hint would speak of the entries that take their place.
        if self.committed.is_some_and(|committed| committed.index >= next) {
            self.set_committed(self.index.last());
        }
        self.queue.push(Job::Truncate { last: self.index.last() });
    }

    fn take(&mut self) -> Batch {
        self.unmarked = false;
        Batch { jobs: std::mem::take(&mut self.queue), committed: self.committed }
    }

    /// Everything that is still queued, when nothing will be written any more.
    pub fn drain(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.queue)
    }
}

pub struct Shared {
    pub disk: Arc<dyn Disk>,
    pub options: Options,
    pub memory: Mutex<Memory>,
    /// Size of the newest snapshot.
    pub snapshot_bytes: AtomicU64,
    wake: Condvar,
}

impl Shared {
    pub fn new(disk: Arc<dyn Disk>, options: Options, memory: Memory) -> Shared {
        Shared { disk, options, memory: Mutex::new(memory), snapshot_bytes: AtomicU64::new(0), wake: Condvar::new() }
    }

    /// Change the memory and queue jobs in one step, unless the log is dead: then only `done` is called.
    pub fn submit(&self, done: Done, change: impl FnOnce(&mut Memory) -> Result<(), StorageError>) {
        let mut memory = self.memory.lock();
        let refused = match &memory.failed {
            Some(error) => Err(error.clone()),
            None => change(&mut memory).map_err(Arc::new),
        };
        match refused {
            Ok(()) => {
                memory.queue.push(Job::Done(done));
                drop(memory);
                self.wake.notify_one();
            }
            Err(error) => {
                drop(memory);
                done(Err(error));
            }
        }
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn close(&self) {
        self.memory.lock().closing = true;
        self.wake.notify_one();
    }

    /// Block until there is something to do. `unmarked`: the writer has synced what no record on disk tells yet.
    pub fn next_work(&self, unmarked: bool) -> Work {
        let mut memory = self.memory.lock();
        let mut mark_at = None;
        loop {
            if !memory.queue.is_empty() {
                return Work::Batch(memory.take());
            }
            if memory.closing {
                return Work::Close(memory.committed);
            }
            if !unmarked && !memory.unmarked {
                self.wake.wait(&mut memory);
                continue;
            }
            let at = *mark_at.get_or_insert_with(|| Instant::now() + MARK_AFTER);
            if self.wake.wait_until(&mut memory, at).timed_out() && memory.queue.is_empty() && !memory.closing {
                memory.unmarked = false;
                return Work::Mark(memory.committed);
            }
        }
    }

    /// The same without waiting, for a log that its owner pumps.
    pub fn poll_work(&self, unmarked: bool) -> Option<Work> {
        let mut memory = self.memory.lock();
        if !memory.queue.is_empty() {
            return Some(Work::Batch(memory.take()));
        }
        if !unmarked && !memory.unmarked {
            return None;
        }
        memory.unmarked = false;
        Some(Work::Mark(memory.committed))
    }

    /// Refuse what would not fit an empty segment.
    pub fn check_size(&self, what: &str, command: usize, body: usize) -> Result<(), StorageError> {
        let parts = u32::try_from(command).ok().zip(u32::try_from(body).ok());
        let fits = parts.is_some_and(|(command, body)| {
            let place = Place { segment: 1, offset: STATE_BYTES_MAX, command, body };
            place.end() + 4 * (HEADER_BYTES + ROW_BYTES) as u64 <= self.options.segment_bytes
        });
        match fits {
            true => Ok(()),
            false => Err(self.refusal(format!("{what} of {command} + {body} bytes does not fit a segment"))),
        }
    }

    /// A call that the contract forbids. The log stays usable.
    pub fn refusal(&self, why: String) -> StorageError {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, why);
        StorageError::Io { operation: "append", file: self.disk.path_of(""), source }
    }
}
