//! Locks exclude: while one is certainly held exclusively, nobody else certainly holds any of its bytes; a later exclusive
//! grant on a file has a higher generation. A lock that its holder did not give back is held until the holder's session can
//! have ended, which is not before its time has passed since a sign of life. In the end nothing is held.
//!
//! Source: `flock(2)`, `fcntl(2)`; for sessions and generations (fencing tokens) Burrows, "The Chubby lock service for
//! loosely-coupled distributed systems" (2006), sections 2.4 and 2.8. That no wait and no held lock is forgotten is seen by
//! the clients themselves.

use super::Held;
use crate::diary::{Diary, Tenure};
use crate::lockers::{FILES, file_name};
use keelfs::fs::{Answer, Ino, LockMode, LockOwner, LockRange, Name, Query, SessionId};
use keelfs::net::NodeId;
use keelfs::raft::Replica;

pub fn hold(diary: &Diary) -> Held {
    let tenures = diary.with(|pages| pages.tenures.clone());
    for (place, one) in tenures.iter().enumerate() {
        for other in tenures.iter().skip(place + 1).filter(|other| other.file == one.file) {
            exclude(one, other)?;
            rise(one, other)?;
            rise(other, one)?;
        }
    }
    Ok(())
}

fn exclude(one: &Tenure, other: &Tenure) -> Held {
    let (from, until) = (one.from_ms.max(other.from_ms), one.until_ms.min(other.until_ms));
    match from < until && conflict(one, other) {
        true => Err(format!("locks: from {from} to {until} ms both were held: {one:?}, {other:?}")),
        false => Ok(()),
    }
}

fn conflict(one: &Tenure, other: &Tenure) -> bool {
    let same_family = matches!(
        (one.owner, other.owner),
        (LockOwner::Posix(_), LockOwner::Posix(_)) | (LockOwner::Flock(_), LockOwner::Flock(_))
    );
    let overlap = one.range.start <= other.range.end && other.range.start <= one.range.end;
    (one.exclusive || other.exclusive) && same_family && one.owner != other.owner && overlap
}

/// The generation of a grant is that of the last exclusive one: its own, if it is exclusive.
fn rise(earlier: &Tenure, later: &Tenure) -> Held {
    let twice = earlier.exclusive && later.exclusive && earlier.generation == later.generation;
    let in_order = earlier.from_ms <= later.asked_ms;
    let falls = match later.exclusive {
        true => later.generation <= earlier.generation,
        false => later.generation < earlier.generation,
    };
    match twice || in_order && falls {
        true => Err(format!("locks: the generation does not rise from {earlier:?} to {later:?}")),
        false => Ok(()),
    }
}

pub fn are_free(replicas: &[(NodeId, Replica)]) -> Held {
    replicas.iter().try_for_each(|(node, replica)| (0..FILES).try_for_each(|file| is_free(*node, replica, file)))
}

fn is_free(node: NodeId, replica: &Replica, file: u64) -> Held {
    let name = Name::new(file_name(file).as_bytes()).map_err(|e| e.to_string())?;
    let state = replica.state();
    let Ok(Answer::Attributes(found)) = state.answer(&Query::Lookup { parent: Ino::ROOT, name }) else {
        return Ok(());
    };
    for owner in [LockOwner::Flock(0), LockOwner::Posix(0)] {
        let (range, mode) = (LockRange { start: 0, end: u64::MAX }, LockMode::Exclusive);
        let anyone = Query::TestLock { ino: found.ino, session: SessionId(0), owner, range, mode };
        if let Ok(Answer::Lock(Some(left))) = state.answer(&anyone) {
            return Err(format!("{} is still locked on node {node}: {left:?}", file_name(file)));
        }
    }
    Ok(())
}
