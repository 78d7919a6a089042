//! Three nodes in this process: real logs, real Raft, real links on loopback; no mounts.

use super::*;
use crate::fs::{Answer, Command, Credentials, Expected, ExpiryChange, Ino, LogIndex, Name, Query, Refusal, Reply};
use crate::log::rot::rot;
use crate::volume::Failure;
use bytes::Bytes;
use std::path::Path;
use tokio::time::sleep;

const CLUSTER: Uuid = Uuid::from_u128(0x5eed);

/// Slow enough for a busy machine, quick enough for a test.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(500),
    election_max: Duration::from_millis(1000),
};

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn members() -> BTreeMap<NodeId, SocketAddr> {
    // All at once, so that they differ.
    let free: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    (1..).zip(free.iter().map(|listener| listener.local_addr().unwrap())).collect()
}

fn options(data: &Path) -> NodeOptions {
    NodeOptions {
        data: data.into(),
        listen: None,
        cs733_listen: None,
        mounts: Vec::new(),
        timing: TIMING,
        keys: None,
        insecure_no_tls: false,
        scrub_bytes_per_second: 0,
    }
}

fn init(root: &Path, members: &BTreeMap<NodeId, SocketAddr>) {
    for node in members.keys().copied() {
        let data = root.join(node.to_string());
        DataDirectory::init(InitOptions { data, cluster: CLUSTER, node, members: members.clone(), joins: false })
            .unwrap();
    }
}

async fn start(root: &Path, node: NodeId) -> Node {
    Node::start(options(&root.join(node.to_string()))).await.unwrap()
}

fn put(name: &str, expiry: ExpiryChange, body: &Bytes) -> Command {
    let (parent, name, expected) = (Ino::ROOT, Name::new(name.as_bytes()).unwrap(), Expected::Anything);
    Command::Put { parent, name, expected, expiry, mode: 0o644, length: body.len() as u32 }
}

async fn write(volume: &Volume, name: &str, body: impl Into<Bytes>) -> Ino {
    let body = body.into();
    match volume.submit(Credentials::default(), put(name, ExpiryChange::Clear, &body), body, later()).await {
        Ok(Reply::Attributes(attributes)) => attributes.ino,
        other => panic!("{other:?}"),
    }
}

async fn read(volume: &Volume, name: &str) -> Result<Bytes, Failure> {
    let lookup = Query::Lookup { parent: Ino::ROOT, name: Name::new(name.as_bytes()).unwrap() };
    match volume.query(lookup, later()).await? {
        Answer::Attributes(attributes) => volume.read(attributes.ino, 0, 1 << 20, later()).await,
        other => panic!("{other:?}"),
    }
}

fn leader(nodes: &BTreeMap<NodeId, Node>) -> NodeId {
    let leading = nodes.iter().find(|(id, node)| node.status().replica.leader == Some(**id));
    *leading.expect("a node leads after a command has succeeded").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_through_any_node_is_read_through_any_other_across_stops_and_restarts() {
    let (root, members) = (tempfile::tempdir().unwrap(), members());
    init(root.path(), &members);
    let mut nodes = BTreeMap::new();
    for id in members.keys() {
        nodes.insert(*id, start(root.path(), *id).await);
    }
    let volumes: BTreeMap<_, _> = nodes.iter_mut().map(|(id, node)| (*id, node.volume("test"))).collect();
    for (id, volume) in &volumes {
        write(volume, "shared", id.to_string()).await;
        for reader in volumes.values() {
            assert_eq!(read(reader, "shared").await.unwrap(), id.to_string());
        }
    }
    // The leader stops in order: the others go on, and so does a client that only knows addresses.
    let first = leader(&nodes);
    nodes.remove(&first).unwrap().stop().await;
    let client = Client::new(members.values().copied().collect(), CLUSTER).unwrap();
    let remote = client.volume("a client");
    write(&remote, "remote", "from outside").await;
    for id in nodes.keys() {
        assert_eq!(read(&volumes[id], "remote").await.unwrap(), "from outside");
    }
    remote.close().await;
    // All stop; all come back with what they had.
    join_all(nodes.values_mut().map(Node::stop)).await;
    drop((nodes, volumes));
    let mut nodes = BTreeMap::new();
    for id in members.keys() {
        nodes.insert(*id, start(root.path(), *id).await);
    }
    let volume = nodes.get_mut(&first).unwrap().volume("test");
    assert_eq!(read(&volume, "shared").await.unwrap(), "3");
    assert_eq!(read(&volume, "remote").await.unwrap(), "from outside");
    assert_eq!(nodes[&first].status().incarnation, 2);
    let index = LogIndex(nodes[&first].status().replica.applied);
    let mut hashes = Vec::new();
    for address in members.values() {
        let node = Client::new(vec![*address], CLUSTER).unwrap();
        hashes.push(node.hash_at(index, later()).await.unwrap().expect("applied and remembered"));
        assert_eq!(node.check(later()).await, Ok(None));
        assert_eq!(node.members(later()).await.unwrap(), members);
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
    join_all(nodes.values_mut().map(Node::stop)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiring_file_ends_although_nothing_else_happens_and_not_before_its_time() {
    let (root, members) = (tempfile::tempdir().unwrap(), members());
    init(root.path(), &members);
    let (mut one, mut two) = (start(root.path(), 1).await, start(root.path(), 2).await);
    let (writer, reader) = (one.volume("writer"), two.volume("reader"));
    let ttl = Duration::from_secs(2);
    let expiry = ExpiryChange::After { ns: ttl.as_nanos() as u64 };
    let body = Bytes::from_static(b"lease");
    writer.session(later()).await.unwrap();
    let before = Instant::now();
    writer.submit(Credentials::default(), put("lease", expiry, &body), body, later()).await.unwrap();
    let gone = loop {
        match read(&reader, "lease").await {
            Ok(bytes) => assert_eq!(bytes, "lease"),
            Err(Failure::Refused(Refusal::NoSuchName | Refusal::NoSuchInode)) => break Instant::now(),
            Err(other) => panic!("{other}"),
        }
        assert!(Instant::now() < before + Duration::from_secs(40), "it never ends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(gone.duration_since(before) >= ttl);
    one.stop().await;
    two.stop().await;
}

/// However many there are: they do not wait for one look of the leader after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_end_together_go_together() {
    const FILES: usize = 3_000;
    let root = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let members = BTreeMap::from([(1, listener.local_addr().unwrap())]);
    drop(listener);
    init(root.path(), &members);
    let mut node = start(root.path(), 1).await;
    let volume = node.volume("test");
    let end = std::time::SystemTime::now() + Duration::from_secs(20);
    let end = end.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let names: Vec<String> = (0..FILES).map(|number| number.to_string()).collect();
    for names in names.chunks(200) {
        let put = |name: &String| {
            let command = put(name, ExpiryChange::At { unix_seconds: end }, &Bytes::new());
            volume.submit(Credentials::default(), command, Bytes::new(), later())
        };
        let made = join_all(names.iter().map(put)).await;
        assert!(made.iter().all(Result::is_ok));
    }
    let left = async || {
        let query = Query::ReadDirectory { ino: Ino::ROOT, after: 0, limit: u32::MAX };
        match volume.query(query, later()).await {
            Ok(Answer::Directory { entries, .. }) => entries.len(),
            other => panic!("{other:?}"),
        }
    };
    let until = async |most: usize| {
        while left().await > most {
            sleep(Duration::from_millis(20)).await;
        }
        Instant::now()
    };
    assert_eq!(left().await, FILES, "they were made long before they end");
    let (first, last) = (until(FILES - 1).await, until(0).await);
    let looks = FILES.div_ceil(upkeep::BATCH_MAX) as u32;
    assert!(last - first < upkeep::LOOK_EVERY * looks / 2, "{:?}", last - first);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_rotted_on_this_disk_are_served_from_a_peer_and_mended() {
    let (root, members) = (tempfile::tempdir().unwrap(), members());
    init(root.path(), &members);
    let (mut one, mut two) = (start(root.path(), 1).await, start(root.path(), 2).await);
    let body: Bytes = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    write(&one.volume("writer"), "file", body.clone()).await;
    // Restarted, so that it has the file on its disk and not in memory.
    assert_eq!(read(&two.volume("reader"), "file").await.unwrap(), body);
    two.stop().await;
    drop(two);
    let mut two = start(root.path(), 2).await;
    rot(&root.path().join("2/log"), &body[100_000..100_064]);
    assert_eq!(read(&two.volume("reader"), "file").await.unwrap(), body);
    let mut alone = two.volume("alone");
    let head = Query::Lookup { parent: Ino::ROOT, name: Name::new(b"file").unwrap() };
    let Ok(Answer::Attributes(attributes)) = alone.peek(head, later()).await else { panic!("it is in the state") };
    let nearest = crate::volume::Freshness::Nearest;
    let length = body.len() as u32;
    while two.replica.read_body(attributes.version, 0, length).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    one.stop().await;
    assert_eq!(alone.read_as(attributes.ino, 0, length, nearest, later()).await.unwrap().1, body, "mended for good");
    rot(&root.path().join("2/log"), &body[100_064..100_128]);
    let read = alone.read_as(attributes.ino, 0, 1 << 20, nearest, later()).await;
    assert!(matches!(read, Err(Failure::Damaged(_))), "without a peer it is an error, not {:?}", read.map(|_| "bytes"));
    alone = two.volume("another range");
    let (_, start) = alone.read_as(attributes.ino, 0, 10_000, nearest, later()).await.unwrap();
    assert_eq!(start, body[..10_000]);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_refuses_what_would_harm_the_cluster() {
    let (root, members) = (tempfile::tempdir().unwrap(), members());
    init(root.path(), &members);
    let data = |id: NodeId| root.path().join(id.to_string());
    let (mut one, mut two) = (start(root.path(), 1).await, start(root.path(), 2).await);
    write(&one.volume("writer"), "file", "x").await;
    let second = Node::start(options(&data(1))).await.err().unwrap();
    assert!(second.exit == Exit::InUse && second.message.contains(&std::process::id().to_string()), "{second}");
    let open = NodeOptions { listen: Some(([0, 0, 0, 0], 0).into()), ..options(&data(3)) };
    assert!(Node::start(open).await.err().unwrap().message.contains("--insecure-no-tls"));
    // The founder's disk is lost, and someone initialises it under the old number.
    one.stop().await;
    drop(one);
    std::fs::remove_dir_all(data(1)).unwrap();
    let again = InitOptions { data: data(1), cluster: CLUSTER, node: 1, members: members.clone(), joins: false };
    DataDirectory::init(again).unwrap();
    let refused = Node::start(options(&data(1))).await.err().unwrap();
    assert!(refused.message.contains("its disk was lost"), "{refused}");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_of_no_leader_sends_its_clients_on() {
    let (root, members, elsewhere) = (tempfile::tempdir().unwrap(), members(), self::members());
    init(root.path(), &members);
    let (mut one, mut two) = (start(root.path(), 1).await, start(root.path(), 2).await);
    write(&one.volume("writer"), "file", "x").await;
    // It and the others look for each other where they are not.
    let data = root.path().join("cut off");
    let cut_off = InitOptions { data, cluster: CLUSTER, node: 3, members: elsewhere.clone(), joins: false };
    let mut cut_off = Node::start(options(&DataDirectory::init(cut_off).unwrap().path)).await.unwrap();
    let client = || Client::new(vec![elsewhere[&3], members[&1]], CLUSTER).unwrap().volume("client");
    // Less than what a client grants to a node that works on something.
    let in_time = || Instant::now() + Duration::from_secs(7);
    let lookup = Query::Lookup { parent: Ino::ROOT, name: Name::new(b"file").unwrap() };
    let Ok(Answer::Attributes(attributes)) = client().query(lookup, in_time()).await else { panic!("no answer") };
    assert_eq!(client().read(attributes.ino, 0, 10, in_time()).await.unwrap(), "x");
    client().session(in_time()).await.unwrap();
    for node in [&mut cut_off, &mut one, &mut two] {
        node.stop().await;
    }
}
