//! The last entries of the log in memory, decoded.
//!
//! An entry is read five times right after it was appended: once to apply it, and once for each peer that it is sent to.
//! From here that costs a few reference counts instead of a disk read, a checksum and a decoding each. Clones share bodies
//! and requests with what openraft and the log's writer hold anyway.

use super::types::{Entry, body_length};
use openraft::EntryPayload;
use std::collections::VecDeque;

/// Bytes of commands and bodies that are kept.
const TAIL_BYTES_MAX: usize = 16 << 20;
/// Entries that are kept.
const TAIL_ENTRIES_MAX: usize = 8192;

/// Contiguous entries, the last of which is the last of the log.
#[derive(Default)]
pub struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    pub fn push(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
            *self = Tail::default();
        }
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        while self.bytes > TAIL_BYTES_MAX || self.entries.len() > TAIL_ENTRIES_MAX {
            self.bytes -= self.entries.pop_front().map_or(0, |entry| weight(&entry));
        }
    }

    /// Forget everything from `index` on.
    pub fn truncate_from(&mut self, index: u64) {
        while let Some(last) = self.entries.pop_back_if(|last| last.log_id.index >= index) {
            self.bytes -= weight(&last);
        }
    }

    /// Entries from `from` up to, not including, `to`, stopping before `bytes_max` is passed but after at least one;
    /// `None` unless `from` is here.
    pub fn get(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.log_id.index;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        let count = usize::try_from(to.checked_sub(from)?).ok()?;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += weight(entry);
            is_first || bytes <= bytes_max
        };
        let found: Vec<Entry> = self.entries.iter().skip(skip).take(count).take_while(fits).cloned().collect();
        (!found.is_empty()).then_some(found)
    }
}

/// Bytes of an entry, as limits count them; never zero.
pub fn weight(entry: &Entry) -> usize {
    const ENTRY_BYTES: usize = 64;
    ENTRY_BYTES
        + match &entry.payload {
            EntryPayload::Normal(proposal) => proposal.command.len() + body_length(&proposal.body) as usize,
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::EntryId;
    use crate::raft::types::log_id;

    fn blank(index: u64) -> Entry {
        Entry { log_id: log_id(EntryId { term: 1, node: 1, index }), payload: EntryPayload::Blank }
    }

    fn indexes(found: Option<Vec<Entry>>) -> Option<Vec<u64>> {
        found.map(|entries| entries.iter().map(|entry| entry.log_id.index).collect())
    }

    #[test]
    fn it_holds_the_end_of_the_log_and_nothing_else() {
        let mut tail = Tail::default();
        (10..20).for_each(|index| tail.push(blank(index)));
        assert_eq!(indexes(tail.get(12, 15, usize::MAX)), Some(vec![12, 13, 14]));
        assert_eq!(indexes(tail.get(12, 15, 1)), Some(vec![12]), "at least one");
        assert_eq!(indexes(tail.get(12, 15, 2 * weight(&blank(0)))), Some(vec![12, 13]));
        assert_eq!(indexes(tail.get(9, 15, usize::MAX)), None, "before the first");
        assert_eq!(indexes(tail.get(20, 25, usize::MAX)), None, "behind the last");
        tail.truncate_from(15);
        assert_eq!(indexes(tail.get(14, 20, usize::MAX)), Some(vec![14]));
        // Behind an installed snapshot the log goes on elsewhere.
        tail.push(blank(100));
        assert_eq!(indexes(tail.get(14, 20, usize::MAX)), None);
        assert_eq!(indexes(tail.get(100, 101, usize::MAX)), Some(vec![100]));
        tail.truncate_from(0);
        assert_eq!(tail.bytes, 0);
    }

    #[test]
    fn it_is_bounded() {
        let mut tail = Tail::default();
        (0..2 * TAIL_ENTRIES_MAX as u64).for_each(|index| tail.push(blank(index)));
        assert_eq!(tail.entries.len(), TAIL_ENTRIES_MAX);
        assert_eq!(tail.bytes, TAIL_ENTRIES_MAX * weight(&blank(0)));
    }
}
