//! `keelfs cluster start`: check what can be checked, make what is missing, start what does not run, wait until it serves.

use super::config::{ClusterConfig, ClusterDir, NodeConfig};
use super::process;
use super::{is_foreign_mount, mount_server, ports, report, server};
use crate::cli::args::StartArgs;
use crate::cli::block_on;
use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::files;
use crate::cli::mounts::{self, Found, Life};
use crate::cli::output::{Output, Progress, warn};
use crate::cli::remote::Remote;
use crate::cli::serve;
use crate::cli::status::{NodeReport, leader, table};
use crate::cli::words::MountAt;
use crate::net::NodeId;
use crate::node::exit::Exit;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

const NODES: u64 = 5;
const BASE_PORT: u16 = 7700;
const CS733_BASE_PORT: u16 = 8700;
const MOUNT: &str = "./mnt";
/// How often we look whether the cluster serves.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// Lines of a node's log that an error message quotes.
const LOG_LINES: usize = 8;

/// `keelfs cluster start`
pub fn start(args: StartArgs, output: Output) -> CliResult {
    let fresh = !ClusterDir::exists(&args.at.dir);
    if fresh {
        must_be_usable(&args.at.dir)?;
        fs::create_dir_all(&args.at.dir).tried(|| format!("cannot make {}", args.at.dir.display()))?;
    }
    let _lock = ClusterDir::lock(&args.at.dir)?;
    // Another start may have been faster: look again now that we hold the lock.
    let cluster = match ClusterDir::exists(&args.at.dir) {
        true => existing(&args)?,
        // Of a start that failed nothing stays behind: the directory goes if it is empty.
        false => make(&args).inspect_err(|_| drop(fs::remove_dir(&args.at.dir)))?,
    };
    let all: Vec<_> = cluster.nodes().collect();
    all.iter().filter_map(|node| node.mount.as_deref()).try_for_each(|path| must_not_be_taken(&cluster, path))?;
    bring_up(&cluster, &all, args.timeout)?;
    if !rustix::process::geteuid().is_root() {
        let remote = Remote::of_cluster(&cluster, args.timeout)?;
        block_on(files::own_the_root(&remote))?;
    }
    let reports = report(&cluster)?;
    output.show(&reports, || told(&cluster, &reports))
}

/// Another cluster, or a mount that somebody made by hand, may have come to our mount's place since it was ours.
fn must_not_be_taken(cluster: &ClusterDir, path: &Path) -> CliResult {
    match is_foreign_mount(cluster, path) {
        false => Ok(()),
        true => Err(CliError::failed(format!(
            "{} is a keelfs mount that this cluster has not made: `keelfs umount {}` first, or give this cluster another \
             place with --mount NODE=PATH",
            path.display(),
            path.display()
        ))),
    }
}

/// A directory for a new cluster is missing or empty.
fn must_be_usable(dir: &Path) -> CliResult {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CliError::failed(format!(
            "{} holds other things and no cluster: choose another directory with --dir",
            dir.display()
        ))),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(why) => Err(why).tried(|| format!("cannot use {}", dir.display())),
    }
}

fn told(cluster: &ClusterDir, reports: &[NodeReport]) -> String {
    let mounts = cluster.config.nodes.iter().filter_map(|node| Some((node.id, node.mount.as_ref()?)));
    let mut lines = vec![table(reports)];
    lines.extend(mounts.map(|(id, path)| format!("mounted at {} (node {id})", path.display())));
    lines.join("\n")
}

/// A cluster that is there already: its nodes and ports are settled, its mounts may be given anew.
fn existing(args: &StartArgs) -> CliResult<ClusterDir> {
    let mut cluster = ClusterDir::load(&args.at.dir)?;
    let has = cluster.config.nodes.len() as u64;
    if args.nodes.is_some_and(|wanted| wanted != has) {
        return Err(CliError::usage(format!("{} has {has} nodes: leave --nodes away", cluster.dir.display())));
    }
    if args.base_port.is_some() || args.cs733_base_port.is_some() {
        return Err(CliError::usage(format!(
            "the ports of {} are settled: leave --base-port and --cs733-base-port away",
            cluster.dir.display()
        )));
    }
    if args.tls && !cluster.config.tls {
        return Err(CliError::usage(format!(
            "{} was made without --tls: leave it away, or make a new cluster in another directory (--dir)",
            cluster.dir.display()
        )));
    }
    if args.no_mount || !args.mount.is_empty() {
        remount(&mut cluster, args)?;
    }
    Ok(cluster)
}

/// Give an existing cluster other mounts. One that is there and shall not be any more is in the way.
fn remount(cluster: &mut ClusterDir, args: &StartArgs) -> CliResult {
    let ids: Vec<_> = cluster.config.nodes.iter().map(|node| node.id).collect();
    let wanted = mounts_of(&ids, &args.mount)?;
    for node in &cluster.config.nodes {
        let Some(path) = node.mount.as_ref().filter(|path| Some(*path) != wanted.get(&node.id)) else { continue };
        if mounts::found(path) == Found::Ours && !is_foreign_mount(cluster, path) {
            return Err(CliError::failed(format!(
                "{} is mounted: first `keelfs cluster stop --dir {}`",
                path.display(),
                cluster.dir.display()
            )));
        }
    }
    // Else what does not work would be kept, and what did work forgotten.
    let new = |node: &&NodeConfig| node.mount.as_ref() != wanted.get(&node.id);
    cluster.config.nodes.iter().filter(new).filter_map(|node| wanted.get(&node.id)).try_for_each(|path| {
        must_not_be_taken(cluster, path)?;
        prepare_mount(path)
    })?;
    for node in &mut cluster.config.nodes {
        node.mount = wanted.get(&node.id).cloned();
    }
    cluster.save()
}

/// Lay out a new cluster: cluster.toml and a data directory for each node.
fn make(args: &StartArgs) -> CliResult<ClusterDir> {
    let nodes = layout(args)?;
    for node in &nodes {
        ports::must_be_free(node.address, "--base-port")?;
        node.cs733.map_or(Ok(()), |address| ports::must_be_free(address, "--cs733-base-port"))?;
        node.mount.as_deref().map_or(Ok(()), prepare_mount)?;
    }
    let dir = args.at.dir.canonicalize().tried(|| format!("cannot open {}", args.at.dir.display()))?;
    let cluster = ClusterDir { dir, config: ClusterConfig::new(nodes, args.tls) };
    let members: BTreeMap<NodeId, SocketAddr> = cluster.config.nodes.iter().map(|n| (n.id, n.address)).collect();
    let made = init_all(&cluster, &members).and_then(|()| cluster.make_keys()).and_then(|()| cluster.save());
    if made.is_err() {
        // Nobody has ever run on these: they were made a moment ago.
        cluster.config.nodes.iter().for_each(|node| drop(fs::remove_dir_all(cluster.data(node.id))));
        drop(fs::remove_dir_all(cluster.all_keys()));
    }
    made.map(|()| cluster)
}

fn init_all(cluster: &ClusterDir, members: &BTreeMap<NodeId, SocketAddr>) -> CliResult {
    let mut nodes = cluster.config.nodes.iter();
    nodes.try_for_each(|node| {
        serve::make_identity(&cluster.data(node.id), cluster.config.cluster, node.id, members, false)
    })
}

fn layout(args: &StartArgs) -> CliResult<Vec<NodeConfig>> {
    let count = args.nodes.unwrap_or(NODES);
    if count.is_multiple_of(2) {
        warn(&format!("{count} nodes survive no more losses than {} would: odd numbers are better", count - 1));
    }
    let ids: Vec<NodeId> = (1..=count).collect();
    let default = [MountAt { node: 1, path: MOUNT.into() }];
    let asked = if args.mount.is_empty() && !args.no_mount { &default[..] } else { &args.mount };
    let mounts = mounts_of(&ids, asked)?;
    let at = |base: u16, id: NodeId| SocketAddr::from((Ipv4Addr::LOCALHOST, base + id as u16));
    let node = |id: &NodeId| NodeConfig {
        id: *id,
        address: at(args.base_port.unwrap_or(BASE_PORT), *id),
        cs733: Some(at(args.cs733_base_port.unwrap_or(CS733_BASE_PORT), *id)),
        mount: mounts.get(id).cloned(),
    };
    let nodes: Vec<_> = ids.iter().map(node).collect();
    let ports: std::collections::BTreeSet<_> =
        nodes.iter().flat_map(|n| [Some(n.address), n.cs733]).flatten().collect();
    match ports.len() == 2 * nodes.len() {
        true => Ok(nodes),
        false => Err(CliError::usage("--base-port and --cs733-base-port overlap: choose them at least 8 apart")),
    }
}

/// Which node is mounted where, absolute. Refuses unknown nodes and doubles.
fn mounts_of(ids: &[NodeId], asked: &[MountAt]) -> CliResult<BTreeMap<NodeId, PathBuf>> {
    let mut mounts = BTreeMap::new();
    for MountAt { node, path } in asked {
        if !ids.contains(node) {
            return Err(CliError::usage(format!("--mount {node}={}: there is no node {node}", path.display())));
        }
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).tried(|| format!("cannot make {}", parent.display()))?;
        }
        let path = mounts::absolute(path)?;
        if mounts.values().any(|taken| *taken == path) {
            return Err(CliError::usage(format!("--mount names {} twice", path.display())));
        }
        if mounts.insert(*node, path).is_some() {
            return Err(CliError::usage(format!("--mount names node {node} twice: a node has one mount")));
        }
    }
    Ok(mounts)
}

/// As [`mounts::prepare`], of a directory that is made if it is missing.
fn prepare_mount(path: &Path) -> CliResult {
    if mounts::found(path) == Found::Nothing {
        fs::create_dir_all(path).tried(|| format!("cannot make the mount point {}", path.display()))?;
    }
    mounts::prepare(path)
}

/// A process that we have just started, as long as we watch it.
struct Starting {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where this start's lines begin in its log.
    log_from: u64,
}

/// Start those of `nodes` that do not run, wait until a leader is known to all of them, and see to their mounts.
pub fn bring_up(cluster: &ClusterDir, nodes: &[&NodeConfig], timeout: Duration) -> CliResult {
    let dead: Vec<_> = nodes.iter().filter(|node| server(cluster, node).is_none()).collect();
    for node in &dead {
        ports::must_be_free(node.address, "another --base-port in a new cluster")?;
        node.cs733
            .map_or(Ok(()), |address| ports::must_be_free(address, "another --cs733-base-port in a new cluster"))?;
    }
    let deadline = Instant::now() + timeout;
    let mut starting = dead.iter().map(|node| start_node(cluster, node)).collect::<CliResult<Vec<_>>>()?;
    wait_for(cluster, &mut starting, deadline, |reports| lacking_nodes(nodes, reports))?;
    let mounts = nodes.iter().filter_map(|node| Some((*node, node.mount.as_deref()?)));
    let missing: Vec<_> = mounts.filter(|(_, path)| !serves_mount(cluster, path)).collect();
    let mut starting =
        missing.iter().map(|(node, path)| start_mount(cluster, node, path)).collect::<CliResult<Vec<_>>>()?;
    wait_for(cluster, &mut starting, deadline, |reports| lacking_mounts(cluster, nodes, reports))
}

fn serves_mount(cluster: &ClusterDir, path: &Path) -> bool {
    mount_server(cluster, path).is_some() && mounts::found(path) == Found::Ours
}

fn start_node(cluster: &ClusterDir, node: &NodeConfig) -> CliResult<Starting> {
    let (data, log) = (cluster.data(node.id), cluster.log(node.id));
    let mut words: Vec<&OsStr> = ["serve", "--own-session", "--data"].map(OsStr::new).into();
    words.push(data.as_os_str());
    let cs733 = node.cs733.map(|address| address.to_string());
    if let Some(address) = &cs733 {
        words.extend([OsStr::new("--cs733-listen"), OsStr::new(address)]);
    }
    let keys = cluster.node_keys(node.id);
    if let Some(keys) = &keys {
        words.extend([OsStr::new("--tls"), keys.as_os_str()]);
    }
    let started = spawn(format!("node {}", node.id), words, log)?;
    let pid_file = cluster.pid_file(node.id);
    fs::write(&pid_file, format!("{}\n", started.child.id()))
        .tried(|| format!("cannot write {}", pid_file.display()))?;
    Ok(started)
}

/// The mount beside a node asks that node first, and is of this cluster or none.
fn start_mount(cluster: &ClusterDir, node: &NodeConfig, path: &Path) -> CliResult<Starting> {
    must_not_be_taken(cluster, path)?;
    prepare_mount(path)?;
    let others = cluster.config.nodes.iter().filter(|other| other.id != node.id);
    let addresses: Vec<_> = [node].into_iter().chain(others).map(|node| node.address.to_string()).collect();
    let addresses = addresses.join(",");
    let mut words: Vec<&OsStr> = ["mount", "--own-session", &addresses].map(OsStr::new).into();
    let id = cluster.config.cluster.to_string();
    words.extend([path.as_os_str(), OsStr::new("--cluster"), OsStr::new(&id)]);
    words.extend(["--source", "keelfs"].map(OsStr::new));
    let keys = cluster.client_directory();
    if let Some(keys) = &keys {
        words.extend([OsStr::new("--tls"), keys.as_os_str()]);
    }
    // Root's mount is for everybody on the machine; others may not ask for that (fuse.conf).
    if rustix::process::geteuid().is_root() {
        words.extend(["-o", "allow_other"].map(OsStr::new));
    }
    spawn(format!("the mount at {}", path.display()), words, cluster.mount_log(node.id))
}

fn spawn(name: String, words: Vec<&OsStr>, log: PathBuf) -> CliResult<Starting> {
    let log_from = fs::metadata(&log).map_or(0, |found| found.len());
    let child = process::Detached { words, log: &log }.start()?;
    Ok(Starting { name, child, log, log_from })
}

/// Wait until nothing is lacking, as long as what we started lives.
fn wait_for(
    cluster: &ClusterDir,
    starting: &mut [Starting],
    deadline: Instant,
    lacking: impl Fn(&[NodeReport]) -> Vec<String>,
) -> CliResult {
    let mut progress = Progress::new();
    loop {
        starting.iter_mut().try_for_each(must_live)?;
        let lacking = lacking(&report(cluster)?);
        if lacking.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            drop(progress);
            return Err(late(starting, &lacking));
        }
        progress.show(&format!("waiting: {}", lacking.join(", ")));
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What the nodes lack to be called serving. Without a majority among those that shall run, no leader is waited for.
fn lacking_nodes(nodes: &[&NodeConfig], reports: &[NodeReport]) -> Vec<String> {
    let led = leader(reports).is_some();
    let lacks = nodes.iter().filter_map(|node| {
        let report = reports.iter().find(|report| report.id == node.id)?;
        let what = match (report.answers(), led && report.leader.is_some()) {
            (false, _) => "does not answer",
            (true, false) if have_majority(reports) => "knows no leader",
            _ => return None,
        };
        Some(format!("node {} {what}", node.id))
    });
    lacks.collect()
}

/// Without a majority a mount cannot answer, and is not waited for.
fn lacking_mounts(cluster: &ClusterDir, nodes: &[&NodeConfig], reports: &[NodeReport]) -> Vec<String> {
    let mounts = nodes.iter().filter_map(|node| node.mount.as_deref());
    let answers = |path: &Path| serves_mount(cluster, path) && mounts::life(path) == Life::Answers;
    let missing = mounts.filter(|path| have_majority(reports) && !answers(path));
    missing.map(|path| format!("{} does not answer", path.display())).collect()
}

fn have_majority(reports: &[NodeReport]) -> bool {
    reports.iter().filter(|report| report.pid.is_some()).count() > reports.len() / 2
}

fn must_live(started: &mut Starting) -> CliResult {
    let Starting { name, child, log, log_from } = started;
    match child.try_wait().tried(|| format!("cannot watch {name}"))? {
        None => Ok(()),
        Some(status) => {
            let how = status.code().map_or("was killed".into(), |code| format!("ended with exit code {code}"));
            let lines = process::last_lines(log, *log_from, LOG_LINES);
            Err(CliError::failed(format!("{name} {how}; the end of {}:{lines}", log.display())))
        }
    }
}

fn late(starting: &[Starting], lacking: &[String]) -> CliError {
    let quoted: String = starting
        .iter()
        .map(|started| {
            let lines = process::last_lines(&started.log, started.log_from, LOG_LINES);
            format!("\n  {}; the end of {}:{lines}", started.name, started.log.display())
        })
        .collect();
    let what = lacking.join(", ");
    CliError::new(
        Exit::NoMajority,
        format!("the cluster did not come up in time (--timeout): {what}; its processes run on{quoted}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::DirArgs;

    fn args(nodes: u64, mount: &[&str]) -> StartArgs {
        StartArgs {
            at: DirArgs { dir: "./cluster".into() },
            nodes: Some(nodes),
            mount: mount.iter().map(|text| text.parse().unwrap()).collect(),
            no_mount: mount.is_empty(),
            base_port: Some(100),
            cs733_base_port: Some(200),
            tls: false,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn nodes_have_ports_above_the_bases_and_absolute_mounts() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().canonicalize().unwrap().join("a");
        let nodes = layout(&args(3, &[&format!("2={}", path.display())])).unwrap();
        assert_eq!(nodes.iter().map(|n| n.address.port()).collect::<Vec<_>>(), [101, 102, 103]);
        assert_eq!(nodes.iter().map(|n| n.cs733.unwrap().port()).collect::<Vec<_>>(), [201, 202, 203]);
        assert_eq!(nodes.iter().map(|n| n.mount.as_deref()).collect::<Vec<_>>(), [None, Some(path.as_path()), None]);
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        let refused = |args: &StartArgs| layout(args).unwrap_err();
        assert!(refused(&args(3, &["4=/tmp/a"])).message.contains("there is no node 4"));
        assert!(refused(&args(3, &["1=/tmp/a", "2=/tmp/a"])).message.contains("twice"));
        assert!(refused(&args(3, &["1=/tmp/a", "1=/tmp/b"])).message.contains("twice"));
        let overlapping = StartArgs { cs733_base_port: Some(102), ..args(3, &[]) };
        assert_eq!(refused(&overlapping).exit, Exit::Usage);
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        must_be_usable(&tmp.path().join("new")).unwrap();
        must_be_usable(tmp.path()).unwrap();
        fs::write(tmp.path().join("mine"), "").unwrap();
        assert!(must_be_usable(tmp.path()).unwrap_err().message.contains("--dir"));
    }
}
