//! `flock(2)` and `fcntl(2)` locks hold between mounts, and end with their holder.

mod counter;
mod ends;
mod obey;
mod puppet;
mod ranges;
mod waits;

use crate::common::process::kill_group;
use crate::common::{Cluster, wait_for};
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longer than a session lives without a sign of life.
const SESSION_TIME: Duration = Duration::from_nanos(keelfs::limits::SESSION_TTL_NS + 3_000_000_000);
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;

#[test]
fn locks_exclude_each_other_between_mounts_and_end_with_their_holder() {
    let cluster = Cluster::start(5, [1, 2, 3]);
    fs::write(cluster.at(1).join("lock"), "").expect("a write");
    let [one, two] = [1, 2].map(|node| open(&cluster.at(node).join("lock")));
    both_families(&one, &two);
    drop((one, two));
    counted_under_a_lock(&cluster);
    a_killed_holder(&cluster);
    a_killed_node_and_then_its_mount(&cluster);
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

/// A lock outlives the node beside its mount, because the session is the mount's. When the mount dies, its lock is free
/// once the session's time is over.
/// Holds [L6].
fn a_killed_node_and_then_its_mount(cluster: &Cluster) {
    let mut child = holder(&cluster.at(3).join("of-a-mount"));
    let other = open(&cluster.at(1).join("of-a-mount"));
    cluster.kill(&[3]);
    std::thread::sleep(SESSION_TIME);
    assert_eq!(flock(&other, EXCLUSIVE), Err(Errno::AGAIN), "the mount goes on with other nodes, and so does its lock");
    cluster.kill_mount(3);
    assert_eq!(flock(&other, EXCLUSIVE), Err(Errno::AGAIN), "a mount that is only silent keeps its lock for a while");
    wait_for("the lock of a killed mount", || flock(&other, EXCLUSIVE).ok());
    println!("a lock outlived its node, and was free after its mount's session had ended");
    kill_group(&mut child);
    cluster.restart(&[3]);
}
