//! Real sockets on loopback: what a peer, a client and a stranger meet.

mod room;
mod tls;

use super::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Answers each message with its own bytes; kind 9 waits so many milliseconds first as its header's first byte says, kind
/// 11 is answered with a byte more than a frame's header may have.
struct Echo;

impl Handler for Echo {
    #[expect(clippy::manual_async_fn, reason = "an async fn would borrow the handler")]
    fn handle(&self, _: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        async move {
            match message.kind {
                9 => tokio::time::sleep(Duration::from_millis(message.header[0].into())).await,
                10 => return Message::refused("not today"),
                11 => return Message { header: vec![0; crate::limits::FRAME_HEADER_BYTES_MAX + 1].into(), ..message },
                _ => {}
            }
            message
        }
    }
}

fn identity(node: Option<NodeId>, incarnation: u64) -> Identity {
    Identity { cluster: uuid::Uuid::from_u128(7), node, start: Start { incarnation, ..Start::default() }, keys: None }
}

fn message(kind: u8, header: &[u8], body: impl Into<Bytes>) -> Message {
    Message { kind, header: Bytes::copy_from_slice(header), body: body.into() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A server of node 1, stopped when the guard is dropped.
async fn server() -> (SocketAddr, tokio_util::sync::DropGuard) {
    server_of(Echo).await
}

async fn server_of(handler: impl Handler) -> (SocketAddr, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(Server::run(listener, identity(Some(1), 1), Arc::new(handler), stop.clone()));
    (address, stop.drop_guard())
}

#[tokio::test]
async fn a_slow_call_does_not_hold_up_a_quick_one_and_bodies_arrive_whole() {
    let (address, _server) = server().await;
    let link = Link::new(identity(Some(2), 1), address, Some(1), Purpose::Append);
    let slow = link.start(message(9, &[200], ""), soon()).await.unwrap();
    let body: Bytes = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
    let quick = link.call(message(1, b"head", body.clone()), soon()).await.unwrap();
    assert_eq!(quick, message(1, b"head", body));
    assert_eq!(slow.await.unwrap().kind, 9);
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_says_that_nobody_knows() {
    let (address, _server) = server().await;
    let link = Link::new(identity(None, 0), address, None, Purpose::Client);
    let error = link.call(message(9, &[250], ""), Instant::now() + Duration::from_millis(30)).await.unwrap_err();
    assert!(matches!(error, NetError::Timeout { .. }) && error.may_have_arrived(), "{error}");
}

#[tokio::test]
async fn a_link_connects_again_after_its_server_came_back() {
    let (address, server) = server().await;
    let link = Link::new(identity(Some(2), 1), address, Some(1), Purpose::Pulse);
    link.call(message(1, b"a", ""), soon()).await.unwrap();
    drop(server);
    let gone = loop {
        match link.call(message(1, b"b", ""), soon()).await {
            Err(e) if !e.may_have_arrived() => break e,
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert!(matches!(gone, NetError::Connect { .. }), "{gone}");
    let listener = TcpListener::bind(address).await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(Server::run(listener, identity(Some(1), 2), Arc::new(Echo), stop.clone()));
    link.call(message(1, b"c", ""), soon()).await.unwrap();
    stop.cancel();
}

#[tokio::test]
async fn calls_that_wait_for_one_connection_share_its_failure() {
    // Connects, and never shakes hands.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::new(identity(None, 0), silent.local_addr().unwrap(), None, Purpose::Client);
    let calls = (0..20u8).map(|i| link.call(message(i, b"", ""), soon()));
    for error in futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap_err) {
        assert!(matches!(&error, NetError::Connect { why, .. } if why == "no answer"), "{error}");
    }
    let mut attempts = 0;
    while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(50), silent.accept()).await {
        attempts += 1;
    }
    assert_eq!(attempts, 1);
}

#[tokio::test]
async fn strangers_and_impostors_are_refused_at_the_handshake() {
    let (address, _server) = server().await;
    let try_as = async |own: Identity, expected, purpose| {
        Link::new(own, address, expected, purpose).call(message(1, b"", ""), soon()).await
    };
    let other_cluster = Identity { cluster: uuid::Uuid::from_u128(8), ..identity(Some(2), 1) };
    let newcomer = Identity { cluster: uuid::Uuid::nil(), ..identity(None, 0) };
    let refused = [
        (try_as(other_cluster, None, Purpose::Append).await, "cluster id mismatch"),
        (try_as(identity(Some(2), 1), Some(3), Purpose::Append).await, "looks for"),
        (try_as(identity(Some(1), 1), None, Purpose::Append).await, "which is this node"),
        (try_as(identity(None, 0), None, Purpose::Append).await, "clients may only"),
    ];
    for (result, why) in refused {
        let error = result.unwrap_err();
        assert!(matches!(error, NetError::Handshake { .. }) && error.to_string().contains(why), "{error}");
    }
    try_as(newcomer, None, Purpose::Client).await.unwrap();
    try_as(identity(Some(2), 5), Some(1), Purpose::Append).await.unwrap();
}

/// Admits no incarnation above 9, and none at all once it is `closed`; remembers what was said of this process.
#[derive(Default)]
struct Strict {
    closed: std::sync::atomic::AtomicBool,
    said: parking_lot::Mutex<Option<Expulsion>>,
}

fn strictly(node: NodeId, start: &Start) -> Result<(), Expulsion> {
    let expulsion = || Expulsion { removed: node == 3, why: format!("node {node} is unfit") };
    if start.incarnation > 9 { Err(expulsion()) } else { Ok(()) }
}

impl Judge for Strict {
    fn admit(&self, node: NodeId, start: &Start) -> Result<(), Expulsion> {
        strictly(node, start)
    }
    fn expelled(&self, expulsion: Expulsion) {
        *self.said.lock() = Some(expulsion);
    }
}

impl Handler for Strict {
    fn handle(&self, _: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        std::future::ready(message)
    }
    fn admit(&self, node: NodeId, start: &Start) -> Result<(), Expulsion> {
        let incarnation = if self.closed.load(std::sync::atomic::Ordering::Relaxed) { 10 } else { start.incarnation };
        strictly(node, &Start { incarnation, ..*start })
    }
}

#[tokio::test]
async fn a_node_that_becomes_unfit_is_told_so_on_the_connection_that_it_has() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop, server) =
        (listener.local_addr().unwrap(), CancellationToken::new(), Arc::new(Strict::default()));
    let _stop = stop.clone().drop_guard();
    tokio::spawn(Server::run(listener, identity(Some(1), 1), server.clone(), stop));
    let judge = Arc::new(Strict::default());
    let link = Link::to_peer(identity(Some(3), 1), address, 1, Purpose::Pulse, judge.clone());
    link.call(message(1, b"", ""), soon()).await.unwrap();
    server.closed.store(true, std::sync::atomic::Ordering::Relaxed);
    let told = link.call(message(1, b"", ""), soon()).await.unwrap_err();
    assert!(told.to_string().contains("node 3 is unfit"), "{told}");
    assert!(judge.said.lock().is_some());
}

#[tokio::test]
async fn an_unfit_node_is_refused_by_who_it_calls_and_by_who_calls_it_and_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    tokio::spawn(Server::run(listener, identity(Some(1), 10), Arc::new(Strict::default()), stop));
    let call = async |incarnation, node, judge: &Arc<Strict>| {
        let own = identity(Some(node), incarnation);
        Link::to_peer(own, address, 1, Purpose::Append, judge.clone()).call(message(1, b"", ""), soon()).await
    };
    let judge = Arc::new(Strict::default());
    let called = call(1, 2, &judge).await.unwrap_err();
    assert!(matches!(called, NetError::Handshake { .. }) && called.to_string().contains("node 1 is unfit"), "{called}");
    assert_eq!(*judge.said.lock(), None, "the other is unfit, not we");
    let calls = call(10, 3, &judge).await.unwrap_err();
    assert!(calls.to_string().contains("node 3 is unfit"), "{calls}");
    assert_eq!(*judge.said.lock(), Some(Expulsion { removed: true, why: "node 3 is unfit".into() }));
}

#[tokio::test]
async fn a_refusal_is_told_apart_from_an_answer() {
    let (address, _server) = server().await;
    let link = Link::new(identity(None, 0), address, None, Purpose::Client);
    let error = link.call(message(10, b"", ""), soon()).await.unwrap_err();
    assert!(error.to_string().contains("not today"), "{error}");
}

/// What a raw connection gets back before it is closed, within the time for a frame and a little.
async fn poke(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("closed").ok();
    answer
}

/// Before a byte of it is waited for, or given room.
#[tokio::test]
async fn lengths_beyond_the_limits_are_refused_at_once() {
    let head = frame::Frame { direction: frame::Direction::Request, call: 0, message: message(1, b"h", "") }.head();
    for (at, what) in [(16, "header"), (20, "body")] {
        let mut bytes = head.to_vec();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let refused = frame::read_prelude(&mut &bytes[..]).await.err().expect("a refusal").to_string();
        assert!(refused.starts_with(&format!("{what} of 4294967295 bytes")), "{refused}");
    }
}

#[tokio::test]
async fn garbage_and_huge_lengths_close_the_connection() {
    let (address, _server) = server().await;
    let hello = frame::Frame {
        direction: frame::Direction::Request,
        call: 0,
        message: message(frame::KIND_HELLO, b"not a hello", ""),
    };
    let mut huge = hello.head().to_vec();
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut flipped = hello.head().to_vec();
    flipped[34] ^= 1;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: a.b.c.d.e.f.g\r\n\r\n"[..], &huge, &flipped, &hello.head()[..20]] {
        assert!(poke(address, bytes).await.is_empty());
    }
    assert!(!poke(address, &hello.head()).await.is_empty(), "a well-formed stranger is told why");
}
