//! The answering half of Raft's messages.

use super::Machine;
use super::bodies;
use super::disks::{Disks, Taken};
use super::intake::{Intake, Target};
use super::lane::Lane;
use super::mend;
use super::messages::{self, AppendAnswer, Appended, FetchState, HashAt, HashTold, TransferAnswer, VoteAnswer, answer};
use super::peers::NOT_INTRODUCED;
use super::rescue::Exports;
use super::store::blocking;
use super::types::Types;
use crate::codec::CodecError;
use crate::fs::LogIndex;
use crate::net::{Caller, Message, NodeId, Purpose};
use futures_util::future::BoxFuture;
use openraft::Raft;
use openraft::raft::AppendEntriesRequest;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What answers peers.
#[derive(Clone)]
pub struct Server {
    pub raft: Raft<Types, Machine>,
    pub target: Target,
    pub intake: Arc<Intake>,
    pub lanes: Arc<Mutex<BTreeMap<NodeId, Lane>>>,
    pub exports: Arc<Exports>,
    pub disks: Arc<Disks>,
}

/// How long a question for a hash waits until its entry is applied.
const HASH_WAIT: Duration = Duration::from_secs(2);

/// Nodes that have sent entries to this process: leaders, over time.
const LANES_MAX: usize = 64;
/// What a record of the log takes beside its command and body, about.
const RECORD_BYTES: usize = 168;

fn refused(why: impl ToString) -> BoxFuture<'static, Message> {
    Box::pin(std::future::ready(Message::refused(why.to_string())))
}

fn full() -> BoxFuture<'static, Message> {
    Box::pin(std::future::ready(messages::appended(AppendAnswer::Full)))
}

impl Server {
    /// Called in the order of arrival on a link.
    pub fn handle(&self, from: &Caller, message: Message) -> BoxFuture<'static, Message> {
        let Some(node) = from.node else { return refused("only nodes of the cluster may send raft messages") };
        if message.kind == messages::APPEND {
            self.target.peers.heard_leader();
        }
        let handled = match message.kind {
            messages::APPEND if from.purpose == Purpose::Append => self.append_in_order(node, &message),
            messages::APPEND => self.append(&message),
            messages::INTRODUCE => Ok(Box::pin(std::future::ready(message)) as BoxFuture<'static, Message>),
            messages::VOTE | messages::PRE_VOTE if !self.target.peers.is_introduced() => Ok(refused(NOT_INTRODUCED)),
            messages::VOTE => self.vote(&message),
            messages::PRE_VOTE => self.pre_vote(&message),
            messages::TRANSFER => self.transfer(&message),
            messages::SNAPSHOT_BEGIN
            | messages::SNAPSHOT_ITEMS
            | messages::SNAPSHOT_END
            | messages::SNAPSHOT_PROGRESS => Ok(self.snapshot(node, message)),
            messages::FETCH_BODIES => self.fetch_bodies(&message),
            messages::FETCH_ENTRIES => self.fetch_entries(&message),
            messages::HASH_AT => self.hash_at(&message),
            messages::FETCH_STATE => self.fetch_state(node, &message),
            kind => Ok(refused(format!("raft has no message of kind {kind}"))),
        };
        handled.unwrap_or_else(refused)
    }

    fn append_in_order(&self, node: NodeId, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let request = messages::append_request(message)?;
        let Some(taken) = self.make_room(&request, message) else { return Ok(full()) };
        let mut lanes = self.lanes.lock();
        if lanes.len() >= LANES_MAX && !lanes.contains_key(&node) {
            return Ok(refused("too many nodes send entries"));
        }
        let lane = lanes.entry(node).or_insert_with(|| Lane::new(self.raft.clone()));
        let appended = lane.submit(request);
        Ok(Box::pin(async move {
            let answer = appended.await;
            drop(taken);
            answer
        }))
    }

    /// A heartbeat: in no order with anything.
    fn append(&self, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let request = messages::append_request(message)?;
        let Some(taken) = self.make_room(&request, message) else { return Ok(full()) };
        let (raft, disks) = (self.raft.clone(), self.disks.clone());
        Ok(Box::pin(async move {
            let appended = raft.append_entries(request).await;
            drop(taken);
            match appended {
                Ok(response) => {
                    let appended = Appended { answer: response.into(), disk: Some(disks.report()) };
                    answer(messages::APPEND, &appended)
                }
                Err(e) => Message::refused(e.to_string()),
            }
        }))
    }

    /// Room on this node's disk for the entries of a request; `None`: there is not enough. A heartbeat needs none.
    fn make_room(&self, request: &AppendEntriesRequest<Types>, message: &Message) -> Option<Option<Taken>> {
        if request.entries.is_empty() {
            return Some(None);
        }
        let records: usize = request.entries.len() * RECORD_BYTES;
        let bytes = (message.header.len() + message.body.len() + records) as u64;
        self.disks.take(bytes, !message.body.is_empty()).map(Some)
    }

    fn vote(&self, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let request: messages::VoteRequest = messages::header(message)?;
        let raft = self.raft.clone();
        Ok(Box::pin(async move {
            match raft.vote(request.into()).await {
                Ok(response) => answer(messages::VOTE, &VoteAnswer::from(response)),
                Err(e) => Message::refused(e.to_string()),
            }
        }))
    }

    fn pre_vote(&self, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let request: messages::VoteRequest = messages::header(message)?;
        let raft = self.raft.clone();
        Ok(Box::pin(async move {
            match raft.pre_vote(request.into()).await {
                Ok(response) => answer(messages::PRE_VOTE, &VoteAnswer::from(response)),
                Err(e) => Message::refused(e.to_string()),
            }
        }))
    }

    fn transfer(&self, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let request: messages::Transfer = messages::header(message)?;
        let raft = self.raft.clone();
        Ok(Box::pin(async move {
            match raft.handle_transfer_leader(request.into()).await {
                Ok(response) => answer(messages::TRANSFER, &TransferAnswer::from(response)),
                Err(e) => Message::refused(e.to_string()),
            }
        }))
    }

    fn snapshot(&self, node: u64, message: Message) -> BoxFuture<'static, Message> {
        let (intake, target) = (self.intake.clone(), self.target.clone());
        Box::pin(async move { intake.handle(target, node, message).await })
    }

    fn fetch_bodies(&self, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let question = messages::header(message)?;
        let (log, published) = (self.target.log.clone(), self.target.published.clone());
        Ok(Box::pin(async move {
            let served = blocking(move || Ok(bodies::serve(&log, &published, question)));
            served.await.unwrap_or_else(|e| Message::refused(e.to_string()))
        }))
    }

    fn fetch_entries(&self, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let question = messages::header(message)?;
        let (log, published) = (self.target.log.clone(), self.target.published.clone());
        Ok(Box::pin(async move {
            let served = tokio::task::spawn_blocking(move || mend::serve(&log, &published, question));
            served.await.unwrap_or_else(|e| Message::refused(e.to_string()))
        }))
    }

    fn fetch_state(&self, node: NodeId, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let FetchState { sequence } = messages::header(message)?;
        let (raft, exports) = (self.raft.clone(), self.exports.clone());
        Ok(Box::pin(async move { exports.serve(&raft, node, sequence).await }))
    }

    /// The asker is a little ahead as often as not: it is worth waiting a moment.
    fn hash_at(&self, message: &Message) -> Result<BoxFuture<'static, Message>, CodecError> {
        let HashAt { index } = messages::header(message)?;
        let published = self.target.published.clone();
        Ok(Box::pin(async move {
            published.wait(LogIndex(index), Instant::now() + HASH_WAIT).await;
            answer(messages::HASH_AT, &HashTold { hash: published.hash_at(LogIndex(index)) })
        }))
    }
}
