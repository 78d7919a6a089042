//! Metadata snapshots: one checksummed file each.
//!
//! ```text
//! header 64:  0 8 "keelsnap" │ 8 4 format version │ 12 4 zero │ 16 8 term │ 24 8 node │ 32 8 index │ 40 20 zero │ 60 4 CRC32C
//! item:       0 4 length │ 4 4 CRC32C of the bytes │ bytes            (the first item is the meta)
//! end:        0 4 0xffffffff │ 4 4 CRC32C of 8..20 │ 8 8 items without the meta │ 16 4 CRC32C of all before the end
//! ```
//!
//! Written under a temporary name, synced, renamed, directory synced; only then are older ones removed. A file that does
//! not verify to its last byte is never opened: that costs a second reading, from the page cache as a rule.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::format::{FORMAT, HEADER_BYTES, HeaderFault, get_u32, get_u64, put_u32, put_u64};
use super::space::{relieved, rename};
use super::{EntryId, StorageError};

/// Largest item, in bytes.
pub const ITEM_BYTES_MAX: usize = 8 << 20;
const MAGIC: &[u8; 8] = b"keelsnap";
const END: u32 = u32::MAX;
const END_BYTES: u64 = 20;
const BUFFER_BYTES: usize = 1 << 20;

fn snapshot_name(index: u64) -> String {
    format!("snapshot-{index:020}")
}

/// Whether this is the name of a finished snapshot.
pub fn is_snapshot(name: &str) -> bool {
    snapshot_index(name).is_some()
}

fn snapshot_index(name: &str) -> Option<u64> {
    let index = name.strip_prefix("snapshot-")?.parse().ok()?;
    (snapshot_name(index) == name).then_some(index)
}

fn encode_header(last: EntryId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    put_u32(&mut bytes, 8, FORMAT);
    put_u64(&mut bytes, 16, last.term);
    put_u64(&mut bytes, 24, last.node);
    put_u64(&mut bytes, 32, last.index);
    let crc = crc32c::crc32c(&bytes[..60]);
    put_u32(&mut bytes, 60, crc);
    bytes
}

fn decode_header(bytes: &[u8]) -> Result<EntryId, HeaderFault> {
    if &bytes[..8] != MAGIC {
        return Err(HeaderFault::Broken("not a snapshot of keelfs"));
    }
    if get_u32(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
        return Err(HeaderFault::Broken("checksum of the snapshot header"));
    }
    match get_u32(bytes, 8) {
        FORMAT => Ok(EntryId { term: get_u64(bytes, 16), node: get_u64(bytes, 24), index: get_u64(bytes, 32) }),
        found => Err(HeaderFault::Version(found)),
    }
}

/// A snapshot that is whole and durable under a temporary name. It is removed unless it gets its place.
pub struct StagedSnapshot {
    disk: Arc<dyn Disk>,
    temporary: String,
    last: EntryId,
    bytes: u64,
    is_placed: bool,
}

/// Name of a snapshot of this node that is being written.
pub fn own_name(last: EntryId) -> String {
    format!("{}.tmp", snapshot_name(last.index))
}

/// Name of a snapshot that has come from another node and waits for its place.
pub fn received_name(last: EntryId) -> String {
    format!("received-{:020}.tmp", last.index)
}

/// Write a snapshot under this temporary name, durably. If the disk is full, `relieve` is asked for room.
pub fn stage(
    disk: &Arc<dyn Disk>,
    temporary: String,
    last: EntryId,
    meta: &Bytes,
    items: &mut dyn Iterator<Item = Result<Bytes, StorageError>>,
    relieve: &dyn Fn() -> bool,
) -> Result<StagedSnapshot, StorageError> {
    let io = |operation| {
        let file = disk.path_of(&temporary);
        move |source| StorageError::Io { operation, file: file.clone(), source }
    };
    let file = relieved(relieve, || disk.create(&temporary)).map_err(io("create"))?;
    // From here on an error removes it: the disk may be full of it. The next opening does so too.
    let mut staged =
        StagedSnapshot { disk: disk.clone(), temporary: temporary.clone(), last, bytes: 0, is_placed: false };
    let mut sink = Sink { file: &*file, relieve, offset: 0, buffer: Vec::with_capacity(BUFFER_BYTES), crc: 0 };
    write_items(&mut sink, last, meta, items, &io("write"))?;
    file.sync_data().map_err(io("sync"))?;
    staged.bytes = sink.offset;
    Ok(staged)
}

impl StagedSnapshot {
    /// The last entry that it covers.
    pub fn last(&self) -> EntryId {
        self.last
    }

    /// Make it the newest snapshot and remove the older ones; its size in bytes.
    pub fn place(mut self) -> Result<u64, StorageError> {
        let disk = self.disk.clone();
        let io = |operation| {
            let file = disk.path_of(&self.temporary);
            move |source| StorageError::Io { operation, file: file.clone(), source }
        };
        rename(&*disk, &self.temporary, &snapshot_name(self.last.index)).map_err(io("rename"))?;
        disk.sync_dir().map_err(io("sync the directory of"))?;
        for older in disk.list().map_err(io("list"))?.iter().filter(|name| snapshot_index(name) < Some(self.last.index))
        {
            if is_snapshot(older) {
                disk.remove(older).map_err(io("remove older than"))?;
            }
        }
        self.is_placed = true;
        Ok(self.bytes)
    }
}

impl Drop for StagedSnapshot {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = self.disk.remove(&self.temporary);
        }
    }
}

fn write_items(
    sink: &mut Sink<'_>,
    last: EntryId,
    meta: &Bytes,
    items: &mut dyn Iterator<Item = Result<Bytes, StorageError>>,
    io: &dyn Fn(std::io::Error) -> StorageError,
) -> Result<(), StorageError> {
    sink.put(&encode_header(last)).and_then(|()| sink.item(meta)).map_err(io)?;
    let mut count = 0u64;
    for item in items {
        sink.item(&item?).map_err(io)?;
        count += 1;
    }
    let mut end = [0; END_BYTES as usize];
    put_u32(&mut end, 0, END);
    put_u64(&mut end, 8, count);
    put_u32(&mut end, 16, sink.crc);
    let crc = crc32c::crc32c(&end[8..]);
    put_u32(&mut end, 4, crc);
    sink.put(&end).and_then(|()| sink.flush()).map_err(io)
}

struct Sink<'a> {
    file: &'a dyn DiskFile,
    relieve: &'a dyn Fn() -> bool,
    offset: u64,
    buffer: Vec<u8>,
    crc: u32,
}

impl Sink<'_> {
    fn item(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.len() > ITEM_BYTES_MAX {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "an item exceeds 8 MiB"));
        }
        self.put(&(bytes.len() as u32).to_le_bytes())?;
        self.put(&crc32c::crc32c(bytes).to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.buffer.extend_from_slice(bytes);
        match self.buffer.len() >= BUFFER_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let (file, offset, buffer) = (self.file, self.offset, &self.buffer);
        relieved(self.relieve, || file.write_at(offset, &mut [IoSlice::new(buffer)]))?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// The last entry of the newest valid snapshot.
pub fn newest_snapshot(disk: &dyn Disk) -> Result<Option<EntryId>, StorageError> {
    Ok(open_newest(disk)?.0.map(|reader| reader.last))
}

/// The newest valid snapshot, and the damage of newer ones that had to be skipped.
pub fn open_newest(disk: &dyn Disk) -> Result<(Option<SnapshotReader>, Option<StorageError>), StorageError> {
    let names = disk.list().map_err(|e| StorageError::Io { operation: "list", file: disk.path_of(""), source: e })?;
    let mut skipped = None;
    for name in names.iter().rev().filter(|name| is_snapshot(name)) {
        match open_verified(disk, name) {
            Ok(reader) => return Ok((Some(reader), skipped)),
            Err(error @ StorageError::Damaged { .. }) => {
                tracing::warn!(%error, "skipped a damaged snapshot");
                skipped.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((None, skipped))
}

/// The newest snapshot file, whatever is in it.
pub fn open_unverified(disk: &dyn Disk) -> Result<Option<SnapshotReader>, StorageError> {
    let names = disk.list().map_err(|e| StorageError::Io { operation: "list", file: disk.path_of(""), source: e })?;
    names.iter().rfind(|name| is_snapshot(name)).map(|name| SnapshotReader::open(disk, name)).transpose()
}

fn open_verified(disk: &dyn Disk, name: &str) -> Result<SnapshotReader, StorageError> {
    for item in SnapshotReader::open(disk, name)? {
        item?;
    }
    SnapshotReader::open(disk, name)
}

/// Streams the items of a snapshot file; every item's checksum is verified, and the whole file's before `None`.
pub struct SnapshotReader {
    pub last: EntryId,
    pub meta: Bytes,
    source: Source,
    items: u64,
    ended: bool,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader").field("last", &self.last).field("file", &self.source.path).finish()
    }
}

impl SnapshotReader {
    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.source.length
    }

    fn open(disk: &dyn Disk, name: &str) -> Result<SnapshotReader, StorageError> {
        let path = disk.path_of(name);
        let io = |operation| {
            let file = path.clone();
            move |source| StorageError::Io { operation, file, source }
        };
        let file = disk.open(name).map_err(io("open"))?;
        let length = file.length().map_err(io("stat"))?;
        let mut source = Source { file, path: path.clone(), length, offset: 0, buffer: Bytes::new(), crc: 0 };
        let header = source.take(HEADER_BYTES)?;
        let last = decode_header(&header).map_err(|fault| fault.into_error(path))?;
        let Some(meta) = source.item()? else { return Err(source.damaged("the end comes before the meta")) };
        Ok(SnapshotReader { last, meta, source, items: 0, ended: false })
    }

    /// Verify all of it, as the disk has it. Returns its bytes.
    pub fn verify(mut self) -> Result<u64, StorageError> {
        let bytes = self.source.length;
        self.source.file.forget(0, bytes);
        self.try_for_each(|item| item.map(drop))?;
        self.source.file.forget(0, bytes);
        Ok(bytes)
    }

    fn read_next(&mut self) -> Result<Option<Bytes>, StorageError> {
        if let Some(item) = self.source.item()? {
            self.items += 1;
            return Ok(Some(item));
        }
        let whole = self.source.crc;
        let end = self.source.take(END_BYTES as usize)?;
        let intact = get_u32(&end, 4) == crc32c::crc32c(&end[8..])
            && (get_u64(&end, 8), get_u32(&end, 16)) == (self.items, whole)
            && self.source.remaining() == 0;
        match intact {
            true => Ok(None),
            false => Err(self.source.damaged("checksum of the whole snapshot")),
        }
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Bytes, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read_next().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// A file that is read once, from its beginning.
struct Source {
    file: Arc<dyn DiskFile>,
    path: String,
    length: u64,
    /// Where the buffer ends in the file.
    offset: u64,
    buffer: Bytes,
    crc: u32,
}

impl Source {
    fn remaining(&self) -> u64 {
        self.length - self.offset + self.buffer.len() as u64
    }

    fn damaged(&self, what: &str) -> StorageError {
        let offset = self.offset - self.buffer.len() as u64;
        StorageError::Damaged { file: self.path.clone(), offset, index: None, what: what.into() }
    }

    /// The next item; `None` at the end, which is not consumed.
    fn item(&mut self) -> Result<Option<Bytes>, StorageError> {
        self.fill(8)?;
        let (length, crc) = (get_u32(&self.buffer, 0), get_u32(&self.buffer, 4));
        if length == END {
            return Ok(None);
        }
        if length as usize > ITEM_BYTES_MAX {
            return Err(self.damaged("impossible length of an item"));
        }
        self.take(8)?;
        let item = self.take(length as usize)?;
        match crc32c::crc32c(&item) == crc {
            true => Ok(Some(item)),
            false => Err(self.damaged("checksum of an item")),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<Bytes, StorageError> {
        self.fill(bytes)?;
        let taken = self.buffer.split_to(bytes);
        self.crc = crc32c::crc32c_append(self.crc, &taken);
        Ok(taken)
    }

    /// Have at least this many bytes in the buffer.
    fn fill(&mut self, bytes: usize) -> Result<(), StorageError> {
        if self.buffer.len() >= bytes {
            return Ok(());
        }
        if self.remaining() < bytes as u64 {
            return Err(self.damaged("the file is cut"));
        }
        let more = (bytes - self.buffer.len()).max(BUFFER_BYTES).min((self.length - self.offset) as usize);
        let mut buffer = vec![0; self.buffer.len() + more];
        buffer[..self.buffer.len()].copy_from_slice(&self.buffer);
        let read = self.file.read_at(self.offset, &mut buffer[self.buffer.len()..]);
        read.map_err(|source| match source.raw_os_error() {
            // What the disk cannot read is as damaged as what reads wrongly: it can be had anew.
            Some(libc::EIO) => self.damaged(&format!("the disk cannot read it: {source}")),
            _ => StorageError::Io { operation: "read", file: self.path.clone(), source },
        })?;
        self.offset += more as u64;
        self.buffer = buffer.into();
        Ok(())
    }
}
