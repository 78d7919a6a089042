//! Opening: what is true after a crash, and what is rot.
//!
//! Every segment but the last was durable as a whole before the next one got its name; its Seal record lists what it
//! holds, and no body is read. The last one is scanned by its headers. Behind the last position that a record proves
//! durable, a record that does not verify is the remains of a write that was never acknowledged: it is cut, with a copy
//! kept and a warning. In front of it, damage is rot in acknowledged data and is never cut: only entries that a valid
//! metadata snapshot covers may be missing, provided that no vote, truncation or purge was lost with them, and that an
//! entry behind the damage shows how many they are.
//!
//! What the disk cannot read counts as damage like any other, and is cut, or mended, or refused, as its place wants it. Only
//! where the log ends in it nothing is cut: what is lost there may be the last acknowledged records together with whatever
//! proved them durable, of one node or, if the power went everywhere, of all.
//!
//! Decision: what is not proven durable is written once more and synced before anything is served. A process whose
//! sync failed leaves its records in the page cache, valid to read and marked clean; after a restart without a power
//! cut, a sync alone would say yes to bytes that are not on the disk. Cost: the last batch is written twice.
//!
//! Source: crash and corruption disentangled by later records, Alagappan et al., FAST '18.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::seeded::{Bug, planted};

use super::disk::Disk;
use super::format::{HEADER_BYTES, Kind, Place, ROW_BYTES, Recorded, Row, decode_id, get_u32, get_u64};
use super::index::{BodyPlace, Index};
use super::mend::Supply;
use super::queue::{Job, Memory};
use super::scan::{Found, Gap, Scan, command, is_intact, record_at, scan};
use super::segment::{PIECE_BYTES, Segment, segment_name, segment_sequence};
use super::snapshot::{is_snapshot, newest_snapshot};
use super::space::{allocate, is_full, is_spare, release_spare_of, relieved};
use super::writer::{Tail, make_segment, rest};
use super::{Body, Entry, EntryId, Options, StorageError};

/// Unproven records are written again in pieces of this size.
const REWRITE_BYTES: u64 = 1 << 20;
/// Copies of torn writes that are kept.
const TORN_COPIES_MAX: usize = 4;

/// Open or create the log on `disk`.
pub fn recover(disk: &dyn Disk, options: &Options, supply: &Supply) -> Result<(Memory, Tail), StorageError> {
    // The process before this one may have ended between a rename and its sync: what is built on now must not lose its name.
    disk.sync_dir().map_err(|e| io(disk, "sync the directory of", "", e))?;
    let names = disk.list().map_err(|e| io(disk, "list", "", e))?;
    remove_unfinished(disk, &names)?;
    let mut sequences: Vec<u32> = names.iter().filter_map(|name| segment_sequence(name)).collect();
    sequences.sort_unstable();
    let (mut memory, tail) = match sequences.split_last() {
        None => create(disk, options, &names)?,
        Some((last, sealed)) => reopen(disk, options, (sealed, *last), supply)?,
    };
    memory.active_rest = rest(&tail.segment, tail.end, tail.rows.len());
    memory.spares = usable_spares(disk, options)?;
    Ok((memory, tail))
}

fn io(disk: &dyn Disk, operation: &'static str, name: &str, source: std::io::Error) -> StorageError {
    StorageError::Io { operation, file: disk.path_of(name), source }
}

fn remove_unfinished(disk: &dyn Disk, names: &[String]) -> Result<(), StorageError> {
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        disk.remove(name).map_err(|e| io(disk, "remove", name, e))?;
    }
    Ok(())
}

/// The spares that are there. Those of another size, or whose blocks are not all allocated, are of no use and removed.
fn usable_spares(disk: &dyn Disk, options: &Options) -> Result<Vec<String>, StorageError> {
    let names = disk.list().map_err(|e| io(disk, "list", "", e))?;
    let (usable, useless): (Vec<_>, Vec<_>) =
        names.into_iter().filter(|name| is_spare(name)).partition(|name| is_usable_spare(disk, name, options));
    for name in &useless {
        disk.remove(name).map_err(|e| io(disk, "remove", name, e))?;
    }
    Ok(usable)
}

fn is_usable_spare(disk: &dyn Disk, name: &str, options: &Options) -> bool {
    let bytes = disk.open(name).and_then(|file| Ok((file.length()?, file.allocated()?)));
    bytes.is_ok_and(|(length, allocated)| length == options.segment_bytes && allocated >= length)
}

fn create(disk: &dyn Disk, options: &Options, names: &[String]) -> Result<(Memory, Tail), StorageError> {
    if let Some(snapshot) = names.iter().find(|name| is_snapshot(name)) {
        let what = "there is a snapshot but no segment of the log".into();
        return Err(StorageError::Damaged { file: disk.path_of(snapshot), offset: 0, index: None, what });
    }
    let recorded = Recorded::default();
    let (segment, end) = make_segment(disk, options, None, 1, 0, &recorded)?;
    let memory = Memory::new(Index::default(), BTreeMap::from([(1, segment.clone())]), 1, options);
    let tail = Tail { segment, end, marked: end, controls: 1, rows: Vec::new(), recorded };
    Ok((memory, tail))
}

fn reopen(
    disk: &dyn Disk,
    options: &Options,
    (sealed, last): (&[u32], u32),
    supply: &Supply,
) -> Result<(Memory, Tail), StorageError> {
    let mut replay = Replay::default();
    let mut segments = BTreeMap::new();
    for sequence in sealed {
        let segment = open_segment(disk, *sequence)?;
        let rows = sealed_rows(&segment, &mut replay)?;
        segment.truncates.store(rows.iter().any(|row| row.kind == Kind::Truncate), Ordering::Relaxed);
        rows.iter().for_each(|row| replay.row(row));
        segments.insert(*sequence, segment);
    }
    let mut tail = open_tail(disk, open_segment(disk, last)?, &mut replay)?;
    segments.insert(last, tail.segment.clone());
    let supplied = replay.fill_holes(disk, &tail.recorded, supply)?;
    let (index, repaired) = replay.into_index(disk, &mut tail.recorded)?;
    let mut memory = Memory::new(index, segments, last, options);
    supplied.into_iter().for_each(|entry| memory.mend(entry));
    memory.vote = tail.recorded.vote.clone();
    memory.committed = tail.recorded.committed;
    memory.committed = memory.committed();
    if let Some(upto) = repaired {
        memory.push(Job::Purge { upto });
    }
    Ok((memory, tail))
}

fn open_segment(disk: &dyn Disk, sequence: u32) -> Result<Arc<Segment>, StorageError> {
    let name = segment_name(sequence);
    let file = disk.open(&name).map_err(|e| io(disk, "open", &name, e))?;
    let segment = Segment::open(file, disk.path_of(&name))?;
    match segment.header.sequence == sequence {
        true => Ok(Arc::new(segment)),
        false => Err(segment.damaged(0, None, format!("the header is that of segment {}", segment.header.sequence))),
    }
}

/// The rows of a sealed segment: from its Seal record, or if that is damaged from its headers. That nothing is missing behind
/// the last of them, the Seal's header shows, or the trailer: of a segment with a next one it tells the last Seal.
fn sealed_rows(segment: &Arc<Segment>, replay: &mut Replay) -> Result<Vec<Row>, StorageError> {
    if let Some(rows) = read_seal(segment)? {
        return Ok(rows);
    }
    tracing::warn!(file = segment.path, "the seal of this segment is damaged; reading its headers instead");
    let scan = scan(segment)?;
    if !scan.sealed && read_trailer(segment)? != Some(scan.end) {
        return Err(segment.damaged(scan.end, None, "a record of a sealed segment"));
    }
    let gaps = scan.gaps.len();
    replay.note_gaps(segment, &scan, gaps)?;
    Ok(rows_of(&scan))
}

/// The rows of a sealed segment that are to be had: of a record whose header is damaged there is none if the Seal is, too.
pub fn known_rows(segment: &Segment) -> Result<Vec<Row>, StorageError> {
    match read_seal(segment)? {
        Some(rows) => Ok(rows),
        None => Ok(rows_of(&scan(segment)?)),
    }
}

fn rows_of(scan: &Scan) -> Vec<Row> {
    scan.records.iter().filter_map(row_of).collect()
}

fn read_seal(segment: &Segment) -> Result<Option<Vec<Row>>, StorageError> {
    let Some(offset) = read_trailer(segment)? else { return Ok(None) };
    let found = record_at(segment, offset)?.filter(|found| found.header.kind == Kind::Seal);
    let Some(found) = found else { return Ok(None) };
    let Some(rows) = command(segment, &found)? else { return Ok(None) };
    Ok(rows.chunks(ROW_BYTES).map(|row| Row::decode(&segment.header, row)).collect())
}

/// Where the trailer says that the Seal is.
fn read_trailer(segment: &Segment) -> Result<Option<u64>, StorageError> {
    let bytes = segment.header.bytes;
    let trailer = segment.read_around(bytes - HEADER_BYTES as u64, bytes, &mut BTreeSet::new())?;
    let trailer = trailer.as_slice().try_into().ok();
    Ok(trailer.and_then(|trailer| segment.header.read_trailer(trailer)).map(u64::from))
}

fn row_of(found: &Found) -> Option<Row> {
    let Found { header, place } = *found;
    matches!(header.kind, Kind::Entry | Kind::Import | Kind::Truncate | Kind::Mend).then_some(Row {
        kind: header.kind,
        id: header.id,
        place,
    })
}

/// Scan the last segment, cut what was never acknowledged, make the rest durable.
fn open_tail(disk: &dyn Disk, segment: Arc<Segment>, replay: &mut Replay) -> Result<Tail, StorageError> {
    let mut scan = scan(&segment)?;
    let Some(first) = scan.records.first().filter(|found| found.header.kind == Kind::State).copied() else {
        return Err(segment.damaged(HEADER_BYTES as u64, None, "the state at the head of the last segment"));
    };
    let proven = scan.durable.max(first.place.end());
    let rotten = match planted(Bug::TruncatedRot) {
        true => 0,
        false => scan.gaps.iter().take_while(|gap| gap.at < proven).count(),
    };
    replay.note_gaps(&segment, &scan, rotten)?;
    refuse_open_end(&segment, &scan, rotten)?;
    let torn = first_torn(&segment, &scan, proven, rotten)?;
    refuse_unreadable_end(&segment, &scan, torn)?;
    heal(&segment, &scan, torn.unwrap_or(scan.end))?;
    match torn {
        Some(at) => cut(disk, &segment, &mut scan, at)?,
        None if scan.sealed => unseal(&segment, &mut scan)?,
        None => {}
    }
    // A copy of a data directory may have holes where nothing was written yet: those must not be met later.
    relieved(&|| release_spare_of(disk), || allocate(&*segment.file, segment.header.bytes))
        .map_err(|e| segment.io("allocate", e))?;
    harden(&segment, proven, scan.end)?;
    let recorded = recorded_state(&segment, &scan.records)?;
    let rows = rows_of(&scan);
    segment.truncates.store(rows.iter().any(|row| row.kind == Kind::Truncate), Ordering::Relaxed);
    rows.iter().for_each(|row| replay.row(row));
    let controls = scan.records.last().map_or(1, |found| found.header.controls);
    let told = scan.records.iter().map(|found| found.header.durable as u64).max().unwrap_or(0);
    Ok(Tail { segment, end: scan.end, marked: told.max(first.place.end()), controls, rows, recorded })
}

/// A missing entry shows by those around it. Where none follows the damage, nobody can say how many acknowledged ones were
/// in it, or whether there were any.
fn refuse_open_end(segment: &Segment, scan: &Scan, rotten: usize) -> Result<(), StorageError> {
    for gap in &scan.gaps[..rotten] {
        let followed = scan.records[gap.records_before..].iter().any(|found| found.header.kind == Kind::Entry);
        if !followed && !was_a_copy(segment, scan, gap)? {
            return Err(gap_damage(segment, scan, gap));
        }
    }
    Ok(())
}

/// Where nothing is found behind a part that the disk cannot read, nobody can say whether what was in it was acknowledged;
/// and what is in front of a cut cannot be kept if it shares such a part with what is cut.
fn refuse_unreadable_end(segment: &Segment, scan: &Scan, torn: Option<u64>) -> Result<(), StorageError> {
    let shared = |at: &u64| !at.is_multiple_of(PIECE_BYTES) && scan.is_unreadable(*at);
    let open = Some(scan.end).filter(|end| scan.is_unreadable(*end));
    match torn.filter(shared).or(open) {
        Some(at) => Err(segment.damaged(at, None, "the disk cannot read where the log ends")),
        None => Ok(()),
    }
}

/// Write zeros where the disk could not read behind this position, in whole pieces: less than that would have to read them.
fn heal(segment: &Segment, scan: &Scan, end: u64) -> Result<(), StorageError> {
    let lost: Vec<u64> = scan.unreadable.range(end..).copied().collect();
    for at in &lost {
        tracing::warn!(
            file = segment.path,
            offset = at,
            "the disk cannot read here; nothing acknowledged is lost by that"
        );
        let to = (at + PIECE_BYTES).min(segment.header.bytes);
        write_zeros(segment, *at, to).map_err(|e| segment.io("write", e))?;
    }
    Ok(())
}

/// Whether a gap was one import or mend of what lies in front of it, as its damaged header says in four places that agree:
/// its kind, its index, and the two lengths, which fill the gap exactly.
fn was_a_copy(segment: &Segment, scan: &Scan, gap: &Gap) -> Result<bool, StorageError> {
    let head = segment.read_around(gap.at, gap.at + HEADER_BYTES as u64, &mut BTreeSet::new())?;
    let place = Place {
        segment: segment.header.sequence,
        offset: gap.at as u32,
        command: get_u32(&head, 44),
        body: get_u32(&head, 48),
    };
    let is_copy = [Kind::Import, Kind::Mend].iter().any(|kind| head[8] == *kind as u8);
    let known = scan.records[..gap.records_before].iter().rev().find(|found| found.header.kind == Kind::Entry);
    let is_old = known.is_some_and(|last| get_u64(&head, 32) <= last.header.id.index);
    let next = scan.records.get(gap.records_before).map(|found| found.place.offset as u64);
    Ok(is_copy && is_old && next == Some(place.end()))
}

/// What is said of a gap, with the entry that is the first to be missing, if this segment tells.
fn gap_damage(segment: &Segment, scan: &Scan, gap: &Gap) -> StorageError {
    let before = scan.records[..gap.records_before].iter().rev().find(|found| found.header.kind == Kind::Entry);
    segment.damaged(gap.at, before.map(|found| found.header.id.index + 1), "checksum of a record header")
}

/// Where the part that was never acknowledged and is not whole begins.
fn first_torn(segment: &Segment, scan: &Scan, proven: u64, rotten: usize) -> Result<Option<u64>, StorageError> {
    let gap = scan.gaps.get(rotten).map(|gap| gap.at).or(scan.junk.then_some(scan.end));
    let unproven = scan.records.iter().filter(|found| found.place.offset as u64 >= proven);
    for found in unproven.take_while(|found| gap.is_none_or(|gap| (found.place.offset as u64) < gap)) {
        if !is_intact(segment, found)? {
            return Ok(Some(found.place.offset as u64));
        }
    }
    Ok(gap)
}

/// Cut the tail at `at`: keep a copy, then zero it, so that no record of it is ever found again behind a later one. Zeros
/// are written, not punched: the blocks stay allocated, and on a full disk nobody else gets them.
fn cut(disk: &dyn Disk, segment: &Segment, scan: &mut Scan, at: u64) -> Result<(), StorageError> {
    let end = scan.junk_end.max(at + HEADER_BYTES as u64).min(segment.header.bytes);
    let name = format!("torn-{}-{at}", segment.header.sequence);
    let bytes = segment.read_around(at, end, &mut BTreeSet::new())?;
    keep_copy(disk, &name, &bytes)?;
    write_zeros(segment, at, end).map_err(|e| segment.io("cut", e))?;
    scan.records.retain(|found| found.place.end() <= at);
    scan.end = at;
    scan.sealed = false;
    tracing::warn!(file = segment.path, offset = at, bytes = end - at, kept = name, "cut a torn write off the log");
    Ok(())
}

/// Zero a Seal in whose place the log goes on, before anything is written there: should the first sector of that be lost in
/// a crash, the Seal would be found again, and would hide from the next cut what survived behind it.
fn unseal(segment: &Segment, scan: &mut Scan) -> Result<(), StorageError> {
    write_zeros(segment, scan.end, scan.junk_end).map_err(|e| segment.io("unseal", e))?;
    scan.sealed = false;
    Ok(())
}

/// Keep what is cut, for whoever wants to look at it, and no more than the last few. A disk without room for it does not
/// keep a node from starting: nothing in it was ever acknowledged.
fn keep_copy(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
    let relieve = || release_spare_of(disk);
    let copied = relieved(&relieve, || {
        let copy = disk.create(name)?;
        copy.write_at(0, &mut [IoSlice::new(bytes)])?;
        copy.sync_data()
    });
    match copied {
        Err(error) if is_full(&error) => {
            tracing::warn!(file = disk.path_of(name), "the disk is full: no copy of the torn write is kept");
            // There may be none.
            let _ = disk.remove(name);
        }
        other => other.map_err(|e| io(disk, "write", name, e))?,
    }
    let names = disk.list().map_err(|e| io(disk, "list", "", e))?;
    let mut copies: Vec<_> = names.iter().filter_map(|name| Some((torn_place(name)?, name))).collect();
    copies.sort_unstable();
    for (_, older) in &copies[..copies.len().saturating_sub(TORN_COPIES_MAX)] {
        disk.remove(older).map_err(|e| io(disk, "remove", older, e))?;
    }
    disk.sync_dir().map_err(|e| io(disk, "sync the directory of", name, e))
}

/// Segment and offset in the name of a copy; `None` for any other file.
fn torn_place(name: &str) -> Option<(u32, u64)> {
    let (segment, offset) = name.strip_prefix("torn-")?.split_once('-')?;
    Some((segment.parse().ok()?, offset.parse().ok()?))
}

fn write_zeros(segment: &Segment, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; (to - from).min(REWRITE_BYTES) as usize];
    let mut at = from;
    while at < to {
        // Up to whole pieces of the disk, so that none that it cannot read is written by halves.
        let next = (at - at % REWRITE_BYTES + REWRITE_BYTES).min(to);
        segment.file.write_at(at, &mut [IoSlice::new(&zeros[..(next - at) as usize])])?;
        at = next;
    }
    segment.file.sync_data()
}

/// Write `from..to` once more and sync it.
fn harden(segment: &Segment, from: u64, to: u64) -> Result<(), StorageError> {
    let mut at = from;
    while at < to {
        let next = (at + REWRITE_BYTES).min(to);
        let bytes = segment.read(at, next)?;
        segment.file.write_at(at, &mut [IoSlice::new(&bytes)]).map_err(|e| segment.io("write", e))?;
        at = next;
    }
    match from < to {
        true => segment.file.sync_data().map_err(|e| segment.io("sync", e)),
        false => Ok(()),
    }
}

/// Follow the control records of the last segment.
fn recorded_state(segment: &Segment, records: &[Found]) -> Result<Recorded, StorageError> {
    let mut recorded = Recorded::default();
    for found in records {
        let follow = match found.header.kind {
            Kind::Import | Kind::Seal | Kind::Mend => Some(()),
            Kind::Entry => {
                recorded.last = Some(found.header.id);
                Some(())
            }
            _ => command(segment, found)?.and_then(|bytes| follow_control(&mut recorded, found.header.kind, bytes)),
        };
        if follow.is_none() {
            return Err(segment.damaged(found.place.command_at(), None, "checksum of a control record"));
        }
    }
    Ok(recorded)
}

fn follow_control(recorded: &mut Recorded, kind: Kind, bytes: Vec<u8>) -> Option<()> {
    match kind {
        Kind::State => *recorded = Recorded::decode(&bytes)?,
        Kind::Vote => recorded.vote = Some(Bytes::from(bytes)),
        Kind::Mark => recorded.committed = decode_id(&bytes)?,
        Kind::Truncate => recorded.last = decode_id(&bytes)?,
        Kind::Purge => {
            recorded.purged = decode_id(&bytes)?;
            recorded.last = recorded.last.max_by_index(recorded.purged);
        }
        Kind::Entry | Kind::Import | Kind::Seal | Kind::Mend => {}
    }
    Some(())
}

trait MaxByIndex {
    fn max_by_index(self, other: Self) -> Self;
}

impl MaxByIndex for Option<EntryId> {
    /// The one further in the log; `other` if both are equally far.
    fn max_by_index(self, other: Self) -> Self {
        match self.map(|id| id.index) > other.map(|id| id.index) {
            true => self,
            false => other,
        }
    }
}

/// The records of all segments, in order, until it is known which of them count.
#[derive(Default)]
struct Replay {
    entries: BTreeMap<u64, (EntryId, Place)>,
    imports: BTreeMap<u64, Place>,
    dead: Vec<Place>,
    /// The first damage that may be tolerable, for the message if it is not.
    damage: Option<StorageError>,
}

impl Replay {
    /// Remember the first `count` gaps of a segment; refuse those in which a control record was lost.
    fn note_gaps(&mut self, segment: &Segment, scan: &Scan, count: usize) -> Result<(), StorageError> {
        for gap in &scan.gaps[..count] {
            let before = gap.records_before.checked_sub(1).map_or(0, |i| scan.records[i].header.controls);
            let error = gap_damage(segment, scan, gap);
            if before != gap.controls_behind {
                return Err(error);
            }
            self.damage.get_or_insert(error);
        }
        Ok(())
    }

    fn row(&mut self, row: &Row) {
        match row.kind {
            Kind::Entry => {
                self.drop_from(row.id.index);
                self.entries.insert(row.id.index, (row.id, row.place));
            }
            Kind::Mend => self.mended(row),
            Kind::Import => self.dead.extend(self.imports.insert(row.id.index, row.place)),
            Kind::Truncate => self.drop_from(row.id.index.wrapping_add(1)),
            _ => {}
        }
    }

    /// A copy of an entry takes the place of the damaged one, whose record may not have been found at all.
    fn mended(&mut self, row: &Row) {
        let entry = self.entries.entry(row.id.index).or_insert((row.id, row.place));
        match entry.0 == row.id {
            true if entry.1 == row.place => {}
            true => self.dead.push(std::mem::replace(&mut entry.1, row.place)),
            false => self.dead.push(row.place),
        }
    }

    /// Ask for the entries that are missing behind what a snapshot covers, and take those in that belong there.
    fn fill_holes(
        &mut self,
        disk: &dyn Disk,
        recorded: &Recorded,
        supply: &Supply,
    ) -> Result<Vec<Entry>, StorageError> {
        let mut holes = holes(&self.entries, recorded);
        if !holes.is_empty() {
            let covered = newest_snapshot(disk)?.map_or(0, |last| last.index + 1);
            holes.retain(|hole| hole.end > covered);
        }
        let mut supplied = Vec::new();
        for hole in holes {
            let found = self.belonging(&hole, supply(hole.start.saturating_sub(1)..hole.end + 1));
            for entry in &found {
                tracing::warn!(index = entry.id.index, "the record of an entry is damaged; a copy came from a peer");
                self.entries.insert(entry.id.index, (entry.id, entry.place()));
            }
            supplied.extend(found);
        }
        Ok(supplied)
    }

    /// Those of the supplied entries that fill the hole; none unless its neighbours are the same here and there, so that
    /// both logs are the same up to there.
    fn belonging(&self, hole: &Range<u64>, supplied: Vec<Entry>) -> Vec<Entry> {
        let contradicts = |entry: &Entry| self.entries.get(&entry.id.index).is_some_and(|(id, _)| *id != entry.id);
        if supplied.iter().any(contradicts) {
            tracing::error!(index = hole.start, "the entries that a peer has do not fit those beside the damage");
            return Vec::new();
        }
        let whole = |entry: &Entry| matches!(entry.body, Body::Bytes(_));
        supplied.into_iter().filter(|entry| hole.contains(&entry.id.index) && whole(entry)).collect()
    }

    fn drop_from(&mut self, index: u64) {
        if self.entries.last_key_value().is_some_and(|(last, _)| *last >= index) {
            self.dead.extend(self.entries.split_off(&index).into_values().map(|(_, place)| place));
        }
    }

    /// The index, and the purge point that had to be moved up to a snapshot because of damage in front of it.
    fn into_index(self, disk: &dyn Disk, recorded: &mut Recorded) -> Result<(Index, Option<EntryId>), StorageError> {
        let repaired = match holes(&self.entries, recorded).last() {
            None => None,
            Some(hole) => Some(self.cover(disk, hole.end - 1)?),
        };
        if repaired.is_some() {
            recorded.purged = repaired;
            recorded.last = recorded.last.max_by_index(repaired);
        }
        Ok((self.build(recorded), repaired))
    }

    /// The snapshot that covers a missing entry.
    fn cover(&self, disk: &dyn Disk, hole: u64) -> Result<EntryId, StorageError> {
        let covering = newest_snapshot(disk)?.filter(|last| last.index >= hole);
        match (covering, &self.damage) {
            (Some(last), damage) => {
                let damage = damage.as_ref().map(|damage| damage.to_string());
                tracing::warn!(
                    index = hole,
                    snapshot = last.index,
                    damage,
                    "dropped damaged entries that a snapshot covers"
                );
                Ok(last)
            }
            (None, Some(StorageError::Damaged { file, offset, index, what })) => Err(StorageError::Damaged {
                file: file.clone(),
                offset: *offset,
                index: index.or(Some(hole)),
                what: what.clone(),
            }),
            (None, _) => {
                let what = "an entry of the log is missing".into();
                Err(StorageError::Damaged { file: disk.path_of(""), offset: 0, index: Some(hole), what })
            }
        }
    }

    fn build(self, recorded: &Recorded) -> Index {
        let mut index = Index::default();
        let first = recorded.purged.map_or(0, |purged| purged.index + 1);
        let next = recorded.last.map_or(0, |last| last.index + 1);
        if let Some(purged) = recorded.purged {
            index.purge(purged);
        }
        for (at, (id, place)) in self.entries {
            match at {
                _ if at < first && place.body > 0 => index.set_body(at, BodyPlace { kind: Kind::Entry, place }),
                _ if at >= first && at < next => index.push(id, place),
                _ => {}
            }
        }
        index.dead = self.dead;
        for (at, place) in self.imports {
            index.set_body(at, BodyPlace { kind: Kind::Import, place });
        }
        index
    }
}

/// The ranges between purge point and last entry that are missing, in order.
fn holes(entries: &BTreeMap<u64, (EntryId, Place)>, recorded: &Recorded) -> Vec<Range<u64>> {
    let mut expected = recorded.purged.map_or(0, |purged| purged.index + 1);
    let next = recorded.last.map_or(0, |last| last.index + 1).max(expected);
    let mut holes = Vec::new();
    for index in entries.range(expected..next).map(|(index, _)| *index).chain([next]) {
        if expected < index {
            holes.push(expected..index);
        }
        expected = index + 1;
    }
    holes
}
