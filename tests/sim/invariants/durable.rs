//! What a log said was durable is there when it is opened again.
//!
//! Source: Ongaro's thesis, section 3.8. A node that answers for entries that it then loses breaks every other property,
//! but maybe not soon; here it is seen at once.

use super::Held;
use keelfs::log::{EntryId, Log};
use keelfs::net::NodeId;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Durable {
    nodes: BTreeMap<NodeId, BTreeMap<u64, EntryId>>,
}

impl Durable {
    /// The log was cut in front of `from`, and perhaps goes on with others: no promise is left about these.
    pub fn truncated(&mut self, node: NodeId, from: u64) {
        self.nodes.entry(node).or_default().split_off(&from);
    }

    pub fn synced(&mut self, node: NodeId, log: &Log) {
        let durable = self.nodes.entry(node).or_default();
        let state = log.state();
        let first = state.last_purged.map_or(0, |id| id.index + 1);
        *durable = durable.split_off(&first);
        let next = durable.last_key_value().map_or(first, |(index, _)| index + 1);
        let end = state.durable.map_or(0, |id| id.index + 1);
        durable.extend((next..end).filter_map(|index| Some((index, log.entry_id(index)?))));
    }

    pub fn opened(&self, node: NodeId, log: &Log) -> Held {
        let Some(durable) = self.nodes.get(&node) else { return Ok(()) };
        let first = log.state().last_purged.map_or(0, |id| id.index + 1);
        match durable.range(first..).find(|(index, id)| log.entry_id(**index) != Some(**id)) {
            None => Ok(()),
            Some((index, id)) => Err(format!(
                "durability: node {node} had {id:?} on disk, and comes back with {:?}",
                log.entry_id(*index)
            )),
        }
    }
}
