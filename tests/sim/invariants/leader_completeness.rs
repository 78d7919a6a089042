//! Leader completeness: what was committed in a term is in the logs of the leaders of all later terms.
//!
//! Source: Ongaro and Ousterhout, figure 3. The term in which an entry was committed may be later than its own: a leader commits
//! what earlier ones left. It is at most the term of the node that is seen to have applied it.
//!
//! Whether an entry is committed is seen when somebody applies it, and that may be after a leader was first seen: so a
//! leader is held against what is known when it begins, and what becomes known later against whoever leads then.

use super::Held;
use keelfs::log::{EntryId, Log};
use keelfs::net::NodeId;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct LeaderCompleteness {
    /// With a term by which it was committed, the least that is known.
    committed: BTreeMap<u64, (EntryId, u64)>,
    /// Who leads by its own word, and in which term.
    leading: BTreeMap<NodeId, u64>,
}

impl LeaderCompleteness {
    /// A node of this term has applied it. `true`: this is news.
    pub fn committed(&mut self, id: EntryId, term: u64) -> bool {
        let known = self.committed.get(&id.index).is_some_and(|(_, by)| *by <= term);
        if !known {
            self.committed.insert(id.index, (id, term));
        }
        !known
    }

    pub fn role(&mut self, node: NodeId, leads_in: Option<u64>) {
        match leads_in {
            Some(term) => drop(self.leading.insert(node, term)),
            None => drop(self.leading.remove(&node)),
        }
    }

    /// Those who lead in a later term than this one, with their terms.
    pub fn later_than(&self, term: u64) -> impl Iterator<Item = (NodeId, u64)> {
        self.leading.iter().map(|(node, term)| (*node, *term)).filter(move |(_, later)| *later > term)
    }

    pub fn leads(&self, node: NodeId, term: u64, log: &Log) -> Held {
        let from = log.state().last_purged.map_or(0, |id| id.index + 1);
        let mut due = self.committed.range(from..).filter(|(_, (_, by))| *by < term);
        due.try_for_each(|(index, (id, _))| holds(node, term, *id, log.entry_id(*index)))
    }
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
