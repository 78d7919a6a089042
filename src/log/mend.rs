//! Looking for damage, and putting good copies in its place.
//!
//! A record that does not verify is never touched. A good copy comes from a peer and is appended: a body as an Import, an
//! entry that is still in the Raft log as a Mend. What is given must fit what is known here: the entry's id, its lengths,
//! and the checksums in the head of the damaged record as far as that head is intact.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::cache::Cached;
use super::format::{Kind, LARGE_BODY_BYTES, Place, broken_block};
use super::index::BodyPlace;
use super::queue::{Job, Memory, Shared};
use super::segment::Segment;
use super::{Body, Done, Entry, EntryId, Log, StorageError};

/// Gives committed entries of a range, with their bodies, as other nodes hold them; fewer if they are not to be had.
pub type Supply<'a> = dyn Fn(Range<u64>) -> Vec<Entry> + 'a;

impl Entry {
    /// Where it will be once it is written: nowhere yet.
    pub(super) fn place(&self) -> Place {
        let body = match &self.body {
            Body::Bytes(body) => body.len() as u32,
            Body::Absent(length) => *length,
        };
        Place { command: self.command.len() as u32, body, ..Place::default() }
    }
}

impl Memory {
    /// Queue a good copy of an entry of the log, readable at once.
    pub fn mend(&mut self, entry: Entry) {
        let Entry { id, command, body: Body::Bytes(body) } = entry else { return };
        let serial = self.serial();
        let cached = Cached { serial, command: command.clone(), body: body.clone(), durable: false };
        self.cache.insert(id.index, cached);
        self.push(Job::Mend { id, serial, command, body });
    }
}

/// A record as it should be.
struct Stored {
    segment: Arc<Segment>,
    place: Place,
    kind: Kind,
    /// Of an entry of the Raft log.
    id: Option<EntryId>,
}

impl Log {
    /// The smallest index from `from` on of which an entry or a body is stored.
    pub fn next_stored(&self, from: u64) -> Option<u64> {
        self.shared.memory.lock().index.next_stored(from)
    }

    /// Read all that the disk holds of entry `index`, past any cache, and verify it. Returns the bytes that were read;
    /// what is not stored, or not written yet, is none. Damage for which there is a good copy is none either.
    pub fn verify(&self, index: u64) -> Result<u64, StorageError> {
        self.shared.verify(index)
    }

    /// Whether these bytes can be the body of entry `index`: they have its length and checksums, as far as these are
    /// still to be read here.
    pub fn accepts_body(&self, index: u64, body: &Bytes) -> Result<bool, StorageError> {
        let stored = self.shared.stored(index)?;
        Ok(stored.last().is_none_or(|stored| stored.accepts(index, None, body)))
    }

    /// Whether this can be the entry that the Raft log holds at its index: it has its id, lengths and checksums, as far
    /// as these are still to be read here.
    pub fn accepts_entry(&self, entry: &Entry) -> Result<bool, StorageError> {
        let (Some(id), Body::Bytes(body)) = (self.entry_id(entry.id.index), &entry.body) else { return Ok(false) };
        let stored = self.shared.stored(id.index)?;
        let slot = stored.first().filter(|stored| stored.id == Some(entry.id));
        Ok(slot.is_some_and(|slot| {
            slot.place.command as usize == entry.command.len() && slot.accepts(id.index, Some(&entry.command), body)
        }))
    }

    /// Put a good copy of an entry of the Raft log in the place of a damaged one. Readable on return; `done` when durable.
    /// An entry that is not in the log any more is forgotten.
    pub fn mend_entry(&self, entry: Entry, done: Done) {
        self.shared.submit(done, |memory| {
            let index = entry.id.index;
            let written = memory.index.slot(index).is_some_and(|slot| slot.place.is_written());
            if written && memory.index.id(index) == Some(entry.id) {
                memory.mend(entry);
            }
            Ok(())
        });
    }
}

impl Stored {
    fn accepts(&self, index: u64, command: Option<&Bytes>, body: &Bytes) -> bool {
        if self.place.body as usize != body.len() {
            return false;
        }
        // A head that is damaged itself has nothing to say.
        let Ok(head) = self.segment.read_head(&self.place, self.kind, index) else { return true };
        let command_fits = command.is_none_or(|command| self.segment.command_crc(&self.place, &head) == crc(command));
        command_fits && broken_block(&head, 0, body).is_none()
    }
}

fn crc(command: &Bytes) -> Option<u32> {
    Some(crc32c::crc32c(command))
}

impl Shared {
    /// The written records of this index: its entry in the Raft log, then its body below or beside that.
    fn stored(&self, index: u64) -> Result<Vec<Stored>, StorageError> {
        let memory = self.memory.lock();
        let slot = memory.index.slot(index).map(|slot| (slot.place, Kind::Entry, memory.index.id(index)));
        let body = memory.index.body(index).map(|body| (body.place, body.kind, None));
        let records = slot.into_iter().chain(body).filter(|(place, ..)| place.is_written());
        records
            .map(|(place, kind, id)| Ok(Stored { segment: self.segment(&memory, &place, index)?, place, kind, id }))
            .collect()
    }

    fn verify(&self, index: u64) -> Result<u64, StorageError> {
        let mut bytes = 0;
        for Stored { segment, place, kind, id } in self.stored(index)? {
            let verified = match (segment.verify(&place, kind, index), id) {
                (Err(damaged), Some(id)) => self.read_repaired(&segment, &place, id, damaged).map(drop),
                (Err(damaged), None) => Err(self.or_gone(&segment, BodyPlace { kind, place }, index, damaged)),
                (Ok(()), _) => Ok(()),
            };
            match verified {
                // Mended, purged or given back while it was looked at.
                Err(_) if !self.is_there(index, &place) => {}
                verified => verified?,
            }
            bytes += place.end() - place.offset as u64;
        }
        Ok(bytes)
    }

    fn or_gone(&self, segment: &Segment, body: BodyPlace, index: u64, damaged: StorageError) -> StorageError {
        match body.place.body >= LARGE_BODY_BYTES && segment.is_hole(&body.place) {
            true => StorageError::NoBody { index },
            false => damaged,
        }
    }

    fn is_there(&self, index: u64, place: &Place) -> bool {
        let memory = self.memory.lock();
        let in_log = memory.index.slot(index).is_some_and(|slot| slot.place == *place);
        in_log || memory.index.body(index).is_some_and(|body| body.place == *place)
    }
}
