//! The only user of openraft: one node's replica of the file system.
//!
//! | part | what it is |
//! |---|---|
//! | `types` | openraft's type parameters, spelled out once |
//! | `payload` | the formats: what an entry's command, the vote and a snapshot's meta hold |
//! | `store`, `tail` | openraft's log storage over [`crate::log`], and the last entries in memory |
//! | `machine`, `publish` | openraft's state machine over [`crate::fs::State`], and its newest root for readers |
//! | `scrub` | everything that is stored is read and verified from time to time |
//! | `mend` | good copies of entries that are damaged here |
//! | `compare` | do all replicas have the same state? A node that is wrong fences itself |
//! | `rescue` | the whole state from a peer, when the snapshot is damaged |
//! | `ending` | why a replica ends by itself |
//! | `snapshot`, `intake`, `bodies` | snapshots: written, received, and the bodies that a receiver lacks |
//! | `messages`, `network`, `peers`, `server`, `lane` | what peers say to each other, both halves |
//! | `introduce` | whose word counts: looked at by the others before it votes |
//! | `membership` | who is in the cluster, and how that changes |
//! | `clock` | cluster time |
//! | `disks` | how full the members' disks are, and what that means for commands |
//! | `keeper` | when to snapshot, purge and reclaim |
//! | `settings` | Raft's timing, and how much of the log is kept |
//! | `replica`, `start` | what other rooms use, and how it is put together |
//!
//! Absent on purpose: lease reads (they need a margin for clock drift that openraft's have not), automatic initializing,
//! retries of proposals (`volume` does them, with the same request).
//!
//! Decisions. A restarted leader does not resume its term, and pre-vote is on. One proposal in memory is shared by the log,
//! the tail and all peers; 64 MiB of them are in flight at most. A storage error, a panic in openraft, or an entry that
//! cannot be decoded ends the replica for good ([`Replica::failed`]); the process must end, and its next start recovers.
//!
//! Sources: Ongaro's thesis (chapters 4 to 6); openraft 0.10.0-alpha.37, whose source is cited where we lean on it.

mod bodies;
mod clock;
mod compare;
mod disks;
mod ending;
mod intake;
mod introduce;
mod keeper;
mod lane;
mod machine;
mod membership;
mod mend;
mod messages;
mod network;
mod payload;
mod peers;
mod publish;
mod replica;
mod rescue;
mod scrub;
mod server;
mod settings;
mod snapshot;
mod start;
mod store;
mod tail;
mod types;

/// What [`Replica::read_body`] fails with.
pub use crate::log::StorageError;
pub use compare::Comparison;
pub use ending::Ending;
use machine::Machine;
pub use membership::{Becomes, Member, MemberChange, MemberChanged, MemberError, Roster, RosterEntry};
pub use mend::supply;
pub use payload::{Recorded, StoredVote, decode_vote, recorded};
pub use replica::{Replica, ReplicaError, ReplicaStatus};
pub use scrub::{Finding, ScrubStatus};
pub use settings::{Timing, Tuning};

/// For those who try what wild bytes do: whether these are the command of an entry with a body of this length.
#[doc(hidden)]
pub fn wild_command(command: &bytes::Bytes, body_length: u32) -> bool {
    payload::decode(command, crate::log::Body::Absent(body_length)).is_ok()
}

/// The same for a message of a peer.
#[doc(hidden)]
pub fn wild_message(message: &crate::net::Message) -> bool {
    messages::is_sound(message)
}

#[cfg(test)]
mod tests;
