//! Replicas over real sockets, and over real files or simulated disks.

use super::introduce::Registrar;
use super::messages::{self, Progress, SnapshotBegin, SnapshotItems, SnapshotQuestion};
use super::payload::StoredMeta;
use super::peers::Peers;
use super::snapshot;
use super::types::{Types, Vote};
use super::*;
use crate::fs::{Answer, Attributes};
use crate::fs::{
    Command, Content, Credentials, Expected, ExpiryChange, Ino, LogIndex, Name, Outcome, Piece, Query, Reply, Request,
    Sequence, SessionId,
};
use crate::limits::SEGMENT_BYTES;
use crate::log::disk::{Disk, RealDisk};
use crate::log::simulated::SimulatedDisk;
use crate::log::{Log, Options};
use crate::net::{Caller, Expulsion, Handler, Identity, Message, NodeId, Purpose, Server, Start};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

mod bodies;
mod install;
mod rot;
mod space;
mod suite;

/// As a node does it: what is missing is asked of the others.
async fn open_log(
    own: &Identity,
    disk: Arc<dyn Disk>,
    options: Options,
    members: &BTreeMap<NodeId, SocketAddr>,
) -> Result<Log, crate::log::StorageError> {
    let (own, members) = (own.clone(), members.clone());
    let open = move || Log::open_supplied_on(disk, options, &|range| supply(&own, &members, range));
    tokio::task::spawn_blocking(open).await.unwrap()
}

/// One node of the test cluster: its directory and address outlive its process.
struct Node {
    id: NodeId,
    directory: TempDir,
    /// Where its log is, if not in the directory.
    disk: Option<SimulatedDisk>,
    address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    replica: Replica,
    server: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

struct Serve(Replica);

impl Handler for Serve {
    fn handle(&self, from: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        self.0.handle(from, message)
    }

    fn admit(&self, node: NodeId, start: &Start) -> Result<(), Expulsion> {
        self.0.admit(node, start)
    }
}

struct Cluster {
    nodes: Vec<Node>,
    segment_bytes: u64,
    incarnation: u64,
    session: SessionId,
    sequence: u64,
}

const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(500),
    election_max: Duration::from_millis(1000),
};
/// A snapshot every few entries.
const TUNING: Tuning = Tuning {
    snapshot_after_bytes: 256 << 10,
    keep_entries: 8,
    keep_bytes: 64 << 10,
    keep_entries_min: 2,
    scrub_bytes_per_second: 0,
};
/// Far beyond what anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

impl Cluster {
    async fn start(count: u64) -> Cluster {
        Cluster::start_with((0..count).map(|_| None).collect(), SEGMENT_BYTES).await
    }

    async fn start_on(disks: Vec<SimulatedDisk>, segment_bytes: u64) -> Cluster {
        Cluster::start_with(disks.into_iter().map(Some).collect(), segment_bytes).await
    }

    async fn start_with(disks: Vec<Option<SimulatedDisk>>, segment_bytes: u64) -> Cluster {
        let (mut nodes, count) = (Vec::new(), disks.len() as u64);
        for (id, disk) in (1..).zip(disks) {
            // Bound once to find a free port; bound again whenever the node starts.
            let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            nodes.push(Node { id, directory: tempfile::tempdir().unwrap(), disk, address, running: None });
        }
        let mut cluster = Cluster { nodes, segment_bytes, incarnation: 0, session: SessionId(0), sequence: 0 };
        for id in 1..=count {
            cluster.boot(id).await;
        }
        cluster.replica(1).initialize(cluster.addresses()).await.unwrap();
        let opened = cluster.propose(Command::OpenSession { label: "test".into() }, Bytes::new()).await;
        let Ok(Reply::Session(session)) = opened else { panic!("{opened:?}") };
        cluster.session = session;
        cluster
    }

    fn addresses(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.nodes.iter().map(|node| (node.id, node.address)).collect()
    }

    async fn boot(&mut self, id: NodeId) {
        self.incarnation += 1;
        let addresses = self.addresses();
        let node = &mut self.nodes[id as usize - 1];
        let disk: Arc<dyn Disk> = match &node.disk {
            Some(disk) => Arc::new(disk.clone()),
            None => Arc::new(RealDisk::open(node.directory.path()).unwrap()),
        };
        let options = Options { segment_bytes: self.segment_bytes, ..Options::default() };
        let start = Start { incarnation: self.incarnation, log_end: u64::MAX, ..Start::default() };
        let asks = Identity { cluster: uuid::Uuid::from_u128(1), node: Some(id), start, keys: None };
        let log = open_log(&asks, disk, options, &addresses).await.unwrap();
        let log_end = log.state().last.map_or(0, |id| id.index);
        let own = Identity { start: Start { run: self.incarnation, log_end, ..start }, ..asks };
        let replica = Replica::start_tuned(own.clone(), log, addresses, TIMING, TUNING).await.unwrap();
        let stop = CancellationToken::new();
        let listener = TcpListener::bind(node.address).await.unwrap();
        let server = tokio::spawn(Server::run(listener, own, Arc::new(Serve(replica.clone())), stop.clone()));
        node.running = Some(Running { replica, server, stop });
    }

    async fn stop(&mut self, id: NodeId) {
        let Running { replica, server, stop } = self.nodes[id as usize - 1].running.take().unwrap();
        stop.cancel();
        server.await.unwrap();
        replica.shutdown().await;
    }

    fn replica(&self, id: NodeId) -> Replica {
        self.nodes[id as usize - 1].running.as_ref().unwrap().replica.clone()
    }

    fn running(&self) -> Vec<Replica> {
        self.nodes.iter().filter_map(|node| Some(node.running.as_ref()?.replica.clone())).collect()
    }

    /// Whoever leads, once someone does.
    async fn leader(&self) -> Replica {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for replica in self.running() {
                if replica.status().role == "leader" && replica.read_index().await.is_ok() {
                    return replica;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader");
    }

    /// The next request of the session.
    fn request(&mut self, command: Command) -> Request {
        self.sequence += 1;
        let sequence = Sequence(self.sequence);
        let (session, credentials) = (self.session, Credentials::default());
        Request { session, sequence, first_outstanding: sequence, credentials, command }
    }

    /// Submit as `volume` does: the same request until there is an outcome.
    async fn propose(&mut self, command: Command, body: Bytes) -> Outcome {
        let request = self.request(command);
        loop {
            match self.leader().await.propose(request.clone(), body.clone()).await {
                Ok(outcome) => return outcome,
                Err(ReplicaError::NotLeader { .. } | ReplicaError::Unknown) => {}
                Err(stopped) => panic!("{stopped}"),
            }
        }
    }

    async fn put(&mut self, name: &str, body: Bytes) -> Attributes {
        let command = Command::Put {
            parent: Ino::ROOT,
            name: Name::new(name.as_bytes()).unwrap(),
            expected: Expected::Anything,
            expiry: ExpiryChange::Keep,
            mode: 0o644,
            length: body.len() as u32,
        };
        match self.propose(command, body).await {
            Ok(Reply::Attributes(attributes)) => attributes,
            other => panic!("{other:?}"),
        }
    }

    /// All that run have applied what the leader has, and have the same hash there.
    async fn agree(&self) {
        let index = self.leader().await.read_index().await.unwrap();
        let mut hashes = Vec::new();
        for replica in self.running() {
            assert!(replica.wait_applied(index, Instant::now() + PATIENCE).await, "{:?}", replica.status());
            hashes.push(replica.hash_at(index).expect("recent"));
            replica.state().check().unwrap();
        }
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "hashes at {index:?}: {hashes:?}");
    }
}

/// The whole content of a file, from one replica's state and log.
async fn read(replica: &Replica, ino: Ino) -> Vec<u8> {
    let state = replica.state();
    let Ok(Answer::Content(Content { pieces, .. })) =
        state.answer(&Query::Content { ino, offset: 0, length: u64::MAX >> 1 })
    else {
        panic!("no content")
    };
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Hole { length } => bytes.resize(bytes.len() + length as usize, 0),
            Piece::Body { index, offset, length } => {
                bytes.extend_from_slice(&replica.read_body(index, offset, length).await.unwrap());
            }
        }
    }
    bytes
}

fn body(seed: u8, length: usize) -> Bytes {
    (0..length).map(|i| seed.wrapping_add((i / 7) as u8)).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_dies_and_a_laggard_is_brought_back_by_a_snapshot() {
    let mut cluster = Cluster::start(3).await;
    let early = cluster.put("early", body(1, 200_000)).await;
    cluster.agree().await;

    // The leader dies: another goes on, with everything that was answered.
    let first = cluster.leader().await.status().leader.unwrap();
    cluster.stop(first).await;
    let second = cluster.put("after-failover", body(2, 100)).await;
    assert!(second.version > early.version);

    // The dead one misses more than the log keeps: files that stay, files that are gone again.
    let mut kept = Vec::new();
    for round in 0..40u8 {
        kept.push((cluster.put(&format!("kept-{round}"), body(round, 50_000)).await.ino, body(round, 50_000)));
        cluster.put("overwritten", body(round, 70_000)).await;
    }
    let survivor = cluster.leader().await;
    let missed = early.version.0 + 2;
    until("the log is purged beyond what the dead node has", || survivor.status().purged > missed).await;

    cluster.boot(first).await;
    cluster.agree().await;
    let back = cluster.replica(first);
    until("it was brought back by a snapshot", || back.status().snapshot > missed).await;
    assert_eq!(read(&back, early.ino).await, body(1, 200_000), "a body that it had all along");
    for (ino, body) in &kept {
        assert_eq!(read(&back, *ino).await, *body, "a body that it fetched");
    }

    // A body that is wanted again comes again, and one that nobody refers to does not.
    back.fetch_body(early.version).await.unwrap();
    assert_eq!(read(&back, early.ino).await, body(1, 200_000), "fetched once more");
    assert!(back.fetch_body(LogIndex(1)).await.is_err());

    // What it installed survives its next restart.
    cluster.stop(first).await;
    drop(back);
    cluster.boot(first).await;
    cluster.put("last", body(9, 10)).await;
    cluster.agree().await;
    for (ino, body) in &kept {
        assert_eq!(read(&cluster.replica(first), *ino).await, *body, "after a restart");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_stop_and_start_again_with_everything() {
    let mut cluster = Cluster::start(3).await;
    let file = cluster.put("file", body(3, 1 << 20)).await;
    for round in 0..10 {
        cluster.put("file", body(round, 300_000)).await;
    }
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.boot(id).await;
    }
    cluster.put("another", body(4, 10)).await;
    cluster.agree().await;
    for replica in cluster.running() {
        assert_eq!(read(&replica, file.ino).await, body(9, 300_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_answered_and_nobody_is_sent_in_circles() {
    let mut cluster = Cluster::start(3).await;
    cluster.put("file", body(1, 10)).await;
    let leader = cluster.leader().await.status().leader.unwrap();
    let follower = leader % 3 + 1;
    let known = *cluster.replica(follower).leader().borrow();
    assert_eq!(known, Some(leader));
    let refused = cluster.replica(follower).read_index().await;
    assert_eq!(refused, Err(ReplicaError::NotLeader { leader: Some(leader) }));

    assert!(cluster.replica(leader).hears_leader(PATIENCE) && cluster.replica(follower).hears_leader(PATIENCE));
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.stop(id).await;
    }
    let alone = cluster.replica(leader);
    assert_eq!(alone.read_index().await, Err(ReplicaError::NotLeader { leader: None }));
    until("it notices that nobody answers", || !alone.hears_leader(TIMING.election_max)).await;
    assert!(!alone.wait_applied(LogIndex(1 << 40), Instant::now() + Duration::from_millis(20)).await);
    assert!(alone.hash_at(*alone.applied().borrow()).is_some());
}

/// Propose the same request to one after the other until there is an outcome: a slow machine may change leaders.
async fn persist(replicas: Vec<Replica>, request: Request, body: Bytes) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    for replica in replicas.iter().cycle() {
        match replica.propose(request.clone(), body.clone()).await {
            Ok(outcome) => return outcome,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("no replicas")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proposals_at_once_are_each_answered_once() {
    let mut cluster = Cluster::start(3).await;
    let (session, first) = (cluster.session, cluster.sequence + 1);
    let proposals = (0..300u64).map(|i| {
        let replicas = cluster.running();
        let request = Request {
            session,
            sequence: Sequence(first + i),
            first_outstanding: Sequence(first),
            credentials: Credentials::default(),
            command: Command::Put {
                parent: Ino::ROOT,
                name: Name::new(format!("file-{i}").as_bytes()).unwrap(),
                expected: Expected::Anything,
                expiry: ExpiryChange::Keep,
                mode: 0o600,
                length: 20_000,
            },
        };
        tokio::spawn(persist(replicas, request, body(i as u8, 20_000)))
    });
    let mut versions = Vec::new();
    for proposal in proposals.collect::<Vec<_>>() {
        match proposal.await.unwrap() {
            Ok(Reply::Attributes(attributes)) => versions.push(attributes.version),
            other => panic!("{other:?}"),
        }
    }
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 300);
    cluster.sequence += 300;
    cluster.agree().await;
}

/// Send a snapshot to a replica as its leader would, up to `steps` messages, and wait for what comes of a whole one.
async fn send_snapshot(to: &Replica, from: NodeId, snapshot: (StoredMeta, Vec<Bytes>), steps: usize) -> Progress {
    let caller = Caller {
        address: ([127, 0, 0, 1], 1).into(),
        node: Some(from),
        start: Start::default(),
        purpose: Purpose::Snapshot,
    };
    let (meta, items) = snapshot;
    // Looked at first, and taken over only with a whole snapshot: none gets so far here.
    let vote = (&Vote::new_committed(1000, from)).into();
    let mut body = BytesMut::new();
    assert!(items.iter().all(|item| messages::push_item(&mut body, item)));
    let none = Bytes::new;
    let all = [
        messages::message(messages::SNAPSHOT_BEGIN, &SnapshotBegin { transfer: 1, vote, meta }, none()),
        messages::message(messages::SNAPSHOT_ITEMS, &SnapshotItems { transfer: 1, sequence: 0 }, body.freeze()),
        messages::message(messages::SNAPSHOT_END, &SnapshotQuestion { transfer: 1 }, none()),
    ];
    let whole = steps == all.len();
    for message in all.into_iter().take(steps) {
        let answer = to.handle(&caller, message.unwrap()).await;
        assert!(!matches!(messages::header(&answer).unwrap(), Progress::Installed { .. }), "{answer:?}");
    }
    let mut progress = Progress::Working { bodies_fetched: 0 };
    while whole && matches!(progress, Progress::Working { .. }) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let question = SnapshotQuestion { transfer: 1 };
        let question = messages::message(messages::SNAPSHOT_PROGRESS, &question, none()).unwrap();
        progress = messages::header(&to.handle(&caller, question).await).unwrap();
    }
    progress
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_that_is_cut_at_any_step_leaves_the_old_state() {
    let mut cluster = Cluster::start(3).await;
    let early = cluster.put("early", body(7, 100)).await;
    cluster.agree().await;
    let leader = cluster.leader().await.status().leader.unwrap();
    let (laggard, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let old = *cluster.replica(laggard).applied().borrow();
    cluster.stop(laggard).await;
    let mut kept = Vec::new();
    for round in 0..30u8 {
        kept.push((cluster.put(&format!("kept-{round}"), body(round, 150_000)).await.ino, body(round, 150_000)));
    }
    let replica = cluster.leader().await;
    until("the log is purged beyond what the laggard has", || replica.status().purged > old.0 + 1).await;
    drop(replica);
    cluster.stop(leader).await;
    cluster.stop(other).await;

    // All others are down: the snapshot arrives, but no body can be fetched.
    let log = Log::open(cluster.nodes[leader as usize - 1].directory.path()).unwrap();
    let (meta, reader) = snapshot::open(&log).unwrap().unwrap();
    let items: Vec<Bytes> = reader.map(|item| item.unwrap()).collect();
    drop(log);
    let damaged = [&items[..items.len() - 2], &items[items.len() - 1..]].concat();
    for (items, steps) in [(&items, 1), (&items, 2), (&items, 3), (&damaged, 3)] {
        cluster.boot(laggard).await;
        let replica = cluster.replica(laggard);
        let progress = send_snapshot(&replica, leader, (meta.clone(), items.clone()), steps).await;
        assert_eq!(matches!(progress, Progress::Failed { .. }), steps == 3, "{progress:?}");
        assert_eq!((*replica.applied().borrow(), replica.status().snapshot), (old, 0));
        cluster.stop(laggard).await;
    }
    for id in 1..=3 {
        cluster.boot(id).await;
    }
    cluster.agree().await;
    let back = cluster.replica(laggard);
    until("it was brought back by a snapshot", || back.status().snapshot >= meta.last.index).await;
    assert_eq!(read(&back, early.ino).await, body(7, 100));
    for (ino, body) in &kept {
        assert_eq!(read(&back, *ino).await, *body);
    }
}

/// What a replica says to a candidate: its answer's kind, and the words of a refusal.
async fn vote_of(replica: &Replica, candidate: NodeId) -> (u8, String) {
    let (vote, last_log_id) = (Vote::new(1000, candidate), None);
    let request = openraft::raft::VoteRequest::<Types> { vote, last_log_id, leadership_transfer: false };
    let question = messages::VoteRequest::from(request);
    let message = messages::message(messages::VOTE, &question, Bytes::new()).unwrap();
    let (address, start) = (([127, 0, 0, 1], 1).into(), Start::default());
    let answer =
        replica.handle(&Caller { address, node: Some(candidate), start, purpose: Purpose::Pulse }, message).await;
    (answer.kind, String::from_utf8_lossy(&answer.header).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_only_a_minority_has_let_in_gives_no_vote() {
    let mut cluster = Cluster::start(3).await;
    cluster.put("file", body(1, 10)).await;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    cluster.boot(1).await;
    let alone = cluster.replica(1);
    let (kind, words) = vote_of(&alone, 3).await;
    assert!(kind != messages::VOTE && words.contains("has just started"), "{kind}: {words}");
    cluster.boot(2).await;
    let deadline = Instant::now() + PATIENCE;
    while vote_of(&alone, 3).await.0 != messages::VOTE {
        assert!(Instant::now() < deadline, "it never votes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_asked_for_copies_are_the_members_of_now_and_before_that_is_known_those_configured() {
    let mut cluster = Cluster::start(3).await;
    cluster.put("file", body(1, 10)).await;
    let leader = cluster.leader().await;
    let own =
        Identity { cluster: uuid::Uuid::from_u128(1), node: Some(leader.id()), start: Start::default(), keys: None };
    let registrar = Arc::<Registrar>::default();
    let peers = Peers::new(own, cluster.addresses(), registrar.clone());
    let others = || peers.others().into_iter().map(|(node, _)| node).collect::<Vec<_>>();
    let configured: Vec<NodeId> = (1..=3).filter(|node| *node != leader.id()).collect();
    let (removed, stays) = (configured[0], configured[1]);
    assert_eq!(others(), configured);

    registrar.follow(leader.raft().clone());
    assert_eq!(others(), configured);
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let joins = MemberChange::Add { address, name: String::new(), becomes: Becomes::Learner };
    assert_eq!(leader.change_members(joins).await, Ok(MemberChanged::Added { node: 4 }));
    leader.change_members(MemberChange::Remove { node: removed }).await.unwrap();
    peers.link(removed, cluster.addresses()[&removed], Purpose::Snapshot);
    assert_eq!(others(), [stays, 4]);
    assert_eq!(peers.others()[1].1, address);
}
