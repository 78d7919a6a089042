//! Nodes are killed while clients write: what was acknowledged is there afterwards, once.

use crate::common::{Cluster, wait_for};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A client that makes files and appends to a journal of its own, and remembers what it was told.
struct Writer {
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
        Writer { name, mount: cluster.at(node).to_owned(), acknowledged: vec![], journalled: vec![], failed: vec![] }
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

fn check_everywhere(cluster: &Cluster, writers: &[Writer]) {
    for writer in writers {
        let failed: Vec<_> = writer.failed.iter().map(|(_, error)| error).collect();
        println!(
            "{}: {} files acknowledged, {} failed {:?}",
            writer.name,
            writer.acknowledged.len(),
            failed.len(),
            kinds(&failed)
        );
        for node in cluster.mounted() {
            writer.check(cluster.at(node));
        }
    }
    cluster.expect_agreement();
}

fn kinds(errors: &[&String]) -> std::collections::BTreeSet<String> {
    errors.iter().map(|error| (*error).clone()).collect()
}

#[test]
fn the_leader_is_killed_during_writes() {
    let cluster = Cluster::start(5, 1..=5);
    let (writers, ()) = write_during(&cluster, &[1, 2, 3], |more_writes| {
        for _ in 0..2 {
            more_writes(60);
            let old = cluster.kill_leader();
            let new = cluster.wait_for_leader(Some(old));
            println!("node {new} leads after node {old}");
            more_writes(60);
            cluster.restart(&[old]);
        }
    });
    check_everywhere(&cluster, &writers);
}

#[test]
fn two_nodes_are_killed_and_the_service_goes_on() {
    let cluster = Cluster::start(5, 1..=5);
    let (writers, ()) = write_during(&cluster, &[1, 2, 3, 4, 5], |more_writes| {
        more_writes(60);
        let leader = cluster.kill_leader();
        let another = leader % 5 + 1;
        cluster.kill(&[another]);
        more_writes(100);
        cluster.restart(&[leader, another]);
        more_writes(60);
    });
    check_everywhere(&cluster, &writers);
}

#[test]
fn all_five_are_killed_during_writes_and_come_back_with_all_that_was_acknowledged() {
    let cluster = Cluster::start(5, 1..=5);
    let (writers, terms) = write_during(&cluster, &[1, 2, 3], |more_writes| {
        more_writes(100);
        let before = highest_term(&cluster);
        cluster.kill(&[1, 2, 3, 4, 5]);
        cluster.restart(&[4, 2, 5, 1, 3]);
        let after = highest_term(&cluster);
        more_writes(30);
        (before, after)
    });
    assert!(terms.1 > terms.0, "the old leader resumed its term: {terms:?}");
    check_everywhere(&cluster, &writers);
}

fn highest_term(cluster: &Cluster) -> u64 {
    cluster.status().iter().filter_map(|node| node.row["term"].as_u64()).max().expect("a term")
}

/// Three of five are gone: nothing is acknowledged, callers can be killed, and the rest resumes by itself.
#[test]
fn without_a_majority_writes_wait_and_fail_and_resume_when_one_returns() {
    let cluster = Cluster::start(5, [1, 2]);
    let (file, dead) = (cluster.at(1).join("file"), [3, 4, 5]);
    fs::write(&file, "before").expect("a write");
    cluster.kill(&dead);

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

/// A node misses more than the others keep of the log, so it needs a snapshot and the bodies that it lacks.
#[test]
fn a_node_that_was_down_catches_up() {
    let cluster = Cluster::start(5, [1, 5]);
    fs::write(cluster.at(5).join("seen"), "before").expect("a write");
    cluster.kill(&[5]);
    let missed = write_more_than_the_log_keeps(cluster.at(1));
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
fn write_more_than_the_log_keeps(mount: &Path) -> Vec<(String, Vec<u8>)> {
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
