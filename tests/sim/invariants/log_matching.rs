//! Log matching: if two logs hold an entry of the same index and term, these are the same, and so is everything before.
//!
//! Source: Ongaro and Ousterhout, figure 3. It is held to inductively: the same id means the same bytes, and the same id
//! in front.

use super::{Held, Record};
use keelfs::log::EntryId;
use keelfs::net::NodeId;
use std::collections::HashMap;

#[derive(Default)]
pub struct LogMatching {
    seen: HashMap<EntryId, Seen>,
}

struct Seen {
    record: Record,
    /// `None`: purged where it was looked at.
    before: Option<EntryId>,
    node: NodeId,
}

impl LogMatching {
    pub fn holds(&mut self, node: NodeId, record: Record, before: Option<EntryId>) -> Held {
        let seen = self.seen.entry(record.id).or_insert(Seen { record, before, node });
        let other = seen.node;
        if seen.record != record {
            return Err(format!("log matching: nodes {other} and {node} hold two contents of {:?}", record.id));
        }
        match (seen.before, before) {
            (Some(one), Some(two)) if one != two => Err(format!(
                "log matching: in front of {:?} node {other} has {one:?} and node {node} has {two:?}",
                record.id
            )),
            _ => {
                seen.before = seen.before.or(before);
                Ok(())
            }
        }
    }
}
