//! State machine safety, and one content per index: what a node has applied at an index, no other applies otherwise, nor
//! does it itself after a restart.
//!
//! Source: Ongaro and Ousterhout, figure 3; the content is compared too, not only the term.

use super::{Held, Record};
use keelfs::net::NodeId;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct StateMachineSafety {
    applied: BTreeMap<u64, (NodeId, Record)>,
}

impl StateMachineSafety {
    pub fn applied(&mut self, node: NodeId, record: Record) -> Held {
        let (other, first) = *self.applied.entry(record.id.index).or_insert((node, record));
        match first == record {
            true => Ok(()),
            false => Err(format!(
                "state machine safety: node {other} has applied {first:?}, and node {node} applies {record:?}"
            )),
        }
    }

    pub fn at(&self, index: u64) -> Option<Record> {
        self.applied.get(&index).map(|(_, record)| *record)
    }

    pub fn entries(&self) -> usize {
        self.applied.len()
    }
}
