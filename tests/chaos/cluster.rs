//! Five nodes, each a real process in a network namespace and on a disk of its own, with a mount beside it; and how to look
//! at them.

use crate::disk::{Disk, Kind};
use crate::host::{self, Network, address, until};
use keelfs::volume::{Client, NodeStatus};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use uuid::Uuid;

pub const NODES: u64 = 5;
/// Where one more node may be for a while.
pub const GUEST: u64 = NODES + 1;
const PORT: u16 = 7700;
/// For anything that the cluster should come to by itself: it tells a hang from a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How long a node may take to say how it is.
const STATUS_TIME: Duration = Duration::from_millis(700);
const LIBFAKETIME: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];

/// How a cluster is to be set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub binary: PathBuf,
    pub directory: PathBuf,
    /// The mount option `timeout=`, in seconds.
    pub timeout_s: u64,
    /// Mounts serve what may be stale, which the judges must find.
    pub stale_reads: bool,
    /// Nodes read the wall clock from a file of ours.
    pub own_clocks: bool,
}

pub struct Node {
    pub id: u64,
    pub disk: Disk,
    pub mount: PathBuf,
    process: Option<Child>,
    mounting: Option<Child>,
    /// An end that was not asked for.
    pub ended: Option<ExitStatus>,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub setup: Setup,
    pub network: Rc<Network>,
    id: Uuid,
    runtime: tokio::runtime::Runtime,
}

pub fn libfaketime() -> Option<&'static str> {
    LIBFAKETIME.into_iter().find(|path| Path::new(path).exists())
}

impl Cluster {
    /// All nodes run, one leads, all mounts answer.
    pub fn start(setup: Setup, network: Rc<Network>) -> Result<Cluster, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|e| format!("cannot start the runtime: {e}"))?;
        let mut cluster = Cluster { nodes: Vec::new(), setup, network, id: Uuid::new_v4(), runtime };
        for id in 1..=NODES {
            let node = cluster.make_node(id);
            cluster.nodes.push(node);
            cluster.initialise(id)?;
        }
        (1..=NODES).try_for_each(|id| cluster.start_node(id))?;
        cluster.wait_until_whole()?;
        for id in 1..=NODES {
            cluster.start_mount(id)?;
        }
        Ok(cluster)
    }

    fn make_node(&self, id: u64) -> Node {
        let (directory, name) = (&self.setup.directory, format!("disk{id}"));
        let kind = if id.is_multiple_of(2) { Kind::Xfs } else { Kind::Ext4 };
        let disk = Disk::make(directory, &name, kind);
        let mount = directory.join(format!("mnt{id}"));
        fs::create_dir_all(&mount).expect("a mount point");
        if self.setup.own_clocks {
            fs::write(self.clock_file(id), "+0\n").expect("a clock");
        }
        Node { id, disk, mount, process: None, mounting: None, ended: None }
    }

    fn initialise(&self, id: u64) -> Result<(), String> {
        let (data, cluster, own) = (self.data(id), self.id.to_string(), id.to_string());
        let mut words = vec!["init".into(), "--data".into(), data.to_string_lossy().into_owned()];
        words.extend(["--cluster".into(), cluster, "--node".into(), own]);
        for member in 1..=NODES {
            words.extend(["--member".into(), format!("{member}={}:{PORT}", address(member))]);
        }
        let binary = self.setup.binary.to_string_lossy().into_owned();
        let words: Vec<&str> = std::iter::once(binary.as_str()).chain(words.iter().map(String::as_str)).collect();
        host::try_run(&words).map(drop)
    }

    pub fn data(&self, id: u64) -> PathBuf {
        self.node(id).disk.path.join("data")
    }

    pub fn log(&self, id: u64) -> PathBuf {
        self.data(id).join("log")
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    fn clock_file(&self, id: u64) -> PathBuf {
        self.setup.directory.join(format!("clock{id}"))
    }

    /// Set a node's wall clock off by so many seconds.
    pub fn shift_clock(&self, id: u64, seconds: i64) {
        fs::write(self.clock_file(id), format!("{seconds:+}\n")).expect("a clock");
    }

    /// A process of the program inside a node's namespace, its output in a file.
    fn spawn(&self, id: u64, name: &str, words: &[String], faked: bool) -> Result<Child, String> {
        let path = self.setup.directory.join(format!("{name}{id}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&path);
        let output = output.map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        let inside = self.network.inside(id);
        let mut command = Command::new(&inside[0]);
        command.arg(&inside[1]);
        if faked && self.setup.own_clocks {
            command.arg("env").args(self.faked_clock(id));
        }
        command.arg(&self.setup.binary).args(words).stdin(Stdio::null());
        command.stderr(output.try_clone().map_err(|e| e.to_string())?).stdout(output);
        command.spawn().map_err(|e| format!("cannot start {name} {id}: {e}"))
    }

    fn faked_clock(&self, id: u64) -> Vec<String> {
        let file = self.clock_file(id).display().to_string();
        vec![
            format!("LD_PRELOAD={}", libfaketime().unwrap_or_default()),
            format!("FAKETIME_TIMESTAMP_FILE={file}"),
            "FAKETIME_CACHE_DURATION=1".into(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
            "DONT_FAKE_MONOTONIC=1".into(),
            "FAKETIME_DISABLE_SHM=1".into(),
        ]
    }

    pub fn start_node(&mut self, id: u64) -> Result<(), String> {
        let process = self.serve(id, &self.data(id))?;
        let node = self.node_mut(id);
        node.process = Some(process);
        node.ended = None;
        Ok(())
    }

    /// A node at this place.
    pub fn serve(&self, place: u64, data: &Path) -> Result<Child, String> {
        let words = ["serve", "--data", &data.display().to_string(), "--insecure-no-tls"].map(String::from);
        self.spawn(place, "node", &words, true)
    }

    /// The node beside it first, then the others.
    fn start_mount(&mut self, id: u64) -> Result<(), String> {
        let others = (1..NODES).map(|step| (id - 1 + step) % NODES + 1);
        let nodes: Vec<String> = std::iter::once(id).chain(others).map(|node| self.address(node)).collect();
        let path = self.node(id).mount.clone();
        let consistency = if self.setup.stale_reads { "local" } else { "strict" };
        let options = format!("timeout={}s,consistency={consistency}", self.setup.timeout_s);
        let words = ["mount".into(), nodes.join(","), path.display().to_string(), "-o".into(), options];
        self.node_mut(id).mounting = Some(self.spawn(id, "mount", &words, false)?);
        // A process of its own asks, because a mount that does not answer holds whoever asks it.
        let answers = || host::try_run(&["timeout", "5", "mountpoint", "-q", &path.display().to_string()]).is_ok();
        match until(PATIENCE, answers) {
            true => Ok(()),
            false => Err(format!("the mount of node {id} does not answer")),
        }
    }

    pub fn signal(&self, id: u64, signal: Signal) {
        let process = self.node(id).process.as_ref().unwrap_or_else(|| panic!("node {id} does not run"));
        kill_process(Pid::from_child(process), signal).expect("a signal to a child");
    }

    pub fn signal_mount(&self, id: u64, signal: Signal) {
        let process = self.node(id).mounting.as_ref().expect("a mount");
        kill_process(Pid::from_child(process), signal).expect("a signal to a child");
    }

    /// SIGKILL, and wait for the end.
    pub fn kill(&mut self, id: u64) {
        if let Some(mut process) = self.node_mut(id).process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM, and wait for the end; the exit code.
    pub fn stop(&mut self, id: u64) -> Result<Option<i32>, String> {
        let Some(mut process) = self.node_mut(id).process.take() else { return Ok(None) };
        kill_process(Pid::from_child(&process), Signal::TERM).map_err(|e| e.to_string())?;
        match wait(&mut process, PATIENCE) {
            Some(status) => Ok(status.code()),
            None => {
                let _ = process.kill();
                let _ = process.wait();
                Err(format!("node {id} did not end on SIGTERM within {PATIENCE:?}"))
            }
        }
    }

    pub fn runs(&mut self, id: u64) -> bool {
        self.notice();
        self.node(id).process.is_some()
    }

    /// Wait until a node has ended by itself; its exit code, if it did and has one.
    pub fn wait_for_end(&mut self, id: u64, limit: Duration) -> Option<i32> {
        until(limit, || !self.runs(id));
        self.node(id).ended.and_then(|status| status.code())
    }

    /// Take note of nodes that have ended without being told.
    fn notice(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process
                && let Ok(Some(status)) = process.try_wait()
            {
                node.process = None;
                node.ended = Some(status);
            }
        }
    }

    /// What each node says of itself, those that answer in time.
    pub fn statuses(&self) -> Vec<NodeStatus> {
        let deadline = Instant::now() + STATUS_TIME;
        let asked = (1..=NODES).map(|id| self.status_of(id, deadline));
        let asked = futures_util::future::join_all(asked);
        self.runtime.block_on(asked).into_iter().flatten().collect()
    }

    async fn status_of(&self, id: u64, deadline: Instant) -> Option<NodeStatus> {
        let at = SocketAddr::new(address(id).parse().ok()?, PORT);
        Client::new(vec![at], self.id).ok()?.status_of(at, deadline).await.ok()
    }

    /// The number of the node at this place. A node that is replaced has another one than its place.
    pub fn number_at(&self, place: u64) -> Option<u64> {
        self.statuses().iter().find(|status| place_of(status) == place).map(|status| status.node)
    }

    /// The place of the node that leads in the highest term, and that; one that was paused may still believe in an older
    /// one.
    pub fn leader(&self) -> Option<(u64, u64)> {
        let leading = self.statuses().into_iter().filter(|status| status.replica.role == "leader");
        leading.map(|status| (status.replica.term, place_of(&status))).max().map(|(term, node)| (node, term))
    }

    /// The places of the nodes whose disks are full, as they say.
    pub fn full(&self) -> Vec<u64> {
        let full = self.statuses().into_iter().filter(|status| status.replica.storage_full);
        full.map(|status| place_of(&status)).collect()
    }

    /// Number and term.
    pub fn wait_for_leader(&self) -> Result<(u64, u64), String> {
        self.wait_for_leader_but(None)
    }

    pub fn wait_for_leader_but(&self, old: Option<u64>) -> Result<(u64, u64), String> {
        let mut found = None;
        until(PATIENCE, || {
            found = self.leader().filter(|(node, _)| Some(*node) != old);
            found.is_some()
        });
        found.ok_or_else(|| format!("no new leader within {PATIENCE:?}: {}", self.told()))
    }

    /// Everybody runs and follows one leader, and has applied nearly all.
    pub fn wait_until_whole(&mut self) -> Result<(), String> {
        if until(PATIENCE, || self.is_whole()) {
            return Ok(());
        }
        Err(format!("the cluster is not whole within {PATIENCE:?}: {}", self.told()))
    }

    /// A node that is behind was started: wait until it has caught up, or has ended by itself. Has it ended?
    pub fn ends_instead(&mut self, id: u64) -> Result<bool, String> {
        let last = self.statuses().iter().map(|status| status.replica.last_log).max().unwrap_or(0);
        let caught_up = |all: Vec<NodeStatus>| all.iter().any(|one| place_of(one) == id && one.replica.applied >= last);
        match until(PATIENCE, || !self.runs(id) || caught_up(self.statuses())) {
            true => Ok(!self.runs(id)),
            false => Err(format!("node {id} neither catches up nor ends within {PATIENCE:?}: {}", self.told())),
        }
    }

    fn is_whole(&mut self) -> bool {
        self.notice();
        let all = self.statuses();
        let leader =
            all.iter().filter(|status| status.replica.role == "leader").map(|status| status.replica.term).max();
        let last = all.iter().map(|status| status.replica.last_log).max().unwrap_or(0);
        let follows = |status: &NodeStatus| {
            Some(status.replica.term) == leader
                && status.replica.leader.is_some()
                && status.replica.applied + 300 >= last
        };
        all.len() as u64 == NODES && all.iter().all(follows)
    }

    /// In words, for messages.
    pub fn told(&self) -> String {
        let lines = self.statuses().into_iter().map(|status| {
            let replica = status.replica;
            let (role, term, applied) = (&replica.role, replica.term, replica.applied);
            format!("node {} {role} in term {term}, applied {applied} of {}", status.node, replica.last_log)
        });
        let ended = self.nodes.iter().filter_map(|node| Some(format!("node {} ended: {}", node.id, node.ended?)));
        lines.chain(ended).collect::<Vec<_>>().join("; ")
    }

    pub fn address(&self, place: u64) -> String {
        format!("{}:{PORT}", address(place))
    }

    /// Where the nodes are, but for this one, comma-separated; 0: all.
    pub fn addresses_but(&self, place: u64) -> String {
        let others = (1..=NODES).filter(|other| *other != place).map(|other| self.address(other));
        others.collect::<Vec<_>>().join(",")
    }

    /// A verb of the program, from the middle of the network.
    pub fn keelfs(&self, words: &[&str]) -> Result<String, String> {
        let binary = self.setup.binary.to_string_lossy().into_owned();
        let all: Vec<&str> = std::iter::once(binary.as_str()).chain(words.iter().copied()).collect();
        host::try_run(&all)
    }

    /// `keelfs check` over these nodes: the JSON that it prints, or what was wrong.
    pub fn check(&self, nodes: &str) -> Result<Value, String> {
        let told = self.keelfs(&["check", "--json", "--timeout", "60s", "--node", nodes])?;
        serde_json::from_str(&told).map_err(|e| format!("keelfs check printed no JSON: {e}: {told}"))
    }

    /// Nodes that have ended by themselves, with what they said last.
    pub fn ended_by_themselves(&mut self) -> Vec<(u64, ExitStatus, String)> {
        self.notice();
        let ended = self.nodes.iter().filter_map(|node| Some((node.id, node.ended?, self.last_words(node.id))));
        ended.collect()
    }

    /// All that a node has said.
    pub fn words(&self, id: u64) -> String {
        let text = fs::read(self.setup.directory.join(format!("node{id}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The end of a node's log file.
    pub fn last_words(&self, id: u64) -> String {
        let text = self.words(id);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(4)..].join("\n")
    }

    /// Unmount all; a mount process that does not end is a fault.
    pub fn unmount_all(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for node in &mut self.nodes {
            let Some(mut process) = node.mounting.take() else { continue };
            let _ = kill_process(Pid::from_child(&process), Signal::TERM);
            match wait(&mut process, Duration::from_secs(40)) {
                Some(status) if status.success() => {}
                Some(status) => wrong.push(format!("the mount of node {} ended with {status}", node.id)),
                None => {
                    wrong.push(format!("the mount of node {} did not end on SIGTERM", node.id));
                    let _ = process.kill();
                    let _ = process.wait();
                }
            }
        }
        wrong
    }
}

/// Places have addresses that end in their number.
fn place_of(status: &NodeStatus) -> u64 {
    match status.address {
        SocketAddr::V4(at) => at.ip().octets()[3].into(),
        SocketAddr::V6(_) => 0,
    }
}

/// The exit status, or `None` if it still runs at the limit.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    until(limit, || {
        status = child.try_wait().expect("the child's status");
        status.is_some()
    });
    status
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            for mut process in [node.mounting.take(), node.process.take()].into_iter().flatten() {
                let _ = process.kill();
                let _ = process.wait();
            }
            let _ = rustix::mount::unmount(&node.mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
