//! What clients do, and how to tell from the history and the final tree whether it was right.

mod append;
mod create;
mod expiry;
mod large;
mod lock;
mod names;
mod register;
mod token;
mod tree;

use crate::client::Player;
use crate::finals::Finals;
use crate::history::{History, Op, Outcome};
use std::io;
use std::path::Path;

pub use expiry::{by_clock as expiries_by_clock, latest as latest_expiry};
pub use large::pattern;
pub use lock::generation;
pub use register::spelled;
pub use tree::look;

pub struct Workload {
    pub name: &'static str,
    /// Make what it needs, on a mount, before any client begins. Everything of it lies in a directory of its name.
    pub prepare: fn(&Path) -> io::Result<()>,
    pub play: fn(&mut Player),
    /// What is wrong, in words.
    pub check: fn(&History, &Finals) -> Vec<String>,
}

/// Files are used for an epoch of some seconds and then left alone for a while: few calls on each keep judging short.
pub const EPOCHS: u64 = 8;

pub const ALL: &[Workload] = &[
    Workload { name: "register", prepare: register::prepare, play: register::play, check: register::check },
    Workload { name: "append", prepare: append::prepare, play: append::play, check: append::check },
    Workload { name: "create", prepare: create::prepare, play: create::play, check: create::check },
    Workload { name: "token", prepare: token::prepare, play: token::play, check: token::check },
    Workload { name: "lock", prepare: lock::prepare, play: lock::play, check: lock::check },
    Workload { name: "expiry", prepare: only_directory, play: expiry::play, check: expiry::check },
    Workload { name: "names", prepare: only_directory, play: names::play, check: nothing_more },
    Workload { name: "tree", prepare: only_directory, play: tree::play, check: tree::check },
    Workload { name: "large", prepare: only_directory, play: large::play, check: large::check },
];

fn only_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Its clients see all that can be wrong.
fn nothing_more(_: &History, _: &Finals) -> Vec<String> {
    Vec::new()
}

/// Errors that say nothing but that the cluster could not be reached, or not in time; `also` what else a run may meet.
pub fn unexpected(op: &Op, also: &[&str]) -> Option<String> {
    let name = match &op.outcome {
        Outcome::Ok(_) => return None,
        Outcome::Failed(name) | Outcome::Unknown(name) => name,
    };
    let foreseen = ["ETIMEDOUT", "EROFS", "no end"].contains(&name.as_str()) || also.contains(&name.as_str());
    (!foreseen).then(|| format!("{}: client {}: {:?} failed with {name}", op.workload, op.client, op.call))
}

/// Things that happened in this order must not be such that one had ended before an earlier one began.
pub fn against_time<'a>(in_order: impl IntoIterator<Item = &'a Op>) -> Option<(&'a Op, &'a Op)> {
    let mut latest: Option<&Op> = None;
    for op in in_order {
        if let Some(before) = latest.filter(|before| op.ended() < before.begin) {
            return Some((before, op));
        }
        if latest.is_none_or(|before| op.begin > before.begin) {
            latest = Some(op);
        }
    }
    None
}
