//! What comes to a node's port without being a peer or a client: it is closed in time, costs little, and keeps nobody out.

use crate::common::{Cluster, wait_for};
use keelfs::volume::Client;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Far beyond the five seconds that a frame has to arrive: this tells closed from never closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);
const SILENT: usize = 10_000;
/// More than a node has places for.
const IDLE_CLIENTS: usize = 1200;

fn address(cluster: &Cluster, node: usize) -> SocketAddr {
    cluster.status()[node - 1].row["address"].as_str().and_then(|at| at.parse().ok()).expect("an address")
}

/// Resident memory of a node, in KiB.
fn resident_kib(cluster: &Cluster, node: usize) -> u64 {
    let pid = cluster.status()[node - 1].pid.expect("a process");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, CLOSED_WITHIN).expect("a connection");
    stream.set_read_timeout(Some(CLOSED_WITHIN)).expect("a time limit");
    stream
}

/// Wait until the node closes; what it said before is dropped.
fn expect_closed(mut stream: TcpStream, what: &str) {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{what}: not closed: {error}"),
    }
}

/// The prelude of a frame whose header or body is said to have this many bytes.
fn prelude(header_bytes: u32, body_bytes: u32) -> Vec<u8> {
    let mut bytes = b"kf\x02\xff\0\0\0\0".to_vec();
    bytes.extend_from_slice(&0u64.to_le_bytes());
    bytes.extend_from_slice(&header_bytes.to_le_bytes());
    bytes.extend_from_slice(&body_bytes.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

/// Row 40; what needs certificates is in `tls.rs`.
#[test]
fn strangers_are_closed_and_cost_little_while_the_node_serves() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("more open files");
    let cluster = Cluster::start(3, [1]);
    let node = address(&cluster, 1);
    let works = |when: &str| {
        fs::write(cluster.at(1).join("file"), when).expect("a write");
        assert_eq!(fs::read_to_string(cluster.at(1).join("file")).expect("a read"), when);
    };
    works("before");
    let before = resident_kib(&cluster, 1);

    // A length of 4 GiB; bytes that mean nothing; a byte, and then nothing for long.
    for lengths in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        let mut stream = connect(node);
        stream.write_all(&prelude(lengths.0, lengths.1)).expect("a prelude");
        expect_closed(stream, "4 GiB");
    }
    for seed in 0..50u8 {
        let mut stream = connect(node);
        let bytes: Vec<u8> = (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
        // It may be closed before all is sent.
        let _ = stream.write_all(&bytes);
        expect_closed(stream, "random bytes");
    }
    let mut slow = connect(node);
    slow.write_all(b"k").expect("one byte");
    expect_closed(slow, "one byte every ten seconds");
    works("after garbage");

    // Ten thousand that say nothing.
    let begun = Instant::now();
    let silent: Vec<TcpStream> = (0..SILENT).map(|_| connect(node)).collect();
    let (opened, crowded) = (begun.elapsed(), resident_kib(&cluster, 1));
    works("in a crowd of strangers");
    for stream in silent {
        expect_closed(stream, "silence");
    }
    println!("{SILENT} silent connections in {opened:?}: memory {before} KiB before, {crowded} KiB with them");

    // Clients that said hello, and nothing since: the last ones find a place all the same.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().expect("a runtime");
    let status = |client: &Client| {
        let deadline = Instant::now() + Duration::from_secs(5);
        runtime.block_on(client.status(deadline)).map(drop)
    };
    let client = || Client::new(vec![node], uuid::Uuid::nil()).expect("a client");
    let clients: Vec<Client> = (0..IDLE_CLIENTS).map(|_| client()).collect();
    let answered = clients.iter().take(1000).filter(|client| status(client).is_ok()).count();
    assert_eq!(answered, 1000, "clients that should have had a place");
    for client in &clients[1000..] {
        wait_for("a place for one more client", || status(client).ok());
    }
    let idle = resident_kib(&cluster, 1);
    works("in a crowd of clients");
    println!("{IDLE_CLIENTS} idle clients: memory {idle} KiB");
    let growth = crowded.max(idle).saturating_sub(before);
    assert!(growth < 256 << 10, "memory grew by {growth} KiB");
    drop(clients);
    cluster.expect_agreement();
}
