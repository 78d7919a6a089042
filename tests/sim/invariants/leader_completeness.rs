//! Leader completeness: what was committed in a term is in the logs of the leaders of all later terms.
//!
//! Source: Ongaro and Ousterhout, figure 3.

use super::Held;
use keelfs::log::{EntryId, Log};
use keelfs::net::NodeId;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct LeaderCompleteness {
    committed: BTreeMap<u64, EntryId>,
}

impl LeaderCompleteness {
    pub fn committed(&mut self, id: EntryId) {
        self.committed.insert(id.index, id);
    }

    pub fn leads(&self, node: NodeId, term: u64, log: &Log) -> Held {
        let from = log.state().last_purged.map_or(0, |id| id.index + 1);
        let missing =
            self.committed.range(from..).find(|(index, id)| id.term < term && log.entry_id(**index) != Some(**id));
        match missing {
            None => Ok(()),
            Some((index, id)) => Err(format!(
                "leader completeness: node {node} leads in term {term} with {:?} where {id:?} is committed",
                log.entry_id(*index)
            )),
        }
    }
}
