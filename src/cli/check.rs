//! `keelfs check`: do all replicas hold the same, and is it sound?
//!
//! Replicas are compared at one agreed index, because while the cluster is in use no two of them are at the same index at
//! the same moment. The index is the highest that any of them has applied; the others are waited for.

use crate::cli::args::RemoteArgs;
use crate::cli::error::{CliError, CliResult};
use crate::cli::output::{Output, Progress};
use crate::cli::remote::Remote;
use crate::cli::status::{NodeReport, gather};
use crate::fs::LogIndex;
use crate::net::NodeId;
use crate::node::exit::Exit;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often a replica that is behind is asked again.
const ASK_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Verdict {
    id: NodeId,
    address: SocketAddr,
    /// Hexadecimal, at the compared index.
    state_hash: Option<String>,
    /// Why it could not be compared or tested.
    error: Option<String>,
    /// The first broken invariant, if any.
    broken: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Comparison {
    index: u64,
    /// All members answered, with the same hash, and no invariant is broken.
    agree: bool,
    nodes: Vec<Verdict>,
}

/// `keelfs check`
pub async fn check(args: RemoteArgs, output: Output) -> CliResult {
    let remote = Remote::new(&args)?;
    let members = remote.members().await?;
    let reports = gather(&remote, members).await;
    let index = reports.iter().filter_map(|report| report.applied).max();
    let index = index.ok_or_else(|| CliError::new(Exit::NoMajority, "cannot compare the replicas: no node answers"))?;
    let comparison = compare(&remote, &reports, index).await;
    output.show(&comparison, || told(&comparison))?;
    conclusion(&comparison)
}

async fn compare(remote: &Remote, reports: &[NodeReport], index: u64) -> Comparison {
    let mut progress = Progress::new();
    progress.show(&format!("waiting until all replicas have applied index {index} …"));
    let nodes = reports.iter().map(|report| judge(remote, report, index));
    let nodes = futures_util::future::join_all(nodes).await;
    Comparison { index, agree: all_agree(&nodes), nodes }
}

async fn judge(remote: &Remote, report: &NodeReport, index: u64) -> Verdict {
    let (id, address) = (report.id, report.address);
    let mut verdict = Verdict { id, address, state_hash: None, error: report.error.clone(), broken: None };
    if verdict.error.is_none() {
        match hash_at(remote, report, index).await {
            Ok(hash) => verdict.state_hash = Some(hash),
            Err(why) => verdict.error = Some(why),
        }
    }
    if verdict.error.is_none() {
        match remote.check_of(address, remote.deadline()).await {
            Ok(broken) => verdict.broken = broken,
            Err(why) => verdict.error = Some(why),
        }
    }
    verdict
}

/// Ask until the node has applied the index, or the time is over.
async fn hash_at(remote: &Remote, report: &NodeReport, index: u64) -> Result<String, String> {
    if report.applied == Some(index) {
        return report.state_hash.clone().ok_or_else(|| "it gave no hash".into());
    }
    let deadline = remote.deadline();
    loop {
        if let Some(hash) = remote.hash_at(report.address, LogIndex(index), deadline).await? {
            return Ok(hash);
        }
        if Instant::now() + ASK_EVERY >= deadline {
            return Err(format!("it has not applied index {index} in time"));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn all_agree(nodes: &[Verdict]) -> bool {
    let sound = nodes.iter().all(|node| node.state_hash.is_some() && node.error.is_none() && node.broken.is_none());
    sound && nodes.windows(2).all(|pair| pair[0].state_hash == pair[1].state_hash)
}

fn told(comparison: &Comparison) -> String {
    let mut lines: Vec<_> = comparison.nodes.iter().map(line).collect();
    if comparison.agree {
        let (count, index) = (comparison.nodes.len(), comparison.index);
        let hash = comparison.nodes.iter().find_map(|node| node.state_hash.as_deref()).unwrap_or_default();
        lines.push(format!("all {count} replicas agree at index {index} (hash {hash})"));
    }
    lines.join("\n")
}

fn line(node: &Verdict) -> String {
    let hash = node.state_hash.as_deref().unwrap_or("-");
    let trouble = node.broken.as_ref().or(node.error.as_ref());
    format!("node {}  {}  {hash}  {}", node.id, node.address, trouble.map_or("ok", String::as_str))
}

fn conclusion(comparison: &Comparison) -> CliResult {
    if comparison.agree { Ok(()) } else { Err(CliError::failed(trouble(comparison))) }
}

fn trouble(comparison: &Comparison) -> String {
    let list = |ids: Vec<NodeId>| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    let broken: Vec<_> = comparison.nodes.iter().filter(|n| n.broken.is_some()).map(|n| n.id).collect();
    let missing: Vec<_> = comparison.nodes.iter().filter(|n| n.error.is_some()).map(|n| n.id).collect();
    let diverging = diverging(&comparison.nodes);
    let mut parts = Vec::new();
    if !diverging.is_empty() {
        parts.push(format!("diverging: node {}. Stop it, and keep its data directory for a look", list(diverging)));
    }
    if !broken.is_empty() {
        parts.push(format!("with a broken invariant: node {}", list(broken)));
    }
    if !missing.is_empty() {
        parts.push(format!("not compared: node {}. Start it, or give it more time with --timeout", list(missing)));
    }
    format!("the replicas do not all agree at index {}; {}", comparison.index, parts.join("; "))
}

/// Those whose hash is not the one that most have (of equally frequent ones, the first node's).
fn diverging(nodes: &[Verdict]) -> Vec<NodeId> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for hash in nodes.iter().filter_map(|node| node.state_hash.as_deref()) {
        *counts.entry(hash).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    let accepted = nodes.iter().filter_map(|node| node.state_hash.as_deref()).find(|hash| counts[hash] == most);
    nodes
        .iter()
        .filter(|node| node.state_hash.is_some() && node.state_hash.as_deref() != accepted)
        .map(|n| n.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: NodeId, hash: Option<&str>) -> Verdict {
        let error = hash.is_none().then(|| "silent".to_string());
        let address = "127.0.0.1:1".parse().unwrap();
        Verdict { id, address, state_hash: hash.map(String::from), error, broken: None }
    }

    fn of(nodes: Vec<Verdict>) -> CliResult {
        conclusion(&Comparison { index: 7, agree: all_agree(&nodes), nodes })
    }

    #[test]
    fn the_minority_diverges() {
        let said = of(vec![node(1, Some("bad")), node(2, Some("a")), node(3, Some("a"))]).unwrap_err();
        assert_eq!(said.exit, Exit::Failed);
        assert!(said.message.contains("index 7; diverging: node 1."), "{said}");
    }

    #[test]
    fn a_silent_node_is_not_agreement() {
        let said = of(vec![node(1, Some("a")), node(2, Some("a")), node(3, None)]).unwrap_err();
        assert!(said.message.contains("not compared: node 3"), "{said}");
        assert!(!said.message.contains("diverging"), "{said}");
    }

    #[test]
    fn a_broken_invariant_is_not_soundness() {
        let mut bad = node(2, Some("a"));
        bad.broken = Some("invariant I2 is broken".into());
        assert!(of(vec![node(1, Some("a")), bad]).unwrap_err().message.contains("broken invariant: node 2"));
    }

    #[test]
    fn equal_hashes_agree() {
        of(vec![node(1, Some("a")), node(2, Some("a"))]).unwrap();
    }
}
