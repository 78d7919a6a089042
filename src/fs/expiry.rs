//! Things that end by themselves: deadlines and ephemeral files.
//!
//! Absent on purpose: any clock. Deadlines are compared with cluster time only, inside apply.
//!
//! Decision: a file ends at a log entry, not at an instant, because all replicas must agree when it was last there.
//! Cost: it may outlive its deadline by one tick and one commit, never the reverse.
//!
//! Decision: a deadline belongs to the inode, so all its names go together, and what is open lives on as an orphan. A
//! directory that holds entries keeps its deadline, suspended, and ends once it is empty.
//!
//! Decision: a wall time (`expires`) is turned into cluster time once, by the leader's clock as it shows, and is read back
//! by that clock. The clamped time of changes would not do: after a leader whose clock was ahead it stays ahead, under good
//! ones too, and what is to live ten minutes would end at once.

use super::*;
use crate::limits::EPHEMERAL_NAMES_AT_ONCE_MAX;
use crate::seeded::{Bug, planted};
use inode::{Inode, Node};
use state::Cause;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

impl State {
    /// `user.keelfs.ttl`, `.expires`. Refused for what has no name any more: whoever renews a file that has just ended must
    /// not be told that it lives.
    pub(super) fn set_expiry(&mut self, cause: &Cause, ino: Ino, expiry: ExpiryChange) -> Outcome {
        self.inode(ino)?;
        if ino == Ino::ROOT {
            return Err(Refusal::NotPermitted);
        }
        self.named(ino)?;
        self.amend(cause, ino, |inode| inode.deadline = deadline_after(cause, inode.deadline, expiry));
        Ok(Reply::Done)
    }

    /// The part of a replacement of content that concerns the expiry.
    pub(super) fn move_deadline(&mut self, cause: &Cause, ino: Ino, expiry: ExpiryChange) {
        self.change(ino, |inode| inode.deadline = deadline_after(cause, inode.deadline, expiry));
    }

    /// As `move_deadline`, for what has just been made: no wish leaves what its directory gave it.
    pub(super) fn give_deadline(&mut self, cause: &Cause, ino: Ino, expiry: ExpiryChange) {
        if expiry != ExpiryChange::Clear {
            self.move_deadline(cause, ino, expiry);
        }
    }

    /// `user.keelfs.default-ttl`
    pub(super) fn set_default_ttl(&mut self, cause: &Cause, ino: Ino, ttl_ns: Option<u64>) -> Outcome {
        self.directory(ino)?;
        self.amend(cause, ino, |inode| {
            if let Node::Directory { default_ttl_ns, .. } = &mut inode.node {
                *default_ttl_ns = ttl_ns.filter(|ns| *ns > 0);
            }
        });
        Ok(Reply::Done)
    }

    /// `user.keelfs.ephemeral`. What has no name any more can be given no end, as with an expiry.
    pub(super) fn set_ephemeral(&mut self, cause: &Cause, ino: Ino, ephemeral: bool) -> Outcome {
        self.inode(ino)?;
        if ino == Ino::ROOT {
            return Err(Refusal::NotPermitted);
        }
        if ephemeral {
            self.named(ino)?;
        }
        self.amend(cause, ino, |inode| inode.ephemeral = ephemeral.then_some(cause.session));
        Ok(Reply::Done)
    }

    /// The leader found a deadline passed. Renewed, cleared or not yet passed, or with entries inside: nothing happens.
    pub(super) fn expire(&mut self, cause: &Cause, ino: Ino, deadline: ClusterTime) -> Outcome {
        let due = |inode: &Inode| {
            (inode.effective_deadline() == Some(deadline) && deadline <= cause.now)
                || planted(Bug::ExpiryWithoutRecheck)
        };
        if self.inodes.get(&ino).is_some_and(|inode| due(inode)) {
            self.remove_all_names(cause, ino);
        }
        Ok(Reply::Done)
    }

    /// A session has ended: what is ephemeral with it goes, the newest first, because what lies in a directory is mostly
    /// newer than it. A directory that still holds something expires at once, that is: as soon as it is empty. So does
    /// what is beyond [`EPHEMERAL_NAMES_AT_ONCE_MAX`], each in an entry of its own: every name that goes costs something
    /// for each session, and no entry may hold up the replicas for long.
    pub(super) fn end_ephemerals(&mut self, cause: &Cause, session: SessionId) {
        let tied = self.derived.ephemerals.range((session, Ino(0))..=(session, Ino(u64::MAX)));
        let mut tied: Vec<_> = tied.map(|(_, ino)| *ino).collect();
        tied.sort_by_key(|ino| (self.is_directory(*ino), std::cmp::Reverse(*ino)));
        let mut names = 0_u32;
        for ino in tied {
            self.change(ino, |inode| inode.ephemeral = None);
            names = names.saturating_add(self.inodes.get(&ino).map_or(0, |inode| inode.nlink));
            match self.inodes.get(&ino) {
                Some(inode) if inode.entries() == 0 && names <= EPHEMERAL_NAMES_AT_ONCE_MAX => {
                    self.remove_all_names(cause, ino);
                }
                _ => self.amend(cause, ino, |inode| inode.deadline = Some(cause.now)),
            }
        }
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|inode| inode.is_directory())
    }

    /// The wall time at which a deadline will have come, by the clock that stamped the last entry, if it and cluster time go
    /// on in step.
    pub(super) fn wall_time_of(&self, deadline: ClusterTime) -> i128 {
        let left = i128::from(deadline.0).saturating_sub(i128::from(self.cluster.0));
        nanos_of(self.clock).saturating_add(left)
    }
}

/// What a directory gives to an entry that is made in it.
pub(super) fn inherited_deadline(cause: &Cause, directory: &Inode) -> Option<ClusterTime> {
    match directory.node {
        Node::Directory { default_ttl_ns: Some(ns), .. } => Some(after(cause, ns)),
        _ => None,
    }
}

fn deadline_after(cause: &Cause, old: Option<ClusterTime>, expiry: ExpiryChange) -> Option<ClusterTime> {
    match expiry {
        ExpiryChange::Keep => old,
        ExpiryChange::Clear => None,
        ExpiryChange::After { ns } => Some(after(cause, ns)),
        ExpiryChange::At { unix_seconds } => {
            let at = i128::from(unix_seconds).saturating_mul(NANOS_PER_SECOND);
            let left = at.saturating_sub(nanos_of(cause.clock)).max(0);
            Some(after(cause, u64::try_from(left).unwrap_or(u64::MAX)))
        }
    }
}

fn after(cause: &Cause, ns: u64) -> ClusterTime {
    ClusterTime(cause.now.0.saturating_add(ns))
}

fn nanos_of(time: Timestamp) -> i128 {
    i128::from(time.seconds).saturating_mul(NANOS_PER_SECOND).saturating_add(i128::from(time.nanos))
}
