//! The handshake: before any message, both ends say who they are and agree to talk.

use super::frame::{self, Direction, Frame, KIND_HELLO, KIND_REFUSED};
use super::{Identity, Message, NodeId, Purpose};
use crate::codec;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

/// Time for the other end to say hello.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// What the caller says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub cluster: Uuid,
    pub node: Option<NodeId>,
    pub incarnation: u64,
    pub purpose: Purpose,
    /// The node that the caller means to reach.
    pub expected: Option<NodeId>,
}

/// What the called one answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub cluster: Uuid,
    pub node: Option<NodeId>,
    pub incarnation: u64,
}

/// The highest incarnation that each peer has shown: one below it is an old copy of its data directory.
pub(super) type Incarnations = Mutex<BTreeMap<NodeId, u64>>;

/// The caller's half.
pub(super) async fn call(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), hello: &Hello) -> Result<Welcome> {
    send(stream, Direction::Request, KIND_HELLO, &codec::encode("hello", hello).map_err(Error::other)?).await?;
    let answer = frame::read_frame(stream).await?.message;
    match answer.kind {
        KIND_HELLO => {}
        KIND_REFUSED => return Err(refused(String::from_utf8_lossy(&answer.header).into_owned())),
        other => return Err(refused(format!("answered with a message of kind {other}"))),
    }
    let welcome: Welcome = codec::decode("welcome", &answer.header).map_err(|e| refused(e.to_string()))?;
    let wrong_cluster = !hello.cluster.is_nil() && welcome.cluster != hello.cluster;
    match (wrong_cluster, hello.expected) {
        (true, _) => Err(refused(format!("it is of cluster {}, not {}", welcome.cluster, hello.cluster))),
        (_, Some(id)) if welcome.node != Some(id) => Err(refused(format!("it is node {:?}, not {id}", welcome.node))),
        _ => Ok(welcome),
    }
}

/// The called one's half: the hello, if the caller may talk to us.
pub(super) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    own: &Identity,
    seen: &Incarnations,
) -> Result<Hello> {
    let first = frame::read_frame(stream).await?.message;
    let verdict = match first.kind {
        KIND_HELLO => codec::decode::<Hello>("hello", &first.header).map_err(|e| e.to_string()),
        other => Err(format!("the first message must be a hello, not kind {other}")),
    }
    .and_then(|hello| judge(own, &hello, seen).map(|()| hello));
    match verdict {
        Ok(hello) => {
            let welcome = Welcome { cluster: own.cluster, node: own.node, incarnation: own.incarnation };
            let bytes = codec::encode("welcome", &welcome).map_err(Error::other)?;
            send(stream, Direction::Answer, KIND_HELLO, &bytes).await?;
            Ok(hello)
        }
        Err(why) => {
            send(stream, Direction::Answer, KIND_REFUSED, why.as_bytes()).await?;
            Err(refused(why))
        }
    }
}

fn judge(own: &Identity, hello: &Hello, seen: &Incarnations) -> std::result::Result<(), String> {
    let cluster_unknown = hello.cluster.is_nil() && hello.node.is_none();
    if hello.cluster != own.cluster && !cluster_unknown {
        return Err(format!("cluster id mismatch: this is {}, the caller is of {}", own.cluster, hello.cluster));
    }
    if hello.expected.is_some() && hello.expected != own.node {
        return Err(format!("this is node {:?}, the caller looks for {:?}", own.node, hello.expected));
    }
    let Some(node) = hello.node else {
        return if hello.purpose == Purpose::Client { Ok(()) } else { Err("clients may only call as clients".into()) };
    };
    if hello.node == own.node {
        return Err(format!("the caller claims to be node {node}, which is this node"));
    }
    let mut seen = seen.lock();
    let highest = seen.entry(node).or_insert(hello.incarnation);
    if hello.incarnation < *highest {
        return Err(format!(
            "node {node} is in its start number {}, but it has been seen in number {highest}: its data directory is an old copy; \
             replace the node",
            hello.incarnation
        ));
    }
    *highest = hello.incarnation;
    Ok(())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), direction: Direction, kind: u8, header: &[u8]) -> Result<()> {
    let message = Message { kind, header: Bytes::copy_from_slice(header), body: Bytes::new() };
    stream.write_all(&Frame { direction, call: 0, message }.head()).await
}

/// An error that says that the other end is there and does not want us.
fn refused(why: String) -> Error {
    Error::new(ErrorKind::PermissionDenied, why)
}
