//! Finding the records of a segment by their headers, past damage if need be.

use std::collections::BTreeSet;

use super::StorageError;
use super::format::{
    HEADER_BYTES, Kind, Place, RECORD_ALIGN, RecordHeader, broken_block, decode_record, looks_like_record,
    record_extent,
};
use super::segment::{PIECE_BYTES, Segment};

/// Headers are read in pieces of this size.
const WINDOW_BYTES: u64 = 128 << 10;

/// A record whose header is intact. Nothing is known about its command and body.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub header: RecordHeader,
    pub place: Place,
}

/// A stretch that is no record, with a valid record behind it.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    pub at: u64,
    /// How many of the found records lie before it.
    pub records_before: usize,
    /// Control records before what follows the gap, as that record tells.
    pub controls_behind: u32,
}

/// What a segment holds.
pub struct Scan {
    pub records: Vec<Found>,
    pub gaps: Vec<Gap>,
    /// Behind the last record; the offset of the Seal record if there is one.
    pub end: u64,
    pub sealed: bool,
    /// Something at `end` claims to be a record of this segment and is none.
    pub junk: bool,
    /// Behind everything that is or claims to be a record.
    pub junk_end: u64,
    /// The largest synced position that any record tells.
    pub durable: u64,
    /// Pieces that the disk cannot read; what was in them counts as no record.
    pub unreadable: BTreeSet<u64>,
}

impl Scan {
    /// Whether the disk cannot read this position.
    pub fn is_unreadable(&self, at: u64) -> bool {
        self.unreadable.contains(&(at - at % PIECE_BYTES))
    }
}

/// Find all records of a segment, and what of it the disk cannot read, as far as it was looked at: always all that is
/// behind the last record, unless there is a Seal. Bodies are not read, unless a search behind damage must pass them.
pub fn scan(segment: &Segment) -> Result<Scan, StorageError> {
    let mut window = Window::new(segment);
    let start = HEADER_BYTES as u64;
    let mut scan = Scan {
        records: Vec::new(),
        gaps: Vec::new(),
        end: start,
        sealed: false,
        junk: false,
        junk_end: start,
        durable: 0,
        unreadable: BTreeSet::new(),
    };
    loop {
        let found = match window.record(scan.end)? {
            Some(found) => found,
            None => match window.search(scan.end + RECORD_ALIGN)? {
                Some(found) => {
                    let controls_behind = found.header.controls.saturating_sub(found.header.kind.is_control() as u32);
                    scan.gaps.push(Gap { at: scan.end, records_before: scan.records.len(), controls_behind });
                    found
                }
                None => break,
            },
        };
        scan.junk_end = found.place.end();
        scan.durable = scan.durable.max(found.header.durable as u64);
        if found.header.kind == Kind::Seal {
            scan.end = found.place.offset as u64;
            scan.sealed = true;
            scan.unreadable = window.unreadable;
            return Ok(scan);
        }
        scan.end = found.place.end();
        scan.records.push(found);
    }
    if let Some(head) = window.get(scan.end, HEADER_BYTES as u64)? {
        scan.junk = looks_like_record(&segment.header, head);
        let claimed = record_extent(&segment.header, scan.end as u32, head).map_or(0, |place| place.end());
        scan.junk_end = scan.junk_end.max(claimed);
    }
    scan.unreadable = window.unreadable;
    Ok(scan)
}

/// The record at `offset`, if its header is intact.
pub fn record_at(segment: &Segment, offset: u64) -> Result<Option<Found>, StorageError> {
    Window::new(segment).record(offset)
}

struct Window<'a> {
    segment: &'a Segment,
    from: u64,
    bytes: Vec<u8>,
    unreadable: BTreeSet<u64>,
}

impl<'a> Window<'a> {
    fn new(segment: &'a Segment) -> Window<'a> {
        Window { segment, from: 0, bytes: Vec::new(), unreadable: BTreeSet::new() }
    }

    /// Bytes of the segment; `None` past its end.
    fn get(&mut self, offset: u64, bytes: u64) -> Result<Option<&[u8]>, StorageError> {
        if offset + bytes > self.segment.header.bytes {
            return Ok(None);
        }
        if offset < self.from || offset + bytes > self.from + self.bytes.len() as u64 {
            let to = (offset + bytes.max(WINDOW_BYTES)).min(self.segment.header.bytes);
            self.bytes = self.segment.read_around(offset, to, &mut self.unreadable)?;
            self.from = offset;
        }
        let start = (offset - self.from) as usize;
        Ok(Some(&self.bytes[start..start + bytes as usize]))
    }

    fn record(&mut self, offset: u64) -> Result<Option<Found>, StorageError> {
        let segment = &self.segment.header;
        let Some(head) = self.get(offset, HEADER_BYTES as u64)? else { return Ok(None) };
        let Some(place) = record_extent(segment, offset as u32, head) else { return Ok(None) };
        let Some(head) = self.get(offset, place.head_bytes() as u64)? else { return Ok(None) };
        Ok(decode_record(segment, offset as u32, head).map(|header| Found { header, place }))
    }

    fn search(&mut self, from: u64) -> Result<Option<Found>, StorageError> {
        let mut offset = from;
        while offset + RECORD_ALIGN <= self.segment.header.bytes {
            if let Some(found) = self.record(offset)? {
                return Ok(Some(found));
            }
            offset += RECORD_ALIGN;
        }
        Ok(None)
    }
}

/// Whether command and body of a record are intact.
pub fn is_intact(segment: &Segment, found: &Found) -> Result<bool, StorageError> {
    let (place, mut unreadable) = (&found.place, BTreeSet::new());
    let head = segment.read_around(place.offset as u64, place.command_at(), &mut unreadable)?;
    let body = segment.read_around(place.body_at(), place.body_at() + place.body as u64, &mut unreadable)?;
    let whole = unreadable.is_empty() && broken_block(&head, 0, &body).is_none();
    Ok(whole && command(segment, found)?.is_some())
}

/// The command of a record; `None` if it is damaged.
pub fn command(segment: &Segment, found: &Found) -> Result<Option<Vec<u8>>, StorageError> {
    let (from, mut unreadable) = (found.place.command_at(), BTreeSet::new());
    let command = segment.read_around(from, from + found.place.command as u64, &mut unreadable)?;
    let whole = unreadable.is_empty() && crc32c::crc32c(&command) == found.header.command_crc;
    Ok(whole.then_some(command))
}
