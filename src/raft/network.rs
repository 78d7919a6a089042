//! The sending half of Raft's messages, over links.
//!
//! Each peer has three links: votes and heartbeats, entries, snapshots; so bulk data delays no heartbeat (a heartbeat
//! travels as an AppendEntries without entries, on the link for pulses).
//!
//! Decision about time: openraft hands every AppendEntries a limit of one heartbeat interval, and the answer comes after
//! the follower's fsync. With entries of a megabyte on a slow disk that would fail busy followers over and over. Requests
//! with entries therefore get [`APPEND_TIME`]; what notices a dead peer sooner is the link, and the leader's standing rests
//! on heartbeats and on the answers that do come. Heartbeats keep openraft's limit, which openraft enforces itself. A
//! follower answers a heartbeat too only when what it has accepted is durable, so a disk that is slower than an interval
//! fails heartbeats; the append answers count for the same lease.
//!
//! Decision about elections: no transport failure is ever an answer. A peer that cannot be asked for a pre-vote has granted
//! nothing.

use super::disks::Disks;
use super::membership::Member;
use super::messages::{self, Appended, Progress, SnapshotBegin, SnapshotItems, SnapshotQuestion};
use super::payload::StoredMeta;
use super::peers::{NOT_INTRODUCED, Peers};
use super::snapshot::{self, SnapshotData};
use super::store::{blocking, io_error};
use super::types::*;
use crate::codec::CodecError;
use crate::log::{Log, SnapshotReader};
use crate::net::{Link, Message, NetError, NodeId, Purpose};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time for an AppendEntries with entries: transfer and fsync on a slow machine.
const APPEND_TIME: Duration = Duration::from_secs(8);
/// AppendEntries requests in flight to one peer.
const PIPELINE_DEPTH: usize = 6;
/// Time for one message of a snapshot.
const SNAPSHOT_MESSAGE_TIME: Duration = Duration::from_secs(30);
/// Bytes of items in one message of a snapshot, about.
const SNAPSHOT_ITEMS_BYTES: usize = 1 << 20;
/// How often the receiver of a snapshot is asked how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Names for transmissions of snapshots; the receiver tells them apart by sender and name.
static NEXT_TRANSFER: AtomicU64 = AtomicU64::new(1);

/// Makes a [`Connection`] to a peer for each use that openraft has for one.
pub struct Network {
    pub peers: Arc<Peers>,
    pub log: Log,
    pub disks: Arc<Disks>,
}

impl Network {
    fn connection(&self, node: NodeId, at: &Member, purpose: Purpose) -> Connection {
        let link = self.peers.address(node, &at.address).map(|address| self.peers.link(node, address, purpose));
        Connection {
            node,
            at: at.address.clone(),
            link,
            log: self.log.clone(),
            peers: self.peers.clone(),
            disks: self.disks.clone(),
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, node: NodeId, at: &Member) -> Connection {
        self.connection(node, at, Purpose::Append)
    }

    async fn new_heartbeat_client(&mut self, node: NodeId, at: &Member) -> Connection {
        self.connection(node, at, Purpose::Pulse)
    }

    async fn new_snapshot_client(&mut self, node: NodeId, at: &Member) -> Connection {
        self.connection(node, at, Purpose::Snapshot)
    }
}

/// Raft's view of one peer.
pub struct Connection {
    node: NodeId,
    at: String,
    /// `None`: its address is none.
    link: Option<Link>,
    log: Log,
    peers: Arc<Peers>,
    disks: Arc<Disks>,
}

/// A link's error as openraft weighs it: without a connection it backs off, otherwise it tries again at once.
fn rpc_error(error: NetError) -> RPCError<Types> {
    match error.may_have_arrived() {
        true => RPCError::Network(NetworkError::new(&error)),
        false => RPCError::Unreachable(Unreachable::new(&error)),
    }
}

fn undecodable(error: CodecError) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(&error))
}

/// A snapshot that cannot be read is not the end of this node: openraft asks for it again, and what is damaged is then
/// written anew.
fn disk_error(error: io::Error) -> StreamingError<Types> {
    tracing::warn!("cannot send the newest snapshot: {error}");
    StreamingError::Unreachable(Unreachable::new(&error))
}

impl Connection {
    fn link(&self) -> Result<Link, RPCError<Types>> {
        self.link.clone().ok_or_else(|| {
            let why = format!("node {} is said to be at {:?}, which is no address", self.node, self.at);
            RPCError::Unreachable(Unreachable::from_string(why))
        })
    }

    /// A process that its peers have not looked at yet asks for no votes.
    fn may_campaign(&self) -> Result<(), RPCError<Types>> {
        match self.peers.is_introduced() {
            true => Ok(()),
            false => Err(RPCError::Unreachable(Unreachable::from_string(NOT_INTRODUCED))),
        }
    }

    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: u8,
        question: &Q,
        body: Bytes,
        time: Duration,
    ) -> Result<A, RPCError<Types>> {
        let message = messages::message(kind, question, body).map_err(undecodable)?;
        let answer = self.link()?.call(message, Instant::now() + time).await.map_err(rpc_error)?;
        messages::header(&answer).map_err(undecodable)
    }

    /// Send one request of a pipeline; the future that comes back is of its answer.
    async fn send_append(
        (node, link, disks): (NodeId, Link, Arc<Disks>),
        request: AppendEntriesRequest<Types>,
        time: Duration,
    ) -> Result<impl Future<Output = Result<StreamAppendResult<Types>, RPCError<Types>>> + use<>, RPCError<Types>> {
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let time = if request.entries.is_empty() { time } else { APPEND_TIME.max(time) };
        let message = messages::append_message(&request).map_err(undecodable)?;
        drop(request);
        let answer = link.start(message, Instant::now() + time).await.map_err(rpc_error)?;
        Ok(async move {
            let response = append_response(node, answer.await, &disks)?;
            append_result(response, previous, last)
        })
    }
}

/// A peer's answer to an append, and what it tells about its disk.
fn append_response(
    node: NodeId,
    answer: Result<Message, NetError>,
    disks: &Disks,
) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
    let Appended { answer, disk } = messages::header(&answer.map_err(rpc_error)?).map_err(undecodable)?;
    if let Some(report) = disk {
        disks.hear(node, report);
    }
    // Called unreachable so that openraft waits before it tries again.
    let full = || RPCError::Unreachable(Unreachable::from_string(format!("the disk of node {node} is full")));
    answer.response().ok_or_else(full)
}

fn append_result(
    response: AppendEntriesResponse<Types>,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
    if let (AppendEntriesResponse::Conflict, None) = (&response, previous) {
        let why = "a peer reports a conflict where none can be: before the first entry";
        return Err(RPCError::Unreachable(Unreachable::from_string(why)));
    }
    Ok(response.into_stream_result(previous, last))
}

/// Pass items on up to and including the first that ends a stream of answers: a failure, a conflict, a higher vote.
fn until_failure<'s>(
    answers: impl Stream<Item = Result<StreamAppendResult<Types>, RPCError<Types>>> + Send + 's,
) -> BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>> {
    let ended = stream::unfold(Some(Box::pin(answers)), async |answers| {
        let mut answers = answers?;
        let answer = answers.next().await?;
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(answers)))
    });
    Box::pin(ended)
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let message = messages::append_message(&request).map_err(undecodable)?;
        let deadline = Instant::now() + option.hard_ttl().max(APPEND_TIME);
        append_response(self.node, self.link()?.call(message, deadline).await, &self.disks)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let (node, link, disks) = (self.node, self.link()?, self.disks.clone());
            let time = option.hard_ttl();
            // `then` starts one request after the other, so they leave in order; `buffered` waits for several answers at
            // once and gives them back in order.
            let started = input.then(move |request| {
                let to = (node, link.clone(), disks.clone());
                async move { Connection::send_append(to, request, time).await }
            });
            let answers = started.map(async |started| started?.await).buffered(PIPELINE_DEPTH);
            Ok(until_failure(answers))
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.may_campaign()?;
        let question = messages::VoteRequest::from(request);
        let answer: messages::VoteAnswer = self.ask(messages::VOTE, &question, Bytes::new(), option.hard_ttl()).await?;
        Ok(answer.into())
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.may_campaign()?;
        let question = messages::VoteRequest::from(request);
        let answer: messages::VoteAnswer =
            self.ask(messages::PRE_VOTE, &question, Bytes::new(), option.hard_ttl()).await?;
        Ok(answer.into())
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let question = messages::Transfer::from(&request);
        // The target waits for its disk before it answers.
        let time = option.hard_ttl().max(Duration::from_secs(2));
        let answer: messages::TransferAnswer = self.ask(messages::TRANSFER, &question, Bytes::new(), time).await?;
        Ok(answer.into())
    }

    /// Send the newest snapshot, which may be newer than the one that is asked for, and wait until it is installed.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        _snapshot: Snapshot<SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            result = self.send_snapshot(vote) => result,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

impl Connection {
    async fn send_snapshot(&self, vote: Vote) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let log = self.log.clone();
        let opened = blocking(move || snapshot::open(&log)).await.map_err(disk_error)?;
        let (meta, reader) = opened.ok_or_else(|| disk_error(io::Error::other("there is no snapshot to send")))?;
        let transfer = NEXT_TRANSFER.fetch_add(1, Ordering::Relaxed);
        match self.begin(transfer, vote, meta).await? {
            Some(done) => Ok(done),
            None => match self.send_items(transfer, reader).await? {
                Some(done) => Ok(done),
                None => self.await_install(transfer).await,
            },
        }
    }

    /// `Some`: the receiver needs nothing, or knows a higher vote.
    async fn begin(
        &self,
        transfer: u64,
        vote: Vote,
        meta: StoredMeta,
    ) -> Result<Option<SnapshotResponse<Types>>, StreamingError<Types>> {
        let question = SnapshotBegin { transfer, vote: (&vote).into(), meta };
        self.progress(messages::SNAPSHOT_BEGIN, &question, Bytes::new()).await
    }

    async fn send_items(
        &self,
        transfer: u64,
        mut reader: SnapshotReader,
    ) -> Result<Option<SnapshotResponse<Types>>, StreamingError<Types>> {
        let mut left_over = None;
        for sequence in 0.. {
            let (rest, body, next) = blocking(move || read_items(reader, left_over)).await.map_err(disk_error)?;
            if body.is_empty() {
                break;
            }
            let question = SnapshotItems { transfer, sequence };
            if let Some(done) = self.progress(messages::SNAPSHOT_ITEMS, &question, body).await? {
                return Ok(Some(done));
            }
            (reader, left_over) = (rest, next);
        }
        self.progress(messages::SNAPSHOT_END, &SnapshotQuestion { transfer }, Bytes::new()).await
    }

    /// The receiver now fetches bodies, which may take as long as it takes.
    async fn await_install(&self, transfer: u64) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        loop {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let question = SnapshotQuestion { transfer };
            if let Some(done) = self.progress(messages::SNAPSHOT_PROGRESS, &question, Bytes::new()).await? {
                return Ok(done);
            }
        }
    }

    async fn progress<Q: Serialize>(
        &self,
        kind: u8,
        question: &Q,
        body: Bytes,
    ) -> Result<Option<SnapshotResponse<Types>>, StreamingError<Types>> {
        match self.ask(kind, question, body, SNAPSHOT_MESSAGE_TIME).await? {
            Progress::Working { .. } => Ok(None),
            Progress::Installed { vote } => Ok(Some(SnapshotResponse::new(vote.into()))),
            Progress::Failed { why } => {
                tracing::warn!("node {} could not install a snapshot: {why}", self.node);
                Err(StreamingError::Unreachable(Unreachable::from_string(why)))
            }
        }
    }
}

/// The next items as the body of one message, and the one that did not fit any more.
fn read_items(
    mut reader: SnapshotReader,
    left_over: Option<Bytes>,
) -> io::Result<(SnapshotReader, Bytes, Option<Bytes>)> {
    let mut body = BytesMut::new();
    let mut next = left_over;
    while body.len() < SNAPSHOT_ITEMS_BYTES {
        let item = match next.take() {
            Some(item) => item,
            None => match reader.next() {
                Some(item) => item.map_err(io_error)?,
                None => break,
            },
        };
        if !messages::push_item(&mut body, &item) {
            if body.is_empty() {
                return Err(io::Error::other(format!("a snapshot item of {} bytes fits no frame", item.len())));
            }
            next = Some(item);
            break;
        }
    }
    Ok((reader, body.freeze(), next))
}
