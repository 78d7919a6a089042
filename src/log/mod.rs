//! SKELETON: the segmented log that is also the data store. The contract that `raft` and `volume` build on.
//!
//! Bytes in, bytes out: this room knows entries, votes, bodies and snapshot items as opaque bytes; it knows nothing of
//! commands or of openraft.

use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

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
    #[error(
        "{file} is damaged at offset {offset} (entry {index:?}): {what}; this node must not vote with it: replace the node (keelfs cluster docs) or restore the file"
    )]
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

pub type Done = Box<dyn FnOnce(Result<(), Arc<StorageError>>) + Send>;

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    pub last_purged: Option<EntryId>,
    pub last: Option<EntryId>,
    /// The last entry that is durable here.
    pub durable: Option<EntryId>,
}

#[derive(Clone)]
pub struct Log {}

impl Log {
    /// Open or create the log in `dir` (the caller holds the directory's lock): cut a torn tail (keeping a copy), refuse
    /// rot, load footers and tail headers, no bodies.
    pub fn open(dir: &Path) -> Result<Log, StorageError> {
        unimplemented!()
    }

    /// Queue entries, in order, contiguous with what is there. Readable on return; `done` is called, in order, from the
    /// writer thread when they are durable.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        unimplemented!()
    }
    /// Record a vote (opaque bytes, at most 1 KiB), ordered with the appends; `done` when durable.
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        unimplemented!()
    }
    pub fn vote(&self) -> Option<Bytes> {
        unimplemented!()
    }
    /// Remember how far the log is known to be committed (`None`: nothing). Not synced by itself.
    pub fn save_committed(&self, committed: Option<EntryId>) {
        unimplemented!()
    }
    /// At most the last durable entry.
    pub fn committed(&self) -> Option<EntryId> {
        unimplemented!()
    }
    /// Drop every entry above `last` (`None`: all). Recorded in the log before any later append.
    pub fn truncate_after(&self, last: Option<EntryId>, done: Done) {
        unimplemented!()
    }
    /// Entries up to and including `upto` are no longer part of the Raft log; their bodies stay until `reclaim`.
    /// `upto` may be above the last entry (after a snapshot install): then the log is empty and continues behind it.
    pub fn purge(&self, upto: EntryId, done: Done) {
        unimplemented!()
    }
    pub fn state(&self) -> LogState {
        unimplemented!()
    }

    /// Entries of `from..to`, in order, stopping (after at least one) before `max_bytes` of commands and bodies is passed.
    /// Without `bodies`, `Body::Absent` and nothing of them is read. Checksums are verified.
    pub fn entries(&self, from: u64, to: u64, max_bytes: usize, bodies: bool) -> Result<Vec<Entry>, StorageError> {
        unimplemented!()
    }
    pub fn entry_id(&self, index: u64) -> Option<EntryId> {
        unimplemented!()
    }

    /// `length` bytes from `offset` of the body of entry `index`, purged or not, checksums verified.
    pub fn read_body(&self, index: u64, offset: u32, length: u32) -> Result<Bytes, StorageError> {
        unimplemented!()
    }
    pub fn has_body(&self, index: u64) -> bool {
        unimplemented!()
    }
    /// Length of the body of entry `index`, purged or not; `None` if it is not stored here.
    pub fn body_length(&self, index: u64) -> Option<u32> {
        unimplemented!()
    }
    /// Store the body of an entry at or below the purge point (or soon to be) that this node lacks.
    pub fn import_body(&self, index: u64, body: Bytes, done: Done) {
        unimplemented!()
    }
    /// Give back what is at or below the purge point and not live: remove whole segments, punch out dead bodies.
    pub fn reclaim(&self, is_live: &dyn Fn(u64) -> bool) -> Result<(), StorageError> {
        unimplemented!()
    }
    /// Bytes appended behind entry `index`: what a restart would replay.
    pub fn bytes_since(&self, index: u64) -> u64 {
        unimplemented!()
    }
    /// Bytes of disk that the log occupies.
    pub fn bytes_on_disk(&self) -> u64 {
        unimplemented!()
    }
    /// Called once with the first fatal error of the writer thread.
    pub fn on_failure(&self, call: Box<dyn FnOnce(Arc<StorageError>) + Send>) {
        unimplemented!()
    }

    /// Write a metadata snapshot: `meta` and then the items, each opaque bytes of at most 8 MiB, streamed (never all in
    /// memory) to one checksummed file; synced, renamed into place, directory synced; older snapshots are removed then.
    pub fn write_snapshot(
        &self,
        last: EntryId,
        meta: Bytes,
        items: &mut dyn Iterator<Item = Result<Bytes, StorageError>>,
    ) -> Result<(), StorageError> {
        unimplemented!()
    }
    /// The newest valid snapshot: its last entry, meta and a reader of its items. A damaged one is never returned.
    pub fn open_snapshot(&self) -> Result<Option<SnapshotReader>, StorageError> {
        unimplemented!()
    }
}

/// Streams the items of a snapshot file; every item's checksum is verified, and the whole file's before `None`.
pub struct SnapshotReader {
    pub last: EntryId,
    pub meta: Bytes,
}

impl Iterator for SnapshotReader {
    type Item = Result<Bytes, StorageError>;
    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!()
    }
}

/// SKELETON: one process at a time uses a data directory; held until dropped (or the process ends).
pub struct DirectoryLock {}

impl DirectoryLock {
    /// `StorageError::InUse` if another process holds it.
    pub fn acquire(directory: &Path) -> Result<DirectoryLock, StorageError> {
        unimplemented!()
    }
}
