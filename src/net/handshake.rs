//! The handshake: before any message, both ends say who they are and agree to talk.

use super::frame::{self, Direction, Frame, KIND_EXPELLED, KIND_HELLO, KIND_REFUSED};
use super::keys::Role;
use super::tls;
use super::{Handler, Identity, Judge, Message, NodeId, Purpose, Start};
use crate::codec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

/// Time for the other end to say hello.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Largest frame of a handshake: a hello, a welcome, or a refusal in words.
const HANDSHAKE_BYTES_MAX: usize = 4 << 10;

/// What the caller says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub cluster: Uuid,
    pub node: Option<NodeId>,
    pub start: Start,
    pub purpose: Purpose,
    /// The node that the caller means to reach.
    pub expected: Option<NodeId>,
}

/// What the called one answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub cluster: Uuid,
    pub node: Option<NodeId>,
    pub start: Start,
}

/// Why a start of a node may never take part in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expulsion {
    /// It was removed from the membership; otherwise it is not what it was.
    pub removed: bool,
    pub why: String,
}

impl Expulsion {
    /// The answer that tells it.
    pub(super) fn message(&self) -> Message {
        match codec::encode("expulsion", self) {
            Ok(bytes) => Message { kind: KIND_EXPELLED, header: bytes.into(), body: Bytes::new() },
            Err(e) => Message::refused(e.to_string()),
        }
    }
}

/// What a caller may not do: now, or ever.
enum Verdict {
    Refused(String),
    Expelled(Expulsion),
}

/// The caller's half. `judge`: between nodes.
pub(super) async fn call(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
    judge: Option<&dyn Judge>,
) -> Result<Welcome> {
    send(stream, Direction::Request, KIND_HELLO, &codec::encode("hello", hello).map_err(Error::other)?).await?;
    let answer = frame::read_first_frame(stream, HANDSHAKE_BYTES_MAX).await?.message;
    match answer.kind {
        KIND_HELLO => {}
        KIND_REFUSED => return Err(refused(String::from_utf8_lossy(&answer.header).into_owned())),
        KIND_EXPELLED => return Err(expelled(&answer.header, judge)),
        other => return Err(refused(format!("answered with a message of kind {other}"))),
    }
    let welcome: Welcome = codec::decode("welcome", &answer.header).map_err(|e| refused(e.to_string()))?;
    let wrong_cluster = !hello.cluster.is_nil() && welcome.cluster != hello.cluster;
    match (wrong_cluster, hello.expected) {
        (true, _) => Err(refused(format!("it is of cluster {}, not {}", welcome.cluster, hello.cluster))),
        (_, Some(id)) if welcome.node != Some(id) => {
            Err(refused(format!("it is {}, not node {id}", named(welcome.node))))
        }
        _ => admitted(welcome, judge),
    }
}

/// The called node must be fit as well: a candidate must not count the vote of one that has forgotten what it said.
fn admitted(welcome: Welcome, judge: Option<&dyn Judge>) -> Result<Welcome> {
    match (welcome.node, judge) {
        (Some(node), Some(judge)) => {
            judge.admit(node, &welcome.start).map_err(|expulsion| refused(expulsion.why))?;
            Ok(welcome)
        }
        _ => Ok(welcome),
    }
}

/// Pass on what was said of us.
pub(super) fn expelled(header: &[u8], judge: Option<&dyn Judge>) -> Error {
    match codec::decode::<Expulsion>("expulsion", header) {
        Ok(expulsion) => {
            if let Some(judge) = judge {
                judge.expelled(expulsion.clone());
            }
            refused(expulsion.why)
        }
        Err(e) => refused(e.to_string()),
    }
}

/// The called one's half: the hello, if the caller may talk to us. `proven`: what its certificate says, if it has shown one.
pub(super) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    own: &Identity,
    proven: Option<Role>,
    handler: &impl Handler,
) -> Result<Hello> {
    let first = match frame::read_first_frame(stream, HANDSHAKE_BYTES_MAX).await {
        Err(e) if e.kind() == ErrorKind::Unsupported => return Err(refuse_tls(stream, e).await),
        first => first?.message,
    };
    let verdict = match first.kind {
        KIND_HELLO => codec::decode::<Hello>("hello", &first.header).map_err(|e| Verdict::Refused(e.to_string())),
        other => Err(Verdict::Refused(format!("the first message must be a hello, not kind {other}"))),
    }
    .and_then(|hello| judge(own, &hello, proven, handler).map(|()| hello));
    match verdict {
        Ok(hello) => {
            let welcome = Welcome { cluster: own.cluster, node: own.node, start: own.start };
            let bytes = codec::encode("welcome", &welcome).map_err(Error::other)?;
            send(stream, Direction::Answer, KIND_HELLO, &bytes).await?;
            Ok(hello)
        }
        Err(Verdict::Refused(why)) => {
            send(stream, Direction::Answer, KIND_REFUSED, why.as_bytes()).await?;
            Err(refused(why))
        }
        Err(Verdict::Expelled(expulsion)) => {
            send(stream, Direction::Answer, KIND_EXPELLED, &expulsion.message().header).await?;
            Err(refused(expulsion.why))
        }
    }
}

/// What we say is no TLS: the caller does not understand it, but sees that. Its own words are left unread.
async fn refuse_tls(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), why: Error) -> Error {
    if send(stream, Direction::Answer, KIND_REFUSED, why.to_string().as_bytes()).await.is_ok() {
        tls::linger(stream).await;
    }
    why
}

fn judge(
    own: &Identity,
    hello: &Hello,
    proven: Option<Role>,
    handler: &impl Handler,
) -> std::result::Result<(), Verdict> {
    let refused = |why: String| Err(Verdict::Refused(why));
    let cluster_unknown = hello.cluster.is_nil() && hello.node.is_none();
    if hello.cluster != own.cluster && !cluster_unknown {
        return refused(format!("cluster id mismatch: this is {}, the caller is of {}", own.cluster, hello.cluster));
    }
    if hello.expected.is_some() && hello.expected != own.node {
        return refused(format!("this is {}, the caller looks for {}", named(own.node), named(hello.expected)));
    }
    let Some(node) = hello.node else {
        return if hello.purpose == Purpose::Client {
            Ok(())
        } else {
            refused("clients may only call as clients".into())
        };
    };
    if proven == Some(Role::Client) {
        return refused(format!("the caller says that it is node {node}, and its certificate is that of a client"));
    }
    if hello.node == own.node {
        return refused(format!("the caller claims to be node {node}, which is this node"));
    }
    handler.admit(node, &hello.start).map_err(Verdict::Expelled)
}

fn named(node: Option<NodeId>) -> String {
    node.map_or("no node".into(), |node| format!("node {node}"))
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), direction: Direction, kind: u8, header: &[u8]) -> Result<()> {
    let message = Message { kind, header: Bytes::copy_from_slice(header), body: Bytes::new() };
    stream.write_all(&Frame { direction, call: 0, message }.head()).await?;
    stream.flush().await
}

/// An error that says that the other end is there and does not want us.
fn refused(why: String) -> Error {
    Error::new(ErrorKind::PermissionDenied, why)
}
