//! One run: a new cluster, clients, a nemesis, healing, and all judges.

use crate::client::Orders;
use crate::cluster::{Cluster, NODES, Setup, wait};
use crate::dice::Dice;
use crate::finals::Finals;
use crate::history::{Call, History, Nanos, Op, Outcome, now};
use crate::host::{self, Network, until};
use crate::logcheck;
use crate::nemesis::{Needs, Nemesis, Scene};
use crate::workload::{self, Workload};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Clients may finish what they are at: longer than any call may take.
const CLIENTS_LIMIT: Duration = Duration::from_secs(75);
const WARM_UP: Duration = Duration::from_secs(3);
const COOL_DOWN: Duration = Duration::from_secs(4);
/// How long expiries may be late at the end, when all is well.
const EXPIRY_LIMIT: Duration = Duration::from_secs(60);
/// A run in which less succeeds says nothing: so many calls for each second of it.
const CALLS_PER_SECOND_MIN: u64 = 8;
/// Also after a new build has taken its place.
pub const THIS_PROGRAM: &str = "/proc/self/exe";
const DEFAULT_TIMEOUT_S: u64 = 30;

pub struct Plan {
    pub seed: u64,
    pub nemesis: &'static Nemesis,
    pub seconds: u64,
    pub binary: PathBuf,
    pub directory: PathBuf,
    pub ease: u64,
    pub stale_reads: bool,
}

/// What a run came to.
#[derive(Default)]
pub struct Report {
    pub ok: u64,
    pub failed: u64,
    pub unknown: u64,
    pub episodes: u64,
    /// The longest that a call took that was answered.
    pub longest: Duration,
    pub entries: usize,
    pub repeated: usize,
    pub workloads: Vec<&'static str>,
    pub violations: Vec<String>,
    /// Why it says nothing.
    pub void: Vec<String>,
    pub notes: Vec<String>,
    pub stages: String,
}

pub fn run(plan: &Plan, network: &Rc<Network>) -> Report {
    let mut report = Report::default();
    if let Err(why) = try_run(plan, network, &mut report) {
        report.violations.push(why);
    }
    network.drop_packets(&[]);
    let left = network.processes();
    if !left.is_empty() {
        report.violations.push(format!("left running: processes {left:?}"));
    }
    let left = host::mounts_below(&plan.directory);
    if !left.is_empty() {
        report.violations.push(format!("left mounted: {left:?}"));
        host::unmount_below(&plan.directory);
    }
    report
}

fn try_run(plan: &Plan, network: &Rc<Network>, report: &mut Report) -> Result<(), String> {
    let mut dice = Dice::new(plan.seed);
    let setup = Setup {
        binary: plan.binary.clone(),
        directory: plan.directory.clone(),
        timeout_s: if plan.nemesis.unnoticed { DEFAULT_TIMEOUT_S } else { *dice.of(&[4, 10, DEFAULT_TIMEOUT_S]) },
        stale_reads: plan.stale_reads,
        own_clocks: plan.nemesis.needs == Needs::Clocks,
    };
    let chosen = choose(&mut dice);
    report.workloads = chosen.iter().map(|workload| workload.name).collect();
    let mut stages = Stages::new();
    let mut cluster = Cluster::start(setup, network.clone())?;
    stages.end("start");
    prepare(&cluster, &chosen)?;
    stages.end("prepare");
    let mut clients = Clients::start(&cluster, plan, &chosen)?;
    std::thread::sleep(WARM_UP);
    let tormented = torment(plan, &mut cluster, &mut dice, report);
    let healed = now();
    stages.end("nemesis");
    let whole = tormented.and_then(|()| cluster.wait_until_whole());
    std::thread::sleep(COOL_DOWN);
    report.violations.extend(clients.stop());
    stages.end("clients");
    let history = History::load(&clients.histories).map_err(|e| format!("cannot read the history: {e}"))?;
    count(&history, healed, plan, report);
    whole?;
    report.violations.extend(unasked_ends(&mut cluster));
    let judged = judge(&mut cluster, &chosen, &history, report, &mut stages);
    report.stages = stages.told;
    judged
}

/// How long each part of a run took.
struct Stages {
    last: Instant,
    told: String,
}

impl Stages {
    fn new() -> Stages {
        Stages { last: Instant::now(), told: String::new() }
    }

    fn end(&mut self, what: &str) {
        self.told += &format!("{what} {:.1} s  ", self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }
}

/// Registers always, and four of the others.
fn choose(dice: &mut Dice) -> Vec<&'static Workload> {
    let all: Vec<&Workload> = workload::ALL.iter().collect();
    let Some((register, others)) = all.split_first() else { return Vec::new() };
    std::iter::once(*register).chain(dice.some(others, 4)).collect()
}

fn prepare(cluster: &Cluster, chosen: &[&Workload]) -> Result<(), String> {
    let root = &cluster.node(1).mount;
    for workload in chosen {
        let made = fs::create_dir(root.join(workload.name)).and_then(|()| (workload.prepare)(root));
        made.map_err(|e| format!("cannot prepare {}: {e}", workload.name))?;
    }
    Ok(())
}

/// Episode after episode until the time is over, each with a while of peace before it.
fn torment(plan: &Plan, cluster: &mut Cluster, dice: &mut Dice, report: &mut Report) -> Result<(), String> {
    let begun = Instant::now();
    let mut happened = 0;
    loop {
        let mut scene = Scene { cluster, dice, notes: &mut report.notes };
        happened += u64::from((plan.nemesis.episode)(&mut scene)?);
        report.episodes += 1;
        if begun.elapsed() >= Duration::from_secs(plan.seconds) {
            break;
        }
        scene.hold(800, 2500);
    }
    report.notes.push(format!("the fault happened in {happened} of {} episodes", report.episodes));
    if happened == 0 {
        report.void.push("the fault never happened".into());
    }
    Ok(())
}

/// The processes of the clients, one on each mount.
struct Clients {
    processes: Vec<Child>,
    histories: Vec<PathBuf>,
}

impl Clients {
    fn start(cluster: &Cluster, plan: &Plan, chosen: &[&Workload]) -> Result<Clients, String> {
        let mounts: Vec<PathBuf> = cluster.nodes.iter().map(|node| node.mount.clone()).collect();
        let mut clients = Clients { processes: Vec::new(), histories: Vec::new() };
        let started: Nanos = now();
        for own in 0..mounts.len() {
            let history = plan.directory.join(format!("history{}.jsonl", own + 1));
            let orders = Orders {
                mounts: mounts.clone(),
                own,
                workloads: chosen.iter().map(|workload| workload.name.to_owned()).collect(),
                seed: plan.seed,
                history: history.clone(),
                started,
                ease: plan.ease,
            };
            let orders = serde_json::to_string(&orders).map_err(|e| e.to_string())?;
            let errors = fs::File::create(plan.directory.join(format!("client{}.log", own + 1)));
            let mut command = Command::new(THIS_PROGRAM);
            command.args(["client", &orders]).stdin(Stdio::piped());
            command.stderr(errors.map_err(|e| e.to_string())?);
            clients.processes.push(command.spawn().map_err(|e| format!("cannot start a client: {e}"))?);
            clients.histories.push(history);
        }
        Ok(clients)
    }

    /// Let them finish; a client that cannot be had to end, not even by SIGKILL, is stuck in the kernel.
    fn stop(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        self.processes.iter_mut().for_each(|process| drop(process.stdin.take()));
        for (process, number) in self.processes.iter_mut().zip(1..) {
            match wait(process, CLIENTS_LIMIT) {
                Some(status) if status.success() => continue,
                Some(status) => wrong.push(format!("client {number} ended with {status}")),
                None => {
                    wrong.push(format!("client {number} did not end: a call hangs; {}", waiting_in(process.id())));
                    let _ = process.kill();
                    if wait(process, Duration::from_secs(10)).is_none() {
                        wrong.push(format!("client {number} did not end by SIGKILL: {}", waiting_in(process.id())));
                    }
                }
            }
        }
        wrong
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = wait(process, Duration::from_secs(5));
        }
    }
}

/// Where the threads of a process are in the kernel.
fn waiting_in(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let wchans = tasks.filter_map(|task| fs::read_to_string(task.path().join("wchan")).ok());
    wchans.collect::<Vec<_>>().join(" ")
}

fn count(history: &History, healed: Nanos, plan: &Plan, report: &mut Report) {
    for op in &history.ops {
        match &op.outcome {
            Outcome::Ok(_) => {
                report.ok += 1;
                let took = Duration::from_nanos(op.ended().saturating_sub(op.begin));
                report.longest = report.longest.max(took);
            }
            Outcome::Failed(_) => report.failed += 1,
            Outcome::Unknown(_) => report.unknown += 1,
        }
    }
    let least = CALLS_PER_SECOND_MIN * plan.seconds / plan.ease;
    if report.ok < least {
        report.void.push(format!("only {} calls succeeded; {least} are demanded", report.ok));
    }
    for name in &report.workloads {
        let done = |op: &&Op| op.answer().is_some();
        if history.of(name).filter(done).count() < 10 {
            report.void.push(format!("{name}: too few calls succeeded"));
        }
        if !history.of(name).filter(done).any(|op| op.ended() > healed) {
            report.violations.push(format!("{name}: nothing succeeded after the fault was over"));
        }
    }
    if report.workloads.contains(&"expiry") {
        let latest = workload::latest_expiry(history).as_secs_f64();
        report.notes.push(format!("the latest expiry was {latest:.2} s behind its time"));
    }
    let errors = history.ops.iter().filter_map(|op| unwanted(op, plan.nemesis));
    report.violations.extend(errors.take(5));
    report.violations.extend(history.violations.iter().cloned());
}

fn unwanted(op: &Op, nemesis: &Nemesis) -> Option<String> {
    match nemesis.unnoticed && op.answer().is_none() {
        true => Some(format!("nobody was to notice, and {op:?}")),
        false => workload::unexpected(op, nemesis.errors),
    }
}

fn unasked_ends(cluster: &mut Cluster) -> Vec<String> {
    let ended = cluster.ended_by_themselves().into_iter();
    ended.map(|(node, status, said)| format!("node {node} ended by itself, {status}: {said}")).collect()
}

/// Final reads on all mounts, the workloads' own judgement, `keelfs check`, an orderly end, and the logs.
fn judge(
    cluster: &mut Cluster,
    chosen: &[&Workload],
    history: &History,
    report: &mut Report,
    stages: &mut Stages,
) -> Result<(), String> {
    let first = cluster.node(1).mount.clone();
    wait_for_expiries(&first, history);
    let mounts: Vec<PathBuf> = cluster.nodes.iter().map(|node| node.mount.clone()).collect();
    let all = Finals::read_all(&mounts)?;
    let Some((finals, others)) = all.split_first() else { return Ok(()) };
    for (there, node) in others.iter().zip(2..) {
        if let Some(difference) = finals.difference(there) {
            report.violations.push(format!("mounts 1 and {node} differ: {difference}"));
        }
    }
    stages.end("reading");
    for workload in chosen {
        for what in (workload.check)(history, finals) {
            match what.ends_with("void") {
                true => report.void.push(what),
                false => report.violations.push(what),
            }
        }
    }
    stages.end("judging");
    report.violations.extend(cluster.unmount_all());
    let checked = cluster.check()?;
    if checked["agree"] != true {
        report.violations.push(format!("the replicas do not agree: {checked}"));
    }
    let agreed = checked["index"].as_u64().unwrap_or_default();
    for node in 1..=NODES {
        match cluster.stop(node)? {
            Some(0) => {}
            code => report.violations.push(format!("node {node} ended with {code:?} when it was asked to")),
        }
    }
    stages.end("stopping");
    judge_logs(cluster, agreed, history, report)?;
    stages.end("logs");
    Ok(())
}

fn wait_for_expiries(mount: &Path, history: &History) {
    let timed = history.of("expiry").filter(|op| matches!(op.call, Call::Expire { .. }) && op.answer().is_some());
    let files: Vec<PathBuf> = timed
        .filter_map(|op| match &op.call {
            Call::Expire { file, .. } => Some(mount.join(file)),
            _ => None,
        })
        .collect();
    until(EXPIRY_LIMIT, || !files.iter().any(|file| file.exists()));
}

fn judge_logs(cluster: &Cluster, agreed: u64, history: &History, report: &mut Report) -> Result<(), String> {
    let mut logs = Vec::new();
    for node in 1..=NODES {
        logs.push((node, logcheck::print(&cluster.setup.binary, &cluster.data(node))?));
    }
    report.violations.extend(logcheck::compare(&logs, agreed));
    // The longest one: another may have given its beginning to a snapshot.
    let longest = logs.iter().max_by_key(|(_, log)| log.len()).map(|(_, log)| log);
    if let Some(log) = longest {
        let (wrong, repeated) = logcheck::check(log, agreed, history);
        report.violations.extend(wrong.into_iter().take(5));
        (report.entries, report.repeated) = (log.len(), repeated);
    }
    Ok(())
}
