//! A volume's ways when a replica lives in this process.
//!
//! Reading: confirm an index (the leader's word, coalesced by the gate), wait until this replica has applied it, take the
//! published root, answer from it. File bytes come from this node's own log; what its disk has lost comes from a peer.

use super::forward::{Forwarder, Lane, Proposer, told};
use super::gate::ReadGate;
use super::protocol::{Ask, Freshness, Head, Told, Verdict};
use super::session::sessionless;
use super::{Capacity, Failure};
use crate::fs::{Answer, Command, Content, Ino, LogIndex, Piece, Query, Refusal, Request, SessionId, State};
use crate::limits::FRAME_BODY_BYTES_MAX;
use crate::net::{Identity, NodeId};
use crate::raft::{Replica, StorageError};
use crate::seeded::{Bug, planted};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, stream};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// How long one round of the gate may look for the leader before those who waited for it try anew.
const ROUND_TIME: Duration = Duration::from_secs(2);
/// How long one peer may take to send a piece that this disk has lost.
const FETCH_TIME: Duration = Duration::from_secs(3);
/// Pieces of one read that are read at the same time.
const PIECES_AT_ONCE: usize = 8;
/// How often a read starts over because what it was reading was replaced and reclaimed meanwhile.
const READ_TRIES: usize = 8;
/// Orphans answered for at one time.
const ORPHANS_MAX: usize = 4096;
/// Bytes of one read: what fits one answer.
pub(super) const READ_BYTES_MAX: u32 = FRAME_BODY_BYTES_MAX as u32 / 2;

/// This process's replica, as the front ends of this node and its clients use it. Cloning is cheap.
#[derive(Clone)]
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    replica: Replica,
    own: Identity,
    forwarder: Arc<Forwarder<Replica>>,
    gate: ReadGate,
}

impl Local {
    pub fn new(replica: Replica, own: Identity) -> Local {
        let forwarder = Arc::new(Forwarder::new(own.clone(), replica.clone()));
        let gate = gate(forwarder.clone());
        Local { inner: Arc::new(Inner { replica, own, forwarder, gate }) }
    }

    pub(super) fn replica(&self) -> &Replica {
        &self.inner.replica
    }

    pub(super) async fn submit(&self, request: &Request, body: &Bytes, deadline: Instant) -> Verdict {
        self.inner.forwarder.submit(request, body, deadline, pending()).await
    }

    pub(super) fn forwarder(&self) -> &Forwarder<Replica> {
        &self.inner.forwarder
    }

    /// Propose what no client may, wherever the leader is. `false`: not carried out, or that is not known.
    pub async fn propose_alone(&self, command: Command, deadline: Instant) -> bool {
        let verdict = self.submit(&sessionless(command), &Bytes::new(), deadline).await;
        matches!(verdict, Verdict::Outcome { outcome: Ok(_), .. })
    }

    /// An index that every command completed before this call began is at or below.
    async fn confirmed_index(&self, deadline: Instant) -> Result<LogIndex, Failure> {
        if *self.replica().leader().borrow() == self.inner.own.node {
            // Raft coalesces its own rounds; a second line in front of them would only add waiting.
            return settle_round(self.inner.forwarder.read_index(deadline).await);
        }
        self.inner.gate.pass(deadline).await
    }

    /// The published root, as fresh as asked for.
    async fn root(&self, freshness: Freshness, deadline: Instant) -> Result<Arc<State>, Failure> {
        self.replica().going_on().map_err(|stopped| Failure::Stopped(stopped.to_string()))?;
        if freshness == Freshness::Linearizable && !planted(Bug::LocalRead) {
            let index = self.confirmed_index(deadline).await?;
            if !self.replica().wait_applied(index, deadline).await {
                return Err(Failure::NoMajority);
            }
        }
        Ok(self.replica().state())
    }

    pub(super) async fn query(
        &self,
        query: &Query,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Result<Answer, Refusal>, Failure> {
        Ok(self.root(freshness, deadline).await?.answer(query))
    }

    /// At most [`READ_BYTES_MAX`] bytes.
    pub(super) async fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: u32,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Result<(Head, Bytes), Refusal>, Failure> {
        let mut root = self.root(freshness, deadline).await?;
        let query = Query::Content { ino, offset, length: length.min(READ_BYTES_MAX).into() };
        for _ in 0..READ_TRIES {
            let content = match content(&root, &query) {
                Ok(content) => content,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let bytes = timeout_at(deadline.into(), self.bytes(&content.pieces, deadline)).await;
            let why = match bytes.unwrap_or(Err(Failure::NoMajority)) {
                Ok(bytes) => return Ok(Ok((Head { version: content.version, size: content.size }, bytes))),
                Err(why) => why,
            };
            // Replaced bodies are reclaimed under a reader's feet; the newest root no longer refers to them.
            root = self.replica().state();
            if self::content(&root, &query).as_ref() == Ok(&content) {
                return Err(why);
            }
        }
        Err(Failure::Damaged(format!("inode {} changed faster than it could be read", ino.0)))
    }

    async fn bytes(&self, pieces: &[Piece], deadline: Instant) -> Result<Bytes, Failure> {
        match pieces {
            [] => Ok(Bytes::new()),
            [piece] => self.piece(*piece, deadline).await,
            _ => {
                let reads = stream::iter(pieces.to_vec()).map(|piece| self.piece(piece, deadline));
                let mut reads = reads.buffered(PIECES_AT_ONCE);
                let mut bytes = BytesMut::new();
                while let Some(piece) = reads.next().await {
                    bytes.extend_from_slice(&piece?);
                }
                Ok(bytes.freeze())
            }
        }
    }

    async fn piece(&self, piece: Piece, deadline: Instant) -> Result<Bytes, Failure> {
        match piece {
            Piece::Hole { length } => Ok(BytesMut::zeroed(length as usize).freeze()),
            Piece::Body { index, offset, length } => match self.own_piece(index, offset, length).await {
                Ok(bytes) => Ok(bytes),
                Err(why) => self.fetch_piece(index, offset, length, why, deadline).await,
            },
        }
    }

    /// A piece of a body from this node's own log, of exactly this length.
    pub(super) async fn own_piece(&self, index: LogIndex, offset: u32, length: u32) -> Result<Bytes, StorageError> {
        let bytes = self.replica().read_body(index, offset, length).await?;
        if bytes.len() != length as usize {
            return Err(StorageError::NoBody { index: index.0 });
        }
        Ok(bytes)
    }

    /// A piece that this disk cannot give, from the first peer that can.
    async fn fetch_piece(
        &self,
        index: LogIndex,
        offset: u32,
        length: u32,
        why: StorageError,
        deadline: Instant,
    ) -> Result<Bytes, Failure> {
        let peers = self.replica().members().into_iter().filter(|(node, _)| Some(*node) != self.inner.own.node);
        for (node, address) in peers {
            if let Some(bytes) = self.fetch_from(node, address, index, offset, length, deadline).await {
                tracing::debug!("entry {}: served from node {node}, because here {why}", index.0);
                self.replica().mend_body(index, &why);
                return Ok(bytes);
            }
        }
        Err(Failure::Damaged(why.to_string()))
    }

    async fn fetch_from(
        &self,
        node: NodeId,
        address: SocketAddr,
        index: LogIndex,
        offset: u32,
        length: u32,
        deadline: Instant,
    ) -> Option<Bytes> {
        let link = self.inner.forwarder.links().to(address, Some(node), Lane::Bulk);
        let message = Ask::FetchBody { index, offset, length }.message(Bytes::new()).ok()?;
        let answer = link.call(message, deadline.min(Instant::now() + FETCH_TIME)).await;
        let body = answer.as_ref().map(|message| message.body.clone()).unwrap_or_default();
        let found = matches!(told(answer), Ok(Told::Body)) && body.len() == length as usize;
        found.then_some(body)
    }

    /// What is free is what can be written before the cluster is full: what the disks of a majority have room for, beside
    /// their reserves. The leader knows; while it cannot be asked, this node's own disk stands for all.
    pub(super) async fn capacity(&self, deadline: Instant) -> Capacity {
        let free_bytes = match self.writable_by_leader(deadline).await {
            Some(bytes) => bytes,
            None => self.replica().writable_bytes(),
        };
        Capacity { total_bytes: free_bytes.saturating_add(self.replica().status().log_bytes), free_bytes }
    }

    /// `None`: this node leads, or nobody does that could be asked in time.
    async fn writable_by_leader(&self, deadline: Instant) -> Option<u64> {
        let leader = (*self.replica().leader().borrow()).filter(|node| Some(*node) != self.inner.own.node)?;
        let address = *self.replica().members().get(&leader)?;
        let link = self.inner.forwarder.links().to(address, Some(leader), Lane::Small);
        let message = Ask::Writable.message(Bytes::new()).ok()?;
        match told(link.call(message, deadline.min(Instant::now() + ROUND_TIME)).await) {
            Ok(Told::Writable { bytes }) => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn orphans_of(&self, session: SessionId, after: Ino) -> Vec<Ino> {
        self.replica().state().orphans_of(session, after, ORPHANS_MAX)
    }

    pub(super) async fn changed_since(&self, seen: LogIndex, deadline: Instant) -> LogIndex {
        let mut applied = self.replica().applied();
        let changed = applied.wait_for(|applied| *applied > seen);
        let changed = timeout_at(deadline.into(), changed).await.map(|result| result.map(|index| *index));
        match changed {
            Ok(Ok(index)) => index,
            _ => *self.replica().applied().borrow(),
        }
    }
}

/// A gate whose rounds ask the leader, wherever it is.
fn gate<P: Proposer>(forwarder: Arc<Forwarder<P>>) -> ReadGate {
    ReadGate::new(move || {
        let forwarder = forwarder.clone();
        async move { settle_round(forwarder.read_index(Instant::now() + ROUND_TIME).await) }.boxed()
    })
}

fn settle_round(round: Result<Option<LogIndex>, String>) -> Result<LogIndex, Failure> {
    match round {
        Ok(index) => index.ok_or(Failure::NoMajority),
        Err(why) => Err(Failure::Stopped(why)),
    }
}

fn content(root: &State, query: &Query) -> Result<Content, Refusal> {
    match root.answer(query)? {
        Answer::Content(content) => Ok(content),
        _ => Err(Refusal::WrongKind),
    }
}
