//! Wild input: whatever reaches apply, a query or an attribute, nothing panics and every replica agrees.
//!
//! An entry that panicked would end all replicas at once, and again after each restart. `KEELFS_CASES=5000` tries more.

mod world;

use bytes::Bytes;
use keelfs::fs::*;
use proptest::prelude::*;
use world::{acl, cases, exported, import};

fn name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(|text| Name::new(text.as_bytes()).unwrap())
}

fn rename_mode() -> impl Strategy<Value = RenameMode> {
    prop_oneof![
        4 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange),
        1 => Just(RenameMode::Whiteout),
    ]
}

fn wild() -> impl Strategy<Value = u64> {
    let edge = prop::sample::select(vec![
        0,
        1,
        2,
        (1 << 31) - 1,
        u64::from(u32::MAX),
        keelfs::limits::FILE_BYTES_MAX - 1,
        keelfs::limits::FILE_BYTES_MAX,
        keelfs::limits::FILE_BYTES_MAX + 1,
        (1 << 63) - 2,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ]);
    prop_oneof![3 => 0..20u64, 2 => edge, 1 => any::<u64>()]
}

fn wild_ino() -> impl Strategy<Value = Ino> {
    prop_oneof![20 => (1..7u64).prop_map(Ino), 1 => wild().prop_map(Ino)]
}

fn wild_bytes() -> impl Strategy<Value = Bytes> {
    let word =
        prop::sample::select(vec!["user.a", "user.keelfs.ttl", "keelfs.", "30s", "-1", "5\nx", "5 ttl=1y\n", "a/b"]);
    let garbage = prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let long = (0..70_000usize).prop_map(|length| Bytes::from(vec![b'7'; length]));
    prop_oneof![4 => word.prop_map(Bytes::from), 4 => garbage, 1 => long]
}

/// What begins as a list, and goes on as it likes.
fn wild_acl() -> impl Strategy<Value = Bytes> {
    let good = prop::sample::select(vec!["u::7 g::5 o::0", "u::7 u:5:6 g::5 g:0:1 m::7 o::4"]);
    let edit = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (good, edit, prop_oneof![4 => Just(Bytes::new()), 1 => wild_bytes()]).prop_map(|(good, edit, tail)| {
        let mut bytes = acl::list(good).to_vec();
        if let Some((at, byte)) = edit {
            *at.get_mut(&mut bytes) = byte;
        }
        [&bytes[..], &tail].concat().into()
    })
}

fn wild_place() -> impl Strategy<Value = Place> {
    let parent = prop_oneof![Just(Ino::ROOT), wild_ino()];
    (parent, name()).prop_map(|(parent, name)| Place { parent, name })
}

fn wild_expiry() -> impl Strategy<Value = ExpiryChange> {
    prop_oneof![
        Just(ExpiryChange::Clear),
        wild().prop_map(|ns| ExpiryChange::After { ns }),
        wild().prop_map(|seconds| ExpiryChange::At { unix_seconds: seconds as i64 }),
    ]
}

fn wild_lock() -> impl Strategy<Value = (LockOwner, LockRange, LockMode)> {
    let owner = prop_oneof![(0..3u64).prop_map(LockOwner::Posix), (0..3u64).prop_map(LockOwner::Flock)];
    let mode = prop::sample::select(vec![LockMode::Shared, LockMode::Exclusive, LockMode::Unlock]);
    (owner, wild(), wild(), mode).prop_map(|(owner, start, end, mode)| (owner, LockRange { start, end }, mode))
}

/// Every command that is not the leader's alone, and the leader's with numbers of no leader.
fn wild_command() -> BoxedStrategy<Command> {
    let node = prop_oneof![
        4 => Just(NewNode::File),
        2 => Just(NewNode::Directory),
        1 => wild_bytes().prop_map(|target| NewNode::Symlink { target }),
        1 => any::<u32>().prop_map(|rdev| NewNode::CharDevice { rdev }),
    ];
    let allocate = prop::sample::select(vec![
        AllocateMode::Extend,
        AllocateMode::PunchHole,
        AllocateMode::ZeroRange { keep_size: false },
        AllocateMode::Collapse,
        AllocateMode::Insert,
    ]);
    let acl_kind = prop::sample::select(vec![AclKind::Access, AclKind::Default]);
    let nanos = prop_oneof![3 => Just(0), 1 => any::<u32>()];
    let time = (any::<i64>(), nanos).prop_map(|(seconds, nanos)| Some(TimeChange::To(Timestamp { seconds, nanos })));
    let all_closed = Just((1..9).map(Ino).collect());
    let closed = prop_oneof![all_closed, prop::collection::vec(wild_ino(), 0..20)];
    let length = prop_oneof![9 => 0..40u32, 1 => any::<u32>()];
    prop_oneof![
        8 => (wild_place(), node, any::<u32>(), any::<u32>())
            .prop_map(|(p, node, mode, umask)| Command::Make { parent: p.parent, name: p.name, node, mode, umask }),
        6 => (wild_ino(), wild(), length.clone()).prop_map(|(ino, offset, length)| Command::Write { ino, offset, length }),
        2 => (wild_ino(), length).prop_map(|(ino, length)| Command::Append { ino, length }),
        6 => (wild_ino(), allocate, wild(), wild())
            .prop_map(|(ino, mode, offset, length)| Command::Allocate { ino, mode, offset, length }),
        6 => (wild_ino(), wild(), wild_ino(), wild(), wild()).prop_map(|(from, from_offset, to, to_offset, length)| {
            Command::CopyRange { from, from_offset, to, to_offset, length }
        }),
        2 => (wild_ino(), wild(), time).prop_map(|(ino, size, mtime)| {
            Command::SetAttributes { ino, changes: AttributeChanges { size: Some(size), mtime, ..Default::default() } }
        }),
        4 => (wild_ino(), wild_bytes(), wild_bytes())
            .prop_map(|(ino, name, value)| Command::SetXattr { ino, name, value, mode: XattrMode::Any }),
        2 => (wild_ino(), wild_bytes()).prop_map(|(ino, name)| Command::RemoveXattr { ino, name }),
        3 => (wild_ino(), acl_kind, prop::option::of(wild_acl()), any::<bool>())
            .prop_map(|(ino, kind, acl, keep_setgid)| Command::SetAcl { ino, kind, acl, keep_setgid }),
        3 => (wild_ino(), wild_expiry()).prop_map(|(ino, expiry)| Command::SetExpiry { ino, expiry }),
        2 => (wild_ino(), prop::option::of(wild())).prop_map(|(ino, ttl_ns)| Command::SetDefaultTtl { ino, ttl_ns }),
        2 => (wild_ino(), wild()).prop_map(|(ino, v)| Command::SetReplaceIf { ino, version: Some(LogIndex(v)) }),
        8 => (wild_ino(), wild_lock(), any::<bool>()).prop_map(|(ino, (owner, range, mode), wait)| {
            Command::Lock { ino, owner, range, mode, pid: 1, wait }
        }),
        2 => (wild_ino(), wild_lock()).prop_map(|(ino, (owner, range, _))| Command::CancelLock { ino, owner, range }),
        2 => (wild_ino(), wild_lock()).prop_map(|(ino, (owner, ..))| Command::ReleaseOwner { ino, owner }),
        1 => (0..300usize).prop_map(|length| Command::OpenSession { label: "x".repeat(length) }),
        1 => (wild(), wild())
            .prop_map(|(s, t)| Command::EndSession { session: SessionId(s), last_seen: ClusterTime(t) }),
        1 => (wild_ino(), wild()).prop_map(|(ino, t)| Command::Expire { ino, deadline: ClusterTime(t) }),
        3 => (wild_ino(), wild_place()).prop_map(|(ino, p)| Command::Link { ino, parent: p.parent, name: p.name }),
        5 => wild_place().prop_map(|p| Command::Unlink { parent: p.parent, name: p.name, expected: None }),
        2 => wild_place().prop_map(|p| Command::RemoveDirectory { parent: p.parent, name: p.name, expected: None }),
        4 => (wild_place(), wild_place(), rename_mode())
            .prop_map(|(from, to, mode)| Command::Rename { from, to, mode, moved: None, replaced: None }),
        2 => (wild_ino(), wild_expiry(), 0..9u32).prop_map(|(ino, expiry, length)| {
            Command::Replace { ino, expected: LogIndex(9), expiry, length }
        }),
        2 => (wild_place(), wild_expiry(), 0..9u32).prop_map(|(p, expiry, length)| {
            Command::Put { parent: p.parent, name: p.name, expected: Expected::Anything, expiry, mode: 0o600, length }
        }),
        2 => (wild_ino(), any::<bool>()).prop_map(|(ino, ephemeral)| Command::SetEphemeral { ino, ephemeral }),
        8 => closed.prop_map(|closed| Command::KeepAlive { closed }),
    ]
    .boxed()
}

fn wild_query() -> BoxedStrategy<Query> {
    let limit = prop_oneof![0..5u32, Just(u32::MAX)];
    prop_oneof![
        wild_place().prop_map(|p| Query::Lookup { parent: p.parent, name: p.name }),
        wild_bytes().prop_map(|path| Query::Resolve { path }),
        wild_ino().prop_map(|ino| Query::Parent { ino }),
        wild_ino().prop_map(|ino| Query::ReadLink { ino }),
        (wild_ino(), wild(), limit).prop_map(|(ino, after, limit)| Query::ReadDirectory { ino, after, limit }),
        (wild_ino(), wild_bytes()).prop_map(|(ino, name)| Query::Xattr { ino, name }),
        wild_ino().prop_map(|ino| Query::Xattr { ino, name: Bytes::from("keelfs.info") }),
        wild_ino().prop_map(|ino| Query::ListXattrs { ino }),
        (wild_ino(), wild(), wild()).prop_map(|(ino, offset, length)| Query::Content { ino, offset, length }),
        (wild_ino(), wild(), any::<bool>()).prop_map(|(ino, offset, hole)| Query::Seek { ino, offset, hole }),
        (wild_ino(), wild_lock(), 0..4u64).prop_map(|(ino, (owner, range, mode), session)| {
            Query::TestLock { ino, session: SessionId(session), owner, range, mode }
        }),
        (wild_ino(), wild_lock(), 0..4u64).prop_map(|(ino, (owner, range, _), session)| {
            Query::LockStanding { ino, session: SessionId(session), owner, range }
        }),
    ]
    .boxed()
}

#[derive(Clone, Debug)]
struct WildEntry {
    command: Command,
    session: u64,
    sequence: Option<u64>,
    first_outstanding: u64,
    step: u64,
    cluster: u64,
    wall: (i64, u32),
    wrong_body: Option<u64>,
}

impl WildEntry {
    /// As a client and a leader in order would make it.
    fn tame(session: u64, command: Command) -> WildEntry {
        let (sequence, wrong_body) = (None, None);
        WildEntry { command, session, sequence, first_outstanding: 0, step: 1, cluster: 0, wall: (0, 0), wrong_body }
    }
}

/// Two sessions, and something to be wild about: inodes 2 to 5.
fn beginning() -> Vec<WildEntry> {
    let make = |name: &str, node: NewNode| {
        let name = Name::new(name.as_bytes()).unwrap();
        WildEntry::tame(1, Command::Make { parent: Ino::ROOT, name, node, mode: 0o755, umask: 0 })
    };
    let open = WildEntry::tame(0, Command::OpenSession { label: "wild".into() });
    let made =
        [make("a", NewNode::File), make("b", NewNode::File), make("c", NewNode::Directory), make("d", NewNode::File)];
    [open.clone(), open].into_iter().chain(made).collect()
}

fn wild_entry() -> BoxedStrategy<WildEntry> {
    let session = prop_oneof![40 => 1..3u64, 2 => Just(0), 1 => wild()];
    let sequence = prop::option::weighted(0.02, wild());
    let outstanding = prop_oneof![200 => Just(0), 4 => 0..30u64, 1 => wild()];
    let step = prop_oneof![100 => Just(1), 1 => wild()];
    let cluster = prop_oneof![20 => 0..60_000_000_000u64, 1 => wild()];
    let wrong_body = prop::option::weighted(0.02, wild());
    let wall = prop_oneof![20 => (0..9i64, 0..9u32), 1 => any::<(i64, u32)>()];
    let parts = (wild_command(), session, sequence, outstanding, step, cluster, wall, wrong_body);
    parts
        .prop_map(|(command, session, sequence, first_outstanding, step, cluster, wall, wrong_body)| WildEntry {
            command,
            session,
            sequence,
            first_outstanding,
            step,
            cluster,
            wall,
            wrong_body,
        })
        .boxed()
}

impl WildEntry {
    fn apply(&self, state: &mut State, number: u64) -> Outcome {
        let index = LogIndex(state.applied().0.saturating_add(self.step));
        let wall = Timestamp { seconds: self.wall.0, nanos: self.wall.1 };
        let stamp = Stamp { index, cluster: ClusterTime(self.cluster), wall };
        let request = Request {
            session: SessionId(self.session),
            sequence: Sequence(self.sequence.unwrap_or(number)),
            first_outstanding: Sequence(self.first_outstanding),
            credentials: Credentials { uid: 1, gid: 1 },
            command: self.command.clone(),
        };
        state.apply(stamp, &request, self.wrong_body.unwrap_or(self.command.body_length()))
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    /// No entry whatever panics or breaks an invariant; all replicas agree about it; a snapshot holds what came of it.
    #[test]
    fn no_entry_is_poison(
        entries in prop::collection::vec(wild_entry(), 1..100),
        queries in prop::collection::vec(wild_query(), 30),
        now in wild(),
    ) {
        let (mut one, mut two) = (State::new(), State::new());
        for (number, entry) in beginning().iter().chain(&entries).enumerate() {
            let outcome = entry.apply(&mut one, number as u64 + 1);
            prop_assert_eq!(&entry.apply(&mut two, number as u64 + 1), &outcome);
            prop_assert_eq!(one.check(), Ok(()), "after {:?}", entry);
        }
        prop_assert_eq!(one.hash(), two.hash());
        queries.iter().for_each(|query| assert_eq!(one.answer(query), two.answer(query)));
        prop_assert_eq!(one.due(ClusterTime(now), 9), two.due(ClusterTime(now), 9));
        prop_assert_eq!(import(&one).hash(), one.hash());
        prop_assert_eq!(exported(&import(&one)), exported(&one));
    }

    /// What a shell passes as a name and a value makes a command or is refused, and the command is bounded.
    #[test]
    fn no_attribute_value_is_poison(name in wild_bytes(), tail in wild_bytes(), value in wild_bytes()) {
        for prefix in ["", "user.keelfs.", "keelfs."] {
            let name = [prefix.as_bytes(), &name].concat();
            let value = [&value[..], &tail].concat();
            if let Ok((command, body)) = words::set_attribute(Ino(2), &name, &value, XattrMode::Any) {
                prop_assert_eq!(command.body_length(), body.len() as u64);
                prop_assert!(value.len() <= keelfs::limits::XATTR_VALUE_BYTES_MAX);
            }
            let _ = words::remove_attribute(Ino(2), &name);
        }
    }
}
