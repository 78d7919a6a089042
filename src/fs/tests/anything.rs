//! Arbitrary requests, sane and insane, on a small world: no panic, every invariant, equal replicas, refusals that change
//! nothing, and a state that survives export and import.

use super::*;
use proptest::prelude::*;
use proptest::strategy::Union;

/// Mostly small numbers, so that commands meet; sometimes the edges of the type.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..14_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn ino() -> impl Strategy<Value = Ino> {
    prop_oneof![3 => Just(1), 9 => 1..9_u64, 1 => number()].prop_map(Ino)
}

fn at() -> impl Strategy<Value = Name> {
    (0..4_u8).prop_map(|n| Name::new(&[b'a' + n]).unwrap())
}

fn short() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), Just(b'b')], 0..3).prop_map(Bytes::from)
}

fn node() -> impl Strategy<Value = NewNode> {
    prop_oneof![
        4 => Just(NewNode::File),
        4 => Just(NewNode::Directory),
        1 => short().prop_map(|target| NewNode::Symlink { target }),
        1 => any::<u32>().prop_map(|rdev| NewNode::CharDevice { rdev }),
    ]
}

fn expiry() -> impl Strategy<Value = ExpiryChange> {
    prop_oneof![
        Just(ExpiryChange::Keep),
        Just(ExpiryChange::Clear),
        number().prop_map(|ns| ExpiryChange::After { ns }),
        any::<i64>().prop_map(|unix_seconds| ExpiryChange::At { unix_seconds }),
    ]
}

fn changes() -> impl Strategy<Value = AttributeChanges> {
    let time = prop_oneof![
        Just(None),
        Just(Some(TimeChange::Now)),
        (any::<i64>(), any::<u32>()).prop_map(|(seconds, nanos)| Some(TimeChange::To(Timestamp { seconds, nanos }))),
    ];
    let number32 = || proptest::option::of(any::<u32>());
    (number32(), number32(), number32(), proptest::option::of(number()), time.clone(), time)
        .prop_map(|(mode, uid, gid, size, atime, mtime)| AttributeChanges { mode, uid, gid, size, atime, mtime })
}

/// Valid ones of all sorts, and some with a byte changed.
fn acl() -> impl Strategy<Value = Bytes> {
    let bits = || 0..8_u16;
    let named = || proptest::collection::vec((0..3_u32, bits()), 0..3);
    let damage = proptest::option::weighted(0.1, (0..40_usize, any::<u8>()));
    (bits(), named(), bits(), named(), proptest::option::of(bits()), bits(), damage).prop_map(
        |(owner, users, group, groups, mask, others, damage)| {
            let mask = mask.or(if users.is_empty() && groups.is_empty() { None } else { Some(5) });
            let mut list = vec![(1, owner, u32::MAX)];
            list.extend(users.into_iter().map(|(id, bits)| (2, bits, id)));
            list.push((4, group, u32::MAX));
            list.extend(groups.into_iter().map(|(id, bits)| (8, bits, id)));
            list.extend(mask.map(|mask| (16, mask, u32::MAX)));
            list.push((32, others, u32::MAX));
            let mut bytes = acl::encode(&list);
            if let Some((at, byte)) = damage {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.into()
        },
    )
}

fn range() -> impl Strategy<Value = LockRange> {
    (number(), number()).prop_map(|(start, end)| LockRange { start, end })
}

fn owner() -> impl Strategy<Value = LockOwner> {
    prop_oneof![(0..3_u64).prop_map(LockOwner::Posix), (0..3_u64).prop_map(LockOwner::Flock)]
}

fn names() -> Vec<BoxedStrategy<Command>> {
    let seen = || proptest::option::weighted(0.2, ino());
    let place = || (ino(), at()).prop_map(|(parent, name)| Place { parent, name });
    let mode = prop::sample::select(vec![
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
        RenameMode::Whiteout,
    ]);
    let make = || {
        (ino(), at(), node(), any::<u32>(), any::<u32>())
            .prop_map(|(parent, name, node, mode, umask)| Command::Make { parent, name, node, mode, umask })
            .boxed()
    };
    let rename = || {
        (place(), place(), mode.clone(), seen(), proptest::option::weighted(0.2, seen()))
            .prop_map(|(from, to, mode, moved, replaced)| Command::Rename { from, to, mode, moved, replaced })
            .boxed()
    };
    vec![
        make(),
        make(),
        make(),
        rename(),
        rename(),
        (ino(), ino(), at()).prop_map(|(ino, parent, name)| Command::Link { ino, parent, name }).boxed(),
        (ino(), at(), seen()).prop_map(|(parent, name, expected)| Command::Unlink { parent, name, expected }).boxed(),
        (ino(), at(), seen())
            .prop_map(|(parent, name, expected)| Command::RemoveDirectory { parent, name, expected })
            .boxed(),
    ]
}

fn contents() -> Vec<BoxedStrategy<Command>> {
    let mode = prop_oneof![
        Just(AllocateMode::Extend),
        Just(AllocateMode::PunchHole),
        any::<bool>().prop_map(|keep_size| AllocateMode::ZeroRange { keep_size }),
        Just(AllocateMode::Collapse),
        Just(AllocateMode::Insert),
    ];
    let expected =
        prop_oneof![Just(Expected::Anything), number().prop_map(|version| Expected::Version(LogIndex(version)))];
    let length = || prop_oneof![9 => 0..12_u32, 1 => any::<u32>()];
    vec![
        (ino(), number(), length()).prop_map(|(ino, offset, length)| Command::Write { ino, offset, length }).boxed(),
        (ino(), length()).prop_map(|(ino, length)| Command::Append { ino, length }).boxed(),
        (ino(), number(), expiry(), length())
            .prop_map(|(ino, version, expiry, length)| Command::Replace {
                ino,
                expected: LogIndex(version),
                expiry,
                length,
            })
            .boxed(),
        (ino(), at(), expected, expiry(), any::<u32>(), length())
            .prop_map(|(parent, name, expected, expiry, mode, length)| Command::Put {
                parent,
                name,
                expected,
                expiry,
                mode,
                length,
            })
            .boxed(),
        (ino(), mode, number(), number())
            .prop_map(|(ino, mode, offset, length)| Command::Allocate { ino, mode, offset, length })
            .boxed(),
        (ino(), number(), ino(), number(), number())
            .prop_map(|(from, from_offset, to, to_offset, length)| Command::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                length,
            })
            .boxed(),
        (ino(), changes()).prop_map(|(ino, changes)| Command::SetAttributes { ino, changes }).boxed(),
    ]
}

fn marks() -> Vec<BoxedStrategy<Command>> {
    let xattr_mode = prop_oneof![Just(XattrMode::Any), Just(XattrMode::Create), Just(XattrMode::Replace)];
    let acl_kind = prop_oneof![Just(AclKind::Access), Just(AclKind::Default)];
    let version = proptest::option::of(number().prop_map(LogIndex));
    let lock_mode = prop_oneof![Just(LockMode::Shared), Just(LockMode::Exclusive), Just(LockMode::Unlock)];
    vec![
        (ino(), short(), short(), xattr_mode)
            .prop_map(|(ino, name, value, mode)| Command::SetXattr { ino, name, value, mode })
            .boxed(),
        (ino(), short()).prop_map(|(ino, name)| Command::RemoveXattr { ino, name }).boxed(),
        (ino(), acl_kind, proptest::option::weighted(0.9, acl()), any::<bool>())
            .prop_map(|(ino, kind, acl, keep_setgid)| Command::SetAcl { ino, kind, acl, keep_setgid })
            .boxed(),
        (ino(), version).prop_map(|(ino, version)| Command::SetReplaceIf { ino, version }).boxed(),
        (ino(), expiry()).prop_map(|(ino, expiry)| Command::SetExpiry { ino, expiry }).boxed(),
        (ino(), proptest::option::of(number()))
            .prop_map(|(ino, ttl_ns)| Command::SetDefaultTtl { ino, ttl_ns })
            .boxed(),
        (ino(), any::<bool>()).prop_map(|(ino, ephemeral)| Command::SetEphemeral { ino, ephemeral }).boxed(),
        (ino(), owner(), range(), lock_mode, any::<bool>())
            .prop_map(|(ino, owner, range, mode, wait)| Command::Lock { ino, owner, range, mode, pid: 1, wait })
            .boxed(),
        (ino(), owner(), range()).prop_map(|(ino, owner, range)| Command::CancelLock { ino, owner, range }).boxed(),
        (ino(), owner()).prop_map(|(ino, owner)| Command::ReleaseOwner { ino, owner }).boxed(),
    ]
}

fn lives() -> Vec<BoxedStrategy<Command>> {
    vec![
        Just(Command::OpenSession { label: "x".into() }).boxed(),
        proptest::collection::vec(ino(), 0..5).prop_map(|closed| Command::KeepAlive { closed }).boxed(),
        Just(Command::CloseSession).boxed(),
        (number(), number())
            .prop_map(|(id, seen)| Command::EndSession { session: SessionId(id), last_seen: ClusterTime(seen) })
            .boxed(),
        (ino(), number()).prop_map(|(ino, at)| Command::Expire { ino, deadline: ClusterTime(at) }).boxed(),
        nodes().prop_map(Command::Node).boxed(),
    ]
}

fn nodes() -> impl Strategy<Value = NodeCommand> {
    let start = (0..2_u64, 0..4_u64, 0..4_u64, number()).prop_map(|(instance, incarnation, run, end)| NodeStart {
        instance: instance.into(),
        incarnation,
        run,
        log_end: LogIndex(end),
    });
    let holds =
        (0..5_u64, 0..4_u64, number()).prop_map(|(node, run, upto)| NodeHolds { node, run, upto: LogIndex(upto) });
    prop_oneof![
        Just(NodeCommand::Allocate),
        (0..5_u64, start).prop_map(|(node, start)| NodeCommand::Start { node, start }),
        proptest::collection::vec(holds, 0..4).prop_map(NodeCommand::Holds),
    ]
}

/// One entry of an arbitrary log.
#[derive(Clone, Debug)]
struct Entry {
    request: Request,
    length: u64,
    advance_ns: u64,
    /// Let what is due happen first.
    leads: bool,
}

fn entry() -> impl Strategy<Value = Entry> {
    let command = prop_oneof![
        12 => Union::new(names()),
        10 => Union::new(contents()),
        8 => Union::new(marks()),
        3 => Union::new(lives()),
    ];
    let session = prop_oneof![1 => Just(0_u64), 12 => 1..4_u64, 1 => number()];
    let sequence = (prop_oneof![15 => 1000..5000_u64, 1 => number()], prop_oneof![15 => Just(1_u64), 1 => number()]);
    let advance = prop_oneof![9 => 0..10_u64, 1 => Just(20 * SECOND)];
    let wrong_length = proptest::option::weighted(0.02, number());
    (command, session, sequence, (any::<bool>(), wrong_length), advance, any::<bool>()).prop_map(
        |(command, session, (sequence, first), (root, wrong_length), advance_ns, leads)| {
            let length = wrong_length.unwrap_or(command.body_length());
            let who = if root { Credentials::default() } else { USER };
            Entry { request: request(SessionId(session), sequence, first, who, command), length, advance_ns, leads }
        },
    )
}

/// Does a refusal of this command promise an untouched tree? (A first request may end a session in passing: none does.)
fn apply(play: &mut Play, entry: &Entry) -> Outcome {
    play.now = play.now.saturating_add(entry.advance_ns);
    if entry.leads {
        play.state.due(ClusterTime(play.now), 3).into_iter().for_each(|command| drop(play.lead(command)));
    }
    let before = tree(&play.state);
    let outcome = play.put(&entry.request, entry.length);
    if outcome.is_err() {
        assert_eq!(tree(&play.state), before, "refused, and yet something changed: {entry:?}");
    }
    outcome
}

fn reimport(state: &State) -> State {
    let mut importer = Importer::new();
    for item in state.export() {
        let bytes = crate::codec::encode("item", &item).unwrap();
        assert!(bytes.len() < 1 << 20);
        importer.add(crate::codec::decode("item", &bytes).unwrap()).unwrap();
    }
    importer.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn anything_may_come(entries in proptest::collection::vec(entry(), 1..150)) {
        let (mut one, mut kept) = (Play::new(), None);
        one.open_session();
        one.open_session();
        let mut other = one.clone();
        for (at, entry) in entries.iter().enumerate() {
            prop_assert_eq!(apply(&mut one, entry), apply(&mut other, entry));
            prop_assert_eq!(one.state.hash(), other.state.hash());
            if at == entries.len() / 2 {
                kept = Some((one.state.clone(), one.state.hash()));
                other.state = reimport(&other.state);
            }
        }
        let again = reimport(&one.state);
        again.check().unwrap();
        prop_assert_eq!(again.hash(), one.state.hash());
        prop_assert_eq!(again.due(ClusterTime(u64::MAX), 1000), one.state.due(ClusterTime(u64::MAX), 1000));
        if let Some((kept, hash)) = kept {
            kept.check().unwrap();
            prop_assert_eq!(kept.hash(), hash, "a clone changed through another");
        }
    }
}

#[test]
fn an_import_that_lacks_or_doubles_something_is_refused() {
    let mut play = Play::new();
    play.file("f");
    let items: Vec<_> = play.state.export().collect();
    let import = |items: &[Item]| -> Result<State, Broken> {
        let mut importer = Importer::new();
        items.iter().try_for_each(|item| importer.add(item.clone()))?;
        importer.finish()
    };
    assert_eq!(import(&items).unwrap().hash(), play.state.hash());
    for at in 0..items.len() {
        let mut fewer = items.clone();
        fewer.remove(at);
        assert!(import(&fewer).is_err(), "without {:?}", items[at]);
    }
    assert!(import(&[&items[..], &[Item::End]].concat()).is_err());
}

#[test]
fn pieces_of_a_large_state_are_bounded() {
    let mut play = Play::new();
    let file = play.file("f");
    let mut apply = |command: Command| {
        play.sequence += 1;
        let (stamp, length) = (play.stamp(), command.body_length());
        play.state.apply(stamp, &request(play.session, play.sequence, 1, USER, command), length).unwrap();
    };
    for n in 0..1500_u64 {
        let name = Name::new(format!("{n:0>255}").as_bytes()).unwrap();
        let target = Bytes::from(vec![b'x'; 4095]);
        apply(Command::Make { parent: Ino::ROOT, name, node: NewNode::Symlink { target }, mode: 0, umask: 0 });
        apply(Command::Write { ino: file, offset: n * 2, length: 1 });
        if n < 60 {
            let (name, value) = (Bytes::from(format!("user.{n}")), Bytes::from(vec![1; 65_536]));
            apply(Command::SetXattr { ino: Ino(3 + n), name, value, mode: XattrMode::Any });
        }
    }
    assert_eq!(reimport(&play.state).hash(), play.state.hash());
    assert!(play.state.export().count() > 15);
}
