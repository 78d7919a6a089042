//! The bytes of a segment file, drawn once. All numbers are little-endian.
//!
//! ```text
//! segment   header 64 │ State record │ records … │ Seal record │ unused … │ trailer 64 (only once sealed)
//!
//! header    0  8  "keelseg\0"               record    0  4  "kREC"
//!           8  4  format version                      4  4  sequence of the segment
//!          12  4  sequence of the segment             8  1  kind
//!          16  8  salt                                9  7  zero
//!          24  8  bytes of the file                  16  8  term  ┐
//!          32  8  index that is expected next        24  8  node  ├ of an entry or mend; index alone of an import
//!          40 20  zero                               32  8  index ┘
//!          60  4  CRC32C of 0..60                    40  4  durable: bytes of this segment synced before this write
//!                                                    44  4  bytes of the command
//! trailer   0  8  "keelseal"                         48  4  bytes of the body
//!           8  4  sequence                           52  4  CRC32C of the command
//!          12  4  offset of the Seal record          56  4  control records in this segment, this one included
//!          16 44  zero                               60  4  CRC32C of salt, sequence, offset, 0..60, table
//!          60  4  CRC32C of salt, 0..60              64 4n  table: CRC32C of each 16 KiB of the body
//!                                                           command │ zeros │ body │ zeros to 64
//! ```
//!
//! Records start at multiples of 64 bytes and never cross segments. A body of 64 KiB or more starts at a multiple of 4 KiB,
//! so that it can be punched out. The salt differs with every making of a segment: a record that an earlier life of a
//! recycled file left behind, or one that a user stored in a file, never has a valid checksum here.
//!
//! Decision: `durable` is a position, not an index. It separates a torn write from rot for every kind of record, votes
//! too, and even where the damaged header no longer tells its index. `control records` lets recovery prove that a
//! damaged stretch held no vote, truncation or purge.

use super::{EntryId, StorageError};
use crate::limits::BODY_CHECKSUM_BYTES;

/// The segment and snapshot format that this build writes, and the only one that it reads.
pub const FORMAT: u32 = 2;
/// Bytes of a segment header, a record header and a trailer.
pub const HEADER_BYTES: usize = 64;
/// Records start at multiples of this.
pub const RECORD_ALIGN: u64 = 64;
/// Bodies of this size and more are aligned, and given back to the disk when they are dead.
pub const LARGE_BODY_BYTES: u32 = 64 << 10;
const LARGE_BODY_ALIGN: u64 = 4 << 10;
/// Bytes of one row of a Seal record.
pub const ROW_BYTES: usize = 40;
/// Largest segment: offsets are 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 31;

/// Largest index that is believed: none is ever reached, and counting on from it overflows nothing.
const INDEX_MAX: u64 = 1 << 62;

const SEGMENT_MAGIC: &[u8; 8] = b"keelseg\0";
const TRAILER_MAGIC: &[u8; 8] = b"keelseal";
const RECORD_MAGIC: &[u8; 4] = b"kREC";

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An entry of the Raft log: command and body.
    Entry = 1,
    /// The body of an entry that came from a peer, outside the Raft log.
    Import = 2,
    /// How far the log is known to be committed; written behind a sync, so it also marks what is durable.
    Mark = 3,
    Vote = 4,
    /// Entries above the given one are gone.
    Truncate = 5,
    /// Entries up to the given one are no longer part of the Raft log.
    Purge = 6,
    /// Head of every segment: all of the above as it stands, so that older segments can go.
    State = 7,
    /// The last record of a full segment: a row for each entry, import, truncation and mend.
    Seal = 8,
    /// An entry of the Raft log once more, from a peer: it stands for a damaged record of the same entry.
    Mend = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        [Entry, Import, Mark, Vote, Truncate, Purge, State, Seal, Mend].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// A record whose loss would change more than the entries that are missing.
    pub fn is_control(self) -> bool {
        !matches!(self, Kind::Entry | Kind::Import | Kind::Mark | Kind::Mend)
    }
}

/// What identifies one life of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub sequence: u32,
    pub salt: u64,
    pub bytes: u64,
    pub next_index: u64,
}

/// Why a header of a file is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub enum HeaderFault {
    Broken(&'static str),
    Version(u32),
}

impl HeaderFault {
    pub fn into_error(self, file: String) -> StorageError {
        match self {
            HeaderFault::Broken(what) => StorageError::Damaged { file, offset: 0, index: None, what: what.into() },
            HeaderFault::Version(found) => StorageError::Format { file, found, reads: FORMAT },
        }
    }
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        put_u32(&mut bytes, 8, FORMAT);
        put_u32(&mut bytes, 12, self.sequence);
        put_u64(&mut bytes, 16, self.salt);
        put_u64(&mut bytes, 24, self.bytes);
        put_u64(&mut bytes, 32, self.next_index);
        let crc = crc32c::crc32c(&bytes[..60]);
        put_u32(&mut bytes, 60, crc);
        bytes
    }

    /// The checksum comes first, so that a flipped bit is damage and never "another version".
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<SegmentHeader, HeaderFault> {
        if &bytes[..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Broken("not a segment of keelfs"));
        }
        if get_u32(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(HeaderFault::Broken("checksum of the segment header"));
        }
        match get_u32(bytes, 8) {
            FORMAT => {}
            found => return Err(HeaderFault::Version(found)),
        }
        let header = SegmentHeader {
            sequence: get_u32(bytes, 12),
            salt: get_u64(bytes, 16),
            bytes: get_u64(bytes, 24),
            next_index: get_u64(bytes, 32),
        };
        match header.bytes {
            bytes if bytes > SEGMENT_BYTES_MAX => Err(HeaderFault::Broken("impossible size of the segment")),
            _ => Ok(header),
        }
    }

    pub fn trailer(&self, seal_offset: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(TRAILER_MAGIC);
        put_u32(&mut bytes, 8, self.sequence);
        put_u32(&mut bytes, 12, seal_offset);
        let crc = self.trailer_crc(&bytes);
        put_u32(&mut bytes, 60, crc);
        bytes
    }

    /// The offset of the Seal record, if these bytes are the trailer of this life of the segment.
    pub fn read_trailer(&self, bytes: &[u8; HEADER_BYTES]) -> Option<u32> {
        let ours = &bytes[..8] == TRAILER_MAGIC && get_u32(bytes, 60) == self.trailer_crc(bytes);
        ours.then(|| get_u32(bytes, 12))
    }

    fn trailer_crc(&self, bytes: &[u8; HEADER_BYTES]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.salt.to_le_bytes()), &bytes[..60])
    }
}

/// Where a record is and how long its parts are. `segment` 0: not written yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub segment: u32,
    pub offset: u32,
    pub command: u32,
    pub body: u32,
}

impl Place {
    pub fn is_written(&self) -> bool {
        self.segment != 0
    }

    /// Bytes of header and table.
    pub fn head_bytes(&self) -> usize {
        HEADER_BYTES + table_bytes(self.body)
    }

    pub fn command_at(&self) -> u64 {
        self.offset as u64 + self.head_bytes() as u64
    }

    pub fn body_at(&self) -> u64 {
        let end = self.command_at() + self.command as u64;
        match self.body >= LARGE_BODY_BYTES {
            true => end.next_multiple_of(LARGE_BODY_ALIGN),
            false => end,
        }
    }

    /// Where the next record starts.
    pub fn end(&self) -> u64 {
        (self.body_at() + self.body as u64).next_multiple_of(RECORD_ALIGN)
    }
}

/// Bytes of the checksum table of a body.
pub fn table_bytes(body: u32) -> usize {
    4 * (body as usize).div_ceil(BODY_CHECKSUM_BYTES)
}

/// A record header, without its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: Kind,
    pub id: EntryId,
    pub durable: u32,
    pub controls: u32,
    pub command: u32,
    pub body: u32,
    pub command_crc: u32,
}

/// Append header and table of a record that starts at `offset` to `out`.
pub fn encode_record(segment: &SegmentHeader, offset: u32, record: &RecordHeader, body: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    for block in body.chunks(BODY_CHECKSUM_BYTES) {
        out.extend_from_slice(&crc32c::crc32c(block).to_le_bytes());
    }
    let head = &mut out[start..];
    head[..4].copy_from_slice(RECORD_MAGIC);
    put_u32(head, 4, segment.sequence);
    head[8] = record.kind as u8;
    put_u64(head, 16, record.id.term);
    put_u64(head, 24, record.id.node);
    put_u64(head, 32, record.id.index);
    put_u32(head, 40, record.durable);
    put_u32(head, 44, record.command);
    put_u32(head, 48, record.body);
    put_u32(head, 52, record.command_crc);
    put_u32(head, 56, record.controls);
    let crc = record_crc(segment, offset, head);
    put_u32(head, 60, crc);
}

fn record_crc(segment: &SegmentHeader, offset: u32, head: &[u8]) -> u32 {
    let mut seed = [0; 16];
    put_u64(&mut seed, 0, segment.salt);
    put_u32(&mut seed, 8, segment.sequence);
    put_u32(&mut seed, 12, offset);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&seed), &head[..60]);
    crc32c::crc32c_append(crc, &head[HEADER_BYTES..])
}

/// Whether these first bytes claim to be a record of this segment; proves nothing.
pub fn looks_like_record(segment: &SegmentHeader, head: &[u8]) -> bool {
    head.len() >= HEADER_BYTES && &head[..4] == RECORD_MAGIC && get_u32(head, 4) == segment.sequence
}

/// Where the record whose 64 header bytes are given has its parts, if it would fit the segment. Nothing is verified.
pub fn record_extent(segment: &SegmentHeader, offset: u32, head: &[u8]) -> Option<Place> {
    if !looks_like_record(segment, head) {
        return None;
    }
    let place = Place { segment: segment.sequence, offset, command: get_u32(head, 44), body: get_u32(head, 48) };
    (place.end() <= segment.bytes).then_some(place)
}

/// Verify and decode header and table (`head` is exactly both).
pub fn decode_record(segment: &SegmentHeader, offset: u32, head: &[u8]) -> Option<RecordHeader> {
    let place = record_extent(segment, offset, head)?;
    if head.len() != place.head_bytes() || get_u32(head, 60) != record_crc(segment, offset, head) {
        return None;
    }
    let kind = Kind::from_byte(head[8])?;
    Some(RecordHeader {
        kind,
        id: credible(kind, EntryId { term: get_u64(head, 16), node: get_u64(head, 24), index: get_u64(head, 32) })?,
        durable: get_u32(head, 40),
        controls: get_u32(head, 56),
        command: place.command,
        body: place.body,
        command_crc: get_u32(head, 52),
    })
}

/// An id that a writer may have written.
fn credible(kind: Kind, id: EntryId) -> Option<EntryId> {
    let keeps_nothing = kind == Kind::Truncate && id.index == u64::MAX;
    (id.index <= INDEX_MAX || keeps_nothing).then_some(id)
}

/// The first block of `blocks` (whole 16 KiB blocks of a body, from block `first`) that does not match the table.
pub fn broken_block(head: &[u8], first: usize, blocks: &[u8]) -> Option<usize> {
    let table = &head[HEADER_BYTES..];
    (blocks.chunks(BODY_CHECKSUM_BYTES).enumerate())
        .map(|(i, block)| (first + i, block))
        .find(|(i, block)| table.get(4 * i..4 * i + 4).is_none_or(|crc| crc != crc32c::crc32c(block).to_le_bytes()))
        .map(|(i, _)| i)
}

/// One row of a Seal record: 0 8 index │ 8 8 term │ 16 8 node │ 24 4 offset │ 28 4 command │ 32 4 body │ 36 1 kind │ 37 3 zero.
/// A truncation's id is the last entry that it keeps, index `u64::MAX` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub kind: Kind,
    pub id: EntryId,
    pub place: Place,
}

impl Row {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; ROW_BYTES];
        put_u64(&mut bytes, 0, self.id.index);
        put_u64(&mut bytes, 8, self.id.term);
        put_u64(&mut bytes, 16, self.id.node);
        put_u32(&mut bytes, 24, self.place.offset);
        put_u32(&mut bytes, 28, self.place.command);
        put_u32(&mut bytes, 32, self.place.body);
        bytes[36] = self.kind as u8;
        out.extend_from_slice(&bytes);
    }

    pub fn decode(segment: &SegmentHeader, bytes: &[u8]) -> Option<Row> {
        if bytes.len() != ROW_BYTES {
            return None;
        }
        let place = Place {
            segment: segment.sequence,
            offset: get_u32(bytes, 24),
            command: get_u32(bytes, 28),
            body: get_u32(bytes, 32),
        };
        let id = EntryId { index: get_u64(bytes, 0), term: get_u64(bytes, 8), node: get_u64(bytes, 16) };
        (place.end() <= segment.bytes).then_some(())?;
        let kind = Kind::from_byte(bytes[36])?;
        Some(Row { kind, id: credible(kind, id)?, place })
    }
}

/// What the head of every segment repeats. As bytes: three optional ids (1 + 24 each), then the vote to the end, with a
/// leading byte that says whether there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    pub purged: Option<EntryId>,
    pub committed: Option<EntryId>,
    pub last: Option<EntryId>,
    pub vote: Option<bytes::Bytes>,
}

/// Bytes of an optional id.
pub const ID_BYTES: usize = 25;

impl Recorded {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 * ID_BYTES);
        for id in [self.purged, self.committed, self.last] {
            out.extend_from_slice(&encode_id(id));
        }
        out.push(self.vote.is_some() as u8);
        out.extend_from_slice(self.vote.as_deref().unwrap_or_default());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Recorded> {
        let (has_vote, vote) = bytes.get(3 * ID_BYTES..)?.split_first()?;
        Some(Recorded {
            purged: decode_id(&bytes[..ID_BYTES])?,
            committed: decode_id(&bytes[ID_BYTES..2 * ID_BYTES])?,
            last: decode_id(&bytes[2 * ID_BYTES..3 * ID_BYTES])?,
            vote: (*has_vote == 1).then(|| bytes::Bytes::copy_from_slice(vote)),
        })
    }
}

pub fn encode_id(id: Option<EntryId>) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    if let Some(id) = id {
        bytes[0] = 1;
        put_u64(&mut bytes, 1, id.term);
        put_u64(&mut bytes, 9, id.node);
        put_u64(&mut bytes, 17, id.index);
    }
    bytes
}

/// `None`: these bytes are no optional id.
pub fn decode_id(bytes: &[u8]) -> Option<Option<EntryId>> {
    match (bytes.len(), bytes.first()?) {
        (ID_BYTES, 0) => Some(None),
        (ID_BYTES, 1) => {
            let id = EntryId { term: get_u64(bytes, 1), node: get_u64(bytes, 9), index: get_u64(bytes, 17) };
            credible(Kind::Entry, id).map(Some)
        }
        _ => None,
    }
}

pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn get_u64(bytes: &[u8], at: usize) -> u64 {
    get_u32(bytes, at) as u64 | (get_u32(bytes, at + 4) as u64) << 32
}
