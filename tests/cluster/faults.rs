//! Nodes are killed while clients write: what was acknowledged is there afterwards, once.

use crate::common::{Cluster, wait_for};
use rustix::fs::XattrFlags;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A client that makes files and appends to a journal of its own, and remembers what it was told.
struct Writer {
    node: u64,
    name: String,
    mount: PathBuf,
    acknowledged: Vec<usize>,
    journalled: Vec<usize>,
    /// Attempts that failed, with the error.
    failed: Vec<(usize, String)>,
}

impl Writer {
    fn new(cluster: &Cluster, node: u64) -> Writer {
        let name = format!("w{node}");
        fs::create_dir_all(cluster.at(node).join(&name)).expect("a directory");
        Writer {
            node,
            name,
            mount: cluster.at(node).to_owned(),
            acknowledged: vec![],
            journalled: vec![],
            failed: vec![],
        }
    }

    fn run(&mut self, over: &AtomicBool, progress: &AtomicUsize) {
        for number in 0.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            match self.write(number) {
                Ok(()) => {
                    progress.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    self.failed.push((number, error.to_string()));
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// A new file with known content, then a line in the journal; each is remembered as soon as it is acknowledged.
    fn write(&mut self, number: usize) -> std::io::Result<()> {
        let mut file = File::create(self.mount.join(file_name(&self.name, number)))?;
        file.write_all(content(&self.name, number).as_bytes())?;
        self.acknowledged.push(number);
        let mut journal = OpenOptions::new().create(true).append(true).open(self.mount.join(journal(&self.name)))?;
        let line = format!("{number}\n");
        if journal.write(line.as_bytes())? == line.len() {
            self.journalled.push(number);
        }
        Ok(())
    }

    fn errors(&self) -> BTreeSet<&str> {
        self.failed.iter().map(|(_, error)| error.as_str()).collect()
    }

    /// Everything acknowledged is on this mount; what failed is there at most once.
    fn check(&self, mount: &Path) {
        for number in &self.acknowledged {
            let path = mount.join(file_name(&self.name, *number));
            let found =
                fs::read_to_string(&path).unwrap_or_else(|e| panic!("acknowledged, and lost: {}: {e}", path.display()));
            assert_eq!(found, content(&self.name, *number), "{}", path.display());
        }
        let lines = fs::read_to_string(mount.join(journal(&self.name))).expect("a journal");
        let lines: Vec<usize> = lines.lines().map(|line| line.parse().expect("a whole line")).collect();
        let mut once = lines.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once, lines, "{}: records twice or out of order", self.name);
        let lost: Vec<_> = self.journalled.iter().filter(|number| once.binary_search(number).is_err()).collect();
        assert!(lost.is_empty(), "{}: acknowledged appends are lost: {lost:?}", self.name);
    }
}

fn file_name(writer: &str, number: usize) -> String {
    format!("{writer}/{number}")
}

fn journal(writer: &str) -> String {
    format!("{writer}.journal")
}

fn content(writer: &str, number: usize) -> String {
    format!("{writer} {number};").repeat(1 + number % 700)
}

/// Run writers on these nodes while `disturb` does its work; it gets a function that waits for so many more successful
/// writes.
fn write_during<T>(cluster: &Cluster, nodes: &[u64], disturb: impl FnOnce(&dyn Fn(usize)) -> T) -> (Vec<Writer>, T) {
    let mut writers: Vec<Writer> = nodes.iter().map(|node| Writer::new(cluster, *node)).collect();
    let (over, progress) = (AtomicBool::new(false), AtomicUsize::new(0));
    let result = std::thread::scope(|scope| {
        for writer in &mut writers {
            scope.spawn(|| writer.run(&over, &progress));
        }
        let await_progress = |more: usize| {
            let goal = progress.load(Ordering::Relaxed) + more;
            wait_for(&format!("{more} more successful writes"), || {
                (progress.load(Ordering::Relaxed) >= goal).then_some(())
            });
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(&await_progress)));
        over.store(true, Ordering::Relaxed);
        result
    });
    match result {
        Ok(result) => (writers, result),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// `killed`: the nodes whose own clients may have met errors; all others are served without any.
fn check_everywhere(cluster: &Cluster, writers: &[Writer], killed: &[u64]) {
    for writer in writers {
        let (acknowledged, failed) = (writer.acknowledged.len(), writer.failed.len());
        println!("{}: {acknowledged} files acknowledged, {failed} attempts failed {:?}", writer.name, writer.errors());
        assert!(
            failed == 0 || killed.contains(&writer.node),
            "a majority was there all the time: {:?}",
            writer.errors()
        );
        for node in cluster.mounted() {
            writer.check(cluster.at(node));
        }
    }
    cluster.expect_agreement();
}

#[test]
fn the_leader_is_killed_during_writes() {
    let cluster = Cluster::start(5, 1..=5);
    let (writers, killed) = write_during(&cluster, &[1, 2, 3], |more_writes| {
        (0..2).map(|_| lose_the_leader(&cluster, more_writes)).collect::<Vec<u64>>()
    });
    check_everywhere(&cluster, &writers, &killed);
}

fn lose_the_leader(cluster: &Cluster, more_writes: &dyn Fn(usize)) -> u64 {
    more_writes(60);
    let old = cluster.kill_leader();
    let new = cluster.wait_for_leader(Some(old));
    println!("node {new} leads after node {old}");
    more_writes(60);
    cluster.restart(&[old]);
    old
}

#[test]
fn two_nodes_are_killed_and_the_service_goes_on() {
    let cluster = Cluster::start(5, 1..=5);
    let (writers, killed) = write_during(&cluster, &[1, 2, 3, 4, 5], |more_writes| {
        more_writes(60);
        let leader = cluster.kill_leader();
        let another = leader % 5 + 1;
        cluster.kill(&[another]);
        more_writes(100);
        cluster.restart(&[leader, another]);
        more_writes(60);
        [leader, another]
    });
    check_everywhere(&cluster, &writers, &killed);
}

/// Holds [D1].
#[test]
fn all_five_are_killed_during_writes_and_come_back_with_all_that_was_acknowledged() {
    let cluster = Cluster::start(5, 1..=5);
    let all = [4, 2, 5, 1, 3];
    let (writers, (before, after)) = write_during(&cluster, &[1, 2, 3], |more_writes| {
        more_writes(100);
        let before = highest_term(&cluster);
        change_other_things(cluster.at(1));
        cluster.kill(&all);
        cluster.restart(&all);
        all.iter().for_each(|node| other_things_are_changed(cluster.at(*node)));
        let after = highest_term(&cluster);
        more_writes(30);
        (before, after)
    });
    assert!(after > before, "the old leader resumed its term {before}: the term is {after}");
    check_everywhere(&cluster, &writers, &all);
}

/// What is no write: each change is acknowledged, and the last one just before the end of all.
fn change_other_things(mount: &Path) {
    let at = |name: &str| mount.join("other").join(name);
    fs::create_dir(mount.join("other")).expect("a directory");
    for name in ["linked", "moved", "removed", "changed", "cut"] {
        fs::write(at(name), name).expect("a write");
    }
    fs::hard_link(at("linked"), at("link")).expect("a link");
    fs::rename(at("moved"), at("renamed")).expect("a rename");
    fs::remove_file(at("removed")).expect("an unlink");
    File::options().write(true).open(at("cut")).and_then(|file| file.set_len(2)).expect("a truncation");
    rustix::fs::setxattr(at("changed"), "user.a", b"b", XattrFlags::empty()).expect("an attribute");
    fs::set_permissions(at("changed"), fs::Permissions::from_mode(0o4751)).expect("a mode");
}

fn other_things_are_changed(mount: &Path) {
    let at = |name: &str| mount.join("other").join(name);
    let mut names: Vec<_> = fs::read_dir(mount.join("other"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    assert_eq!(names, ["changed", "cut", "link", "linked", "renamed"]);
    assert_eq!(fs::metadata(at("link")).expect("a link").nlink(), 2);
    assert_eq!(fs::read_to_string(at("renamed")).expect("a renamed file"), "moved");
    assert_eq!(fs::read_to_string(at("cut")).expect("a file that was cut"), "cu");
    assert_eq!(fs::metadata(at("changed")).expect("a file").mode() & 0o7777, 0o4751);
    let mut value = [0; 2];
    assert_eq!(rustix::fs::getxattr(at("changed"), "user.a", &mut value[..]), Ok(1));
    assert_eq!(&value, b"b\0");
}

/// Changes of names are carried out once, however often they had to be sent: a second mkdir would say EEXIST, a second
/// rename or unlink ENOENT.
/// Holds [D4].
#[test]
fn names_change_once_across_leader_changes() {
    let cluster = Cluster::start(5, 1..=5);
    let (over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let killed = std::thread::scope(|scope| {
        let leader = cluster.wait_for_leader(None);
        for node in (1..=5).filter(|node| *node != leader) {
            let (own, over, rounds) = (cluster.at(node).join(format!("names{node}")), &over, &rounds);
            scope.spawn(move || change_names(&own, over, rounds));
        }
        let enough = |goal| wait_for("changes of names", || (rounds.load(Ordering::Relaxed) >= goal).then_some(()));
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            enough(40);
            cluster.kill(&[leader]);
            enough(120);
            leader
        }));
        over.store(true, Ordering::Relaxed);
        killed
    });
    let killed = killed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("{} rounds of mkdir, link, rename, unlink and rmdir, none executed twice", rounds.into_inner());
    cluster.restart(&[killed]);
    cluster.expect_agreement();
}

fn change_names(own: &Path, over: &AtomicBool, rounds: &AtomicUsize) {
    while !over.load(Ordering::Relaxed) {
        fs::create_dir(own).expect("mkdir");
        File::create_new(own.join("a")).expect("create");
        fs::hard_link(own.join("a"), own.join("b")).expect("link");
        fs::rename(own.join("a"), own.join("c")).expect("rename");
        fs::remove_file(own.join("b")).expect("unlink");
        fs::remove_file(own.join("c")).expect("unlink");
        fs::remove_dir(own).expect("rmdir");
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// The leader is frozen, another takes over and changes things; the woken one knows nothing of it and must ask.
#[test]
fn a_leader_that_was_paused_serves_nothing_stale() {
    let cluster = Cluster::start(5, 1..=5);
    for round in 0..3 {
        let paused = cluster.wait_for_leader(None);
        let other = cluster.at(paused % 5 + 1);
        fs::write(cluster.at(paused).join("value"), format!("old {round}")).expect("a write");
        cluster.signal(paused, "STOP");
        fs::write(other.join("value"), format!("new {round}")).expect("a write under the next leader");
        cluster.signal(paused, "CONT");
        let seen = fs::read_to_string(cluster.at(paused).join("value")).expect("a read through the woken node");
        assert_eq!(seen, format!("new {round}"), "node {paused} served what was true when it fell asleep");
    }
    cluster.expect_agreement();
}

/// A process whose program lies on a mount that hangs: whoever asks the file system for that program waits.
#[test]
fn no_verb_waits_for_what_runs_from_a_mount_that_hangs() {
    let cluster = Cluster::start(3, [1]);
    let program = cluster.at(1).join("sleep");
    fs::copy("/usr/bin/sleep", &program).expect("a copy");
    let mut runs = std::process::Command::new(&program).arg("600").spawn().expect("a process");
    // A verb that looks for node 2 comes by the other process first.
    cluster.restart(&[2]);
    // What the kernel was told of the program is no longer believed without asking.
    std::thread::sleep(Duration::from_secs(2));
    cluster.signal_mount(1, Signal::STOP);
    let told = cluster.command(["kill", "2", "--signal", "CONT"].map(Into::into));
    cluster.signal_mount(1, Signal::CONT);
    runs.kill().expect("a kill");
    runs.wait().expect("an end");
    told.expect_success();
}

fn highest_term(cluster: &Cluster) -> u64 {
    cluster.status().iter().filter_map(|node| node.row["term"].as_u64()).max().expect("a term")
}

/// Three of five are gone: nothing is acknowledged, callers can be killed, and the rest resumes by itself.
/// Holds [N10], [Q1], [Q3].
#[test]
fn without_a_majority_writes_wait_and_fail_and_resume_when_one_returns() {
    let cluster = Cluster::start(5, [1, 2]);
    let (file, dead) = (cluster.at(1).join("file"), [3, 4, 5]);
    fs::write(&file, "before").expect("a write");
    let files = || rustix::fs::statvfs(cluster.at(1)).map(|told| told.f_files - told.f_ffree);
    let before = files().expect("statfs");
    cluster.kill(&dead);
    assert_eq!(files(), Ok(before), "df is told what the nearest node knows");

    let mut caller = std::process::Command::new("sh");
    caller
        .args(["-c", "exec dd if=/dev/zero of=\"$0\" bs=1 count=1 conv=notrunc status=none"])
        .arg(cluster.at(2).join("file"));
    let mut caller = caller.spawn().expect("a process");
    assert_eq!(
        crate::common::process::wait(&mut caller, Duration::from_secs(1)),
        None,
        "it was answered without a majority"
    );
    caller.kill().expect("a kill");
    wait_for("the end of a killed process that waits for a majority", || caller.try_wait().expect("its status"));

    let error = fs::write(cluster.at(1).join("another"), "x").expect_err("a write without a majority");
    println!("without a majority a write says: {error}");
    let errno = crate::common::xattr::errno(error);
    assert!([rustix::io::Errno::ROFS, rustix::io::Errno::TIMEDOUT].contains(&errno), "{errno}");

    cluster.restart(&dead);
    fs::write(&file, "after").expect("a write when the majority is back");
    assert_eq!(fs::read_to_string(cluster.at(2).join("file")).expect("a read"), "after");
    cluster.expect_agreement();
}

/// A node misses more than the bytes after which the others take a snapshot. Whether it then needs that snapshot or only
/// the log is the others' choice (they keep a margin of entries behind it), so this test does not tell which it was.
#[test]
fn a_node_that_was_down_catches_up() {
    let cluster = Cluster::start(5, [1, 5]);
    fs::write(cluster.at(5).join("seen"), "before").expect("a write");
    cluster.kill(&[5]);
    let missed = write_past_a_snapshot(cluster.at(1));
    for node in cluster.status() {
        println!("{}", node.row);
    }
    cluster.restart(&[5]);
    cluster.expect_agreement();
    assert_eq!(fs::read_to_string(cluster.at(5).join("seen")).expect("a read"), "after");
    for (name, content) in missed {
        assert!(
            fs::read(cluster.at(5).join(&name)).expect("a read") == content,
            "{name} differs on the node that was down"
        );
    }
    // a second life on what was installed
    cluster.restart(&[5]);
    cluster.expect_agreement();
}

/// Files that stay, files that go and files that change, together well above `SNAPSHOT_AFTER_BYTES`.
fn write_past_a_snapshot(mount: &Path) -> Vec<(String, Vec<u8>)> {
    let mut kept = Vec::new();
    let megabytes = keelfs::limits::SNAPSHOT_AFTER_BYTES >> 20;
    for number in 0..megabytes + megabytes / 2 {
        let content = (0..1 << 20).map(|at: u64| (at.wrapping_mul(number + 7) >> 5) as u8).collect::<Vec<u8>>();
        let name = format!("missed-{number}");
        fs::write(mount.join(&name), &content).expect("a write");
        match number % 4 {
            0 => kept.push((name, content)),
            _ => fs::remove_file(mount.join(&name)).expect("an unlink"),
        }
    }
    fs::write(mount.join("seen"), "after").expect("a write");
    kept
}
