//! Replicas that have applied the same entries have equal states.
//!
//! Source: Schneider, "Implementing Fault-Tolerant Services Using the State Machine Approach" (1990): determinism.

use super::Held;
use keelfs::net::NodeId;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct EqualHashes {
    hashes: BTreeMap<u64, (NodeId, u128)>,
}

impl EqualHashes {
    pub fn applied(&mut self, node: NodeId, index: u64, hash: u128) -> Held {
        let (other, first) = *self.hashes.entry(index).or_insert((node, hash));
        match first == hash {
            true => Ok(()),
            false => {
                Err(format!("equal hashes: after entry {index} node {other} has {first:032x}, node {node} {hash:032x}"))
            }
        }
    }
}
