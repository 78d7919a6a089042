//! SKELETON: what every front end talks to.

use crate::fs::{Answer, Command, Credentials, Ino, LogIndex, Query, Refusal, Reply, SessionId};
use bytes::Bytes;
use std::time::Instant;

/// What a front end holds of the cluster, whether a replica lives in this process or not. Cloning shares the session.
#[derive(Clone)]
pub struct Volume {}

/// Why a call brought no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The cluster agreed to refuse. All replicas know it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No majority within the time; the command was never proposed and takes no effect.
    #[error("no majority answered in time: nothing was changed")]
    NoMajority,
    /// The command was proposed and its outcome is not known, nor ever will be to this caller.
    #[error("no answer in time: whether the change was made is unknown")]
    Unknown,
    /// The bytes are there by right, but this node could not read or fetch them intact.
    #[error("cannot read stored data: {0}")]
    Damaged(String),
    /// This node has stopped or is stopping.
    #[error("keelfs has stopped: {0}")]
    Stopped(String),
}

impl Volume {
    /// Send a command through the log, exactly once, retrying with the same sequence number across leader changes until
    /// the deadline.
    pub async fn submit(
        &self,
        credentials: Credentials,
        command: Command,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        unimplemented!()
    }
    /// Ask, linearizably: the answer reflects every command that completed before this call began.
    pub async fn query(&self, query: Query, deadline: Instant) -> Result<Answer, Failure> {
        unimplemented!()
    }
    /// Ask the nearest state, however old: only to find what a command then re-checks (`expected` inodes).
    pub async fn peek(&self, query: Query, deadline: Instant) -> Result<Answer, Failure> {
        unimplemented!()
    }
    /// Up to `length` bytes of a file from `offset`, linearizable, holes as zeros; shorter only at the end of the file.
    pub async fn read(&self, ino: Ino, offset: u64, length: u32, deadline: Instant) -> Result<Bytes, Failure> {
        unimplemented!()
    }
    /// `statfs(2)`: what the cluster's disks hold and what is used, in bytes; inodes in use.
    pub async fn capacity(&self, deadline: Instant) -> Result<Capacity, Failure> {
        unimplemented!()
    }
    /// This volume's session: opened on first need, reopened after it ended.
    pub async fn session(&self, deadline: Instant) -> Result<SessionId, Failure> {
        unimplemented!()
    }
    /// Count an open of an inode, so that it is kept while unlinked; and a close.
    pub fn opened(&self, ino: Ino) {
        unimplemented!()
    }
    pub fn closed(&self, ino: Ino) {
        unimplemented!()
    }
    /// Wait until something may have changed in the state since `seen` (0: returns at once), or the deadline; returns
    /// the newest applied index.
    pub async fn changed_since(&self, seen: LogIndex, deadline: Instant) -> LogIndex {
        unimplemented!()
    }
    /// End the session (unmount): locks and orphans are given up at once.
    pub async fn close(&self) {
        unimplemented!()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capacity {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub inodes: u64,
}
