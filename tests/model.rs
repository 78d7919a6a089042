//! Random histories against a naive model of a file system.
//!
//! The model (`naive`) keeps bytes in vectors and names in lists, and shares no code with the core but the words of its
//! language. After every command the outcomes are compared, from time to time the whole trees, byte for byte.
//!
//! `KEELFS_CASES=5000 cargo test --test model` tries more histories than the default.

mod naive;
mod world;

use bytes::Bytes;
use keelfs::fs::*;
use naive::{Naive, pick};
use proptest::prelude::*;
use world::{Client, Entry, SECOND_NS, World, acl, cases, exported, import};

#[derive(Clone, Debug)]
enum Act {
    Submit {
        client: usize,
        who: Credentials,
        command: Command,
    },
    /// A file is published in the place of another, under a condition.
    Publish {
        client: usize,
        from: Place,
        to: Place,
        version: LogIndex,
    },
    /// An earlier request of this client arrives again.
    Repeat {
        client: usize,
        back: usize,
    },
    /// The client needs no earlier replies any more.
    Acknowledge {
        client: usize,
    },
    Open,
    Advance {
        ns: u64,
    },
    /// The leader looks what is due …
    Decide,
    /// … and proposes what it decided, perhaps much later.
    Propose,
    Compare,
    Reimport,
}

// --- what happens

/// Any inode, mostly one that exists.
fn ino() -> impl Strategy<Value = Ino> {
    prop_oneof![9 => (0..64u64).prop_map(|n| Ino(pick::ANY + n)), 1 => (1..30u64).prop_map(Ino)]
}

/// Mostly a file.
fn file() -> impl Strategy<Value = Ino> {
    prop_oneof![9 => (0..8u64).prop_map(|n| Ino(pick::FILE + n)), 1 => ino()]
}

/// Mostly a directory.
fn parent() -> impl Strategy<Value = Ino> {
    prop_oneof![4 => Just(Ino::ROOT), 9 => (0..8u64).prop_map(|n| Ino(pick::DIRECTORY + n)), 1 => ino()]
}

fn name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(|text| Name::new(text.as_bytes()).unwrap())
}

fn place() -> impl Strategy<Value = Place> {
    (parent(), name()).prop_map(|(parent, name)| Place { parent, name })
}

/// Mostly a name that exists.
fn taken_place() -> impl Strategy<Value = Place> {
    let taken = (0..64u64, name()).prop_map(|(n, name)| Place { parent: Ino(pick::ENTRY + n), name });
    prop_oneof![3 => taken, 1 => place()]
}

fn seen() -> impl Strategy<Value = Option<Ino>> {
    prop_oneof![4 => Just(None), 2 => Just(Some(pick::TRUE_INO)), 1 => ino().prop_map(Some)]
}

fn version() -> impl Strategy<Value = LogIndex> {
    prop_oneof![4 => Just(pick::TRUE_VERSION), 1 => Just(LogIndex(0)), 1 => (1..40u64).prop_map(LogIndex)]
}

fn expiry() -> impl Strategy<Value = ExpiryChange> {
    prop_oneof![
        Just(ExpiryChange::Keep),
        Just(ExpiryChange::Clear),
        (1..15u64).prop_map(|seconds| ExpiryChange::After { ns: seconds * SECOND_NS }),
        (-5..60i64).prop_map(|seconds| ExpiryChange::At { unix_seconds: world::WALL_START + seconds }),
    ]
}

fn node() -> impl Strategy<Value = NewNode> {
    prop_oneof![
        5 => Just(NewNode::File),
        4 => Just(NewNode::Directory),
        1 => Just(NewNode::Symlink { target: Bytes::from_static(b"a/b") }),
        1 => Just(NewNode::Fifo),
    ]
}

/// Lists of every form, and some that are none.
fn acl() -> impl Strategy<Value = Bytes> {
    let bits = || 0..8u16;
    let named = |tag| prop::collection::vec((Just(tag), bits(), 0..4u32), 0..3);
    let of = |tag| (Just(tag), bits(), Just(u32::MAX)).prop_map(|entry| vec![entry]);
    let mask = prop_oneof![4 => of(acl::MASK), 1 => Just(vec![])];
    let entries = (of(acl::OWNER), named(acl::USER), of(acl::GROUP), named(acl::NAMED_GROUP), mask, of(acl::OTHERS));
    let slip = prop::option::weighted(0.1, (0..9usize, 0..9usize));
    (entries, slip).prop_map(|((owner, users, group, groups, mask, others), slip)| {
        let mut all = [owner, users, group, groups, mask, others].concat();
        if let Some((one, other)) = slip {
            let length = all.len();
            all.swap(one % length, other % length);
        }
        let entry = |(tag, permissions, id)| acl::Entry { tag, permissions, id };
        acl::encode(&all.into_iter().map(entry).collect::<Vec<_>>())
    })
}

fn at() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0..20u64, 1 => 0..200u64]
}

fn rename_mode() -> impl Strategy<Value = RenameMode> {
    prop_oneof![
        4 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange),
        1 => Just(RenameMode::Whiteout),
    ]
}

fn name_command() -> BoxedStrategy<Command> {
    let mode = prop::sample::select(vec![0o644, 0o755, 0o2775, 0o6755, 0o177_777]);
    let umask = prop::sample::select(vec![0, 0o022, 0o077, u32::MAX]);
    let replaced = prop_oneof![4 => Just(None), 1 => Just(Some(None)), 2 => Just(Some(Some(pick::TRUE_INO)))];
    prop_oneof![
        6 => (place(), node(), mode, umask)
            .prop_map(|(p, node, mode, umask)| Command::Make { parent: p.parent, name: p.name, node, mode, umask }),
        2 => (ino(), place()).prop_map(|(ino, p)| Command::Link { ino, parent: p.parent, name: p.name }),
        3 => (taken_place(), seen()).prop_map(|(p, expected)| Command::Unlink { parent: p.parent, name: p.name, expected }),
        2 => (taken_place(), seen())
            .prop_map(|(p, expected)| Command::RemoveDirectory { parent: p.parent, name: p.name, expected }),
        5 => (taken_place(), prop_oneof![place(), taken_place()], rename_mode(), seen(), replaced)
            .prop_map(|(from, to, mode, moved, replaced)| Command::Rename { from, to, mode, moved, replaced }),
    ]
    .boxed()
}

fn content_command() -> BoxedStrategy<Command> {
    let mode = prop::sample::select(vec![
        AllocateMode::Extend,
        AllocateMode::KeepSize,
        AllocateMode::PunchHole,
        AllocateMode::ZeroRange { keep_size: false },
        AllocateMode::ZeroRange { keep_size: true },
        AllocateMode::Collapse,
        AllocateMode::Insert,
    ]);
    let expected = prop_oneof![Just(Expected::Anything), version().prop_map(Expected::Version)];
    prop_oneof![
        5 => (file(), at(), 0..30u32).prop_map(|(ino, offset, length)| Command::Write { ino, offset, length }),
        2 => (file(), 0..30u32).prop_map(|(ino, length)| Command::Append { ino, length }),
        2 => (file(), version(), expiry(), 0..30u32)
            .prop_map(|(ino, expected, expiry, length)| Command::Replace { ino, expected, expiry, length }),
        2 => (prop_oneof![place(), taken_place()], expected, expiry(), 0..30u32).prop_map(|(p, expected, expiry, length)| {
            Command::Put { parent: p.parent, name: p.name, expected, expiry, mode: 0o640, length }
        }),
        4 => (file(), mode, at(), 0..30u64)
            .prop_map(|(ino, mode, offset, length)| Command::Allocate { ino, mode, offset, length }),
        3 => (file(), at(), file(), at(), 0..60u64).prop_map(|(from, from_offset, to, to_offset, length)| {
            Command::CopyRange { from, from_offset, to, to_offset, length }
        }),
    ]
    .boxed()
}

fn attribute_command() -> BoxedStrategy<Command> {
    let option = || prop::option::weighted(0.3, 0..4u32);
    let time = || {
        let to = (-9..9i64).prop_map(|seconds| TimeChange::To(Timestamp { seconds, nanos: 5 }));
        prop::option::weighted(0.2, prop_oneof![Just(TimeChange::Now), to])
    };
    let mode = prop::option::weighted(0.3, prop::sample::select(vec![0o600, 0o4755, 0o2644, 0o2755]));
    let changes = (mode, option(), option(), prop::option::weighted(0.4, at()), time(), time())
        .prop_map(|(mode, uid, gid, size, atime, mtime)| AttributeChanges { mode, uid, gid, size, atime, mtime });
    let xattr = || prop::sample::select(vec!["user.a", "user.b", "security.capability"]).prop_map(Bytes::from);
    let value = prop::sample::select(vec!["", "1", "two"]).prop_map(Bytes::from);
    let acl_kind = prop::sample::select(vec![AclKind::Access, AclKind::Default]);
    let flag = prop::sample::select(vec![XattrMode::Any, XattrMode::Create, XattrMode::Replace]);
    prop_oneof![
        3 => (ino(), changes).prop_map(|(ino, changes)| Command::SetAttributes { ino, changes }),
        2 => (ino(), xattr(), value, flag)
            .prop_map(|(ino, name, value, mode)| Command::SetXattr { ino, name, value, mode }),
        1 => (ino(), xattr()).prop_map(|(ino, name)| Command::RemoveXattr { ino, name }),
        3 => (ino(), acl_kind.clone(), prop::option::weighted(0.8, acl()), any::<bool>())
            .prop_map(|(ino, kind, acl, keep_setgid)| Command::SetAcl { ino, kind, acl, keep_setgid }),
        2 => (parent(), prop::option::weighted(0.8, acl()))
            .prop_map(|(ino, acl)| Command::SetAcl { ino, kind: AclKind::Default, acl, keep_setgid: false }),
        3 => (file(), prop::option::weighted(0.8, version())).prop_map(|(ino, version)| Command::SetReplaceIf { ino, version }),
        6 => (prop_oneof![file(), ino()], expiry()).prop_map(|(ino, expiry)| Command::SetExpiry { ino, expiry }),
        1 => (parent(), prop::option::of(0..20u64))
            .prop_map(|(ino, s)| Command::SetDefaultTtl { ino, ttl_ns: s.map(|s| s * SECOND_NS) }),
        2 => (ino(), prop::bool::weighted(0.8)).prop_map(|(ino, ephemeral)| Command::SetEphemeral { ino, ephemeral }),
    ]
    .boxed()
}

fn session_command() -> BoxedStrategy<Command> {
    let closed = prop::collection::vec(ino(), 0..20);
    prop_oneof![9 => closed.prop_map(|closed| Command::KeepAlive { closed }), 1 => Just(Command::CloseSession)].boxed()
}

fn act() -> BoxedStrategy<Act> {
    let command =
        prop_oneof![8 => name_command(), 7 => content_command(), 5 => attribute_command(), 2 => session_command()];
    let who = prop::sample::select(vec![Credentials { uid: 0, gid: 0 }, Credentials { uid: 3, gid: 4 }]);
    prop_oneof![
        40 => (0..3usize, who, command).prop_map(|(client, who, command)| Act::Submit { client, who, command }),
        3 => (0..3usize, taken_place(), prop_oneof![place(), taken_place()], version())
            .prop_map(|(client, from, to, version)| Act::Publish { client, from, to, version }),
        3 => (0..3usize, 0..4usize).prop_map(|(client, back)| Act::Repeat { client, back }),
        2 => (0..3usize).prop_map(|client| Act::Acknowledge { client }),
        1 => Just(Act::Open),
        4 => prop_oneof![4 => 0..12u64, 1 => 24..34u64].prop_map(|s| Act::Advance { ns: s * SECOND_NS + s }),
        5 => Just(Act::Decide),
        3 => Just(Act::Propose),
        3 => Just(Act::Compare),
        1 => Just(Act::Reimport),
    ]
    .boxed()
}

// --- core and model side by side

struct Pair {
    world: World,
    naive: Naive,
    clients: Vec<Client>,
    sent: Vec<Vec<(Request, Bytes)>>,
    decided: Vec<Command>,
}

impl Pair {
    fn new() -> Pair {
        let mut pair =
            Pair { world: World::new(), naive: Naive::new(), clients: vec![], sent: vec![], decided: vec![] };
        pair.open();
        pair.open();
        pair
    }

    fn run(&mut self, act: &Act) {
        match act {
            Act::Submit { client, who, command } => self.submit(self.recent(*client), *who, command),
            Act::Publish { client, from, to, version } => {
                let (client, mut from, mut to) = (self.recent(*client), from.clone(), to.clone());
                let (source, target) = (self.naive.look(&mut from), self.naive.look(&mut to));
                let truth = target.and_then(|ino| self.world.attributes(ino).ok()).map_or(LogIndex(0), |a| a.version);
                let version = Some(if *version == pick::TRUE_VERSION { truth } else { *version });
                let who = Credentials::default();
                self.submit(client, who, &Command::SetReplaceIf { ino: source.unwrap_or(Ino(99)), version });
                let (mode, moved, replaced) = (RenameMode::Replace, None, None);
                self.submit(client, who, &Command::Rename { from, to, mode, moved, replaced });
            }
            Act::Repeat { client, back } => {
                let sent = &self.sent[self.recent(*client)];
                if let Some((request, body)) = sent.iter().rev().nth(*back).cloned() {
                    self.both(request, body);
                }
            }
            Act::Acknowledge { client } => {
                let number = self.recent(*client);
                self.clients[number].first_outstanding = self.clients[number].next;
            }
            Act::Open => self.open(),
            Act::Advance { ns } => self.world.now_ns += ns,
            Act::Decide => {
                self.lead(Command::Tick);
                self.decided = self.world.state.due(ClusterTime(self.world.now_ns), 50);
                assert_eq!(self.decided, self.naive.due(self.world.now_ns), "what is due");
            }
            Act::Propose => std::mem::take(&mut self.decided).into_iter().for_each(|command| self.lead(command)),
            Act::Compare => self.naive.compare(&self.world),
            Act::Reimport => self.world.reimport(),
        }
    }

    /// One of the three newest clients, whose session may have ended.
    fn recent(&self, client: usize) -> usize {
        self.clients.len() - 1 - client % self.clients.len().min(3)
    }

    fn open(&mut self) {
        let client = self.world.open_session("model");
        self.naive.advance(self.world.now_ns);
        assert_eq!(client.id, self.naive.open());
        self.clients.push(client);
        self.sent.push(vec![]);
    }

    fn submit(&mut self, number: usize, who: Credentials, command: &Command) {
        let mut command = command.clone();
        self.naive.resolve(&mut command);
        let client = &mut self.clients[number];
        let (session, sequence, first_outstanding) = (client.id, client.next, client.first_outstanding);
        client.next = Sequence(sequence.0 + 1);
        let body = body_of(&command, self.world.state.applied().0 + 1);
        let request = Request { session, sequence, first_outstanding, credentials: who, command };
        self.sent[number].push((request.clone(), body.clone()));
        self.both(request, body);
    }

    fn lead(&mut self, command: Command) {
        let (session, sequence) = (SessionId(0), Sequence(0));
        let credentials = Credentials::default();
        self.both(Request { session, sequence, first_outstanding: sequence, credentials, command }, Bytes::new());
    }

    fn both(&mut self, request: Request, body: Bytes) {
        let found = self.world.apply(request.clone(), body.clone());
        self.naive.advance(self.world.now_ns);
        let expected = self.naive.apply(&request, &body);
        assert_eq!(without_directory_size(found), without_directory_size(expected), "outcome of {request:?}");
    }
}

/// Bytes that tell which entry they came with.
fn body_of(command: &Command, index: u64) -> Bytes {
    let length = match command {
        Command::Write { length, .. }
        | Command::Append { length, .. }
        | Command::Replace { length, .. }
        | Command::Put { length, .. } => *length,
        _ => 0,
    };
    (0..u64::from(length)).map(|i| (index * 37 + i) as u8).collect::<Vec<_>>().into()
}

/// What size a directory shows is the core's own affair.
fn without_directory_size(outcome: Outcome) -> Outcome {
    outcome.map(|reply| match reply {
        Reply::Attributes(a) if a.kind == FileKind::Directory => Reply::Attributes(Attributes { size: 0, ..a }),
        other => other,
    })
}

/// Apply entries to a state that is at the index before them.
fn replay(mut state: State, entries: &[Entry]) -> State {
    for entry in entries {
        let _ = state.apply(entry.stamp, &entry.request, entry.body.len() as u64);
    }
    state
}

/// The same log gives the same state: again from the start, and from a snapshot in the middle.
fn assert_replays(live: &State, log: &[Entry], middle: usize) {
    let again = replay(State::new(), log);
    assert_eq!(again.hash(), live.hash(), "a replay from the start differs");
    let (before, behind) = log.split_at(middle % (log.len() + 1));
    let half = replay(State::new(), before);
    let resumed = replay(import(&half), behind);
    assert_eq!(resumed.hash(), live.hash(), "a replay from a snapshot differs");
    assert_eq!(exported(&resumed), exported(live), "an export differs after a replay from a snapshot");
    assert_eq!(resumed.check(), Ok(()));
}

proptest! {
    #![proptest_config(cases(4000))]

    /// Whatever is done, core and model agree, and replicas agree with each other.
    #[test]
    fn the_core_does_what_the_naive_model_does(acts in prop::collection::vec(act(), 1..160), middle in any::<usize>()) {
        let mut pair = Pair::new();
        acts.iter().for_each(|act| pair.run(act));
        pair.naive.compare(&pair.world);
        assert_replays(&pair.world.state, &pair.world.log, middle);
    }
}
