//! Which inodes this volume holds open, so that a file without names lives as long as someone uses it.
//!
//! The cluster asks each session about each orphan; the answer "I do not hold it" is final, because with the last such
//! answer the space is freed. So the answer is decided under the same lock as opening: an inode that has been answered for
//! can no longer be opened here.

use crate::fs::Ino;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Answers that are remembered. An open that races with an answer does so within moments of it; older ones may go.
const ANSWERED_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct Opens {
    counts: BTreeMap<Ino, u32>,
    answered: BTreeSet<Ino>,
    oldest_answers: VecDeque<Ino>,
}

impl Opens {
    /// Count an open. `false`: we have said that we do not hold this orphan, so it must count as gone.
    pub(super) fn opened(&mut self, ino: Ino) -> bool {
        if self.answered.contains(&ino) {
            return false;
        }
        *self.counts.entry(ino).or_default() += 1;
        true
    }

    pub(super) fn closed(&mut self, ino: Ino) {
        if let Some(count) = self.counts.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&ino);
            }
        }
    }

    /// Those of the orphans that we do not hold; from now on they cannot be opened here.
    pub(super) fn answer(&mut self, orphans: Vec<Ino>) -> Vec<Ino> {
        let closed: Vec<Ino> = orphans.into_iter().filter(|ino| !self.counts.contains_key(ino)).collect();
        for ino in &closed {
            if self.answered.insert(*ino) {
                self.oldest_answers.push_back(*ino);
            }
        }
        while self.oldest_answers.len() > ANSWERED_MAX {
            if let Some(oldest) = self.oldest_answers.pop_front() {
                self.answered.remove(&oldest);
            }
        }
        closed
    }

    /// Inodes that are open now.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_is_kept_while_open_and_cannot_be_opened_after_the_answer() {
        let (mut opens, held, free) = (Opens::default(), Ino(5), Ino(6));
        assert!(opens.opened(held) && opens.opened(held) && opens.opened(free));
        opens.closed(held);
        opens.closed(free);
        opens.closed(free);
        assert_eq!(opens.answer(vec![held, free]), [free]);
        assert!(!opens.opened(free), "its space may be freed at any moment");
        assert!(opens.opened(held));
        opens.closed(held);
        opens.closed(held);
        assert_eq!((opens.answer(vec![held]), opens.len()), (vec![held], 0));
    }
}
