//! Sessions: a client's standing with the cluster, from opening to end.
//!
//! A session lives as long as its requests arrive; any request is a sign of life. Silence is measured in cluster time, and
//! only the leader's `EndSession`, checked again here, ends a silent one: a session whose client came back in between
//! goes on. With a session end its locks, its holds on orphans and its ephemeral files.

use super::*;
use crate::limits::{SESSION_LABEL_BYTES_MAX, SESSION_TTL_NS, SESSIONS_MAX};
use serde::{Deserialize, Serialize};
use state::Cause;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub(super) label: Arc<str>,
    pub(super) last_seen: ClusterTime,
    pub(super) first_outstanding: Sequence,
    /// How many replies are kept for it.
    pub(super) kept: u32,
}

impl State {
    pub fn session_exists(&self, session: SessionId) -> bool {
        self.sessions.contains(&session)
    }

    pub(super) fn open_session(&mut self, cause: &Cause, label: &str) -> Outcome {
        if label.len() > SESSION_LABEL_BYTES_MAX {
            return Err(Refusal::Invalid);
        }
        if self.sessions.len() >= SESSIONS_MAX {
            return Err(Refusal::TooManySessions);
        }
        let id = SessionId(cause.index.0);
        let session = Session { label: label.into(), last_seen: cause.now, first_outstanding: Sequence(1), kept: 0 };
        self.put_session(id, session);
        Ok(Reply::Session(id))
    }

    /// Note a sign of life, and forget the replies that the client needs no more. Returns the session as it is then.
    pub(super) fn hear_from(&mut self, cause: &Cause, request: &Request) -> Result<Session, Refusal> {
        let mut session = self.sessions.get(&request.session).ok_or(Refusal::SessionEnded)?.clone();
        session.last_seen = cause.now;
        session.first_outstanding = session.first_outstanding.max(request.first_outstanding);
        let forgotten = self.forget_replies(request.session, session.first_outstanding);
        session.kept = session.kept.saturating_sub(forgotten);
        self.put_session(request.session, session.clone());
        Ok(session)
    }

    /// Forget the replies of a session below a sequence number; returns how many there were.
    fn forget_replies(&mut self, id: SessionId, below: Sequence) -> u32 {
        let gone: Vec<_> = self.replies.range((id, Sequence(0))..(id, below)).map(|(key, _)| *key).collect();
        for key in &gone {
            self.replies.remove(key);
        }
        u32::try_from(gone.len()).unwrap_or(u32::MAX)
    }

    /// Keep an outcome for the case that its request comes again; not for a session that has ended with it.
    pub(super) fn keep_reply(&mut self, id: SessionId, sequence: Sequence, outcome: &Outcome) {
        let Some(mut session) = self.sessions.get(&id).cloned() else { return };
        if self.replies.insert((id, sequence), outcome.clone()).is_none() {
            session.kept = session.kept.saturating_add(1);
            self.put_session(id, session);
        }
    }

    pub(super) fn keep_alive(&mut self, cause: &Cause, closed: &[Ino]) -> Outcome {
        for ino in closed {
            self.release_hold(cause.session, *ino);
        }
        Ok(Reply::Done)
    }

    pub(super) fn close_session(&mut self, cause: &Cause) -> Outcome {
        self.end_session(cause, cause.session);
        Ok(Reply::Done)
    }

    /// The leader found a session silent. It is still silent if it was not heard from since.
    pub(super) fn end_silent_session(&mut self, cause: &Cause, id: SessionId, last_seen: ClusterTime) -> Outcome {
        let silent = |session: &Session| session.last_seen == last_seen && lapses_at(last_seen) <= cause.now;
        if self.sessions.get(&id).is_some_and(silent) {
            self.end_session(cause, id);
        }
        Ok(Reply::Done)
    }

    /// The session goes first, so that what its end orphans does not wait for it.
    fn end_session(&mut self, cause: &Cause, id: SessionId) {
        self.forget_replies(id, Sequence(u64::MAX));
        self.replies.remove(&(id, Sequence(u64::MAX)));
        if let Some(session) = self.sessions.remove(&id) {
            self.derived.drop_session(id, &session);
        }
        self.locks.end_session(id);
        self.end_ephemerals(cause, id);
        self.end_holds(id);
    }

    /// What the leader should propose now that cluster time is `now`: session ends and expiries that are due (at most
    /// `limit`); of each kind, the longest due first.
    pub fn due(&self, now: ClusterTime, limit: usize) -> Vec<Command> {
        let silent = self.derived.silences.iter().take_while(|(seen, _)| lapses_at(*seen) <= now);
        let ended = self.derived.deadlines.iter().take_while(|(deadline, _)| *deadline <= now);
        let ends = silent.map(|(seen, id)| Command::EndSession { session: *id, last_seen: *seen });
        let expiries = ended.map(|(deadline, ino)| Command::Expire { ino: *ino, deadline: *deadline });
        ends.chain(expiries).take(limit).collect()
    }

    /// The earliest deadline of an expiry or a session, if any.
    pub fn next_deadline(&self) -> Option<ClusterTime> {
        let silence = self.derived.silences.get_min().map(|(seen, _)| lapses_at(*seen));
        let expiry = self.derived.deadlines.get_min().map(|(deadline, _)| *deadline);
        silence.into_iter().chain(expiry).min()
    }
}

/// When a session ends that was last heard from then.
fn lapses_at(last_seen: ClusterTime) -> ClusterTime {
    ClusterTime(last_seen.0.saturating_add(SESSION_TTL_NS))
}
