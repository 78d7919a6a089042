//! What every front end talks to: submit a command, run a query, read bytes.
//!
//! A [`Volume`] either has the replica of this process beneath it ([`Local`]) or reaches some node of the cluster as a
//! client ([`Client`]); front ends cannot tell. The promises:
//!
//! * a command takes effect once, however often it had to be sent (the session and sequence stay the same through every
//!   hop and retry), and its caller gets the reply of that one execution;
//! * a query and a read reflect every command that completed before they were asked;
//! * no wait is longer than its deadline, and [`Failure`] says exactly what is known then.
//!
//! Absent on purpose: caches, errno, and anything of the kernel's; which of these a front end needs, it keeps itself.
//!
//! The files: `session` numbers requests, `opens` knows which inodes are in use, `keeper` keeps the session alive;
//! `forward` finds the leader; `gate` coalesces read confirmations; `local` and `remote` are the two ways to the
//! cluster; `protocol` and `server` are how nodes talk to clients. Source of the exactly-once design: Ongaro's thesis,
//! chapter 6.

mod forward;
mod gate;
mod keeper;
mod local;
mod opens;
mod protocol;
mod remote;
mod server;
mod session;
mod status;

pub use local::Local;
pub use protocol::{Freshness, Head, KIND_FIRST};
pub use remote::{Client, NoAddress};
pub use server::Server;
pub use session::sessionless;
pub use status::NodeStatus;

use crate::fs::{Answer, Command, Credentials, Ino, LogIndex, Query, Refusal, Reply, Request, SessionId};
use crate::limits::{BODY_BYTES_MAX, SESSION_LABEL_BYTES_MAX};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use keeper::Standing;
use opens::Opens;
use parking_lot::Mutex;
use protocol::Verdict;
use serde::{Deserialize, Serialize};
use session::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout_at;

/// Bytes of commands that one volume has under way.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// What a command counts beside its body.
const COMMAND_BYTES: usize = 1024;
/// How long the end of a session may take when a volume is closed.
const CLOSE_TIME: Duration = Duration::from_secs(5);

const _: () = assert!(IN_FLIGHT_BYTES_MAX > 8 * (BODY_BYTES_MAX + COMMAND_BYTES));

/// What a front end holds of the cluster, whether a replica lives in this process or not. Cloning shares the session.
#[derive(Clone)]
pub struct Volume {
    shared: Arc<Shared>,
}

/// Why a call brought no reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
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

/// What the cluster can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// The way to the cluster. Its futures are boxed where it is called: they are large and deeply nested, and every front end
/// would carry them in its own. Cost: one allocation a call.
enum Access {
    Local(Local),
    Remote(Client),
}

struct Shared {
    access: Access,
    /// Names the session to people.
    label: String,
    standing: Standing,
    opens: Mutex<Opens>,
    in_flight: Semaphore,
}

impl Volume {
    /// The tree through this process's replica. `label` names its session to people (node and process). Must be called
    /// within a tokio runtime.
    pub fn local(local: Local, label: &str) -> Volume {
        Volume::new(Access::Local(local), label)
    }

    pub(crate) fn remote(client: Client, label: &str) -> Volume {
        Volume::new(Access::Remote(client), label)
    }

    fn new(access: Access, label: &str) -> Volume {
        let label = label[..label.floor_char_boundary(SESSION_LABEL_BYTES_MAX)].to_string();
        let (standing, opens) = (Standing::default(), Mutex::default());
        let shared =
            Arc::new(Shared { access, label, standing, opens, in_flight: Semaphore::new(IN_FLIGHT_BYTES_MAX) });
        keeper::start(&shared);
        Volume { shared }
    }

    /// Send a command through the log, exactly once, retrying with the same sequence number across leader changes until
    /// the deadline. Dropping the future gives the command up: it may or may not take effect.
    pub async fn submit(
        &self,
        credentials: Credentials,
        command: Command,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        self.shared.submit(None, credentials, command, body, deadline).await
    }

    /// As [`Volume::submit`], but refused as `SessionEnded`, and not executed, unless it is executed in this session: for
    /// what must not happen once the session's locks are lost.
    pub async fn submit_within(
        &self,
        session: SessionId,
        credentials: Credentials,
        command: Command,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        self.shared.submit(Some(session), credentials, command, body, deadline).await
    }

    /// Ask, linearizably: the answer reflects every command that completed before this call began.
    pub async fn query(&self, query: Query, deadline: Instant) -> Result<Answer, Failure> {
        self.query_as(query, Freshness::Linearizable, deadline).await
    }

    /// Ask the nearest state, however old: only to find what a command then re-checks (`expected` inodes), or for a mount
    /// whose user chose to read what may be stale.
    pub async fn peek(&self, query: Query, deadline: Instant) -> Result<Answer, Failure> {
        self.query_as(query, Freshness::Nearest, deadline).await
    }

    async fn query_as(&self, query: Query, freshness: Freshness, deadline: Instant) -> Result<Answer, Failure> {
        let answer = match &self.shared.access {
            Access::Local(local) => local.query(&query, freshness, deadline).boxed(),
            Access::Remote(client) => client.query(&query, freshness, deadline).boxed(),
        };
        answer.await?.map_err(Failure::Refused)
    }

    /// Up to `length` bytes of a file from `offset`, linearizable, holes as zeros; shorter only at the end of the file.
    pub async fn read(&self, ino: Ino, offset: u64, length: u32, deadline: Instant) -> Result<Bytes, Failure> {
        Ok(self.read_as(ino, offset, length, Freshness::Linearizable, deadline).await?.1)
    }

    /// As [`Volume::read`], with the freshness to choose, and with the version and size of the file that the bytes are
    /// of. All bytes are of that one version, however many there are.
    pub async fn read_as(
        &self,
        ino: Ino,
        offset: u64,
        length: u32,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<(Head, Bytes), Failure> {
        loop {
            let (head, first) = self.shared.read_once(ino, offset, length, freshness, deadline).await?;
            let wanted = head.size.saturating_sub(offset).min(length.into()) as usize;
            if first.len() >= wanted {
                return Ok((head, first));
            }
            let mut bytes = BytesMut::from(&first[..]);
            while bytes.len() < wanted {
                let (at, rest) = (offset + bytes.len() as u64, length - bytes.len() as u32);
                let (newer, more) = self.shared.read_once(ino, at, rest, freshness, deadline).await?;
                if newer != head || more.is_empty() {
                    break;
                }
                bytes.extend_from_slice(&more);
            }
            if bytes.len() == wanted {
                return Ok((head, bytes.freeze()));
            }
            // The file changed between two pieces: the whole again, of the newer version.
            if Instant::now() >= deadline {
                return Err(Failure::NoMajority);
            }
        }
    }

    /// `statfs(2)`: how much can be stored, and how much of it still, in bytes: what the disks of a majority have room for.
    pub async fn capacity(&self, deadline: Instant) -> Result<Capacity, Failure> {
        match &self.shared.access {
            Access::Local(local) => Ok(local.capacity(deadline).await),
            Access::Remote(client) => client.capacity(deadline).await,
        }
    }

    /// This volume's session: opened on first need, reopened after it ended (then with another number: locks and orphans
    /// of the earlier one are lost). Whoever opens files calls this first: only a live session is asked about orphans.
    pub async fn session(&self, deadline: Instant) -> Result<SessionId, Failure> {
        Ok(self.shared.session(deadline).await?.id)
    }

    /// Count an open of an inode, so that it is kept while unlinked. To be called before the check that the inode exists.
    /// `false`: nothing was counted, because the inode lost its names and this session has already said that it does not
    /// hold it; the caller answers as if it were gone.
    pub fn opened(&self, ino: Ino) -> bool {
        self.shared.opens.lock().opened(ino)
    }

    /// Take back one [`Volume::opened`] that returned `true`.
    pub fn closed(&self, ino: Ino) {
        self.shared.opens.lock().closed(ino);
    }

    /// Wait until something may have changed in the state since `seen` (0: returns at once), or the deadline; returns
    /// the newest applied index.
    pub async fn changed_since(&self, seen: LogIndex, deadline: Instant) -> LogIndex {
        match &self.shared.access {
            Access::Local(local) => local.changed_since(seen, deadline).await,
            Access::Remote(client) => client.changed_since(seen, deadline).await,
        }
    }

    /// End the session (unmount): locks and orphans are given up at once. Everything submitted later fails as stopped.
    pub async fn close(&self) {
        let Some(session) = self.shared.standing.close() else { return };
        let deadline = Instant::now() + CLOSE_TIME;
        let Some(ticket) = session.begin(deadline).await else { return };
        let request = ticket.request(Credentials::default(), Command::CloseSession);
        if !matches!(self.shared.send(&request, &Bytes::new(), deadline).await, Verdict::Outcome { .. }) {
            tracing::warn!("session {} was not ended in time: it ends by itself", session.id.0);
        }
    }
}

impl Shared {
    async fn submit(
        &self,
        within: Option<SessionId>,
        credentials: Credentials,
        command: Command,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        check_body(&command, &body)?;
        let _room = self.room(body.len(), deadline).await?;
        loop {
            let session = self.session(deadline).await?;
            if within.is_some_and(|only| only != session.id) {
                return Err(Refusal::SessionEnded.into());
            }
            if is_about_locks(&command) {
                session.pass_doubts(deadline).await.ok_or(Failure::NoMajority)?;
            }
            let ticket = session.begin(deadline).await.ok_or(Failure::NoMajority)?;
            let request = ticket.request(credentials, command.clone());
            let verdict = self.send(&request, &body, deadline).await;
            if is_certain(&verdict) {
                ticket.answered();
            }
            match verdict {
                Verdict::Outcome { outcome: Err(Refusal::SessionEnded), doubt } => {
                    let open_inodes = self.opens.lock().len();
                    self.standing.ended(&session, open_inodes);
                    if doubt {
                        return Err(Failure::Unknown);
                    }
                    // Certainly not executed: the command may go again as a new one.
                }
                // Refused before the log, which says nothing about the earlier try.
                Verdict::Outcome { outcome: Err(Refusal::NoSpace), doubt: true } => return Err(Failure::Unknown),
                verdict => return settle(verdict),
            }
        }
    }

    async fn send(&self, request: &Request, body: &Bytes, deadline: Instant) -> Verdict {
        let sent = match &self.access {
            Access::Local(local) => local.submit(request, body, deadline).boxed(),
            Access::Remote(client) => client.submit(request, body, deadline).boxed(),
        };
        sent.await
    }

    /// Room for a command among those that are under way.
    async fn room(&self, body_bytes: usize, deadline: Instant) -> Result<SemaphorePermit<'_>, Failure> {
        let permits = (body_bytes + COMMAND_BYTES) as u32;
        match timeout_at(deadline.into(), self.in_flight.acquire_many(permits)).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(Failure::NoMajority),
        }
    }

    async fn session(&self, deadline: Instant) -> Result<Arc<Session>, Failure> {
        self.standing.session(deadline, || self.open_session(deadline)).await
    }

    async fn open_session(&self, deadline: Instant) -> Result<Arc<Session>, Failure> {
        let request = sessionless(Command::OpenSession { label: self.label.clone() });
        match settle(self.send(&request, &Bytes::new(), deadline).await) {
            Ok(Reply::Session(id)) => Ok(Session::new(id)),
            Ok(other) => Err(Failure::Damaged(format!("opening a session was answered with {other:?}"))),
            // The command that needs the session has not been sent.
            Err(Failure::Unknown) => Err(Failure::NoMajority),
            Err(failure) => Err(failure),
        }
    }

    async fn read_once(
        &self,
        ino: Ino,
        offset: u64,
        length: u32,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<(Head, Bytes), Failure> {
        let read = match &self.access {
            Access::Local(local) => local.read(ino, offset, length, freshness, deadline).boxed(),
            Access::Remote(client) => client.read(ino, offset, length, freshness, deadline).boxed(),
        };
        read.await?.map_err(Failure::Refused)
    }
}

/// Whether a command is undone by an earlier one of the same program that is executed after it: an unlock that nobody waits
/// for any more would take the lock that was got since, and a lock stay for ever that had been given back.
fn is_about_locks(command: &Command) -> bool {
    matches!(command, Command::Lock { .. } | Command::CancelLock { .. } | Command::ReleaseOwner { .. })
}

/// Whether the command was executed or never will be.
fn is_certain(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Outcome { outcome: Err(Refusal::NoSpace | Refusal::SessionEnded), doubt } => !doubt,
        Verdict::Outcome { outcome: Err(Refusal::GivenUp), .. } => false,
        Verdict::Outcome { .. } | Verdict::NotSent => true,
        Verdict::InDoubt | Verdict::Stopped(_) => false,
    }
}

/// What a caller may know of a verdict.
fn settle(verdict: Verdict) -> Result<Reply, Failure> {
    match verdict {
        // Given up, yet still asked for: the numbers went wrong, and the first copy may have been executed.
        Verdict::Outcome { outcome: Err(Refusal::GivenUp), .. } => Err(Failure::Unknown),
        Verdict::Outcome { outcome, .. } => outcome.map_err(Failure::Refused),
        Verdict::NotSent => Err(Failure::NoMajority),
        Verdict::InDoubt => Err(Failure::Unknown),
        Verdict::Stopped(why) => Err(Failure::Stopped(why)),
    }
}

/// Refuse a body that is not the command's. What else a command may hold is apply's to judge.
fn check_body(command: &Command, body: &Bytes) -> Result<(), Refusal> {
    let length = match command {
        Command::Write { length, .. }
        | Command::Append { length, .. }
        | Command::Replace { length, .. }
        | Command::Put { length, .. } => *length as usize,
        _ => 0,
    };
    match body.len() {
        bytes if bytes > BODY_BYTES_MAX => Err(Refusal::FileTooLarge),
        bytes if bytes != length => Err(Refusal::Invalid),
        _ => Ok(()),
    }
}

/// For those who try what wild bytes do: whether this is a request or an answer of this room.
#[doc(hidden)]
pub fn wild_message(message: &crate::net::Message) -> bool {
    protocol::Ask::from_message(message).is_ok() || protocol::Told::from_message(message).is_ok()
}

#[cfg(test)]
mod tests;
