//! The finished binary, as an operator meets it: real processes, real mounts, real kills.
//!
//! Each test is a story with a cluster of its own; they run one after another. `cargo test --test cluster -- --nocapture`
//! shows what they do. Needs `/dev/fuse`, the right to mount, `git` and `sqlite3`.
//!
//! No test asserts how long something took. What must happen is waited for (with a generous limit), what must not happen
//! is watched for, and the one lower bound that is promised (nothing expires early) is measured from before the call.

#[path = "../common/mod.rs"]
mod common;

mod attributes;
mod churn;
mod coherence;
mod contention;
mod cs733;
mod faults;
mod locks;
mod membership;
mod neighbours;
mod newcomer;
mod rot;
mod storage;
mod strangers;
mod tls;
mod uploads;
