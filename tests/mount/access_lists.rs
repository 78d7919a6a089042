//! Access control lists as `setfacl` and `getfacl` meet them: set on one mount, judged by the kernel of the other. What
//! needs users of its own is tried by root only.

use super::Mounted;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

const BOB: u32 = 65_001;
const EVE: u32 = 65_002;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

pub fn all(mounted: &Mounted) {
    a_list_is_the_same_on_every_mount_and_in_every_copy(mounted);
    a_chmod_moves_the_mask(mounted);
    a_default_list_is_inherited_in_the_umasks_place(mounted);
    what_is_no_list_is_refused(mounted);
    a_replacement_from_the_command_line_keeps_the_list(mounted);
    if rustix::process::geteuid().is_root() {
        let way = mounted.a.parent().expect("a directory");
        let how = "set TMPDIR to a directory that everybody may pass through";
        assert!(try_as(EVE, "test -e \"$1\"", way), "other users do not come as far as {}: {how}", way.display());
        a_named_user_is_let_in_and_kept_out(mounted);
        a_list_costs_the_setgid_bit_of_who_is_not_in_the_group(mounted);
        a_race_opens_nothing_that_a_list_refuses(mounted);
        who_gave_a_file_away_owns_it_no_more(mounted);
    } else {
        println!("not root, so no other user tries to get in");
    }
}

fn a_list_is_the_same_on_every_mount_and_in_every_copy(mounted: &Mounted) {
    let (here, there) = mounted.both("report");
    fs::write(&here, "x").expect("a file");
    fs::set_permissions(&here, PermissionsExt::from_mode(0o640)).expect("a mode");
    assert_eq!(entries(&there), "user::rw- group::r-- other::---");
    set(&here, &["-m", "u:65001:rw-,g:65009:r--"]);
    let list = "user::rw- user:65001:rw- group::r-- group:65009:r-- mask::rw- other::---";
    assert_eq!(entries(&there), list);
    assert_eq!(mode(&there), 0o660, "the mode shows the mask");
    assert_eq!(names(&there), [ACCESS]);

    let (copied, packed) = (mounted.b.join("copied"), mounted.a.join("packed"));
    fs::create_dir(&packed).expect("a directory");
    run(Command::new("cp").arg("-a").args([&there, &copied]));
    let tar = format!(
        "tar --acls --numeric-owner -C '{}' -cf - report | tar --acls --numeric-owner -C '{}' -xpf -",
        mounted.b.display(),
        packed.display()
    );
    run(Command::new("sh").args(["-c", &tar]));
    assert_eq!(entries(&copied), list);
    assert_eq!(entries(&packed.join("report")), list);

    let descriptor = File::open(&there).expect("a descriptor");
    let length_of_list = || {
        // The kernel keeps a descriptor's list until the next look at the inode.
        descriptor.metadata().expect("a look");
        rustix::fs::fgetxattr(&descriptor, ACCESS, &mut [0; 4096][..])
    };
    assert_eq!(length_of_list(), Ok(4 + 6 * 8));
    set(&here, &["-x", "g:65009"]);
    assert_eq!(length_of_list(), Ok(4 + 5 * 8));

    set(&there, &["-b"]);
    assert_eq!(entries(&here), "user::rw- group::r-- other::---");
    assert_eq!((mode(&here), names(&here)), (0o640, vec![]));
}

fn a_chmod_moves_the_mask(mounted: &Mounted) {
    let (here, there) = mounted.both("report");
    set(&here, &["-m", "u:65001:rwx"]);
    fs::set_permissions(&there, PermissionsExt::from_mode(0o704)).expect("a mode");
    assert_eq!(entries(&here), "user::rwx user:65001:rwx group::r-- mask::--- other::r--");
    set(&there, &["-m", "m::rx"]);
    assert_eq!(mode(&here), 0o754);
}

/// Holds [N2].
fn a_default_list_is_inherited_in_the_umasks_place(mounted: &Mounted) {
    let (here, there) = mounted.both("team");
    fs::create_dir(&here).expect("a directory");
    let make = "umask 077 && cd \"$1\" && : > f && mkdir d && mkfifo p && ln -s f l && : > d/f";
    let make = |at: &Path| run(Command::new("sh").args(["-c", make, "sh"]).arg(at));
    make(&here);
    assert_eq!(["f", "d", "p", "d/f"].map(|name| mode(&there.join(name))), [0o600, 0o700, 0o600, 0o600]);

    for name in ["d/f", "d", "f", "p", "l"] {
        run(Command::new("rm").arg("-r").arg(here.join(name)));
    }
    let default = "default:user::rwx default:user:65001:r-x default:group::r-x default:mask::rwx default:other::--x";
    set(&here, &["-m", "d:u::rwx,d:u:65001:rx,d:g::rx,d:m::rwx,d:o::x"]);
    make(&there);
    let file = "user::rw- user:65001:r-x group::r-x mask::rw- other::---";
    for name in ["f", "p", "d/f"] {
        assert_eq!((entries(&here.join(name)).as_str(), mode(&here.join(name))), (file, 0o660), "{name}");
    }
    let directory = "user::rwx user:65001:r-x group::r-x mask::rwx other::--x";
    assert_eq!(entries(&here.join("d")), format!("{directory} {default}"));
    assert_eq!(names(&here.join("l")), Vec::<String>::new());
    assert_eq!(fs::symlink_metadata(here.join("l")).expect("a link").mode() & 0o777, 0o777);
    set(&here, &["-k"]);
    set(&here, &["-k"]);
    assert_eq!(names(&there), Vec::<String>::new());
}

fn what_is_no_list_is_refused(mounted: &Mounted) {
    let (here, there) = mounted.both("report");
    let list = |permissions: u8| {
        let entry = |tag, permissions| [tag, 0, permissions, 0, 255, 255, 255, 255];
        [&[2, 0, 0, 0][..], &entry(1, 6), &entry(4, 0), &entry(32, permissions)].concat()
    };
    let set = |name: &str, value: &[u8]| rustix::fs::setxattr(&here, name, value, XattrFlags::empty());
    assert_eq!(set(DEFAULT, &list(0)), Err(Errno::ACCESS), "of a file");
    assert_eq!(set(ACCESS, &list(8)), Err(Errno::INVAL));
    assert_eq!(set(ACCESS, &list(0)[..20]), Err(Errno::INVAL), "half a list");
    let link = mounted.a.join("link");
    symlink("report", &link).expect("a link");
    let linked = rustix::fs::lsetxattr(&link, ACCESS, &list(0), XattrFlags::empty());
    assert_eq!(linked, Err(Errno::OPNOTSUPP));
    assert_eq!(set(ACCESS, &list(4)), Ok(()));
    assert_eq!((mode(&there), names(&there)), (0o604, vec![]), "what a mode can say is no list");
    for _ in 0..2 {
        assert_eq!(rustix::fs::removexattr(&there, ACCESS), Ok(()), "what is not there can be removed");
    }
}

/// More than goes in one step becomes another file of that name, which must not be open to more users, or to fewer.
fn a_replacement_from_the_command_line_keeps_the_list(mounted: &Mounted) {
    let (here, there) = mounted.both("letters");
    fs::create_dir(&here).expect("a directory");
    set(&here, &["-m", "d:u:65002:rwx"]);
    let large = mounted.a.join("large");
    fs::write(&large, vec![b'x'; 3 << 20]).expect("a large file");
    let replace = |name: &str| {
        let path = format!("/letters/{name}");
        let node = mounted.address.to_string();
        run(Command::new(env!("CARGO_BIN_EXE_keelfs")).args(["write", &path, "--node", &node]).arg(&large));
        (mode(&there.join(name)), entries(&there.join(name)))
    };
    for (name, list) in [("listed", "u::rw,u:65001:r,g::-,m::rw,o::-"), ("plain", "u::rw,g::r,o::-")] {
        fs::write(here.join(name), "small").expect("a file");
        set(&here.join(name), &["-b", "--set", list]);
        let before = (mode(&here.join(name)), entries(&here.join(name)));
        assert_eq!(replace(name), before, "{name}");
        assert_eq!(fs::metadata(there.join(name)).expect("a file").len(), 3 << 20);
    }
    let inherited = "user::rw- user:65002:rwx group::r-x mask::r-- other::r--";
    assert_eq!(replace("new"), (0o644, inherited.to_owned()));
}

/// The kernel judges a change through a descriptor by the owner that it knew last.
fn who_gave_a_file_away_owns_it_no_more(mounted: &Mounted) {
    let listed = mounted.a.join("listed");
    fs::write(&listed, "x").expect("a file");
    set(&listed, &["-m", "u:65002:rw"]);
    let mut list = vec![0; 4096];
    let length = rustix::fs::getxattr(&listed, ACCESS, &mut list[..]).expect("a list");
    list.truncate(length);
    type Change = fn(&File, &[u8]) -> std::io::Result<()>;
    let changes: [Change; 3] = [
        |file, _| file.set_permissions(PermissionsExt::from_mode(0o4777)),
        |file, _| file.set_modified(SystemTime::UNIX_EPOCH),
        |file, list| Ok(rustix::fs::fsetxattr(file, ACCESS, list, XattrFlags::empty())?),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (here, there) = mounted.both("given");
        fs::write(&here, "mine").expect("a file");
        fs::set_permissions(&here, PermissionsExt::from_mode(0o600)).expect("a mode");
        chown(&here, Some(BOB), Some(BOB)).expect("an owner");
        let file = as_bob(|| File::options().write(true).open(&here)).expect("his file");
        as_bob(|| change(&file, &list)).expect("it is his");
        fs::set_permissions(&there, PermissionsExt::from_mode(0o600)).expect("a mode");
        chown(&there, Some(0), Some(0)).expect("another owner");
        let before = fs::metadata(&there).expect("attributes");
        let refused = as_bob(|| change(&file, &list)).map_err(|error| error.raw_os_error());
        assert_eq!(refused, Err(Some(libc::EPERM)), "change {number}");
        let after = fs::metadata(&there).expect("attributes");
        assert_eq!((after.mode(), after.ctime_nsec()), (before.mode(), before.ctime_nsec()), "change {number}");
        fs::remove_file(&here).expect("removed");
    }
}

/// In a thread that is his: to the kernel each thread is somebody.
fn as_bob<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let bob = scope.spawn(|| {
            // SAFETY: numbers only; unlike the C library's function the system call is about this thread alone.
            let became = unsafe {
                libc::syscall(libc::SYS_setresgid, BOB, BOB, BOB) == 0
                    && libc::syscall(libc::SYS_setresuid, BOB, BOB, BOB) == 0
            };
            assert!(became, "cannot become another user");
            run()
        });
        bob.join().expect("what he tried")
    })
}

/// Holds [N2].
fn a_named_user_is_let_in_and_kept_out(mounted: &Mounted) {
    let (here, there) = mounted.both("secret");
    fs::write(&here, "s").expect("a file");
    fs::set_permissions(&here, PermissionsExt::from_mode(0o600)).expect("a mode");
    let may = |who: u32, what: &str| {
        let tried = [&here, &there].map(|path| try_as(who, what, path));
        assert_eq!(tried[0], tried[1], "{who} and {what} on two mounts");
        tried[0]
    };
    let (read, write) = ("cat \"$1\"", "echo t >> \"$1\"");
    assert!(!may(BOB, read) && !may(EVE, read));
    set(&here, &["-m", "u:65001:r"]);
    assert!(may(BOB, read) && !may(BOB, write) && !may(EVE, read));
    set(&there, &["-m", "u:65001:rw"]);
    assert!(may(BOB, read) && may(BOB, write));
    // Where the group's bits are all clear, Linux does not look at the list: who is named is then one of the others.
    fs::set_permissions(&here, PermissionsExt::from_mode(0o614)).expect("a mode");
    assert!(!may(BOB, read), "the mask bounds a named user");
    assert!(may(EVE, read));
    set(&there, &["-m", "u:65001:---,o::rw", "-n"]);
    assert!(!may(BOB, read), "who is named is not one of the others");
    assert!(may(EVE, write));
    set(&here, &["-x", "u:65001"]);
    assert!(may(BOB, read) && may(BOB, write));
    set(&here, &["-m", "g:65001:rw", "-m", "o::---"]);
    assert!(may(BOB, write) && !may(EVE, read), "a named group");

    let (hall, same_hall) = mounted.both("hall");
    fs::create_dir(&hall).expect("a directory");
    fs::write(hall.join("f"), "").expect("a file");
    fs::set_permissions(&hall, PermissionsExt::from_mode(0o700)).expect("a mode");
    set(&same_hall, &["-m", "u:65001:x"]);
    assert!(try_as(BOB, read, &hall.join("f")) && !try_as(BOB, "ls \"$1\"", &hall));
    assert!(!try_as(EVE, read, &same_hall.join("f")));
}

fn a_list_costs_the_setgid_bit_of_who_is_not_in_the_group(mounted: &Mounted) {
    let (here, there) = mounted.both("shared");
    fs::write(&here, "").expect("a file");
    std::os::unix::fs::chown(&here, Some(BOB), Some(100)).expect("an owner");
    let set_as = |who: &[&str]| {
        fs::set_permissions(&there, PermissionsExt::from_mode(0o2755)).expect("a mode");
        run(Command::new("setpriv").args(who).args(["setfacl", "-m", "u:65002:rwx"]).arg(&here));
        mode(&there)
    };
    assert_eq!(set_as(&["--reuid=65001", "--regid=100", "--clear-groups"]), 0o2775);
    assert_eq!(set_as(&["--reuid=65001", "--regid=65001", "--groups=7,100"]), 0o2775);
    assert_eq!(set_as(&["--reuid=65001", "--regid=65001", "--groups=7"]), 0o775);
    assert_eq!(set_as(&["--reuid=0", "--regid=0", "--clear-groups"]), 0o2775, "root has the capability");
    assert_eq!(set_as(&["--bounding-set=-fsetid", "--clear-groups"]), 0o775, "a root without it");
}

/// `open` with `O_CREAT` finds no name and meets one when it makes it: the kernel does not check such an open again.
fn a_race_opens_nothing_that_a_list_refuses(mounted: &Mounted) {
    let (here, there) = mounted.both("square");
    fs::create_dir(&here).expect("a directory");
    fs::set_permissions(&here, PermissionsExt::from_mode(0o777)).expect("a mode");
    let (hidden, shown) = (here.join("hidden"), here.join("shown"));
    fs::write(&hidden, "secret").expect("a file");
    set(&hidden, &["-m", "u::rw,u:65001:---,g::rw,m::rw,o::rw"]);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for _ in 0..200 {
                fs::rename(&hidden, &shown).expect("a rename");
                fs::rename(&shown, &hidden).expect("a rename back");
            }
        });
        scope.spawn(move || {
            // SAFETY: plain system calls, of this thread alone.
            unsafe { libc::syscall(libc::SYS_setfsgid, BOB) };
            unsafe { libc::syscall(libc::SYS_setfsuid, BOB) };
            let mut tries = 0;
            while !mover.is_finished() {
                let opened =
                    File::options().read(true).write(true).create(true).truncate(false).open(there.join("shown"));
                let text = opened.ok().and_then(|file| std::io::read_to_string(file).ok());
                assert_ne!(text.as_deref(), Some("secret"), "after {tries} tries");
                tries += 1;
            }
        });
    });
}

/// Does a shell command come to a good end for this user? Its `$1` is the path.
fn try_as(who: u32, command: &str, path: &Path) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", command, "sh"]).arg(path).uid(who).gid(who);
    shell.output().expect("a shell").status.success()
}

fn set(path: &Path, arguments: &[&str]) {
    run(Command::new("setfacl").args(arguments).arg(path));
}

/// What `getfacl` says, on one line.
fn entries(path: &Path) -> String {
    let told = run(Command::new("getfacl").args(["-n", "-c", "-E", "-p"]).arg(path)).stdout;
    String::from_utf8(told).expect("text").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a mode").mode() & 0o7777
}

fn names(path: &Path) -> Vec<String> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).expect("names of attributes");
    let names = String::from_utf8(names[..length].to_vec()).expect("text");
    names.split_terminator('\0').map(str::to_owned).collect()
}
