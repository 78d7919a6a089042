//! Applying one entry: stamps, exactly-once, dispatch.
//!
//! Exactly-once after Ongaro's thesis, section 6.3, as LogCabin does it: a session keeps the outcome of each of its
//! requests until its client says, with `first_outstanding`, that it needs them no more. A request that comes again gets
//! the kept outcome; one that was given up, or whose session has ended, is refused and not executed. (One beyond
//! the most that a session may have outstanding is refused too, and may be executed when it comes again.)

use super::*;
use crate::limits::{BODY_BYTES_MAX, SESSION_OUTSTANDING_MAX};
use crate::seeded::{Bug, planted};
use state::Cause;

const NANOS_PER_SECOND: u32 = 1_000_000_000;

impl State {
    /// Apply one committed request. Equal state, stamp, request and body length give equal results on every replica.
    /// `body_length` is the length of the entry's body; a command that names another length is refused as `Invalid`.
    /// The applied index moves to `stamp.index` whatever the outcome; an index that is not above the applied one is
    /// refused as `Invalid` and changes nothing at all.
    pub fn apply(&mut self, stamp: Stamp, request: &Request, body_length: u64) -> Outcome {
        if stamp.index <= self.applied {
            return Err(Refusal::Invalid);
        }
        self.advance(stamp);
        let cause = Cause {
            index: self.applied,
            now: self.cluster,
            wall: self.wall,
            clock: self.clock,
            session: request.session,
            who: request.credentials,
        };
        match request.session {
            SessionId(0) => self.without_session(&cause, &request.command, body_length),
            _ => self.in_session(&cause, request, body_length),
        }
    }

    /// An entry that holds no command: only the applied index and the hash move.
    pub fn skip(&mut self, index: LogIndex) {
        self.applied = self.applied.max(index);
    }

    /// Cluster time never falls; wall time strictly rises, so that two changes never carry the same mtime.
    fn advance(&mut self, stamp: Stamp) {
        self.applied = stamp.index;
        self.cluster = self.cluster.max(stamp.cluster);
        let nanos = stamp.wall.nanos.min(NANOS_PER_SECOND.saturating_sub(1));
        self.clock = Timestamp { seconds: stamp.wall.seconds, nanos };
        self.wall = self.clock.max(next_nanosecond(self.wall));
    }

    fn without_session(&mut self, cause: &Cause, command: &Command, body_length: u64) -> Outcome {
        if body_length != 0 {
            return Err(Refusal::Invalid);
        }
        match command {
            Command::OpenSession { label } => self.open_session(cause, label),
            Command::EndSession { session, last_seen } => self.end_silent_session(cause, *session, *last_seen),
            Command::Expire { ino, deadline } => self.expire(cause, *ino, *deadline),
            Command::Tick => Ok(Reply::Done),
            Command::Node(command) => self.node(cause, command),
            _ => Err(Refusal::SessionEnded),
        }
    }

    fn in_session(&mut self, cause: &Cause, request: &Request, body_length: u64) -> Outcome {
        let session = self.hear_from(cause, request)?;
        if request.sequence < session.first_outstanding {
            return Err(Refusal::GivenUp);
        }
        if let Some(kept) = self.replies.get(&(request.session, request.sequence)).filter(|_| !planted(Bug::NoDedup)) {
            return kept.clone();
        }
        if session.kept as usize >= SESSION_OUTSTANDING_MAX {
            return Err(Refusal::TooManyOutstanding);
        }
        let outcome = self.execute(cause, &request.command, body_length);
        self.keep_reply(request.session, request.sequence, &outcome);
        outcome
    }

    fn execute(&mut self, cause: &Cause, command: &Command, body_length: u64) -> Outcome {
        let named = command.body_length();
        if named != body_length || named > BODY_BYTES_MAX as u64 {
            return Err(Refusal::Invalid);
        }
        match command {
            // only without a session
            Command::OpenSession { .. }
            | Command::EndSession { .. }
            | Command::Expire { .. }
            | Command::Tick
            | Command::Node(_) => Err(Refusal::Invalid),
            Command::KeepAlive { closed } => self.keep_alive(cause, closed),
            Command::CloseSession => self.close_session(cause),
            Command::Make { parent, name, node, mode, umask } => self.make(cause, *parent, name, node, (*mode, *umask)),
            Command::Link { ino, parent, name } => self.link(cause, *ino, *parent, name),
            Command::Unlink { parent, name, expected } => self.unlink(cause, *parent, name, *expected),
            Command::RemoveDirectory { parent, name, expected } => {
                self.remove_directory(cause, *parent, name, *expected)
            }
            Command::Rename { from, to, mode, moved, replaced } => {
                self.rename(cause, from, to, *mode, (*moved, *replaced))
            }
            Command::Write { ino, offset, length } => self.write(cause, *ino, *offset, *length),
            Command::Append { ino, length } => self.append(cause, *ino, *length),
            Command::Replace { ino, expected, expiry, length } => {
                self.replace(cause, *ino, *expected, *expiry, *length)
            }
            Command::Put { parent, name, expected, expiry, mode, length } => {
                self.put(cause, (*parent, name), *expected, *expiry, (*mode, *length))
            }
            Command::Allocate { ino, mode, offset, length } => self.allocate(cause, *ino, *mode, *offset, *length),
            Command::CopyRange { from, from_offset, to, to_offset, length } => {
                self.copy_range(cause, (*from, *from_offset), (*to, *to_offset), *length)
            }
            Command::SetAttributes { ino, changes } => self.set_attributes(cause, *ino, changes),
            Command::SetXattr { ino, name, value, mode } => self.set_xattr(cause, *ino, name, value, *mode),
            Command::RemoveXattr { ino, name } => self.remove_xattr(cause, *ino, name),
            Command::SetAcl { ino, kind, acl, keep_setgid } => {
                self.set_acl(cause, *ino, *kind, acl.as_ref(), *keep_setgid)
            }
            Command::SetReplaceIf { ino, version } => self.set_replace_if(cause, *ino, *version),
            Command::SetExpiry { ino, expiry } => self.set_expiry(cause, *ino, *expiry),
            Command::SetDefaultTtl { ino, ttl_ns } => self.set_default_ttl(cause, *ino, *ttl_ns),
            Command::SetEphemeral { ino, ephemeral } => self.set_ephemeral(cause, *ino, *ephemeral),
            Command::Lock { .. } | Command::CancelLock { .. } | Command::ReleaseOwner { .. } => {
                self.locking(cause, command)
            }
        }
    }
}

impl Command {
    /// The length of the body that this command names, in bytes; 0 where it has none.
    pub fn body_length(&self) -> u64 {
        match self {
            Command::Write { length, .. }
            | Command::Append { length, .. }
            | Command::Replace { length, .. }
            | Command::Put { length, .. } => u64::from(*length),
            _ => 0,
        }
    }
}

fn next_nanosecond(time: Timestamp) -> Timestamp {
    match time.nanos.saturating_add(1) {
        NANOS_PER_SECOND => Timestamp { seconds: time.seconds.saturating_add(1), nanos: 0 },
        nanos => Timestamp { nanos, ..time },
    }
}
