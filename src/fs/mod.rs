//! The file system as a pure, deterministic state machine.
//!
//! Whoever reads this room alone can judge whether replicas can diverge: [`State::apply`] is the only way to change a
//! [`State`], and it depends on nothing but the state, the stamp and the request.
//!
//! | file | holds |
//! |---|---|
//! | `types`, `command`, `reply`, `query` | the language: nouns, changes, what they return, questions |
//! | `state` | the data with its numbered invariants, and the few functions that change an item of it |
//! | `summed`, `canon`, `derived` | maps that know their hash; canonical bytes; indexes that are computed, not replicated |
//! | `apply`, `sessions` | one entry: stamps, exactly-once, dispatch; sessions from first to last |
//! | `names`, `rename`, `orphans` | directories; what becomes of an inode whose last name has gone |
//! | `contents`, `ranges`, `cas` | extents; allocation and sharing of ranges; whole-file replacement by version |
//! | `attributes`, `xattrs`, `acl`, `expiry` | what is written on an inode |
//! | `nodes` | the nodes of the cluster: their numbers, their starts |
//! | `locks`, `locking` | one inode's locks; their place in the state |
//! | `answers`, `virtuals`, `words` | queries; attributes that are computed; the grammar of their values |
//! | `export`, `check` | the state as bounded pieces, and back; the invariants, executed |
//!
//! Absent on purpose: IO, clocks, randomness, async, hash-map iteration, floats, panics on any input. An entry that
//! panicked would end every replica, and again after each restart; hence the lints below.
//!
//! Decision: a command is judged wholly before it changes anything, so a refused command leaves the tree as it was.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod acl;
mod answers;
mod apply;
mod attributes;
mod canon;
mod cas;
mod check;
mod command;
mod contents;
mod derived;
mod expiry;
mod export;
mod inode;
mod locking;
mod locks;
mod names;
mod nodes;
mod orphans;
mod query;
mod ranges;
mod rename;
mod reply;
mod sessions;
mod state;
mod summed;
#[cfg(test)]
mod tests;
mod types;
mod virtuals;
mod whereabouts;
pub mod words;
mod xattrs;

pub use command::*;
pub use export::{Importer, Item};
pub use nodes::{NodeHolds, NodeStart, Unfit};
pub use query::*;
pub use reply::*;
pub use state::{Broken, State};
pub use types::*;
pub use xattrs::CAPABILITIES;
