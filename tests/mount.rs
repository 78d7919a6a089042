//! Two mounts of one node, each with a session of its own, asked the way programs ask: what only the kernel's path can
//! get wrong. Needs /dev/fuse, the right to mount, and `setfacl`.

#[path = "mount/access_lists.rs"]
mod access_lists;
#[path = "mount/strangers.rs"]
mod strangers;

use keelfs::fuse::{self, Mount, MountOptions};
use keelfs::node::{DataDirectory, InitOptions, Node, NodeOptions};
use keelfs::raft::Timing;
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// One node, mounted twice, and once more by itself.
struct Mounted {
    a: PathBuf,
    b: PathBuf,
    mounts: Vec<Mount>,
    node: Node,
    address: SocketAddr,
    runtime: Runtime,
    directory: tempfile::TempDir,
}

impl Mounted {
    fn start() -> Mounted {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("a way in for all users");
        let runtime = Runtime::new().expect("a runtime");
        let (data, address) = (directory.path().join("node"), free_address());
        let (cluster, members) = (uuid::Uuid::new_v4(), BTreeMap::from([(1, address)]));
        DataDirectory::init(InitOptions { data: data.clone(), cluster, node: 1, members, joins: false })
            .expect("a data directory");
        let ms = Duration::from_millis;
        let served = directory.path().join("served");
        fs::create_dir(&served).expect("a directory to mount at");
        let options = NodeOptions {
            data,
            listen: None,
            cs733_listen: None,
            mounts: vec![(served.clone(), MountOptions::default())],
            timing: Timing { heartbeat: ms(100), election_min: ms(400), election_max: ms(800) },
            keys: None,
            insecure_no_tls: false,
            scrub_bytes_per_second: 0,
        };
        let node = runtime.block_on(Node::start(options)).expect("a node");
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        let mut mounted = Mounted { a, b, mounts: Vec::new(), node, address, runtime, directory };
        mounted.mounts = ["a", "b"].map(|name| mounted.mount(name)).into();
        mounted
    }

    fn mount(&mut self, name: &str) -> Mount {
        self.mount_with(name, &[])
    }

    /// As root mounts for all, and others can only mount for themselves.
    fn mount_with(&mut self, name: &str, words: &[&str]) -> Mount {
        let allow_other = rustix::process::geteuid().is_root();
        let mut options = MountOptions { allow_other, ..MountOptions::default() };
        options.take(words).expect("known words");
        self.mount_by(name, options)
    }

    fn mount_for_its_user(&mut self, name: &str) -> Mount {
        self.mount_by(name, MountOptions::default())
    }

    fn mount_by(&mut self, name: &str, options: MountOptions) -> Mount {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).expect("a directory to mount at");
        let (node, runtime) = (&mut self.node, &self.runtime);
        let volume = runtime.block_on(async { node.volume("test") });
        fuse::mount(volume, runtime.handle().clone(), &path, options).expect("a mount")
    }

    /// The same name on both mounts.
    fn both(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.a.join(name), self.b.join(name))
    }

    fn stop(mut self) {
        for mount in self.mounts.drain(..) {
            let path = mount.path().to_owned();
            mount.unmount().expect("an unmount");
            assert_eq!(fs::read_dir(path).expect("the directory below").count(), 0);
        }
        self.runtime.block_on(self.node.stop());
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

fn open(path: &PathBuf) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("an open file")
}

/// `fcntl(F_SETLK)` or `F_OFD_SETLK` on the whole file, exclusive.
fn fcntl_lock(file: &File, command: libc::c_int) -> bool {
    // SAFETY: `flock` is plain data, and the descriptor is open.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_WRLCK as libc::c_short;
        libc::fcntl(file.as_raw_fd(), command, &lock) == 0
    }
}

fn flock(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// One story after another on one pair of mounts: a node for each would cost more than the stories.
#[test]
fn what_only_the_kernels_path_can_get_wrong() {
    let mut mounted = Mounted::start();
    what_a_mount_of_the_node_held_ends_with_it(&mounted);
    a_mount_that_has_ended_leaves_the_next_one_alone(&mut mounted);
    a_remount_changes_what_it_names(&mut mounted);
    times_before_1970_keep_their_fraction(&mounted);
    lock_families_do_not_meet_and_end_with_the_descriptor(&mounted);
    a_file_that_is_replaced_is_never_missing(&mounted);
    a_listing_goes_on_while_entries_go(&mounted);
    an_unlinked_file_lives_while_it_is_open(&mounted);
    a_mapped_page_is_written_where_it_belongs(&mounted);
    access_lists::all(&mounted);
    strangers::all(&mut mounted);
    mounted.stop();
}

/// Whoever unmounts what a node serves beside everything else: the node goes on, and the mount's session ends.
fn what_a_mount_of_the_node_held_ends_with_it(mounted: &Mounted) {
    let served = mounted.directory.path().join("served");
    fs::write(served.join("ephemeral"), "").expect("a file");
    let ephemeral = "user.keelfs.ephemeral";
    rustix::fs::setxattr(served.join("ephemeral"), ephemeral, b"session", XattrFlags::empty()).expect("an attribute");
    assert!(mounted.a.join("ephemeral").exists());
    let unmounted = Command::new("fusermount3").arg("-u").arg(&served).status().expect("fusermount3");
    assert!(unmounted.success());
    let until = Instant::now() + Duration::from_secs(15);
    while mounted.a.join("ephemeral").exists() {
        assert!(Instant::now() < until, "it outlives its mount");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What was unmounted by others has ended, even if the next mount at its place was given its number.
fn a_mount_that_has_ended_leaves_the_next_one_alone(mounted: &mut Mounted) {
    let first = mounted.mount("c");
    let path = first.path().to_owned();
    let unmounted = Command::new("fusermount3").arg("-u").arg(&path).status().expect("fusermount3");
    assert!(unmounted.success());
    mounted.runtime.block_on(first.ended()).expect("an end");
    let second = mounted.mount("c");
    fs::write(path.join("file"), "content").expect("a write");
    first.unmount().expect("there is nothing to unmount");
    assert_eq!(fs::read_to_string(path.join("file")).expect("the next mount"), "content");
    fs::remove_file(path.join("file")).expect("an unlink");
    second.unmount().expect("an unmount");
}

/// As `mount -o remount` without a line in fstab has it: only what is to change is named.
fn a_remount_changes_what_it_names(mounted: &mut Mounted) {
    if !rustix::process::geteuid().is_root() {
        return println!("a remount is root's to ask for: not looked at");
    }
    let mount = mounted.mount_with("c", &["allow_dev", "allow_suid"]);
    let flags = || {
        let flags = fuse::flags_of(mount.path()).expect("our mount");
        (flags.read_only, flags.devices, flags.setuid, flags.execute)
    };
    assert_eq!(flags(), (false, true, true, true));
    for (word, expected) in [("ro", (true, true, true, true)), ("rw", (false, true, true, true))] {
        let mut options = fuse::flags_of(mount.path()).expect("our mount");
        options.take(&["remount", "relatime", "user_id=0", word]).expect("known words");
        fuse::remount(mount.path(), &options).expect("a remount");
        assert_eq!(flags(), expected, "{word}");
    }
    mount.unmount().expect("an unmount");
}

fn times_before_1970_keep_their_fraction(mounted: &Mounted) {
    let (here, there) = mounted.both("old");
    let mtime = Timespec { tv_sec: -2, tv_nsec: 800_000_000 };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    rustix::fs::futimens(open(&here), &Timestamps { last_access: omit, last_modification: mtime }).expect("a time");
    let seen = fs::metadata(there).expect("the file");
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (-2, 800_000_000));
}

fn lock_families_do_not_meet_and_end_with_the_descriptor(mounted: &Mounted) {
    let (here, there) = mounted.both("lock");
    let (one, other) = (open(&here), open(&there));
    assert!(flock(&one));
    assert!(!flock(&other), "another mount got the same lock");
    assert!(fcntl_lock(&one, libc::F_SETLK), "flock and fcntl are two families, also for one process");
    assert!(!fcntl_lock(&other, libc::F_SETLK), "mounts are two owners");
    drop(one);
    // What follows waits for the locks of the closed file to go, so it is refused only if they stay.
    let again = open(&here);
    assert!(flock(&again) && fcntl_lock(&again, libc::F_OFD_SETLK));
    assert!(!fcntl_lock(&other, libc::F_OFD_SETLK));
    drop(again);
    let last = open(&here);
    assert!(flock(&last) && fcntl_lock(&last, libc::F_OFD_SETLK), "a closed description kept its lock");
}

fn a_file_that_is_replaced_is_never_missing(mounted: &Mounted) {
    let (here, there) = mounted.both("config");
    fs::write(&here, "version 0").expect("the first version");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1..40 {
                let next = mounted.a.join("config.new");
                fs::write(&next, format!("version {version}")).expect("the next version");
                fs::rename(&next, &here).expect("a rename");
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let text = fs::read_to_string(&there).expect("there is a version at every moment");
            assert!(text.starts_with("version "), "{text:?}");
        }
    });
}

fn a_listing_goes_on_while_entries_go(mounted: &Mounted) {
    let (here, there) = mounted.both("many");
    fs::create_dir(&here).expect("a directory");
    let names: BTreeSet<String> = (0..300).map(|n| format!("a-rather-long-name-of-an-entry-{n}")).collect();
    names.iter().for_each(|name| fs::write(here.join(name), "").expect("an entry"));
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(&there).expect("a listing") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        fs::remove_file(here.join(&name)).expect("a removal on the other mount");
        assert!(seen.insert(name), "an entry came twice");
    }
    assert_eq!(seen, names);
    fs::remove_dir(here).expect("it is empty now");
}

fn an_unlinked_file_lives_while_it_is_open(mounted: &Mounted) {
    let (here, there) = mounted.both("orphan");
    fs::write(&here, "still here").expect("a file");
    let mut held = File::open(&there).expect("an open file");
    fs::remove_file(&here).expect("a removal");
    assert!(!fs::exists(&there).expect("an answer"));
    // Longer than it takes the sessions to be asked about the orphan.
    std::thread::sleep(Duration::from_secs(3));
    let mut text = String::new();
    held.read_to_string(&mut text).expect("its content");
    assert_eq!((text.as_str(), held.metadata().expect("its attributes").nlink()), ("still here", 0));
}

/// The kernel writes mapped pages back through any handle, also one that appends.
fn a_mapped_page_is_written_where_it_belongs(mounted: &Mounted) {
    let (here, there) = mounted.both("mapped");
    fs::write(&here, "0123456789").expect("a file");
    let mut file = OpenOptions::new().read(true).append(true).open(&here).expect("a file that appends");
    // SAFETY: ten bytes of the file are mapped, written within, and unmapped before it is closed.
    unsafe {
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let start = libc::mmap(std::ptr::null_mut(), 10, access, shared, file.as_raw_fd(), 0);
        assert_ne!(start, libc::MAP_FAILED, "a shared mapping");
        start.cast::<u8>().add(1).write(b'X');
        assert_eq!(libc::msync(start, 10, libc::MS_SYNC), 0);
        libc::munmap(start, 10);
    }
    file.write_all(b"end").expect("an append");
    let mut bytes = [0; 20];
    let read = File::open(there).and_then(|there| there.read_at(&mut bytes, 0)).expect("the content");
    assert_eq!(&bytes[..read], b"0X23456789end");
}
