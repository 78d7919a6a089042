//! One run: a new cluster, clients, a nemesis, healing, and all judges.

use crate::client::{Orders, THIS_PROGRAM};
use crate::cluster::{Cluster, NODES, Setup, wait};
use crate::dice::Dice;
use crate::finals::Finals;
use crate::history::{Call, History, Nanos, Op, Outcome, now};
use crate::host::{self, Network, until};
use crate::logcheck;
use crate::nemesis::{Needs, Nemesis, Scene};
use crate::workload::{self, Workload};
use std::fs;
use std::ops::Range;
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
/// Files of the last phase, in which the clocks are right again, are to end in it.
const COOL_DOWN_OF_CLOCKS: Duration = Duration::from_secs(9);
/// A run in which less succeeds says nothing: so many calls for each second of its episodes, the peace between them not
/// counted.
const CALLS_PER_SECOND_MIN: u64 = 8;
/// The same for faults that stop all service; here the peace behind each episode is counted.
const CALLS_PER_SECOND_OF_OUTAGES_MIN: u64 = 1;
/// So many expiries by the wall clock are demanded where that was wrong before.
const EXPIRIES_BY_CLOCK_MIN: usize = 3;
/// Calls that a log must judge which has given its beginning away.
const JUDGED_BY_LOG_MIN: usize = 100;
const DEFAULT_TIMEOUT_S: u64 = 30;
/// Kinds of work in one run.
const WORKLOADS: usize = 5;
/// libfaketime looks at the file that says how wrong a clock is when what it knows is older than a whole second, in whole
/// seconds: up to two seconds pass until a clock that was set right shows it.
const CLOCKS_ARE_READ: Duration = Duration::from_secs(3);
/// A file that is there when no clock is wrong any more.
const CLOCKS_ARE_RIGHT: &str = "clocks-are-right";

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
    /// Of these, those that ended while the nemesis was at work.
    pub under_fault: u64,
    /// When the nemesis was at work, episode by episode.
    pub struck: Vec<Range<Nanos>>,
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
    let chosen = choose(&mut dice, plan.nemesis.wants)?;
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
    let clocks = plan.nemesis.needs == Needs::Clocks;
    if clocks {
        std::thread::sleep(CLOCKS_ARE_READ);
    }
    fs::write(plan.directory.join(CLOCKS_ARE_RIGHT), "").map_err(|e| format!("cannot tell the clients: {e}"))?;
    std::thread::sleep(if clocks { COOL_DOWN_OF_CLOCKS } else { COOL_DOWN });
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

/// Registers always, then what the nemesis wants, and others at random.
fn choose(dice: &mut Dice, wants: &[&str]) -> Result<Vec<&'static Workload>, String> {
    let mut chosen: Vec<&Workload> = workload::ALL.iter().take(1).collect();
    for name in wants {
        let wanted = workload::ALL.iter().find(|workload| workload.name == *name);
        chosen.push(wanted.ok_or_else(|| format!("there is no workload {name}"))?);
    }
    let is_left = |workload: &&Workload| !chosen.iter().any(|other| other.name == workload.name);
    let others: Vec<&Workload> = workload::ALL.iter().filter(is_left).collect();
    chosen.extend(dice.some(&others, WORKLOADS - chosen.len()));
    Ok(chosen)
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
        let struck = now();
        happened += u64::from((plan.nemesis.episode)(&mut scene)?);
        report.episodes += 1;
        let whole = now();
        let is_over = begun.elapsed() >= Duration::from_secs(plan.seconds);
        if !is_over || plan.nemesis.outage {
            scene.hold(800, 2500);
        }
        // Service that was stopped comes back as an episode ends.
        report.struck.push(struck..if plan.nemesis.outage { now() } else { whole });
        if is_over {
            break;
        }
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
        let clocks = plan.nemesis.needs == Needs::Clocks;
        for own in 0..mounts.len() {
            let history = plan.directory.join(format!("history{}.jsonl", own + 1));
            let orders = Orders {
                mounts: mounts.clone(),
                own,
                workloads: chosen.iter().map(|workload| workload.name.to_owned()).collect(),
                seed: plan.seed,
                history: history.clone(),
                started,
                clocks_are_right: clocks.then(|| plan.directory.join(CLOCKS_ARE_RIGHT)),
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

/// What came of all calls, and whether enough of them were answered while the nemesis was at work.
fn count(history: &History, healed: Nanos, plan: &Plan, report: &mut Report) {
    report.under_fault = answered(history, &report.struck);
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
    let least = demanded(&report.struck, plan.nemesis.outage) / plan.ease;
    if report.under_fault < least {
        report.void.push(format!(
            "only {} calls succeeded while the nemesis was at work; {least} are demanded",
            report.under_fault
        ));
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
        let by_clock = workload::expiries_by_clock(history);
        report.notes.push(format!("the latest expiry was {latest:.2} s behind its time; {by_clock} were by the clock"));
        if plan.nemesis.needs == Needs::Clocks && by_clock < EXPIRIES_BY_CLOCK_MIN {
            report.void.push(format!("only {by_clock} files were to end by the clock when that was right again"));
        }
    }
    let errors = history.ops.iter().filter_map(|op| unwanted(op, plan.nemesis));
    report.violations.extend(errors.take(5));
    report.violations.extend(history.violations.iter().cloned());
}

/// Calls that were answered in these times.
pub fn answered(history: &History, struck: &[Range<Nanos>]) -> u64 {
    let is_struck = |op: &Op| struck.iter().any(|episode| episode.contains(&op.ended()));
    history.ops.iter().filter(|op| op.answer().is_some() && is_struck(op)).count() as u64
}

/// How many must be.
pub fn demanded(struck: &[Range<Nanos>], outage: bool) -> u64 {
    let by_second = if outage { CALLS_PER_SECOND_OF_OUTAGES_MIN } else { CALLS_PER_SECOND_MIN };
    let took: Duration = struck.iter().map(|episode| Duration::from_nanos(episode.end - episode.start)).sum();
    (by_second * took.as_millis() as u64).div_ceil(1000)
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
        for what in (workload.check)(history, finals).into_iter().take(5) {
            match what.ends_with("void") {
                true => report.void.push(what),
                false => report.violations.push(what),
            }
        }
    }
    stages.end("judging");
    report.violations.extend(cluster.unmount_all());
    let checked = cluster.check(&cluster.addresses_but(0))?;
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
    let timed = history.of("expiry").filter(|op| op.answer().is_some());
    let files: Vec<PathBuf> = timed
        .filter_map(|op| match &op.call {
            Call::Expire { file, .. } | Call::ExpireAt { file, .. } => Some(mount.join(file)),
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
        let judged = logcheck::check(log, agreed, history);
        report.violations.extend(judged.wrong.into_iter().take(5));
        (report.entries, report.repeated) = (log.len(), judged.repeated);
        if let Some(first) = judged.begins_at {
            let (some, all) = (judged.judged, history.ops.len());
            report
                .notes
                .push(format!("all logs begin at entry {first} or later: {some} of {all} calls held against one"));
            if some < JUDGED_BY_LOG_MIN {
                report.void.push(format!("only {some} calls could be held against the log"));
            }
        }
    }
    match report.violations.is_empty() {
        true => Ok(()),
        false => keep_logs(&cluster.setup.directory, &logs),
    }
}

/// The disks go with the run; what was judged stays beside the histories.
fn keep_logs(directory: &Path, logs: &[(u64, logcheck::Printed)]) -> Result<(), String> {
    for (node, log) in logs {
        let lines: String = log.values().flat_map(|line| [line, "\n"]).collect();
        let file = directory.join(format!("log{node}.jsonl"));
        fs::write(&file, lines).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    Ok(())
}
