//! Starts a process for each seed, some at a time, and adds up what they say.

use crate::report::{self, Sum};
use crate::world::Outcome;
use keelfs::seeded::Bug;
use std::collections::BTreeMap;
use std::ops::Range;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

/// Seeds of an ordinary `cargo test`.
const SEEDS: Range<u64> = 1..11;
/// Of what is said of a bug in the wrong words.
const OTHERS_CHARS: usize = 60;
/// A bug that so many seeds do not find has been missed.
const BUG_SEEDS_MAX: u64 = 60;

pub fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not the number of a seed"))
}

pub fn range(text: &str) -> Range<u64> {
    let (from, to) = text.split_once("..").unwrap_or_else(|| panic!("{text:?} is not of the form A..B"));
    number(from)..number(to)
}

/// Run one seed in a process of its own, which has this bug if any.
pub fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let program = std::env::current_exe().unwrap_or_else(|e| panic!("which program this is: {e}"));
    let mut command = Command::new(program);
    command.args(["--one", &seed.to_string()]).stderr(Stdio::piped());
    match bug {
        Some(bug) => command.env("KEELFS_BUG", format!("{bug:?}")),
        None => command.env_remove("KEELFS_BUG"),
    };
    let output = command.output();
    let output = output.unwrap_or_else(|e| panic!("cannot start a run: {e}"));
    let said = String::from_utf8_lossy(&output.stdout);
    report::parse(&said).unwrap_or_else(|| Outcome {
        broken: Some(format!("the run ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr))),
        ..Outcome::default()
    })
}

/// Run all, as many at a time as there are processors; tell each outcome as it comes, until that returns `false`.
fn run_all(seeds: Range<u64>, bug: Option<Bug>, mut tell: impl FnMut(u64, &Outcome) -> bool) {
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let (send, outcomes) = mpsc::channel();
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || send.send((seed, run(seed, bug))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for (seed, outcome) in outcomes.iter() {
            if !tell(seed, &outcome) {
                next.store(end, Ordering::Relaxed);
            }
        }
    });
}

fn tell(seed: u64, outcome: &Outcome) {
    match (&outcome.broken, &outcome.void) {
        (Some(broken), _) => println!("seed {seed}: BROKEN at {} ms: {broken}", outcome.simulated_ms),
        (_, Some(void)) => println!("seed {seed}: void: {void}"),
        _ => {}
    }
}

pub fn seeds(seeds: Range<u64>) -> ExitCode {
    let mut sum = Sum::default();
    run_all(seeds, None, |seed, outcome| {
        tell(seed, outcome);
        sum.add(seed, outcome);
        if sum.seeds.is_multiple_of(100) {
            println!("… {} seeds, {} failed", sum.seeds, sum.failed.len());
        }
        true
    });
    sum.print();
    if sum.failed.is_empty() && sum.unanswered().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What has to be said of each bug for it to be found: that a run goes wrong somehow is not enough.
fn reports(bug: Bug) -> &'static [&'static str] {
    match bug {
        Bug::NoDedup => &["exactly once: an append was executed more than once"],
        Bug::LocalRead => &["linearizability of ", "exactly once: a reader at "],
        Bug::AcknowledgeBeforeSync => &["durability: ", "votes: "],
        Bug::VoteNotSynced => &["votes: "],
        Bug::WallClockExpiry | Bug::ExpiryWithoutRecheck => &["is gone before "],
        Bug::UnorderedReaddir => &["a walk saw "],
        Bug::RestoredLeader => &["election safety: "],
        Bug::CasNotAtomic => &["linearizability of register "],
        Bug::UnlinkWithoutCheck => &["linearizability of name "],
        Bug::TruncatedRot => &["durability: "],
    }
}

/// Show that each deliberate bug is found, and after how many seeds.
pub fn bugs() -> ExitCode {
    if !cfg!(feature = "seeded-bugs") {
        println!("this build has no bugs to find: build it with --features seeded-bugs");
        return ExitCode::FAILURE;
    }
    let missed: Vec<Bug> = Bug::ALL.into_iter().filter(|bug| !is_found(*bug)).collect();
    match missed.as_slice() {
        [] => ExitCode::SUCCESS,
        missed => {
            println!("NOT FOUND within {BUG_SEEDS_MAX} seeds: {missed:?}");
            ExitCode::FAILURE
        }
    }
}

/// A seed that finds it says what is wrong by the right name, and has nothing to say without the bug.
fn is_found(bug: Bug) -> bool {
    let (mut runs, mut found, mut others) = (0, None, BTreeMap::<String, u64>::new());
    run_all(1..BUG_SEEDS_MAX + 1, Some(bug), |seed, outcome| {
        runs += 1;
        let Some(broken) = &outcome.broken else { return true };
        let broken = broken.lines().next().unwrap_or_default();
        if found.is_none() && reports(bug).iter().any(|words| broken.contains(words)) && is_clean(seed) {
            found = Some((seed, runs, broken.to_owned()));
        } else {
            *others.entry(broken.chars().take(OTHERS_CHARS).collect()).or_default() += 1;
        }
        found.is_none()
    });
    match &found {
        Some((seed, runs, broken)) => println!("{bug:?}: found after {runs} seeds, by seed {seed}: {broken}"),
        None => println!("{bug:?}: NOT found; what was said instead: {others:?}"),
    }
    found.is_some()
}

fn is_clean(seed: u64) -> bool {
    let outcome = run(seed, None);
    tell(seed, &outcome);
    outcome.broken.is_none() && outcome.void.is_none()
}

/// What `cargo test` runs.
pub fn tests() -> ExitCode {
    let given = std::env::var("KEELFS_SEEDS").ok().map(|text| range(&text));
    if !replays_exactly() {
        return ExitCode::FAILURE;
    }
    seeds(given.unwrap_or(SEEDS))
}

/// Two runs of a seed are the same, event by event; two seeds are not.
fn replays_exactly() -> bool {
    let (first, again, other) = (run(1, None), run(1, None), run(2, None));
    let same = first.trace == again.trace && first.operations == again.operations && first.broken == again.broken;
    let differs = first.trace != other.trace;
    println!("a seed replays exactly ... {}", if same && differs { "ok" } else { "FAILED" });
    same && differs
}
