//! A world of one replica: stamps requests as a leader would, keeps the bodies as the log would, and throws a body away as
//! soon as the state no longer refers to it, so that a reference that was lost shows as missing bytes.

#![allow(dead_code, reason = "each test uses its part")]

pub mod acl;

use bytes::Bytes;
use keelfs::codec;
use keelfs::fs::*;
use proptest::prelude::ProptestConfig;
use std::collections::BTreeMap;

/// Wall time at index 0 of a world: a round number in 2027, in seconds since 1970.
pub const WALL_START: i64 = 1_800_000_000;
pub const SECOND_NS: u64 = 1_000_000_000;

/// One committed entry, as often as it is replayed.
#[derive(Clone, Debug)]
pub struct Entry {
    pub stamp: Stamp,
    pub request: Request,
    pub body: Bytes,
}

/// One session's client: numbers its requests, and knows the last one, to send it again.
#[derive(Clone, Debug)]
pub struct Client {
    pub id: SessionId,
    pub next: Sequence,
    pub first_outstanding: Sequence,
    pub last: Option<(Request, Bytes)>,
}

pub struct World {
    pub state: State,
    pub log: Vec<Entry>,
    /// Cluster time since the start.
    pub now_ns: u64,
    pub who: Credentials,
    bodies: BTreeMap<LogIndex, Bytes>,
}

impl World {
    pub fn new() -> World {
        World { state: State::new(), log: vec![], now_ns: 0, who: Credentials::default(), bodies: BTreeMap::new() }
    }

    /// Stamp and apply; the state must be sound afterwards.
    pub fn apply(&mut self, request: Request, body: Bytes) -> Outcome {
        let index = LogIndex(self.state.applied().0 + 1);
        let seconds = WALL_START + (self.now_ns / SECOND_NS) as i64;
        let wall = Timestamp { seconds, nanos: (self.now_ns % SECOND_NS) as u32 };
        let stamp = Stamp { index, cluster: ClusterTime(self.now_ns), wall };
        let outcome = self.state.apply(stamp, &request, body.len() as u64);
        self.bodies.insert(index, body.clone());
        self.bodies.retain(|index, _| self.state.refers_to(*index));
        self.log.push(Entry { stamp, request, body });
        assert_eq!(self.state.check(), Ok(()), "after entry {}: {:?}", index.0, self.log.last());
        outcome
    }

    /// What the leader proposes by itself.
    pub fn propose(&mut self, command: Command) -> Outcome {
        let (session, sequence) = (SessionId(0), Sequence(0));
        let credentials = Credentials::default();
        self.apply(Request { session, sequence, first_outstanding: sequence, credentials, command }, Bytes::new())
    }

    pub fn open_session(&mut self, label: &str) -> Client {
        match self.propose(Command::OpenSession { label: label.to_owned() }) {
            Ok(Reply::Session(id)) => Client { id, next: Sequence(1), first_outstanding: Sequence(1), last: None },
            other => panic!("opening a session: {other:?}"),
        }
    }

    pub fn submit(&mut self, client: &mut Client, command: Command, body: Bytes) -> Outcome {
        let request = Request {
            session: client.id,
            sequence: client.next,
            first_outstanding: client.first_outstanding,
            credentials: self.who,
            command,
        };
        client.next = Sequence(client.next.0 + 1);
        client.last = Some((request.clone(), body.clone()));
        self.apply(request, body)
    }

    /// The client's last request comes a second time.
    pub fn retry(&mut self, client: &Client) -> Option<Outcome> {
        let (request, body) = client.last.clone()?;
        Some(self.apply(request, body))
    }

    /// Go on with a copy that went through an export.
    pub fn reimport(&mut self) {
        let copy = import(&self.state);
        assert_eq!(copy.hash(), self.state.hash(), "an imported state has another hash");
        self.state = copy;
        assert_eq!(self.state.check(), Ok(()), "after an import");
    }

    pub fn ask(&self, query: Query) -> Result<Answer, Refusal> {
        self.state.answer(&query)
    }

    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Refusal> {
        match self.ask(Query::Attributes { ino })? {
            Answer::Attributes(attributes) => Ok(attributes),
            other => panic!("attributes: {other:?}"),
        }
    }

    pub fn layout(&self, ino: Ino, offset: u64, length: u64) -> Result<Content, Refusal> {
        match self.ask(Query::Content { ino, offset, length })? {
            Answer::Content(content) => Ok(content),
            other => panic!("content: {other:?}"),
        }
    }

    /// The bytes of a range, which ends at the end of the file at the latest.
    pub fn bytes(&self, ino: Ino, offset: u64, length: u64) -> Result<Vec<u8>, Refusal> {
        let content = self.layout(ino, offset, length)?;
        let mut bytes = Vec::new();
        for piece in &content.pieces {
            match piece {
                Piece::Hole { length } => bytes.resize(bytes.len() + *length as usize, 0),
                Piece::Body { index, offset, length } => {
                    let body =
                        self.bodies.get(index).unwrap_or_else(|| panic!("the body of entry {} is gone", index.0));
                    bytes.extend(&body[*offset as usize..][..*length as usize]);
                }
            }
        }
        let expected = content.size.saturating_sub(offset).min(length);
        assert_eq!(bytes.len() as u64, expected, "pieces do not cover the range");
        Ok(bytes)
    }

    /// All entries of a directory, read in steps of two, as a walk by a small buffer does.
    pub fn list(&self, ino: Ino) -> Result<Vec<DirectoryEntry>, Refusal> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            match self.ask(Query::ReadDirectory { ino, after, limit: 2 })? {
                Answer::Directory { entries: some, .. } => match some.last() {
                    Some(last) => {
                        after = last.cookie;
                        all.extend(some);
                    }
                    None => return Ok(all),
                },
                other => panic!("read directory: {other:?}"),
            }
        }
    }
}

pub fn import(state: &State) -> State {
    let mut importer = Importer::new();
    for item in state.export() {
        importer.add(item).expect("an exported item is refused");
    }
    importer.finish().expect("an export cannot be imported")
}

/// What an export is on disk, piece by piece.
pub fn exported(state: &State) -> Vec<Vec<u8>> {
    state.export().map(|item| codec::encode("item", &item).unwrap()).collect()
}

/// How many random cases a test tries: `KEELFS_CASES`, or its default.
pub fn cases(default: u32) -> ProptestConfig {
    let wanted = std::env::var("KEELFS_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: wanted.unwrap_or(default), failure_persistence: None, ..ProptestConfig::default() }
}
