//! The cs733 gateway against clients that do not behave, on one node in this process: no mount, no other processes.

#[path = "common/cs733.rs"]
mod cs733;

use cs733::Client;
use keelfs::limits::CS733_CONNECTIONS_MAX;
use keelfs::node::{DataDirectory, InitOptions, Node, NodeOptions};
use keelfs::raft::Timing;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// One node that speaks the protocol.
struct Served {
    node: Node,
    address: SocketAddr,
    runtime: Runtime,
    _directory: tempfile::TempDir,
}

impl Served {
    fn start() -> Served {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let runtime = Runtime::new().expect("a runtime");
        let (data, address) = (directory.path().join("node"), free_address());
        let (cluster, members) = (uuid::Uuid::new_v4(), BTreeMap::from([(1, free_address())]));
        DataDirectory::init(InitOptions { data: data.clone(), cluster, node: 1, members, joins: false })
            .expect("a data directory");
        let ms = Duration::from_millis;
        let options = NodeOptions {
            data,
            listen: None,
            cs733_listen: Some(address),
            mounts: Vec::new(),
            timing: Timing { heartbeat: ms(100), election_min: ms(400), election_max: ms(800) },
            keys: None,
            insecure_no_tls: false,
            scrub_bytes_per_second: 0,
        };
        let node = runtime.block_on(Node::start(options)).expect("a node");
        Served { node, address, runtime, _directory: directory }
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).expect("a connection")
    }

    fn stop(mut self) {
        self.runtime.block_on(self.node.stop());
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Clients that send rubbish, stop in the middle, never read, or vanish; a good one beside them is served all the time and
/// finds its own data.
#[test]
fn bad_clients_hurt_nobody() {
    let served = Served::start();
    let mut good = served.client();
    good.write("write kept 4\r\ngood\r\n");
    std::thread::scope(|scope| {
        for seed in 1..=8u64 {
            let served = &served;
            scope.spawn(move || (0..20).for_each(|round| rubbish(served.socket(), seed * 1000 + round)));
        }
        let mut greedy = served.socket();
        scope.spawn(move || {
            // asks and asks and never takes an answer, until neither side takes any more
            greedy.set_write_timeout(Some(Duration::from_secs(1))).expect("a deadline");
            while greedy.write_all(b"read kept\r\n".repeat(1000).as_slice()).is_ok() {}
        });
        let held: Vec<TcpStream> = (0..20).map(|_| half_a_request(served.socket())).collect();
        for round in 0..50 {
            let version = good.write(&format!("write kept 10\r\ngood-{round:05}\r\n"));
            assert_eq!(good.read("kept"), (version, 0, format!("good-{round:05}").into_bytes()));
        }
        drop(held);
    });
    served.stop();
}

/// Words of the protocol and random bytes in random order. None of the words can touch the file `kept`.
fn rubbish(mut socket: TcpStream, seed: u64) {
    let words: [&[u8]; 12] =
        [b"read", b"write", b"cas", b"delete", b" ", b" ", b"x", b"7", b"-1", b"\r\n", b"\r\n", b"\0\xff"];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut sent = Vec::new();
    for _ in 0..400 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sent.extend_from_slice(words[(state % 12) as usize]);
    }
    let _ = socket.write_all(&sent);
    let _ = socket.shutdown(Shutdown::Write);
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a deadline");
    let mut answers = Vec::new();
    socket.read_to_end(&mut answers).expect("answers, and then an orderly end");
    let text = String::from_utf8_lossy(&answers);
    assert!(text.is_empty() || text.ends_with("\r\n"), "seed {seed}: {text:?}");
    assert!(!text.contains("good"), "seed {seed}: another client's data in {text:?}");
}

fn half_a_request(mut socket: TcpStream) -> TcpStream {
    socket.write_all(b"write kept 100\r\nonly half").expect("half a request is taken");
    socket
}

/// `printf … | nc`: the client has said all that it will, and still gets every answer.
#[test]
fn a_client_that_has_finished_sending_gets_its_answers() {
    let served = Served::start();
    let mut client = served.client();
    client.send("write a 1\r\nx\r\nread a\r\nread b\r\nwrite half 5\r\nab");
    client.reader.get_ref().shutdown(Shutdown::Write).expect("a half-closed connection");
    assert!(client.line().starts_with("OK "));
    assert_eq!(client.contents().2, b"x");
    assert_eq!(client.line(), "ERR_FILE_NOT_FOUND\r\n");
    client.expect_closed();
    assert!(!served.client().finds("half"), "half a request was carried out");
    served.stop();
}

/// Held by tests with as many clients as there may be: they need half the files that a process may open by default.
static CROWD: Mutex<()> = Mutex::new(());

/// One client too many is told so; when another has left, there is room.
#[test]
fn connections_are_bounded() {
    let _turn = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    let served = Served::start();
    let mut clients: Vec<Client> = (0..CS733_CONNECTIONS_MAX).map(|_| served.client()).collect();
    assert!(!clients.last_mut().expect("a client").finds("f"), "the last one allowed is served");
    let mut extra = served.client();
    assert_eq!(extra.line(), "ERR_INTERNAL\r\n");
    extra.expect_closed();
    drop(clients.pop());
    let begun = std::time::Instant::now();
    while !is_served(served.socket()) {
        assert!(begun.elapsed() < Duration::from_secs(30), "no room after a client has left");
    }
    served.stop();
}

/// As many as there may be, and all silent but one: after a while one of the silent ones has to go.
#[test]
fn a_silent_client_makes_room() {
    let _turn = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    let served = Served::start();
    let mut clients: Vec<Client> = (0..CS733_CONNECTIONS_MAX).map(|_| served.client()).collect();
    let begun = std::time::Instant::now();
    loop {
        assert!(!clients.last_mut().expect("a client").finds("f"), "one that speaks is kept");
        if is_served(served.socket()) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "silent clients shut out all others");
        std::thread::sleep(Duration::from_millis(200));
    }
    // Which of them was silent first, only the gateway knows.
    let gone = clients.iter().filter(|client| is_closed(client.reader.get_ref())).count();
    assert_eq!(gone, 1, "one place was needed");
    served.stop();
}

fn is_closed(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).expect("a socket that does not wait");
    socket.peek(&mut [0]).is_ok_and(|length| length == 0)
}

/// A client that is turned away while it sends may see a reset instead of the answer.
fn is_served(mut socket: TcpStream) -> bool {
    let mut answer = [0; 64];
    let _ = socket.write_all(b"delete f\r\n");
    socket.read(&mut answer).is_ok_and(|length| answer[..length].starts_with(b"ERR_FILE_NOT_FOUND"))
}

#[test]
fn a_stopping_node_ends_its_connections() {
    let served = Served::start();
    let mut idle = served.client();
    assert!(!idle.finds("f"));
    served.stop();
    idle.expect_closed();
}
