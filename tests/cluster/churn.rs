//! Small files that come and go, as fast as many clients can make them: what is left of them, on disk and in memory.

use crate::common::cs733::Client;
use crate::common::{Cluster, Node, rounds, wait_for};
use rustix::fs::{stat, statvfs};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: usize = 192;
/// Files that each client has at a time.
const LIVE: usize = 20;
/// Inodes that may wait for the answer that no session holds them open: a few seconds' worth, however long files have been
/// coming and going.
const WAITING_MAX: u64 = 40_000;
/// Segments of 64 MiB and all else in a node's log directory, which keeps some to be used again.
const DISK_BYTES_MAX: u64 = 1 << 30;

/// `KEELFS_CHURN_FILES` says how many; a session that holds nothing open is there as well, that of the mount.
#[test]
fn nothing_stays_of_small_files_that_come_and_go() {
    let files = rounds("KEELFS_CHURN_FILES", 40_000);
    let cluster = Cluster::start(3, [1]);
    print_memory(&cluster, "before");
    let (made, begun) = (AtomicU64::new(0), Instant::now());
    let most = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = Client::connect(cluster.cs733(number as u64 % 3 + 1));
                let made = &made;
                scope.spawn(move || come_and_go(client, number, files.div_ceil(CLIENTS), made))
            })
            .collect();
        let mut most = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            most = most.max(inodes(cluster.at(1)));
            std::thread::sleep(Duration::from_millis(200));
        }
        most
    });
    let made = made.into_inner();
    println!("{made} files came and went in {:.0?}; at most {most} inodes at a time", begun.elapsed());
    print_memory(&cluster, "after");
    assert!(made >= files as u64);
    assert!(most <= (CLIENTS * LIVE) as u64 + WAITING_MAX, "inodes heap up: {most}");
    wait_for("every inode but the root to go", || (inodes(cluster.at(1)) == 1).then_some(()));
    assert_eq!(fs::read_dir(cluster.at(1)).expect("the root").count(), 0);
    cluster.expect_agreement();
    for node in 1..=3 {
        let used = disk_bytes(&cluster.directory().join(format!("node-{node}/log")));
        println!("node {node}: {} MiB of disk", used >> 20);
        assert!(used <= DISK_BYTES_MAX, "node {node} uses {used} bytes for an empty tree");
    }
}

fn come_and_go(mut client: Client, number: usize, files: usize, made: &AtomicU64) {
    let content = "x".repeat(200);
    for file in 0..files + LIVE {
        if file < files {
            client.write(&format!("write c{number}-{file} 200\r\n{content}\r\n"));
            made.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(old) = file.checked_sub(LIVE) {
            assert_eq!(client.ask(&format!("delete c{number}-{old}\r\n")), "OK\r\n");
        }
    }
}

/// As `df -i` says.
fn inodes(mount: &Path) -> u64 {
    let told = statvfs(mount).expect("statvfs");
    told.f_files - told.f_ffree
}

fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("a log directory").flatten();
    entries.filter_map(|entry| stat(entry.path()).ok()).map(|file| file.st_blocks as u64 * 512).sum()
}

fn print_memory(cluster: &Cluster, when: &str) {
    let resident = |node: &Node| {
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let nodes = cluster.status();
    let mib: Vec<_> = nodes.iter().filter_map(resident).map(|kib| kib >> 10).collect();
    println!("resident {when}: {mib:?} MiB");
}
