//! The cs733 text protocol on the same tree: `read`, `write`, `cas`, `delete` over TCP, for `nc` and for programs that
//! were written for the system that keelfs descends from.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod` | listening, and how it ends |
//! | `clients` | who is connected, and who goes when there are too many |
//! | `connection` | one client: bytes in, answers out in the order of the requests, deadlines |
//! | `parser` | bytes → requests, pure |
//! | `operations` | requests → commands and queries of the volume |
//! | `answers` | outcomes → the words of the protocol |
//!
//! Names are those of the root directory. A file that is written here is an ordinary file on every mount, owned by the
//! user that the node runs as, and the other way round; versions are those of `user.keelfs.version`.
//!
//! Absent on purpose: authentication (the protocol has none: listen on loopback or a trusted network), access checks
//! (whoever can connect acts as the node), directories below the root, and concurrency within one connection: requests
//! of one client take effect in the order in which they were sent, so the next begins when the one before is answered.
//! Cost: a pipeline saves round trips of the network, not rounds of Raft. Who wants more in parallel connects more often.
//!
//! Every client is bounded in memory (one request, one piece of an answer) and in time (`CS733_*` in
//! [`limits`](crate::limits)); beyond the limit of connections, the client that has been silent longest is closed, or if
//! none has been for some seconds, the new one gets `ERR_INTERNAL` and is. A fault of one connection, a panic included,
//! ends that connection only.

mod answers;
mod clients;
mod connection;
mod operations;
mod parser;

use crate::limits::CS733_CONNECTIONS_MAX;
use crate::volume::Volume;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How long requests in progress may still run after `stop`.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a failed accept (usually no file descriptors), so that it is not tried in a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For those who try what wild bytes do: how many requests and errors a client's bytes come to, sent in these pieces.
#[doc(hidden)]
pub fn wild_requests<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> usize {
    let mut parser = parser::Parser::default();
    let mut events = 0;
    for piece in pieces {
        parser.push(piece);
        while let Some(event) = parser.next_event() {
            events += 1;
            if matches!(event, parser::Event::Lost) {
                return events;
            }
        }
    }
    events
}

/// Serve clients until `stop`; returns when the last connection has ended.
pub async fn serve(volume: Volume, listener: TcpListener, stop: CancellationToken) {
    let mut clients = clients::Clients::default();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, address)) if clients.make_room().await => {
                tracing::debug!(%address, "cs733 client connected");
                let volume = volume.clone();
                clients.admit(&stop, |silence, stop| connection::serve(volume, socket, silence, stop));
            }
            Ok((socket, _)) => turn_away(socket).await,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a cs733 client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    clients.end(DRAIN).await;
}

/// Tell a client that there are too many. One write into an empty socket buffer does not wait.
async fn turn_away(mut socket: TcpStream) {
    tracing::warn!(limit = CS733_CONNECTIONS_MAX, "too many cs733 clients: one was turned away");
    let mut line = Vec::new();
    answers::Answer::Internal.append_to(&mut line);
    let _ = tokio::time::timeout(ACCEPT_PAUSE, socket.write_all(&line)).await;
}
