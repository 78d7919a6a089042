//! What travels between a node and its clients, and between nodes that forward for their own front ends.
//!
//! One request enum, one answer enum, encoded as the header of a message; bulk bytes are the message's body. Deadlines
//! travel as the milliseconds that are left, because clocks differ. Kinds below 64 are `raft`'s.

use super::local::READ_BYTES_MAX;
use super::{Capacity, Failure, NodeStatus};
use crate::codec::{self, CodecError};
use crate::fs::{Answer, Ino, LogIndex, Outcome, Query, Refusal, Request, SessionId};
use crate::limits::{
    BODY_BYTES_MAX, DIRECTORY_ANSWER_ENTRIES_MAX, FRAME_HEADER_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX,
};
use crate::net::{Message, NodeId};
use crate::raft::{MemberChange, MemberChanged, Roster};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The lowest message kind of this room.
pub const KIND_FIRST: u8 = 64;
const KIND_ASK: u8 = KIND_FIRST;
const KIND_TOLD: u8 = KIND_FIRST + 1;

/// Longest time that a node works on one message, whatever its sender would grant.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What one entry takes in an answer to `ReadDirectory`: a name of full length, and attributes.
const DIRECTORY_ENTRY_BYTES: usize = 512;

/// What an answer takes beside what was asked for.
const ANSWER_HEAD_BYTES: usize = 256;

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freshness {
    /// It reflects every command that completed before the question was asked.
    Linearizable,
    /// Whatever this replica has applied.
    Nearest,
}

/// A request to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// From node to leader: propose here or not at all. The command's body is the message's. → `Outcome`, `NotLeader`,
    /// `Unknown`
    Propose { request: Request, wait_ms: u32 },
    /// From a client: see to it that it is proposed, wherever the leader is. → `Verdict`
    Submit { request: Request, wait_ms: u32 },
    /// From node to leader. → `Index`, `NotLeader`
    ReadIndex { wait_ms: u32 },
    /// → `Answer`
    Query { query: Query, freshness: Freshness, wait_ms: u32 },
    /// → `Contents`, its bytes in the message's body
    Read { ino: Ino, offset: u64, length: u32, freshness: Freshness, wait_ms: u32 },
    /// From node to node: a piece of a body that the asker's disk lost. → `Body`, its bytes in the message's body
    FetchBody { index: LogIndex, offset: u32, length: u32 },
    /// → `Capacity`
    Capacity { wait_ms: u32 },
    /// From node to leader: what the disks of a majority have room for. → `Writable`
    Writable,
    /// Orphans above `after` that wait for this session's answer, the first of them. → `Orphans`
    Orphans { session: SessionId, after: Ino },
    /// → `Index`, once it is above `seen` or the time is up
    Changed { seen: LogIndex, wait_ms: u32 },
    /// → `Status`
    Status,
    /// The state's hash right after this entry, once it is applied here. → `Hash`
    HashAt { index: LogIndex, wait_ms: u32 },
    /// → `Members`
    Members,
    /// The membership as this node knows it. → `Roster`
    Roster,
    /// To the leader. → `MembersChanged`, `NotLeader`, `Unknown`
    ChangeMembers { change: MemberChange, wait_ms: u32 },
    /// Test every invariant of this replica's state. → `Checked`
    Check,
    /// Read and verify everything that this node stores, and mend what is damaged if that is wanted. → `Scrubbing`; how
    /// far it is and what it finds is in the status
    Scrub { mend: bool },
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Told {
    Outcome(Outcome),
    Verdict(Verdict),
    /// Certainly not proposed here.
    NotLeader {
        leader: Option<(NodeId, SocketAddr)>,
    },
    /// Perhaps proposed; it may still take effect.
    Unknown,
    Index(LogIndex),
    Answer(Result<Answer, Refusal>),
    Contents(Result<Head, Refusal>),
    Body,
    Capacity(Capacity),
    Writable {
        bytes: u64,
    },
    Orphans(Vec<Ino>),
    Status(Box<NodeStatus>),
    Hash(Option<u128>),
    Members(BTreeMap<NodeId, SocketAddr>),
    Roster(Box<Roster>),
    /// `Err`: refused, in words; nothing was changed.
    MembersChanged(Result<MemberChanged, String>),
    /// The first invariant that is broken, in words.
    Checked(Option<String>),
    /// The number of the pass; `None`: too many wait.
    Scrubbing(Option<u64>),
    Failed(Failure),
}

/// What became of a command that was sent to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    /// `doubt`: an earlier try may have been executed too, so that a `SessionEnded` here does not mean that nothing was.
    Outcome { outcome: Outcome, doubt: bool },
    /// It never reached a leader that may have proposed it.
    NotSent,
    /// It may have been proposed.
    InDoubt,
    /// The node cannot go on.
    Stopped(String),
}

/// A file at one index: which version, how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub version: LogIndex,
    /// Bytes of the whole file.
    pub size: u64,
}

impl Ask {
    pub(super) fn message(&self, body: Bytes) -> Result<Message, CodecError> {
        Ok(Message { kind: KIND_ASK, header: codec::encode("request", self)?.into(), body })
    }

    pub(super) fn from_message(message: &Message) -> Result<Ask, CodecError> {
        expect_kind("request", message, KIND_ASK)?;
        codec::decode("request", &message.header)
    }

    /// How large the answer may be, in bytes; of those that are always small, 0.
    pub(super) fn answer_bytes(&self) -> usize {
        let large = match self {
            Ask::Read { length, .. } => (*length).min(READ_BYTES_MAX) as usize,
            Ask::FetchBody { length, .. } => (*length as usize).min(BODY_BYTES_MAX),
            Ask::Query { query: Query::ReadDirectory { limit, .. }, .. } => {
                (*limit as usize).min(DIRECTORY_ANSWER_ENTRIES_MAX) * DIRECTORY_ENTRY_BYTES
            }
            Ask::Query { query: Query::Xattr { .. }, .. } => XATTR_VALUE_BYTES_MAX,
            Ask::Query { query: Query::ListXattrs { .. }, .. } => XATTRS_BYTES_MAX,
            _ => return 0,
        };
        large + ANSWER_HEAD_BYTES
    }

    /// Is this what a node answers, with such a body? `Err`: no, and why.
    pub(super) fn may_be_asked(&self, body: &Bytes) -> Result<(), &'static str> {
        match self {
            // One piece for each extent of a file, however many: a node asks itself, for no more than one read.
            Ask::Query { query: Query::Content { .. }, .. } => Err("where the bytes of a file are is not told"),
            Ask::Propose { .. } | Ask::Submit { .. } => Ok(()),
            _ if !body.is_empty() => Err("such a request has no body"),
            _ => Ok(()),
        }
    }
}

impl Told {
    /// An answer that cannot be encoded becomes a refusal with the reason; one that is too large a failure, because it is
    /// so at every node.
    pub(super) fn message(&self, body: Bytes) -> Message {
        match codec::encode("answer", self) {
            Ok(header) if header.len() > FRAME_HEADER_BYTES_MAX => {
                let why = format!("the answer has {} bytes, {FRAME_HEADER_BYTES_MAX} can be sent", header.len());
                Told::Failed(Failure::Damaged(why)).message(Bytes::new())
            }
            Ok(header) => Message { kind: KIND_TOLD, header: header.into(), body },
            Err(e) => Message::refused(e.to_string()),
        }
    }

    pub(super) fn from_message(message: &Message) -> Result<Told, CodecError> {
        expect_kind("answer", message, KIND_TOLD)?;
        codec::decode("answer", &message.header)
    }
}

fn expect_kind(what: &'static str, message: &Message, kind: u8) -> Result<(), CodecError> {
    if message.kind == kind {
        return Ok(());
    }
    Err(CodecError::Undecodable { what, why: format!("message kind {}, not {kind}", message.kind) })
}

/// What is left until the deadline, as it travels.
pub(super) fn wait_ms(deadline: Instant) -> u32 {
    deadline.saturating_duration_since(Instant::now()).min(WAIT_MAX).as_millis() as u32
}

/// The deadline of a message that has just arrived.
pub(super) fn deadline(wait_ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(wait_ms.into()).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(query: Query) -> Ask {
        Ask::Query { query, freshness: Freshness::Nearest, wait_ms: 0 }
    }

    #[test]
    fn what_may_have_a_large_answer_says_so_and_what_would_have_an_endless_one_is_refused() {
        let read = |length| Ask::Read { ino: Ino(2), offset: 0, length, freshness: Freshness::Nearest, wait_ms: 0 };
        assert_eq!(
            [100, u32::MAX].map(|length| read(length).answer_bytes()),
            [100, READ_BYTES_MAX as usize].map(|n| n + ANSWER_HEAD_BYTES)
        );
        let directory = query(Query::ReadDirectory { ino: Ino::ROOT, after: 0, limit: u32::MAX });
        assert_eq!(directory.answer_bytes(), DIRECTORY_ANSWER_ENTRIES_MAX * DIRECTORY_ENTRY_BYTES + ANSWER_HEAD_BYTES);
        let (none, some) = (Bytes::new(), Bytes::from_static(b"for nothing"));
        let content = query(Query::Content { ino: Ino(2), offset: 0, length: u64::MAX });
        let cases = [(&content, &none), (&Ask::Changed { seen: LogIndex(0), wait_ms: 60_000 }, &some)];
        for (ask, body) in cases {
            assert!(ask.may_be_asked(body).is_err(), "{ask:?}");
        }
        for ask in [read(1), directory] {
            assert_eq!(ask.may_be_asked(&none), Ok(()));
        }
    }

    #[test]
    fn an_answer_that_no_frame_can_carry_becomes_a_failure_that_can() {
        let large = Answer::Bytes(Bytes::from(vec![b'x'; FRAME_HEADER_BYTES_MAX]));
        let message = Told::Answer(Ok(large)).message(Bytes::new());
        assert!(message.header.len() <= FRAME_HEADER_BYTES_MAX);
        assert!(matches!(Told::from_message(&message), Ok(Told::Failed(Failure::Damaged(_)))));
    }
}
