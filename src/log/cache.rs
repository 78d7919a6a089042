//! The bytes of recent entries. Queued ones live only here, so they stay; durable ones leave, oldest first, when the bound
//! is passed.

use std::collections::BTreeMap;

use bytes::Bytes;

/// What an entry costs beside its bytes: its place in the map, and the two handles. Measured with entries of 170 bytes.
const ENTRY_BYTES: usize = 200;

pub struct Cached {
    /// Which append this is: an entry that replaces a truncated one of the same index has another serial.
    pub serial: u64,
    pub command: Bytes,
    pub body: Bytes,
    pub durable: bool,
}

impl Cached {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.command.len() + self.body.len()
    }
}

/// Cost: a cached slice keeps alive the whole buffer that it was cut from, which the bound does not see.
pub struct Cache {
    entries: BTreeMap<u64, Cached>,
    bytes: usize,
    bytes_max: usize,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache { entries: BTreeMap::new(), bytes: 0, bytes_max }
    }

    pub fn insert(&mut self, index: u64, cached: Cached) {
        self.bytes += cached.bytes();
        if let Some(old) = self.entries.insert(index, cached) {
            self.bytes -= old.bytes();
        }
        self.evict();
    }

    pub fn get(&self, index: u64) -> Option<&Cached> {
        self.entries.get(&index)
    }

    /// The entry is on disk. False: that append is no longer in the log.
    pub fn set_durable(&mut self, index: u64, serial: u64) -> bool {
        match self.entries.get_mut(&index) {
            Some(cached) if cached.serial == serial => {
                cached.durable = true;
                true
            }
            _ => false,
        }
    }

    /// Forget every entry from `first` on, queued or not.
    pub fn remove_from(&mut self, first: u64) {
        let removed = self.entries.split_off(&first);
        self.bytes -= removed.values().map(Cached::bytes).sum::<usize>();
    }

    /// Keep the bound, as far as queued entries allow.
    pub fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            match self.entries.first_entry() {
                Some(oldest) if oldest.get().durable => self.bytes -= oldest.remove().bytes(),
                _ => return,
            }
        }
    }
}
