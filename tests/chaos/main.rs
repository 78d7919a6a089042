//! Five real processes, each in a network namespace and on a disk of its own, with a mount beside it; clients that use
//! the mounts; a nemesis that kills, pauses, cuts off, and takes the power away; and judges of what the clients saw.
//!
//! `scripts/chaos` runs it, as root. `cargo test` does not, and says so; it only holds the judges to known histories.
//!
//! | part | what it is |
//! |---|---|
//! | `host`, `disk` | namespaces and packet filters; loop-mounted disks that lose power, fill up and fail |
//! | `cluster` | the processes, and what they say of themselves |
//! | `nemesis` | the faults |
//! | `client`, `workload` | what clients do, and how each kind of work is judged |
//! | `history`, `finals`, `logcheck` | what clients saw; the tree at the end; the committed log |
//! | `judges` | the judges, held to known histories |
//! | `run`, `failover` | one run; how long a writer waits when the leader dies |
//!
//! A run is *void*, and counts as failed, if its fault never happened or too little succeeded. A timeout is *unknown*:
//! what was asked may have been done. The manner is that of Jepsen (jepsen.io); the search for an order is `tests/history`.

mod client;
mod cluster;
mod dice;
mod disk;
mod failover;
mod finals;
mod history;
mod host;
mod judges;
#[path = "../history/linearizable.rs"]
mod linearizable;
mod logcheck;
mod nemesis;
#[path = "../history/register.rs"]
mod register;
mod run;
mod workload;
#[path = "../common/xattr.rs"]
#[allow(dead_code, reason = "shared with the tests of attributes")]
mod xattr;

use clap::Parser;
use cluster::Setup;
use host::Network;
use nemesis::Nemesis;
use run::{Plan, Report};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a build machine runs, short runs, in less than four minutes: always these kinds, and some of the others, which each
/// day are other ones.
const CI_ALWAYS: [&str; 2] = ["kill-leader", "power-all"];
const CI_OTHERS: usize = 3;
const CI_SECONDS: u64 = 10;

#[derive(Parser)]
#[command(name = "scripts/chaos", about = "Break a cluster of five in every way, while clients use it")]
struct Words {
    /// So many runs; each has a nemesis of the list, one after the other
    #[arg(long, default_value_t = nemesis::ALL.len())]
    runs: usize,
    /// How long the nemesis works in each run
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Names, comma-separated [default: all]
    #[arg(long, value_delimiter = ',')]
    nemesis: Vec<String>,
    /// Of the first run; each next one has the next seed
    #[arg(long)]
    seed: Option<u64>,
    /// The program [default: the one that was built with this test]
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Where disks and mounts go: some gigabytes, mostly holes [default: a new directory for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Clients pause so many times as long, for slow machines
    #[arg(long, default_value_t = 1)]
    ease: u64,
    /// Let the mounts serve what may be stale: the judges must find it, and the runs fail
    #[arg(long)]
    stale_reads: bool,
    /// A handful of short runs, for a build machine; by and by it does all kinds
    #[arg(long)]
    ci: bool,
    /// Leave out what this machine lacks the means for, and be content; else that is an error
    #[arg(long)]
    allow_skips: bool,
    /// Kill the leader so often under a writer, and print how long that waited
    #[arg(long, value_name = "KILLS")]
    failover: Option<usize>,
    /// List the nemeses, with the rows of the table of faults that they are for
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("client") => client::main(words.get(2).map_or("", String::as_str)),
        Some("holder") if words.len() == 3 => nemesis::holder(&words[2]),
        Some("writer") if words.len() == 4 => failover::writer(&words[2], &words[3]),
        Some("run") => chaos(Words::parse_from(&words[1..])),
        _ => judge_the_judges(),
    }
}

/// All that needs no root and no minutes.
fn judge_the_judges() -> ExitCode {
    println!("chaos: NOT RUN: it needs root, its own namespaces and disks, and minutes; scripts/chaos runs it");
    match judges::all() {
        Ok(cases) => {
            println!("chaos: its judges were right about {cases} known histories");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("chaos: FAIL: a judge is wrong: {why}");
            ExitCode::FAILURE
        }
    }
}

fn chaos(words: Words) -> ExitCode {
    if words.list {
        nemesis::ALL.iter().for_each(|nemesis| println!("{:<20} rows {}", nemesis.name, nemesis.about));
        return ExitCode::SUCCESS;
    }
    let chosen = match chosen(&words) {
        Ok(chosen) => chosen,
        Err(why) => {
            eprintln!("chaos: {why}");
            return ExitCode::from(2);
        }
    };
    let root = root(&words);
    host::sweep(&root);
    let network = Rc::new(Network::build(cluster::GUEST));
    let passed = match words.failover {
        Some(kills) => fail_over(&words, kills, &root, &network),
        None => run_all(&words, &chosen, &root, &network),
    };
    drop(network);
    // What failed left its histories there.
    let _ = std::fs::remove_dir(&root);
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Two that are always run, and others that lie evenly spread over the list, one further each day.
fn of_today() -> Vec<&'static str> {
    let others: Vec<&str> =
        nemesis::ALL.iter().map(|nemesis| nemesis.name).filter(|name| !CI_ALWAYS.contains(name)).collect();
    let days = since_1970().as_secs() / (24 * 60 * 60);
    let period = others.len().div_ceil(CI_OTHERS);
    let first = (days % period as u64) as usize;
    let today: Vec<&str> = CI_ALWAYS.into_iter().chain(others.into_iter().skip(first).step_by(period)).collect();
    println!("chaos: day {} of {period}: {}", first + 1, today.join(" "));
    today
}

fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// The nemeses that were asked for. Those that this machine cannot do are left out, if that is allowed.
fn chosen(words: &Words) -> Result<Vec<&'static Nemesis>, String> {
    let names: Vec<&str> = match (words.ci, words.nemesis.is_empty()) {
        (true, true) => of_today(),
        (false, true) => nemesis::ALL.iter().map(|nemesis| nemesis.name).collect(),
        (_, false) => words.nemesis.iter().map(String::as_str).collect(),
    };
    let binary = binary(words).display().to_string();
    let (mut chosen, mut skipped) = (Vec::new(), 0);
    for name in names {
        let nemesis = nemesis::named(name).ok_or_else(|| format!("there is no nemesis {name}; --list lists them"))?;
        match nemesis.lacks(&binary) {
            Some(why) => {
                println!("chaos: SKIPPED: {name}: {why}");
                skipped += 1;
            }
            None => chosen.push(nemesis),
        }
    }
    if skipped > 0 && !words.allow_skips {
        return Err(format!("{skipped} kinds cannot be done here; --allow-skips leaves them out"));
    }
    if chosen.is_empty() { Err("no nemesis is left that this machine can do".into()) } else { Ok(chosen) }
}

fn root(words: &Words) -> PathBuf {
    let root = words.dir.clone().unwrap_or_else(|| host::default_root(&std::process::id().to_string()));
    std::fs::create_dir_all(&root).unwrap_or_else(|e| panic!("cannot make {}: {e}", root.display()));
    root.canonicalize().unwrap_or_else(|e| panic!("cannot use {}: {e}", root.display()))
}

fn binary(words: &Words) -> PathBuf {
    let named = words.bin.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_keelfs").into());
    named.canonicalize().unwrap_or_else(|e| panic!("cannot use {}: {e}", named.display()))
}

fn fail_over(words: &Words, kills: usize, root: &Path, network: &Rc<Network>) -> bool {
    let directory = root.join("failover");
    std::fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("cannot make {}: {e}", directory.display()));
    let binary = binary(words);
    let setup = Setup { binary, directory: directory.clone(), timeout_s: 30, stale_reads: false, own_clocks: false };
    match failover::measure(kills, setup, network) {
        Ok(()) => std::fs::remove_dir_all(&directory).is_ok(),
        Err(why) => {
            println!("fail-over: FAIL: {why}; see {}", directory.display());
            false
        }
    }
}

/// Sums for the last lines.
#[derive(Default)]
struct Totals {
    runs: u64,
    bad: u64,
    ok: u64,
    failed: u64,
    unknown: u64,
    entries: usize,
    /// By nemesis: runs, episodes, bad runs, the longest call.
    by_nemesis: BTreeMap<&'static str, (u64, u64, u64, Duration)>,
    bad_seeds: Vec<(u64, &'static str)>,
}

fn run_all(words: &Words, chosen: &[&'static Nemesis], root: &Path, network: &Rc<Network>) -> bool {
    let first_seed = words.seed.unwrap_or(since_1970().as_secs());
    let (runs, seconds) = if words.ci { (chosen.len(), CI_SECONDS) } else { (words.runs, words.seconds) };
    let (begun, mut totals) = (Instant::now(), Totals::default());
    for number in 0..runs {
        // By the seed, so that a seed and a list repeat a run.
        let seed = first_seed + number as u64;
        let nemesis = chosen[(seed % chosen.len() as u64) as usize];
        let directory = root.join(format!("run-{seed}"));
        std::fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("cannot make {}: {e}", directory.display()));
        let plan = Plan {
            seed,
            nemesis,
            seconds,
            binary: binary(words),
            directory: directory.clone(),
            ease: words.ease,
            stale_reads: words.stale_reads,
        };
        let run_begun = Instant::now();
        let report = run::run(&plan, network);
        show(&plan, &report, run_begun.elapsed());
        if totals.add(&plan, &report) {
            let _ = std::fs::remove_dir_all(&directory);
        } else {
            println!("    histories and logs are in {}", directory.display());
        }
    }
    totals.show(begun.elapsed());
    totals.bad == 0
}

fn show(plan: &Plan, report: &Report, took: Duration) {
    let verdict = match (report.violations.is_empty(), report.void.is_empty()) {
        (false, _) => "VIOLATED",
        (true, false) => "VOID",
        (true, true) => "ok",
    };
    println!(
        "seed {:<10} {:<20} {:>6} ok ({:>5} under the fault) {:>4} failed {:>4} unknown, longest call {:>6.2} s, {:>6} entries, {:>3.0} s  {verdict}",
        plan.seed,
        plan.nemesis.name,
        report.ok,
        report.under_fault,
        report.failed,
        report.unknown,
        report.longest.as_secs_f64(),
        report.entries,
        took.as_secs_f64()
    );
    println!("    {}; {} requests came again; {}", report.workloads.join(" "), report.repeated, report.stages.trim());
    report.notes.iter().for_each(|note| println!("    {note}"));
    report.void.iter().for_each(|why| println!("    VOID: {why}"));
    report.violations.iter().for_each(|what| println!("    VIOLATION: {what:.3000}"));
}

impl Totals {
    /// True: the run was good.
    fn add(&mut self, plan: &Plan, report: &Report) -> bool {
        let good = report.violations.is_empty() && report.void.is_empty();
        self.runs += 1;
        self.ok += report.ok;
        self.failed += report.failed;
        self.unknown += report.unknown;
        self.entries += report.entries;
        self.bad += u64::from(!good);
        let row = self.by_nemesis.entry(plan.nemesis.name).or_default();
        *row = (row.0 + 1, row.1 + report.episodes, row.2 + u64::from(!good), row.3.max(report.longest));
        if !good {
            self.bad_seeds.push((plan.seed, plan.nemesis.name));
        }
        good
    }

    fn show(&self, took: Duration) {
        println!("\nnemesis               runs  episodes  bad  longest call");
        for (name, (runs, episodes, bad, longest)) in &self.by_nemesis {
            println!("{name:<20}  {runs:>4}  {episodes:>8}  {bad:>3}  {:>10.2} s", longest.as_secs_f64());
        }
        println!(
            "chaos: {} runs, {} bad; {} calls ok, {} failed, {} unknown; {} entries of logs replayed; {:.0} s",
            self.runs,
            self.bad,
            self.ok,
            self.failed,
            self.unknown,
            self.entries,
            took.as_secs_f64()
        );
        for (seed, name) in &self.bad_seeds {
            println!("chaos: again with: scripts/chaos --runs 1 --nemesis {name} --seed {seed}");
        }
    }
}
