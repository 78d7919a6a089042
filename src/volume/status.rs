//! What a node says of itself, to people and programs (`--json`).

use crate::net::NodeId;
use crate::raft::ReplicaStatus;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub cluster: Uuid,
    pub node: NodeId,
    pub address: SocketAddr,
    /// Process id on its machine.
    pub pid: u32,
    /// Of the program.
    pub version: String,
    /// Number of this process start.
    pub incarnation: u64,
    /// Drawn at random for this process start.
    pub run: u64,
    /// The last entry that is committed and durable in its log.
    pub holds: u64,
    /// Paths at which this process has mounted the tree.
    pub mounts: Vec<String>,
    /// Where the cs733 protocol is served, if it is.
    pub cs733: Option<SocketAddr>,
    pub replica: ReplicaStatus,
}
