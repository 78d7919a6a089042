//! Nothing expires early, and what has expired stays away; and what is due goes: a run does not end before.
//!
//! Source: the promise of `fs::expiry`. The first two are seen by the clients that own the files; here is what they wrote
//! down, and the third.

use super::Held;
use crate::diary::Diary;
use crate::os;
use keelfs::fs::{Answer, Ino, Query};
use keelfs::net::NodeId;
use keelfs::raft::Replica;

pub fn holds(diary: &Diary) -> Held {
    match diary.with(|pages| pages.seen_wrong.first().cloned()) {
        Some(wrong) => Err(format!("a client saw what must not be: {wrong}")),
        None => Ok(()),
    }
}

/// A file that is due and still there.
pub fn late(diary: &Diary, replicas: &[(NodeId, Replica)]) -> Option<String> {
    let mut due = diary.with(|pages| pages.expiring.clone());
    due.retain(|_, earliest| *earliest <= os::now_ms());
    replicas.iter().find_map(|(node, replica)| {
        let query = Query::ReadDirectory { ino: Ino::ROOT, after: 0, limit: u32::MAX };
        let Ok(Answer::Directory { entries, .. }) = replica.state().answer(&query) else { return None };
        let late = entries.iter().find(|entry| due.contains_key(&entry.name.to_string()))?;
        Some(format!("{} has been due and is still there on node {node}", late.name))
    })
}
