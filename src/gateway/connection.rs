//! One client: pieces of bytes in, answers out in the order of the requests, every wait with a deadline.

use super::answers::Answer;
use super::clients::Silence;
use super::operations::{self, Contents};
use super::parser::{Event, Parser, Request};
use crate::limits::{CS733_IDLE_SECONDS_MAX, CS733_TRANSFER_SECONDS_MAX};
use crate::volume::Volume;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

const IDLE: Duration = Duration::from_secs(CS733_IDLE_SECONDS_MAX);
const TRANSFER: Duration = Duration::from_secs(CS733_TRANSFER_SECONDS_MAX);
/// How long, after the last answer, we swallow what the client still sends.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes taken from the socket at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Answers of a pipeline are gathered up to this many bytes before they are sent.
const GATHER_BYTES: usize = 64 << 10;

/// Serve one client until it leaves, breaks the protocol beyond repair, is too slow, or `stop`.
pub async fn serve(volume: Volume, socket: TcpStream, silence: Silence, stop: CancellationToken) {
    let _ = socket.set_nodelay(true);
    let mut connection = Connection { volume, socket, parser: Parser::default(), out: Vec::new(), silence };
    if let Err(error) = connection.run(&stop).await {
        tracing::debug!(%error, "cs733 connection ended");
    }
}

struct Connection {
    volume: Volume,
    socket: TcpStream,
    parser: Parser,
    /// Answers not yet sent.
    out: Vec<u8>,
    silence: Silence,
}

impl Connection {
    async fn run(&mut self, stop: &CancellationToken) -> io::Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut begun = None;
        loop {
            while let Some(event) = self.parser.next_event() {
                begun = None;
                match event {
                    Event::Request(request) => self.carry_out(request).await?,
                    Event::Malformed => self.answer(Answer::Malformed).await?,
                    Event::Lost => {
                        self.answer(Answer::Malformed).await?;
                        return self.leave().await;
                    }
                }
                if stop.is_cancelled() {
                    return self.leave().await;
                }
            }
            self.send().await?;
            let deadline = self.read_deadline(&mut begun);
            self.silence.begin();
            let Some(read) = stop.run_until_cancelled(timeout_at(deadline, self.socket.read(&mut piece))).await else {
                return Ok(());
            };
            self.silence.end();
            match read?? {
                0 => return Ok(()),
                length => self.parser.push(&piece[..length]),
            }
        }
    }

    /// Between requests a client may idle; a request that has begun must end in time, however often it sends a byte.
    fn read_deadline(&self, begun: &mut Option<Instant>) -> Instant {
        if self.parser.is_within_request() {
            *begun.get_or_insert_with(Instant::now) + TRANSFER
        } else {
            Instant::now() + IDLE
        }
    }

    async fn carry_out(&mut self, request: Request) -> io::Result<()> {
        let answer = match request {
            Request::Read { name } => match operations::open(&self.volume, &name).await {
                Ok(contents) => return self.send_contents(contents).await,
                Err(failure) => failure.into(),
            },
            Request::Write { name, expiry_ns, content } => {
                operations::write(&self.volume, name, expiry_ns, content).await
            }
            Request::Cas { name, version, expiry_ns, content } => {
                operations::compare_and_swap(&self.volume, name, version, expiry_ns, content).await
            }
            Request::Delete { name } => operations::delete(&self.volume, name).await,
        };
        self.answer(answer).await
    }

    async fn answer(&mut self, answer: Answer) -> io::Result<()> {
        answer.append_to(&mut self.out);
        self.send_if_much().await
    }

    /// The first piece belongs to the announced version by construction; each later one is checked before it is sent. If
    /// the file has changed meanwhile the connection breaks off: fewer bytes than announced, never other ones.
    async fn send_contents(&mut self, mut contents: Contents) -> io::Result<()> {
        contents.announcement().append_to(&mut self.out);
        let mut piece = contents.take_first();
        loop {
            self.out.extend_from_slice(&piece);
            self.send_if_much().await?;
            piece = match operations::next_piece(&self.volume, &mut contents).await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(failure) => {
                    return Err(io::Error::other(format!("cannot go on with a file that was announced: {failure}")));
                }
            };
        }
        self.out.extend_from_slice(b"\r\n");
        self.send_if_much().await
    }

    async fn send_if_much(&mut self) -> io::Result<()> {
        if self.out.len() >= GATHER_BYTES { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            timeout(TRANSFER, self.socket.write_all(&self.out)).await??;
            self.out.clear();
            self.out.shrink_to(GATHER_BYTES);
        }
        Ok(())
    }

    /// Send what is due and close. Closing a socket with unread bytes in it resets the connection and takes the last
    /// answers with it, so what the client still sends is swallowed for a moment.
    async fn leave(&mut self) -> io::Result<()> {
        self.send().await?;
        self.socket.shutdown().await?;
        let mut sink = vec![0; PIECE_BYTES];
        let swallow = async { while self.socket.read(&mut sink).await.is_ok_and(|length| length > 0) {} };
        let _ = timeout(LINGER, swallow).await;
        Ok(())
    }
}
