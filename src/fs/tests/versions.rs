use super::*;

fn cas(ino: Ino, expected: u64) -> Command {
    Command::Replace { ino, expected: LogIndex(expected), expiry: ExpiryChange::Keep, length: 3 }
}

fn put(at: &str, expected: Expected) -> Command {
    Command::Put { parent: Ino::ROOT, name: name(at), expected, expiry: ExpiryChange::Clear, mode: 0o644, length: 3 }
}

#[test]
fn the_version_is_that_of_the_content() {
    let mut play = Play::new();
    let file = play.file("f");
    let written = play.write(file, 0, 10);
    assert_eq!((written.version.0, written.change.0), (play.index, play.index));
    let amended = play.set(file, AttributeChanges { mode: Some(0o600), ..Default::default() });
    assert_eq!((amended.version, amended.change.0), (written.version, play.index));
    play.run(Command::SetExpiry { ino: file, expiry: ExpiryChange::After { ns: SECOND } }).unwrap();
    let renewed = play.stat(file);
    assert_eq!((renewed.version, renewed.change.0), (written.version, play.index));
    let same = play.set(file, AttributeChanges { size: Some(10), ..Default::default() });
    assert_eq!(same.version, written.version, "the same size is the same content");
    assert!(same.mtime > written.mtime);
    assert_eq!(play.write(file, 5, 0), same, "writing nothing changes nothing");
}

#[test]
fn of_those_who_saw_one_version_one_wins() {
    let mut play = Play::new();
    let file = play.file("f");
    let seen = play.stat(file).version.0;
    let won = attributes(play.run(cas(file, seen)));
    assert_eq!(won.size, 3);
    assert_eq!(play.run(cas(file, seen)), Err(Refusal::VersionMismatch { current: won.version }));
    assert_eq!(play.run(cas(file, 0)), Err(Refusal::NameTaken));
    assert_eq!(play.run(put("f", Expected::Version(LogIndex(0)))), Err(Refusal::NameTaken));
    assert_eq!(play.run(put("g", Expected::Version(LogIndex(7)))), Err(Refusal::NoSuchName));
    assert_eq!(attributes(play.run(put("f", Expected::Version(won.version)))).ino, file);
    assert_eq!(attributes(play.run(put("g", Expected::Version(LogIndex(0))))).version.0, play.index);
}

#[test]
fn the_version_at_a_name_does_not_go_back_while_something_is_there() {
    let mut play = Play::new();
    let old = play.file("old");
    let current = play.file("current");
    let before = play.write(current, 0, 1).version;
    assert!(play.stat(old).version < before);
    play.rename((Ino::ROOT, "old"), (Ino::ROOT, "current"), RenameMode::Replace).unwrap();
    assert_eq!(play.at("current").unwrap().version.0, play.index);
    let unmoved = play.file("x");
    let version = play.stat(unmoved).version;
    play.rename((Ino::ROOT, "x"), (Ino::ROOT, "y"), RenameMode::Replace).unwrap();
    assert_eq!(play.stat(unmoved).version, version, "a free name had no version that could go back");
}

#[test]
fn no_two_files_have_one_version() {
    let mut play = Play::new();
    let (a, b) = (play.file("a"), play.file("b"));
    let older = play.stat(a).version;
    play.rename((Ino::ROOT, "a"), (Ino::ROOT, "b"), RenameMode::Exchange).unwrap();
    let (at_a, at_b) = (play.at("a").unwrap(), play.at("b").unwrap());
    assert_eq!((at_a.ino, at_b.ino), (b, a));
    assert!(at_a.version > older && at_b.version > at_a.version, "at neither name does it go back");

    let seen = at_b.version;
    play.unlink("b").unwrap();
    play.rename((Ino::ROOT, "a"), (Ino::ROOT, "b"), RenameMode::Replace).unwrap();
    assert_ne!(play.at("b").unwrap().version, seen, "who has seen one of them knows nothing of the other");
    play.rename((Ino::ROOT, "b"), (Ino::ROOT, "a"), RenameMode::Replace).unwrap();
    let (c, older) = (play.file("c"), play.at("a").unwrap().version);
    let newer = play.stat(c).version;
    play.rename((Ino::ROOT, "c"), (Ino::ROOT, "a"), RenameMode::Exchange).unwrap();
    assert_eq!((play.stat(b).version.0, play.stat(c).version), (play.index, newer), "in either direction");
    assert!(older < newer);
}

#[test]
fn replace_if_guards_one_rename() {
    let mut play = Play::new();
    let target = play.file("f");
    let seen = play.stat(target).version;
    let draft = play.file("draft");
    let condition = |version| Command::SetReplaceIf { ino: draft, version: Some(version) };
    let mv = |play: &mut Play, to: &str| play.rename((Ino::ROOT, "draft"), (Ino::ROOT, to), RenameMode::Replace);

    play.run(condition(seen)).unwrap();
    let current = play.write(target, 0, 1).version;
    assert_eq!(mv(&mut play, "f"), Err(Refusal::VersionMismatch { current }));
    assert_eq!(mv(&mut play, "elsewhere"), Err(Refusal::NoSuchName));
    assert_eq!(play.xattr(draft, "user.keelfs.replace-if"), Ok(seen.0.to_string()), "a refusal does not consume it");
    play.run(condition(LogIndex(0))).unwrap();
    assert_eq!(mv(&mut play, "f"), Err(Refusal::NameTaken));
    play.run(condition(current)).unwrap();
    assert_eq!(mv(&mut play, "f"), Ok(()));
    assert_eq!(play.xattr(draft, "user.keelfs.replace-if"), Err(Refusal::NoSuchXattr));
    assert_eq!(play.at("f").unwrap().ino, draft);
}

#[test]
fn times_of_changes_strictly_rise_even_if_the_wall_clock_does_not() {
    let mut play = Play::new();
    let file = play.file("f");
    let stamp = |index, seconds| Stamp {
        index: LogIndex(index),
        cluster: ClusterTime(0),
        wall: Timestamp { seconds, nanos: u32::MAX },
    };
    let mut last = play.stat(file).mtime;
    for (index, seconds) in [(100, 50), (101, i64::MIN), (102, 2_000_000), (103, 2_000_000)] {
        let command = Command::Write { ino: file, offset: 0, length: 1 };
        let written = play.state.apply(stamp(index, seconds), &request(play.session, index, index, USER, command), 1);
        let mtime = attributes(written).mtime;
        assert!(mtime > last && mtime.nanos < 1_000_000_000);
        last = mtime;
    }
    let again = play.state.apply(stamp(103, 3_000_000), &request(SessionId(0), 0, 0, USER, Command::Tick), 0);
    assert_eq!(again, Err(Refusal::Invalid), "an index is applied once");
}

#[test]
fn a_body_of_another_length_is_refused() {
    let mut play = Play::new();
    let file = play.file("f");
    let before = tree(&play.state);
    let write = request(play.session, 10, 1, USER, Command::Write { ino: file, offset: 0, length: 4 });
    assert_eq!(play.put(&write, 5), Err(Refusal::Invalid));
    let make = Command::Make { parent: Ino::ROOT, name: name("g"), node: NewNode::File, mode: 0, umask: 0 };
    assert_eq!(play.put(&request(play.session, 11, 1, USER, make), 1), Err(Refusal::Invalid));
    assert_eq!(tree(&play.state), before);
}

#[test]
fn virtual_attributes_say_what_the_inode_knows() {
    let mut play = Play::new();
    let file = play.file("f");
    play.run(Command::SetExpiry { ino: file, expiry: ExpiryChange::After { ns: 30 * SECOND } }).unwrap();
    assert_eq!(play.xattr(file, "user.keelfs.ttl"), Ok("30".into()));
    play.now += 100_000_000;
    play.lead(Command::Tick).unwrap();
    assert_eq!(play.xattr(file, "keelfs.ttl"), Ok("30".into()), "rounded up");
    play.run(Command::SetExpiry { ino: file, expiry: ExpiryChange::At { unix_seconds: 1_000_060 } }).unwrap();
    assert_eq!(play.xattr(file, "user.keelfs.expires"), Ok("1000060".into()));
    assert_eq!(play.xattr(file, "user.keelfs.cas"), Err(Refusal::NoSuchXattr));
    assert_eq!(play.xattr(file, "user.keelfs.nonsense"), Err(Refusal::Invalid));
    assert_eq!(play.xattr(file, "user.keelfs.owner"), Ok(format!("test session {}", play.session.0)));
    let info: serde_json::Value = serde_json::from_str(&play.xattr(file, "user.keelfs.info").unwrap()).unwrap();
    assert_eq!(info["version"], play.stat(file).version.0);
    assert_eq!(info["default-ttl"], serde_json::Value::Null);
}
