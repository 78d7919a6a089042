//! A counter under `flock`, by processes on four mounts, while whoever holds the lock is killed: no increment is lost.

use super::obey::DIGITS;
use super::puppet::{Chance, Puppet, send};
use crate::common::{Cluster, rounds};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WRITERS: u64 = 4;

/// What the writers together have said.
#[derive(Default)]
struct Score {
    /// Fencing token and number, said by a writer that held the lock.
    done: Vec<(u64, u64)>,
    /// The process that held the lock last, as far as it has said.
    holder: Option<u32>,
    /// Processes that were killed between the grant and giving back.
    killed_holders: usize,
}

/// `KEELFS_LOCK_INCREMENTS` says how many; `KEELFS_LOCK_SEED` when to kill.
#[test]
fn a_counter_under_flock_loses_nothing_while_holders_are_killed() {
    let cluster = Cluster::start(5, 1..=WRITERS);
    let increments = rounds("KEELFS_LOCK_INCREMENTS", 300);
    let chance = Chance::new("KEELFS_LOCK_SEED");
    fs::write(cluster.at(1).join("counter"), "0".repeat(DIGITS)).expect("a write");
    let (score, over) = (Mutex::new(Score::default()), AtomicBool::new(false));
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=WRITERS)
            .map(|node| cluster.at(node).join("counter"))
            .map(|path| scope.spawn(|| write(&{ path }, &score, increments)))
            .collect();
        scope.spawn(|| kill_holders(&score, &over, chance));
        let ends: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ends.iter().all(Result::is_ok), "a writer has failed");
    });
    let score = score.into_inner().expect("a score");
    println!("{} increments in {:?}", score.done.len(), begun.elapsed());
    let counted = fs::read_to_string(cluster.at(2).join("counter")).expect("a read").parse().expect("a number");
    expect_none_lost(score, counted);
    cluster.expect_agreement();
}

fn expect_none_lost(mut score: Score, counted: u64) {
    let (said, killed) = (score.done.len() as u64, score.killed_holders as u64);
    println!("{said} increments said, {killed} holders killed, the counter says {counted}");
    score.done.sort_unstable();
    for pair in score.done.windows(2) {
        let [(token, number), (next_token, next)] = pair else { unreachable!() };
        assert!(token < next_token, "two grants with the token {token}");
        assert!(number < next, "token {token} wrote {number}, and then token {next_token} wrote {next}");
    }
    let last = score.done.last().map_or(0, |(_, number)| *number);
    assert!(counted >= last, "{last} was written");
    assert!(counted <= said + killed, "somebody counted twice");
    assert!(killed > 0, "no holder was killed: nothing was tested");
}

fn write(path: &Path, score: &Mutex<Score>, increments: usize) {
    let mut writer = Puppet::at(path);
    while score.lock().expect("a score").done.len() < increments {
        if !count_once(&mut writer, score) {
            writer = Puppet::at(path);
        }
    }
}

/// `false`: it was killed.
fn count_once(writer: &mut Puppet, score: &Mutex<Score>) -> bool {
    let (pid, mut holds) = (writer.pid(), false);
    writer.tell("count 1");
    loop {
        let line = writer.hear();
        let mut score = score.lock().expect("a score");
        match line.as_deref().map(|line| line.split(' ').collect::<Vec<_>>()).as_deref() {
            Some(["have"]) => {
                holds = true;
                score.holder = Some(pid);
            }
            Some(["done", token, number]) => {
                score.done.push((token.parse().expect("a token"), number.parse().expect("a number")));
            }
            Some(["ok"]) => {
                forget(&mut score.holder, pid);
                return true;
            }
            None => {
                forget(&mut score.holder, pid);
                score.killed_holders += holds as usize;
                return false;
            }
            Some(other) => panic!("a writer says {other:?}"),
        }
    }
}

fn forget(holder: &mut Option<u32>, pid: u32) {
    if *holder == Some(pid) {
        *holder = None;
    }
}

/// Now and then kill the process that has said last that it holds the lock, at some point of what it then does.
fn kill_holders(score: &Mutex<Score>, over: &AtomicBool, mut chance: Chance) {
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50 + chance.below(400) as u64));
        while score.lock().expect("a score").holder.is_none() && !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(chance.below(10) as u64));
        // Its starter reaps it only after it has ended here as the holder, so the number is still its own.
        let mut score = score.lock().expect("a score");
        if let Some(pid) = score.holder.take() {
            send(pid, Signal::KILL);
        }
    }
}
