//! `keelfs cluster`: a whole cluster on this machine, for first steps, for tests and for seeing nodes fail.
//!
//! Each node is an ordinary `keelfs serve` process in a session of its own, and each mount an ordinary `keelfs mount`
//! process beside its node. These verbs start, watch and end those processes; nothing of them stays behind in memory, so
//! any later call finds the cluster by its directory alone.
//!
//! Decision: a mount is not in its node's process, so it outlives its node: it asks that node first and, while that is
//! down, the others. Cost: one step over loopback for every request of the kernel.

pub mod config;
mod ports;
pub mod process;
mod start;
mod stop;

use crate::cli::args::{ClusterVerb, DirArgs, KillArgs, RestartArgs};
use crate::cli::block_on;
use crate::cli::error::CliResult;
use crate::cli::mounts::{self, Found, Life};
use crate::cli::output::{Output, warn};
use crate::cli::remote::Remote;
use crate::cli::status::{NodeReport, gather, leader, table, with_lags};
use config::{ClusterDir, NodeConfig};
use process::{Duty, Server};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a node that has answered may take to say who the members are.
const JOINED_PATIENCE: Duration = Duration::from_secs(1);

pub fn run(verb: ClusterVerb, output: Output) -> CliResult {
    match verb {
        ClusterVerb::Start(args) => start::start(args, output),
        ClusterVerb::Status(args) => status(args, output),
        ClusterVerb::Kill(args) => kill(args, output),
        ClusterVerb::Restart(args) => restart(args, output),
        ClusterVerb::Stop(args) => stop::stop(args, output),
        ClusterVerb::Destroy(args) => stop::destroy(args, output),
    }
}

/// What each node tells, with what only this machine knows: its process and its mount.
fn report(cluster: &ClusterDir) -> CliResult<Vec<NodeReport>> {
    let nodes: Vec<_> = cluster.nodes().collect();
    let remote = Remote::of_cluster(cluster, Duration::from_secs(5))?;
    let mut reports = block_on(async { Ok(gather(&remote, nodes.iter().map(|node| (node.id, node.address))).await) })?;
    for (report, node) in reports.iter_mut().zip(nodes) {
        report.pid = server(cluster, node).map(|server| server.pid).or(report.pid);
        report.mount = node.mount.clone();
    }
    let joined = block_on(async { Ok(joined(&remote, &reports).await) })?;
    Ok(with_lags(reports.into_iter().chain(joined).collect()))
}

/// Nodes that have joined the cluster since, and that this directory knows nothing of.
async fn joined(remote: &Remote, reports: &[NodeReport]) -> Vec<NodeReport> {
    let Some(one) = reports.iter().find(|report| report.answers()) else { return Vec::new() };
    let members = remote.members_at(one.address, Instant::now() + JOINED_PATIENCE).await;
    let others = members.into_iter().filter(|(node, _)| reports.iter().all(|report| report.id != *node));
    gather(remote, others).await
}

fn server(cluster: &ClusterDir, node: &NodeConfig) -> Option<Server> {
    Server::find(&Duty::Node(cluster.data(node.id)))
}

/// The process of this cluster's mount at this path.
fn mount_server(cluster: &ClusterDir, path: &Path) -> Option<Server> {
    Server::find(&Duty::Mount { path: path.to_owned(), cluster: cluster.config.cluster })
}

/// Is a keelfs mount there that is none of this cluster's: neither its process serves it, nor is its process gone?
fn is_foreign_mount(cluster: &ClusterDir, path: &Path) -> bool {
    mounts::found(path) == Found::Ours && mount_server(cluster, path).is_none() && mounts::life(path) != Life::Dead
}

/// `keelfs cluster status`
fn status(args: DirArgs, output: Output) -> CliResult {
    let cluster = ClusterDir::load(&args.dir)?;
    let reports = report(&cluster)?;
    output.show(&reports, || table(&reports))?;
    if leader(&reports).is_none() {
        warn(&no_leader(&cluster, &reports));
    }
    Ok(())
}

fn no_leader(cluster: &ClusterDir, reports: &[NodeReport]) -> String {
    let (up, all) = (reports.iter().filter(|report| report.answers()).count(), reports.len());
    let dir = cluster.dir.display();
    format!(
        "no node leads; {up} of {all} answer, {} must. `keelfs cluster start --dir {dir}` starts the rest",
        all / 2 + 1
    )
}

/// `keelfs cluster kill`
fn kill(args: KillArgs, output: Output) -> CliResult {
    let cluster = ClusterDir::load(&args.at.dir)?;
    let leader = match args.which.contains(&super::words::Which::Leader) {
        true => leader(&report(&cluster)?),
        false => None,
    };
    let mut killed = Vec::new();
    for node in cluster.chosen(&args.which, leader)? {
        match server(&cluster, node) {
            Some(server) => {
                server.signal(args.signal.0)?;
                output.say(&line_of_kill(node, leader, server.pid, args.signal))?;
                killed.push(json!({ "id": node.id, "pid": server.pid, "signal": args.signal.to_string() }));
            }
            None => output.say(&format!("node {} is not running", node.id))?,
        }
    }
    if output.json { output.show(&killed, String::new) } else { Ok(()) }
}

fn line_of_kill(node: &NodeConfig, leader: Option<u64>, pid: u32, signal: super::words::SignalName) -> String {
    let role = if leader == Some(node.id) { ", the leader" } else { "" };
    format!("sent {signal} to node {}{role} (pid {pid})", node.id)
}

/// `keelfs cluster restart`
fn restart(args: RestartArgs, output: Output) -> CliResult {
    let cluster = ClusterDir::load(&args.at.dir)?;
    let _lock = ClusterDir::lock(&cluster.dir)?;
    let leader = match args.which.contains(&super::words::Which::Leader) {
        true => leader(&report(&cluster)?),
        false => None,
    };
    let chosen = cluster.chosen(&args.which, leader)?;
    // Living mounts stay: they go on with the other nodes meanwhile.
    stop::end_nodes(&cluster, &chosen, output)?;
    start::bring_up(&cluster, &chosen, args.timeout)?;
    let reports = report(&cluster)?;
    output.show(&reports, || table(&reports))
}
