//! Nothing expires early, and what has expired stays away; and in the end, what is due is gone.
//!
//! Source: the promise of `fs::expiry`. The first two are seen by the clients that own the files; here is what they wrote
//! down, and the third.

use super::Held;
use crate::diary::Diary;
use crate::os;
use keelfs::fs::{Answer, Ino, Query};
use keelfs::net::NodeId;
use keelfs::raft::Replica;

/// Elections, pauses and drift: cluster time stands still without a leader, for as long as the faults lasted.
const LATE_MS: u64 = 90_000;

pub fn holds(diary: &Diary, replicas: &[(NodeId, Replica)]) -> Held {
    let (wrong, mut expiring) = diary.with(|pages| (pages.seen_wrong.first().cloned(), pages.expiring.clone()));
    if let Some(wrong) = wrong {
        return Err(format!("a client saw what must not be: {wrong}"));
    }
    expiring.retain(|_, earliest| *earliest + LATE_MS < os::now_ms());
    for (node, replica) in replicas {
        let query = Query::ReadDirectory { ino: Ino::ROOT, after: 0, limit: u32::MAX };
        let Ok(Answer::Directory { entries, .. }) = replica.state().answer(&query) else { continue };
        if let Some(late) = entries.iter().find(|entry| expiring.contains_key(&entry.name.to_string())) {
            return Err(format!("expiry: {} is still there on node {node}", late.name));
        }
    }
    Ok(())
}
