//! The accepting end: who may call, how much at once, and the way from frame to handler and back.

use super::frame::{self, Direction, Frame, Outgoing, Prelude};
use super::handshake::{self, HANDSHAKE_TIME, Hello};
use super::link::{Pace, write_frames};
use super::tls;
use super::wire::{Listener, Wire};
use super::{Caller, Expulsion, Identity, Message, NodeId, Start};
use crate::limits::{BODY_BYTES_MAX, COMMAND_BYTES_MAX, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES_MAX};
use futures_util::FutureExt;
use futures_util::future::{Either, ready};
use std::collections::VecDeque;
use std::io::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, BufReader};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Clients connected at one time; peers do not count.
const CLIENTS_MAX: usize = 1024;
/// Connections that have not yet said who they are. One more, and the one that has been silent longest is let go: whoever
/// means it says hello at once, so a crowd of silent ones keeps nobody out.
const STRANGERS_MAX: usize = 512;
/// A client that has been idle for so long is let go when another one needs its place.
const CLIENT_YIELDS_AFTER: Duration = Duration::from_secs(10);
/// Calls of one connection that are being handled at one time.
const CALLS_MAX: usize = 1024;
/// Bytes of requests of one peer's connection that are being handled.
const PEER_BYTES_MAX: usize = 64 << 20;
/// Bytes of requests of all clients together that are being handled.
const CLIENT_BYTES_MAX: usize = 256 << 20;
/// Largest header that a client may send: twice what a request may have, so that one that is a little too large hears why.
const CLIENT_HEADER_BYTES_MAX: usize = 2 * COMMAND_BYTES_MAX;
/// Frames of clients above this size are large; and how many of those may be arriving at one time.
const SMALL_FRAME_BYTES: usize = 64 << 10;
const LARGE_ARRIVING_MAX: usize = 128;
/// Bytes of answers of all clients together that are being made or have not been written yet; and of one connection.
const CLIENT_ANSWER_BYTES_MAX: usize = 512 << 20;
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// A client that sends nothing for so long is let go; its link connects again when it has something to say.
const CLIENT_IDLE: Duration = Duration::from_secs(300);

const _: () = assert!(ANSWER_BYTES_MAX >= FRAME_HEADER_BYTES_MAX + FRAME_BODY_BYTES_MAX);

/// What a server does with a message.
pub trait Handler: Send + Sync + 'static {
    /// Called in the order of arrival on a link; the futures run concurrently, each in a task of its own.
    fn handle(&self, from: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static;

    /// Bytes that the answer to this message may have, about: room for them is waited for before the answer is begun. Of
    /// what is small, 0.
    fn answer_bytes(&self, _message: &Message) -> usize {
        0
    }

    /// May this start of a node call here? `Err`: never, and why. (See [`Judge`](super::Judge).)
    fn admit(&self, _node: NodeId, _start: &Start) -> std::result::Result<(), Expulsion> {
        Ok(())
    }
}

/// Accepts links until it is stopped.
pub struct Server<H> {
    own: Identity,
    handler: Arc<H>,
    clients: Arc<Semaphore>,
    /// Told to all clients when there is no place for another one.
    crowded: Notify,
    client_bytes: Arc<Semaphore>,
    /// Large frames of clients that are arriving.
    arriving: Arc<Semaphore>,
    client_answer_bytes: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl<H: Handler> Server<H> {
    /// Serve until `stop` is cancelled and every connection has ended.
    pub async fn run(listener: impl Listener, own: Identity, handler: Arc<H>, stop: CancellationToken) {
        let server = Arc::new(Server::new(own, handler, stop.clone()));
        stop.run_until_cancelled(server.clone().accept(listener)).await;
        server.tasks.close();
        server.tasks.wait().await;
    }

    fn new(own: Identity, handler: Arc<H>, stop: CancellationToken) -> Server<H> {
        Server {
            own,
            handler,
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            crowded: Notify::new(),
            client_bytes: Arc::new(Semaphore::new(CLIENT_BYTES_MAX)),
            arriving: Arc::new(Semaphore::new(LARGE_ARRIVING_MAX)),
            client_answer_bytes: Arc::new(Semaphore::new(CLIENT_ANSWER_BYTES_MAX)),
            stop,
            tasks: TaskTracker::new(),
        }
    }

    async fn accept(self: Arc<Self>, listener: impl Listener) {
        let mut strangers = VecDeque::with_capacity(STRANGERS_MAX);
        loop {
            match listener.accept().await {
                Ok((wire, address)) => {
                    if strangers.len() >= STRANGERS_MAX {
                        strangers.pop_front();
                    }
                    let stranger = CancellationToken::new();
                    strangers.push_back(stranger.clone().drop_guard());
                    let server = self.clone();
                    self.tasks.spawn(async move {
                        let stop = server.stop.clone();
                        stop.run_until_cancelled(server.welcome(wire, address, stranger)).await;
                    });
                }
                // Out of descriptors, or the caller has gone again: nothing to do but to let others finish.
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// `let_go`: others came and this one still has not said who it is.
    async fn welcome(self: Arc<Self>, wire: Wire, address: SocketAddr, let_go: CancellationToken) {
        let greeted = timeout(HANDSHAKE_TIME, self.greet(wire));
        match let_go.run_until_cancelled(greeted).await {
            Some(Ok(Ok((wire, hello)))) => self.serve(wire, address, hello).await,
            Some(Ok(Err(e))) => tracing::warn!("refused a connection from {address}: {e}"),
            Some(Err(_)) => tracing::warn!("refused a connection from {address}: it did not say who it is in time"),
            None => tracing::debug!("let go of {address}: it did not say who it is, and others came"),
        }
    }

    /// Encrypt the wire if we have keys, and hear who calls.
    async fn greet(&self, wire: Wire) -> Result<(Wire, Hello)> {
        let (mut wire, proven) = match &self.own.keys {
            // What TLS needs for its handshake is not kept for as long as the connection lives.
            Some(keys) => Box::pin(tls::answer(wire, keys)).await.map(|(wire, role)| (wire, Some(role)))?,
            None => (wire, None),
        };
        let mut both = tokio::io::join(&mut wire.read, &mut wire.write);
        let hello = handshake::answer(&mut both, &self.own, proven, &*self.handler).await?;
        Ok((wire, hello))
    }

    async fn serve(self: Arc<Self>, Wire { read, mut write }: Wire, address: SocketAddr, hello: Hello) {
        let Hello { node, start, purpose, .. } = hello;
        let caller = Caller { address, node, start, purpose };
        let gone = CancellationToken::new();
        let _gone = gone.clone().drop_guard();
        let (bytes, _client) = match node {
            Some(_) => (Arc::new(Semaphore::new(PEER_BYTES_MAX)), None),
            None => match self.clients.clone().try_acquire_owned() {
                Ok(permit) => (self.client_bytes.clone(), Some(permit)),
                Err(_) => {
                    self.crowded.notify_waiters();
                    return tracing::warn!("refused the client {address}: {CLIENTS_MAX} are connected");
                }
            },
        };
        let (answers, mut frames) = mpsc::channel(CALLS_MAX);
        let ended = tokio::select! {
            ended = self.read_requests(read, &caller, bytes, answers, gone) => ended,
            ended = write_frames(&mut write, &mut frames, Pace::Steady) => ended,
        };
        if let Err(e) = ended {
            tracing::debug!("the connection from {address} ended: {e}");
        }
    }

    async fn read_requests(
        &self,
        read: impl AsyncRead + Unpin,
        caller: &Caller,
        bytes: Arc<Semaphore>,
        answers: mpsc::Sender<Outgoing>,
        gone: CancellationToken,
    ) -> Result<()> {
        let mut read = BufReader::with_capacity(64 << 10, read);
        let idle = if caller.node.is_none() { CLIENT_IDLE } else { Duration::MAX };
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        let mut answer_room = vec![Arc::new(Semaphore::new(ANSWER_BYTES_MAX))];
        if caller.node.is_none() {
            answer_room.push(self.client_answer_bytes.clone());
        }
        loop {
            let next = timeout(idle, frame::read_prelude(&mut read));
            let prelude = tokio::select! {
                prelude = next => prelude,
                () = self.place_is_needed(&calls), if caller.node.is_none() => return Ok(()),
            };
            let Some(prelude) = prelude.unwrap_or(Ok(None))? else { return Ok(()) };
            let call_permit = permits(calls.clone(), 1).await?;
            let (frame, bytes_permit) = self.take_in(&mut read, prelude, caller, &bytes).await?;
            let expected = self.handler.answer_bytes(&frame.message);
            // A node may have become unfit since it shook hands.
            let answer = match caller.node.map_or(Ok(()), |node| self.handler.admit(node, &caller.start)) {
                Ok(()) => Either::Left(self.handler.handle(caller, frame.message)),
                Err(expulsion) => Either::Right(ready(expulsion.message())),
            };
            let (call, answers, answer_room) = (frame.call, answers.clone(), answer_room.clone());
            let handled = async move {
                let mut room = AnswerRoom::take(answer_room, expected).await?;
                let message = sendable(answer.await);
                drop(bytes_permit);
                room.fit(message.header.len() + message.body.len()).await?;
                let frame = Frame { direction: Direction::Answer, call, message };
                let room = room.taken.into_iter().chain([call_permit]).collect();
                // If the caller has gone, nobody wants the answer.
                answers.send(Outgoing { frame, room }).await.map_err(std::io::Error::other)
            };
            match caller.node {
                // What a peer asked for is finished even if its connection breaks; what a client asked for is not.
                Some(_) => drop(self.tasks.spawn(handled.map(drop))),
                None => drop(self.tasks.spawn(gone.clone().run_until_cancelled_owned(handled).map(drop))),
            }
        }
    }
}

impl<H: Handler> Server<H> {
    /// The rest of a frame, and the room that it takes among `bytes`, which a peer has for itself and clients share. Of a
    /// client only what has arrived takes room: a crowd that begins frames and does not end them would hold all of it, time
    /// after time. What such a crowd can hold up are other large frames.
    async fn take_in(
        &self,
        read: &mut (impl AsyncRead + Unpin),
        prelude: Prelude,
        caller: &Caller,
        bytes: &Arc<Semaphore>,
    ) -> Result<(Frame, OwnedSemaphorePermit)> {
        let count = prelude.bytes();
        if caller.node.is_some() {
            let room = permits(bytes.clone(), count).await?;
            return Ok((prelude.read_rest(read).await?, room));
        }
        let prelude = prelude.within(CLIENT_HEADER_BYTES_MAX, BODY_BYTES_MAX)?;
        let _arriving = match count > SMALL_FRAME_BYTES {
            true => Some(permits(self.arriving.clone(), 1).await?),
            false => None,
        };
        let frame = prelude.read_rest(read).await?;
        Ok((frame, permits(bytes.clone(), count).await?))
    }

    /// Resolves when another client needs the place of this one, which has been idle for a while.
    async fn place_is_needed(&self, calls: &Semaphore) {
        tokio::time::sleep(CLIENT_YIELDS_AFTER).await;
        loop {
            self.crowded.notified().await;
            if calls.available_permits() == CALLS_MAX {
                return;
            }
        }
    }
}

/// Room for one answer: among those of its connection, then among those of all clients.
struct AnswerRoom {
    of: Vec<Arc<Semaphore>>,
    taken: Vec<OwnedSemaphorePermit>,
}

impl AnswerRoom {
    async fn take(of: Vec<Arc<Semaphore>>, bytes: usize) -> Result<AnswerRoom> {
        let mut room = AnswerRoom { of, taken: Vec::new() };
        room.take_all(bytes.min(ANSWER_BYTES_MAX)).await?;
        Ok(room)
    }

    /// Make it so many bytes. For more, all is given back first: whoever waits for more with some in hand may wait for
    /// others that do the same.
    async fn fit(&mut self, bytes: usize) -> Result<()> {
        let had = self.taken.first().map_or(0, OwnedSemaphorePermit::num_permits);
        if bytes > had {
            self.taken.clear();
            return self.take_all(bytes).await;
        }
        for taken in &mut self.taken {
            drop(taken.split(had - bytes));
        }
        Ok(())
    }

    async fn take_all(&mut self, bytes: usize) -> Result<()> {
        for semaphore in &self.of {
            self.taken.push(permits(semaphore.clone(), bytes).await?);
        }
        Ok(())
    }
}

/// The answer, or that it is larger than a frame: the other end would break the connection, and with it all other calls.
fn sendable(message: Message) -> Message {
    match message.header.len() > FRAME_HEADER_BYTES_MAX || message.body.len() > FRAME_BODY_BYTES_MAX {
        true => Message::refused("the answer is too large"),
        false => message,
    }
}

async fn permits(of: Arc<Semaphore>, count: usize) -> Result<OwnedSemaphorePermit> {
    of.acquire_many_owned(count as u32).await.map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Purpose;

    struct Deaf;

    impl Handler for Deaf {
        fn handle(&self, _: &Caller, _: Message) -> impl Future<Output = Message> + Send + 'static {
            std::future::pending()
        }
    }

    async fn prelude(of: &[u8]) -> Prelude {
        frame::read_prelude(&mut &of[..]).await.unwrap().unwrap()
    }

    fn head(body: &'static [u8]) -> Vec<u8> {
        let message = Message { kind: 1, header: Default::default(), body: body.into() };
        Frame { direction: Direction::Request, call: 1, message }.head().to_vec()
    }

    #[tokio::test]
    async fn frames_that_do_not_arrive_take_no_room_and_hold_up_no_small_ones() {
        let own = Identity { cluster: uuid::Uuid::nil(), node: Some(1), start: Start::default(), keys: None };
        let server = Server::new(own, Arc::new(Deaf), CancellationToken::new());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let caller = &Caller { address, node: None, start: Start::default(), purpose: Purpose::Client };
        let (large, small) = (head(&[0; BODY_BYTES_MAX]), head(b"small"));
        let mut begun = Vec::new();
        for _ in 0..2 * CLIENT_BYTES_MAX / BODY_BYTES_MAX {
            let (prelude, (open, mut silent)) = (prelude(&large).await, tokio::io::duplex(64));
            let bytes = &server.client_bytes;
            let server = &server;
            let mut taking = Box::pin(async move { server.take_in(&mut silent, prelude, caller, bytes).await.is_ok() });
            assert!(taking.as_mut().now_or_never().is_none());
            begun.push((open, taking));
            // Lest tokio thinks that this task has had its turn.
            tokio::task::yield_now().await;
        }
        assert_eq!(server.client_bytes.available_permits(), CLIENT_BYTES_MAX);
        let mut rest = &b"small"[..];
        let taken = server.take_in(&mut rest, prelude(&small).await, caller, &server.client_bytes);
        let taken = timeout(Duration::from_secs(60), taken).await;
        assert_eq!(taken.unwrap().unwrap().0.message.body, "small");
    }
}
