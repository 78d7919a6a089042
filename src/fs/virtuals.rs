//! Attributes that are computed when they are read: `user.keelfs.*` and its alias `keelfs.*`.
//!
//! They are hidden from listing, so that programs that copy attributes never copy a version or execute a `cas`.
//! What is left of a time is measured at the last applied entry, the only clock of this room.

use super::*;
use crate::limits::XATTR_VALUE_BYTES_MAX;
use bytes::Bytes;
use inode::{Inode, Node};
use serde_json::{Value, json};
use words::Virtual;

const SECOND_NS: i128 = 1_000_000_000;
const HALF_SECOND_NS: i128 = SECOND_NS / 2;
/// Leaves room for all else that `info` says.
const LOCK_LINES_BYTES_MAX: usize = XATTR_VALUE_BYTES_MAX - 4096;

impl State {
    /// `part`: the name behind the prefix.
    pub(super) fn virtual_attribute(&self, ino: Ino, inode: &Inode, part: &[u8]) -> Result<Bytes, Refusal> {
        let text = match Virtual::named(part).ok_or(Refusal::Invalid)? {
            Virtual::Version => Some(inode.version.0.to_string()),
            Virtual::Change => Some(inode.change.0.to_string()),
            Virtual::Cas => None,
            Virtual::ReplaceIf => inode.replace_if.map(|version| version.0.to_string()),
            Virtual::Ttl => self.seconds_left(inode).map(|seconds| seconds.to_string()),
            Virtual::Expires => self.expires(inode).map(|seconds| seconds.to_string()),
            Virtual::DefaultTtl => default_ttl(inode).map(|seconds| seconds.to_string()),
            Virtual::Ephemeral => inode.ephemeral.map(|_| "session".to_string()),
            Virtual::Owner => self.owner(ino, inode),
            Virtual::LockGen => Some(self.locks.generation(ino).to_string()),
            Virtual::Locks => Some(self.lock_lines(ino).iter().map(|line| format!("{line}\n")).collect()),
            Virtual::Info => Some(self.info(ino, inode).to_string()),
        };
        text.map(Bytes::from).ok_or(Refusal::NoSuchXattr)
    }

    /// At least 1: what is due and still there, or may not go before it is empty, has not ended; and 0 means never.
    fn seconds_left(&self, inode: &Inode) -> Option<u64> {
        Some(words::seconds_rounded_up(inode.deadline?.0.saturating_sub(self.cluster.0)).max(1))
    }

    /// Unix seconds, to the nearest, so that what was set is what is read.
    fn expires(&self, inode: &Inode) -> Option<i128> {
        let nanos = self.wall_time_of(inode.deadline?);
        Some(nanos.saturating_add(HALF_SECOND_NS).div_euclid(SECOND_NS))
    }

    /// Who holds it exclusively, or else who made it.
    fn owner(&self, ino: Ino, inode: &Inode) -> Option<String> {
        let holder = self.locks.held(ino).find(|lock| lock.mode == LockMode::Exclusive).map(|lock| lock.session);
        match holder.unwrap_or(inode.maker) {
            SessionId(0) => None,
            session => Some(self.session_text(session)),
        }
    }

    fn session_text(&self, id: SessionId) -> String {
        match self.sessions.get(&id) {
            Some(session) => format!("{} session {}", session.label, id.0),
            None => format!("session {} (ended)", id.0),
        }
    }

    /// Of very many, the first ones: as many as the value of an attribute can hold.
    fn lock_lines(&self, ino: Ino) -> Vec<Value> {
        let held = self.locks.held(ino).map(|lock| self.lock_line(&lock, "held"));
        let waiting = self.locks.waiting(ino).map(|lock| self.lock_line(&lock, "waiting"));
        let mut bytes = 0;
        let fits = |line: &Value| {
            bytes = line.to_string().len().saturating_add(1).saturating_add(bytes);
            bytes <= LOCK_LINES_BYTES_MAX
        };
        held.chain(waiting).take_while(fits).collect()
    }

    fn lock_line(&self, lock: &LockHolder, state: &str) -> Value {
        let (family, owner) = match lock.owner {
            LockOwner::Posix(owner) => ("posix", owner),
            LockOwner::Flock(owner) => ("flock", owner),
        };
        let mode = match lock.mode {
            LockMode::Shared => "shared",
            LockMode::Exclusive => "exclusive",
            LockMode::Unlock => "unlock",
        };
        let end = if lock.range.end == u64::MAX { Value::Null } else { lock.range.end.into() };
        json!({
            "state": state, "family": family, "mode": mode, "start": lock.range.start, "end": end,
            "owner": self.session_text(lock.session), "session": lock.session.0, "lock_owner": owner, "pid": lock.pid,
        })
    }

    /// Everything at once; what the inode does not have is null.
    fn info(&self, ino: Ino, inode: &Inode) -> Value {
        json!({
            "ino": ino.0,
            "version": inode.version.0,
            "change": inode.change.0,
            "replace-if": inode.replace_if.map(|version| version.0),
            "ttl": self.seconds_left(inode),
            "expires": self.expires(inode).and_then(|seconds| i64::try_from(seconds).ok()),
            "default-ttl": default_ttl(inode),
            "ephemeral": inode.ephemeral.map(|_| "session"),
            "owner": self.owner(ino, inode),
            "lock-gen": self.locks.generation(ino),
            "locks": self.lock_lines(ino),
        })
    }
}

fn default_ttl(inode: &Inode) -> Option<u64> {
    match inode.node {
        Node::Directory { default_ttl_ns: Some(ns), .. } => Some(words::seconds_rounded_up(ns)),
        _ => None,
    }
}
