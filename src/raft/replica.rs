//! One node's replica: what `volume` and `node` hold of Raft.

use super::Machine;
use super::clock::{self, Clock};
use super::compare::Comparison;
use super::disks::{Disks, Verdict, Voters};
use super::ending::{Ending, Endings};
use super::introduce::{self, Registrar, noted};
use super::membership::Member;
use super::payload;
use super::publish::Published;
use super::scrub::{ScrubHandle, ScrubStatus};
use super::server::Server;
use super::store::blocking;
use super::types::*;
use crate::fs::{
    Answer, ClusterTime, Command, Credentials, Expected, LogIndex, NodeStart, Outcome, Query, Refusal, Request,
    Sequence, SessionId, State, Timestamp,
};
use crate::limits::{BODY_BYTES_MAX, COMMAND_BYTES_MAX};
use crate::log::{Body, Log, StorageError};
use crate::net::{Caller, Expulsion, Judge, Message, NodeId, Start};
use crate::seeded::{Bug, planted};
use anyhow::Context;
use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::{Raft, RaftMetrics, ReadPolicy};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Bytes of proposals that are in flight on a leader: queued, replicated, not yet applied.
pub(super) const PROPOSED_BYTES_MAX: usize = 64 << 20;
/// What even the smallest proposal counts for, so that their number is bounded too: 4096.
const PROPOSAL_BYTES_MIN: usize = 16 << 10;
/// Bytes that the times of a stamp may add to an encoded command.
const STAMP_BYTES_MAX: usize = 32;

const _: () = assert!(PROPOSED_BYTES_MAX > 2 * (BODY_BYTES_MAX + COMMAND_BYTES_MAX));
const _: () = assert!(PROPOSED_BYTES_MAX <= u32::MAX as usize);

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
    /// `leader`, `follower`, `candidate`, `learner` or `shutdown`.
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
    pub compared: Comparison,
    pub scrub: ScrubStatus,
    /// Bytes that this node's disk takes before its reserve is touched.
    pub free_bytes: u64,
    /// Nothing that makes the tree grow is written here until there is room again.
    pub storage_full: bool,
}

/// One node's replica of the file system: its Raft, its log, its published state. Clones are the same replica.
#[derive(Clone)]
pub struct Replica {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) own: NodeId,
    pub(super) start: Start,
    pub(super) raft: Raft<Types, Machine>,
    pub(super) log: Log,
    pub(super) published: Arc<Published>,
    pub(super) clock: Clock,
    pub(super) server: Server,
    pub(super) proposed_bytes: Arc<Semaphore>,
    pub(super) leader: watch::Receiver<Option<NodeId>>,
    pub(super) endings: Endings,
    pub(super) compared: Arc<parking_lot::Mutex<Comparison>>,
    pub(super) scrub: ScrubHandle,
    pub(super) disks: Arc<Disks>,
    pub(super) registrar: Arc<Registrar>,
    /// A node that has not answered for so long counts as dead.
    pub(super) silence_max: Duration,
    pub(super) stop: CancellationToken,
}

impl Replica {
    /// Once in a cluster's life, on one node with an empty log.
    pub async fn initialize(&self, members: BTreeMap<NodeId, SocketAddr>) -> anyhow::Result<()> {
        let nodes: BTreeMap<u64, Member> = members.into_iter().map(|(id, at)| (id, Member::at(at))).collect();
        self.inner.raft.initialize(nodes).await.context("this node cannot initialize a cluster")
    }

    /// Stamp and propose; returns after this replica has applied it. If the future is dropped, the outcome is unknown.
    ///
    /// A request or body over the limits is refused as `Invalid` before it is proposed, and so is one that makes the tree
    /// grow, as `NoSpace`, when too many disks are full ([`disks`](super::disks)). When even the reserve is used up, nothing
    /// is proposed.
    pub async fn propose(&self, request: Request, body: Bytes) -> Result<Outcome, ReplicaError> {
        let inner = &self.inner;
        inner.leading()?;
        // Encoded once to know its size, and again with its stamp.
        let mut stamped = Stamped { cluster: ClusterTime(0), wall: Timestamp::default(), request };
        let command_bytes =
            payload::encode_command(&stamped).map_or(usize::MAX, |command| command.len() + STAMP_BYTES_MAX);
        if command_bytes > COMMAND_BYTES_MAX || body.len() > BODY_BYTES_MAX {
            return Ok(Err(Refusal::Invalid));
        }
        let bytes = (command_bytes + body.len()).max(PROPOSAL_BYTES_MIN);
        let permit = inner.proposed_bytes.clone().acquire_many_owned(bytes as u32).await;
        let permit = permit.map_err(|e| ReplicaError::Stopped { why: e.to_string() })?;
        // Looked at once more after the wait: the stamp belongs to this term and to no other.
        let leader = inner.leading()?;
        if stamped.request.command.grows()
            && let Some(refused) = inner.refuse_growth()
        {
            return refused;
        }
        if inner.is_exhausted() {
            return Err(ReplicaError::NotLeader { leader: None });
        }
        stamped.cluster = inner.clock.stamp(leader.term, inner.published.root().cluster_time(), Instant::now());
        stamped.wall = clock::wall();
        if planted(Bug::WallClockExpiry) {
            stamped.cluster = clock::of_the_wall(stamped.wall);
        }
        if planted(Bug::CasNotAtomic) {
            judge_early(&inner.published.root(), &mut stamped.request.command);
        }
        let Ok(command) = payload::encode_command(&stamped) else { return Ok(Err(Refusal::Invalid)) };
        let proposal = Proposal { command, stamped: Arc::new(stamped), body: Body::Bytes(body) };
        // In a task of its own: the proposal occupies its bytes until Raft is done with it, though the caller may go.
        let written = tokio::spawn(write(inner.raft.clone(), leader, proposal, permit, inner.own));
        written.await.unwrap_or(Err(ReplicaError::Unknown))
    }

    /// Leader only: an index that every command completed before this call began is at or below. The caller waits until it
    /// is applied.
    ///
    /// openraft coalesces: a read waits for a heartbeat round that started after it came (`core/raft_core.rs`,
    /// `handle_get_linearizer`), rounds to a peer that is still answering merge, and one round's quorum answers all reads
    /// before it. In a new term the index is at least that of the leader's own blank entry (`ReadLogId::new`), so nothing is
    /// read before everything of earlier terms has been applied. That is also what bars a restarted process from answering
    /// too early: no leader resumes its term, and a follower asks the leader.
    pub async fn read_index(&self) -> Result<LogIndex, ReplicaError> {
        let inner = &self.inner;
        inner.going_on()?;
        match inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(LogIndex(linearizer.read_log_id().index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(not_leader(&forward, inner.own))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ReplicaError::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(fatal)) => Err(inner.stopped(&fatal)),
        }
    }

    /// The newest published state; never waits.
    pub fn state(&self) -> Arc<State> {
        self.inner.published.root()
    }

    /// Wait until this replica has applied `index`; `false` if the deadline passed first.
    pub async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> bool {
        self.inner.published.wait(index, deadline).await
    }

    /// Changes whenever a batch has been applied and published: the applied index.
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        self.inner.published.watch()
    }

    /// The leader as this node knows it.
    pub fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.inner.leader.clone()
    }

    /// Does this node know by its own ears of a leader that works: has one sent it a message lately, or, if this node
    /// leads, have so many answered it lately that they and it are a majority? A leader whose disk is slow goes on
    /// sending and answering.
    pub fn hears_leader(&self, lately: Duration) -> bool {
        let metrics = self.metrics();
        if !metrics.state.is_leader() {
            return self.inner.server.target.peers.hears_leader(lately);
        }
        let answered = metrics.heartbeat.iter().flatten();
        let answered = answered.filter(|(_, at)| at.is_some_and(|at| at.elapsed() <= lately)).map(|(node, _)| *node);
        introduce::is_majority(&self.inner.voters(), &answered.chain([self.inner.own]).collect())
    }

    /// Cluster time now, if this node leads: what a proposal would be stamped with.
    pub fn cluster_time(&self) -> Option<ClusterTime> {
        let inner = &self.inner;
        let leader = inner.leading().ok()?;
        if planted(Bug::WallClockExpiry) {
            return Some(clock::of_the_wall(clock::wall()));
        }
        Some(inner.clock.peek(leader.term, inner.published.root().cluster_time(), Instant::now()))
    }

    /// Whether this node's disk is so full that it is left behind: what it has applied grows old.
    pub fn is_left_behind(&self) -> bool {
        self.inner.disks.is_left_behind()
    }

    /// The nodes of the membership that have an address, learners included.
    pub fn members(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.inner.server.target.peers.members()
    }

    pub fn status(&self) -> ReplicaStatus {
        let inner = &self.inner;
        let state = inner.published.root();
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        ReplicaStatus {
            role: format!("{:?}", metrics.state).to_lowercase(),
            term: metrics.current_term,
            leader: leader_of(&metrics, inner.own),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: state.applied().0,
            state_hash: format!("{:032x}", state.hash()),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            purged: metrics.purged.map_or(0, |id| id.index),
            log_bytes: inner.log.bytes_on_disk(),
            compared: inner.compared.lock().clone(),
            scrub: inner.scrub.status(),
            free_bytes: inner.disks.room().free,
            storage_full: inner.disks.is_full(),
        }
    }

    /// The state's hash right after entry `index`, if it is one of the last 65,536 applied here.
    pub fn hash_at(&self, index: LogIndex) -> Option<u128> {
        self.inner.published.hash_at(index)
    }

    /// `length` bytes from `offset` of the body of entry `index`, from this node's log.
    pub async fn read_body(&self, index: LogIndex, offset: u32, length: u32) -> Result<Bytes, StorageError> {
        let log = self.inner.log.clone();
        let read = blocking(move || Ok(log.read_body(index.0, offset, length)));
        read.await.unwrap_or_else(|source| Err(StorageError::Io { operation: "read", file: "log".into(), source }))
    }

    /// Fetch the body of a committed entry from a peer that has it intact, into this node's log: what to do about a body
    /// that is damaged or missing here. Afterwards [`Replica::read_body`] finds it.
    pub async fn fetch_body(&self, index: LogIndex) -> std::io::Result<()> {
        self.inner.server.target.fetch_body(index).await.map(drop)
    }

    /// The same in a task of its own, because of this damage, which is told once it is mended. A body that is being
    /// mended, or that lately could not be, is left alone.
    pub fn mend_body(&self, index: LogIndex, damage: &StorageError) {
        self.inner.server.target.clone().mend_soon(index, damage.to_string());
    }

    /// Answer a peer's Raft message (kinds of `raft`'s own range, below 64). Called in the order of arrival on a link.
    pub fn handle(&self, from: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        self.inner.server.handle(from, message)
    }

    /// Read and verify everything that is stored here, now and at full speed. The number of that pass, which
    /// [`ScrubStatus::demand_done`] reaches when it is done; `None`: too many passes wait.
    pub fn scrub(&self, mend: bool) -> Option<u64> {
        self.inner.scrub.demand(mend)
    }

    /// Bytes that can be written: what the disks of a majority have room for, as far as this node knows. Only a leader
    /// knows more than its own.
    pub fn writable_bytes(&self) -> u64 {
        let inner = &self.inner;
        match inner.leading() {
            Ok(_) => inner.disks.writable(&inner.voters()),
            Err(_) => inner.disks.room().free,
        }
    }

    /// Give leadership to another node. Returns when that has been asked for.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), ReplicaError> {
        self.inner.raft.trigger().transfer_leader(to).await.map_err(|fatal| self.inner.stopped(&fatal))
    }

    /// An error once this replica has ended by itself: nothing of its state may be served any more.
    pub fn going_on(&self) -> Result<(), ReplicaError> {
        self.inner.going_on()
    }

    pub fn id(&self) -> NodeId {
        self.inner.own
    }

    /// This start of this node, as the cluster notes it.
    pub fn start_noted(&self) -> NodeStart {
        noted(&self.inner.start)
    }

    /// May this start of a node talk to this one?
    pub fn admit(&self, node: NodeId, start: &Start) -> Result<(), Expulsion> {
        self.inner.registrar.admit(node, start)
    }

    /// Hold what is known here against this very process: a copy of it may have started elsewhere, or it was removed.
    pub fn examine_itself(&self) {
        if let Err(expulsion) = self.admit(self.inner.own, &self.inner.start) {
            self.inner.registrar.expelled(expulsion);
        }
    }

    /// Resolves when it is known that this process may never again take part in the cluster.
    pub async fn expelled(&self) -> Expulsion {
        let mut said = self.inner.registrar.watch();
        let said = said.wait_for(Option::is_some).await.map(|said| said.clone());
        match said {
            Ok(Some(expulsion)) => expulsion,
            _ => std::future::pending().await,
        }
    }

    /// The last entry that is committed and durable in this node's log.
    pub fn holds(&self) -> LogIndex {
        let durable = self.inner.log.state().durable.map_or(0, |id| id.index);
        self.inner.published.applied().min(LogIndex(durable))
    }

    pub(super) fn raft(&self) -> &Raft<Types, Machine> {
        &self.inner.raft
    }

    pub(super) fn metrics(&self) -> RaftMetrics<Types> {
        self.inner.raft.metrics().borrow_watched().clone()
    }

    pub(super) fn must_lead(&self) -> Result<(), ReplicaError> {
        self.inner.leading().map(drop)
    }

    pub(super) fn silence_max(&self) -> Duration {
        self.inner.silence_max
    }

    /// Resolves when Raft or the log has ended by itself, with the reason: the process must end.
    pub async fn failed(&self) -> Ending {
        self.inner.endings.wait().await
    }

    /// Stop Raft. What was proposed and not answered is unknown to its proposers.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        if let Err(e) = self.inner.raft.shutdown().await {
            tracing::error!("raft did not stop in order: {e}");
        }
    }
}

impl Inner {
    /// Under whose lead a proposal made now would stand: this node's.
    fn leading(&self) -> Result<LeaderId, ReplicaError> {
        self.going_on()?;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match &metrics.running_state {
            Err(fatal) => Err(self.stopped(fatal)),
            // The vote alone would not do: after a restart it still is the committed one of the former leader.
            Ok(()) if metrics.state.is_leader() && metrics.vote.committed => Ok(metrics.vote.leader_id),
            Ok(()) => Err(ReplicaError::NotLeader { leader: leader_of(&metrics, self.own) }),
        }
    }

    fn going_on(&self) -> Result<(), ReplicaError> {
        match self.endings.is_told() {
            false => Ok(()),
            true => Err(ReplicaError::Stopped { why: self.endings.first().map_or("?".into(), |e| e.to_string()) }),
        }
    }

    fn voters(&self) -> Voters {
        self.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().clone()
    }

    /// What is answered to a command that makes the tree grow instead of proposing it; `None`: nothing is in its way.
    fn refuse_growth(&self) -> Option<Result<Outcome, ReplicaError>> {
        match self.disks.judge(&self.voters(), self.under_way()) {
            Verdict::Propose => None,
            Verdict::Refuse => Some(Ok(Err(Refusal::NoSpace))),
            // The keeper sees to that; whoever asks looks for the next leader.
            Verdict::StepAside if self.disks.step_aside() => Some(Err(ReplicaError::NotLeader { leader: None })),
            Verdict::StepAside => Some(Ok(Err(Refusal::NoSpace))),
        }
    }

    /// Whether this node's log takes nothing any more but votes. Not a refusal: who waits and asks again, as for an unlock
    /// he must, is served as soon as there is room, or by another leader.
    fn is_exhausted(&self) -> bool {
        let is_exhausted = self.disks.is_exhausted(self.under_way());
        if is_exhausted && self.disks.successor(&self.voters()).is_some() {
            self.disks.step_aside();
        }
        is_exhausted
    }

    /// Bytes of proposals that Raft is not done with.
    fn under_way(&self) -> u64 {
        PROPOSED_BYTES_MAX.saturating_sub(self.proposed_bytes.available_permits()) as u64
    }

    /// The log's own words, if it has failed: they name the file.
    fn stopped(&self, fatal: &Fatal<Types>) -> ReplicaError {
        ReplicaError::Stopped {
            why: self.endings.first().map_or_else(|| fatal.to_string(), |ending| ending.to_string()),
        }
    }
}

/// [`Bug::CasNotAtomic`]: what holds now is not looked at again.
fn judge_early(state: &State, command: &mut Command) {
    let Command::Put { parent, name, expected, .. } = command else { return };
    let found = state.answer(&Query::Lookup { parent: *parent, name: name.clone() });
    if let Ok(Answer::Attributes(attributes)) = found
        && *expected == Expected::Version(attributes.version)
    {
        *expected = Expected::Anything;
    }
}

/// The leader as the metrics have it; this node only if it does lead.
pub(super) fn leader_of(metrics: &RaftMetrics<Types>, own: NodeId) -> Option<NodeId> {
    metrics.current_leader.filter(|leader| *leader != own || metrics.state.is_leader())
}

/// A request outside any session: what a leader proposes by itself.
pub(super) fn alone(command: Command) -> Request {
    let (session, sequence) = (SessionId(0), Sequence(0));
    Request { session, sequence, first_outstanding: sequence, credentials: Credentials::default(), command }
}

/// Nobody is sent to the node that he asked.
fn not_leader(forward: &ForwardToLeader<Types>, own: NodeId) -> ReplicaError {
    ReplicaError::NotLeader { leader: forward.leader_id.filter(|leader| *leader != own) }
}

/// Hand a proposal to Raft under this lead only, and wait for what comes of it.
async fn write(
    raft: Raft<Types, Machine>,
    leader: LeaderId,
    proposal: Proposal,
    _permit: OwnedSemaphorePermit,
    own: NodeId,
) -> Result<Outcome, ReplicaError> {
    let (responder, done) = ProgressResponder::<Types, ClientWriteResult<Types>>::complete_only();
    let queued = raft.write(proposal).with_leader(leader).responder(responder).await;
    queued.map_err(|fatal| ReplicaError::Stopped { why: fatal.to_string() })?;
    match done.await {
        Ok(Ok(response)) => match response.data {
            Applied::Outcome(outcome) => Ok(outcome),
            Applied::Nothing => Err(ReplicaError::Unknown),
        },
        // Rejected before it was appended.
        Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward, own)),
        Ok(Err(_)) | Err(_) => Err(ReplicaError::Unknown),
    }
}
