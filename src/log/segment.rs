//! One segment file, and reading verified records out of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::disk::DiskFile;
use super::format::{
    HEADER_BYTES, Kind, LARGE_BODY_BYTES, Place, RecordHeader, SegmentHeader, broken_block, decode_record,
};
use super::{EntryId, StorageError};
use crate::limits::BODY_CHECKSUM_BYTES;

/// What a disk cannot read is looked for in pieces of this size, at multiples of it: the least that the kernel reads.
pub const PIECE_BYTES: u64 = 4 << 10;

/// Name of the segment with this sequence.
pub fn segment_name(sequence: u32) -> String {
    format!("{sequence:016}.seg")
}

/// The sequence in a segment's name; `None` for any other file.
pub fn segment_sequence(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg")?;
    let sequence = digits.parse().ok()?;
    (segment_name(sequence) == name).then_some(sequence)
}

/// Whether the disk has lost what was to be read, rather than that it cannot be asked.
fn is_unreadable(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// An open segment. Readers share it, so a segment that is removed stays readable for them.
pub struct Segment {
    pub header: SegmentHeader,
    pub file: Arc<dyn DiskFile>,
    /// For messages.
    pub path: String,
    /// It holds the record of a truncation, which older segments may need.
    pub truncates: AtomicBool,
}

impl Segment {
    pub fn damaged(&self, offset: u64, index: Option<u64>, what: impl Into<String>) -> StorageError {
        StorageError::Damaged { file: self.path.clone(), offset, index, what: what.into() }
    }

    pub fn io(&self, operation: &'static str, source: std::io::Error) -> StorageError {
        StorageError::Io { operation, file: self.path.clone(), source }
    }

    /// Bytes `from..to` of the file.
    pub fn read(&self, from: u64, to: u64) -> Result<Vec<u8>, StorageError> {
        let mut buffer = vec![0; (to - from) as usize];
        self.file.read_at(from, &mut buffer).map_err(|e| self.io("read", e))?;
        Ok(buffer)
    }

    /// The same for a record of this index: what the disk cannot read is as damaged as what reads wrongly.
    fn read_of(&self, index: u64, from: u64, to: u64) -> Result<Vec<u8>, StorageError> {
        self.read(from, to).map_err(|error| match error {
            StorageError::Io { source, .. } if is_unreadable(&source) => {
                self.damaged(from, Some(index), format!("the disk cannot read it: {source}"))
            }
            other => other,
        })
    }

    /// The same with zeros where the disk cannot read; the pieces in which that is are added to `unreadable`.
    pub fn read_around(&self, from: u64, to: u64, unreadable: &mut BTreeSet<u64>) -> Result<Vec<u8>, StorageError> {
        match self.read(from, to) {
            Err(StorageError::Io { source, .. }) if is_unreadable(&source) => {}
            other => return other,
        }
        let mut buffer = vec![0; (to - from) as usize];
        let mut at = from;
        while at < to {
            let piece = at - at % PIECE_BYTES;
            let next = (piece + PIECE_BYTES).min(to);
            let bytes = &mut buffer[(at - from) as usize..(next - from) as usize];
            match self.file.read_at(at, bytes) {
                Err(error) if is_unreadable(&error) => {
                    bytes.fill(0);
                    unreadable.insert(piece);
                }
                other => other.map_err(|e| self.io("read", e))?,
            }
            at = next;
        }
        Ok(buffer)
    }

    /// The command of the record at `place`, and its body if wanted (else empty). Everything returned is verified,
    /// and so is that the record is `kind` of `id`.
    pub fn read_record(
        &self,
        place: &Place,
        kind: Kind,
        id: EntryId,
        with_body: bool,
    ) -> Result<(Bytes, Bytes), StorageError> {
        let to =
            if with_body { place.body_at() + place.body as u64 } else { place.command_at() + place.command as u64 };
        let buffer = Bytes::from(self.read_of(id.index, place.offset as u64, to)?);
        let head = &buffer[..place.head_bytes()];
        let header = self.check_head(place, head, kind, id.index)?;
        if kind == Kind::Entry && header.id != id {
            return Err(self.damaged(place.offset as u64, Some(id.index), "record of another entry"));
        }
        let command = buffer.slice(place.head_bytes()..place.head_bytes() + place.command as usize);
        if crc32c::crc32c(&command) != header.command_crc {
            return Err(self.damaged(place.command_at(), Some(id.index), "checksum of the command"));
        }
        if !with_body {
            return Ok((command, Bytes::new()));
        }
        let body = buffer.slice((place.body_at() - place.offset as u64) as usize..);
        self.check_blocks(place, head, 0, &body, id.index)?;
        Ok((command, body))
    }

    /// Bytes `from..to` of the body of the record at `place`, verified.
    pub fn read_body(&self, place: &Place, kind: Kind, index: u64, from: u32, to: u32) -> Result<Bytes, StorageError> {
        let (first, last) = (from as usize / BODY_CHECKSUM_BYTES, (to as usize).div_ceil(BODY_CHECKSUM_BYTES));
        let start = first * BODY_CHECKSUM_BYTES;
        let stop = (last * BODY_CHECKSUM_BYTES).min(place.body as usize);
        let (head, blocks) = match place.body < LARGE_BODY_BYTES {
            true => self.read_near(place, index, start, stop)?,
            false => self.read_apart(place, index, start, stop)?,
        };
        self.check_head(place, &head, kind, index)?;
        self.check_blocks(place, &head, first, &blocks, index)?;
        Ok(blocks.slice(from as usize - start..to as usize - start))
    }

    /// Head and a part of a small body, in one read.
    fn read_near(&self, place: &Place, index: u64, start: usize, stop: usize) -> Result<(Bytes, Bytes), StorageError> {
        let body = (place.body_at() - place.offset as u64) as usize;
        let buffer = Bytes::from(self.read_of(index, place.offset as u64, place.body_at() + stop as u64)?);
        Ok((buffer.slice(..place.head_bytes()), buffer.slice(body + start..body + stop)))
    }

    fn read_apart(&self, place: &Place, index: u64, start: usize, stop: usize) -> Result<(Bytes, Bytes), StorageError> {
        let head = self.read_of(index, place.offset as u64, place.command_at())?;
        let blocks = self.read_of(index, place.body_at() + start as u64, place.body_at() + stop as u64)?;
        Ok((head.into(), blocks.into()))
    }

    /// Header and table of the record at `place`, verified.
    pub fn read_head(&self, place: &Place, kind: Kind, index: u64) -> Result<Vec<u8>, StorageError> {
        let head = self.read_of(index, place.offset as u64, place.command_at())?;
        self.check_head(place, &head, kind, index)?;
        Ok(head)
    }

    fn check_head(&self, place: &Place, head: &[u8], kind: Kind, index: u64) -> Result<RecordHeader, StorageError> {
        let header = decode_record(&self.header, place.offset, head)
            .ok_or_else(|| self.damaged(place.offset as u64, Some(index), "checksum of the record header"))?;
        let kind_fits = header.kind == kind || (header.kind == Kind::Mend && kind == Kind::Entry);
        let same =
            kind_fits && header.id.index == index && (header.command, header.body) == (place.command, place.body);
        match same {
            true => Ok(header),
            false => Err(self.damaged(place.offset as u64, Some(index), "record of another entry")),
        }
    }

    fn check_blocks(
        &self,
        place: &Place,
        head: &[u8],
        first: usize,
        blocks: &[u8],
        index: u64,
    ) -> Result<(), StorageError> {
        match broken_block(head, first, blocks) {
            None => Ok(()),
            Some(block) => {
                let offset = place.body_at() + (block * BODY_CHECKSUM_BYTES) as u64;
                Err(self.damaged(offset, Some(index), "checksum of the body"))
            }
        }
    }

    /// Read the whole record from the disk, past the cache, and verify every checksum of it.
    pub fn verify(&self, place: &Place, kind: Kind, index: u64) -> Result<(), StorageError> {
        let (from, to) = (place.offset as u64, place.end());
        self.file.forget(from, to - from);
        let buffer = Bytes::from(self.read_of(index, from, place.body_at() + place.body as u64)?);
        self.file.forget(from, to - from);
        let head = &buffer[..place.head_bytes()];
        let header = self.check_head(place, head, kind, index)?;
        let command = &buffer[place.head_bytes()..place.head_bytes() + place.command as usize];
        if crc32c::crc32c(command) != header.command_crc {
            return Err(self.damaged(place.command_at(), Some(index), "checksum of the command"));
        }
        self.check_blocks(place, head, 0, &buffer[(place.body_at() - from) as usize..], index)
    }

    /// What the head of the record at `place` tells as the checksum of its command.
    pub fn command_crc(&self, place: &Place, head: &[u8]) -> Option<u32> {
        decode_record(&self.header, place.offset, head).map(|header| header.command_crc)
    }

    /// Whether the whole body reads as zeros: it was punched out.
    pub fn is_hole(&self, place: &Place) -> bool {
        let mut at = place.body_at();
        let end = at + place.body as u64;
        while at < end {
            let next = (at + (256 << 10)).min(end);
            match self.read(at, next) {
                Ok(bytes) if bytes.iter().all(|b| *b == 0) => at = next,
                _ => return false,
            }
        }
        true
    }

    /// Read and decode a segment's header.
    pub fn open(file: Arc<dyn DiskFile>, path: String) -> Result<Segment, StorageError> {
        let mut bytes = [0; HEADER_BYTES];
        let length =
            file.length().map_err(|e| StorageError::Io { operation: "stat", file: path.clone(), source: e })?;
        if length < HEADER_BYTES as u64 {
            return Err(StorageError::Damaged {
                file: path,
                offset: length,
                index: None,
                what: "the file is cut".into(),
            });
        }
        file.read_at(0, &mut bytes).map_err(|source| match is_unreadable(&source) {
            true => {
                let what = format!("the disk cannot read it: {source}");
                StorageError::Damaged { file: path.clone(), offset: 0, index: None, what }
            }
            false => StorageError::Io { operation: "read", file: path.clone(), source },
        })?;
        let header = SegmentHeader::decode(&bytes).map_err(|fault| fault.into_error(path.clone()))?;
        if length < header.bytes {
            return Err(StorageError::Damaged {
                file: path,
                offset: length,
                index: None,
                what: "the file is cut".into(),
            });
        }
        Ok(Segment { header, file, path, truncates: AtomicBool::new(false) })
    }
}
