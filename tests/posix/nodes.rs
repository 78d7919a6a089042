//! What is not a plain file with a name: pipes, sockets, devices, running programs, files without names; and who is told
//! of changes.

use crate::ground::Ground;
use crate::system::code;
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, CWD, FileType, Mode, StatVfsMountFlags, linkat, makedev, mknodat};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub fn a_fifo_carries_bytes(ground: &Ground) {
    let (here, there) = ground.both("fifo");
    mknodat(CWD, &here, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a fifo");
    assert!(fs::symlink_metadata(&there).expect("a stat").file_type().is_fifo());
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&here, "through the pipe").expect("a write"));
        assert_eq!(fs::read_to_string(&here).expect("a read"), "through the pipe");
    });
    assert_eq!(fs::symlink_metadata(&there).expect("a stat").len(), 0, "nothing of it is stored");
}

pub fn a_socket_takes_connections(ground: &Ground) {
    // a socket's path may be 108 bytes long, a directory's any length
    let directory = File::open(&ground.here).expect("the directory");
    let path = PathBuf::from(format!("/proc/self/fd/{}/socket", directory.as_raw_fd()));
    let listener = UnixListener::bind(&path).expect("a socket");
    assert!(fs::symlink_metadata(ground.there.join("socket")).expect("a stat").file_type().is_socket());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = listener.accept().expect("a connection");
            peer.write_all(b"hello").expect("a word");
        });
        let mut word = String::new();
        let mut socket = UnixStream::connect(&path).expect("a connection");
        socket.read_to_string(&mut word).expect("a word");
        assert_eq!(word, "hello");
    });
    if !ground.is_alone() {
        let other = File::open(&ground.there).expect("the directory");
        let refused = UnixStream::connect(format!("/proc/self/fd/{}/socket", other.as_raw_fd()));
        let kind = refused.expect_err("who listens is on the other mount").kind();
        assert_eq!(kind, ErrorKind::ConnectionRefused);
    }
}

/// Holds [N5].
pub fn devices_are_stored(ground: &Ground) {
    if !rustix::process::geteuid().is_root() {
        return ground.skip("only root makes device nodes");
    }
    let (here, there) = ground.both("null");
    let (mode, number) = (Mode::from_raw_mode(0o666), makedev(1, 3));
    mknodat(CWD, &here, FileType::CharacterDevice, mode, number).expect("a device node");
    let seen = fs::symlink_metadata(&there).expect("a stat");
    assert!(seen.file_type().is_char_device() && seen.rdev() == number);
    let large = makedev(4000, 1_000_000);
    mknodat(CWD, ground.here.join("large"), FileType::BlockDevice, mode, large).expect("a large number");
    assert_eq!(fs::symlink_metadata(ground.there.join("large")).expect("a stat").rdev(), large);
    let opened = File::open(&there);
    match rustix::fs::statvfs(&there).expect("statfs").f_flag.contains(StatVfsMountFlags::NODEV) {
        true => assert_eq!(code(&opened.expect_err("a device on a mount with nodev")), libc::EACCES),
        false => assert_eq!(opened.and_then(|mut null| null.read(&mut [0])).expect("a read of /dev/null"), 0),
    }
}

/// Holds [N11].
pub fn a_running_program_is_not_written(ground: &Ground) {
    let program = ground.here.join("program");
    fs::copy("/bin/sleep", &program).expect("a copy");
    let mut running = Command::new(&program).arg("600").stdin(Stdio::null()).spawn().expect("a program");
    let write = OpenOptions::new().write(true).open(&program);
    let shorten = rustix::fs::open(&program, rustix::fs::OFlags::RDWR, Mode::empty());
    running.kill().and_then(|()| running.wait()).expect("its end");
    assert_eq!(code(&write.expect_err("a program that runs")), libc::ETXTBSY);
    assert_eq!(shorten.err(), Some(rustix::io::Errno::TXTBSY));
    let writer = OpenOptions::new().write(true).open(&program).expect("it runs no more");
    let refused = Command::new(&program).arg("0").status().expect_err("a program that is being written");
    assert_eq!(code(&refused), libc::ETXTBSY);
    drop(writer);
    assert!(Command::new(&program).arg("0").status().expect("a run").success());
}

/// `O_TMPFILE`, and a name given later.
/// Holds [C5].
pub fn a_file_begins_without_a_name(ground: &Ground) {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(&ground.here);
    let mut file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return ground.note("O_TMPFILE: EOPNOTSUPP (programs then make a file with a name and unlink it)");
        }
        opened => opened.expect("a file without a name"),
    };
    file.write_all(b"finished").expect("a write");
    assert_eq!(fs::read_dir(&ground.there).expect("a listing").count(), 0);
    let (here, there) = ground.both("named");
    linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, &here, AtFlags::SYMLINK_FOLLOW).expect("a name");
    assert_eq!(fs::read(&there).expect("a read"), b"finished");
    assert_eq!(fs::metadata(&there).expect("a stat").nlink(), 1);
}

/// Holds [V8].
pub fn inotify_tells_of_local_changes(ground: &Ground) {
    let watch = rustix::fs::inotify::init(CreateFlags::NONBLOCK).expect("inotify");
    rustix::fs::inotify::add_watch(&watch, &ground.here, WatchFlags::ALL_EVENTS).expect("a watch");
    let at = |name: &str| ground.here.join(name);
    fs::write(at("file"), "x").expect("a write");
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::rename(at("file"), at("moved")).expect("a rename");
    fs::remove_file(at("moved")).expect("an unlink");
    fs::create_dir(at("directory")).expect("a directory");
    let expected = [
        (ReadFlags::CREATE, "file"),
        (ReadFlags::MODIFY, "file"),
        (ReadFlags::CLOSE_WRITE, "file"),
        (ReadFlags::ATTRIB, "file"),
        (ReadFlags::MOVED_FROM, "file"),
        (ReadFlags::MOVED_TO, "moved"),
        (ReadFlags::DELETE, "moved"),
        (ReadFlags::CREATE | ReadFlags::ISDIR, "directory"),
    ];
    let told = events(&watch);
    let mut rest = told.iter();
    for (flags, name) in expected {
        let found = rest.any(|(seen, of)| *seen == flags && of == Path::new(name));
        assert!(found, "no {flags:?} for {name} in its place among {told:?}");
    }
}

fn events(watch: &impl std::os::fd::AsFd) -> Vec<(ReadFlags, PathBuf)> {
    let mut space = [MaybeUninit::uninit(); 8192];
    let (mut reader, mut told) = (Reader::new(watch, &mut space), Vec::new());
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec()));
                told.push((event.events(), PathBuf::from(name.unwrap_or_default())));
            }
            Err(rustix::io::Errno::AGAIN) => return told,
            Err(error) => panic!("inotify: {error}"),
        }
    }
}
