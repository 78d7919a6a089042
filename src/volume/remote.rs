//! A volume's ways without a replica in this process: any node of the cluster does the work for us.
//!
//! One message to one node at a time; when that node fails, the next address. Queries may be asked twice; commands carry
//! their session and sequence, so they may be sent twice as well.
//!
//! Decision: the first address is home, the node on our own machine as a rule, and is gone back to after a while. Cost: if
//! it is still down, one try in [`HOMESICK_TIME`] fails first.

use super::forward::{Lane, Links, Pauses, told};
use super::protocol::{Ask, Freshness, Head, Told, Verdict, wait_ms};
use super::{Capacity, Failure, NodeStatus, Volume};
use crate::fs::{Answer, Ino, LogIndex, Query, Refusal, Request, SessionId};
use crate::net::{Identity, NetError, NodeId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep_until, timeout_at};

/// How long one node may work on one message before the next one is tried: longer than an election.
const TRY_TIME: Duration = Duration::from_secs(8);
/// How long after home has failed it is tried again.
const HOMESICK_TIME: Duration = Duration::from_secs(5);
/// What a node may take to answer beyond the time that it was given.
const GRACE: Duration = Duration::from_millis(500);

/// A client of some nodes of one cluster: what the command line uses. Cloning shares the connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    addresses: Vec<SocketAddr>,
    away: Mutex<Away>,
    links: Links,
}

/// How far from home, and since when.
#[derive(Clone, Copy, Debug)]
struct Away {
    /// Position of the address in use; 0 is home.
    at: usize,
    /// When home failed last.
    since: Instant,
}

/// Why a client has nobody to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no address of a node was given: name at least one, as HOST:PORT")]
pub struct NoAddress;

impl Client {
    /// Nothing is connected yet. `cluster`: which cluster it must be (nil: whichever answers).
    pub fn new(addresses: Vec<SocketAddr>, cluster: uuid::Uuid) -> Result<Client, NoAddress> {
        if addresses.is_empty() {
            return Err(NoAddress);
        }
        let own = Identity { cluster, node: None, incarnation: 0 };
        Ok(Client {
            inner: Arc::new(Inner {
                addresses,
                away: Mutex::new(Away { at: 0, since: Instant::now() }),
                links: Links::new(own),
            }),
        })
    }

    /// The tree, through these nodes. Must be called within a tokio runtime.
    pub fn volume(&self, label: &str) -> Volume {
        Volume::remote(self.clone(), label)
    }

    /// What the first node that answers says of itself.
    pub async fn status(&self, deadline: Instant) -> Result<NodeStatus, Failure> {
        match self.ask(deadline, |_| Ask::Status).await? {
            Told::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// What the node at this address says of itself; `Err` says why it cannot be asked.
    pub async fn status_of(&self, address: SocketAddr, deadline: Instant) -> Result<NodeStatus, NetError> {
        let message = Ask::Status.message(Bytes::new());
        let message = message.map_err(|e| NetError::Refused { address, why: e.to_string() })?;
        let answer = self.inner.links.to(address, None, Lane::Small).call(message, deadline).await;
        match told(answer)? {
            Told::Status(status) => Ok(*status),
            other => Err(NetError::Refused { address, why: unexpected(&other).to_string() }),
        }
    }

    /// The state's hash right after an entry, at the first node that answers, once it has applied it. `None`: not
    /// applied in time, or no longer known there.
    pub async fn hash_at(&self, index: LogIndex, deadline: Instant) -> Result<Option<u128>, Failure> {
        match self.ask(deadline, |until| Ask::HashAt { index, wait_ms: wait_ms(until) }).await? {
            Told::Hash(hash) => Ok(hash),
            other => Err(unexpected(&other)),
        }
    }

    /// The first invariant that is broken at the node that answered last (or the first one), in words; `None`: all hold.
    pub async fn check(&self, deadline: Instant) -> Result<Option<String>, Failure> {
        // One try with all the time: it may be long work, not to be begun again and again.
        match self.try_until(self.address(), deadline, deadline, &Bytes::new(), |_| Ask::Check).await {
            Ok((Told::Checked(broken), _)) => Ok(broken),
            Ok((Told::Failed(failure), _)) => Err(failure),
            Ok((other, _)) => Err(unexpected(&other)),
            Err(_) => Err(Failure::NoMajority),
        }
    }

    /// Have this node read and verify everything that it stores; the number of that pass, if it will be made.
    pub async fn scrub(&self, mend: bool, deadline: Instant) -> Result<Option<u64>, Failure> {
        match self.ask(deadline, |_| Ask::Scrub { mend }).await? {
            Told::Scrubbing(number) => Ok(number),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn members(&self, deadline: Instant) -> Result<BTreeMap<NodeId, SocketAddr>, Failure> {
        match self.ask(deadline, |_| Ask::Members).await? {
            Told::Members(members) => Ok(members),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn submit(&self, request: &Request, body: &Bytes, deadline: Instant) -> Verdict {
        let mut doubt = false;
        let mut pauses = Pauses::default();
        while Instant::now() < deadline {
            let node = self.address();
            let tried = self.try_once(node, deadline, body, |until| Ask::Submit {
                request: request.clone(),
                wait_ms: wait_ms(until),
            });
            match tried.await {
                Ok((Told::Verdict(Verdict::Outcome { outcome, doubt: also }), _)) => {
                    return Verdict::Outcome { outcome, doubt: doubt || also };
                }
                Ok((Told::Verdict(Verdict::NotSent | Verdict::Stopped(_)), _)) => {}
                Ok(_) => doubt = true,
                Err(e) => doubt |= e.may_have_arrived(),
            }
            self.next_node(node, pauses.next(), deadline).await;
        }
        if doubt { Verdict::InDoubt } else { Verdict::NotSent }
    }

    pub(super) async fn query(
        &self,
        query: &Query,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Result<Answer, Refusal>, Failure> {
        let ask = |until| Ask::Query { query: query.clone(), freshness, wait_ms: wait_ms(until) };
        match self.ask(deadline, ask).await? {
            Told::Answer(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: u32,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Result<(Head, Bytes), Refusal>, Failure> {
        let ask = |until| Ask::Read { ino, offset, length, freshness, wait_ms: wait_ms(until) };
        match self.ask_for_bytes(deadline, ask).await? {
            (Told::Contents(head), bytes) => Ok(head.map(|head| (head, bytes))),
            (other, _) => Err(unexpected(&other)),
        }
    }

    pub(super) async fn capacity(&self, deadline: Instant) -> Result<Capacity, Failure> {
        match self.ask(deadline, |until| Ask::Capacity { wait_ms: wait_ms(until) }).await? {
            Told::Capacity(capacity) => Ok(capacity),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn orphans_of(
        &self,
        session: SessionId,
        after: Ino,
        deadline: Instant,
    ) -> Result<Vec<Ino>, Failure> {
        match self.ask(deadline, |_| Ask::Orphans { session, after }).await? {
            Told::Orphans(orphans) => Ok(orphans),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn changed_since(&self, seen: LogIndex, deadline: Instant) -> LogIndex {
        match self.ask(deadline, |until| Ask::Changed { seen, wait_ms: wait_ms(until) }).await {
            Ok(Told::Index(index)) => index.max(seen),
            _ => seen,
        }
    }

    async fn ask(&self, deadline: Instant, ask: impl Fn(Instant) -> Ask) -> Result<Told, Failure> {
        Ok(self.ask_for_bytes(deadline, ask).await?.0)
    }

    /// Ask one node after the other until one answers; `ask` gets the time until which the node may work on it.
    async fn ask_for_bytes(&self, deadline: Instant, ask: impl Fn(Instant) -> Ask) -> Result<(Told, Bytes), Failure> {
        let mut pauses = Pauses::default();
        while Instant::now() < deadline {
            let node = self.address();
            match self.try_once(node, deadline, &Bytes::new(), &ask).await {
                Ok((Told::Failed(Failure::Damaged(why)), _)) => return Err(Failure::Damaged(why)),
                Ok((Told::Failed(_) | Told::Unknown, _)) | Err(_) => {
                    self.next_node(node, pauses.next(), deadline).await
                }
                Ok(answer) => return Ok(answer),
            }
        }
        Err(Failure::NoMajority)
    }

    async fn try_once(
        &self,
        node: SocketAddr,
        deadline: Instant,
        body: &Bytes,
        ask: impl Fn(Instant) -> Ask,
    ) -> Result<(Told, Bytes), NetError> {
        self.try_until(node, deadline.min(Instant::now() + TRY_TIME), deadline, body, ask).await
    }

    /// One message to one node, which may work on it until `until`.
    async fn try_until(
        &self,
        address: SocketAddr,
        until: Instant,
        deadline: Instant,
        body: &Bytes,
        ask: impl Fn(Instant) -> Ask,
    ) -> Result<(Told, Bytes), NetError> {
        let message = ask(until).message(body.clone());
        let message = message.map_err(|e| NetError::Refused { address, why: e.to_string() })?;
        let lane = if body.is_empty() { Lane::Small } else { Lane::Bulk };
        let answer = self.inner.links.to(address, None, lane).call(message, deadline.min(until + GRACE)).await;
        let bytes = answer.as_ref().map(|message| message.body.clone()).unwrap_or_default();
        Ok((told(answer)?, bytes))
    }

    fn address(&self) -> SocketAddr {
        let mut away = self.inner.away.lock();
        if away.at != 0 && away.since.elapsed() >= HOMESICK_TIME {
            away.at = 0;
        }
        self.inner.addresses[away.at]
    }

    /// The node at this address has failed: use the next one, unless another call has seen to that already.
    async fn next_node(&self, failed: SocketAddr, pause: Duration, deadline: Instant) {
        self.leave(failed);
        let _ = timeout_at(deadline.into(), sleep_until((Instant::now() + pause).into())).await;
    }

    fn leave(&self, failed: SocketAddr) {
        let mut away = self.inner.away.lock();
        if self.inner.addresses[away.at] != failed {
            return;
        }
        if away.at == 0 {
            away.since = Instant::now();
        }
        away.at = (away.at + 1) % self.inner.addresses.len();
    }
}

fn unexpected(told: &Told) -> Failure {
    Failure::Damaged(format!("a node of another build answered {told:?}"))
}
