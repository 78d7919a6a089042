//! Bytes outlive code: what is in a log, in a snapshot or under a hash today must mean the same to every later build.
//!
//! The fixtures beside this file were written when the formats were; a new variant adds a line, and no line changes. If a
//! line differs, so does what replicas of two builds agree on: that needs a new format and a plan, not a new fixture.

use super::*;

const COMMANDS: &str = include_str!("commands.hex");
const ITEMS: &str = include_str!("items.hex");
const OUTCOMES: &str = include_str!("outcomes.hex");
const STATE_HASH: &str = "acf7052ebeac84bb6aba1e5bd9ff899f";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The fixture's lines must be what these values encode to; on failure the message is the whole new fixture.
fn compare<T: serde::Serialize>(fixture: &str, values: &[T]) {
    let lines: String = values.iter().map(|v| hex(&crate::codec::encode("fixture", v).unwrap()) + "\n").collect();
    assert_eq!(lines, fixture, "the bytes have changed");
}

fn about_sessions() -> Vec<Command> {
    let session = SessionId(300);
    vec![
        Command::OpenSession { label: "n1".into() },
        Command::KeepAlive { closed: vec![Ino(5), Ino(70_000)] },
        Command::CloseSession,
        Command::EndSession { session, last_seen: ClusterTime(1 << 40) },
        Command::Expire { ino: Ino(9), deadline: ClusterTime(u64::MAX) },
        Command::Tick,
    ]
}

fn about_names() -> Vec<Command> {
    let (parent, name) = (Ino::ROOT, name("a"));
    let make = |node| Command::Make { parent, name: name.clone(), node, mode: 0o644, umask: 0o22 };
    let rename = |mode, replaced| Command::Rename {
        from: place((Ino(2), "x")),
        to: place((Ino(3), "y")),
        mode,
        moved: Some(Ino(4)),
        replaced,
    };
    vec![
        make(NewNode::File),
        make(NewNode::Directory),
        make(NewNode::Symlink { target: Bytes::from_static(b"t") }),
        make(NewNode::Fifo),
        make(NewNode::Socket),
        make(NewNode::CharDevice { rdev: 1 }),
        make(NewNode::BlockDevice { rdev: 2 }),
        Command::Link { ino: Ino(2), parent, name: name.clone() },
        Command::Unlink { parent, name: name.clone(), expected: None },
        Command::RemoveDirectory { parent, name, expected: Some(Ino(2)) },
        rename(RenameMode::Replace, None),
        rename(RenameMode::NoReplace, Some(None)),
        rename(RenameMode::Exchange, Some(Some(Ino(5)))),
        rename(RenameMode::Whiteout, None),
    ]
}

fn about_contents() -> Vec<Command> {
    let (ino, parent, name) = (Ino(2), Ino::ROOT, name("a"));
    let allocate = |mode| Command::Allocate { ino, mode, offset: 1, length: 2 };
    let put = |expected, expiry| Command::Put { parent, name: name.clone(), expected, expiry, mode: 0o644, length: 9 };
    vec![
        Command::Write { ino, offset: 1 << 33, length: 4096 },
        Command::Append { ino, length: 1 },
        Command::Replace { ino, expected: LogIndex(7), expiry: ExpiryChange::Keep, length: 2 },
        put(Expected::Anything, ExpiryChange::Clear),
        put(Expected::Version(LogIndex(3)), ExpiryChange::After { ns: 1 }),
        put(Expected::Version(LogIndex(0)), ExpiryChange::At { unix_seconds: -1 }),
        allocate(AllocateMode::Extend),
        allocate(AllocateMode::KeepSize),
        allocate(AllocateMode::PunchHole),
        allocate(AllocateMode::ZeroRange { keep_size: true }),
        allocate(AllocateMode::Collapse),
        allocate(AllocateMode::Insert),
        Command::CopyRange { from: ino, from_offset: 1, to: Ino(3), to_offset: 2, length: 3 },
    ]
}

fn about_attributes() -> Vec<Command> {
    let (ino, name, value) = (Ino(2), Bytes::from_static(b"user.a"), Bytes::from_static(b"v"));
    let set = |mode| Command::SetXattr { ino, name: name.clone(), value: value.clone(), mode };
    let changes = AttributeChanges {
        mode: Some(0o755),
        uid: Some(1),
        gid: None,
        size: Some(3),
        atime: Some(TimeChange::Now),
        mtime: Some(TimeChange::To(Timestamp { seconds: -5, nanos: 6 })),
    };
    vec![
        Command::SetAttributes { ino, changes },
        set(XattrMode::Any),
        set(XattrMode::Create),
        set(XattrMode::Replace),
        Command::RemoveXattr { ino, name: name.clone() },
        Command::SetAcl { ino, kind: AclKind::Access, acl: Some(value.clone()), keep_setgid: true },
        Command::SetAcl { ino, kind: AclKind::Default, acl: None, keep_setgid: false },
        Command::SetReplaceIf { ino, version: Some(LogIndex(1)) },
        Command::SetExpiry { ino, expiry: ExpiryChange::Clear },
        Command::SetDefaultTtl { ino, ttl_ns: Some(1) },
        Command::SetEphemeral { ino, ephemeral: true },
    ]
}

fn about_locks() -> Vec<Command> {
    let (ino, range) = (Ino(2), LockRange { start: 0, end: u64::MAX });
    let (posix, flock) = (LockOwner::Posix(1), LockOwner::Flock(2));
    let lock = |owner, mode, wait| Command::Lock { ino, owner, range, mode, pid: 3, wait };
    vec![
        lock(posix, LockMode::Shared, false),
        lock(flock, LockMode::Exclusive, true),
        lock(posix, LockMode::Unlock, false),
        Command::CancelLock { ino, owner: posix, range },
        Command::ReleaseOwner { ino, owner: flock },
    ]
}

fn about_nodes() -> Vec<Command> {
    let start = NodeStart { instance: 1 << 100, incarnation: 2, run: 3, log_end: LogIndex(4) };
    let holds = NodeHolds { node: 5, run: 6, upto: LogIndex(7) };
    let commands = [NodeCommand::Allocate, NodeCommand::Start { node: 8, start }, NodeCommand::Holds(vec![holds])];
    commands.map(Command::Node).into()
}

#[test]
fn requests_in_old_logs_are_read() {
    let groups = [about_sessions(), about_names(), about_contents(), about_attributes(), about_locks(), about_nodes()];
    let requests: Vec<Request> =
        groups.concat().into_iter().map(|command| request(SessionId(1), 2, 1, USER, command)).collect();
    compare(COMMANDS, &requests);
    for (line, request) in COMMANDS.lines().zip(&requests) {
        assert_eq!(crate::codec::decode("fixture", &unhex(line)).as_ref(), Ok(request));
    }
}

/// A state with something in each of its maps.
fn sample() -> State {
    let mut play = Play::new();
    let directory = play.directory("d");
    let acl = Some(acl::list("u::7 u:5:6 g::5 m::7 o::4"));
    play.run(Command::SetAcl { ino: directory, kind: AclKind::Default, acl, keep_setgid: true }).unwrap();
    let file = play.make_in(directory, "f", NewNode::File);
    play.write(file, 7, 9);
    play.make_in(directory, "l", NewNode::Symlink { target: Bytes::from_static(b"f") });
    let (name, value) = (Bytes::from_static(b"user.a"), Bytes::from_static(b"b"));
    play.run(Command::SetXattr { ino: file, name, value, mode: XattrMode::Any }).unwrap();
    play.run(Command::SetExpiry { ino: directory, expiry: ExpiryChange::After { ns: SECOND } }).unwrap();
    let (owner, range) = (LockOwner::Posix(1), LockRange { start: 0, end: 9 });
    play.run(Command::Lock { ino: file, owner, range, mode: LockMode::Shared, pid: 4, wait: false }).unwrap();
    play.state.set_members(play.state.applied(), &[1, 2]);
    let start = NodeStart { instance: 1, incarnation: 1, run: 1, log_end: LogIndex(0) };
    play.lead(Command::Node(NodeCommand::Start { node: 2, start })).unwrap();
    play.unlink("nothing").unwrap_err();
    play.run(Command::Unlink { parent: directory, name: super::name("f"), expected: Some(file) }).unwrap();
    play.state
}

#[test]
fn old_snapshots_are_read_and_hashes_compare() {
    let state = sample();
    compare(ITEMS, &state.export().collect::<Vec<_>>());
    let mut importer = Importer::new();
    for line in ITEMS.lines() {
        importer.add(crate::codec::decode("fixture", &unhex(line)).unwrap()).unwrap();
    }
    let read = importer.finish().unwrap();
    read.check().unwrap();
    assert_eq!(format!("{:032x}", read.hash()), STATE_HASH);
    assert_eq!(read.hash(), state.hash());
}

#[test]
fn old_replies_are_read() {
    let attributes = sample().attributes(Ino::ROOT).unwrap();
    let replies = [
        Reply::Done,
        Reply::Session(SessionId(1)),
        Reply::Attributes(attributes),
        Reply::Copied(2),
        Reply::Locked { generation: 3 },
        Reply::Waiting,
        Reply::Node(5),
    ];
    let refusals = [
        Refusal::NoSuchName,
        Refusal::NoSuchInode,
        Refusal::NameTaken,
        Refusal::NotDirectory,
        Refusal::IsDirectory,
        Refusal::NotEmpty,
        Refusal::IntoItself,
        Refusal::WrongKind,
        Refusal::TooManyLinks,
        Refusal::FileTooLarge,
        Refusal::NoSpace,
        Refusal::Invalid,
        Refusal::NotPermitted,
        Refusal::NoSuchXattr,
        Refusal::XattrExists,
        Refusal::XattrTooLarge,
        Refusal::XattrsFull,
        Refusal::VersionMismatch { current: LogIndex(4) },
        Refusal::LockConflict,
        Refusal::Deadlock,
        Refusal::TooManyLocks,
        Refusal::Raced,
        Refusal::SessionEnded,
        Refusal::GivenUp,
        Refusal::TooManySessions,
        Refusal::TooManyOutstanding,
        Refusal::Unsupported,
    ];
    let outcomes: Vec<Outcome> = replies.into_iter().map(Ok).chain(refusals.into_iter().map(Err)).collect();
    compare(OUTCOMES, &outcomes);
}
