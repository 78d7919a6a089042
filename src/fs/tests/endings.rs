use super::*;
use crate::limits::SESSION_TTL_NS;

fn expire_after(ino: Ino, seconds: u64) -> Command {
    Command::SetExpiry { ino, expiry: ExpiryChange::After { ns: seconds * SECOND } }
}

#[test]
fn nothing_ends_early_and_what_was_renewed_stays() {
    let mut play = Play::new();
    let file = play.file("f");
    play.run(expire_after(file, 10)).unwrap();
    let deadline = play.state.next_deadline().unwrap();
    assert_eq!(play.state.due(ClusterTime(deadline.0 - 1), 10), []);
    let expire = Command::Expire { ino: file, deadline };
    assert_eq!(play.state.due(deadline, 10), std::slice::from_ref(&expire));
    play.lead(expire.clone()).unwrap();
    assert!(play.at("f").is_ok(), "proposed too early: cluster time has not come so far");
    play.now = deadline.0;
    play.run(expire_after(file, 10)).unwrap();
    play.lead(expire).unwrap();
    assert!(play.at("f").is_ok(), "renewed while the removal was on its way");
    play.expire_until(play.now + 10 * SECOND);
    assert_eq!(play.at("f"), Err(Refusal::NoSuchName));
}

/// One leader's wall clock is an hour ahead, for one entry. Times of changes stay ahead; deadlines that are named as wall
/// times go by the clocks of those who lead afterwards.
#[test]
fn a_wrong_wall_clock_shortens_no_life_that_is_set_after_it() {
    let mut play = Play::new();
    let file = play.file("f");
    let mut ahead = play.stamp();
    ahead.wall.seconds += 3600;
    play.state.apply(ahead, &request(SessionId(0), 0, 0, USER, Command::Tick), 0).unwrap();
    play.run(Command::SetExpiry { ino: file, expiry: ExpiryChange::At { unix_seconds: 1_000_600 } }).unwrap();
    assert_eq!(play.xattr(file, "user.keelfs.ttl"), Ok("600".into()));
    assert_eq!(play.xattr(file, "user.keelfs.expires"), Ok("1000600".into()));
    assert!(play.stat(file).ctime >= ahead.wall, "times of changes never go back");
    play.expire_until(599 * SECOND);
    assert!(play.at("f").is_ok());
    play.expire_until(600 * SECOND);
    assert_eq!(play.at("f"), Err(Refusal::NoSuchName));
}

/// Found by chaos (torn, seed 1005): whoever had looked the file up before it ended was told that it was renewed.
#[test]
fn what_has_ended_is_neither_renewed_nor_replaced() {
    let mut play = Play::new();
    let file = play.file("f");
    play.run(expire_after(file, 1)).unwrap();
    play.expire_until(play.now + SECOND);
    assert_eq!(play.run(expire_after(file, 1)), Err(Refusal::NoSuchInode));
    let ephemeral = |ephemeral| Command::SetEphemeral { ino: file, ephemeral };
    assert_eq!(play.run(ephemeral(true)), Err(Refusal::NoSuchInode));
    assert_eq!(play.run(ephemeral(false)), Ok(Reply::Done));
    let version = play.stat(file).version;
    let cas = Command::Replace { ino: file, expected: version, expiry: ExpiryChange::Keep, length: 0 };
    assert_eq!(
        play.run(cas),
        Err(Refusal::NoSuchInode),
        "it lives on for those who have it open, and not under its name"
    );
}

#[test]
fn all_names_of_a_file_end_together() {
    let mut play = Play::new();
    let directory = play.directory("d");
    let file = play.file("f");
    attributes(play.run(Command::Link { ino: file, parent: directory, name: name("g") }));
    play.run(expire_after(file, 1)).unwrap();
    play.expire_until(play.now + SECOND);
    assert_eq!((play.names(Ino::ROOT).len(), play.names(directory).len()), (1, 0));
    assert_eq!(play.stat(directory).version.0, play.index);
}

#[test]
fn a_directory_ends_when_it_is_empty() {
    let mut play = Play::new();
    let directory = play.directory("d");
    play.make_in(directory, "f", NewNode::File);
    play.run(expire_after(directory, 1)).unwrap();
    assert_eq!(play.state.due(ClusterTime(u64::MAX), 10).len(), 1, "only the session: a leader need not try");
    play.now += 2 * SECOND;
    play.run(Command::Unlink { parent: directory, name: name("f"), expected: None }).unwrap();
    play.expire_until(play.now);
    assert_eq!(play.at("d"), Err(Refusal::NoSuchName));
}

#[test]
fn a_default_ttl_is_given_to_what_is_made_and_not_again() {
    let mut play = Play::new();
    let directory = play.directory("d");
    let older = play.make_in(directory, "older", NewNode::File);
    play.run(Command::SetDefaultTtl { ino: directory, ttl_ns: Some(5 * SECOND) }).unwrap();
    let made = play.make_in(directory, "made", NewNode::File);
    let put = |at: &str, expiry| {
        let (parent, name, expected) = (directory, name(at), Expected::Anything);
        Command::Put { parent, name, expected, expiry, mode: 0o644, length: 1 }
    };
    let plain = attributes(play.run(put("plain", ExpiryChange::Clear))).ino;
    let own = attributes(play.run(put("own", ExpiryChange::After { ns: 9 * SECOND }))).ino;
    let ttl = |play: &Play, ino| play.xattr(ino, "user.keelfs.ttl");
    assert_eq!(ttl(&play, older), Err(Refusal::NoSuchXattr));
    assert_eq!([made, plain, own].map(|ino| ttl(&play, ino).unwrap()), ["5", "5", "9"]);
    play.write(made, 0, 1);
    assert!(ttl(&play, made).is_ok(), "a plain write keeps it");
    attributes(play.run(put("made", ExpiryChange::Clear)));
    assert_eq!(ttl(&play, made), Err(Refusal::NoSuchXattr));
}

#[test]
fn what_is_open_somewhere_outlives_its_name() {
    let mut play = Play::new();
    let file = play.file("f");
    let written = play.write(file, 0, 100).version;
    let (xattr, value) = (Bytes::from_static(b"user.a"), Bytes::from_static(b"b"));
    play.run(Command::SetXattr { ino: file, name: xattr, value, mode: XattrMode::Any }).unwrap();
    let (owner, range) = (LockOwner::Posix(1), LockRange { start: 0, end: 0 });
    play.run(Command::Lock { ino: file, owner, range, mode: LockMode::Exclusive, pid: 1, wait: false }).unwrap();
    let other = play.open_session();
    play.unlink("f").unwrap();
    assert_eq!(play.stat(file).nlink, 0);
    let link = Command::Link { ino: file, parent: Ino::ROOT, name: name("back") };
    assert_eq!(play.run(link), Err(Refusal::NoSuchName), "an orphan gets no name again");
    assert_eq!(play.write(file, 100, 1).size, 101);
    assert_eq!(play.state.orphans_of(other, Ino(0), 10), [file]);
    assert_eq!(play.state.orphans_of(other, file, 10), [], "the next page");
    let late = play.open_session();
    assert_eq!(play.state.orphans_of(late, Ino(0), 10), [], "who came later cannot have it open");
    play.run(Command::KeepAlive { closed: vec![file] }).unwrap();
    assert!(play.state.refers_to(written));
    play.put(&request(other, 1, 1, USER, Command::KeepAlive { closed: vec![file, Ino(99)] }), 0).unwrap();
    assert_eq!(play.state.attributes(file), Err(Refusal::NoSuchInode));
    assert_eq!(play.state.live_bodies(LogIndex(0)).count(), 0);
}

#[test]
fn with_a_session_end_its_locks_holds_and_ephemeral_files() {
    let mut play = Play::new();
    let guarded = play.file("guarded");
    let (mine, theirs) = (play.session, play.open_session());
    let lock = |wait| Command::Lock {
        ino: guarded,
        owner: LockOwner::Flock(1),
        range: LockRange { start: 0, end: u64::MAX },
        mode: LockMode::Exclusive,
        pid: 1,
        wait,
    };
    assert_eq!(play.run(lock(false)), Ok(Reply::Locked { generation: 1 }));
    assert_eq!(play.put(&request(theirs, 1, 1, USER, lock(true)), 0), Ok(Reply::Waiting));
    let directory = play.directory("d");
    let inside = play.make_in(directory, "inside", NewNode::File);
    let kept = play.make_in(directory, "kept", NewNode::File);
    for ino in [directory, inside] {
        play.run(Command::SetEphemeral { ino, ephemeral: true }).unwrap();
    }
    assert_eq!(play.run(Command::CloseSession), Ok(Reply::Done));
    assert_eq!(play.run(Command::KeepAlive { closed: vec![] }), Err(Refusal::SessionEnded));
    let standing = Query::LockStanding {
        ino: guarded,
        session: theirs,
        owner: LockOwner::Flock(1),
        range: LockRange { start: 0, end: u64::MAX },
    };
    assert_eq!(play.state.answer(&standing), Ok(Answer::LockStanding(LockStanding::Held { generation: 2 })));
    assert_eq!(play.at("d/inside"), Err(Refusal::NoSuchName));
    assert_eq!(play.state.orphans_of(mine, Ino(0), 10), []);
    assert_eq!(play.at("d/kept").unwrap().ino, kept, "a directory goes when it is empty");
    let unlink = Command::Unlink { parent: directory, name: name("kept"), expected: None };
    play.put(&request(theirs, 2, 2, USER, unlink), 0).unwrap();
    play.expire_until(play.now);
    assert_eq!(play.at("d"), Err(Refusal::NoSuchName));
}

#[test]
fn more_ephemeral_files_than_one_entry_removes_expire_at_once() {
    let mut play = Play::new();
    let most = crate::limits::EPHEMERAL_NAMES_AT_ONCE_MAX as usize;
    for number in 0..most + 70 {
        let (node, name) = (NewNode::File, name(&number.to_string()));
        let made = play.run_unchecked(Command::Make { parent: Ino::ROOT, name, node, mode: 0, umask: 0 });
        let ino = attributes(made).ino;
        play.run_unchecked(Command::SetEphemeral { ino, ephemeral: true }).unwrap();
    }
    play.run(Command::CloseSession).unwrap();
    assert_eq!(play.state.dentries.len(), 70);
    play.expire_until(play.now);
    assert_eq!(play.state.dentries.len(), 0);
}

#[test]
fn only_silence_ends_a_session() {
    let mut play = Play::new();
    let due = play.state.next_deadline().unwrap();
    let end = play.state.due(due, 10).remove(0);
    play.now = due.0;
    play.run(Command::KeepAlive { closed: vec![] }).unwrap();
    play.lead(end).unwrap();
    assert!(play.state.session_exists(play.session), "it was heard from in between");
    play.expire_until(play.now + SESSION_TTL_NS);
    assert!(!play.state.session_exists(play.session));
}
