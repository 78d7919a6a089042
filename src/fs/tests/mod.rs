//! The rules of the state machine that are easy to get wrong, each as a small story; `anything` plays arbitrary commands,
//! `bytes` holds the extents against plain byte vectors.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod acl;
mod anything;
mod bytes;
mod endings;
mod exactly_once;
mod formats;
mod nodes;
mod tree;
mod versions;
mod virtuals;

use super::*;
use ::bytes::Bytes;

pub(super) const SECOND: u64 = 1_000_000_000;
const USER: Credentials = Credentials { uid: 1000, gid: 1000 };

/// A state, and what it takes to put the next entry to it. Every invariant is tested after every entry.
#[derive(Clone)]
struct Play {
    state: State,
    index: u64,
    /// Cluster time, in nanoseconds; the wall is 1,000,000 seconds ahead of it.
    now: u64,
    session: SessionId,
    sequence: u64,
    who: Credentials,
}

impl Play {
    fn new() -> Play {
        let mut play = Play {
            state: State::new(),
            index: 0,
            now: 0,
            session: SessionId(0),
            sequence: 0,
            who: Credentials::default(),
        };
        play.session = play.open_session();
        play
    }

    fn open_session(&mut self) -> SessionId {
        match self.lead(Command::OpenSession { label: "test".into() }) {
            Ok(Reply::Session(id)) => id,
            other => panic!("no session: {other:?}"),
        }
    }

    fn stamp(&mut self) -> Stamp {
        self.index += 1;
        self.now += 1000;
        let wall = Timestamp { seconds: (1_000_000 + self.now / SECOND) as i64, nanos: (self.now % SECOND) as u32 };
        Stamp { index: LogIndex(self.index), cluster: ClusterTime(self.now), wall }
    }

    fn put(&mut self, request: &Request, body_length: u64) -> Outcome {
        let stamp = self.stamp();
        let outcome = self.state.apply(stamp, request, body_length);
        self.state.check().unwrap_or_else(|broken| panic!("{broken} after {request:?}"));
        outcome
    }

    /// As the leader proposes it, without a session.
    fn lead(&mut self, command: Command) -> Outcome {
        self.put(&request(SessionId(0), 0, 0, self.who, command), 0)
    }

    /// As the session's client sends it: with the next sequence number, all earlier ones answered.
    fn run(&mut self, command: Command) -> Outcome {
        let (request, length) = self.next_request(command);
        self.put(&request, length)
    }

    /// As `run`, for stories with thousands of entries: a check looks at everything.
    fn run_unchecked(&mut self, command: Command) -> Outcome {
        let (request, length) = self.next_request(command);
        let stamp = self.stamp();
        self.state.apply(stamp, &request, length)
    }

    /// With the length of its body.
    fn next_request(&mut self, command: Command) -> (Request, u64) {
        self.sequence += 1;
        let length = command.body_length();
        (request(self.session, self.sequence, self.sequence, self.who, command), length)
    }

    /// Let all that is due at this cluster time happen, as a leader would.
    fn expire_until(&mut self, now: u64) {
        self.now = self.now.max(now);
        loop {
            let due = self.state.due(ClusterTime(self.now), 10);
            if due.is_empty() {
                return;
            }
            due.into_iter().for_each(|command| drop(self.lead(command)));
        }
    }

    fn make_in(&mut self, parent: Ino, at: &str, node: NewNode) -> Ino {
        let made = self.run(Command::Make { parent, name: name(at), node, mode: 0o755, umask: 0 });
        attributes(made).ino
    }

    fn file(&mut self, at: &str) -> Ino {
        self.make_in(Ino::ROOT, at, NewNode::File)
    }

    fn directory(&mut self, at: &str) -> Ino {
        self.make_in(Ino::ROOT, at, NewNode::Directory)
    }

    /// What was moved is told as it is now.
    fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Result<(), Refusal> {
        match self.run(Command::Rename { from: place(from), to: place(to), mode, moved: None, replaced: None })? {
            Reply::Attributes(told) => assert_eq!(told, self.stat(told.ino)),
            other => panic!("a rename was answered with {other:?}"),
        }
        Ok(())
    }

    fn unlink(&mut self, at: &str) -> Outcome {
        self.run(Command::Unlink { parent: Ino::ROOT, name: name(at), expected: None })
    }

    fn write(&mut self, ino: Ino, offset: u64, length: u32) -> Attributes {
        attributes(self.run(Command::Write { ino, offset, length }))
    }

    fn set(&mut self, ino: Ino, changes: AttributeChanges) -> Attributes {
        attributes(self.run(Command::SetAttributes { ino, changes }))
    }

    fn at(&self, path: &str) -> Result<Attributes, Refusal> {
        match self.state.answer(&Query::Resolve { path: Bytes::copy_from_slice(path.as_bytes()) })? {
            Answer::Attributes(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    fn stat(&self, ino: Ino) -> Attributes {
        self.state.attributes(ino).unwrap()
    }

    fn xattr(&self, ino: Ino, name: &str) -> Result<String, Refusal> {
        match self.state.answer(&Query::Xattr { ino, name: Bytes::copy_from_slice(name.as_bytes()) })? {
            Answer::Bytes(bytes) => Ok(String::from_utf8(bytes.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn names(&self, ino: Ino) -> Vec<(String, u64)> {
        match self.state.answer(&Query::ReadDirectory { ino, after: 0, limit: 1000 }).unwrap() {
            Answer::Directory { entries, .. } => entries.iter().map(|e| (e.name.to_string(), e.cookie)).collect(),
            other => panic!("{other:?}"),
        }
    }
}

fn request(
    session: SessionId,
    sequence: u64,
    first_outstanding: u64,
    credentials: Credentials,
    command: Command,
) -> Request {
    let (sequence, first_outstanding) = (Sequence(sequence), Sequence(first_outstanding));
    Request { session, sequence, first_outstanding, credentials, command }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn place((parent, at): (Ino, &str)) -> Place {
    Place { parent, name: name(at) }
}

fn attributes(outcome: Outcome) -> Attributes {
    match outcome {
        Ok(Reply::Attributes(attributes)) => attributes,
        other => panic!("{other:?}"),
    }
}

/// What a refusal must leave as it is: everything but times, the applied index and the sessions.
fn tree(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    let digests = [
        state.inodes.digest(),
        state.dentries.digest(),
        state.extents.digest(),
        state.xattrs.digest(),
        state.orphans.digest(),
        state.holds.digest(),
    ];
    (digests, state.locks.hash(), state.next_ino)
}
