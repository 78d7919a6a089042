//! SKELETON: bytes ↔ peers.
//!
//! A *link* is one TCP connection that carries many calls at once: each request frame gets one answer frame with the same
//! call number, in any order. What travels on separate links never delays each other.

use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub type NodeId = u64;

/// Who we are to others; checked on both sides of every handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: uuid::Uuid,
    /// `None`: a client (a mount without a replica, the CLI).
    pub node: Option<NodeId>,
    /// Number of this process start, kept on disk: rises with each.
    pub incarnation: u64,
}

/// A message in either direction: a kind, a bounded bincode header, and raw bytes.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: u8,
    pub header: Bytes,
    pub body: Bytes,
}

/// What a link is for; peers keep one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Votes, heartbeats, read confirmations.
    Pulse,
    /// AppendEntries with data.
    Append,
    /// Snapshot items and bodies.
    Snapshot,
    /// Forwarded requests and clients.
    Client,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    #[error("cannot connect to {address}: {why}")]
    Connect { address: SocketAddr, why: String },
    #[error("{address} refused the handshake: {why}")]
    Handshake { address: SocketAddr, why: String },
    /// The request may or may not have arrived.
    #[error("the connection to {address} broke: {why}")]
    Broken { address: SocketAddr, why: String },
    /// The request may or may not have been handled.
    #[error("{address} did not answer in time")]
    Timeout { address: SocketAddr },
    #[error("{what}: {length} bytes exceed the limit of {limit}")]
    TooLarge { what: &'static str, length: usize, limit: usize },
}

/// A link to one address for one purpose: connects when first used, again after it broke.
#[derive(Clone)]
pub struct Link {}

impl Link {
    /// `expected`: the node that must answer there (`None`: any node of the cluster).
    pub fn new(own: Identity, address: SocketAddr, expected: Option<NodeId>, purpose: Purpose) -> Link {
        unimplemented!()
    }
    /// Send and wait for the answer, until the deadline. Calls are sent in the order of this method's first poll.
    pub async fn call(&self, message: Message, deadline: Instant) -> Result<Message, NetError> {
        unimplemented!()
    }
    /// Queue the message now (in the order of these calls) and return a future of its answer: for pipelines.
    pub async fn start(
        &self,
        message: Message,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<Message, NetError>> + Send + 'static, NetError> {
        unimplemented!() as Result<std::future::Ready<Result<Message, NetError>>, NetError>
    }
}

/// What a server does with a message. Called in order of arrival on a link; the futures run concurrently.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, from: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static;
}

/// The other end of an accepted link.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: SocketAddr,
    pub node: Option<NodeId>,
    pub incarnation: u64,
    pub purpose: Purpose,
}
