//! openraft's type parameters, spelled out once, and the words of the log for them.
//!
//! An entry's identity is `(term, node, index)` in both worlds: openraft's `LogId` inside, [`EntryId`] on disk and on the
//! wire, so that no format of ours depends on how openraft serializes its types.

use super::membership::Member;
use super::payload;
use crate::fs::{ClusterTime, Outcome, Request, Timestamp};
use crate::log::{Body, EntryId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

openraft::declare_raft_types!(
    /// What Raft is instantiated with here.
    pub Types:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = LeaderId,
        Vote = Vote,
        Payload = Payload,
        Entry = Entry,
);

pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub type LogId = openraft::LogId<LeaderId>;
pub type Vote = openraft::Vote<LeaderId>;
pub type Payload = openraft::EntryPayload<Proposal, u64, Member>;
pub type Entry = openraft::Entry<LeaderId, Payload>;
pub type Membership = openraft::Membership<u64, Member>;
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, Member>;
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Member>;
pub type Snapshot<D> = openraft::Snapshot<LeaderId, u64, Member, D>;

/// A request with the times that its leader stamped on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    pub cluster: ClusterTime,
    pub wall: Timestamp,
    pub request: Request,
}

/// What an entry of a command holds in memory. Clones share everything.
#[derive(Clone, PartialEq)]
pub struct Proposal {
    /// The encoded payload, made once: the same bytes go to the log and to every peer.
    pub command: Bytes,
    /// What `command` decodes to.
    pub stamped: Arc<Stamped>,
    pub body: Body,
}

impl Proposal {
    pub fn body_length(&self) -> u32 {
        body_length(&self.body)
    }
}

/// Bytes of a body, loaded or not.
pub fn body_length(body: &Body) -> u32 {
    match body {
        Body::Bytes(bytes) => bytes.len() as u32,
        Body::Absent(length) => *length,
    }
}

/// One line for openraft's traces, whatever the size of the command.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { session, sequence, .. } = &self.stamped.request;
        write!(f, "request {}.{}, {} + {} bytes", session.0, sequence.0, self.command.len(), self.body_length())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// openraft demands serde of its application data though nothing here serializes it that way; the body is left out.
#[derive(Serialize, Deserialize)]
struct BareProposal {
    command: Bytes,
    body_length: u32,
}

impl Serialize for Proposal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BareProposal { command: self.command.clone(), body_length: self.body_length() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Proposal, D::Error> {
        let BareProposal { command, body_length } = BareProposal::deserialize(deserializer)?;
        match payload::decode(&command, Body::Absent(body_length)) {
            Ok(Payload::Normal(proposal)) => Ok(proposal),
            Ok(_) => Err(serde::de::Error::custom("not a command")),
            Err(e) => Err(serde::de::Error::custom(e)),
        }
    }
}

/// What applying an entry came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// A blank entry or a membership.
    Nothing,
    Outcome(Outcome),
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Applied::Nothing => "nothing",
            Applied::Outcome(Ok(_)) => "done",
            Applied::Outcome(Err(_)) => "refused",
        })
    }
}

pub fn entry_id(id: &LogId) -> EntryId {
    EntryId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub fn log_id(id: EntryId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.node }, id.index)
}
