//! Reading entries and bodies: from the cache if they are recent, else from their segments, verified. The lock is never
//! held while a disk is read.

use std::sync::Arc;

use bytes::Bytes;

use super::format::{Kind, LARGE_BODY_BYTES, Place, broken_block};
use super::index::BodyPlace;
use super::queue::{Memory, Shared};
use super::segment::Segment;
use super::{Body, Entry, EntryId, StorageError};

/// Where an entry is to be had.
enum Where {
    Memory(Bytes, Bytes),
    Disk(Arc<Segment>, Place),
}

/// Where a body is to be had.
enum BodyWhere {
    Memory(Bytes),
    Disk(Arc<Segment>, BodyPlace),
    Nowhere,
}

impl Shared {
    pub fn entries(&self, from: u64, to: u64, bytes_max: usize, bodies: bool) -> Result<Vec<Entry>, StorageError> {
        loop {
            let plan = self.plan(from, to, bytes_max, bodies)?;
            let planned_from = plan.first().map_or(from, |(id, _)| id.index);
            let read: Result<_, _> = plan.into_iter().map(|(id, place)| self.read_entry(id, place, bodies)).collect();
            // Purged while it was read, and its body given back: what is left of the range is still to be had.
            let overtaken = read.is_err() && self.memory.lock().index.first() > planned_from;
            if !overtaken {
                return read;
            }
        }
    }

    fn plan(&self, from: u64, to: u64, bytes_max: usize, bodies: bool) -> Result<Vec<(EntryId, Where)>, StorageError> {
        let memory = self.memory.lock();
        let mut plan = Vec::new();
        let mut bytes = 0usize;
        for index in from.max(memory.index.first())..to.min(memory.index.next()) {
            let (Some(slot), Some(id)) = (memory.index.slot(index), memory.index.id(index)) else { break };
            bytes += slot.place.command as usize + if bodies { slot.place.body as usize } else { 0 };
            if bytes > bytes_max && !plan.is_empty() {
                break;
            }
            let found = match memory.cache.get(index) {
                Some(cached) => Where::Memory(cached.command.clone(), cached.body.clone()),
                None => Where::Disk(self.segment(&memory, &slot.place, index)?, slot.place),
            };
            plan.push((id, found));
        }
        Ok(plan)
    }

    pub fn segment(&self, memory: &Memory, place: &Place, index: u64) -> Result<Arc<Segment>, StorageError> {
        memory.segments.get(&place.segment).cloned().ok_or_else(|| StorageError::Damaged {
            file: self.disk.path_of(&super::segment::segment_name(place.segment)),
            offset: place.offset as u64,
            index: Some(index),
            what: "the segment is missing".into(),
        })
    }

    fn read_entry(&self, id: EntryId, found: Where, with_body: bool) -> Result<Entry, StorageError> {
        match found {
            Where::Memory(command, body) => {
                let body = if with_body { Body::Bytes(body) } else { Body::Absent(body.len() as u32) };
                Ok(Entry { id, command, body })
            }
            Where::Disk(segment, place) => {
                let (command, body) = match segment.read_record(&place, Kind::Entry, id, with_body) {
                    Err(damaged) if with_body => self.read_repaired(&segment, &place, id, damaged)?,
                    other => other?,
                };
                let body = if with_body { Body::Bytes(body) } else { Body::Absent(place.body) };
                Ok(Entry { id, command, body })
            }
        }
    }

    /// An entry whose body is damaged, with an imported body that has the checksums of the damaged one.
    pub fn read_repaired(
        &self,
        segment: &Segment,
        place: &Place,
        id: EntryId,
        damaged: StorageError,
    ) -> Result<(Bytes, Bytes), StorageError> {
        let (command, _) = segment.read_record(place, Kind::Entry, id, false)?;
        let head = segment.read_head(place, Kind::Entry, id.index)?;
        match self.imported(id.index)? {
            Some(body) if body.len() == place.body as usize && broken_block(&head, 0, &body).is_none() => {
                Ok((command, body))
            }
            _ => Err(damaged),
        }
    }

    fn imported(&self, index: u64) -> Result<Option<Bytes>, StorageError> {
        let memory = self.memory.lock();
        let found = match memory.index.body(index) {
            Some(body) if body.kind == Kind::Import => self.find_body(&memory, index, body)?,
            _ => BodyWhere::Nowhere,
        };
        drop(memory);
        match found {
            BodyWhere::Memory(bytes) => Ok(Some(bytes)),
            BodyWhere::Disk(segment, body) => {
                segment.read_body(&body.place, body.kind, index, 0, body.place.body).map(Some)
            }
            BodyWhere::Nowhere => Ok(None),
        }
    }

    pub fn has_body(&self, index: u64) -> bool {
        self.body_length(index).is_some()
    }

    pub fn body_length(&self, index: u64) -> Option<u32> {
        let memory = self.memory.lock();
        let in_log = memory.index.slot(index).map(|slot| slot.place.body).filter(|length| *length > 0);
        in_log.or_else(|| memory.index.body(index).map(|body| body.place.body))
    }

    pub fn read_body(&self, index: u64, offset: u32, length: u32) -> Result<Bytes, StorageError> {
        let found = self.locate_body(index)?;
        let to = offset.saturating_add(length);
        let stored = match &found {
            BodyWhere::Memory(bytes) => bytes.len() as u32,
            BodyWhere::Disk(_, body) => body.place.body,
            BodyWhere::Nowhere => return Err(StorageError::NoBody { index }),
        };
        if to > stored || to - offset != length {
            return Err(
                self.refusal(format!("bytes {offset}+{length} of the body of entry {index}, which has {stored}"))
            );
        }
        match found {
            BodyWhere::Disk(segment, body) => match segment.read_body(&body.place, body.kind, index, offset, to) {
                Err(damaged @ StorageError::Damaged { .. }) => self.explain(index, &segment, body, damaged, offset, to),
                other => other,
            },
            BodyWhere::Memory(bytes) => Ok(bytes.slice(offset as usize..to as usize)),
            BodyWhere::Nowhere => Err(StorageError::NoBody { index }),
        }
    }

    fn locate_body(&self, index: u64) -> Result<BodyWhere, StorageError> {
        let memory = self.memory.lock();
        let body = match memory.index.slot(index) {
            Some(slot) if slot.place.body > 0 => Some(BodyPlace { kind: Kind::Entry, place: slot.place }),
            _ => memory.index.body(index),
        };
        body.map_or(Ok(BodyWhere::Nowhere), |body| self.find_body(&memory, index, body))
    }

    fn find_body(&self, memory: &Memory, index: u64, body: BodyPlace) -> Result<BodyWhere, StorageError> {
        if body.kind == Kind::Entry
            && let Some(cached) = memory.cache.get(index)
        {
            return Ok(BodyWhere::Memory(cached.body.clone()));
        }
        if body.kind == Kind::Import
            && let Some((_, bytes)) = memory.imports.get(&index)
        {
            return Ok(BodyWhere::Memory(bytes.clone()));
        }
        Ok(BodyWhere::Disk(self.segment(memory, &body.place, index)?, body))
    }

    /// A body that does not verify: repaired by an import, or given back to the disk, or damaged.
    fn explain(
        &self,
        index: u64,
        segment: &Segment,
        body: BodyPlace,
        damaged: StorageError,
        from: u32,
        to: u32,
    ) -> Result<Bytes, StorageError> {
        // Without the head of the damaged record, the import's own checksums must do.
        if body.kind == Kind::Entry
            && let Some(bytes) = self.imported(index)?
            && bytes.len() == body.place.body as usize
            && segment
                .read_head(&body.place, Kind::Entry, index)
                .map_or(true, |h| broken_block(&h, 0, &bytes).is_none())
        {
            return Ok(bytes.slice(from as usize..to as usize));
        }
        let gone = !self.has_body(index) || (body.place.body >= LARGE_BODY_BYTES && segment.is_hole(&body.place));
        Err(if gone { StorageError::NoBody { index } } else { damaged })
    }
}
