//! What the `command` bytes of an entry, the vote record and a snapshot's meta hold.
//!
//! ```text
//! command:        format (1 byte) · bincode of Stored
//! vote:           format (1 byte) · bincode of StoredVote
//! snapshot meta:  format (1 byte) · bincode of StoredMeta
//! ```
//!
//! The body of a command stays beside: it is raw bytes in the log and on the wire. openraft's own serde forms are not
//! used, so that a new version of it changes no format. `tests/fixtures` holds one value of each.

use super::membership::Member;
use super::types::*;
use crate::codec::{self, CodecError};
use crate::log::{self, Body, EntryId};
use bytes::Bytes;
use openraft::EntryPayload;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The format of everything in this module.
const FORMAT: u8 = 2;

#[derive(Serialize, Deserialize)]
enum Stored<C> {
    Blank,
    Membership(StoredMembers),
    /// [`Stamped`], borrowed to write and owned when read.
    Command(C),
}

/// What an entry of the log says, for people who look into a stopped node's log.
#[derive(Clone, Debug)]
pub enum Recorded {
    /// A leader's first entry.
    Blank,
    Membership(StoredMembers),
    Command(Stamped),
}

/// What the `command` bytes of an entry say.
pub fn recorded(command: &[u8]) -> Result<Recorded, CodecError> {
    Ok(match decode_formatted::<Stored<Stamped>>("command", command)? {
        Stored::Blank => Recorded::Blank,
        Stored::Membership(members) => Recorded::Membership(members),
        Stored::Command(stamped) => Recorded::Command(stamped),
    })
}

/// Voters (two sets while the membership changes) and all nodes, learners included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMembers {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, Member>,
}

/// A vote as the log keeps it. One is greater than another if it may take its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoredVote {
    pub term: u64,
    pub node: u64,
    /// A quorum has granted it: the node leads.
    pub committed: bool,
}

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMeta {
    pub last: EntryId,
    /// The entry of the membership; `None` only for the empty one.
    pub membership_id: Option<EntryId>,
    pub membership: StoredMembers,
}

/// Format byte and bincode.
pub fn encode_formatted<T: Serialize>(what: &'static str, value: &T) -> Result<Bytes, CodecError> {
    let mut bytes = codec::encode(what, value)?;
    bytes.insert(0, FORMAT);
    Ok(bytes.into())
}

/// The opposite; names both formats if this build does not know the one that it finds.
pub fn decode_formatted<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => codec::decode(what, rest),
        Some((found, _)) => {
            Err(CodecError::Undecodable { what, why: format!("format {found}, this build reads {FORMAT}") })
        }
        None => Err(CodecError::Undecodable { what, why: "no bytes".into() }),
    }
}

/// What [`crate::log::Log::vote`] holds.
pub fn decode_vote(bytes: &[u8]) -> Result<StoredVote, CodecError> {
    decode_formatted("vote", bytes)
}

/// The `command` bytes of a request.
pub fn encode_command(stamped: &Stamped) -> Result<Bytes, CodecError> {
    encode_formatted("command", &Stored::Command(stamped))
}

/// An entry as the log keeps it.
pub fn to_stored(entry: &Entry) -> Result<log::Entry, CodecError> {
    let no_body = || Body::Bytes(Bytes::new());
    let (command, body) = match &entry.payload {
        EntryPayload::Blank => (encode_formatted("blank entry", &Stored::<&Stamped>::Blank)?, no_body()),
        EntryPayload::Membership(members) => {
            (encode_formatted("membership", &Stored::<&Stamped>::Membership(members.into()))?, no_body())
        }
        EntryPayload::Normal(proposal) => (proposal.command.clone(), proposal.body.clone()),
    };
    Ok(log::Entry { id: entry_id(&entry.log_id), command, body })
}

pub fn from_stored(entry: log::Entry) -> Result<Entry, CodecError> {
    Ok(Entry { log_id: log_id(entry.id), payload: decode(&entry.command, entry.body)? })
}

/// What `command` bytes with this body beside them mean.
pub fn decode(command: &Bytes, body: Body) -> Result<Payload, CodecError> {
    Ok(match decode_formatted::<Stored<Stamped>>("command", command)? {
        Stored::Blank => EntryPayload::Blank,
        Stored::Membership(members) => EntryPayload::Membership(members.try_into()?),
        Stored::Command(stamped) => {
            EntryPayload::Normal(Proposal { command: command.clone(), stamped: Arc::new(stamped), body })
        }
    })
}

impl From<&Membership> for StoredMembers {
    fn from(membership: &Membership) -> StoredMembers {
        StoredMembers {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }
}

impl TryFrom<StoredMembers> for Membership {
    type Error = CodecError;
    fn try_from(stored: StoredMembers) -> Result<Membership, CodecError> {
        // The empty membership of a node that has never been a member; openraft builds no other way to it.
        if stored.configs.is_empty() && stored.nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(stored.configs, stored.nodes)
            .map_err(|e| CodecError::Undecodable { what: "membership", why: e.to_string() })
    }
}

impl From<&Vote> for StoredVote {
    fn from(vote: &Vote) -> StoredVote {
        StoredVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<StoredVote> for Vote {
    fn from(stored: StoredVote) -> Vote {
        let leader_id = LeaderId { term: stored.term, node_id: stored.node };
        Vote { leader_id, committed: stored.committed }
    }
}

impl StoredMeta {
    /// `None`: nothing has been applied, so there is nothing to have a snapshot of.
    pub fn new(last: Option<&LogId>, membership: &StoredMembership) -> Option<StoredMeta> {
        Some(StoredMeta {
            last: entry_id(last?),
            membership_id: membership.log_id().as_ref().map(entry_id),
            membership: membership.membership().into(),
        })
    }

    pub fn stored_membership(&self) -> Result<StoredMembership, CodecError> {
        Ok(StoredMembership::new(self.membership_id.map(log_id), self.membership.clone().try_into()?))
    }

    pub fn snapshot_meta(&self) -> Result<SnapshotMeta, CodecError> {
        Ok(SnapshotMeta { last_log_id: Some(log_id(self.last)), last_membership: self.stored_membership()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{ClusterTime, Command, Credentials, Ino, Request, Sequence, SessionId, Timestamp};
    use crate::raft::membership::Becomes;

    /// Bytes of these formats are on disks: they may never change their meaning. Each line is a name and bytes in hex.
    const FIXTURE: &str = include_str!("../../tests/fixtures/raft-formats.txt");

    fn stamped() -> Arc<Stamped> {
        Arc::new(Stamped {
            cluster: ClusterTime(1_500_000_000),
            wall: Timestamp { seconds: 1_700_000_000, nanos: 250 },
            request: Request {
                session: SessionId(7),
                sequence: Sequence(3),
                first_outstanding: Sequence(2),
                credentials: Credentials { uid: 1000, gid: 100 },
                command: Command::Write { ino: Ino(42), offset: 4096, length: 5 },
            },
        })
    }

    fn entry(payload: Payload) -> Entry {
        Entry { log_id: log_id(EntryId { term: 4, node: 2, index: 1000 }), payload }
    }

    fn entries() -> Vec<(&'static str, Entry)> {
        let two = Member { name: "two".into(), becomes: Becomes::Instead(9), ..Member::at("10.0.0.2:7000") };
        let nodes = BTreeMap::from([(1, Member::at("10.0.0.1:7000")), (2, two)]);
        let joint = Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], nodes).unwrap();
        let command = encode_command(&stamped()).unwrap();
        let body = Body::Bytes(Bytes::from_static(b"hello"));
        vec![
            ("blank", entry(EntryPayload::Blank)),
            ("membership", entry(EntryPayload::Membership(joint))),
            ("empty-membership", entry(EntryPayload::Membership(Membership::default()))),
            ("command", entry(EntryPayload::Normal(Proposal { command, stamped: stamped(), body }))),
        ]
    }

    fn meta() -> StoredMeta {
        let id = |index| EntryId { term: 4, node: 2, index };
        let membership = Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, Member::at("h:1"))]));
        let stored = StoredMembership::new(Some(log_id(id(900))), membership.unwrap());
        StoredMeta::new(Some(&log_id(id(1000))), &stored).unwrap()
    }

    const VOTE: StoredVote = StoredVote { term: 9, node: 3, committed: true };

    fn line(name: &str, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name} {hex}\n")
    }

    #[test]
    fn the_formats_are_what_they_have_always_been() {
        let mut found = String::new();
        for (name, entry) in entries() {
            found += &line(name, &to_stored(&entry).unwrap().command);
        }
        found += &line("vote", &encode_formatted("vote", &VOTE).unwrap());
        found += &line("snapshot-meta", &encode_formatted("snapshot meta", &meta()).unwrap());
        assert_eq!(found, FIXTURE);
    }

    #[test]
    fn what_was_stored_comes_back() {
        for (name, entry) in entries() {
            assert_eq!(from_stored(to_stored(&entry).unwrap()).unwrap(), entry, "{name}");
        }
        let bytes = encode_formatted("snapshot meta", &meta()).unwrap();
        let back: StoredMeta = decode_formatted("snapshot meta", &bytes).unwrap();
        assert_eq!(back, meta());
        assert_eq!(StoredVote::from(&Vote::from(VOTE)), VOTE);
    }

    #[test]
    fn unknown_formats_and_damage_are_errors() {
        let good = encode_command(&stamped()).unwrap();
        let body = || Body::Absent(5);
        let mut newer = good.to_vec();
        newer[0] = FORMAT + 1;
        let error = decode(&newer.into(), body()).unwrap_err().to_string();
        assert!(error.contains("format 3, this build reads 2"), "{error}");
        for length in 0..good.len() {
            assert!(decode(&good.slice(..length), body()).is_err(), "{length} bytes of {}", good.len());
        }
        assert!(decode(&[&good[..], b"x"].concat().into(), body()).is_err(), "a trailing byte");
        // Voters without a node: openraft would refuse it, and so must whoever reads it.
        let bad = StoredMembers { configs: vec![BTreeSet::from([1])], nodes: BTreeMap::new() };
        let bad = encode_formatted("membership", &Stored::<&Stamped>::Membership(bad)).unwrap();
        assert!(decode(&bad, body()).is_err());
    }
}
