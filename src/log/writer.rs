//! The one writer: everything that is queued, one vectored write, one sync, then the callbacks in order.
//!
//! After an error nothing of the batch is acknowledged, no file is touched again and every later call fails.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::seeded::{Bug, planted};

use super::disk::Disk;
use super::format::{
    HEADER_BYTES, Kind, LARGE_BODY_BYTES, Place, ROW_BYTES, RecordHeader, Recorded, Row, SegmentHeader, encode_id,
    encode_record,
};
use super::index::BodyPlace;
use super::queue::{Batch, Job, Memory, Shared, Work};
use super::segment::{Segment, segment_name};
use super::space::{allocate, rename};
use super::{Done, EntryId, Options, StorageError};

const NO_ID: EntryId = EntryId { term: 0, node: 0, index: 0 };
/// The arena keeps at most this much between batches.
const ARENA_BYTES_KEPT: usize = 1 << 20;

pub struct Writer {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    /// Where the next record goes.
    end: u64,
    /// Everything below is durable.
    synced: u64,
    /// The largest `durable` that a record of this segment tells.
    marked: u64,
    controls: u32,
    /// For the Seal record.
    rows: Vec<Row>,
    recorded: Recorded,
    staged: Staged,
}

/// What recovery found: where and with which state to go on.
pub struct Tail {
    pub segment: Arc<Segment>,
    pub end: u64,
    pub marked: u64,
    pub controls: u32,
    pub rows: Vec<Row>,
    pub recorded: Recorded,
}

/// Records that wait for their write: small parts side by side in the arena, large bodies by reference.
#[derive(Default)]
struct Staged {
    arena: Vec<u8>,
    /// A body, and the length of the arena in front of it.
    bodies: Vec<(usize, Bytes)>,
}

impl Staged {
    fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(2 * self.bodies.len() + 1);
        let mut from = 0;
        for (to, body) in &self.bodies {
            slices.push(IoSlice::new(&self.arena[from..*to]));
            slices.push(IoSlice::new(body));
            from = *to;
        }
        slices.push(IoSlice::new(&self.arena[from..]));
        slices
    }

    fn pad(&mut self, bytes: u64) {
        self.arena.resize(self.arena.len() + bytes as usize, 0);
    }

    fn push(&mut self, segment: &SegmentHeader, place: &Place, record: &RecordHeader, command: &[u8], body: &Bytes) {
        encode_record(segment, place.offset, record, body, &mut self.arena);
        self.arena.extend_from_slice(command);
        self.pad(place.body_at() - place.command_at() - command.len() as u64);
        match place.body >= LARGE_BODY_BYTES {
            true => self.bodies.push((self.arena.len(), body.clone())),
            false => self.arena.extend_from_slice(body),
        }
        self.pad(place.end() - place.body_at() - place.body as u64);
    }

    fn clear(&mut self) {
        self.bodies.clear();
        self.arena.clear();
        self.arena.shrink_to(ARENA_BYTES_KEPT);
    }
}

/// A record that is durable once the batch is synced, and whose place the readers then learn.
enum Written {
    Entry { index: u64, serial: u64, place: Place },
    Import { index: u64, serial: u64, place: Place },
    Done(Done),
}

impl Writer {
    pub fn new(shared: Arc<Shared>, tail: Tail) -> Writer {
        let Tail { segment, end, marked, controls, rows, recorded } = tail;
        Writer { shared, segment, end, synced: end, marked, controls, rows, recorded, staged: Staged::default() }
    }

    /// Work until the log is closed or fails.
    /// A panic, of a callback perhaps, must not leave the others waiting for ever: it ends the log like a failed write.
    pub fn run(mut self) {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.serve()));
        if ended.is_err() {
            let (operation, file) = ("run the writer", self.shared.disk.path_of(""));
            let source = std::io::Error::other("it has panicked");
            self.fail(StorageError::Io { operation, file, source }, Vec::new(), Vec::new());
        }
    }

    fn serve(&mut self) {
        loop {
            let (work, closing) = match self.shared.next_work(self.is_unmarked()) {
                Work::Close(committed) => (Work::Mark(committed), true),
                work => (work, false),
            };
            if !self.step(work) || closing {
                return;
            }
        }
    }

    /// Do what is queued, if anything. False: nothing was, or the log is dead.
    pub fn pump(&mut self) -> bool {
        if self.shared.memory.lock().failed.is_some() {
            return false;
        }
        match self.shared.poll_work(self.is_unmarked()) {
            Some(work) => self.step(work),
            None => false,
        }
    }

    fn is_unmarked(&self) -> bool {
        self.synced > self.marked
    }

    fn step(&mut self, work: Work) -> bool {
        match work {
            Work::Batch(batch) => self.write_batch(batch),
            Work::Mark(committed) | Work::Close(committed) => match self.write_mark(committed) {
                Ok(()) => true,
                Err(error) => self.fail(error, Vec::new(), Vec::new()),
            },
        }
    }

    fn write_batch(&mut self, batch: Batch) -> bool {
        let mut written = Vec::with_capacity(batch.jobs.len());
        let unsynced = planted(Bug::VoteNotSynced) && batch.jobs.iter().all(Job::is_of_a_vote);
        let mut jobs = batch.jobs.into_iter();
        while let Some(job) = jobs.next() {
            match self.write_job(job) {
                Ok(one) => written.extend(one),
                Err(error) => return self.fail(error, written, jobs.collect()),
            }
        }
        let finished = if unsynced { self.flush() } else { self.finish_batch(batch.committed) };
        match finished {
            Ok(()) => self.complete(written),
            Err(error) => self.fail(error, written, Vec::new()),
        }
    }

    fn finish_batch(&mut self, committed: Option<EntryId>) -> Result<(), StorageError> {
        if committed != self.recorded.committed {
            self.put_mark(committed)?;
        }
        self.flush()?;
        self.sync()
    }

    fn write_job(&mut self, job: Job) -> Result<Option<Written>, StorageError> {
        match job {
            Job::Entry { id, serial, command, body } => {
                let place = self.put(Kind::Entry, id, &command, &body)?;
                self.recorded.last = Some(id);
                Ok(Some(Written::Entry { index: id.index, serial, place }))
            }
            Job::Import { index, serial, body } => {
                let place = self.put(Kind::Import, EntryId { index, ..NO_ID }, &[], &body)?;
                Ok(Some(Written::Import { index, serial, place }))
            }
            Job::Mend { id, serial, command, body } => {
                let place = self.put(Kind::Mend, id, &command, &body)?;
                Ok(Some(Written::Entry { index: id.index, serial, place }))
            }
            Job::Vote(vote) => {
                self.put(Kind::Vote, NO_ID, &vote, &Bytes::new())?;
                self.recorded.vote = Some(vote);
                Ok(None)
            }
            Job::Truncate { last } => {
                let id = last.unwrap_or(EntryId { index: u64::MAX, ..NO_ID });
                self.put(Kind::Truncate, id, &encode_id(last), &Bytes::new())?;
                self.segment.truncates.store(true, Ordering::Relaxed);
                self.recorded.last = last;
                Ok(None)
            }
            Job::Purge { upto } => {
                self.put(Kind::Purge, NO_ID, &encode_id(Some(upto)), &Bytes::new())?;
                self.recorded.purged = Some(upto);
                self.recorded.last = self.recorded.last.filter(|last| last.index > upto.index).or(Some(upto));
                Ok(None)
            }
            Job::Done(done) => Ok(Some(Written::Done(done))),
        }
    }

    /// Stage one record, in the next segment if this one is full.
    fn put(&mut self, kind: Kind, id: EntryId, command: &[u8], body: &Bytes) -> Result<Place, StorageError> {
        if !self.fits(&self.place(command, body)) {
            self.roll()?;
        }
        let place = self.place(command, body);
        if !self.fits(&place) {
            return Err(self.segment.io("write", std::io::Error::other("record larger than a segment")));
        }
        self.stage(kind, id, place, command, body);
        if matches!(kind, Kind::Entry | Kind::Import | Kind::Truncate | Kind::Mend) {
            self.rows.push(Row { kind, id, place });
        }
        Ok(place)
    }

    fn place(&self, command: &[u8], body: &Bytes) -> Place {
        Place {
            segment: self.segment.header.sequence,
            offset: self.end as u32,
            command: command.len() as u32,
            body: body.len() as u32,
        }
    }

    /// Whether this record leaves room to seal the segment behind it.
    fn fits(&self, place: &Place) -> bool {
        let rows = (self.rows.len() + 1) * ROW_BYTES;
        let seal = (place.end() + (HEADER_BYTES + rows) as u64).next_multiple_of(HEADER_BYTES as u64);
        seal + HEADER_BYTES as u64 <= self.segment.header.bytes
    }

    fn stage(&mut self, kind: Kind, id: EntryId, place: Place, command: &[u8], body: &Bytes) {
        self.controls += kind.is_control() as u32;
        let record = RecordHeader {
            kind,
            id,
            durable: self.synced as u32,
            controls: self.controls,
            command: place.command,
            body: place.body,
            command_crc: crc32c::crc32c(command),
        };
        self.staged.push(&self.segment.header, &place, &record, command, body);
        self.end = place.end();
    }

    /// Write what is staged. It ends at `end`.
    fn flush(&mut self) -> Result<(), StorageError> {
        let mut slices = self.staged.slices();
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if bytes > 0 {
            let from = self.end - bytes as u64;
            self.segment.file.write_at(from, &mut slices).map_err(|e| self.segment.io("write", e))?;
            self.marked = self.synced;
        }
        drop(slices);
        self.staged.clear();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if self.synced < self.end {
            if planted(Bug::AcknowledgeBeforeSync) {
                self.synced = self.end;
                return Ok(());
            }
            self.segment.file.sync_data().map_err(|e| self.segment.io("sync", e))?;
            self.synced = self.end;
        }
        Ok(())
    }

    fn put_mark(&mut self, committed: Option<EntryId>) -> Result<(), StorageError> {
        self.put(Kind::Mark, NO_ID, &encode_id(committed), &Bytes::new())?;
        self.recorded.committed = committed;
        Ok(())
    }

    /// Tell the next recovery how far the log is durable. Not synced: it is a hint that makes rot provable.
    fn write_mark(&mut self, committed: Option<EntryId>) -> Result<(), StorageError> {
        if self.is_unmarked() || committed != self.recorded.committed {
            self.put_mark(committed)?;
            self.flush()?;
        }
        Ok(())
    }

    /// Seal this segment and go on in the next one. Nothing in the next is written before all of this one is durable.
    fn roll(&mut self) -> Result<(), StorageError> {
        self.flush()?;
        let seal = self.end as u32;
        let mut rows = Vec::with_capacity(self.rows.len() * ROW_BYTES);
        self.rows.drain(..).for_each(|row| row.encode(&mut rows));
        let place = self.place(&rows, &Bytes::new());
        self.stage(Kind::Seal, NO_ID, place, &rows, &Bytes::new());
        self.flush()?;
        let trailer = self.segment.header.trailer(seal);
        let at = self.segment.header.bytes - HEADER_BYTES as u64;
        let written = self.segment.file.write_at(at, &mut [IoSlice::new(&trailer)]);
        written.map_err(|e| self.segment.io("write", e))?;
        self.sync()?;
        let next_index = self.recorded.last.map_or(0, |last| last.index + 1);
        let spare = {
            let mut memory = self.shared.memory.lock();
            let spare = memory.spares.pop();
            memory.in_making += u64::from(spare.is_some());
            spare
        };
        let was_spare = u64::from(spare.is_some());
        let sequence = self.segment.header.sequence + 1;
        let (segment, end) =
            make_segment(&*self.shared.disk, &self.shared.options, spare, sequence, next_index, &self.recorded)?;
        let mut memory = self.shared.memory.lock();
        memory.active = sequence;
        memory.active_rest = rest(&segment, end, 0);
        memory.in_making -= was_spare;
        memory.segments.insert(sequence, segment.clone());
        (self.segment, self.end, self.synced, self.marked, self.controls) = (segment, end, end, end, 1);
        Ok(())
    }

    /// The batch is durable: tell readers where its records are, then whoever waits.
    fn complete(&mut self, written: Vec<Written>) -> bool {
        let mut memory = self.shared.memory.lock();
        let mut calls = Vec::new();
        for one in written {
            match one {
                Written::Entry { index, serial, place } => entry_durable(&mut memory, index, serial, place),
                Written::Import { index, serial, place } => import_durable(&mut memory, index, serial, place),
                Written::Done(done) => calls.push(done),
            }
        }
        memory.cache.evict();
        memory.active_rest = rest(&self.segment, self.end, self.rows.len());
        memory.batch_from = self.segment.header.sequence;
        drop(memory);
        calls.into_iter().for_each(|done| done(Ok(())));
        true
    }

    /// The log is dead. Whoever waits hears of it, in order.
    fn fail(&mut self, error: StorageError, written: Vec<Written>, rest: Vec<Job>) -> bool {
        tracing::error!(%error, "the log cannot be written any more");
        let error = Arc::new(error);
        let mut memory = self.shared.memory.lock();
        memory.failed = Some(error.clone());
        let queued = memory.drain();
        let on_failure = std::mem::take(&mut memory.on_failure);
        drop(memory);
        let waiting =
            written.into_iter().filter_map(|one| if let Written::Done(done) = one { Some(done) } else { None });
        let later =
            rest.into_iter().chain(queued).filter_map(|job| if let Job::Done(done) = job { Some(done) } else { None });
        waiting.chain(later).for_each(|done| done(Err(error.clone())));
        on_failure.into_iter().for_each(|call| call(error.clone()));
        false
    }
}

fn entry_durable(memory: &mut Memory, index: u64, serial: u64, place: Place) {
    if memory.cache.set_durable(index, serial) {
        memory.index.entry_written(index, place);
        memory.durable_next = memory.durable_next.max(index + 1);
    } else if place.body > 0 {
        memory.index.dead.push(place);
    }
}

fn import_durable(memory: &mut Memory, index: u64, serial: u64, place: Place) {
    if memory.imports.get(&index).is_some_and(|(newest, _)| *newest == serial) {
        memory.imports.remove(&index);
        memory.index.set_body(index, BodyPlace { kind: Kind::Import, place });
    } else {
        memory.index.dead.push(place);
    }
}

/// What a segment still takes behind `end`, when it must be sealed with so many rows.
pub fn rest(segment: &Segment, end: u64, rows: usize) -> u64 {
    segment.header.bytes.saturating_sub(end + (rows * ROW_BYTES + 3 * HEADER_BYTES) as u64)
}

/// Make the file of a new segment: header and state durable first, then its name. Returns it and where records go.
pub fn make_segment(
    disk: &dyn Disk,
    options: &Options,
    spare: Option<String>,
    sequence: u32,
    next_index: u64,
    recorded: &Recorded,
) -> Result<(Arc<Segment>, u64), StorageError> {
    let name = segment_name(sequence);
    let path = disk.path_of(&name);
    let io = |operation| {
        let file = path.clone();
        move |source| StorageError::Io { operation, file, source }
    };
    let bytes = options.segment_bytes;
    let header = SegmentHeader { sequence, salt: salt(options.seed, sequence), bytes, next_index };
    let temporary = format!("{sequence:016}.tmp");
    let file = match &spare {
        Some(spare) => disk.open(spare).map_err(io("open"))?,
        None => disk.create(&temporary).map_err(io("create"))?,
    };
    allocate(&*file, bytes).map_err(io("allocate"))?;
    let command = recorded.encode();
    let place = Place { segment: sequence, offset: HEADER_BYTES as u32, command: command.len() as u32, body: 0 };
    let record = RecordHeader {
        kind: Kind::State,
        id: NO_ID,
        durable: 0,
        controls: 1,
        command: place.command,
        body: 0,
        command_crc: crc32c::crc32c(&command),
    };
    let mut staged = Staged { arena: header.encode().to_vec(), bodies: Vec::new() };
    staged.push(&header, &place, &record, &command, &Bytes::new());
    file.write_at(0, &mut staged.slices()).map_err(io("write"))?;
    file.sync_data().map_err(io("sync"))?;
    rename(disk, spare.as_ref().unwrap_or(&temporary), &name).map_err(io("rename"))?;
    disk.sync_dir().map_err(io("sync the directory of"))?;
    Ok((Arc::new(Segment { header, file, path: disk.path_of(&name), truncates: false.into() }), place.end()))
}

/// Spread the seed of this opening over the segments that it makes (the finalizer of splitmix64).
fn salt(seed: u64, sequence: u32) -> u64 {
    let mut x = seed.wrapping_add((sequence as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
