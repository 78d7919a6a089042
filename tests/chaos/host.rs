//! The machine below the cluster: commands, network namespaces, loop-mounted file systems; and their end, whatever
//! happened.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// All our namespaces begin so; then the number of the process that made them.
const PREFIX: &str = "keel-chaos-";

/// Run it; what it printed, or why it failed.
pub fn try_run(words: &[&str]) -> Result<String, String> {
    try_run_with(words, "")
}

pub fn try_run_with(words: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("cannot run {}: {e}", words[0]))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| format!("cannot wait for {}: {e}", words[0]))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            Err(format!("{}: {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}

/// What must succeed on a machine that can run this at all.
pub fn run(words: &[&str]) -> String {
    try_run(words).unwrap_or_else(|why| panic!("{why}"))
}

pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Ask until it is so; false after `limit`.
pub fn until(limit: Duration, mut ask: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if ask() {
            return true;
        }
        if begun.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// A network namespace for each node and one for us, joined by a bridge that lies in ours.
pub struct Network {
    pub nodes: u64,
    tag: String,
}

impl Network {
    /// Afterwards this process and all that it starts are in the middle, at 10.77.0.254.
    pub fn build(nodes: u64) -> Network {
        let network = Network { nodes, tag: format!("{PREFIX}{}", std::process::id()) };
        let hub = network.name(0);
        run(&["ip", "netns", "add", &hub]);
        run(&["ip", "-n", &hub, "link", "set", "lo", "up"]);
        run(&["ip", "-n", &hub, "link", "add", "bridge", "type", "bridge"]);
        run(&["ip", "-n", &hub, "address", "add", "10.77.0.254/24", "dev", "bridge"]);
        run(&["ip", "-n", &hub, "link", "set", "bridge", "up"]);
        (1..=nodes).for_each(|node| network.join(node));
        enter(&hub);
        network
    }

    fn join(&self, node: u64) {
        let (hub, own, port) = (self.name(0), self.name(node), format!("to{node}"));
        run(&["ip", "netns", "add", &own]);
        run(&["ip", "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &own]);
        run(&["ip", "-n", &hub, "link", "set", &port, "master", "bridge", "up"]);
        run(&["ip", "-n", &own, "link", "set", "lo", "up"]);
        run(&["ip", "-n", &own, "address", "add", &format!("{}/24", address(node)), "dev", "eth0"]);
        run(&["ip", "-n", &own, "link", "set", "eth0", "up"]);
    }

    /// The namespace of a node; of 0: ours.
    fn name(&self, node: u64) -> String {
        match node {
            0 => format!("{}-hub", self.tag),
            node => format!("{}-{node}", self.tag),
        }
    }

    /// The words in front of a command that is to run there.
    pub fn inside(&self, node: u64) -> [String; 2] {
        ["nsenter".into(), format!("--net=/run/netns/{}", self.name(node))]
    }

    /// What is dropped where it arrives: `(from, to, per cent)`. Replaces what was dropped before.
    pub fn drop_packets(&self, ways: &[(u64, u64, u64)]) {
        for node in 1..=self.nodes {
            let rules = ways.iter().filter(|(_, to, _)| *to == node).map(|(from, _, percent)| {
                let chance =
                    if *percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
                format!("    ip saddr {} {chance}counter drop\n", address(*from))
            });
            let rules: String = rules.collect();
            let table = format!(
                "table inet chaos\ndelete table inet chaos\ntable inet chaos {{\n  chain input {{\n    type filter hook input \
                 priority 0;\n{rules}  }}\n}}\n"
            );
            self.nft(node, &["nft", "-f", "-"], &table);
        }
    }

    /// Packets dropped so far by the present rules.
    pub fn dropped(&self) -> u64 {
        let listings = (1..=self.nodes).map(|node| self.nft(node, &["nft", "list", "ruleset"], ""));
        listings.map(|text| counted(&text)).sum()
    }

    /// What runs in the namespaces of the nodes.
    pub fn processes(&self) -> Vec<String> {
        let pids = (1..=self.nodes).map(|node| try_run(&["ip", "netns", "pids", &self.name(node)]).unwrap_or_default());
        pids.flat_map(|pids| pids.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn nft(&self, node: u64, words: &[&str], input: &str) -> String {
        let inside = self.inside(node);
        let all: Vec<&str> = inside.iter().map(String::as_str).chain(words.iter().copied()).collect();
        try_run_with(&all, input).unwrap_or_else(|why| panic!("{why}"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..=self.nodes {
            remove_namespace(&self.name(node));
        }
    }
}

fn counted(ruleset: &str) -> u64 {
    ruleset.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

pub fn address(node: u64) -> String {
    format!("10.77.0.{node}")
}

/// Move this process, which has one thread yet, into a namespace.
fn enter(name: &str) {
    let path = format!("/run/netns/{name}");
    let file = fs::File::open(&path).unwrap_or_else(|e| panic!("cannot open {path}: {e}"));
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind))
        .unwrap_or_else(|e| panic!("cannot enter {path}: {e}"));
}

/// End what runs in it, but for ourselves, and remove it.
fn remove_namespace(name: &str) {
    let own = std::process::id().to_string();
    let pids = try_run(&["ip", "netns", "pids", name]).unwrap_or_default();
    for pid in pids.lines().filter(|pid| *pid != own) {
        let _ = try_run(&["kill", "-KILL", pid]);
    }
    let _ = try_run(&["ip", "netns", "delete", name]);
}

/// Where the harness that is this process keeps its disks, if it is told nothing else.
pub fn default_root(pid: &str) -> PathBuf {
    std::env::temp_dir().join(format!("keelfs-chaos-{pid}"))
}

/// What a harness left behind that was killed itself: namespaces, processes, mounts below `root`.
pub fn sweep(root: &Path) {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let pid = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            println!("chaos: removing {name}, left behind by an earlier harness");
            remove_namespace(&name);
            let theirs = default_root(pid);
            unmount_below(&theirs);
            let _ = fs::remove_dir_all(&theirs);
        }
    }
    unmount_below(root);
}

/// Newest first, so that what lies upon another goes before it.
pub fn unmount_below(root: &Path) {
    for point in mounts_below(root).into_iter().rev() {
        let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    }
}

pub fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(root)).collect()
}
