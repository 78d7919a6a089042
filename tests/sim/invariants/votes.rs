//! A vote that was durable never regresses, whatever crashes.
//!
//! Source: Ongaro's thesis, section 3.8: the current term and the vote are persistent state, updated on stable storage
//! before a message is answered.

use super::Held;
use keelfs::log::Log;
use keelfs::net::NodeId;
use keelfs::raft::{StoredVote, decode_vote};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Votes {
    durable: BTreeMap<NodeId, StoredVote>,
}

fn vote(node: NodeId, log: &Log) -> Result<Option<StoredVote>, String> {
    let Some(bytes) = log.vote() else { return Ok(None) };
    decode_vote(&bytes).map(Some).map_err(|e| format!("votes: that of node {node} cannot be read: {e}"))
}

impl Votes {
    pub fn durable(&mut self, node: NodeId, log: &Log) -> Held {
        if let Some(vote) = vote(node, log)? {
            self.durable.insert(node, vote);
        }
        Ok(())
    }

    pub fn opened(&self, node: NodeId, log: &Log) -> Held {
        let (promised, found) = (self.durable.get(&node).copied(), vote(node, log)?);
        match found >= promised {
            true => Ok(()),
            false => Err(format!("votes: node {node} had voted {promised:?}, and comes back with {found:?}")),
        }
    }
}
