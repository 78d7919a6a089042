//! The log: bytes in, bytes out, one segmented file log that is also the data store.
//!
//! This room knows entries, votes, bodies and snapshot items as opaque bytes; it knows nothing of commands or of
//! openraft. Absent on purpose: replication, and any clock but the one that delays a mark.
//!
//! # Decisions
//!
//! * One queue and one writer thread keep the order of entries, votes, truncations, purges and imports: [`queue`],
//!   [`writer`]. `append` only queues; entries are readable at once, from memory. Cost: what is queued is held in memory
//!   until it is durable, so callers must bound what they have in flight.
//! * A body is written once, in the log, and found again by the index of its entry: [`index`], [`read`]. Below the purge
//!   point it lives until [`Log::reclaim`] is told that it is dead.
//! * A failed write or sync ends the log. Nothing of that batch is acknowledged, nothing is written or synced again.
//!   Reads go on. The process is to be ended; the next opening finds what is true: [`recovery`].
//! * A reserve keeps a full disk usable: [`space`]. Dead bodies are given back: [`reclaim`]; what is left of segments that
//!   are mostly dead is written anew: [`compact`].
//! * The layout of the bytes is in [`mod@format`], that of metadata snapshots in [`snapshot`].
//! * The disk is a trait with three implementers: [`disk::RealDisk`], [`simulated::SimulatedDisk`], and
//!   [`untouched::UntouchedDisk`] for those who only look.
//!
//! Cost of one durable append: its bytes, 64 to 127 of header and padding, 4 for each 16 KiB of body; one `pwritev` and one
//! `fdatasync` for everything that was queued meanwhile.

pub mod disk;
pub mod simulated;
pub mod untouched;

mod cache;
mod compact;
mod format;
mod index;
mod lock;
mod mend;
mod queue;
mod read;
mod reclaim;
mod recovery;
#[cfg(test)]
pub mod rot;
mod scan;
mod segment;
mod snapshot;
mod space;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

pub use lock::DirectoryLock;
pub use mend::Supply;
pub use snapshot::{SnapshotReader, StagedSnapshot};
pub use space::{Room, is_full};

use crate::limits::SEGMENT_BYTES;
use disk::{Disk, RealDisk};
use format::Place;
use queue::{Job, Memory, Shared};
use writer::Writer;

/// Longest vote, in bytes.
pub const VOTE_BYTES_MAX: usize = 1024;

/// Identity of an entry: openraft's `LogId`, spelled out. `index` 0 is the first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct EntryId {
    pub term: u64,
    /// The leader that proposed it.
    pub node: u64,
    pub index: u64,
}

/// One entry as the log keeps it. `command` is what `raft` encoded (payload kind, stamp, request); `body` the bulk bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: EntryId,
    pub command: Bytes,
    pub body: Body,
}

/// The body of an entry: its bytes, or only their length when the reader did not ask for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Bytes(Bytes),
    /// Not loaded; the length in bytes.
    Absent(u32),
}

/// An error of the disk or of what is on it. After a failed write or sync the log is dead: the process must end.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Exit 74: a write, sync or read failed.
    #[error("{operation} of {file} failed: {source}")]
    Io { operation: &'static str, file: String, source: std::io::Error },
    /// Exit 75: acknowledged data is damaged.
    #[error("{file} is damaged at offset {offset}{}: {what}", index.map(|i| format!(" (entry {i})")).unwrap_or_default())]
    Damaged { file: String, offset: u64, index: Option<u64>, what: String },
    #[error("{file}: format {found}, this build reads {reads}")]
    Format { file: String, found: u32, reads: u32 },
    /// Exit 73
    #[error("{directory} is in use by process {holder}")]
    InUse { directory: String, holder: String },
    /// The body of this entry is not stored here (never received, or reclaimed).
    #[error("the body of entry {index} is not stored here")]
    NoBody { index: u64 },
}

impl StorageError {
    /// The same error for one more who is to know it.
    pub fn again(&self) -> StorageError {
        match self {
            StorageError::Io { operation, file, source } => StorageError::Io {
                operation,
                file: file.clone(),
                source: std::io::Error::new(source.kind(), source.to_string()),
            },
            StorageError::Damaged { file, offset, index, what } => {
                StorageError::Damaged { file: file.clone(), offset: *offset, index: *index, what: what.clone() }
            }
            StorageError::Format { file, found, reads } => {
                StorageError::Format { file: file.clone(), found: *found, reads: *reads }
            }
            StorageError::InUse { directory, holder } => {
                StorageError::InUse { directory: directory.clone(), holder: holder.clone() }
            }
            StorageError::NoBody { index } => StorageError::NoBody { index: *index },
        }
    }

    /// Whether there was no room, rather than a failing disk.
    pub fn is_full(&self) -> bool {
        matches!(self, StorageError::Io { source, .. } if is_full(source))
    }
}

pub type Done = Box<dyn FnOnce(Result<(), Arc<StorageError>>) + Send>;

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    pub last_purged: Option<EntryId>,
    /// The last entry; the purge point if there is no entry behind it.
    pub last: Option<EntryId>,
    /// The last entry that is durable here; the purge point if there is none behind it.
    pub durable: Option<EntryId>,
}

/// How a log is laid out and run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the segments that are made from now on; existing ones keep theirs.
    pub segment_bytes: u64,
    /// Bytes of recent entries that are kept in memory. Queued entries are kept beyond it.
    pub cache_bytes: usize,
    /// Must differ from one opening of a directory to the next: record checksums depend on it.
    pub seed: u64,
    pub threading: Threading,
}

/// Who runs the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threading {
    /// A thread of the log.
    Own,
    /// The owner, by calling [`Log::pump`]: for deterministic simulations.
    Pumped,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: SEGMENT_BYTES,
            cache_bytes: 64 << 20,
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
            threading: Threading::Own,
        }
    }
}

/// The log of one node. Clones share it; when the last one is dropped, what is queued is written and the writer ends.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    runner: Arc<Runner>,
}

/// Who writes. Dropped with the last clone of the log.
struct Runner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    pumped: Mutex<Option<Writer>>,
    /// One snapshot is written at a time, one reclaim is run at a time; the reserve is filled beside both.
    snapshots: Mutex<()>,
    reclaims: Mutex<()>,
    replenishes: Mutex<()>,
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(writer) = self.pumped.get_mut() {
            while writer.pump() {}
        }
        // A callback may hold the last clone: the writer cannot wait for itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the writer of the log panicked");
        }
    }
}

impl Log {
    /// Open or create the log in `dir` (the caller holds the directory's lock): cut a torn tail (keeping a copy), refuse
    /// rot, load footers and tail headers, no bodies but those that are not proven durable.
    pub fn open(dir: &Path) -> Result<Log, StorageError> {
        Log::open_supplied(dir, &|_| Vec::new())
    }

    /// The same; entries whose records are damaged and that no snapshot covers are asked of `supply`.
    pub fn open_supplied(dir: &Path, supply: &Supply) -> Result<Log, StorageError> {
        let io = |source| StorageError::Io { operation: "open", file: dir.display().to_string(), source };
        Log::open_supplied_on(Arc::new(RealDisk::open(dir).map_err(io)?), Options::default(), supply)
    }

    /// [`Log::open`] on any disk.
    pub fn open_on(disk: Arc<dyn Disk>, options: Options) -> Result<Log, StorageError> {
        Log::open_supplied_on(disk, options, &|_| Vec::new())
    }

    /// [`Log::open_supplied`] on any disk.
    pub fn open_supplied_on(disk: Arc<dyn Disk>, options: Options, supply: &Supply) -> Result<Log, StorageError> {
        let (memory, tail) = recovery::recover(&*disk, &options, supply)?;
        let threading = options.threading;
        let shared = Arc::new(Shared::new(disk, options, memory));
        let writer = Writer::new(shared.clone(), tail);
        let (thread, pumped) = match threading {
            Threading::Pumped => (None, Some(writer)),
            Threading::Own => (Some(spawn(writer, &shared)?), None),
        };
        let runner = Runner {
            shared: shared.clone(),
            thread,
            pumped: Mutex::new(pumped),
            snapshots: Mutex::new(()),
            reclaims: Mutex::new(()),
            replenishes: Mutex::new(()),
        };
        Ok(Log { shared, runner: Arc::new(runner) })
    }

    /// Run the writer once, if the owner does that. False: there was nothing to do, or the log is dead.
    pub fn pump(&self) -> bool {
        self.runner.pumped.lock().as_mut().is_some_and(Writer::pump)
    }

    /// Queue entries, in order, contiguous with what is there. Readable on return; `done` is called, in order, from the
    /// writer thread when they are durable. An index that is there already cuts the log off in front of it.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        self.shared.submit(done, |memory| {
            self.check_entries(memory, &entries)?;
            if let Some(first) = entries.first().filter(|first| first.id.index < memory.index.next()) {
                memory.truncate(first.id.index);
            }
            entries.into_iter().for_each(|entry| append(memory, entry));
            Ok(())
        });
    }

    fn check_entries(&self, memory: &Memory, entries: &[Entry]) -> Result<(), StorageError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let (from, next) = (memory.index.first(), memory.index.next());
        for (entry, index) in entries.iter().zip(first.id.index..) {
            if entry.id.index != index || index < from || first.id.index > next {
                return Err(self.shared.refusal(format!("entry {} where {next} is next", entry.id.index)));
            }
            match &entry.body {
                Body::Bytes(body) => self.shared.check_size("an entry", entry.command.len(), body.len())?,
                Body::Absent(0) => self.shared.check_size("an entry", entry.command.len(), 0)?,
                Body::Absent(_) => return Err(self.shared.refusal(format!("entry {index} comes without its body"))),
            }
        }
        Ok(())
    }

    /// Record a vote (opaque bytes, at most 1 KiB), ordered with the appends; `done` when durable.
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        self.shared.submit(done, |memory| {
            if vote.len() > VOTE_BYTES_MAX {
                return Err(self.shared.refusal(format!("a vote of {} bytes", vote.len())));
            }
            memory.vote = Some(vote.clone());
            memory.push(Job::Vote(vote));
            Ok(())
        });
    }

    /// The last vote that was saved, durable or not.
    pub fn vote(&self) -> Option<Bytes> {
        self.shared.memory.lock().vote.clone()
    }

    /// Remember how far the log is known to be committed (`None`: nothing). Not synced by itself.
    pub fn save_committed(&self, committed: Option<EntryId>) {
        self.shared.memory.lock().set_committed(committed);
        self.shared.wake();
    }

    /// At most the last durable entry.
    pub fn committed(&self) -> Option<EntryId> {
        self.shared.memory.lock().committed()
    }

    /// Drop every entry above `last` (`None`: all). Recorded in the log before any later append.
    pub fn truncate_after(&self, last: Option<EntryId>, done: Done) {
        self.shared.submit(done, |memory| {
            let next = last.map_or(0, |last| last.index + 1).max(memory.index.first());
            if next < memory.index.next() {
                memory.truncate(next);
            }
            Ok(())
        });
    }

    /// Entries up to and including `upto` are no longer part of the Raft log; their bodies stay until `reclaim`.
    /// `upto` may be above the last entry (after a snapshot install): then the log is empty and continues behind it.
    ///
    /// If the log does not hold `upto` itself, its entries above the committed point may be others than those that
    /// `upto` follows: they are dropped, and their bodies with them.
    pub fn purge(&self, upto: EntryId, done: Done) {
        self.shared.submit(done, |memory| {
            if memory.index.purged.is_some_and(|purged| purged.index >= upto.index) {
                return Ok(());
            }
            if upto.index >= memory.index.first() && memory.index.id(upto.index) != Some(upto) {
                let trusted = memory.committed().map_or(0, |committed| committed.index + 1).max(memory.index.first());
                if trusted < memory.index.next() {
                    memory.truncate(trusted);
                }
            }
            memory.index.purge(upto);
            memory.durable_next = memory.durable_next.max(upto.index + 1);
            memory.push(Job::Purge { upto });
            Ok(())
        });
    }

    /// Let an empty log begin at this index, as no log in use ever does: openraft's storage suite writes such.
    #[cfg(test)]
    pub fn begin_at(&self, index: u64) {
        let mut memory = self.shared.memory.lock();
        memory.index.begin_at(index);
        memory.durable_next = index;
    }

    pub fn state(&self) -> LogState {
        self.shared.memory.lock().state()
    }

    /// Entries of `from..to` that the log holds, in order, stopping (after at least one) before `max_bytes` of commands
    /// and bodies is passed. Without `bodies`, `Body::Absent` and nothing of them is read. Checksums are verified.
    pub fn entries(&self, from: u64, to: u64, max_bytes: usize, bodies: bool) -> Result<Vec<Entry>, StorageError> {
        self.shared.entries(from, to, max_bytes, bodies)
    }

    /// The id of an entry of the log, or of the purge point.
    pub fn entry_id(&self, index: u64) -> Option<EntryId> {
        self.shared.memory.lock().index.id(index)
    }

    /// `length` bytes from `offset` of the body of entry `index`, purged or not, checksums verified.
    pub fn read_body(&self, index: u64, offset: u32, length: u32) -> Result<Bytes, StorageError> {
        self.shared.read_body(index, offset, length)
    }

    /// Whether a body of this entry is stored. True, too, for one that was given back before the last restart, until
    /// the first `reclaim` after it; reading that one says `NoBody`.
    pub fn has_body(&self, index: u64) -> bool {
        self.shared.has_body(index)
    }

    /// Whether a body of this entry is stored that came from a peer ([`Log::import_body`]), beside the Raft log.
    pub fn has_import(&self, index: u64) -> bool {
        let body = self.shared.memory.lock().index.body(index);
        body.is_some_and(|body| body.kind == format::Kind::Import)
    }

    /// Length of the body of this entry, in bytes; `None` where [`Log::has_body`] says no.
    pub fn body_length(&self, index: u64) -> Option<u32> {
        self.shared.body_length(index)
    }

    /// Store the body of an entry at or below the purge point (or soon to be) that this node lacks, or a good copy of
    /// one that is damaged. Readable on return.
    pub fn import_body(&self, index: u64, body: Bytes, done: Done) {
        self.shared.submit(done, |memory| {
            self.shared.check_size("a body", 0, body.len())?;
            if !body.is_empty() {
                memory.import(index, body);
            }
            Ok(())
        });
    }

    /// Give back what is at or below the purge point and not live: remove whole segments, punch out dead bodies, write the
    /// rest of mostly dead segments anew. `is_live` must speak for a state at or behind the purge point, and for every
    /// snapshot that is kept. Waits for what is queued; the writer does not wait for it. True: there is more to compact
    /// than one call may do.
    pub fn reclaim(&self, is_live: &dyn Fn(u64) -> bool) -> Result<bool, StorageError> {
        let _one_at_a_time = self.runner.reclaims.lock();
        let mut horizon = None;
        self.barrier(|memory| horizon = Some(self.shared.horizon(memory)))?;
        let Some(horizon) = horizon else { return Ok(false) };
        let segment = horizon.segment;
        match self.shared.reclaim(horizon, is_live) {
            // Compaction gives room all the same.
            Err(error) if error.is_full() => tracing::warn!("not all could be given back: {error}"),
            done => done?,
        }
        let more = self.compact(segment)?;
        self.shared.remove_segments(segment)?;
        Ok(more)
    }

    /// Change the memory, and wait until everything that was queued before and with that is durable.
    fn barrier(&self, change: impl FnOnce(&mut Memory)) -> Result<(), StorageError> {
        let (send, receive) = std::sync::mpsc::channel();
        let done: Done = Box::new(move |result| drop(send.send(result)));
        self.shared.submit(done, |memory| {
            change(memory);
            Ok(())
        });
        while self.pump() {}
        match receive.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.again()),
            Err(_) => Err(self.shared.refusal("the log is closed".into())),
        }
    }

    /// Up to which entry this directory holds all: to the end of the log, or of the newest snapshot if that is further, because
    /// the process ended before it had noted what was purged.
    pub fn reach(&self) -> u64 {
        let snapshot = self.open_snapshot().ok().flatten().map(|snapshot| snapshot.last.index);
        self.state().last.map(|id| id.index).max(snapshot).unwrap_or(0)
    }

    /// Bytes appended behind entry `index`: what a restart would replay.
    pub fn bytes_since(&self, index: u64) -> u64 {
        self.shared.memory.lock().index.bytes_since(index)
    }

    /// Room on the disk.
    pub fn room(&self) -> Room {
        self.shared.room()
    }

    /// Bytes that the next snapshot may take, and what it will about need: half as much again as the last one.
    pub fn room_for_snapshot(&self) -> (u64, u64) {
        let last = self.shared.snapshot_bytes.load(Ordering::Relaxed);
        (self.shared.room_for_snapshot(), last + last / 2)
    }

    /// Fill the reserve up, as far as the disk has room. A reclaim under way does not hold it up.
    pub fn replenish(&self) -> Result<(), StorageError> {
        let _one_at_a_time = self.runner.replenishes.lock();
        self.shared.replenish()
    }

    /// Bytes of disk that the log occupies, without the reserve.
    pub fn bytes_on_disk(&self) -> u64 {
        let segments: Vec<_> = self.shared.memory.lock().segments.values().cloned().collect();
        segments.iter().map(|segment| segment.file.allocated().unwrap_or(segment.header.bytes)).sum()
    }

    /// Have this called once, with the first fatal error of the writer thread; at once if there was one already.
    pub fn on_failure(&self, call: Box<dyn FnOnce(Arc<StorageError>) + Send>) {
        let mut memory = self.shared.memory.lock();
        match memory.failed.clone() {
            None => memory.on_failure.push(call),
            Some(error) => {
                drop(memory);
                call(error);
            }
        }
    }

    /// Write a metadata snapshot: `meta` and then the items, each opaque bytes of at most 8 MiB, streamed (never all in
    /// memory) to one checksummed file; synced, renamed into place, directory synced; older snapshots are removed then.
    pub fn write_snapshot(
        &self,
        last: EntryId,
        meta: Bytes,
        items: &mut dyn Iterator<Item = Result<Bytes, StorageError>>,
    ) -> Result<(), StorageError> {
        let _one_at_a_time = self.runner.snapshots.lock();
        self.place(self.stage(snapshot::own_name(last), last, &meta, items)?)
    }

    /// The same up to, and without, the rename: for a snapshot that has come from another node, so that a full disk is met
    /// before anything depends on it. The caller sees to it that there is one at a time.
    pub fn stage_snapshot(
        &self,
        last: EntryId,
        meta: Bytes,
        items: &mut dyn Iterator<Item = Result<Bytes, StorageError>>,
    ) -> Result<StagedSnapshot, StorageError> {
        self.stage(snapshot::received_name(last), last, &meta, items)
    }

    /// Make a staged snapshot the newest one.
    pub fn place_snapshot(&self, staged: StagedSnapshot) -> Result<(), StorageError> {
        let _one_at_a_time = self.runner.snapshots.lock();
        self.place(staged)
    }

    fn stage(
        &self,
        temporary: String,
        last: EntryId,
        meta: &Bytes,
        items: &mut dyn Iterator<Item = Result<Bytes, StorageError>>,
    ) -> Result<StagedSnapshot, StorageError> {
        snapshot::stage(&self.shared.disk, temporary, last, meta, items, &|| self.shared.release_spare())
    }

    fn place(&self, staged: StagedSnapshot) -> Result<(), StorageError> {
        let bytes = staged.place()?;
        self.shared.snapshot_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The newest valid snapshot: its last entry, meta and a reader of its items. A damaged one is never returned; it is
    /// an error only if the log behind the one that is returned was purged.
    pub fn open_snapshot(&self) -> Result<Option<SnapshotReader>, StorageError> {
        let _not_while_written = self.runner.snapshots.lock();
        let (reader, skipped) = snapshot::open_newest(&*self.shared.disk)?;
        if let Some(reader) = &reader {
            self.shared.snapshot_bytes.store(reader.bytes(), Ordering::Relaxed);
        }
        let purged = self.shared.memory.lock().index.purged.map(|purged| purged.index);
        match skipped {
            Some(damaged) if reader.as_ref().map(|reader| reader.last.index) < purged => Err(damaged),
            _ => Ok(reader),
        }
    }
}

impl Log {
    /// Read the newest snapshot file to its end, past any cache, and verify it. Returns its bytes; 0 if there is none.
    pub fn verify_snapshot(&self) -> Result<u64, StorageError> {
        let newest = {
            let _not_while_written = self.runner.snapshots.lock();
            snapshot::open_unverified(&*self.shared.disk)?
        };
        newest.map_or(Ok(0), snapshot::SnapshotReader::verify)
    }
}

fn spawn(writer: Writer, shared: &Shared) -> Result<JoinHandle<()>, StorageError> {
    let io = |source| StorageError::Io { operation: "start the writer", file: shared.disk.path_of(""), source };
    std::thread::Builder::new().name("log writer".into()).spawn(move || writer.run()).map_err(io)
}

fn append(memory: &mut Memory, entry: Entry) {
    let Entry { id, command, body } = entry;
    let body = match body {
        Body::Bytes(body) => body,
        Body::Absent(_) => Bytes::new(),
    };
    let serial = memory.serial();
    let place = Place { command: command.len() as u32, body: body.len() as u32, ..Place::default() };
    memory.index.push(id, place);
    let cached = cache::Cached { serial, command: command.clone(), body: body.clone(), durable: false };
    memory.cache.insert(id.index, cached);
    memory.push(Job::Entry { id, serial, command, body });
}
