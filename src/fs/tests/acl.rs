//! Access control lists against the words of acl(5), in a notation of their own: `u::7 u:5:6 g::5 g:9:0 m::7 o::4`.

use super::*;
use AclKind::{Access, Default};

/// Entries in the kernel's form.
pub fn encode(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

pub fn list(text: &str) -> Bytes {
    let entry = |word: &str| {
        let (who, permissions) = word.rsplit_once(':').unwrap();
        let (tag, id) = match who.split_once(':').unwrap() {
            ("u", "") => (1, u32::MAX),
            ("u", id) => (2, id.parse().unwrap()),
            ("g", "") => (4, u32::MAX),
            ("g", id) => (8, id.parse().unwrap()),
            ("m", "") => (16, u32::MAX),
            ("o", "") => (32, u32::MAX),
            other => panic!("{other:?}"),
        };
        (tag, permissions.parse().unwrap(), id)
    };
    encode(&text.split(' ').map(entry).collect::<Vec<_>>()).into()
}

impl Play {
    fn set_acl(&mut self, ino: Ino, kind: AclKind, text: &str) -> Outcome {
        self.run(Command::SetAcl { ino, kind, acl: Some(list(text)), keep_setgid: true })
    }

    fn remove_acl(&mut self, ino: Ino, kind: AclKind) -> Outcome {
        self.run(Command::SetAcl { ino, kind, acl: None, keep_setgid: true })
    }

    fn acl(&self, ino: Ino, kind: AclKind) -> Option<Bytes> {
        match self.state.answer(&Query::Xattr { ino, name: Bytes::from_static(kind.name()) }) {
            Ok(Answer::Bytes(bytes)) => Some(bytes),
            Err(Refusal::NoSuchXattr) => None,
            other => panic!("{other:?}"),
        }
    }

    fn make_with(&mut self, parent: Ino, at: &str, node: NewNode, mode: u32, umask: u32) -> Attributes {
        attributes(self.run(Command::Make { parent, name: name(at), node, mode, umask }))
    }

    fn chmod(&mut self, ino: Ino, mode: u32) -> Attributes {
        self.set(ino, AttributeChanges { mode: Some(mode), ..AttributeChanges::default() })
    }
}

#[test]
fn what_is_no_list_is_refused() {
    let mut play = Play::new();
    let (file, directory) = (play.file("f"), play.directory("d"));
    let good = ["u::7 g::5 o::0", "u::7 g::5 m::1 o::0", "u::0 u:5:7 u:4:7 u:4:1 g::0 g:0:7 m::7 o::0"];
    for text in good {
        assert_eq!(play.set_acl(directory, Default, text), Ok(Reply::Done), "{text}");
        assert_eq!(play.acl(directory, Default), Some(list(text)), "{text}");
    }
    let bad = [
        "u::7 g::5",
        "g::5 o::0",
        "u::7 o::0",
        "g::5 u::7 o::0",
        "u::7 u::7 g::5 o::0",
        "u::7 g::5 o::0 o::0",
        "u::7 g::5 o::0 m::7",
        "u::7 g::5 m::7 m::7 o::0",
        "u::7 u:5:7 g::5 o::0",
        "u::7 g::5 g:5:7 o::0",
        "u::7 g::5 u:5:7 m::7 o::0",
        "u::7 g:5:7 g::5 m::7 o::0",
        "u::7 u:4294967295:7 g::5 m::7 o::0",
        "u::8 g::5 o::0",
        "u::7 u:5:8 g::5 m::7 o::0",
        "u::7 g::5 m::64 o::0",
    ];
    let valid = list("u::7 u:5:7 g::5 m::7 o::0").to_vec();
    let mut bad: Vec<Vec<u8>> = bad.iter().map(|text| list(text).to_vec()).collect();
    bad.extend([vec![], vec![2], vec![2, 0, 0, 0], [&valid[..], &[0]].concat(), valid[..valid.len() - 1].to_vec()]);
    bad.extend([[&[1, 0, 0, 0], &valid[4..]].concat(), [&valid[..], &[64, 0, 7, 0, 0, 0, 0, 0]].concat()]);
    for acl in bad {
        let refused =
            play.run(Command::SetAcl { ino: file, kind: Access, acl: Some(acl.clone().into()), keep_setgid: true });
        assert_eq!(refused, Err(Refusal::Invalid), "{acl:?}");
    }
    let many = |count: u32| {
        let named = (0..count).map(|id| (2, 7, id));
        let others = [(4, 0, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
        let entries: Vec<_> = [(1, 7, u32::MAX)].into_iter().chain(named).chain(others).collect();
        Command::SetAcl { ino: file, kind: Access, acl: Some(encode(&entries).into()), keep_setgid: true }
    };
    assert_eq!(play.run(many(507)), Ok(Reply::Done), "a page of the kernel's");
    assert_eq!(play.run(many(508)), Err(Refusal::XattrTooLarge));

    let link = play.make_in(Ino::ROOT, "l", NewNode::Symlink { target: Bytes::from_static(b"f") });
    assert_eq!(play.set_acl(link, Access, good[0]), Err(Refusal::Unsupported));
    assert_eq!(play.set_acl(file, Default, good[0]), Err(Refusal::NotDirectory));
    assert_eq!(play.remove_acl(file, Default), Ok(Reply::Done));
    let (name, value) = (Bytes::from_static(Access.name()), list(good[0]));
    let around = Command::SetXattr { ino: file, name: name.clone(), value, mode: XattrMode::Any };
    assert_eq!(play.run(around), Err(Refusal::Invalid), "the mode would not follow");
    assert_eq!(play.run(Command::RemoveXattr { ino: file, name }), Err(Refusal::Invalid));
}

#[test]
fn an_access_list_and_the_mode_are_one_thing() {
    let mut play = Play::new();
    let file = play.file("f");
    let before = play.stat(file);
    assert_eq!(play.set_acl(file, Access, "u::6 u:5:7 g::4 m::6 o::1"), Ok(Reply::Done));
    let after = play.stat(file);
    assert_eq!(after.mode, 0o661, "the group's bits are the mask's");
    assert!(after.change > before.change && after.ctime > before.ctime);
    assert_eq!((after.version, after.mtime), (before.version, before.mtime));

    assert_eq!(play.chmod(file, 0o750).mode, 0o750);
    assert_eq!(play.acl(file, Access), Some(list("u::7 u:5:7 g::4 m::5 o::0")));
    play.set(file, AttributeChanges { uid: Some(9), ..AttributeChanges::default() });
    assert_eq!(play.acl(file, Access), Some(list("u::7 u:5:7 g::4 m::5 o::0")), "only a mode changes a list");

    assert_eq!(play.remove_acl(file, Access), Ok(Reply::Done));
    assert_eq!((play.acl(file, Access), play.stat(file).mode), (None, 0o750));
    let change = play.stat(file).change;
    assert_eq!(play.remove_acl(file, Access), Ok(Reply::Done), "removing is idempotent");
    assert_eq!(play.stat(file).change, change, "and then changes nothing");

    assert_eq!(play.set_acl(file, Access, "u::6 u:5:7 g::4 m::6 o::1"), Ok(Reply::Done));
    assert_eq!(play.set_acl(file, Access, "u::7 g::1 o::2"), Ok(Reply::Done));
    assert_eq!((play.acl(file, Access), play.stat(file).mode), (None, 0o712), "what a mode can say, the mode says");
}

#[test]
fn an_access_list_costs_the_setgid_bit_of_who_may_not_keep_it() {
    let mut play = Play::new();
    let file = play.file("f");
    for (text, keep_setgid, mode) in [
        ("u::7 u:5:7 g::5 m::7 o::5", true, 0o6775),
        ("u::7 u:5:7 g::5 m::7 o::5", false, 0o4775),
        ("u::7 g::5 o::5", true, 0o6755),
        ("u::7 g::5 o::5", false, 0o4755),
    ] {
        play.chmod(file, 0o6700);
        play.run(Command::SetAcl { ino: file, kind: Access, acl: Some(list(text)), keep_setgid }).unwrap();
        assert_eq!(play.stat(file).mode, mode, "{text}");
    }
    let directory = play.directory("d");
    play.chmod(directory, 0o2755);
    let acl = Some(list("u::7 g::5 o::5"));
    play.run(Command::SetAcl { ino: directory, kind: Default, acl, keep_setgid: false }).unwrap();
    play.run(Command::SetAcl { ino: directory, kind: Access, acl: None, keep_setgid: false }).unwrap();
    assert_eq!(play.stat(directory).mode, 0o2755);
}

#[test]
fn a_default_list_takes_the_umasks_place() {
    let mut play = Play::new();
    let directory = play.directory("d");
    assert_eq!(play.make_with(directory, "plain", NewNode::File, 0o6666, 0o027).mode, 0o6640);
    let default = "u::7 u:5:6 g::5 m::7 o::4";
    play.set_acl(directory, Default, default).unwrap();

    let file = play.make_with(directory, "file", NewNode::File, 0o666, 0o077);
    assert_eq!(file.mode, 0o664);
    assert_eq!(play.acl(file.ino, Access), Some(list("u::6 u:5:6 g::5 m::6 o::4")));
    assert_eq!(play.acl(file.ino, Default), None);
    let fifo = play.make_with(directory, "fifo", NewNode::Fifo, 0o600, 0o077);
    assert_eq!((fifo.mode, play.acl(fifo.ino, Access)), (0o600, Some(list("u::6 u:5:6 g::5 m::0 o::0"))));

    play.chmod(directory, 0o2770);
    let below = play.make_with(directory, "below", NewNode::Directory, 0o777, 0o077);
    assert_eq!(below.mode, 0o2774);
    assert_eq!(play.acl(below.ino, Access), Some(list(default)));
    assert_eq!(play.acl(below.ino, Default), Some(list(default)));

    let link = play.make_with(directory, "link", NewNode::Symlink { target: Bytes::from_static(b"f") }, 0, 0o077);
    assert_eq!((link.mode, play.acl(link.ino, Access)), (0o777, None));
    let (parent, name, expected, expiry) = (directory, name("put"), Expected::Anything, ExpiryChange::Keep);
    let put = attributes(play.run(Command::Put { parent, name, expected, expiry, mode: 0o644, length: 0 }));
    assert_eq!((put.mode, play.acl(put.ino, Access)), (0o644, Some(list("u::6 u:5:6 g::5 m::4 o::4"))));

    play.set_acl(directory, Default, "u::7 g::5 o::0").unwrap();
    let bounded = play.make_with(directory, "bounded", NewNode::File, 0o666, 0o777);
    assert_eq!((bounded.mode, play.acl(bounded.ino, Access)), (0o640, None));
    let deeper = play.make_with(directory, "deeper", NewNode::Directory, 0o777, 0o777);
    assert_eq!(play.acl(deeper.ino, Default), Some(list("u::7 g::5 o::0")));
}

#[test]
fn a_full_inode_refuses_a_list_and_keeps_its_mode() {
    let mut play = Play::new();
    let file = play.file("f");
    for (at, length) in [(1, 65_000), (2, 66_000 - 500)] {
        let (name, value) = (Bytes::from(format!("user.{at}")), Bytes::from(vec![b'x'; length]));
        play.run(Command::SetXattr { ino: file, name, value, mode: XattrMode::Any }).unwrap();
    }
    let long = format!("u::7 {}g::7 m::7 o::7", (0..80).map(|id| format!("u:{id}:7 ")).collect::<String>());
    assert_eq!(play.set_acl(file, Access, &long), Err(Refusal::XattrsFull));
    assert_eq!((play.stat(file).mode, play.acl(file, Access)), (0o755, None));
    assert_eq!(play.set_acl(file, Access, "u::1 g::2 o::4"), Ok(Reply::Done), "a mode needs no room");
    assert_eq!(play.stat(file).mode, 0o124);
}
