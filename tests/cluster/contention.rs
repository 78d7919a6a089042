//! Many clients on one file: compare-and-swap has one winner, appends do not overlap.

use crate::common::{Cluster, xattr};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const CLIENTS: usize = 10;
const WINS: usize = 200;

/// What the clients together have seen.
#[derive(Default)]
struct Score {
    /// Who won against which version.
    winners: BTreeMap<u64, usize>,
    /// Attempts whose outcome nobody told.
    unknown: usize,
    lost: usize,
}

/// Ten clients on five mounts count together; half way the leader is killed. Each version is replaced at most once, and
/// the counter says how often.
/// Holds [A6].
#[test]
fn compare_and_swap_has_exactly_one_winner_for_each_version() {
    let cluster = Cluster::start(5, 1..=5);
    fs::write(cluster.at(1).join("counter"), "0").expect("a write");
    let (score, over) = (Mutex::new(Score::default()), AtomicBool::new(false));
    let killed = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let path = cluster.at(client as u64 % 5 + 1).join("counter");
            let (score, over) = (&score, &over);
            scope.spawn(move || count(&path, client, score, over));
        }
        let stop_at_the_end = StopAtTheEnd(&over);
        wait_for_wins(&score, WINS / 2);
        let killed = cluster.kill_leader();
        wait_for_wins(&score, WINS);
        drop(stop_at_the_end);
        killed
    });
    let score = score.into_inner().expect("a score");
    let counted: usize =
        fs::read_to_string(cluster.at(killed % 5 + 1).join("counter")).expect("a read").parse().expect("a number");
    println!(
        "{} wins, {} lost races, {} unknown; the counter says {counted}",
        score.winners.len(),
        score.lost,
        score.unknown
    );
    assert!(counted >= score.winners.len(), "acknowledged swaps are missing");
    assert!(counted <= score.winners.len() + score.unknown, "a swap was applied twice");
    assert!(score.lost > 0, "the clients never met: nothing was tested");
    cluster.restart(&[killed]);
    cluster.expect_agreement();
}

/// Lets the other threads of a scope end when the main one panics; otherwise the scope would wait for ever.
struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn wait_for_wins(score: &Mutex<Score>, wins: usize) {
    crate::common::wait_for(&format!("{wins} successful swaps"), || {
        (score.lock().expect("a score").winners.len() >= wins).then_some(())
    });
}

fn count(path: &Path, client: usize, score: &Mutex<Score>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Some((version, counter)) = look(path) else {
            // the mount of the killed node, or no leader just now
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let outcome = xattr::cas(path, version, &(counter + 1).to_string());
        let mut score = score.lock().expect("a score");
        match outcome {
            Ok(()) => {
                let other = score.winners.insert(version, client);
                assert_eq!(other, None, "client {client} won version {version}, which had a winner already");
            }
            Err(Errno::BUSY) => score.lost += 1,
            Err(error) => {
                println!("client {client}: cas of version {version}: {error}");
                score.unknown += 1;
            }
        }
    }
}

/// Version first, then content: if the content is newer, the swap fails; it can never be older.
fn look(path: &Path) -> Option<(u64, usize)> {
    let version = xattr::version(path).ok()?;
    let counter = fs::read_to_string(path).ok()?;
    Some((version, counter.parse().unwrap_or_else(|_| panic!("the counter holds {counter:?}"))))
}

/// `O_APPEND` from five mounts at once: each record exactly once, in one piece, in each writer's order.
#[test]
fn appends_from_five_mounts_do_not_overlap() {
    let cluster = Cluster::start(5, 1..=5);
    fs::write(cluster.at(1).join("journal"), "").expect("a new file");
    let each = 40;
    std::thread::scope(|scope| {
        for node in 1..=5u64 {
            let path = cluster.at(node).join("journal");
            scope.spawn(move || {
                let mut journal = OpenOptions::new().append(true).open(path).expect("an open for appending");
                for number in 0..each {
                    journal.write_all(record(node, number).as_bytes()).expect("an append");
                }
            });
        }
    });
    let journal = fs::read_to_string(cluster.at(3).join("journal")).expect("a read");
    for node in 1..=5 {
        let own: Vec<String> =
            journal.lines().filter(|line| line.starts_with(&format!("{node} "))).map(|l| format!("{l}\n")).collect();
        let expected: Vec<String> = (0..each).map(|number| record(node, number)).collect();
        assert_eq!(own, expected, "the records of node {node}");
    }
    assert_eq!(journal.lines().count(), 5 * each);
    println!("{} records from five mounts, each once and whole", 5 * each);
}

/// Of different lengths, some longer than a page.
fn record(node: u64, number: usize) -> String {
    format!("{node} {number} {}\n", "x".repeat(number * 251 % 9000))
}
