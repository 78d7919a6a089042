//! SKELETON: the contract that other rooms build on; the room's owner fills it.

use super::*;

/// The whole file system at one index. Cloning costs a few reference counts (persistent maps).
#[derive(Clone)]
pub struct State {}

impl State {
    /// An empty tree: the root directory (mode 0755, owner 0:0) and nothing else, at index 0.
    pub fn new() -> State {
        unimplemented!()
    }

    /// Apply one committed request. Equal state, stamp, request and body length give equal results on every replica.
    /// `body_length` is the length of the entry's body; a command that names another length is refused as `Invalid`.
    /// The applied index moves to `stamp.index` whatever the outcome.
    pub fn apply(&mut self, stamp: Stamp, request: &Request, body_length: u64) -> Outcome {
        unimplemented!()
    }

    /// An entry that holds no command (blank, membership): only the applied index and the hash move.
    pub fn skip(&mut self, index: LogIndex) {
        unimplemented!()
    }

    pub fn answer(&self, query: &Query) -> Result<Answer, Refusal> {
        unimplemented!()
    }

    /// Index of the last entry applied.
    pub fn applied(&self) -> LogIndex {
        unimplemented!()
    }

    /// Cluster and wall time of the last entry applied.
    pub fn cluster_time(&self) -> ClusterTime {
        unimplemented!()
    }

    /// 128-bit hash of the whole state, kept incrementally: equal on all replicas at equal `applied`.
    pub fn hash(&self) -> u128 {
        unimplemented!()
    }

    /// Does any file (or orphan) refer to the body of this entry?
    pub fn refers_to(&self, index: LogIndex) -> bool {
        unimplemented!()
    }

    /// All log indexes whose bodies are referred to, ascending, from `from` on.
    pub fn live_bodies(&self, from: LogIndex) -> impl Iterator<Item = LogIndex> + '_ {
        std::iter::empty()
    }

    /// What the leader should propose now that cluster time is `now`: expiries and session ends that are due
    /// (at most `limit`).
    pub fn due(&self, now: ClusterTime, limit: usize) -> Vec<Command> {
        unimplemented!()
    }

    /// The earliest deadline of an expiry or a session, if any.
    pub fn next_deadline(&self) -> Option<ClusterTime> {
        unimplemented!()
    }

    /// Orphans that wait for this session's answer, in order (at most `limit`).
    pub fn orphans_of(&self, session: SessionId, limit: usize) -> Vec<Ino> {
        unimplemented!()
    }

    pub fn session_exists(&self, session: SessionId) -> bool {
        unimplemented!()
    }

    /// The whole state as a sequence of bounded items, in a fixed order, for a snapshot file or the wire.
    pub fn export(&self) -> impl Iterator<Item = Item> + '_ {
        std::iter::empty()
    }

    /// Test every invariant (I1..In of this module). O(n).
    pub fn check(&self) -> Result<(), Broken> {
        unimplemented!()
    }
}

/// One bounded piece of an exported state (serde): header, inode, some dentries, some extents, a session, …
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub enum Item {}

/// Rebuilds a state from its exported items; `finish` verifies counts, the hash and the invariants' cheap part.
pub struct Importer {}

impl Importer {
    pub fn new() -> Importer {
        unimplemented!()
    }
    pub fn add(&mut self, item: Item) -> Result<(), Broken> {
        unimplemented!()
    }
    pub fn finish(self) -> Result<State, Broken> {
        unimplemented!()
    }
}

/// An invariant that does not hold, with its number and what breaks it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {number} is broken: {what}")]
pub struct Broken {
    pub number: &'static str,
    pub what: String,
}
