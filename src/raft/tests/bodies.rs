//! Bodies that are fetched by hand: from a peer that has them, and from one that breaks off.

use super::*;
use crate::fs::State;
use crate::log::{Body, EntryId, Threading};
use crate::raft::bodies::Fetcher;
use crate::raft::messages::{FETCH_BODIES, FetchBodies, FetchedBodies, FetchedBody};
use crate::raft::store::{completion, durable};
use parking_lot::Mutex;

const SEGMENT_BYTES: u64 = 1 << 20;

/// Cannot read the first body that it is asked for, says so, and is not to be spoken to any more.
#[derive(Default)]
struct BreaksOff {
    asked: Mutex<bool>,
}

impl Handler for BreaksOff {
    fn handle(&self, _: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        let first = !std::mem::replace(&mut *self.asked.lock(), true);
        let FetchBodies { indexes } = messages::header(&message).unwrap();
        assert!(message.kind == FETCH_BODIES && indexes.len() > 1);
        let answer = FetchedBodies { found: vec![FetchedBody::Unreadable { why: "rot".into() }] };
        std::future::ready(match first {
            true => messages::answer(FETCH_BODIES, &answer),
            false => Message::refused("no more"),
        })
    }

    fn admit(&self, _: NodeId, _: &Start) -> Result<(), Expulsion> {
        Ok(())
    }
}

/// Serve with it; where.
async fn serve_breaking_off(stop: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Server::run(listener, identity(7), Arc::new(BreaksOff::default()), stop));
    address
}

fn identity(node: NodeId) -> Identity {
    let start = Start { incarnation: 1000, run: 1000, ..Start::default() };
    Identity { cluster: uuid::Uuid::from_u128(1), node: Some(node), start, keys: None }
}

/// Of node 2, which is no member.
fn fetcher(log: &Log, sources: Vec<(NodeId, SocketAddr)>) -> Fetcher {
    let peers = Arc::new(Peers::new(identity(2), BTreeMap::new(), Arc::default()));
    Fetcher { log: log.clone(), peers, sources, mends: false }
}

fn open(disk: &SimulatedDisk) -> Log {
    let options = Options { segment_bytes: SEGMENT_BYTES, cache_bytes: 0, seed: 1, threading: Threading::Own };
    Log::open_on(Arc::new(disk.clone()), options).unwrap()
}

/// One node with some small files: it, where it is, and what it is at.
async fn with_files() -> (Cluster, (NodeId, SocketAddr), Arc<State>, Vec<u64>) {
    let mut cluster = Cluster::start(1).await;
    for round in 0..20u8 {
        cluster.put(&format!("file-{round}"), body(round, 3000)).await;
    }
    let (state, source) = (cluster.replica(1).state(), (1, cluster.nodes[0].address));
    let live: Vec<u64> = state.live_bodies(LogIndex(0)).map(|index| index.0).collect();
    assert_eq!(live.len(), 20);
    (cluster, source, state, live)
}

fn lacks(log: &Log, live: &[u64]) -> usize {
    live.iter().filter(|index| !log.has_body(**index)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_be_fetched_is_stored_here() {
    let (_cluster, source, state, live) = with_files().await;

    // The disk has no room: that is said, though another could be asked.
    let disk = SimulatedDisk::new();
    disk.set_capacity(Some(SEGMENT_BYTES + (64 << 10)));
    let log = open(&disk);
    let on_full = fetcher(&log, vec![source, source]);
    let why = on_full.fetch_missing(&state, 0..0, |_| ()).await.err().expect("there is no room").to_string();
    assert!(why.contains("disk is full"), "{why}");
    assert_eq!(lacks(&log, &live), 20);
    disk.set_capacity(None);
    on_full.fetch_missing(&state, 0..0, |_| ()).await.unwrap();
    assert_eq!(lacks(&log, &live), 0);

    // The first one asked cannot read a body, and is gone then: the next is asked for that one too.
    let stop = CancellationToken::new();
    let log = open(&SimulatedDisk::new());
    let sources = vec![(7, serve_breaking_off(stop.clone()).await), source];
    fetcher(&log, sources).fetch_missing(&state, 0..0, |_| ()).await.unwrap();
    assert_eq!(lacks(&log, &live), 0);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_from_a_peer_is_not_fetched_again_and_what_came_with_a_doubtful_entry_is() {
    let (_cluster, source, state, live) = with_files().await;
    let doubtful = 0..u64::MAX;
    let log = open(&SimulatedDisk::new());
    fetcher(&log, vec![source]).fetch_missing(&state, doubtful.clone(), |_| ()).await.unwrap();
    assert!(fetcher(&log, Vec::new()).fetch_missing(&state, doubtful.clone(), |_| ()).await.is_ok());

    let log = open(&SimulatedDisk::new());
    let entry = |index| crate::log::Entry {
        id: EntryId { term: 9, node: 9, index },
        command: Bytes::from_static(b"command"),
        body: Body::Bytes(Bytes::from_static(b"of a leader that was deposed")),
    };
    let (done, appended) = completion();
    log.append((0..=*live.last().unwrap()).map(entry).collect(), done);
    durable(appended).await.unwrap();
    assert_eq!(lacks(&log, &live), 0);
    assert!(fetcher(&log, Vec::new()).fetch_missing(&state, doubtful, |_| ()).await.is_err());
}
