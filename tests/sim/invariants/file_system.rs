//! The file system's own invariants hold on every replica at every time.
//!
//! Source: `fs::State`, where they are numbered.

use super::Held;
use keelfs::net::NodeId;
use keelfs::raft::Replica;

pub fn holds(node: NodeId, replica: &Replica) -> Held {
    replica.state().check().map_err(|broken| format!("file system of node {node}: {broken}"))
}
