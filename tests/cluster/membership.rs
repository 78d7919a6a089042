//! Nodes come, go and are replaced while programs write; and what must never vote again does not.

use crate::common::process::Finished;
use crate::common::{Beside, Cluster, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The exit codes of "acknowledged data is damaged" and "data directory in use".
const DAMAGED: Option<i32> = Some(75);
const IN_USE: Option<i32> = Some(73);

impl Cluster {
    /// `keelfs …` on this cluster, through whichever of its first nodes answers.
    fn ask(&self, arguments: &[&str]) -> Finished {
        let directory = self.directory();
        self.keelfs(&[arguments, &["--dir", directory.to_str().expect("a path")]].concat())
    }

    /// `keelfs …` through any of the first fifteen addresses.
    fn anyone(&self, arguments: &[&str]) -> Finished {
        let all: Vec<_> = (1..=15).map(|node| self.address(node)).collect();
        self.keelfs(&[arguments, &["--node", &all.join(",")]].concat())
    }

    fn members(&self) -> Vec<Value> {
        let told = self.anyone(&["member", "list", "--json"]).expect_success();
        serde_json::from_str(&told.stdout).unwrap_or_else(|e| panic!("{e}: {}", told.stdout))
    }

    /// The numbers of those that vote, when one of them leads.
    fn voters(&self) -> Option<Vec<u64>> {
        let members = self.members();
        let number = |row: &Value| row["id"].as_u64().expect("a number");
        let votes = |row: &&Value| row["role"] != "learner";
        let led = members.iter().any(|row| row["role"] == "leader");
        led.then(|| members.iter().filter(votes).map(number).collect())
    }

    fn wait_for_voters(&self, wanted: &[u64]) {
        wait_for(&format!("the voters {wanted:?}"), || (self.voters()? == wanted).then_some(()));
        println!("the voters are {wanted:?}");
    }

    /// What the members agree that this node's log holds.
    fn holds(&self, node: u64) -> u64 {
        let members = self.members();
        let row = members.iter().find(|row| row["id"] == node).unwrap_or_else(|| panic!("no node {node}: {members:?}"));
        row["holds"].as_u64().expect("an index")
    }

    fn data(&self, node: u64) -> PathBuf {
        self.directory().join(format!("node-{node}"))
    }

    fn path(&self, name: &str) -> String {
        self.outside(name).to_str().expect("a path").to_owned()
    }

    /// A node of `cluster start`, started by hand.
    fn serve_own(&self, node: u64) -> Beside {
        self.serve(&format!("cluster/node-{node}"), &[])
    }
}

fn refused(finished: Finished, words: &[&str]) {
    let failed = finished.status.is_some_and(|status| !status.success());
    assert!(failed, "{} was not refused: {}", finished.what, finished.stdout);
    for word in words {
        assert!(finished.stderr.contains(word), "{}: no {word:?} in: {}", finished.what, finished.stderr);
    }
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

/// Write files one after the other while `disturb` does its work, which gets a function that waits for more of them.
/// Nothing may fail; afterwards all is there. Prints the longest that one write took.
fn write_during<T>(mount: &Path, disturb: impl FnOnce(&dyn Fn()) -> T) -> T {
    let (over, written, longest) =
        (AtomicBool::new(false), AtomicUsize::new(0), parking_lot::Mutex::new(Duration::ZERO));
    let content = |number: usize| format!("content of {number}");
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let (number, begun) = (written.load(Ordering::Relaxed), Instant::now());
                let result = fs::write(mount.join(format!("file-{number}")), content(number));
                result.unwrap_or_else(|e| panic!("write {number} failed after {:?}: {e}", begun.elapsed()));
                written.fetch_add(1, Ordering::Relaxed);
                let mut longest = longest.lock();
                *longest = begun.elapsed().max(*longest);
            }
        });
        let more = || {
            let before = written.load(Ordering::Relaxed);
            wait_for("more writes", || (written.load(Ordering::Relaxed) > before + 20).then_some(()));
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(&more)));
        over.store(true, Ordering::Relaxed);
        result
    });
    let count = written.into_inner();
    println!("{count} files written, the slowest took {:?}", longest.into_inner());
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    for number in 0..count {
        let found = fs::read_to_string(mount.join(format!("file-{number}"))).expect("what was acknowledged");
        assert_eq!(found, content(number));
    }
    result
}

/// FAULTS 26: a node joins and gets a vote, the leader is removed, all under load.
#[test]
fn a_node_joins_under_load_and_gets_a_vote_and_the_leader_is_removed() {
    let cluster = Cluster::start(3, [1, 2, 3]);
    let leader = cluster.wait_for_leader(None);
    let (other, data, address) = (leader % 3 + 1, cluster.path("n4"), cluster.address(4));
    let _four = write_during(cluster.at(other), |more| {
        more();
        cluster.ask(&["join", "--data", &data, "--address", &address]).expect_success();
        assert_eq!(cluster.voters(), Some(vec![1, 2, 3]), "it does not vote before it has started");
        refused(cluster.ask(&["join", "--data", &data, "--address", &cluster.address(5)]), &["it holds node 4"]);
        refused(cluster.ask(&["join", "--data", &cluster.path("n5"), "--address", &address]), &["node 4's address"]);
        refused(cluster.ask(&["member", "promote", "4"]), &["does not answer"]);
        let four = cluster.serve("n4", &[]);
        cluster.wait_for_voters(&[1, 2, 3, 4]);
        more();
        let done = cluster.ask(&["member", "remove", &leader.to_string()]).expect_success();
        println!("{}", done.stdout.trim());
        let rest: Vec<u64> = (1..=4).filter(|node| *node != leader).collect();
        cluster.wait_for_voters(&rest);
        more();
        // It learns of it and ends, for good.
        wait_for("the end of the removed node", || cluster.status().iter().all(|node| node.id != leader).then_some(()));
        refused(cluster.keelfs(&["serve", "--data", cluster.data(leader).to_str().expect("a path")]), &["was removed"]);
        four
    });
    // The directory's own verbs pass it over.
    cluster.command(["start".into()]).expect_success();
    // A number is not given twice.
    let told = cluster.ask(&["member", "add", &cluster.address(9), "--json"]).expect_success();
    let told: Value = serde_json::from_str(&told.stdout).expect("JSON");
    assert_eq!(told["id"], 5);
    cluster.ask(&["member", "remove", "5"]).expect_success();
    cluster.anyone(&["check"]).expect_success();
}

/// FAULTS 26: a dead node is replaced by one command. Then so are the other two, the leader among them: the mount goes on
/// though none of the nodes that it was told of is left.
#[test]
fn every_first_node_is_replaced_and_the_mount_goes_on() {
    let cluster = Cluster::start(3, [1]);
    let mut beside = Vec::new();
    write_during(cluster.at(1), |more| {
        more();
        cluster.kill(&[3]);
        refused(cluster.ask(&["member", "remove", "2"]), &["only 1 answer", "node 3"]);
        for (old, new) in [(3, 4), (2, 5), (1, 6)] {
            let (data, address) = (format!("n{new}"), cluster.address(new));
            let arguments =
                ["member", "replace", &old.to_string(), "--data", &cluster.path(&data), "--address", &address];
            let done = cluster.anyone(&arguments).expect_success();
            println!("{}", done.stdout.trim());
            beside.push(cluster.serve(&data, &[]));
            let mut voters: Vec<u64> = (1..=3).filter(|node| *node < old).chain(4..=new).collect();
            voters.sort_unstable();
            cluster.wait_for_voters(&voters);
            if old == 3 {
                // The one that was dead comes back, and is told.
                let (code, said) = cluster.serve_own(3).ended();
                assert!(code == Some(0) && said.contains("node 3 has been removed"), "{code:?}: {said}");
            }
            more();
        }
        wait_for("the end of the first nodes", || cluster.status().iter().all(|node| node.id > 3).then_some(()));
        more();
    });
    cluster.anyone(&["check"]).expect_success();
    cluster.keelfs(&["leave", "--data", &cluster.path("n5")]).expect_success();
    let (code, said) = beside.remove(1).ended();
    assert!(code == Some(0) && said.contains("has been removed"), "{code:?}: {said}");
    cluster.wait_for_voters(&[4, 6]);
}

/// FAULTS 21 and 22: a wiped directory, and old copies of one made while it ran and while it did not, are refused by the
/// others, say so with the command that helps, and end; the cluster and the true directory are unharmed.
#[test]
fn a_wiped_node_and_old_copies_never_take_part_again() {
    let cluster = Cluster::start(3, [1]);
    let write = |name: &str| fs::write(cluster.at(1).join(name), name).expect("a write");
    let (data, truth) = (cluster.data(2), cluster.outside("truth"));
    let unfit = |what: &str, copy_of: &Path, words: &str| {
        fs::rename(&data, &truth).expect("a rename");
        copy(copy_of, &data);
        let (code, said) = cluster.serve_own(2).ended();
        assert_eq!(code, DAMAGED, "{what}: {said}");
        assert!(said.contains(words) && said.contains("keelfs member replace 2"), "{what}: {said}");
        println!("{what}: refused");
        fs::remove_dir_all(&data).expect("a removal");
        fs::rename(&truth, &data).expect("a rename");
    };

    // A copy that is a moment old: what the node has acknowledged since is known to the leader alone.
    (0..5).for_each(|n| write(&format!("first-{n}")));
    let copied = cluster.outside("copied-now");
    cluster.signal(2, "STOP");
    copy(&data, &copied);
    cluster.signal(2, "CONT");
    let end = cluster.status()[1].applied;
    (0..20).for_each(|n| write(&format!("since-{n}")));
    wait_for("node 2 to have applied them", || (cluster.status()[1].applied >= end.map(|end| end + 20)).then_some(()));
    cluster.kill(&[2]);
    unfit("a fresh copy of a running node", &copied, "has been reverted: its log ends at entry");
    cluster.restart(&[2]);

    // A copy that is made while the node runs, after which the node holds more.
    (0..20).for_each(|n| write(&format!("before-{n}")));
    let copied = cluster.outside("copied-running");
    cluster.signal(2, "STOP");
    copy(&data, &copied);
    cluster.signal(2, "CONT");
    let end = cluster.status()[1].applied.expect("it runs");
    (0..20).for_each(|n| write(&format!("after-{n}")));
    wait_for("what node 2 holds to be noted", || (cluster.holds(2) > end).then_some(()));
    cluster.kill(&[2]);
    unfit("a copy of a running node", &copied, "has been reverted: its log ends at entry");

    // A copy that is made while it does not run, after which it starts once more.
    let copied = cluster.outside("copied-stopped");
    copy(&data, &copied);
    cluster.restart(&[2]);
    let starts = || cluster.members()[1]["incarnation"].as_u64();
    wait_for("the second start to be known", || (starts() >= Some(3)).then_some(()));
    cluster.kill(&[2]);
    unfit("a copy of a stopped node", &copied, "has been reverted: this is start 3");

    // The disk is lost, and someone initialises it again.
    let told = fs::read_to_string(cluster.directory().join("cluster.toml")).expect("cluster.toml");
    let id = told.split('"').nth(1).expect("the cluster's id").to_owned();
    let wiped = cluster.path("wiped");
    let at = |node: u64| format!("{node}={}", cluster.address(node));
    let (one, two, three) = (at(1), at(2), at(3));
    let members = ["--member", &one, "--member", &two, "--member", &three];
    let init = [&["init", "--data", &wiped, "--cluster", &id, "--node", "2"], &members[..]].concat();
    cluster.keelfs(&init).expect_success();
    refused(cluster.keelfs(&init), &["it holds node 2"]);
    unfit("an empty disk", Path::new(&wiped), "its disk was lost or emptied");

    // None of that has harmed anyone.
    write("while it was away");
    cluster.restart(&[2]);
    cluster.expect_agreement();
}

/// FAULTS 23, 24, 25: a node of another cluster at a member's address; a second process on one data directory; a directory
/// that is given to a second node.
#[test]
fn strangers_and_doubles_are_refused_and_harm_nobody() {
    let cluster = Cluster::start(3, [1]);
    let write = |name: &str| fs::write(cluster.at(1).join(name), name).expect("a write");
    cluster.kill(&[3]);
    let strange = cluster.path("strange");
    let at = |node: u64| format!("{node}={}", cluster.address(node));
    let (one, three) = (at(1), at(3));
    let other = "00000000-0000-4000-8000-000000000001";
    let init = ["init", "--data", &strange, "--cluster", other, "--node", "3", "--member", &one, "--member", &three];
    cluster.keelfs(&init).expect_success();
    let stranger = cluster.serve("strange", &[]);
    let log = || fs::read_to_string(cluster.directory().join("node-1.log")).expect("a log");
    wait_for("the stranger to be refused", || log().contains("cluster id mismatch").then_some(()));
    wait_for("the stranger to refuse", || stranger.said().contains("cluster id mismatch").then_some(()));
    write("beside a stranger");
    // Nor does a client that knows which cluster it means take the stranger for a member.
    let third = cluster.status()[2].clone();
    let why = third.row["error"].as_str().unwrap_or_default();
    assert!(third.role == "down" && why.contains("cluster id mismatch"), "{:?}", third.row);
    drop(stranger);
    cluster.restart(&[3]);
    cluster.expect_agreement();

    let (code, said) = cluster.serve_own(1).ended();
    let pid = cluster.status()[0].pid.expect("it runs").to_string();
    assert!(code == IN_USE && said.contains(&pid), "{code:?}: {said}");
    let data = cluster.data(1);
    let data = data.to_str().expect("a path");
    let before = cluster.members().len();
    refused(cluster.ask(&["join", "--data", data, "--address", &cluster.address(4)]), &["it holds node 1"]);
    refused(cluster.ask(&["member", "replace", "3", "--data", data]), &["it holds node 1"]);
    assert_eq!(cluster.members().len(), before, "no number was given out for nothing");
    write("beside a double");
    cluster.expect_agreement();
}

/// Changes are asked for while leaders are killed: whatever became of each, the cluster goes on, finishes what was begun,
/// and takes the next change.
#[test]
fn leaders_die_while_the_membership_changes() {
    let cluster = Cluster::start(3, [1, 2, 3]);
    let mut joined: BTreeMap<u64, (String, Beside)> = BTreeMap::new();
    for (round, (promoting, removing)) in [(200, 30), (600, 150), (900, 250), (1300, 400)].into_iter().enumerate() {
        let data = format!("x{round}");
        let (path, address) = (cluster.path(&data), cluster.address(4 + round as u64));
        cluster.anyone(&["join", "--data", &path, "--address", &address]).expect_success();
        let last = number_in(&cluster.outside(&data)).expect("a number");
        joined.insert(last, (data.clone(), cluster.serve(&data, &[])));
        while_the_leader_dies(&cluster, &mut joined, Duration::from_millis(promoting), || ());
        fs::write(cluster.at(1).join(format!("joined-{round}")), "x").expect("a write");
        wait_for("all members to vote", || {
            let members = cluster.members();
            let vote = |row: &Value| row["role"] != "learner" && row["answers"] == true;
            members.iter().all(vote).then(|| println!("{} members, and all vote", members.len()))
        });
        let remove = ["member", "remove", &last.to_string(), "--timeout", "20s"];
        let told =
            while_the_leader_dies(&cluster, &mut joined, Duration::from_millis(removing), || cluster.anyone(&remove));
        println!("remove: {:?} {}{}", told.status.and_then(|s| s.code()), told.stdout.trim(), told.stderr.trim());
        wait_for("the removal", || {
            drop(cluster.anyone(&["member", "remove", &last.to_string()]));
            cluster.members().iter().all(|row| row["id"] != last).then_some(())
        });
        let (_, left) = joined.remove(&last).expect("it was there");
        assert_eq!(left.ended().0, Some(0));
        fs::write(cluster.at(2).join(format!("removed-{round}")), "x").expect("a write");
    }
    cluster.expect_agreement();
}

/// Do something, and kill the leader (and start it again) a moment after that began.
fn while_the_leader_dies<T: Send>(
    cluster: &Cluster,
    joined: &mut BTreeMap<u64, (String, Beside)>,
    moment: Duration,
    work: impl FnOnce() -> T + Send,
) -> T {
    let leader = cluster.wait_for_leader(None);
    let done = std::thread::scope(|scope| {
        let working = scope.spawn(work);
        std::thread::sleep(moment);
        match joined.remove(&leader) {
            Some((data, process)) => {
                println!("kill and restart node {leader}, the leader");
                drop(process);
                joined.insert(leader, (data.clone(), cluster.serve(&data, &[])));
            }
            None => cluster.kill(&[leader]),
        }
        working.join().expect("a thread")
    });
    if leader <= 3 {
        cluster.command(["restart".into(), leader.to_string().into()]).expect_success();
    }
    done
}

/// Which node this data directory is, if it is one.
fn number_in(data: &Path) -> Option<u64> {
    let text = fs::read_to_string(data.join("identity.toml")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("node = ")?.parse().ok())
}
