//! A real cluster for tests: five processes of the finished binary, in a directory of their own, mounted through the
//! kernel. Whatever happens in a test, nothing of it is left running or mounted afterwards.
//!
//! Tests with a cluster run one after another ([`Cluster::start`] waits for the turn): a machine that runs two clusters
//! at once tests its scheduler. What is missing on the machine makes a test fail, saying so; nothing is skipped.

pub mod cs733;
pub mod process;
pub mod xattr;

use process::{Finished, run};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For one `keelfs cluster` command; beyond the command's own patience (60 s).
const COMMAND_LIMIT: Duration = Duration::from_secs(90);
/// For anything that the cluster should come to by itself.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// After this the nodes are killed, so that a system call that hangs in a mount returns and the test fails. Generous: it
/// tells a hang from a busy machine.
const TEST_LIMIT: Duration = Duration::from_secs(1200);

static TURN: Mutex<()> = Mutex::new(());

/// A running cluster; dropped: destroyed, and checked to be gone.
pub struct Cluster {
    root: TempDir,
    mounts: BTreeMap<u64, PathBuf>,
    cs733_base: u16,
    /// Dropping it calls the watchdog off.
    _watchdog: Sender<()>,
    _turn: MutexGuard<'static, ()>,
}

/// A row of `keelfs cluster status --json`.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: u64,
    pub pid: Option<u32>,
    pub role: String,
    pub applied: Option<u64>,
    pub hash: Option<String>,
    /// The whole row.
    pub row: Value,
}

impl Cluster {
    /// `nodes` nodes, of which `mounted` are mounted, all answering.
    pub fn start(nodes: u64, mounted: impl IntoIterator<Item = u64>) -> Cluster {
        Cluster::start_with(nodes, mounted, &[])
    }

    /// The same with more words for `keelfs cluster start`.
    pub fn start_with(nodes: u64, mounted: impl IntoIterator<Item = u64>, more: &[&str]) -> Cluster {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        demand_fuse();
        let root = tempfile::Builder::new().prefix("keelfs-test-").tempdir().expect("a temporary directory");
        let mounts = mounted.into_iter().map(|node| (node, root.path().join(format!("mnt{node}")))).collect();
        let base = free_ports();
        let watchdog = watchdog(root.path().join("cluster"));
        let cluster = Cluster { root, mounts, cs733_base: base + 20, _watchdog: watchdog, _turn: turn };
        let mut arguments: Vec<OsString> = words(&["start", "--nodes", &nodes.to_string()]);
        arguments.extend(words(&["--base-port", &base.to_string(), "--cs733-base-port", &(base + 20).to_string()]));
        for (node, path) in &cluster.mounts {
            let mut at = OsString::from(format!("{node}="));
            at.push(path);
            arguments.extend(["--mount".into(), at]);
        }
        if cluster.mounts.is_empty() {
            arguments.push("--no-mount".into());
        }
        arguments.extend(words(more));
        println!("start {nodes} nodes in {}, mounts {:?}", cluster.root.path().display(), cluster.mounts.keys());
        cluster.command(arguments).expect_success();
        cluster.wait_until_whole();
        cluster
    }

    /// The mount point of a node.
    pub fn at(&self, node: u64) -> &Path {
        &self.mounts[&node]
    }

    pub fn mounted(&self) -> Vec<u64> {
        self.mounts.keys().copied().collect()
    }

    /// A place of this test outside the mounts.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Where node speaks the cs733 protocol.
    pub fn cs733(&self, node: u64) -> (&'static str, u16) {
        ("127.0.0.1", self.cs733_base + node as u16)
    }

    /// Where a node of this cluster is reached; up to 15 numbers.
    pub fn address(&self, node: u64) -> String {
        format!("127.0.0.1:{}", self.cs733_base - 20 + node as u16)
    }

    /// `keelfs …`, to its end.
    pub fn keelfs(&self, arguments: &[&str]) -> Finished {
        run(keelfs().args(arguments), None, COMMAND_LIMIT)
    }

    /// A node beside those of `cluster start`, whose data directory is [`Cluster::outside`]`(data)`.
    pub fn serve(&self, data: &str, more: &[&str]) -> Beside {
        let log = self.outside(&format!("{data}.log"));
        let to = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let mut command = keelfs();
        command.arg("serve").arg("--data").arg(self.outside(data)).args(more).stdin(std::process::Stdio::null());
        let from = to.metadata().expect("its size").len();
        command.stdout(to.try_clone().expect("a handle")).stderr(to);
        Beside { child: command.spawn().expect("a process"), log, from }
    }

    pub fn directory(&self) -> PathBuf {
        self.root.path().join("cluster")
    }

    /// `keelfs cluster …` on this cluster's directory.
    pub fn command(&self, arguments: impl IntoIterator<Item = OsString>) -> Finished {
        cluster_command(&self.directory(), arguments)
    }

    /// Every node's row, also while none leads (then the command fails, but prints them all the same).
    pub fn status(&self) -> Vec<Node> {
        let told = self.command(words(&["status", "--json"]));
        let rows: Vec<Value> = serde_json::from_str(&told.stdout)
            .unwrap_or_else(|e| panic!("cluster status --json: {e}\n{}\n{}", told.stdout, told.stderr));
        rows.into_iter().map(Node::from).collect()
    }

    /// The node that leads in the highest term; one that was stopped may still believe in an older one.
    pub fn leader(&self) -> Option<u64> {
        let leaders = self.status().into_iter().filter(Node::is_leader);
        leaders.max_by_key(|node| node.row["term"].as_u64()).map(|node| node.id)
    }

    pub fn kill(&self, which: &[u64]) {
        println!("kill -9 {which:?}");
        self.command(words(&["kill"]).into_iter().chain(numbers(which))).expect_success();
    }

    /// A signal for the process of the mount beside this node; the node itself goes on.
    pub fn signal_mount(&self, node: u64, signal: Signal) {
        let path = self.at(node).as_os_str().as_encoded_bytes();
        let serves = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&&b"mount"[..]) && words.contains(&path)
        };
        let names = std::fs::read_dir("/proc").expect("/proc").flatten();
        let mut pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let pid = pids.find(serves).unwrap_or_else(|| panic!("no process serves {}", self.at(node).display()));
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("a signal");
    }

    pub fn signal(&self, node: u64, signal: &str) {
        println!("send {signal} to node {node}");
        self.command(words(&["kill", &node.to_string(), "--signal", signal])).expect_success();
    }

    /// Kill the leader; returns which node that was.
    pub fn kill_leader(&self) -> u64 {
        let leader = self.wait_for_leader(None);
        println!("kill -9 the leader, node {leader}");
        self.kill(&[leader]);
        leader
    }

    pub fn restart(&self, which: &[u64]) {
        println!("restart {which:?}");
        self.command(words(&["restart"]).into_iter().chain(numbers(which))).expect_success();
        self.wait_until_whole();
    }

    /// A leader that is not `old`.
    pub fn wait_for_leader(&self, old: Option<u64>) -> u64 {
        wait_for("a leader", || self.leader().filter(|leader| Some(*leader) != old))
    }

    /// Every node runs, one leads, every mount answers.
    pub fn wait_until_whole(&self) {
        wait_for("all nodes to run and one to lead", || {
            let nodes = self.status();
            let whole = nodes.iter().all(|node| node.pid.is_some()) && nodes.iter().any(Node::is_leader);
            whole.then_some(())
        });
        for path in self.mounts.values() {
            wait_for(&format!("a mount at {} that answers", path.display()), || {
                (is_mounted(path) && std::fs::read_dir(path).is_ok()).then_some(())
            });
        }
    }

    /// All replicas at one index with one hash, as `cluster status` shows it; then `keelfs check` says the same.
    pub fn expect_agreement(&self) {
        wait_for("equal applied indexes and state hashes on all nodes", || {
            let nodes = self.status();
            let first = nodes.first()?.standing()?;
            nodes.iter().all(|node| node.standing().as_ref() == Some(&first)).then_some(())
        });
        let arguments = [OsString::from("check"), "--dir".into(), self.directory().into()];
        let checked = run(keelfs().args(arguments), None, COMMAND_LIMIT).expect_success();
        println!("keelfs check: {}", checked.stdout.trim());
    }
}

/// A node that runs beside those of `cluster start`; dropped: killed.
pub struct Beside {
    child: std::process::Child,
    log: PathBuf,
    /// Where its words begin in the log.
    from: u64,
}

impl Beside {
    /// How it ended by itself, and all that it said. Panics if it does not.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let status = process::wait(&mut self.child, PATIENCE).unwrap_or_else(|| panic!("it runs on: {}", self.said()));
        (status.code(), self.said())
    }

    pub fn said(&self) -> String {
        let all = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(all.get(self.from as usize..).unwrap_or_default()).into_owned()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- {}\n{}", self.log.display(), self.said());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let pids = processes_of(self.root.path());
        let destroyed = self.command(words(&["destroy", "--yes"]));
        let mounted = mounts_below(self.root.path());
        let running: Vec<u32> = pids.into_iter().filter(|pid| is_node_below(*pid, self.root.path())).collect();
        clean_up(&mounted, &running);
        if !std::thread::panicking() {
            destroyed.expect_success();
            assert!(mounted.is_empty(), "cluster destroy left these mounts: {mounted:?}");
            assert!(running.is_empty(), "cluster destroy left these processes: {running:?}");
            assert!(!self.directory().exists(), "cluster destroy left its directory");
        }
    }
}

impl Cluster {
    /// What the nodes had to say, for whoever reads a failed test.
    fn print_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.directory()) else { return };
        for path in
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log"))
        {
            let bytes = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            // what raft says in passing would hide the rest
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" INFO openraft")).collect();
            println!("--- the end of {}", path.display());
            for line in &lines[lines.len().saturating_sub(20)..] {
                println!("{}", line.chars().take(400).collect::<String>());
            }
        }
    }
}

impl From<Value> for Node {
    fn from(row: Value) -> Node {
        Node {
            id: row["id"].as_u64().unwrap_or_else(|| panic!("a node without an id: {row}")),
            pid: row["pid"].as_u64().map(|pid| pid as u32),
            role: row["role"].as_str().unwrap_or_default().to_owned(),
            applied: row["applied"].as_u64(),
            hash: row["state_hash"].as_str().map(str::to_owned),
            row,
        }
    }
}

impl Node {
    fn is_leader(&self) -> bool {
        self.role.eq_ignore_ascii_case("leader")
    }

    fn standing(&self) -> Option<(u64, String)> {
        Some((self.applied?, self.hash.clone()?))
    }
}

/// Ask until there is an answer; panics after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let (begun, mut pause) = (Instant::now(), Duration::from_millis(10));
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// A number that the environment may raise.
pub fn rounds(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}

fn keelfs() -> std::process::Command {
    std::process::Command::new(env!("CARGO_BIN_EXE_keelfs"))
}

fn cluster_command(directory: &Path, arguments: impl IntoIterator<Item = OsString>) -> Finished {
    let mut command = keelfs();
    command.arg("cluster").args(arguments).arg("--dir").arg(directory);
    run(&mut command, None, COMMAND_LIMIT)
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn numbers(numbers: &[u64]) -> impl Iterator<Item = OsString> {
    numbers.iter().map(|number| number.to_string().into())
}

fn demand_fuse() {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        panic!("these tests mount file systems and cannot open /dev/fuse: {error}");
    }
}

/// A port above which 40 are free, below the range that the kernel hands out by itself.
fn free_ports() -> u16 {
    let start = 12_000 + (std::process::id() % 300) as u16 * 50;
    (0..300)
        .map(|step| 12_000 + (start - 12_000 + step * 50) % 15_000)
        .find(|base| (*base..*base + 40).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()))
        .expect("40 free ports in a row")
}

fn watchdog(directory: PathBuf) -> Sender<()> {
    let (call_off, called_off) = channel::<()>();
    std::thread::spawn(move || {
        if called_off.recv_timeout(TEST_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            println!("the test has run for {TEST_LIMIT:?}: its nodes are killed");
            cluster_command(&directory, words(&["kill", "all"]));
        }
    });
    call_off
}

pub fn is_mounted(path: &Path) -> bool {
    mounts_below(path).iter().any(|mounted| mounted == path)
}

fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(root)).collect()
}

/// Processes that serve a node of a cluster below `root`, by their command line.
fn processes_of(root: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_node_below(*pid, root)).collect()
}

fn is_node_below(pid: u32, root: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    line.split('\0').nth(1) == Some("serve") && line.contains(&*root.to_string_lossy())
}

/// What a failed `destroy` left behind.
fn clean_up(mounted: &[PathBuf], running: &[u32]) {
    for pid in running {
        let pid = rustix::process::Pid::from_raw(*pid as i32).expect("a process id");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    for path in mounted {
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    }
}
