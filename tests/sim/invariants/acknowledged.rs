//! What was acknowledged is never lost: the entry of every change that a client was told of is in the committed log, with
//! the bytes that the client sent.
//!
//! Source: Ongaro's thesis, section 3.6 (committed entries are durable) and the promise of `volume`.

use super::Held;
use super::state_machine_safety::StateMachineSafety;
use crate::diary::{Acknowledged, Diary};

pub fn hold(diary: &Diary, committed: &StateMachineSafety) -> Held {
    let all = diary.with(|pages| pages.acknowledged.clone());
    for Acknowledged { client, index, body_sum } in all {
        match committed.at(index) {
            Some(record) if record.body_sum == body_sum => {}
            found => {
                return Err(format!(
                    "acknowledged: client {client} was told that entry {index} holds its change; there is {found:?}"
                ));
            }
        }
    }
    Ok(())
}
