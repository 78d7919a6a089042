//! Files and directories whose name is gone while somebody uses them.

use crate::common::wait_for;
use crate::ground::{Ground, assert_same, content, open, pattern};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// Holds [V2].
pub fn an_unlinked_file_lives_on_both_sides(ground: &Ground) {
    let expected = pattern(300_000, 1);
    let (one, other) = ground.open_on_both("doomed", &expected);
    fs::remove_file(ground.here.join("doomed")).expect("an unlink");
    assert!(!ground.there.join("doomed").exists());
    for (side, file) in [("here", &one), ("there", &other)] {
        assert_eq!(file.metadata().expect("its attributes").nlink(), 0, "links, {side}");
        assert_same(&content(file), &expected, side);
    }
    other.write_all_at(b"changed", 100_000).expect("a write without a name");
    let mut seen = [0; 7];
    one.read_exact_at(&mut seen, 100_000).expect("a read without a name");
    assert_eq!(&seen, b"changed");
    one.set_len(10).expect("a truncation without a name");
    other.set_len(4096).expect("a longer file without a name");
    let mut grown = expected[..10].to_vec();
    grown.resize(4096, 0);
    assert_same(&content(&one), &grown, "cut and grown");
    drop(one);
    assert_same(&content(&other), &grown, "after the other side's close");
}

pub fn a_file_replaced_by_rename_lives_while_it_is_open(ground: &Ground) {
    let (here, there) = ground.both("current");
    fs::write(&here, "old").expect("a write");
    let old = File::open(&there).expect("an open");
    fs::write(ground.here.join("next"), "the new one").expect("a write");
    fs::rename(ground.here.join("next"), &here).expect("a rename");
    assert_eq!(content(&old), b"old");
    assert_eq!(old.metadata().expect("its attributes").nlink(), 0);
    assert_eq!(fs::read(&there).expect("a read"), b"the new one");
}

/// Nothing like `.nfs…` or `.fuse_hidden…`: the directory is empty, and goes.
pub fn an_unlinked_open_file_leaves_no_name_behind(ground: &Ground) {
    let (here, there) = ground.both("directory");
    fs::create_dir(&here).expect("a directory");
    let (one, other) = ground.open_on_both("directory/.hidden", b"here");
    assert_eq!(names(&there), [".hidden"]);
    fs::remove_file(there.join(".hidden")).expect("an unlink");
    assert!(names(&here).is_empty(), "{:?}", names(&here));
    fs::remove_dir(&here).expect("the directory is empty");
    assert_eq!(content(&one), b"here");
    assert_eq!(content(&other), b"here");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

pub fn a_removed_directory_takes_nothing_in(ground: &Ground) {
    let (here, there) = ground.both("directory");
    fs::create_dir(&here).expect("a directory");
    let open = File::open(&there).expect("an open directory");
    fs::remove_dir(&here).expect("rmdir");
    let create = OFlags::CREATE | OFlags::WRONLY;
    let made = rustix::fs::openat(&open, "file", create, Mode::from_raw_mode(0o644));
    assert_eq!(made.err(), Some(Errno::NOENT), "a file in it");
    let made = rustix::fs::mkdirat(&open, "below", Mode::from_raw_mode(0o755));
    assert_eq!(made.err(), Some(Errno::NOENT), "a directory in it");
    let seen = rustix::fs::statat(&open, "file", AtFlags::empty());
    assert_eq!(seen.err(), Some(Errno::NOENT), "a name in it");
    assert_eq!(open.metadata().expect("its attributes").nlink(), 0);
}

/// Where it was removed on another mount, `getcwd` may go on telling the old path: the kernel answers that from memory.
/// Holds [V4].
pub fn a_process_stands_in_a_removed_directory(ground: &Ground) {
    let (here, there) = ground.both("directory");
    fs::create_dir(&here).expect("a directory");
    let script = "echo ready; read -r removed; [ -z \"$(ls)\" ] || exit 3; (: > file) 2> /dev/null && exit 4; \
                  [ -z \"$alone\" ] || ! /bin/pwd -P 2> /dev/null || exit 5; exit 0";
    let mut shell = Command::new("sh");
    shell.env("alone", if ground.is_alone() { "yes" } else { "" });
    shell.args(["-c", script]).current_dir(&there).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = shell.spawn().expect("a shell");
    let mut ready = [0; 6];
    std::io::Read::read_exact(shell.stdout.as_mut().expect("its output"), &mut ready).expect("its word");
    fs::remove_dir(&here).expect("rmdir");
    shell.stdin.as_mut().expect("its input").write_all(b"removed\n").expect("our word");
    let status = shell.wait().expect("its end");
    assert_eq!(status.code(), Some(0), "3: it lists names; 4: it takes a file; 5: it has a path");
}

/// Holds [V3].
pub fn space_comes_back_with_the_last_close(ground: &Ground) {
    let (one, other) = ground.open_on_both("large", &[]);
    one.write_all_at(&pattern(1 << 20, 3), 0).expect("a write");
    let inode = one.metadata().expect("its attributes").ino();
    let before = inodes_used(&ground.here);
    fs::remove_file(ground.there.join("large")).expect("an unlink");
    drop(one);
    assert_eq!(other.metadata().expect("its attributes").ino(), inode);
    drop(other);
    // others may make files of their own on a local file system, so one look may be too late
    wait_for("fewer inodes than before the last close", || {
        let made = open(&ground.here.join("again"));
        drop(made);
        fs::remove_file(ground.here.join("again")).expect("an unlink");
        (inodes_used(&ground.here) < before).then_some(())
    });
}

fn inodes_used(path: &Path) -> u64 {
    let counts = rustix::fs::statvfs(path).expect("statfs");
    counts.f_files - counts.f_ffree
}
