//! `flock(2)` and `fcntl(2)` locks hold between mounts, and end with their holder.

mod counter;
mod ends;
mod obey;
mod puppet;
mod ranges;
mod waits;

use crate::common::process::kill_group;
use crate::common::{Cluster, wait_for, xattr};
use puppet::generation;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than a session lives without a sign of life.
const SESSION_TIME: Duration = Duration::from_nanos(keelfs::limits::SESSION_TTL_NS + 3_000_000_000);
/// What a session lives at least without one, as long as no other clock is faster than ours by a thirtieth.
const SILENCE: Duration = Duration::from_nanos(keelfs::limits::SESSION_TTL_NS - 1_000_000_000);
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;

#[test]
fn locks_exclude_each_other_between_mounts_and_end_with_their_holder() {
    let cluster = Cluster::start(5, 1..=4);
    fs::write(cluster.at(1).join("lock"), "").expect("a write");
    let [one, two] = [1, 2].map(|node| open(&cluster.at(node).join("lock")));
    both_families(&one, &two);
    drop((one, two));
    counted_under_a_lock(&cluster);
    a_killed_holder(&cluster);
    mounts_without_a_sign_of_life(&cluster);
    cluster.expect_agreement();
}

/// One cluster for many stories, each with files of its own.
#[test]
fn locks_wait_split_and_end_as_the_manual_pages_say() {
    let cluster = Cluster::start(3, 1..=3);
    waits::waiters_are_granted_in_order(&cluster);
    waits::a_circle_of_waiters_is_refused(&cluster);
    waits::other_deadlocks_are_refused(&cluster);
    waits::a_killed_waiter_leaves_at_once(&cluster);
    waits::a_signal_ends_the_wait(&cluster);
    waits::a_signal_ends_the_wait_of_one_thread(&cluster);
    waits::an_upgrade_waits_for_the_other_reader(&cluster);
    ends::the_middle_of_a_range_is_given_back(&cluster);
    ends::closes_of_copies_end_what_they_should(&cluster);
    ends::a_fork_shares_all_but_posix_locks(&cluster);
    ends::an_exit_gives_back_everything(&cluster);
    ranges::random_locks_are_those_of_the_model(&cluster);
    cluster.expect_agreement();
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("an open")
}

fn both_families(one: &File, two: &File) {
    assert_eq!(flock(one, EXCLUSIVE), Ok(()));
    assert_eq!(flock(two, EXCLUSIVE), Err(Errno::AGAIN));
    assert_eq!(flock(two, SHARED), Err(Errno::AGAIN));
    assert_eq!(fcntl_lock(two, EXCLUSIVE), Ok(()), "the two families do not see each other");
    assert!(matches!(fcntl_lock(one, SHARED), Err(Errno::AGAIN | Errno::ACCESS)));
    assert_eq!(fcntl_lock(two, FlockOperation::Unlock), Ok(()));
    assert_eq!(flock(one, SHARED), Ok(()), "converted");
    assert_eq!(flock(two, SHARED), Ok(()));
    assert_eq!(flock(two, EXCLUSIVE), Err(Errno::AGAIN));
    assert_eq!(flock(two, FlockOperation::Unlock), Ok(()));
    assert_eq!(flock(one, FlockOperation::Unlock), Ok(()));
    println!("flock and fcntl: exclusive, shared, converted, given back");
}

/// Blocking locks on three mounts protect a counter that is read and written back.
fn counted_under_a_lock(cluster: &Cluster) {
    let each = 15;
    fs::write(cluster.at(1).join("counter"), "0000").expect("a write");
    std::thread::scope(|scope| {
        for client in 0..6u64 {
            let file = open(&cluster.at(client % 3 + 1).join("counter"));
            scope.spawn(move || (0..each).for_each(|_| count_once(&file)));
        }
    });
    assert_eq!(fs::read_to_string(cluster.at(2).join("counter")).expect("a read"), format!("{:04}", 6 * each));
    println!("{} increments under a lock from three mounts, none lost", 6 * each);
}

fn count_once(file: &File) {
    flock(file, FlockOperation::LockExclusive).expect("a lock");
    let mut digits = [0; 4];
    file.read_exact_at(&mut digits, 0).expect("a read");
    let number: u32 = std::str::from_utf8(&digits).expect("digits").parse().expect("a number");
    file.write_all_at(format!("{:04}", number + 1).as_bytes(), 0).expect("a write");
    flock(file, FlockOperation::Unlock).expect("an unlock");
}

/// A process that holds a lock until it is killed: `flock(1)` takes it, and what it execs keeps the descriptor.
fn holder(path: &Path) -> Child {
    let script = r#"exec 9<> "$0"; flock -x 9; echo held; exec sleep 1000"#;
    let mut command = Command::new("sh");
    let mut child =
        command.args(["-c", script]).arg(path).stdout(Stdio::piped()).process_group(0).spawn().expect("a process");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    assert_eq!(line, "held\n");
    child
}

fn a_killed_holder(cluster: &Cluster) {
    let mut child = holder(&cluster.at(1).join("lock"));
    let other = open(&cluster.at(2).join("lock"));
    assert_eq!(flock(&other, EXCLUSIVE), Err(Errno::AGAIN), "held by a process on another mount");
    kill_group(&mut child);
    wait_for("the lock of a killed process", || flock(&other, EXCLUSIVE).ok());
    println!("the lock of a killed process was free on another mount");
}

/// Of three mounts, one loses the node beside it, one is killed, one is stopped. The first keeps its lock, because the
/// session is the mount's. The others lose theirs, and all that goes with a session, when it has been silent for its time,
/// not before; the stopped one wakes, and can do nothing more under the lock that it had.
/// Holds [L6], [L7], [L8].
fn mounts_without_a_sign_of_life(cluster: &Cluster) {
    let at = |node, name: &str| cluster.at(node).join(name);
    let mut of_mount_3 = holder(&at(3, "of-a-mount"));
    let mut of_mount_2 = holder(&at(2, "of-a-killed-mount"));
    let (late, token) = (locked(&at(4, "of-a-stopped-mount")), generation(&at(1, "of-a-stopped-mount")));
    let unlinked = File::create_new(at(2, "unlinked")).expect("a new file");
    fs::remove_file(at(2, "unlinked")).expect("an unlink");
    fs::write(at(2, "ephemeral"), "").expect("a write");
    xattr::set(&at(2, "ephemeral"), "ephemeral", "session").expect("an attribute");
    let [killed, stopped] = ["of-a-killed-mount", "of-a-stopped-mount"].map(|name| open(&at(1, name)));
    let inodes = inodes_used(cluster.at(1));

    cluster.kill(&[3]);
    let since = Instant::now();
    for node in [2, 4] {
        fs::set_permissions(at(node, "counter"), Permissions::from_mode(0o600)).expect("a sign of life");
    }
    let stop = Stopped::new(cluster, 4);
    cluster.signal_mount(2, Signal::KILL);
    wait_for("the ends of two sessions", || {
        let locks = [&killed, &stopped].map(|file| flock(file, EXCLUSIVE));
        let missing = fs::metadata(at(1, "ephemeral")).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let seen = (locks, missing, inodes - inodes_used(cluster.at(1)));
        if since.elapsed() < SILENCE {
            assert_eq!(seen, ([Err(Errno::AGAIN); 2], false, 0), "{:?} after the last sign of life", since.elapsed());
        }
        // the ephemeral file, and the one without a name
        (seen == ([Ok(()); 2], true, 2)).then_some(())
    });
    println!("what two silent sessions had ended after {:?}", since.elapsed());
    assert!(generation(&at(1, "of-a-stopped-mount")) > token, "the fencing token");
    stopped.write_all_at(b"new", 0).expect("a write under the lock");
    drop(stop);
    the_lock_is_lost(&late, &at(4, "of-a-stopped-mount"), &stopped);
    std::thread::sleep(SESSION_TIME.saturating_sub(since.elapsed()));
    let refused = flock(open(&at(1, "of-a-mount")), EXCLUSIVE);
    assert_eq!(refused, Err(Errno::AGAIN), "the mount goes on with other nodes, and so does its lock");
    println!("a lock outlived the node beside its mount");
    drop(unlinked);
    kill_group(&mut of_mount_2);
    kill_group(&mut of_mount_3);
    cluster.command(["start".into()]).expect_success();
    cluster.wait_until_whole();
}

/// Whoever had it is told so, whatever it does through its handle, until it opens the file again.
fn the_lock_is_lost(late: &File, path: &Path, new_holder: &File) {
    let code = |outcome: std::io::Result<usize>| outcome.expect_err("a lost lock").raw_os_error();
    assert_eq!(code(late.write_at(b"late", 0)), Some(libc::EIO));
    assert_eq!(code(late.read_at(&mut [0; 4], 0)), Some(libc::EIO));
    assert_eq!(flock(late, SHARED), Err(Errno::IO));
    assert_eq!(fs::read(path).expect("a read through another handle"), b"new");
    flock(new_holder, FlockOperation::Unlock).expect("an unlock");
    assert_eq!(flock(late, SHARED), Err(Errno::IO), "also when it is free");
    let again = locked(path);
    again.write_all_at(b"own", 0).expect("a write under a lock of the new session");
    println!("a mount that woke had lost its lock, and was told so");
}

fn locked(path: &Path) -> File {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).expect("an open");
    assert_eq!(flock(&file, EXCLUSIVE), Ok(()));
    file
}

fn inodes_used(mount: &Path) -> u64 {
    let counts = rustix::fs::statvfs(mount).expect("statfs");
    counts.f_files - counts.f_ffree
}

/// A mount that does nothing; dropped: it goes on.
struct Stopped<'a> {
    cluster: &'a Cluster,
    node: u64,
}

impl<'a> Stopped<'a> {
    fn new(cluster: &'a Cluster, node: u64) -> Stopped<'a> {
        cluster.signal_mount(node, Signal::STOP);
        Stopped { cluster, node }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.cluster.signal_mount(self.node, Signal::CONT);
    }
}
