//! SKELETON: the only user of openraft.

use crate::fs::{LogIndex, Outcome, Request, State};
use crate::log::Log;
use crate::net::{Caller, Identity, Message, NodeId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One node's replica of the file system: its Raft, its log, its published state.
#[derive(Clone)]
pub struct Replica {}

/// Why a proposal or a read index was not had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// Not proposed here. Ask `leader`, or wait until one is known.
    #[error("this node does not lead{}", leader.map(|n| format!("; node {n} does")).unwrap_or_default())]
    NotLeader { leader: Option<NodeId> },
    /// Proposed, but its outcome is not known: it may still take effect.
    #[error("the outcome is unknown")]
    Unknown,
    #[error("the replica has stopped: {why}")]
    Stopped { why: String },
}

/// What a node tells about its replica.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReplicaStatus {
    pub role: String,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub last_log: u64,
    pub applied: u64,
    /// Hexadecimal, at `applied`.
    pub state_hash: String,
    pub snapshot: u64,
    pub purged: u64,
    pub log_bytes: u64,
}

/// Raft's timing. Defaults: heartbeat 250 ms, election 1000 to 2000 ms.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Replica {
    /// Load the newest snapshot, replay headers, start Raft.
    pub async fn start(
        own: Identity,
        log: Log,
        members: BTreeMap<NodeId, SocketAddr>,
        timing: Timing,
    ) -> anyhow::Result<Replica> {
        unimplemented!()
    }
    /// Once in a cluster's life, on one node with an empty log.
    pub async fn initialize(&self, members: BTreeMap<NodeId, SocketAddr>) -> anyhow::Result<()> {
        unimplemented!()
    }
    /// Stamp and propose; returns after this replica has applied it.
    pub async fn propose(&self, request: Request, body: Bytes) -> Result<Outcome, ReplicaError> {
        unimplemented!()
    }
    /// Leader only: an index that every command completed before this call began is at or below (ReadIndex, coalesced).
    pub async fn read_index(&self) -> Result<LogIndex, ReplicaError> {
        unimplemented!()
    }
    /// The newest published state; never waits.
    pub fn state(&self) -> Arc<State> {
        unimplemented!()
    }
    /// Wait until this replica has applied `index`; `false` if the deadline passed first.
    pub async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> bool {
        unimplemented!()
    }
    /// Changes whenever a batch has been applied and published: the applied index.
    pub fn applied(&self) -> tokio::sync::watch::Receiver<LogIndex> {
        unimplemented!()
    }
    /// The leader as this node knows it.
    pub fn leader(&self) -> tokio::sync::watch::Receiver<Option<NodeId>> {
        unimplemented!()
    }
    pub fn members(&self) -> BTreeMap<NodeId, SocketAddr> {
        unimplemented!()
    }
    pub fn status(&self) -> ReplicaStatus {
        unimplemented!()
    }
    /// The state's hash right after entry `index`, if it is one of the last 65,536 applied here.
    pub fn hash_at(&self, index: LogIndex) -> Option<u128> {
        unimplemented!()
    }
    /// `length` bytes from `offset` of the body of entry `index`, from this node's log.
    pub async fn read_body(
        &self,
        index: LogIndex,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, crate::log::StorageError> {
        unimplemented!()
    }
    /// Answer a peer's Raft message (kinds of `raft`'s own range, below 64).
    pub fn handle(&self, from: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        std::future::ready(unimplemented!())
    }
    /// Resolves when Raft has ended by itself, with the reason: the process must end.
    pub async fn failed(&self) -> String {
        unimplemented!()
    }
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
