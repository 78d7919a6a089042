//! A persistent ordered map that knows the hash of its contents.
//!
//! The hash is the wrapping sum of the hashes of the items, so it does not depend on the order in which they came, and an
//! insertion or removal costs one or two item hashes. (The idea is that of incremental multiset hashing by addition,
//! Bellare and Micciancio 1997, without its defence against an adversary: replicas err, they do not attack each other.)
//!
//! Cloning shares everything; a clone is never changed through another.

use super::canon::hash_of;
use imbl::OrdMap;
use imbl::ordmap::{Iter, RangedIter};
use imbl::shared_ptr::DefaultSharedPtr;
use serde::Serialize;
use std::ops::RangeBounds;

/// I11 The sum is that of the items that are there.
#[derive(Clone)]
pub(super) struct Summed<K, V> {
    map: OrdMap<K, V>,
    sum: u128,
}

impl<K, V> Default for Summed<K, V> {
    fn default() -> Self {
        Summed { map: OrdMap::new(), sum: 0 }
    }
}

impl<K: Ord + Clone + Serialize, V: Clone + Serialize> Summed<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    /// Put an item in; returns the value that it replaced.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.sum = self.sum.wrapping_add(hash_of(&(&key, &value)));
        let old = self.map.insert(key.clone(), value);
        if let Some(old) = &old {
            self.sum = self.sum.wrapping_sub(hash_of(&(&key, old)));
        }
        old
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.map.remove(key)?;
        self.sum = self.sum.wrapping_sub(hash_of(&(key, &old)));
        Some(old)
    }

    pub(super) fn fill(&mut self, items: impl Iterator<Item = (K, V)>) {
        for (key, value) in items {
            self.insert(key, value);
        }
    }

    pub(super) fn iter(&self) -> Iter<'_, K, V, DefaultSharedPtr> {
        self.map.iter()
    }

    /// The items of a range of keys, in order. The range's start must not be behind its end.
    pub(super) fn range<R: RangeBounds<K>>(&self, range: R) -> RangedIter<'_, K, V, DefaultSharedPtr> {
        self.map.range(range)
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// What of this map goes into the hash of the state.
    pub(super) fn digest(&self) -> (u64, u128) {
        (self.map.len() as u64, self.sum)
    }

    /// Is the sum that of the items? O(n).
    pub(super) fn is_sound(&self) -> bool {
        self.sum == self.map.iter().fold(0, |sum, item| sum.wrapping_add(hash_of(&item)))
    }
}
