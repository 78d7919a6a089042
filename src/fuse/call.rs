//! One request under way: who asks, until when, and the ways to the volume.

use super::errno::{Kind, of_failure};
use super::handles::Handles;
use super::lock_table::LockTable;
use super::overlay::Overlay;
use crate::fs::{Answer, Attributes, Command, Credentials, Ino, Query, Reply, SessionId};
use crate::volume::{Failure, Freshness, Volume};
use bytes::Bytes;
use fuser::Errno;
use std::sync::Arc;
use std::time::Instant;

/// What all requests of one mount share.
pub struct Mounted {
    pub volume: Volume,
    pub handles: Arc<Handles>,
    pub locks: Arc<LockTable>,
    pub overlay: Arc<Overlay>,
    pub runtime: tokio::runtime::Handle,
    /// What reads and look-ups may return; changes never depend on it.
    pub freshness: Freshness,
}

/// One request.
pub struct Call {
    pub mounted: Arc<Mounted>,
    pub credentials: Credentials,
    /// The caller's thread, 0 if unknown here.
    pub tid: u32,
    pub deadline: Instant,
}

impl Call {
    pub fn volume(&self) -> &Volume {
        &self.mounted.volume
    }

    /// Send a command without a body; for callers that look at the refusal.
    pub async fn try_submit(&self, command: Command) -> Result<Reply, Failure> {
        self.volume().submit(self.credentials, command, Bytes::new(), self.deadline).await
    }

    pub async fn submit(&self, command: Command) -> Result<Reply, Errno> {
        self.submit_with(command, Bytes::new()).await
    }

    pub async fn submit_with(&self, command: Command, body: Bytes) -> Result<Reply, Errno> {
        let reply = self.volume().submit(self.credentials, command, body, self.deadline).await;
        reply.map_err(|failure| of_failure(&failure, Kind::Change))
    }

    /// As [`Call::submit_with`], but only in this session: the holder of a lock must not write once it has lost it.
    pub async fn submit_within(&self, session: SessionId, command: Command, body: Bytes) -> Result<Reply, Errno> {
        let reply = self.volume().submit_within(session, self.credentials, command, body, self.deadline).await;
        reply.map_err(|failure| of_failure(&failure, Kind::Change))
    }

    /// Ask linearizably.
    pub async fn try_query(&self, query: Query) -> Result<Answer, Failure> {
        self.volume().query(query, self.deadline).await
    }

    /// Ask as the mount's user chose to.
    pub async fn query(&self, query: Query) -> Result<Answer, Errno> {
        let answer = match self.mounted.freshness {
            Freshness::Linearizable => self.volume().query(query, self.deadline).await,
            Freshness::Nearest => self.volume().peek(query, self.deadline).await,
        };
        answer.map_err(|failure| of_failure(&failure, Kind::Question))
    }

    pub async fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        attributes_of(self.query(Query::Attributes { ino }).await?)
    }

    pub fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// The attributes in an answer.
pub fn attributes_of(answer: Answer) -> Result<Attributes, Errno> {
    match answer {
        Answer::Attributes(attributes) => Ok(attributes),
        other => Err(unexpected(&other)),
    }
}

/// The bytes in an answer.
pub fn bytes_of(answer: Answer) -> Result<Bytes, Errno> {
    match answer {
        Answer::Bytes(bytes) => Ok(bytes),
        other => Err(unexpected(&other)),
    }
}

/// The attributes in a reply.
pub fn changed_attributes(reply: Reply) -> Result<Attributes, Errno> {
    match reply {
        Reply::Attributes(attributes) => Ok(attributes),
        other => Err(unexpected(&other)),
    }
}

/// An answer that does not fit its question: a defect of keelfs, not of the caller.
pub fn unexpected(got: &impl std::fmt::Debug) -> Errno {
    tracing::error!(?got, "an answer does not fit its question");
    Errno::EIO
}
