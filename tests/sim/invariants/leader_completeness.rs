//! Leader completeness: what was committed in a term is in the logs of the leaders of all later terms.
//!
//! Source: Ongaro and Ousterhout, figure 3. openraft's term is the pair of term and node: within one number several nodes may
//! lead one after the other, and the later ones must have what the earlier ones committed.
//!
//! Whether an entry is committed is seen when somebody applies it, and that may be after a leader was first seen: so a
//! leader is held against what is known when it begins, and what becomes known later against whoever leads then.

use super::Held;
use keelfs::log::{EntryId, Log};
use keelfs::net::NodeId;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct LeaderCompleteness {
    committed: BTreeMap<u64, EntryId>,
    /// Who leads by its own word, and in which term.
    leading: BTreeMap<NodeId, u64>,
}

impl LeaderCompleteness {
    /// `true`: this is news.
    pub fn committed(&mut self, id: EntryId) -> bool {
        self.committed.insert(id.index, id).is_none()
    }

    pub fn role(&mut self, node: NodeId, leads_in: Option<u64>) {
        match leads_in {
            Some(term) => drop(self.leading.insert(node, term)),
            None => drop(self.leading.remove(&node)),
        }
    }

    /// Those who lead in a later term than the one of this entry, with their terms.
    pub fn must_hold(&self, id: EntryId) -> impl Iterator<Item = (NodeId, u64)> {
        let leading = self.leading.iter().map(|(node, term)| (*node, *term));
        leading.filter(move |(node, term)| is_earlier(id, *node, *term))
    }

    pub fn leads(&self, node: NodeId, term: u64, log: &Log) -> Held {
        let from = log.state().last_purged.map_or(0, |id| id.index + 1);
        let mut due = self.committed.range(from..).filter(|(_, id)| is_earlier(**id, node, term));
        due.try_for_each(|(index, id)| holds(node, term, *id, log.entry_id(*index)))
    }
}

fn is_earlier(id: EntryId, node: NodeId, term: u64) -> bool {
    (id.term, id.node) < (term, node)
}

/// `found`: what the log of that leader has in its place.
pub fn holds(node: NodeId, term: u64, committed: EntryId, found: Option<EntryId>) -> Held {
    match found == Some(committed) {
        true => Ok(()),
        false => Err(format!(
            "leader completeness: node {node} leads in term {term} with {found:?} where {committed:?} is committed"
        )),
    }
}
