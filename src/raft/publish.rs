//! The newest state for all to read: a root that is swapped after each applied batch, and never waited for.
//!
//! Order: the root is stored, then the applied index announced, then the proposers are answered. Whoever has seen an index
//! announced, or the answer to a command, therefore finds a root at or above it.

use crate::fs::{LogIndex, State};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// How many of the last state hashes are kept for comparison with other replicas.
const HASHES_KEPT: usize = 65_536;

pub struct Published {
    root: ArcSwap<State>,
    applied: watch::Sender<LogIndex>,
    hashes: Mutex<Hashes>,
}

/// The state's hash after each of the last entries: `ring[i]` belongs to entry `first + i`.
#[derive(Default)]
struct Hashes {
    first: u64,
    ring: VecDeque<u128>,
}

impl Published {
    pub fn new(state: State) -> Published {
        let applied = state.applied();
        let hashes = Hashes { first: applied.0, ring: VecDeque::from([state.hash()]) };
        Published {
            root: ArcSwap::from_pointee(state),
            applied: watch::Sender::new(applied),
            hashes: Mutex::new(hashes),
        }
    }

    pub fn root(&self) -> Arc<State> {
        self.root.load_full()
    }

    pub fn applied(&self) -> LogIndex {
        *self.applied.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<LogIndex> {
        self.applied.subscribe()
    }

    /// Make `state` the newest root. `hashes` are those after each entry of the batch that led to it, in order.
    pub fn publish(&self, state: &State, hashes: &[(LogIndex, u128)]) {
        self.hashes.lock().extend(hashes);
        self.root.store(Arc::new(state.clone()));
        self.applied.send_replace(state.applied());
    }

    /// The hash right after entry `index`, if it is one of the last that were applied here.
    pub fn hash_at(&self, index: LogIndex) -> Option<u128> {
        let hashes = self.hashes.lock();
        hashes.ring.get(usize::try_from(index.0.checked_sub(hashes.first)?).ok()?).copied()
    }

    /// Wait until `index` has been applied; `false` if the deadline passed first.
    pub async fn wait(&self, index: LogIndex, deadline: Instant) -> bool {
        let mut applied = self.watch();
        let reached = applied.wait_for(|applied| *applied >= index);
        matches!(tokio::time::timeout_at(deadline.into(), reached).await, Ok(Ok(_)))
    }
}

impl Hashes {
    /// A jump (an installed snapshot) starts the ring anew.
    fn extend(&mut self, hashes: &[(LogIndex, u128)]) {
        for (index, hash) in hashes {
            if self.first + self.ring.len() as u64 != index.0 {
                *self = Hashes { first: index.0, ring: VecDeque::new() };
            }
            self.ring.push_back(*hash);
            if self.ring.len() > HASHES_KEPT {
                self.ring.pop_front();
                self.first += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hashes_are_kept_by_index_and_a_jump_starts_anew() {
        let mut state = State::new();
        let published = Published::new(state.clone());
        let mut hashes = Vec::new();
        for index in 1..=10 {
            state.skip(LogIndex(index));
            hashes.push((LogIndex(index), u128::from(index) << 64));
        }
        published.publish(&state, &hashes);
        assert_eq!(published.hash_at(LogIndex(7)), Some(7 << 64));
        assert_eq!(published.hash_at(LogIndex(11)), None);
        assert!(published.wait(LogIndex(10), Instant::now()).await);
        assert!(!published.wait(LogIndex(11), Instant::now()).await);
        state.skip(LogIndex(50));
        published.publish(&state, &[(LogIndex(50), 1)]);
        assert_eq!((published.hash_at(LogIndex(7)), published.hash_at(LogIndex(50))), (None, Some(1)));
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut hashes = Hashes::default();
        let many = HASHES_KEPT as u64 + 5;
        (0..many).for_each(|index| hashes.extend(&[(LogIndex(index), index.into())]));
        assert_eq!((hashes.first, hashes.ring.len()), (5, HASHES_KEPT));
        assert_eq!(hashes.ring.back(), Some(&u128::from(many - 1)));
    }
}
