//! Where every entry and every body is: the log's memory.
//!
//! An entry of the Raft log costs 40 bytes; below the purge point only indexes with a body cost anything. A body that
//! was imported from a peer is kept apart from the entry of that index, because a later truncation may take the entry.

use std::collections::{BTreeMap, VecDeque};

use super::EntryId;
use super::format::{Kind, Place};

/// One entry of the Raft log.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub term: u64,
    pub node: u64,
    /// Bytes of all entries up to and including this one, counted from the opening.
    sum: u64,
    pub place: Place,
}

/// A body below the purge point or imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyPlace {
    pub kind: Kind,
    pub place: Place,
}

/// What is live in a segment below the purge point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    pub bodies: u64,
    pub bytes: u64,
}

/// I1  `slots[i]` is entry `first + i`; the log has no holes.
/// I2  `first` is behind `purged`.
/// I3  An unwritten place belongs to a queued record, whose bytes are in the cache or among the queued imports.
/// I4  `bodies_in[s]` counts the written bodies of segment `s` in `bodies`, and the bytes of their records.
#[derive(Default)]
pub struct Index {
    pub purged: Option<EntryId>,
    first: u64,
    slots: VecDeque<Slot>,
    bodies: BTreeMap<u64, BodyPlace>,
    bodies_in: BTreeMap<u32, Live>,
    /// Written bodies that nothing can ask for any more, not yet given back.
    pub dead: Vec<Place>,
    sum: u64,
}

impl Index {
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The index that the next entry must have.
    pub fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    #[cfg(test)]
    pub fn begin_at(&mut self, index: u64) {
        assert!(self.slots.is_empty() && self.purged.is_none());
        self.first = index;
    }

    pub fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// The id of an entry of the log, or of the purge point.
    pub fn id(&self, index: u64) -> Option<EntryId> {
        match self.slot(index) {
            Some(slot) => Some(EntryId { term: slot.term, node: slot.node, index }),
            None => self.purged.filter(|purged| purged.index == index),
        }
    }

    /// The last entry, or the purge point if there is none.
    pub fn last(&self) -> Option<EntryId> {
        self.next().checked_sub(1).and_then(|index| self.id(index))
    }

    pub fn push(&mut self, id: EntryId, place: Place) {
        self.sum += place.command as u64 + place.body as u64 + place.head_bytes() as u64;
        self.slots.push_back(Slot { term: id.term, node: id.node, sum: self.sum, place });
    }

    /// Drop the entries from `next` on.
    pub fn truncate(&mut self, next: u64) {
        let keep = next.saturating_sub(self.first) as usize;
        for slot in self.slots.drain(keep.min(self.slots.len())..) {
            if slot.place.is_written() && slot.place.body > 0 {
                self.dead.push(slot.place);
            }
        }
    }

    /// Entries up to `upto` leave the log; their bodies stay.
    pub fn purge(&mut self, upto: EntryId) {
        while self.first <= upto.index
            && let Some(slot) = self.slots.pop_front()
        {
            self.keep_body(self.first, slot.place);
            self.first += 1;
        }
        self.first = self.first.max(upto.index + 1);
        self.purged = Some(upto);
    }

    /// An imported body of that index is the committed one, and may be the repair of this one: it wins.
    fn keep_body(&mut self, index: u64, place: Place) {
        match place.body {
            0 => {}
            _ if self.bodies.contains_key(&index) => self.bury(place),
            _ => self.set_body(index, BodyPlace { kind: Kind::Entry, place }),
        }
    }

    fn bury(&mut self, place: Place) {
        if place.is_written() {
            self.dead.push(place);
        }
    }

    pub fn body(&self, index: u64) -> Option<BodyPlace> {
        self.bodies.get(&index).copied()
    }

    /// At most `count` bodies from `from` on, below `to`, in order.
    pub fn bodies(&self, from: u64, to: u64, count: usize) -> Vec<(u64, BodyPlace)> {
        match from < to {
            true => self.bodies.range(from..to).take(count).map(|(index, body)| (*index, *body)).collect(),
            false => Vec::new(),
        }
    }

    pub fn set_body(&mut self, index: u64, body: BodyPlace) {
        self.drop_body(index);
        self.count(body.place, 1);
        self.bodies.insert(index, body);
    }

    /// Forget a body; its bytes are dead.
    pub fn drop_body(&mut self, index: u64) {
        if let Some(old) = self.take_body(index) {
            self.bury(old);
        }
    }

    /// Forget a body; where its bytes are is the caller's to give back.
    pub fn take_body(&mut self, index: u64) -> Option<Place> {
        let old = self.bodies.remove(&index)?;
        self.count(old.place, -1);
        Some(old.place)
    }

    fn count(&mut self, place: Place, change: i64) {
        if place.is_written() {
            let live = self.bodies_in.entry(place.segment).or_default();
            live.bodies = live.bodies.saturating_add_signed(change);
            live.bytes = live.bytes.saturating_add_signed(change * (place.end() - place.offset as u64) as i64);
            if live.bodies == 0 {
                self.bodies_in.remove(&place.segment);
            }
        }
    }

    /// What is live in this segment; nothing is an empty answer.
    pub fn live_in(&self, segment: u32) -> Option<Live> {
        self.bodies_in.get(&segment).copied()
    }

    /// The entry of this index, still in the log or purged meanwhile, has been written at `place`.
    pub fn entry_written(&mut self, index: u64, place: Place) {
        let first = self.first;
        if index >= first {
            // A place that it had before held a damaged copy.
            if let Some(slot) = self.slots.get_mut((index - first) as usize) {
                let before = std::mem::replace(&mut slot.place, place);
                if before.body > 0 {
                    self.bury(before);
                }
            }
        } else if place.body > 0 {
            match self.body(index) {
                Some(body) if body.kind == Kind::Entry => self.set_body(index, BodyPlace { kind: Kind::Entry, place }),
                _ => self.bury(place),
            }
        }
    }

    /// The first segment that holds an entry of the log. `None`: no written one. O(n): a mended entry lies behind those
    /// that follow it.
    pub fn first_segment(&self) -> Option<u32> {
        self.slots.iter().map(|slot| slot.place.segment).filter(|segment| *segment != 0).min()
    }

    /// The smallest index from `from` on of which anything is stored.
    pub fn next_stored(&self, from: u64) -> Option<u64> {
        let slot = Some(from.max(self.first)).filter(|index| *index < self.next());
        let body = self.bodies.range(from..).next().map(|(index, _)| *index);
        slot.into_iter().chain(body).min()
    }

    /// Bytes of the entries behind `index`.
    pub fn bytes_since(&self, index: u64) -> u64 {
        let before = match (self.slot(index), self.slots.front()) {
            (Some(slot), _) => slot.sum,
            (None, Some(front)) if index < self.first => {
                front.sum - front.place.command as u64 - front.place.body as u64 - front.place.head_bytes() as u64
            }
            _ => return 0,
        };
        self.slots.back().map_or(0, |last| last.sum - before)
    }
}
