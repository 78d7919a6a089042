//! How long does a writer wait when the leader dies? It makes a small file and syncs it every 10 ms; the stall is the
//! longest time between two acknowledgements.

use crate::cluster::{Cluster, Setup, wait};
use crate::history::{Nanos, error_name, now};
use crate::host::{Network, until};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(10);
/// The writer works undisturbed for so long before each kill and behind it.
const PEACE: Duration = Duration::from_millis(1500);
/// Its node is the one that everything is asked of first; whether that was killed makes a difference.
const WRITERS_NODE: u64 = 1;

/// The writer's life, a process of its own: it works in a directory and writes when each file was acknowledged, until its
/// standard input ends; then it reads all of them again.
pub fn writer(directory: &str, log: &str) -> ExitCode {
    let mut log = OpenOptions::new().create(true).append(true).open(log).expect("a log");
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let working = scope.spawn(|| work(Path::new(directory), &mut log, &stop));
        let _ = io::stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
        working.join().expect("the writer")
    });
    let lost =
        acknowledged.iter().filter(|number| std::fs::read(file(directory, **number)).ok() != Some(content(**number)));
    let lost: Vec<&u64> = lost.collect();
    if lost.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("acknowledged, and lost: {lost:?}");
    ExitCode::FAILURE
}

fn file(directory: &str, number: u64) -> PathBuf {
    Path::new(directory).join(number.to_string())
}

fn content(number: u64) -> Vec<u8> {
    format!("{number:063}\n").into_bytes()
}

fn work(directory: &Path, log: &mut File, stop: &AtomicBool) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let line = match write(&directory.join(number.to_string()), number) {
            Ok(()) => {
                acknowledged.push(number);
                format!("{}\n", now())
            }
            Err(error) => format!("{}\n", error_name(&error)),
        };
        log.write_all(line.as_bytes()).expect("a line of the log");
        std::thread::sleep(EVERY);
    }
    acknowledged
}

fn write(path: &Path, number: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&content(number))?;
    file.sync_all()
}

/// Kill the leader so often, and print what the writer saw.
pub fn measure(kills: usize, setup: Setup, network: &Rc<Network>) -> Result<(), String> {
    let log = setup.directory.join("writer.log");
    let mut cluster = Cluster::start(setup, network.clone())?;
    let directory = cluster.node(WRITERS_NODE).mount.join("writer");
    std::fs::create_dir(&directory).map_err(|e| format!("cannot make {}: {e}", directory.display()))?;
    let mut writer = start(&directory, &log)?;
    let mut stalls = Vec::new();
    for kill in 1..=kills {
        std::thread::sleep(PEACE);
        let (leader, stall) = one(&mut cluster, &log)?;
        let beside = if leader == WRITERS_NODE { ", the writer's own" } else { "" };
        println!("kill {kill:>2}: node {leader}{beside}: {:.2} s", stall.as_secs_f64());
        stalls.push(stall);
    }
    drop(writer.stdin.take());
    let status = wait(&mut writer, Duration::from_secs(300)).ok_or("the writer did not end")?;
    let (acknowledged, errors) = read(&log);
    println!("{} files acknowledged, errors: {errors:?}", acknowledged.len());
    stalls.sort();
    if let (Some(median), Some(worst)) = (stalls.get(stalls.len() / 2), stalls.last()) {
        let (median, worst) = (median.as_secs_f64(), worst.as_secs_f64());
        println!(
            "fail-over: {kills} kills of the leader, longest stall of a writer: median {median:.2} s, worst {worst:.2} s"
        );
    }
    cluster.unmount_all();
    if status.success() { Ok(()) } else { Err("an acknowledged file is lost".into()) }
}

fn start(directory: &Path, log: &Path) -> Result<Child, String> {
    let mut command = Command::new(crate::client::THIS_PROGRAM);
    command.arg("writer").arg(directory).arg(log).stdin(Stdio::piped());
    command.spawn().map_err(|e| format!("cannot start the writer: {e}"))
}

/// Kill the leader; the longest time between two acknowledgements until all is well again.
fn one(cluster: &mut Cluster, log: &Path) -> Result<(u64, Duration), String> {
    let (leader, _) = cluster.wait_for_leader()?;
    let killed = now();
    cluster.kill(leader);
    cluster.wait_for_leader_but(Some(leader))?;
    let resumed = || read(log).0.last().is_some_and(|last| *last > killed + 50_000_000);
    if !until(crate::cluster::PATIENCE, resumed) {
        return Err(format!("after node {leader} was killed nothing was acknowledged: {}", cluster.told()));
    }
    std::thread::sleep(PEACE);
    let stall = longest_gap(&read(log).0, killed);
    cluster.start_node(leader)?;
    cluster.wait_until_whole()?;
    Ok((leader, stall))
}

fn longest_gap(acknowledged: &[Nanos], killed: Nanos) -> Duration {
    let first = acknowledged.partition_point(|at| *at < killed).saturating_sub(1);
    let gaps = acknowledged[first..].windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_nanos(gaps.max().unwrap_or_default())
}

/// When files were acknowledged, and the errors in between.
fn read(log: &Path) -> (Vec<Nanos>, Vec<String>) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let (mut times, mut errors) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match line.parse() {
            Ok(at) => times.push(at),
            Err(_) => errors.push(line.to_owned()),
        }
    }
    (times, errors)
}
