//! A link: the calling end of one connection.
//!
//! It connects when first used and again after it broke. Calls are written in the order in which they were started; their
//! answers are matched by call number.

use super::frame::{self, Direction, Frame, KIND_EXPELLED, KIND_REFUSED, Outgoing};
use super::handshake::{self, Hello};
use super::tls;
use super::wire::{self, Wire};
use super::{Identity, Judge, Message, NetError, NodeId, Purpose};
use crate::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES_MAX};
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout_at;

/// Bytes of calls in flight on one link: queued, sent, or waiting for their answers.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Frames queued for the writer.
const QUEUE_FRAMES_MAX: usize = 256;
/// How long a connection attempt may take, whatever the call's deadline.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// Bodies up to this size are copied behind their head, so that small frames leave in one system call.
const COPIED_BYTES_MAX: usize = 16 << 10;
/// Copied bytes that are written at once.
const BATCH_BYTES: usize = 256 << 10;

const _: () = assert!(IN_FLIGHT_BYTES_MAX > 2 * (FRAME_HEADER_BYTES_MAX + FRAME_BODY_BYTES_MAX));

/// A link to one address for one purpose. Clones share the connection.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    own: Identity,
    address: SocketAddr,
    expected: Option<NodeId>,
    purpose: Purpose,
    judge: Option<Arc<dyn Judge>>,
    /// A fair lock: whoever starts a call first is written first.
    connection: tokio::sync::Mutex<Option<Connection>>,
    failed: Mutex<Failed>,
    in_flight: Arc<Semaphore>,
}

/// Attempts to connect that came to nothing: how many, and the last one's reason.
#[derive(Default)]
struct Failed {
    attempts: u64,
    why: Option<NetError>,
}

struct Connection {
    queue: mpsc::Sender<Outgoing>,
    pending: Arc<Pending>,
    next_call: u64,
}

/// Calls that wait for their answers; `None` once the connection has broken, with the reason.
struct Pending {
    calls: Mutex<Result<HashMap<u64, oneshot::Sender<Message>>, String>>,
}

impl Link {
    /// `expected`: the node that must answer there (`None`: any node of the cluster).
    pub fn new(own: Identity, address: SocketAddr, expected: Option<NodeId>, purpose: Purpose) -> Link {
        Link::judged(own, address, expected, purpose, None)
    }

    /// From node to node: the judge must admit the one that answers, and hears of it if we are not admitted there.
    pub fn to_peer(own: Identity, address: SocketAddr, node: NodeId, purpose: Purpose, judge: Arc<dyn Judge>) -> Link {
        Link::judged(own, address, Some(node), purpose, Some(judge))
    }

    fn judged(
        own: Identity,
        address: SocketAddr,
        expected: Option<NodeId>,
        purpose: Purpose,
        judge: Option<Arc<dyn Judge>>,
    ) -> Link {
        let (connection, in_flight) = (Default::default(), Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX)));
        let failed = Mutex::default();
        Link { inner: Arc::new(Inner { own, address, expected, purpose, judge, connection, failed, in_flight }) }
    }

    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Send and wait for the answer, until the deadline.
    pub async fn call(&self, message: Message, deadline: Instant) -> Result<Message, NetError> {
        self.start(message, deadline).await?.await
    }

    /// Queue the message (in the order of these calls) and return a future of its answer: for pipelines. Dropping the
    /// future forgets the call; the message may be handled nevertheless.
    pub async fn start(
        &self,
        message: Message,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<Message, NetError>> + Send + 'static + use<>, NetError> {
        let address = self.inner.address;
        let bytes = checked_bytes(&message)?;
        let queued = timeout_at(deadline.into(), self.inner.queue(message, bytes));
        let waiting = queued.await.map_err(|_| NetError::Connect { address, why: "no time left".into() })??;
        Ok(waiting.answer(address, deadline))
    }
}

fn checked_bytes(message: &Message) -> Result<u32, NetError> {
    let too_large = |what, length, limit| Err(NetError::TooLarge { what, length, limit });
    match (message.header.len(), message.body.len()) {
        (length, _) if length > FRAME_HEADER_BYTES_MAX => too_large("message header", length, FRAME_HEADER_BYTES_MAX),
        (_, length) if length > FRAME_BODY_BYTES_MAX => too_large("message body", length, FRAME_BODY_BYTES_MAX),
        (header, body) => Ok((header + body) as u32),
    }
}

impl Inner {
    async fn queue(&self, message: Message, bytes: u32) -> Result<Waiting, NetError> {
        let broken = |why: String| NetError::Broken { address: self.address, why };
        let failed_before = self.failed.lock().attempts;
        let mut connection = self.connection.lock().await;
        self.shared_failure(failed_before)?;
        let permit = self.in_flight.clone().acquire_many_owned(bytes).await.map_err(|e| broken(e.to_string()))?;
        let live = match connection.take().filter(|c| !c.queue.is_closed()) {
            Some(live) => connection.insert(live),
            None => connection.insert(self.connect().await.inspect_err(|e| self.has_failed(e))?),
        };
        let call = live.next_call;
        live.next_call += 1;
        let answer = live.pending.expect(call).map_err(broken)?;
        let (pending, judge) = (live.pending.clone(), self.judge.clone());
        let waiting = Waiting { call, answer, pending, judge, _permit: permit };
        let frame = Frame { direction: Direction::Request, call, message };
        // Its room is kept until the answer is there, by `waiting`.
        let outgoing = Outgoing { frame, room: Vec::new() };
        live.queue.send(outgoing).await.map_err(|_| broken("closed before the message was sent".into()))?;
        Ok(waiting)
    }

    /// Whoever stands in line while an attempt to connect fails does not begin one of his own: each would take its time,
    /// one after the other.
    fn shared_failure(&self, failed_before: u64) -> Result<(), NetError> {
        let failed = self.failed.lock();
        match &failed.why {
            Some(why) if failed.attempts != failed_before => Err(why.clone()),
            _ => Ok(()),
        }
    }

    fn has_failed(&self, why: &NetError) {
        let mut failed = self.failed.lock();
        failed.attempts += 1;
        failed.why = Some(why.clone());
    }

    async fn connect(&self) -> Result<Connection, NetError> {
        let address = self.address;
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::PermissionDenied => NetError::Handshake { address, why: e.to_string() },
            _ => NetError::Connect { address, why: e.to_string() },
        };
        let hello = Hello {
            cluster: self.own.cluster,
            node: self.own.node,
            start: self.own.start,
            purpose: self.purpose,
            expected: self.expected,
        };
        let attempt = async {
            let mut wire = wire::dial(address).await?;
            if let Some(keys) = &self.own.keys {
                wire = Box::pin(tls::call(wire, keys)).await?;
            }
            let mut both = tokio::io::join(&mut wire.read, &mut wire.write);
            // Whether the other end accepts our certificate is seen when it answers.
            handshake::call(&mut both, &hello, self.judge.as_deref()).await.map_err(tls::said)?;
            Ok(wire)
        };
        let wire = match tokio::time::timeout(CONNECT_TIME, attempt).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(NetError::Connect { address, why: "no answer".into() }),
        };
        Ok(Connection::run(wire))
    }
}

impl Connection {
    /// Start the two tasks of a fresh connection. Both end when either direction breaks or the link is dropped.
    fn run(Wire { read, write }: Wire) -> Connection {
        let (queue, frames) = mpsc::channel(QUEUE_FRAMES_MAX);
        let pending = Arc::new(Pending { calls: Mutex::new(Ok(HashMap::new())) });
        let reader_pending = pending.clone();
        tokio::spawn(async move {
            let why = tokio::select! {
                why = write_requests(write, frames) => why,
                why = read_answers(read, &reader_pending) => why,
            };
            reader_pending.fail(why);
        });
        Connection { queue, pending, next_call: 1 }
    }
}

async fn write_requests(mut write: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Outgoing>) -> String {
    match write_frames(&mut write, &mut frames, Pace::Any).await {
        Ok(()) => "the link was dropped".into(),
        Err(e) => e.to_string(),
    }
}

/// How slowly the other end may take what is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// A server takes requests when it has room for them.
    Any,
    /// Who asks must take the answers in as fast as it must send: until then they take room that all callers share.
    Steady,
}

impl Pace {
    async fn keep(self, bytes: usize, write: impl Future<Output = std::io::Result<()>>) -> std::io::Result<()> {
        match self {
            Pace::Any => write.await,
            Pace::Steady => frame::in_time(bytes, write).await,
        }
    }
}

/// Write frames in order until the channel closes: small ones together, large bodies uncopied.
pub(super) async fn write_frames(
    write: &mut (impl AsyncWrite + Unpin),
    frames: &mut mpsc::Receiver<Outgoing>,
    pace: Pace,
) -> std::io::Result<()> {
    let mut batch = Vec::with_capacity(QUEUE_FRAMES_MAX);
    let mut copied = BytesMut::new();
    let mut rooms = Vec::new();
    while frames.recv_many(&mut batch, QUEUE_FRAMES_MAX).await > 0 {
        for Outgoing { frame, room } in batch.drain(..) {
            rooms.extend(room);
            copied.extend_from_slice(&frame.head());
            if frame.message.body.len() <= COPIED_BYTES_MAX {
                copied.extend_from_slice(&frame.message.body);
            } else {
                let mut pieces = (&mut copied).chain(frame.message.body);
                pace.keep(pieces.remaining(), write.write_all_buf(&mut pieces)).await?;
            }
            if copied.len() >= BATCH_BYTES {
                pace.keep(copied.len(), write.write_all_buf(&mut copied)).await?;
            }
        }
        pace.keep(copied.len(), write.write_all_buf(&mut copied)).await?;
        pace.keep(0, write.flush()).await?;
        rooms.clear();
    }
    Ok(())
}

async fn read_answers(read: impl AsyncRead + Unpin, pending: &Pending) -> String {
    let mut read = BufReader::with_capacity(64 << 10, read);
    loop {
        match frame::read_frame(&mut read).await {
            Ok(frame) if frame.direction == Direction::Answer => pending.settle(frame.call, frame.message),
            Ok(_) => return "the called end sent a request".into(),
            Err(e) => return e.to_string(),
        }
    }
}

impl Pending {
    fn expect(&self, call: u64) -> Result<oneshot::Receiver<Message>, String> {
        let (sender, receiver) = oneshot::channel();
        match &mut *self.calls.lock() {
            Ok(calls) => calls.insert(call, sender),
            Err(why) => return Err(why.clone()),
        };
        Ok(receiver)
    }

    fn settle(&self, call: u64, answer: Message) {
        let waiting = self.calls.lock().as_mut().ok().and_then(|calls| calls.remove(&call));
        if let Some(waiting) = waiting {
            // The caller may have gone; then nobody wants the answer.
            let _ = waiting.send(answer);
        }
    }

    fn forget(&self, call: u64) {
        if let Ok(calls) = &mut *self.calls.lock() {
            calls.remove(&call);
        }
    }

    /// Every waiting call learns that the connection broke.
    fn fail(&self, why: String) {
        *self.calls.lock() = Err(why);
    }

    fn why(&self) -> String {
        self.calls.lock().as_ref().err().cloned().unwrap_or_else(|| "closed".into())
    }
}

/// A call that has been queued.
struct Waiting {
    call: u64,
    answer: oneshot::Receiver<Message>,
    pending: Arc<Pending>,
    judge: Option<Arc<dyn Judge>>,
    _permit: OwnedSemaphorePermit,
}

impl Waiting {
    async fn answer(mut self, address: SocketAddr, deadline: Instant) -> Result<Message, NetError> {
        match timeout_at(deadline.into(), &mut self.answer).await {
            Err(_) => Err(NetError::Timeout { address }),
            Ok(Err(_)) => Err(NetError::Broken { address, why: self.pending.why() }),
            Ok(Ok(message)) if message.kind == KIND_REFUSED => {
                Err(NetError::Refused { address, why: String::from_utf8_lossy(&message.header).into_owned() })
            }
            Ok(Ok(message)) if message.kind == KIND_EXPELLED => {
                let why = handshake::expelled(&message.header, self.judge.as_deref()).to_string();
                Err(NetError::Refused { address, why })
            }
            Ok(Ok(message)) => Ok(message),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pending.forget(self.call);
    }
}
