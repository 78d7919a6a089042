//! Disks that are full: nodes on small file systems of their own (FAULTS 17 to 19).
//!
//! They need root, `mkfs.ext4` and loop devices. Where these are missing the tests say so and are skipped: they are the
//! only ones that are.

use crate::common::{Cluster, Node, wait_for};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room for the segment that is written, the reserve, and some 150 MiB.
const DISK_MIB: u64 = 400;
const MIB: usize = 1 << 20;

/// A file system in a file.
struct Disk {
    at: PathBuf,
}

impl Disk {
    /// An ext4 of this size, mounted at `at`.
    fn new(image: &Path, at: PathBuf, mebibytes: u64) -> Disk {
        File::create(image).and_then(|file| file.set_len(mebibytes << 20)).expect("an image");
        fs::create_dir(&at).expect("a mount point");
        tool(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image));
        tool(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at));
        Disk { at }
    }

    fn free(&self) -> u64 {
        let disk = statvfs(&self.at).expect("statvfs");
        disk.f_bfree * disk.f_frsize
    }

    /// Someone else takes all that is left.
    fn fill(&self) {
        let file = File::create(self.at.join("ballast")).expect("a file");
        let mut from = 0;
        for step in [64 << 20, 1 << 20, 4 << 10] {
            while fallocate(&file, FallocateFlags::empty(), from, step).is_ok() {
                from += step;
            }
        }
        file.sync_all().expect("a sync");
        println!("{}: {} MiB taken, {} bytes free", self.at.display(), from >> 20, self.free());
    }

    fn spares(&self) -> usize {
        let names = fs::read_dir(self.at.join("node/log")).expect("a log").flatten().map(|entry| entry.file_name());
        names.filter(|name| name.as_encoded_bytes().ends_with(b".free")).count()
    }

    fn free_again(&self) {
        fs::remove_file(self.at.join("ballast")).expect("the ballast");
        // Its blocks are free when the journal has been written.
        rustix::fs::sync();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A node that a failed test left behind may still use it.
        let done = Command::new("umount").arg(&self.at).status().is_ok_and(|status| status.success());
        if !done {
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

fn tool(command: &mut Command) {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A cluster some of whose nodes have a small disk each. Dropped in this order: the nodes end before their disks go.
struct Story {
    cluster: Cluster,
    /// By node.
    disks: BTreeMap<u64, Disk>,
}

impl Story {
    /// All mounted, some of the nodes on disks of this size. `None`: this machine cannot do it.
    fn begin(nodes: u64, on_disks: impl IntoIterator<Item = u64>, mebibytes: u64) -> Option<Story> {
        if !rustix::process::geteuid().is_root() || Command::new("mkfs.ext4").arg("-V").output().is_err() {
            println!("SKIPPED: only root can mount file systems, and mkfs.ext4 is needed");
            return None;
        }
        let mut story = Story { cluster: Cluster::start(nodes, 1..=nodes), disks: BTreeMap::new() };
        story.command("stop");
        for node in on_disks {
            let name = |what: &str| story.cluster.outside(&format!("{what}-{node}"));
            let disk = Disk::new(&name("image"), name("disk"), mebibytes);
            story.settle(node, &disk);
            story.disks.insert(node, disk);
        }
        story.command("start");
        story.cluster.wait_until_whole();
        for disk in story.disks.values() {
            wait_for("a reserve of two segments", || (disk.spares() == 2).then_some(()));
        }
        Some(story)
    }

    /// Move a node's data to a disk.
    fn settle(&self, node: u64, disk: &Disk) {
        let (data, there) = (self.cluster.directory().join(format!("node-{node}")), disk.at.join("node"));
        tool(Command::new("cp").arg("-a").arg(&data).arg(&there));
        fs::remove_dir_all(&data).expect("the old place");
        std::os::unix::fs::symlink(&there, &data).expect("a link to the new place");
    }

    fn command(&self, verb: &str) {
        self.cluster.command([verb.into()]).expect_success();
    }

    fn disk(&self, node: u64) -> &Disk {
        &self.disks[&node]
    }

    fn is_behind(&self, id: u64, other: u64) -> bool {
        self.node(id).applied < self.node(other).applied
    }

    fn node(&self, id: u64) -> Node {
        self.cluster.status().into_iter().find(|node| node.id == id).expect("the node")
    }

    /// Fill a node's disk, and have the cluster write, through the mount at `there`, until the node says so.
    fn fill(&self, id: u64, there: &Path) {
        self.disk(id).fill();
        for number in 0.. {
            fs::write(there.join(format!("until-{id}-is-full")), content(number)).expect("a write: others have room");
            if self.node(id).row["storage_full"] == true {
                return;
            }
            assert!(number < 200, "node {id} took 200 MiB");
        }
    }

    fn wait_until_full(&self, id: u64, full: bool) {
        wait_for(&format!("node {id} to say that its disk is full: {full}"), || {
            (self.node(id).row["storage_full"] == full).then_some(())
        });
    }

    fn log_of(&self, node: u64) -> String {
        fs::read_to_string(self.cluster.directory().join(format!("node-{node}.log"))).expect("what the node says")
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        // The disks go when the cluster is gone: until then only the nodes' processes end.
        let _ = self.cluster.command(["stop".into()]);
        for node in std::mem::take(&mut self.disks).into_keys() {
            // `destroy` follows no links.
            let _ = fs::remove_file(self.cluster.directory().join(format!("node-{node}")));
        }
    }
}

fn content(seed: u64) -> Vec<u8> {
    (0..MIB as u64).map(|at| (at.wrapping_mul(seed * 2 + 7) >> 5) as u8).collect()
}

/// Write files of 1 MiB until one is refused for lack of space; how many there are.
fn write_until_full(directory: &Path, most: u64) -> u64 {
    for number in 0..most {
        match fs::write(directory.join(format!("file-{number}")), content(number)) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::StorageFull => return number,
            Err(e) => panic!("file {number}: {e}"),
        }
    }
    panic!("{most} MiB fit");
}

/// FAULTS 17 and 18: the leader's disk is filled, then that of another. The cluster of five goes on with the other three;
/// the two say what is wrong with them, start again on their full disks, and catch up when there is room.
#[test]
fn full_disks_of_a_minority_cost_nothing_but_those_nodes() {
    let Some(story) = Story::begin(5, [1, 2, 3, 4, 5], 640) else { return };
    let cluster = &story.cluster;
    let first = cluster.wait_for_leader(None);
    let here = cluster.at(first).to_owned();
    fs::write(here.join("kept"), "before").expect("a write");
    fs::write(here.join("removed"), content(1)).expect("a write");
    story.fill(first, &here);

    // Through the mount of the full node itself: reads, deletes, and what grows, because another leads by then.
    assert_eq!(fs::read_to_string(here.join("kept")).expect("a read"), "before");
    fs::remove_file(here.join("removed")).expect("an unlink");
    File::options().write(true).open(here.join("kept")).and_then(|file| file.set_len(3)).expect("a truncation");
    let leader = wait_for("another node to lead", || cluster.leader().filter(|leader| *leader != first));
    fs::write(here.join("kept"), "after").expect("a write, though the disk beside it is full");
    assert!(story.log_of(first).contains("storage full"));

    let second = (1..=5).find(|id| ![first, leader].contains(id)).expect("a follower");
    let third = (1..=5).find(|id| ![first, second].contains(id)).expect("a node with room");
    let full = [first, second];
    let pids = full.map(|id| story.node(id).pid);
    story.fill(second, cluster.at(third));
    for number in 0..240 {
        fs::write(cluster.at(third).join(format!("file-{number}")), content(number)).expect("a write with three disks");
    }
    full.iter().for_each(|id| assert!(story.is_behind(*id, third), "node {id} took 240 MiB"));
    assert_eq!(full.map(|id| story.node(id).pid), pids, "the same processes");
    assert_eq!(fs::read_to_string(here.join("kept")).expect("a read"), "after");

    // A supervisor restarts one: it starts, and goes on as before.
    cluster.kill(&[second]);
    cluster.restart(&[second]);
    story.wait_until_full(second, true);
    assert!(story.is_behind(second, third));

    full.iter().for_each(|id| story.disk(*id).free_again());
    full.iter().for_each(|id| story.wait_until_full(*id, false));
    cluster.expect_agreement();
    assert_eq!(story.node(first).pid, pids[0], "the same process to the end");
    assert_eq!(fs::read(here.join("file-239")).expect("a read"), content(239));
}

/// FAULTS 19: three of three disks are written full. What grows is refused, `df` says so, what frees works, and after that
/// there is room again; a restart on full disks works too.
#[test]
fn a_full_cluster_refuses_what_grows_and_can_be_emptied() {
    let Some(story) = Story::begin(3, [1, 2, 3], DISK_MIB) else { return };
    let cluster = &story.cluster;
    let directory = cluster.at(1).join("files");
    fs::create_dir(&directory).expect("a directory");
    let available = |node| {
        let disk = statvfs(cluster.at(node)).expect("statvfs");
        disk.f_bavail * disk.f_frsize
    };
    let promised = available(1) >> 20;
    let pids = |story: &Story| story.cluster.status().into_iter().map(|node| node.pid).collect::<Vec<_>>();
    let before = pids(&story);
    let written = write_until_full(&directory, 2 * DISK_MIB);
    println!("df promised {promised} MiB, {written} MiB were written");
    // Segments have heads and ends, and what is under way counts twice.
    assert!(written >= promised * 8 / 10, "df promised {promised} MiB, {written} were written");
    assert!(available(2) < 8 << 20, "{} bytes", available(2));
    // What is left takes no MiB, but may take less.
    let small = |number: &u64| fs::write(directory.join(format!("small-{number}")), [7; 2000]);
    let error = (0..10_000).find_map(|number| small(&number).err()).expect("an end");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    (1..=3).for_each(|id| story.wait_until_full(id, true));

    let refused =
        |result: std::io::Result<()>| assert_eq!(result.expect_err("it grows").kind(), ErrorKind::StorageFull);
    refused(fs::create_dir(directory.join("another")));
    refused(fs::write(directory.join("file-0"), content(3)));
    let mut half = File::options().append(true).open(directory.join("file-0")).expect("an open");
    refused(half.write_all(b"more"));
    fs::rename(directory.join("file-1"), directory.join("renamed")).expect("a rename");

    // Restarted as a supervisor does it, all of them, on their full disks.
    story.disks.values().for_each(Disk::fill);
    cluster.kill(&[1, 2, 3]);
    cluster.restart(&[1, 2, 3]);
    assert_eq!(fs::read(directory.join("file-2")).expect("a read"), content(2));
    refused(fs::write(directory.join("another"), "x"));
    story.disks.values().for_each(Disk::free_again);

    fs::remove_file(directory.join("renamed")).expect("an unlink");
    for number in 2..written {
        fs::remove_file(directory.join(format!("file-{number}"))).expect("an unlink");
    }
    wait_for("room after deleting", || fs::write(directory.join("another"), content(9)).ok());
    // A segment that is still written is not given back.
    wait_for("most of the room", || (available(1) >> 20 >= promised / 2).then_some(()));
    let again = write_until_full(&directory, 2 * DISK_MIB);
    assert!(again >= written / 2, "{again} MiB after {written}");
    fs::remove_dir_all(&directory).expect("rm -r on a full disk");
    wait_for("room for all of it", || (available(3) >> 20 >= promised / 2).then_some(()));
    assert_eq!(pids(&story).len(), before.len());
    cluster.expect_agreement();
}
