//! A node's side of the protocol: what it does for clients and for nodes that forward.
//!
//! A request is refused here, before the log, if it could not be meant: a command that only leaders propose, a body whose
//! length is not the command's, sizes beyond the limits.

use super::forward::at;
use super::local::{Local, READ_BYTES_MAX};
use super::protocol::{Ask, Freshness, Told, Verdict, deadline};
use super::{Failure, NodeStatus, check_body};
use crate::fs::{Command, LogIndex, NodeCommand, Refusal, Request, SessionId};
use crate::limits::{BODY_BYTES_MAX, COMMAND_BYTES_MAX};
use crate::net::{Message, NodeId};
use crate::raft::{MemberChange, MemberError, ReplicaError};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout_at};

/// A node that has heard nothing of a leader for so long sends its clients on: longer than an election.
const LEADERLESS_TIME: Duration = Duration::from_millis(2500);
/// How long it keeps them in any case: one that finds no leader anywhere goes round and round.
const KEPT_TIME: Duration = Duration::from_millis(500);
/// How often a node looks whether it still hears of a leader.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a client waits for a node that is left behind.
const LEFT_BEHIND_PATIENCE: Duration = Duration::from_millis(200);

/// Handles messages of kinds from [`KIND_FIRST`](super::KIND_FIRST) on. Cloning is cheap.
#[derive(Clone)]
pub struct Server {
    local: Local,
    status: Arc<dyn Fn() -> NodeStatus + Send + Sync>,
    /// Held by the one check that runs: it cannot be stopped, and its thread is one of those that read the log.
    checking: Arc<tokio::sync::Mutex<()>>,
}

impl Server {
    pub fn new(local: Local, status: impl Fn() -> NodeStatus + Send + Sync + 'static) -> Server {
        Server { local, status: Arc::new(status), checking: Arc::default() }
    }

    /// Answer one message, within the time that it grants. `from`: the node that sent it, if it was one.
    pub fn handle(
        &self,
        from: Option<NodeId>,
        message: Message,
    ) -> impl Future<Output = Message> + Send + 'static + use<> {
        let server = self.clone();
        async move {
            let ask = match Ask::from_message(&message) {
                Ok(_) if message.header.len() > COMMAND_BYTES_MAX => {
                    return Message::refused("the request is too large");
                }
                Ok(ask) => ask,
                Err(e) => return Message::refused(e.to_string()),
            };
            if let Err(why) = ask.may_be_asked(&message.body) {
                return Message::refused(why);
            }
            let (told, body) = server.answer(from, ask, message.body).await;
            told.message(body)
        }
    }

    /// Bytes that the answer to this message may have; of what is small, 0. (See [`Handler`](crate::net::Handler).)
    pub fn answer_bytes(&self, message: &Message) -> usize {
        Ask::from_message(message).map_or(0, |ask| ask.answer_bytes())
    }

    async fn answer(&self, from: Option<NodeId>, ask: Ask, body: Bytes) -> (Told, Bytes) {
        let told = match ask {
            Ask::Propose { request, wait_ms } => self.propose(from, request, body, deadline(wait_ms)).await,
            Ask::Submit { request, wait_ms } => Told::Verdict(self.submit(request, body, deadline(wait_ms)).await),
            Ask::ReadIndex { wait_ms } => self.read_index(deadline(wait_ms)).await,
            Ask::Query { query, freshness, wait_ms } => {
                let deadline = self.patience(deadline(wait_ms));
                let answer = self.within_reach(freshness, self.local.query(&query, freshness, deadline)).await;
                answer.map_or_else(Told::Failed, Told::Answer)
            }
            Ask::Read { ino, offset, length, freshness, wait_ms } => {
                let deadline = self.patience(deadline(wait_ms));
                let read = self.local.read(ino, offset, length, freshness, deadline);
                return match self.within_reach(freshness, read).await {
                    Ok(Ok((head, bytes))) => (Told::Contents(Ok(head)), bytes),
                    Ok(Err(refusal)) => (Told::Contents(Err(refusal)), Bytes::new()),
                    Err(failure) => (Told::Failed(failure), Bytes::new()),
                };
            }
            Ask::FetchBody { index, offset, length } => return self.fetch_body(index, offset, length).await,
            Ask::Capacity { wait_ms } => Told::Capacity(self.local.capacity(deadline(wait_ms)).await),
            Ask::Writable => Told::Writable { bytes: self.local.replica().writable_bytes() },
            Ask::Orphans { session, after } => Told::Orphans(self.local.orphans_of(session, after)),
            Ask::Changed { seen, wait_ms } => Told::Index(self.local.changed_since(seen, deadline(wait_ms)).await),
            Ask::Status => Told::Status(Box::new((self.status)())),
            Ask::HashAt { index, wait_ms } => self.hash_at(index, deadline(wait_ms)).await,
            Ask::Check => self.check().await,
            Ask::Scrub { mend } => Told::Scrubbing(self.local.replica().scrub(mend)),
            Ask::Members => Told::Members(self.local.replica().members()),
            Ask::Roster => Told::Roster(Box::new(self.local.replica().roster())),
            Ask::ChangeMembers { change, wait_ms } => self.change_members(change, deadline(wait_ms)).await,
        };
        (told, Bytes::new())
    }

    /// How long a client waits for an answer from this node's state: not for long while the node is left behind, so that
    /// the client asks another.
    fn patience(&self, deadline: Instant) -> Instant {
        match self.local.replica().is_left_behind() {
            true => deadline.min(Instant::now() + LEFT_BEHIND_PATIENCE),
            false => deadline,
        }
    }

    /// An answer that takes a leader, unless there is none within this node's reach.
    async fn within_reach<T>(
        &self,
        freshness: Freshness,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match freshness {
            Freshness::Nearest => answer.await,
            Freshness::Linearizable => tokio::select! {
                answer = answer => answer,
                () = self.leaderless() => Err(Failure::NoMajority),
            },
        }
    }

    /// Resolves when this node has heard nothing of a leader for a while: it may be cut off from the leader although its
    /// clients reach another node that is not.
    async fn leaderless(&self) {
        sleep(KEPT_TIME).await;
        while self.local.replica().hears_leader(LEADERLESS_TIME) {
            sleep(LOOK_EVERY).await;
        }
    }

    async fn propose(&self, from: Option<NodeId>, request: Request, body: Bytes, deadline: Instant) -> Told {
        if let Err(refusal) = may_be_proposed(&request, &body)
            && !is_own_start(from, &request)
        {
            return Told::Outcome(Err(refusal));
        }
        match timeout_at(deadline.into(), self.local.replica().propose(request, body)).await {
            Ok(Ok(outcome)) => Told::Outcome(outcome),
            Ok(Err(error)) => self.not_proposed(error),
            Err(_) => Told::Unknown,
        }
    }

    async fn submit(&self, request: Request, body: Bytes, deadline: Instant) -> Verdict {
        match may_be_proposed(&request, &body) {
            Ok(()) => self.local.forwarder().submit(&request, &body, deadline, self.leaderless()).await,
            Err(refusal) => Verdict::Outcome { outcome: Err(refusal), doubt: false },
        }
    }

    async fn change_members(&self, change: MemberChange, deadline: Instant) -> Told {
        match timeout_at(deadline.into(), self.local.replica().change_members(change)).await {
            Ok(Ok(changed)) => Told::MembersChanged(Ok(changed)),
            Ok(Err(MemberError::Refused(why))) => Told::MembersChanged(Err(why)),
            Ok(Err(MemberError::Replica(error))) => self.not_proposed(error),
            Err(_) => Told::Unknown,
        }
    }

    async fn read_index(&self, deadline: Instant) -> Told {
        match timeout_at(deadline.into(), self.local.replica().read_index()).await {
            Ok(Ok(index)) => Told::Index(index),
            Ok(Err(error)) => self.not_proposed(error),
            Err(_) => Told::Unknown,
        }
    }

    fn not_proposed(&self, error: ReplicaError) -> Told {
        match error {
            ReplicaError::NotLeader { leader } => {
                Told::NotLeader { leader: leader.and_then(|node| at(self.local.replica(), node)) }
            }
            ReplicaError::Unknown => Told::Unknown,
            ReplicaError::Stopped { why } => Told::Failed(Failure::Stopped(why)),
        }
    }

    async fn fetch_body(&self, index: LogIndex, offset: u32, length: u32) -> (Told, Bytes) {
        if length > BODY_BYTES_MAX as u32 {
            return (Told::Failed(Failure::Refused(Refusal::Invalid)), Bytes::new());
        }
        // What is not applied here may not be committed: then it is another entry's body.
        if self.local.replica().state().applied() < index {
            return (Told::Failed(Failure::NoMajority), Bytes::new());
        }
        match self.local.own_piece(index, offset, length).await {
            Ok(bytes) => (Told::Body, bytes),
            Err(e) => (Told::Failed(Failure::Damaged(e.to_string())), Bytes::new()),
        }
    }

    async fn check(&self) -> Told {
        let one_at_a_time = self.checking.clone().lock_owned().await;
        let root = self.local.replica().state();
        // Minutes for millions of inodes, on a thread where that holds nobody up.
        let check = move || {
            let _one_at_a_time = one_at_a_time;
            root.check()
        };
        match tokio::task::spawn_blocking(check).await {
            Ok(checked) => Told::Checked(checked.err().map(|broken| broken.to_string())),
            Err(e) => Told::Failed(Failure::Stopped(e.to_string())),
        }
    }

    async fn hash_at(&self, index: LogIndex, deadline: Instant) -> Told {
        let applied = self.local.replica().wait_applied(index, deadline).await;
        Told::Hash(applied.then(|| self.local.replica().hash_at(index)).flatten())
    }
}

/// A node says that it has started: nobody else may say so.
fn is_own_start(from: Option<NodeId>, request: &Request) -> bool {
    matches!(&request.command, Command::Node(NodeCommand::Start { node, .. }) if from == Some(*node))
        && request.session == SessionId(0)
}

/// Is this a request that a client may send?
fn may_be_proposed(request: &Request, body: &Bytes) -> Result<(), Refusal> {
    let by_leaders_only = matches!(
        request.command,
        Command::EndSession { .. } | Command::Expire { .. } | Command::Tick | Command::Node(_)
    );
    let opens = matches!(request.command, Command::OpenSession { .. });
    if by_leaders_only || opens != (request.session == SessionId(0)) {
        return Err(Refusal::Invalid);
    }
    check_body(&request.command, body)
}

const _: () = assert!(READ_BYTES_MAX as usize <= crate::limits::FRAME_BODY_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX <= READ_BYTES_MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{ClusterTime, Ino, NodeStart};
    use crate::volume::session::sessionless;

    #[test]
    fn what_cannot_be_meant_is_refused_before_the_log() {
        let in_session = |command| Request { session: SessionId(7), ..sessionless(command) };
        let write = |length| Command::Write { ino: Ino(2), offset: 0, length };
        let body = Bytes::from_static(b"four");
        let none = Bytes::new();
        let refused = [
            (sessionless(Command::Tick), &none),
            (in_session(Command::Expire { ino: Ino(2), deadline: ClusterTime(1) }), &none),
            (in_session(Command::EndSession { session: SessionId(3), last_seen: ClusterTime(1) }), &none),
            (sessionless(Command::Node(NodeCommand::Allocate)), &none),
            (sessionless(write(4)), &body),
            (in_session(Command::OpenSession { label: "n".into() }), &none),
            (in_session(write(5)), &body),
            (in_session(Command::CloseSession), &body),
        ];
        for (request, body) in refused {
            assert_eq!(may_be_proposed(&request, body), Err(Refusal::Invalid), "{request:?}");
        }
        let start = NodeStart { instance: 1, incarnation: 1, run: 1, log_end: LogIndex(0) };
        let started = sessionless(Command::Node(NodeCommand::Start { node: 3, start }));
        assert_eq!(may_be_proposed(&started, &none), Err(Refusal::Invalid));
        assert_eq!([None, Some(2), Some(3)].map(|from| is_own_start(from, &started)), [false, false, true]);
        assert_eq!(may_be_proposed(&in_session(write(4)), &body), Ok(()));
        assert_eq!(may_be_proposed(&sessionless(Command::OpenSession { label: "n".into() }), &none), Ok(()));
    }
}
