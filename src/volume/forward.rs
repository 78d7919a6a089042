//! The way to the leader: find it, send, and when that fails find the next one, until the deadline.
//!
//! A request is sent again with the same session and sequence, so however often it arrives it takes effect once. What this
//! module has to know at the end is whether *any* try may have been proposed: only then is an outcome unknown rather than
//! "nothing was changed".
//!
//! Decision: a try is abandoned as soon as another leader is known, not after a timeout of its own, because the old
//! leader may be stopped with its connections open (SIGSTOP, a cut cable) and the new one is known within an election.
//! Cost: a duplicate of the entry in the log, when the old leader's copy survives too.

use super::protocol::{Ask, Told, Verdict, wait_ms};
use crate::fs::{LogIndex, Outcome, Refusal, Request};
use crate::limits::COMMAND_BYTES_MAX;
use crate::net::{Identity, Link, Message, NetError, NodeId, Purpose};
use crate::raft::{Replica, ReplicaError};
use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout_at;

/// Pause before the second retry; it doubles up to the longest. The first retry comes at once.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Bodies above this travel on a link of their own, so that they do not delay small requests.
const SMALL_BYTES: usize = 32 << 10;
/// Links kept open at one time: three lanes to each of some nodes.
const LINKS_MAX: usize = 96;

/// What this module needs of a replica.
pub(super) trait Proposer: Clone + Send + Sync + 'static {
    fn propose(&self, request: Request, body: Bytes) -> impl Future<Output = Result<Outcome, ReplicaError>> + Send;
    fn read_index(&self) -> impl Future<Output = Result<LogIndex, ReplicaError>> + Send;
    fn leader(&self) -> LeaderWatch;
    fn members(&self) -> BTreeMap<NodeId, SocketAddr>;
}

impl Proposer for Replica {
    fn propose(&self, request: Request, body: Bytes) -> impl Future<Output = Result<Outcome, ReplicaError>> + Send {
        Replica::propose(self, request, body)
    }
    fn read_index(&self) -> impl Future<Output = Result<LogIndex, ReplicaError>> + Send {
        Replica::read_index(self)
    }
    fn leader(&self) -> LeaderWatch {
        Replica::leader(self)
    }
    fn members(&self) -> BTreeMap<NodeId, SocketAddr> {
        Replica::members(self)
    }
}

type LeaderWatch = watch::Receiver<Option<NodeId>>;

/// What a message is, for the choice of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    Confirm,
    Small,
    Bulk,
}

type LinkKey = (SocketAddr, Option<NodeId>, Lane);

/// Links to other nodes, kept while they are used.
pub(super) struct Links {
    own: Identity,
    open: Mutex<BTreeMap<LinkKey, Link>>,
}

impl Links {
    pub(super) fn new(own: Identity) -> Links {
        Links { own, open: Mutex::default() }
    }

    pub(super) fn to(&self, address: SocketAddr, expected: Option<NodeId>, lane: Lane) -> Link {
        let purpose = if lane == Lane::Confirm { Purpose::Pulse } else { Purpose::Client };
        let mut open = self.open.lock();
        if open.len() >= LINKS_MAX {
            // Members came and went; calls in flight hold their own links.
            open.clear();
        }
        let new = || Link::new(self.own.clone(), address, expected, purpose);
        open.entry((address, expected, lane)).or_insert_with(new).clone()
    }
}

/// What one try came to.
#[derive(Debug)]
enum Attempt<T> {
    Done(T),
    /// Certainly not proposed there; perhaps the leader is known now.
    Elsewhere(Option<(NodeId, SocketAddr)>),
    /// Certainly not arrived.
    Unreached,
    /// Perhaps proposed.
    Doubt,
    Stopped(String),
}

/// What all tries came to.
enum Sought<T> {
    Done { value: T, doubt: bool },
    OutOfTime { doubt: bool },
    Stopped(String),
}

/// Where the leader is.
#[derive(Clone)]
enum Seat<P> {
    Here(P),
    There(NodeId, SocketAddr),
}

pub(super) struct Forwarder<P> {
    own: NodeId,
    replica: P,
    links: Links,
}

impl<P: Proposer> Forwarder<P> {
    pub(super) fn new(own: Identity, replica: P) -> Forwarder<P> {
        // A client has no replica and never comes here; 0 is no node's number.
        Forwarder { own: own.node.unwrap_or_default(), replica, links: Links::new(own) }
    }

    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    /// Propose the request wherever the leader is, until the deadline, or until the caller gives up.
    pub(super) async fn submit(
        &self,
        request: &Request,
        body: &Bytes,
        deadline: Instant,
        give_up: impl Future<Output = ()>,
    ) -> Verdict {
        let ask = Ask::Propose { request: request.clone(), wait_ms: wait_ms(deadline) };
        let message = match ask.message(body.clone()) {
            Ok(message) if message.header.len() <= COMMAND_BYTES_MAX => message,
            _ => return Verdict::Outcome { outcome: Err(Refusal::Invalid), doubt: false },
        };
        let lane = if body.len() > SMALL_BYTES { Lane::Bulk } else { Lane::Small };
        let attempt = |seat| self.try_submit(seat, request.clone(), message.clone(), lane, deadline);
        match self.seek(deadline, give_up, attempt).await {
            Sought::Done { value: outcome, doubt } => Verdict::Outcome { outcome, doubt },
            Sought::OutOfTime { doubt: true } => Verdict::InDoubt,
            Sought::OutOfTime { doubt: false } => Verdict::NotSent,
            Sought::Stopped(why) => Verdict::Stopped(why),
        }
    }

    /// An index that everything completed before this call is at or below, by the leader's word. `None`: not in time.
    pub(super) async fn read_index(&self, deadline: Instant) -> Result<Option<LogIndex>, String> {
        match self.seek(deadline, pending(), |seat| self.try_read_index(seat, deadline)).await {
            Sought::Done { value, .. } => Ok(Some(value)),
            Sought::OutOfTime { .. } => Ok(None),
            Sought::Stopped(why) => Err(why),
        }
    }

    async fn seek<T, F: Future<Output = Attempt<T>>>(
        &self,
        deadline: Instant,
        give_up: impl Future<Output = ()>,
        attempt: impl Fn(Seat<P>) -> F,
    ) -> Sought<T> {
        let mut give_up = pin!(give_up.fuse());
        let mut doubt = false;
        let mut hint = None;
        let mut pauses = Pauses::default();
        let mut leader = self.replica.leader();
        while Instant::now() < deadline {
            let Some((node, seat)) = self.seat(hint.take(), &mut leader) else {
                if !pause(&mut leader, PAUSE_MAX, deadline, give_up.as_mut()).await {
                    break;
                }
                continue;
            };
            let result = tokio::select! {
                result = attempt(seat) => result,
                () = self.unseated(node) => Attempt::Doubt,
                () = give_up.as_mut() => return Sought::OutOfTime { doubt: true },
            };
            match result {
                Attempt::Done(value) => return Sought::Done { value, doubt },
                // Raft has ended here, perhaps after it had sent the entry out.
                Attempt::Stopped(_) if doubt => return Sought::OutOfTime { doubt },
                Attempt::Stopped(why) => return Sought::Stopped(why),
                Attempt::Elsewhere(known) => hint = known.filter(|(other, _)| *other != node),
                Attempt::Unreached => {}
                Attempt::Doubt => doubt = true,
            }
            if !pause(&mut leader, pauses.next(), deadline, give_up.as_mut()).await {
                break;
            }
        }
        Sought::OutOfTime { doubt }
    }

    /// Where to try next: what the last refusal said, else what Raft says.
    fn seat(&self, hint: Option<(NodeId, SocketAddr)>, leader: &mut LeaderWatch) -> Option<(NodeId, Seat<P>)> {
        let known = *leader.borrow_and_update();
        let node = hint.map(|(node, _)| node).or(known)?;
        if node == self.own {
            return Some((node, Seat::Here(self.replica.clone())));
        }
        let address = match hint {
            Some((_, address)) => address,
            None => *self.replica.members().get(&node)?,
        };
        Some((node, Seat::There(node, address)))
    }

    /// Until another node than this is known to lead.
    async fn unseated(&self, node: NodeId) {
        let mut leader = self.replica.leader();
        if *leader.borrow_and_update() != Some(node) {
            // We went by a hint that is newer than what Raft says here: only a change of that counts.
            let _ = leader.changed().await;
        }
        if leader.wait_for(|known| known.is_some_and(|known| known != node)).await.is_err() {
            pending().await
        }
    }

    async fn try_submit(
        &self,
        seat: Seat<P>,
        request: Request,
        message: Message,
        lane: Lane,
        deadline: Instant,
    ) -> Attempt<Outcome> {
        match seat {
            Seat::Here(replica) => here(&replica, deadline, replica.propose(request, message.body)).await,
            Seat::There(node, address) => {
                let link = self.links.to(address, Some(node), lane);
                match told(link.call(message, deadline).await) {
                    Ok(Told::Outcome(outcome)) => Attempt::Done(outcome),
                    other => elsewhere(other),
                }
            }
        }
    }

    async fn try_read_index(&self, seat: Seat<P>, deadline: Instant) -> Attempt<LogIndex> {
        match seat {
            Seat::Here(replica) => here(&replica, deadline, replica.read_index()).await,
            Seat::There(node, address) => {
                let link = self.links.to(address, Some(node), Lane::Confirm);
                let Ok(message) = (Ask::ReadIndex { wait_ms: wait_ms(deadline) }).message(Bytes::new()) else {
                    return Attempt::Unreached;
                };
                match told(link.call(message, deadline).await) {
                    Ok(Told::Index(index)) => Attempt::Done(index),
                    other => elsewhere(other),
                }
            }
        }
    }
}

/// Wait a while, or until the leader changes. False: the caller has given up.
async fn pause(
    leader: &mut LeaderWatch,
    time: Duration,
    deadline: Instant,
    give_up: Pin<&mut impl Future<Output = ()>>,
) -> bool {
    let until = deadline.min(Instant::now() + time);
    let change = async {
        if leader.changed().await.is_err() {
            pending().await
        }
    };
    tokio::select! {
        _ = timeout_at(until.into(), change) => true,
        () = give_up => false,
    }
}

/// Ask the replica of this process.
async fn here<P: Proposer, T>(
    replica: &P,
    deadline: Instant,
    call: impl Future<Output = Result<T, ReplicaError>>,
) -> Attempt<T> {
    match timeout_at(deadline.into(), call).await {
        Ok(Ok(value)) => Attempt::Done(value),
        Ok(Err(ReplicaError::NotLeader { leader })) => Attempt::Elsewhere(leader.and_then(|n| at(replica, n))),
        Ok(Err(ReplicaError::Stopped { why })) => Attempt::Stopped(why),
        Ok(Err(ReplicaError::Unknown)) | Err(_) => Attempt::Doubt,
    }
}

/// The leader with its address.
pub(super) fn at<P: Proposer>(replica: &P, node: NodeId) -> Option<(NodeId, SocketAddr)> {
    replica.members().get(&node).map(|address| (node, *address))
}

/// What another node said; `Err` says whether the message may have arrived.
pub(super) fn told(answer: Result<Message, NetError>) -> Result<Told, NetError> {
    let message = answer.inspect_err(|e| tracing::debug!("a forwarded message failed: {e}"))?;
    // Not decodable: an answer of another build, so the message has arrived.
    Ok(Told::from_message(&message).unwrap_or_else(|e| {
        tracing::warn!("cannot use a node's answer: {e}");
        Told::Unknown
    }))
}

/// Every answer but the one that was hoped for.
fn elsewhere<T>(answer: Result<Told, NetError>) -> Attempt<T> {
    match answer {
        Ok(Told::NotLeader { leader }) => Attempt::Elsewhere(leader),
        Err(e) if !e.may_have_arrived() => Attempt::Unreached,
        _ => Attempt::Doubt,
    }
}

/// Pauses between tries: none, then doubling.
#[derive(Default)]
pub(super) struct Pauses {
    tries: u32,
}

impl Pauses {
    pub(super) fn next(&mut self) -> Duration {
        self.tries += 1;
        match self.tries {
            1 => Duration::ZERO,
            n => PAUSE_FIRST.saturating_mul(1 << (n - 2).min(10)).min(PAUSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests;
