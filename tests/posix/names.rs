//! Names: who gets one, when it changes hands, what it may be.

use crate::ground::Ground;
use crate::system::{code, rename};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

/// Contenders for one name, half of them on each side.
const CONTENDERS: usize = 8;

/// Holds [A4].
pub fn an_exclusive_create_has_one_winner(ground: &Ground) {
    for round in 0..30 {
        one_winner(ground, &format!("file{round}"), |path, _| {
            OpenOptions::new().write(true).create_new(true).open(path).map(drop)
        });
    }
}

/// Holds [A4].
pub fn other_creations_have_one_winner(ground: &Ground) {
    fs::write(ground.here.join("original"), "").expect("a write");
    for contender in 0..CONTENDERS {
        fs::create_dir(ground.here.join(format!("source{contender}"))).expect("a directory");
    }
    let original = |path: &Path| path.with_file_name("original");
    for round in 0..5 {
        one_winner(ground, &format!("dir{round}"), |path, _| fs::create_dir(path));
        one_winner(ground, &format!("symlink{round}"), |path, _| symlink("x", path));
        one_winner(ground, &format!("link{round}"), |path, _| fs::hard_link(original(path), path));
        one_winner(ground, &format!("moved{round}"), |path, contender| {
            let source = path.with_file_name(format!("source{contender}"));
            // who has won before makes itself a new one
            let _ = fs::create_dir(&source);
            rename(&source, path, libc::RENAME_NOREPLACE).map_err(std::io::Error::from_raw_os_error)
        });
    }
    assert_eq!(fs::metadata(ground.there.join("original")).expect("a stat").nlink(), 6);
}

fn one_winner(ground: &Ground, name: &str, create: impl Fn(&Path, usize) -> std::io::Result<()> + Sync) {
    let start = Barrier::new(CONTENDERS);
    let winners: usize = std::thread::scope(|scope| {
        let contender = |number: usize| {
            let path = if number.is_multiple_of(2) { ground.here.join(name) } else { ground.there.join(name) };
            let (start, create) = (&start, &create);
            scope.spawn(move || {
                start.wait();
                match create(&path, number) {
                    Ok(()) => 1,
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => 0,
                    Err(error) => panic!("{}: {error}", path.display()),
                }
            })
        };
        let contenders: Vec<_> = (0..CONTENDERS).map(contender).collect();
        contenders.into_iter().map(|thread| thread.join().expect("a contender")).sum()
    });
    assert_eq!(winners, 1, "winners of {name}");
}

/// Holds [V4].
pub fn what_was_removed_there_is_missing_here(ground: &Ground) {
    for round in 0..20 {
        let (here, there) = ground.both(&format!("directory{round}"));
        fs::create_dir_all(there.join("below")).expect("directories");
        assert!(here.join("below").is_dir(), "made there, missing here");
        fs::remove_dir(there.join("below")).expect("rmdir");
        fs::remove_dir(&there).expect("rmdir");
        let missing = |outcome: std::io::Result<()>, what: &str| {
            let error = outcome.expect_err(what);
            assert_eq!(error.kind(), ErrorKind::NotFound, "{what}: {error}");
        };
        missing(fs::metadata(here.join("below")).map(drop), "a stat below");
        missing(fs::read_dir(&here).map(drop), "a listing");
        missing(File::create(here.join("file")).map(drop), "a file in it");
        missing(fs::remove_dir(&here), "rmdir again");
        missing(fs::metadata(&here).map(drop), "a stat");
    }
}

/// The reader meets only whole contents, each at least as new as the one before, and never no file.
/// Holds [A3].
pub fn a_replaced_file_is_never_seen_half(ground: &Ground) {
    const LENGTH: usize = 200_000;
    const VERSIONS: u8 = 60;
    let (here, there) = ground.both("current");
    let replace = |version: u8| {
        let next = ground.here.join("next");
        fs::write(&next, vec![version; LENGTH + usize::from(version)]).expect("a write");
        fs::rename(&next, &here).expect("a rename");
    };
    replace(1);
    let over = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut newest, mut reads) = (0, 0);
            while !over.load(Ordering::Relaxed) || newest < VERSIONS {
                let bytes = fs::read(&there).expect("the file is always there");
                let version = bytes.first().copied().unwrap_or_default();
                assert_eq!(bytes.len(), LENGTH + usize::from(version), "a length of another version");
                assert!(bytes.iter().all(|byte| *byte == version), "two versions in one file");
                assert!(version >= newest, "version {version} after {newest}");
                newest = version;
                reads += 1;
            }
            reads
        });
        (2..=VERSIONS).for_each(replace);
        over.store(true, Ordering::Relaxed);
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    ground.note(format!("{reads} reads during {VERSIONS} renames"));
}

/// Holds [A3].
pub fn an_exchange_leaves_no_gap(ground: &Ground) {
    let [(here_a, there_a), (here_b, there_b)] = ["a", "b"].map(|name| ground.both(name));
    fs::write(&here_a, "file").expect("a write");
    fs::create_dir(&here_b).expect("a directory");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                fs::symlink_metadata(&there_a).expect("a is always there");
                fs::symlink_metadata(&there_b).expect("b is always there");
            }
        });
        for _ in 0..51 {
            rename(&here_a, &here_b, libc::RENAME_EXCHANGE).expect("an exchange");
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(there_a.is_dir() && there_b.is_file(), "an odd number of exchanges");
}

pub fn rename_keeps_to_its_flags(ground: &Ground) {
    let at = |name: &str| ground.here.join(name);
    fs::write(at("file"), "file").expect("a write");
    fs::create_dir_all(at("parent/directory")).expect("directories");
    assert_eq!(rename(&at("file"), &at("parent"), libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    assert_eq!(rename(&at("file"), &at("missing"), libc::RENAME_EXCHANGE), Err(libc::ENOENT));
    let both = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE;
    assert_eq!(rename(&at("file"), &at("parent"), both), Err(libc::EINVAL));
    assert_eq!(rename(&at("file"), &at("new"), 1 << 20), Err(libc::EINVAL), "an unknown flag");

    let parent_links = || fs::metadata(ground.there.join("parent")).expect("a stat").nlink();
    let before = parent_links();
    rename(&at("file"), &at("parent/directory"), libc::RENAME_EXCHANGE).expect("an exchange");
    assert!(ground.there.join("file").is_dir());
    assert_eq!(fs::read(ground.there.join("parent/directory")).expect("a read"), b"file");
    // some file systems count no subdirectories and always say 1
    assert_eq!(parent_links(), if before > 1 { before - 1 } else { before }, "the subdirectory has gone");
    whiteout(ground);
}

fn whiteout(ground: &Ground) {
    let [old, new] = ["old", "new"].map(|name| ground.here.join(name));
    fs::write(&old, "").expect("a write");
    match rename(&old, &new, libc::RENAME_WHITEOUT) {
        Ok(()) => {
            let left = fs::symlink_metadata(ground.there.join("old")).expect("what is left behind");
            assert!(left.file_type().is_char_device() && left.rdev() == 0, "a whiteout is the character device 0, 0");
            let (newer, only_if_free) = (ground.here.join("newer"), libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE);
            assert_eq!(rename(&new, &old, only_if_free), Err(libc::EEXIST));
            rename(&new, &newer, only_if_free).expect("a rename that leaves a whiteout and replaces nothing");
            assert!(fs::symlink_metadata(&new).expect("what is left behind").file_type().is_char_device());
            assert!(ground.there.join("newer").is_file());
        }
        Err(libc::EINVAL) => {
            assert!(ground.there.join("old").exists() && !ground.there.join("new").exists());
            ground.note("RENAME_WHITEOUT: EINVAL (so it cannot be the upper layer of an overlay)");
        }
        Err(other) => panic!("RENAME_WHITEOUT: {}", std::io::Error::from_raw_os_error(other)),
    }
}

pub fn hard_links_are_counted(ground: &Ground) {
    let (here, there) = ground.both("file");
    fs::write(&here, "one").expect("a write");
    fs::create_dir(ground.here.join("directory")).expect("a directory");
    let links = || fs::metadata(&there).expect("a stat").nlink();
    for number in 1..=5 {
        let name = if number % 2 == 0 { format!("directory/{number}") } else { number.to_string() };
        fs::hard_link(&here, ground.here.join(&name)).expect("a link");
        assert_eq!(links(), number + 1);
        let other = fs::metadata(ground.there.join(&name)).expect("a stat");
        assert_eq!(other.ino(), fs::metadata(&here).expect("a stat").ino());
    }
    fs::write(ground.there.join("directory/4"), "through another name").expect("a write");
    assert_eq!(fs::read(&here).expect("a read"), b"through another name");
    // to a name of the same inode: nothing happens, and both stay
    fs::rename(ground.here.join("1"), ground.here.join("3")).expect("a rename");
    assert_eq!((links(), ground.there.join("1").exists()), (6, true));
    for (left, name) in [(5, "1"), (4, "directory/2"), (3, "3"), (2, "directory/4"), (1, "5")] {
        fs::remove_file(ground.here.join(name)).expect("an unlink");
        assert_eq!(links(), left);
    }
    let refused =
        fs::hard_link(ground.here.join("directory"), ground.here.join("second")).expect_err("a second parent");
    assert_eq!(code(&refused), libc::EPERM);
}

/// Holds [N6].
pub fn a_name_is_any_255_bytes(ground: &Ground) {
    let long = [b'n'; 255];
    let names: [&[u8]; 6] = [&long, b"\xff\xfe not utf-8", b"new\nline", b" ", b"...", "ü€😀".as_bytes()];
    for name in names {
        let (here, there) = (ground.here.join(OsStr::from_bytes(name)), ground.there.join(OsStr::from_bytes(name)));
        fs::write(&here, name).unwrap_or_else(|e| panic!("{name:?}: {e}"));
        assert_eq!(fs::read(&there).unwrap_or_else(|e| panic!("{name:?}: {e}")), name);
    }
    let mut found: Vec<Vec<u8>> = fs::read_dir(&ground.there)
        .expect("a listing")
        .map(|entry| entry.expect("an entry").file_name().as_bytes().to_vec())
        .collect();
    found.sort();
    let mut expected = names.map(<[u8]>::to_vec);
    expected.sort();
    assert_eq!(found, expected);
    let longer = ground.here.join(OsStr::from_bytes(&[b'n'; 256]));
    for outcome in [fs::write(&longer, ""), fs::create_dir(&longer), fs::metadata(&longer).map(drop)] {
        assert_eq!(code(&outcome.expect_err("256 bytes")), libc::ENAMETOOLONG);
    }
}

/// Holds [N6].
pub fn a_symlink_holds_a_path(ground: &Ground) {
    let (here, there) = ground.both("link");
    let longest = "t".repeat(libc::PATH_MAX as usize - 1);
    symlink(&longest, &here).expect("a target of PATH_MAX - 1 bytes");
    assert_eq!(fs::read_link(&there).expect("the target").as_os_str(), longest.as_str());
    assert_eq!(fs::symlink_metadata(&there).expect("a stat").size(), longest.len() as u64);
    let longer = symlink("t".repeat(libc::PATH_MAX as usize), ground.here.join("longer")).expect_err("PATH_MAX bytes");
    assert_eq!(code(&longer), libc::ENAMETOOLONG);
    let odd = OsStr::from_bytes(b"\xff/\xfe\n");
    symlink(odd, ground.here.join("odd")).expect("a target that is not UTF-8");
    assert_eq!(fs::read_link(ground.there.join("odd")).expect("the target").as_os_str(), odd);
}
