//! Forwarding against scripted leaders: real links over loopback, only what the leaders say is made up.

use super::*;
use crate::fs::{Command, Ino, Reply, Sequence, SessionId};
use crate::net::{Caller, Handler, Server};
use crate::volume::session::sessionless;
use crate::volume::tests::nobody;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What a scripted leader does with a request.
#[derive(Clone)]
enum Act {
    Say(Told),
    /// Never answer.
    Hang,
    /// Break the connection without an answer, as a process does that is killed.
    Die,
}

/// A node that follows a script and remembers what it was sent.
#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Act>>>,
    seen: Arc<Mutex<Vec<(Ask, Bytes)>>>,
    stop: CancellationToken,
}

impl Handler for Scripted {
    fn handle(&self, _: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        let ask = Ask::from_message(&message).unwrap();
        self.seen.lock().push((ask, message.body));
        let act = self.script.lock().pop_front().unwrap_or(Act::Hang);
        let stop = self.stop.clone();
        async move {
            match act {
                Act::Say(told) => told.message(Bytes::new()),
                Act::Hang => std::future::pending().await,
                Act::Die => {
                    stop.cancel();
                    std::future::pending().await
                }
            }
        }
    }
}

impl Scripted {
    async fn start(node: NodeId, acts: impl IntoIterator<Item = Act>) -> (SocketAddr, Scripted, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (script, seen) = (Arc::new(Mutex::new(acts.into_iter().collect())), Arc::default());
        let scripted = Scripted { script, seen, stop: stop.clone() };
        tokio::spawn(Server::run(listener, identity(node), Arc::new(scripted.clone()), stop.clone()));
        (address, scripted, stop.drop_guard())
    }

    async fn has_seen(&self, count: usize) {
        while self.seen.lock().len() < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// The replica of this process, number 9: knows who leads and what to say when it is asked itself.
#[derive(Clone)]
struct Here {
    leader: Arc<watch::Sender<Option<NodeId>>>,
    members: BTreeMap<NodeId, SocketAddr>,
    says: Result<Outcome, ReplicaError>,
}

const OWN: NodeId = 9;

impl Proposer for Here {
    async fn propose(&self, _: Request, _: Bytes) -> Result<Outcome, ReplicaError> {
        self.says.clone()
    }
    async fn read_index(&self) -> Result<LogIndex, ReplicaError> {
        self.says.clone().map(|_| LogIndex(1))
    }
    fn leader(&self) -> LeaderWatch {
        self.leader.subscribe()
    }
    fn members(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.members.clone()
    }
}

fn here(leader: Option<NodeId>, members: &[(NodeId, SocketAddr)]) -> Here {
    let says = Err(ReplicaError::NotLeader { leader: None });
    Here { leader: Arc::new(watch::Sender::new(leader)), members: members.iter().copied().collect(), says }
}

fn identity(node: NodeId) -> Identity {
    Identity { cluster: uuid::Uuid::from_u128(3), node: Some(node), start: Default::default(), keys: None }
}

fn request() -> Request {
    let command = Command::Append { ino: Ino(2), length: 4 };
    let (session, sequence, first_outstanding) = (SessionId(7), Sequence(12), Sequence(11));
    Request { session, sequence, first_outstanding, ..sessionless(command) }
}

async fn submit(replica: &Here, time: Duration) -> Verdict {
    let forwarder = Forwarder::new(identity(OWN), replica.clone());
    forwarder.submit(&request(), &Bytes::from_static(b"four"), Instant::now() + time, pending()).await
}

const PLENTY: Duration = Duration::from_secs(30);
const LITTLE: Duration = Duration::from_millis(300);
/// A test that waits so long hangs.
const FOREVER: Duration = Duration::from_secs(3600);

fn done() -> Told {
    Told::Outcome(Ok(Reply::Done))
}

fn outcome(doubt: bool) -> Verdict {
    Verdict::Outcome { outcome: Ok(Reply::Done), doubt }
}

fn assert_same_request(nodes: &[&Scripted]) {
    for node in nodes {
        for (ask, body) in node.seen.lock().iter() {
            assert!(matches!(ask, Ask::Propose { request: sent, .. } if *sent == request()), "{ask:?}");
            assert_eq!(&body[..], b"four");
        }
    }
}

#[tokio::test]
async fn a_refusal_that_names_the_leader_is_followed_and_leaves_no_doubt() {
    let (to, new, _guard) = Scripted::start(2, [Act::Say(done())]).await;
    let (from, old, _guard) = Scripted::start(1, [Act::Say(Told::NotLeader { leader: Some((2, to)) })]).await;
    let replica = here(Some(1), &[(1, from)]);
    assert_eq!(submit(&replica, PLENTY).await, outcome(false));
    assert_same_request(&[&old, &new]);
}

#[tokio::test]
async fn after_an_unknown_outcome_the_same_request_goes_again_and_the_doubt_is_told() {
    let acts = [Act::Say(Told::Unknown), Act::Say(Told::NotLeader { leader: None }), Act::Say(done())];
    let (address, leader, _guard) = Scripted::start(1, acts).await;
    assert_eq!(submit(&here(Some(1), &[(1, address)]), PLENTY).await, outcome(true));
    assert_eq!(leader.seen.lock().len(), 3);
    assert_same_request(&[&leader]);
}

#[tokio::test]
async fn a_leader_that_died_with_the_request_is_replaced_by_the_next_one() {
    let (dying, first, _guard) = Scripted::start(1, [Act::Die]).await;
    let (living, second, _guard) = Scripted::start(2, [Act::Say(done())]).await;
    let replica = here(Some(1), &[(1, dying), (2, living)]);
    let submitted = tokio::spawn({
        let replica = replica.clone();
        async move { submit(&replica, PLENTY).await }
    });
    first.has_seen(1).await;
    replica.leader.send_replace(None);
    replica.leader.send_replace(Some(2));
    assert_eq!(submitted.await.unwrap(), outcome(true));
    assert_same_request(&[&first, &second]);
}

#[tokio::test]
async fn a_stopped_leader_with_open_connections_is_left_as_soon_as_another_leads() {
    let (stopped, first, _guard) = Scripted::start(1, [Act::Hang]).await;
    let (living, second, _guard) = Scripted::start(2, [Act::Say(done())]).await;
    let replica = here(Some(1), &[(1, stopped), (2, living)]);
    let submitted = tokio::spawn({
        let replica = replica.clone();
        async move { submit(&replica, PLENTY).await }
    });
    first.has_seen(1).await;
    replica.leader.send_replace(Some(2));
    assert_eq!(submitted.await.unwrap(), outcome(true));
    assert_same_request(&[&second]);
}

#[tokio::test]
async fn what_never_left_is_not_sent_and_what_may_have_arrived_is_in_doubt() {
    assert_eq!(submit(&here(None, &[]), LITTLE).await, Verdict::NotSent);
    let (nobody, _reserved) = nobody();
    assert_eq!(submit(&here(Some(1), &[(1, nobody)]), LITTLE).await, Verdict::NotSent);
    let (stranger, ..) = &Scripted::start(5, []).await;
    assert_eq!(submit(&here(Some(1), &[(1, *stranger)]), LITTLE).await, Verdict::NotSent, "refused the handshake");
    let (silent, _, _guard) = Scripted::start(1, [Act::Hang]).await;
    assert_eq!(submit(&here(Some(1), &[(1, silent)]), LITTLE).await, Verdict::InDoubt);
}

#[tokio::test]
async fn who_gives_up_is_told_at_once_whether_it_may_have_been_proposed() {
    let (silent, leader, _guard) = Scripted::start(1, [Act::Hang]).await;
    let (nobody, _reserved) = nobody();
    let cases = [
        (here(None, &[]), None, Verdict::NotSent),
        (here(Some(1), &[(1, nobody)]), None, Verdict::NotSent),
        (here(Some(1), &[(1, silent)]), Some(leader), Verdict::InDoubt),
    ];
    for (replica, seen_by, verdict) in cases {
        let give_up = async {
            match seen_by {
                Some(node) => node.has_seen(1).await,
                None => tokio::time::sleep(LITTLE).await,
            }
        };
        let forwarder = Forwarder::new(identity(OWN), replica);
        let body = Bytes::from_static(b"four");
        assert_eq!(forwarder.submit(&request(), &body, Instant::now() + FOREVER, give_up).await, verdict);
    }
}

#[tokio::test]
async fn the_replica_of_this_process_is_asked_without_a_link_and_its_end_is_told() {
    let mut replica = here(Some(OWN), &[]);
    replica.says = Ok(Ok(Reply::Done));
    assert_eq!(submit(&replica, PLENTY).await, outcome(false));
    replica.says = Err(ReplicaError::Unknown);
    assert_eq!(submit(&replica, LITTLE).await, Verdict::InDoubt);
    replica.says = Err(ReplicaError::Stopped { why: "disk".into() });
    assert_eq!(submit(&replica, PLENTY).await, Verdict::Stopped("disk".into()));
}

#[tokio::test]
async fn the_end_of_this_replica_does_not_undo_a_doubt() {
    let (silent, first, _guard) = Scripted::start(1, [Act::Hang]).await;
    let mut replica = here(Some(1), &[(1, silent)]);
    replica.says = Err(ReplicaError::Stopped { why: "disk".into() });
    let submitted = tokio::spawn({
        let replica = replica.clone();
        async move { submit(&replica, PLENTY).await }
    });
    first.has_seen(1).await;
    replica.leader.send_replace(Some(OWN));
    assert_eq!(submitted.await.unwrap(), Verdict::InDoubt, "the first leader may have proposed it");
}

#[tokio::test]
async fn a_follower_reads_at_the_index_that_the_leader_confirms() {
    let acts = [Act::Say(Told::NotLeader { leader: None }), Act::Say(Told::Index(LogIndex(77)))];
    let (address, leader, _guard) = Scripted::start(1, acts).await;
    let forwarder = Forwarder::new(identity(OWN), here(Some(1), &[(1, address)]));
    assert_eq!(forwarder.read_index(Instant::now() + PLENTY).await, Ok(Some(LogIndex(77))));
    assert!(leader.seen.lock().iter().all(|(ask, _)| matches!(ask, Ask::ReadIndex { .. })));
    assert_eq!(forwarder.read_index(Instant::now() + LITTLE).await, Ok(None), "the script has ended");
}
