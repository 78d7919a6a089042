//! The file system as a pure, deterministic state machine.
//!
//! Whoever reads this room alone can judge whether replicas can diverge: [`State::apply`] is the only way to change a
//! [`State`], and it depends on nothing but the state, the stamp and the request.
//!
//! Absent on purpose: IO, clocks, randomness, async, hash-map iteration, floats, panics on any input.

mod command;
mod locks;
mod query;
mod reply;
mod state;
mod types;
pub mod words;

pub use command::*;
pub use query::*;
pub use reply::*;
pub use state::*;
pub use types::*;
