//! Volumes over real links to nodes that have the real state machine but no Raft: what a client's session promises when
//! answers are lost, requests are held back and sessions end.

use super::*;
use crate::fs::{AttributeChanges, ClusterTime, LockMode, NewNode, Piece, Sequence, Stamp, State, Timestamp};
use crate::limits::SESSION_TTL_NS;
use crate::net::{Caller, Handler, Identity, Message, Server as NetServer};
use protocol::{Ask, Told};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What happens to the next command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is applied, but its answer is lost.
    Unknown,
    /// It is lost before it is applied.
    NotSent,
    /// It is held back, and its sender hears nothing.
    Held,
}

/// A whole cluster in one state: applies what it is sent, at once.
#[derive(Clone)]
struct Cluster {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    state: State,
    bodies: BTreeMap<LogIndex, Bytes>,
    cluster_time: ClusterTime,
    fates: Vec<Fate>,
    held: Vec<(Request, Bytes)>,
    /// Questions for orphans are not answered.
    orphans_hang: bool,
}

impl Cluster {
    fn new() -> Cluster {
        let (bodies, fates, held, orphans_hang) = Default::default();
        let inner = Inner { state: State::new(), bodies, cluster_time: ClusterTime(1), fates, held, orphans_hang };
        Cluster { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The next commands meet these fates, the first one first.
    fn fates(&self, fates: &[Fate]) {
        self.inner.lock().fates = fates.iter().rev().copied().collect();
    }

    fn apply(&self, request: &Request, body: &Bytes) -> crate::fs::Outcome {
        self.inner.lock().apply(request, body)
    }

    fn submit(&self, request: Request, body: Bytes) -> Option<Verdict> {
        let fate = self.inner.lock().fates.pop();
        match fate {
            None => Some(Verdict::Outcome { outcome: self.apply(&request, &body), doubt: false }),
            Some(Fate::Unknown) => {
                let _ = self.apply(&request, &body);
                Some(Verdict::InDoubt)
            }
            Some(Fate::NotSent) => Some(Verdict::NotSent),
            Some(Fate::Held) => {
                self.inner.lock().held.push((request, body));
                None
            }
        }
    }

    fn read(&self, ino: Ino, offset: u64, length: u32) -> (Told, Bytes) {
        let inner = self.inner.lock();
        let length = length.min(local::READ_BYTES_MAX).into();
        let content = match inner.state.answer(&Query::Content { ino, offset, length }) {
            Ok(Answer::Content(content)) => content,
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => return (Told::Contents(Err(refusal)), Bytes::new()),
        };
        let mut bytes = BytesMut::new();
        for piece in content.pieces {
            match piece {
                Piece::Hole { length } => bytes.resize(bytes.len() + length as usize, 0),
                Piece::Body { index, offset, length } => {
                    bytes.extend_from_slice(&inner.bodies[&index][offset as usize..][..length as usize]);
                }
            }
        }
        (Told::Contents(Ok(Head { version: content.version, size: content.size })), bytes.freeze())
    }

    /// End every session, as if its time were over.
    fn end_sessions(&self) {
        let due = {
            let mut inner = self.inner.lock();
            inner.cluster_time.0 += 2 * SESSION_TTL_NS;
            inner.state.due(inner.cluster_time, 1000)
        };
        for command in due {
            self.apply(&sessionless(command), &Bytes::new()).unwrap();
        }
    }

    async fn serve(&self) -> (SocketAddr, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = Identity { cluster: uuid::Uuid::from_u128(1), node: Some(1), start: Default::default(), keys: None };
        let stop = CancellationToken::new();
        tokio::spawn(NetServer::run(listener, own, Arc::new(self.clone()), stop.clone()));
        (address, stop.drop_guard())
    }
}

impl Inner {
    fn apply(&mut self, request: &Request, body: &Bytes) -> crate::fs::Outcome {
        let index = LogIndex(self.state.applied().0 + 1);
        self.cluster_time.0 += 1;
        let stamp = Stamp { index, cluster: self.cluster_time, wall: Timestamp { seconds: index.0 as i64, nanos: 0 } };
        self.bodies.insert(index, body.clone());
        self.state.apply(stamp, request, body.len() as u64)
    }

    /// Files that come and go in a session which then ends, all before anybody can ask.
    fn make_orphans(&mut self, count: usize) {
        let opened = self.apply(&sessionless(Command::OpenSession { label: String::new() }), &Bytes::new());
        let Ok(Reply::Session(session)) = opened else { panic!("{opened:?}") };
        let unlink = Command::Unlink { parent: Ino::ROOT, name: name("f"), expected: None };
        let churn = std::iter::repeat_n([make(), unlink], count).flatten().chain([Command::CloseSession]);
        for (sequence, command) in (1..).map(Sequence).zip(churn) {
            let credentials = Credentials::default();
            let request = Request { session, sequence, first_outstanding: sequence, credentials, command };
            self.apply(&request, &Bytes::new()).unwrap();
        }
    }
}

impl Handler for Cluster {
    fn handle(&self, _: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        let told = match Ask::from_message(&message).unwrap() {
            Ask::Submit { request, .. } => {
                self.submit(request, message.body).map(|verdict| (Told::Verdict(verdict), Bytes::new()))
            }
            Ask::Query { query, .. } => Some((Told::Answer(self.inner.lock().state.answer(&query)), Bytes::new())),
            Ask::Read { ino, offset, length, .. } => Some(self.read(ino, offset, length)),
            Ask::Orphans { .. } if self.inner.lock().orphans_hang => None,
            Ask::Orphans { session, after } => {
                Some((Told::Orphans(self.inner.lock().state.orphans_of(session, after, 100)), Bytes::new()))
            }
            Ask::Members => Some((Told::Members(BTreeMap::new()), Bytes::new())),
            other => panic!("{other:?}"),
        };
        async move {
            match told {
                Some((told, body)) => told.message(body),
                None => std::future::pending().await,
            }
        }
    }
}

/// An address that refuses every connection for as long as the socket lives: no other test can be given its port.
pub(super) fn nobody() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn client(addresses: &[SocketAddr]) -> Volume {
    Client::new(addresses.to_vec(), uuid::Uuid::nil()).unwrap().volume("test")
}

fn name(name: &str) -> crate::fs::Name {
    crate::fs::Name::new(name.as_bytes()).unwrap()
}

async fn submit(volume: &Volume, command: Command, body: &str) -> Result<Reply, Failure> {
    volume.submit(Credentials::default(), command, Bytes::copy_from_slice(body.as_bytes()), later()).await
}

fn make() -> Command {
    Command::Make { parent: Ino::ROOT, name: name("f"), node: NewNode::File, mode: 0o644, umask: 0 }
}

async fn make_file(volume: &Volume) -> Ino {
    match submit(volume, make(), "").await {
        Ok(Reply::Attributes(attributes)) => attributes.ino,
        other => panic!("{other:?}"),
    }
}

fn append(ino: Ino) -> Command {
    Command::Append { ino, length: 2 }
}

#[tokio::test]
async fn a_command_takes_effect_once_although_answers_and_requests_are_lost() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let volume = client(&[address]);
    cluster.fates(&[Fate::NotSent, Fate::Unknown, Fate::NotSent, Fate::Unknown, Fate::Unknown]);
    let ino = make_file(&volume).await;
    cluster.fates(&[Fate::Unknown, Fate::NotSent, Fate::Unknown].repeat(20));
    let appends = (10..60).map(|i| {
        let volume = volume.clone();
        tokio::spawn(async move { submit(&volume, append(ino), &i.to_string()).await })
    });
    for append in appends.collect::<Vec<_>>() {
        assert!(matches!(append.await.unwrap(), Ok(Reply::Attributes(_))));
    }
    let bytes = volume.read(ino, 0, 1 << 20, later()).await.unwrap();
    let mut records: Vec<_> = bytes.chunks(2).map(|record| String::from_utf8_lossy(record).into_owned()).collect();
    records.sort();
    assert_eq!(records, (10..60).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_late_copy_of_a_command_that_was_given_up_changes_nothing() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let volume = client(&[address]);
    let ino = make_file(&volume).await;
    cluster.fates(&[Fate::Held]);
    let soon = Instant::now() + Duration::from_millis(200);
    let outcome = volume.submit(Credentials::default(), append(ino), Bytes::from_static(b"xx"), soon).await;
    assert_eq!(outcome, Err(Failure::Unknown));
    assert!(submit(&volume, append(ino), "ok").await.is_ok());
    let (request, body) = cluster.inner.lock().held.pop().unwrap();
    assert_eq!(cluster.apply(&request, &body), Err(Refusal::GivenUp));
    assert_eq!(volume.read(ino, 0, 100, later()).await.unwrap(), "ok");
}

/// Even if a number below keeps the given-up one alive.
#[tokio::test]
async fn an_unlock_that_was_given_up_never_takes_the_lock_that_was_got_since() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let volume = client(&[address]);
    let ino = make_file(&volume).await;
    let session = volume.session(later()).await.unwrap();
    let (owner, range) = (crate::fs::LockOwner::Flock(1), crate::fs::LockRange { start: 0, end: u64::MAX });
    let lock = |mode| Command::Lock { ino, owner, range, mode, pid: 1, wait: false };
    let soon = || Instant::now() + Duration::from_millis(300);
    assert!(matches!(submit(&volume, lock(LockMode::Exclusive), "").await, Ok(Reply::Locked { .. })));
    cluster.fates(&[Fate::Held, Fate::Held]);
    let below = tokio::spawn({
        let volume = volume.clone();
        async move { submit(&volume, append(ino), "xx").await }
    });
    while cluster.inner.lock().held.is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let unlock = volume.submit(Credentials::default(), lock(LockMode::Unlock), Bytes::new(), soon()).await;
    assert_eq!(unlock, Err(Failure::Unknown));
    let again = volume.submit(Credentials::default(), lock(LockMode::Exclusive), Bytes::new(), soon()).await;
    assert_eq!(again, Err(Failure::NoMajority), "not before the number below is done");
    below.abort();
    assert!(below.await.unwrap_err().is_cancelled());
    assert!(matches!(submit(&volume, lock(LockMode::Exclusive), "").await, Ok(Reply::Locked { .. })));
    let (request, body) = cluster.inner.lock().held.pop().unwrap();
    assert_eq!(cluster.apply(&request, &body), Err(Refusal::GivenUp));
    let standing = volume.query(Query::LockStanding { ino, session, owner, range }, later()).await;
    assert!(matches!(standing, Ok(Answer::LockStanding(crate::fs::LockStanding::Held { .. }))), "{standing:?}");
}

#[tokio::test]
async fn after_the_end_of_a_session_what_was_not_executed_goes_again_and_what_may_have_been_is_unknown() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let volume = client(&[address]);
    let ino = make_file(&volume).await;
    let first = volume.session(later()).await.unwrap();
    cluster.end_sessions();
    assert!(submit(&volume, append(ino), "ab").await.is_ok());
    let second = volume.session(later()).await.unwrap();
    assert_ne!(first, second);
    // The first try is applied; its retries are lost until the session has ended.
    cluster.fates(&[&[Fate::Unknown][..], &[Fate::NotSent; 10_000]].concat());
    let doubtful = tokio::spawn({
        let volume = volume.clone();
        async move { submit(&volume, append(ino), "cd").await }
    });
    while cluster.inner.lock().state.answer(&size(ino)) != Ok(Answer::Offset(Some(4))) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    cluster.end_sessions();
    cluster.fates(&[]);
    assert_eq!(doubtful.await.unwrap(), Err(Failure::Unknown));
    assert_eq!(
        volume.read(ino, 0, 100, later()).await.unwrap(),
        "abcd",
        "executed once, and never under a new session"
    );
}

/// Where the file ends: its only hole.
fn size(ino: Ino) -> Query {
    Query::Seek { ino, offset: 0, hole: true }
}

#[tokio::test]
async fn a_read_larger_than_one_answer_is_whole_and_of_one_version() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let volume = client(&[address]);
    let ino = make_file(&volume).await;
    assert!(submit(&volume, append(ino), "ab").await.is_ok());
    let size = 2 * u64::from(local::READ_BYTES_MAX) + 5;
    let changes = AttributeChanges { size: Some(size), ..Default::default() };
    assert!(submit(&volume, Command::SetAttributes { ino, changes }, "").await.is_ok());
    assert!(submit(&volume, append(ino), "yz").await.is_ok());
    let (head, bytes) = volume.read_as(ino, 0, u32::MAX, Freshness::Linearizable, later()).await.unwrap();
    assert_eq!((head.size, bytes.len() as u64), (size + 2, size + 2));
    assert!(bytes.starts_with(b"ab\0") && bytes.ends_with(b"\0yz"));
    assert_eq!(volume.read(ino, size + 1, 100, later()).await.unwrap(), "z");
    assert_eq!(volume.read(ino, size + 9, 100, later()).await.unwrap(), "");
}

#[tokio::test]
async fn an_open_file_outlives_its_name_until_its_last_close() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let (holder, other) = (client(&[address]), client(&[address]));
    let ino = make_file(&holder).await;
    let others_session = other.session(later()).await.unwrap();
    assert!(holder.opened(ino));
    let unlink = Command::Unlink { parent: Ino::ROOT, name: name("f"), expected: Some(ino) };
    assert_eq!(submit(&other, unlink, "").await.map(drop), Ok(()));
    let attributes = Query::Attributes { ino };
    while !cluster.inner.lock().state.orphans_of(others_session, Ino(0), 10).is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!other.opened(ino), "it has answered for it");
    assert!(holder.query(attributes.clone(), later()).await.is_ok(), "it is held open");
    holder.closed(ino);
    while holder.query(attributes.clone(), later()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!holder.opened(ino));
}

/// However fast files go: here a question brings 100 orphans at most, and there are 30 times as many.
#[tokio::test]
async fn orphans_do_not_wait_for_one_tick_of_the_keeper_after_the_other() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let volume = client(&[address]);
    let session = volume.session(later()).await.unwrap();
    cluster.inner.lock().make_orphans(3_000);
    let (begun, ticks) = (Instant::now(), 30);
    while !cluster.inner.lock().state.orphans_of(session, Ino(0), 1).is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() < keeper::TICK * ticks / 2);
}

#[tokio::test]
async fn a_session_is_kept_alive_although_the_question_for_orphans_is_not_answered() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let volume = client(&[address]);
    volume.session(later()).await.unwrap();
    cluster.inner.lock().orphans_hang = true;
    let opened = cluster.inner.lock().state.applied();
    let alive = async {
        while cluster.inner.lock().state.applied() == opened {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Nothing else applies anything here.
    assert!(tokio::time::timeout(Duration::from_nanos(SESSION_TTL_NS), alive).await.is_ok());
}

#[tokio::test]
async fn closing_a_volume_ends_its_session_and_dead_addresses_are_passed_over() {
    let cluster = Cluster::new();
    let (address, _guard) = cluster.serve().await;
    let (nobody, _reserved) = nobody();
    let volume = client(&[nobody, address]);
    let session = volume.session(later()).await.unwrap();
    assert!(cluster.inner.lock().state.session_exists(session));
    volume.close().await;
    assert!(!cluster.inner.lock().state.session_exists(session));
    assert!(matches!(submit(&volume, make(), "").await, Err(Failure::Stopped(_))));
    let lost = client(&[nobody]);
    let soon = Instant::now() + Duration::from_millis(100);
    assert_eq!(lost.query(Query::Usage, soon).await, Err(Failure::NoMajority));
    assert_eq!(lost.session(soon).await, Err(Failure::NoMajority));
}
