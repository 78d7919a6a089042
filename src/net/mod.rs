//! Bytes ↔ peers.
//!
//! A [`Link`] is one TCP connection that carries many calls at once: each request frame gets one answer frame with the same
//! call number, in any order. A peer keeps one link for each [`Purpose`], so that bulk data never delays a heartbeat. A
//! [`Server`] accepts links, checks who is calling, and hands each message to a [`Handler`].
//!
//! Absent on purpose: retries. A link says whether a message may have arrived ([`NetError::may_have_arrived`]); what to do
//! about it is the caller's to know.
//!
//! Decisions: lengths are checked against limits before anything is allocated; a frame that has begun must end in time;
//! bytes in flight are bounded per link and, for clients, per process, and an answer is begun when there is room for it;
//! every call has a deadline. Whether a node may take part is not known here: a [`Judge`] is asked. A caller that does not
//! know the cluster yet (the CLI) may shake hands as a client without naming it; a node never may.
//!
//! With [`Keys`], links are encrypted (TLS 1.3), and both ends prove by certificates of the cluster's own authority
//! whether they are nodes or clients. Decision: a certificate names a role and no number, because the cluster gives a node
//! its number when it has keys already. Cost: who steals the key of one node can pose as another; but as that one alone
//! he could do enough.

mod frame;
mod handshake;
pub mod keys;
mod link;
mod server;
mod tls;
mod wire;

pub use handshake::Expulsion;
pub use keys::{Keys, Role};
pub use link::Link;
pub use server::{Handler, Server};
pub use wire::{Dialer, Listener, Wire, dial_through};

use bytes::Bytes;
use std::net::SocketAddr;

pub type NodeId = u64;

/// Who we are to others; checked on both sides of every handshake.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Nil: a client that takes any cluster.
    pub cluster: uuid::Uuid,
    /// `None`: a client (a mount without a replica, the CLI).
    pub node: Option<NodeId>,
    /// Of a client nothing but zeros.
    pub start: Start,
    /// With them every connection is encrypted, and both ends prove what they are; without them none is.
    pub keys: Option<Keys>,
}

/// Which start of which data directory a node's process is: what an emptied disk or an old copy cannot say right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Start {
    /// Drawn at random when the data directory was made.
    pub instance: uuid::Uuid,
    /// Number of this process start, kept on disk: rises with each.
    pub incarnation: u64,
    /// Drawn at random for this start alone.
    pub run: u64,
    /// Index of the last entry of the log at this start.
    pub log_end: u64,
}

/// Knows which starts of nodes may take part. Both ends of a handshake between nodes ask their own.
pub trait Judge: Send + Sync + 'static {
    /// May this start of this node take part? `Err`: never, and why.
    fn admit(&self, node: NodeId, start: &Start) -> Result<(), Expulsion>;

    /// A peer's judge has said so of this process.
    fn expelled(&self, expulsion: Expulsion);
}

/// A message in either direction: a kind, a bounded header, and raw bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub header: Bytes,
    pub body: Bytes,
}

impl Message {
    /// The answer to what cannot be handled; [`Link::call`] turns it into [`NetError::Refused`].
    pub fn refused(why: impl Into<String>) -> Message {
        Message { kind: frame::KIND_REFUSED, header: Bytes::from(why.into().into_bytes()), body: Bytes::new() }
    }
}

/// What a link is for; peers keep one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
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

/// The other end of an accepted link.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: SocketAddr,
    /// `None`: a client.
    pub node: Option<NodeId>,
    pub start: Start,
    pub purpose: Purpose,
}

/// Why a call brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    #[error("cannot connect to {address}: {why}")]
    Connect { address: SocketAddr, why: String },
    #[error("cannot shake hands with {address}: {why}")]
    Handshake { address: SocketAddr, why: String },
    #[error("the connection to {address} broke: {why}")]
    Broken { address: SocketAddr, why: String },
    #[error("{address} did not answer in time")]
    Timeout { address: SocketAddr },
    #[error("{address} refused the message: {why}")]
    Refused { address: SocketAddr, why: String },
    #[error("{what}: {length} bytes exceed the limit of {limit}")]
    TooLarge { what: &'static str, length: usize, limit: usize },
}

impl NetError {
    /// `false`: the message has certainly not been handled. `true`: nobody knows.
    pub fn may_have_arrived(&self) -> bool {
        match self {
            NetError::Connect { .. } | NetError::Handshake { .. } | NetError::TooLarge { .. } => false,
            NetError::Broken { .. } | NetError::Timeout { .. } | NetError::Refused { .. } => true,
        }
    }
}

/// For those who try what wild bytes do: whether these begin with a whole frame.
#[doc(hidden)]
pub async fn wild_frame(mut bytes: &[u8]) -> bool {
    frame::read_frame(&mut bytes).await.is_ok()
}

#[cfg(test)]
mod tests;
