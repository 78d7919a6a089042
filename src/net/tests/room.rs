//! What one caller may take of a server: of its memory, and of what it has for others.

use super::*;
use crate::limits::{BODY_BYTES_MAX, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES_MAX};
use futures_util::future::join_all;
use std::sync::atomic::{AtomicUsize, Ordering};

const ANSWER_BYTES: usize = 1 << 20;
const CALLS: usize = 64;

/// Answers each message with a MiB; the message says how much the server shall expect. Counts the answers that there are.
#[derive(Clone, Default)]
struct Generous {
    live: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Counted {
    bytes: Vec<u8>,
    live: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Handler for Generous {
    fn handle(&self, _: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        let Generous { live, most } = self.clone();
        async move {
            // As long as others take to begin as well.
            tokio::time::sleep(Duration::from_millis(10)).await;
            most.fetch_max(live.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Message { body: Bytes::from_owner(Counted { bytes: vec![7; ANSWER_BYTES], live }), ..message }
        }
    }

    fn answer_bytes(&self, message: &Message) -> usize {
        expected(message)
    }
}

fn expected(message: &Message) -> usize {
    usize::from(message.header[0]) * ANSWER_BYTES / 2 + message.header.len()
}

/// Ask for many answers at once, and take all of them; how many there were at one time at most.
async fn ask_for_many(halves_expected: &[u8]) -> usize {
    let generous = Generous::default();
    let (address, _server) = server_of(generous.clone()).await;
    let link = Link::new(identity(None, 0), address, None, Purpose::Client);
    let calls = (0..CALLS).map(|call| {
        let halves = halves_expected[call % halves_expected.len()];
        link.call(message(1, &[halves], ""), Instant::now() + Duration::from_secs(60))
    });
    for answer in join_all(calls).await {
        assert_eq!(answer.unwrap().body.len(), ANSWER_BYTES);
    }
    generous.most.load(Ordering::SeqCst)
}

#[tokio::test]
async fn no_more_answers_are_begun_than_there_is_room_for() {
    let most = ask_for_many(&[2, 4]).await;
    assert!(most <= (16 << 20) / ANSWER_BYTES, "{most} answers at one time");
}

#[tokio::test]
async fn answers_that_are_larger_than_expected_find_room_one_after_the_other() {
    ask_for_many(&[1]).await;
    ask_for_many(&[0, 1, 200]).await;
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_and_breaks_no_other_call() {
    let (address, _server) = server().await;
    let link = Link::new(identity(None, 0), address, None, Purpose::Client);
    let other = link.start(message(9, &[200], ""), soon()).await.unwrap();
    let error = link.call(message(11, b"", ""), soon()).await.unwrap_err();
    assert!(matches!(&error, NetError::Refused { why, .. } if why.contains("too large")), "{error}");
    assert_eq!(other.await.unwrap().kind, 9);
}

#[tokio::test]
async fn a_client_may_send_what_a_client_needs_and_a_node_more() {
    let (address, _server) = server().await;
    let call = async |node, body_bytes| {
        let link = Link::new(identity(node, 1), address, None, Purpose::Client);
        link.call(message(1, b"head", vec![1; body_bytes]), soon()).await.map(drop)
    };
    assert!(call(None, BODY_BYTES_MAX).await.is_ok());
    assert!(call(Some(2), FRAME_BODY_BYTES_MAX).await.is_ok());
    let error = call(None, BODY_BYTES_MAX + 1).await.unwrap_err();
    assert!(matches!(error, NetError::Broken { .. }), "{error}");
}

/// Before a byte of it is waited for.
#[tokio::test]
async fn who_has_not_said_who_he_is_may_not_say_much() {
    let first = message(frame::KIND_HELLO, &[0; FRAME_HEADER_BYTES_MAX], "");
    let head = frame::Frame { direction: frame::Direction::Request, call: 0, message: first }.head();
    let mut both = tokio::io::join(&head[..32], tokio::io::sink());
    let refused = handshake::answer(&mut both, &identity(Some(1), 1), None, &Echo).await.unwrap_err().to_string();
    assert!(refused.starts_with("header of 4194304 bytes"), "{refused}");
}
