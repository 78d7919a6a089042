use super::*;

const REPLACE: RenameMode = RenameMode::Replace;
const EXCHANGE: RenameMode = RenameMode::Exchange;

#[test]
fn a_directory_never_comes_to_lie_below_itself() {
    let mut play = Play::new();
    let a = play.directory("a");
    let b = play.make_in(a, "b", NewNode::Directory);
    play.make_in(b, "c", NewNode::Directory);
    assert_eq!(play.rename((Ino::ROOT, "a"), (b, "x"), REPLACE), Err(Refusal::IntoItself));
    assert_eq!(play.rename((Ino::ROOT, "a"), (a, "x"), REPLACE), Err(Refusal::IntoItself));
    assert_eq!(play.rename((Ino::ROOT, "a"), (b, "c"), EXCHANGE), Err(Refusal::IntoItself));
    assert_eq!(play.rename((b, "c"), (Ino::ROOT, "a"), EXCHANGE), Err(Refusal::IntoItself));
    assert_eq!(play.rename((b, "c"), (Ino::ROOT, "a"), REPLACE), Err(Refusal::NotEmpty));
    assert_eq!(play.rename((a, "b"), (Ino::ROOT, "b"), REPLACE), Ok(()));
    assert_eq!((play.stat(Ino::ROOT).nlink, play.stat(a).nlink, play.stat(b).nlink), (4, 2, 3));
}

#[test]
fn rename_obeys_the_kinds_of_what_it_meets() {
    let mut play = Play::new();
    let (directory, other) = (play.directory("d"), play.directory("e"));
    let file = play.file("f");
    play.make_in(other, "inside", NewNode::File);
    assert_eq!(play.rename((Ino::ROOT, "d"), (Ino::ROOT, "f"), REPLACE), Err(Refusal::NotDirectory));
    assert_eq!(play.rename((Ino::ROOT, "f"), (Ino::ROOT, "d"), REPLACE), Err(Refusal::IsDirectory));
    assert_eq!(play.rename((Ino::ROOT, "d"), (Ino::ROOT, "e"), REPLACE), Err(Refusal::NotEmpty));
    assert_eq!(play.rename((Ino::ROOT, "f"), (Ino::ROOT, "d"), RenameMode::NoReplace), Err(Refusal::NameTaken));
    assert_eq!(play.rename((Ino::ROOT, "f"), (Ino::ROOT, "no"), EXCHANGE), Err(Refusal::NoSuchName));
    assert_eq!(play.rename((Ino::ROOT, "no"), (Ino::ROOT, "f"), REPLACE), Err(Refusal::NoSuchName));
    assert_eq!(play.rename((Ino::ROOT, "f"), (other, "d"), EXCHANGE), Err(Refusal::NoSuchName));
    assert_eq!(play.rename((Ino::ROOT, "f"), (Ino::ROOT, "d"), EXCHANGE), Ok(()));
    assert_eq!((play.at("d").unwrap().ino, play.at("f").unwrap().ino), (file, directory));
    assert_eq!(play.rename((Ino::ROOT, "f"), (other, "inside"), EXCHANGE), Ok(()));
    assert_eq!((play.stat(Ino::ROOT).nlink, play.stat(other).nlink), (3, 3));
}

#[test]
fn two_names_of_one_inode_are_not_renamed_onto_each_other() {
    let mut play = Play::new();
    let file = play.file("f");
    attributes(play.run(Command::Link { ino: file, parent: Ino::ROOT, name: name("g") }));
    let before = tree(&play.state);
    assert_eq!(play.rename((Ino::ROOT, "f"), (Ino::ROOT, "g"), REPLACE), Ok(()));
    assert_eq!(tree(&play.state), before, "POSIX: nothing happens, both names stay");
    assert_eq!(play.rename((Ino::ROOT, "f"), (Ino::ROOT, "g"), RenameMode::NoReplace), Err(Refusal::NameTaken));
}

/// Holds [N6].
#[test]
fn a_file_has_so_many_names_and_no_more() {
    let mut play = Play::new();
    let file = play.file("0");
    let link = |play: &mut Play, number: u32| {
        play.run_unchecked(Command::Link { ino: file, parent: Ino::ROOT, name: name(&number.to_string()) })
    };
    for number in 1..65_000 {
        assert_eq!(attributes(link(&mut play, number)).nlink, number + 1);
    }
    assert_eq!(link(&mut play, 65_000), Err(Refusal::TooManyLinks));
    play.unlink("7").unwrap();
    assert_eq!(attributes(link(&mut play, 65_000)).nlink, 65_000);
}

#[test]
fn a_name_that_means_something_else_by_now_is_left_alone() {
    let mut play = Play::new();
    let (old, new) = (play.file("old"), play.file("new"));
    let (of_new, of_old) = (place((Ino::ROOT, "new")), place((Ino::ROOT, "old")));
    let unlink = |at: &str, seen| Command::Unlink { parent: Ino::ROOT, name: name(at), expected: Some(seen) };
    assert_eq!(play.run(unlink("new", old)), Err(Refusal::Raced));
    assert_eq!(play.run(unlink("gone", old)), Err(Refusal::NoSuchName));
    let mut rename = |moved, replaced| {
        let (from, to, mode) = (of_new.clone(), of_old.clone(), RenameMode::Replace);
        play.run(Command::Rename { from, to, mode, moved, replaced }).map(drop)
    };
    assert_eq!(rename(Some(old), None), Err(Refusal::Raced));
    assert_eq!(rename(Some(new), Some(None)), Err(Refusal::Raced));
    assert_eq!(rename(Some(new), Some(Some(new))), Err(Refusal::Raced));
    assert_eq!(rename(Some(new), Some(Some(old))), Ok(()));
    assert_eq!(play.at("old").unwrap().ino, new);
}

#[test]
fn a_setgid_directory_hands_its_group_on() {
    let mut play = Play::new();
    let shared = play.directory("shared");
    play.set(shared, AttributeChanges { mode: Some(0o2775), gid: Some(7), ..Default::default() });
    play.who = USER;
    let file = play.make_in(shared, "f", NewNode::File);
    let sub = play.make_in(shared, "d", NewNode::Directory);
    assert_eq!((play.stat(file).gid, play.stat(file).mode), (7, 0o755));
    assert_eq!((play.stat(sub).gid, play.stat(sub).mode), (7, 0o2755));
    assert_eq!(play.stat(sub).uid, USER.uid);
}

#[test]
fn what_changes_a_file_takes_its_setuid_bit() {
    let mut play = Play::new();
    let file = play.file("f");
    let set_bits = |play: &mut Play| {
        play.set(file, AttributeChanges { mode: Some(0o6755), ..Default::default() });
    };
    set_bits(&mut play);
    assert_eq!(play.write(file, 0, 10).mode, 0o6755, "root may");
    play.who = USER;
    assert_eq!(play.write(file, 0, 10).mode, 0o755);
    set_bits(&mut play);
    assert_eq!(play.set(file, AttributeChanges { size: Some(1), ..Default::default() }).mode, 0o755);
    play.who = Credentials::default();
    set_bits(&mut play);
    assert_eq!(play.set(file, AttributeChanges { uid: Some(1), ..Default::default() }).mode, 0o755, "even root");
    play.set(file, AttributeChanges { mode: Some(0o6745), ..Default::default() });
    assert_eq!(play.set(file, AttributeChanges { gid: Some(1), ..Default::default() }).mode, 0o2745, "not executable");
}

#[test]
fn a_walk_sees_each_entry_once_whatever_happens_meanwhile() {
    let mut play = Play::new();
    for at in ["a", "b", "c"] {
        play.file(at);
    }
    assert_eq!(play.names(Ino::ROOT), [("a".into(), 1), ("b".into(), 2), ("c".into(), 3)]);
    play.rename((Ino::ROOT, "a"), (Ino::ROOT, "z"), REPLACE).unwrap();
    play.rename((Ino::ROOT, "b"), (Ino::ROOT, "c"), REPLACE).unwrap();
    assert_eq!(play.names(Ino::ROOT), [("c".into(), 3), ("z".into(), 4)]);
}

#[test]
fn a_removed_directory_takes_no_entries() {
    let mut play = Play::new();
    let directory = play.directory("d");
    let file = play.file("f");
    play.run(Command::RemoveDirectory { parent: Ino::ROOT, name: name("d"), expected: None }).unwrap();
    let make = Command::Make { parent: directory, name: name("x"), node: NewNode::File, mode: 0o644, umask: 0 };
    assert_eq!(play.run(make), Err(Refusal::NoSuchName));
    assert_eq!(play.rename((Ino::ROOT, "f"), (directory, "x"), REPLACE), Err(Refusal::NoSuchName));
    let link = Command::Link { ino: file, parent: directory, name: name("x") };
    assert_eq!(play.run(link), Err(Refusal::NoSuchName));
}

#[test]
fn paths_are_walked_as_they_are_written() {
    let mut play = Play::new();
    let directory = play.directory("d");
    let inside = play.make_in(directory, "f", NewNode::File);
    for path in ["/d/f", "d//./f", "/../d/../d/f"] {
        assert_eq!(play.at(path).unwrap().ino, inside, "{path}");
    }
    assert_eq!(play.at("/d/f/").unwrap_err(), Refusal::NotDirectory);
    assert_eq!(play.at("/d/g").unwrap_err(), Refusal::NoSuchName);
    assert_eq!(play.at("/").unwrap().ino, Ino::ROOT);
}

#[test]
fn attributes_are_kept_within_their_bounds() {
    let mut play = Play::new();
    let file = play.file("f");
    let mut set = |name: &str, length: usize, mode| {
        let (name, value) = (Bytes::copy_from_slice(name.as_bytes()), Bytes::from(vec![1; length]));
        play.run(Command::SetXattr { ino: file, name, value, mode })
    };
    assert_eq!(set("user.a", 10, XattrMode::Replace), Err(Refusal::NoSuchXattr));
    assert_eq!(set("user.a", 10, XattrMode::Create), Ok(Reply::Done));
    assert_eq!(set("user.a", 10, XattrMode::Create), Err(Refusal::XattrExists));
    assert_eq!(set("user.b", 65_537, XattrMode::Any), Err(Refusal::XattrTooLarge));
    assert_eq!(set("user.b", 65_536, XattrMode::Any), Ok(Reply::Done));
    assert_eq!(set("user.c", 65_536, XattrMode::Any), Err(Refusal::XattrsFull));
    assert_eq!(set("user.b", 1, XattrMode::Any), Ok(Reply::Done));
    assert_eq!(set("user.c", 65_536, XattrMode::Any), Ok(Reply::Done));
    assert_eq!(set("user.keelfs.version", 1, XattrMode::Any), Err(Refusal::Invalid));
    let listed = play.state.answer(&Query::ListXattrs { ino: file });
    assert_eq!(listed, Ok(Answer::Bytes(Bytes::from_static(b"user.a\0user.b\0user.c\0"))));
}
