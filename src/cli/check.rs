//! `keelfs check`: do all replicas hold the same, and is it sound?
//!
//! Replicas are compared at one agreed index, because while the cluster is in use no two of them are at the same index at
//! the same moment. The index is the highest that any of them has applied; the others are waited for.
//!
//! With `--data`, every node reads and verifies all that it stores, all at the same time; with `--repair` it mends what it
//! can with copies of the others, and those that were damaged on several nodes are mended from the ones that have them.

use crate::cli::args::CheckArgs;
use crate::cli::error::{CliError, CliResult};
use crate::cli::output::{Output, Progress};
use crate::cli::remote::Remote;
use crate::cli::status::{NodeReport, gather};
use crate::fs::LogIndex;
use crate::net::NodeId;
use crate::node::exit::Exit;
use crate::raft::{Finding, ScrubStatus};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often a replica that is behind is asked again.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long a node that reads its disk may take to say how far it is.
const STATUS_PATIENCE: Duration = Duration::from_secs(20);

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
    /// What reading everything came to, if that was asked for.
    scrub: Option<ScrubStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Comparison {
    index: u64,
    /// All members answered, with the same hash, no invariant is broken, and nothing that was read is damaged still.
    agree: bool,
    nodes: Vec<Verdict>,
}

/// `keelfs check`
pub async fn check(args: CheckArgs, output: Output) -> CliResult {
    let remote = Remote::new(&args.remote)?;
    let members = remote.members().await?;
    let reports = gather(&remote, members).await;
    let index = reports.iter().filter_map(|report| report.applied).max();
    let index = index.ok_or_else(|| CliError::new(Exit::NoMajority, "cannot compare the replicas: no node answers"))?;
    let mut comparison = compare(&remote, &reports, index).await;
    if args.data || args.repair {
        scrub_all(&remote, &mut comparison.nodes, args.repair).await;
        comparison.agree = all_agree(&comparison.nodes);
    }
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
    let mut verdict = Verdict { id, address, state_hash: None, error: report.error.clone(), broken: None, scrub: None };
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

/// Have all nodes that answer read what they store, and wait until they are done, however long that takes.
async fn scrub_all(remote: &Remote, nodes: &mut [Verdict], mend: bool) {
    let mut progress = Progress::new();
    let mut passes = Vec::new();
    for node in nodes.iter_mut().filter(|node| node.error.is_none()) {
        match demand(remote, node.address, mend).await {
            Ok(pass) => passes.push((node, pass)),
            Err(why) => node.error = Some(format!("its data was not read: {why}")),
        }
    }
    while !passes.is_empty() {
        let mut waiting = Vec::new();
        let mut bytes = 0;
        for (node, pass) in passes {
            let status = remote.status_of(node.address, Instant::now() + STATUS_PATIENCE).await;
            match pass.standing(status.map(|status| (status.run, status.replica.scrub))) {
                Ok(scrub) if pass.is_done(&scrub) => node.scrub = Some(scrub),
                Ok(scrub) => {
                    bytes += scrub.bytes;
                    waiting.push((node, pass));
                }
                Err(why) => node.error = Some(why),
            }
        }
        passes = waiting;
        progress.show(&format!("{} nodes are reading, {} MB so far …", passes.len(), bytes / 1_000_000));
        if !passes.is_empty() {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// A scrub that a node was asked for. Its number means something to that process only.
struct Pass {
    run: u64,
    number: u64,
}

async fn demand(remote: &Remote, address: SocketAddr, mend: bool) -> Result<Pass, String> {
    // Asked first: a node that restarts between the two has another run when it is next looked at.
    let run = remote.status_of(address, Instant::now() + STATUS_PATIENCE).await?.run;
    Ok(Pass { run, number: remote.scrub(address, mend).await? })
}

impl Pass {
    /// How far the node is, from what it told of its run and its scrub. `Err`: it will never come to this pass.
    fn standing(&self, told: Result<(u64, ScrubStatus), String>) -> Result<ScrubStatus, String> {
        match told {
            Ok((run, scrub)) if run == self.run => Ok(scrub),
            Ok(_) => Err("it was restarted while its data was read".into()),
            Err(why) => Err(format!("it fell silent while its data was read: {why}")),
        }
    }

    fn is_done(&self, scrub: &ScrubStatus) -> bool {
        scrub.demand_done >= self.number
    }
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
    sound
        && nodes.iter().all(|node| left_damaged(node) == 0)
        && nodes.windows(2).all(|pair| pair[0].state_hash == pair[1].state_hash)
}

fn left_damaged(node: &Verdict) -> u64 {
    node.scrub.as_ref().map_or(0, |scrub| scrub.damaged - scrub.mended)
}

fn told(comparison: &Comparison) -> String {
    let mut lines: Vec<_> = comparison.nodes.iter().flat_map(lines_of).collect();
    if comparison.agree {
        let (count, index) = (comparison.nodes.len(), comparison.index);
        let hash = comparison.nodes.iter().find_map(|node| node.state_hash.as_deref()).unwrap_or_default();
        lines.push(format!("all {count} replicas agree at index {index} (hash {hash})"));
    }
    lines.join("\n")
}

fn lines_of(node: &Verdict) -> Vec<String> {
    let mut lines = vec![line(node)];
    if let Some(scrub) = &node.scrub {
        let (records, megabytes, damaged, mended) =
            (scrub.records, scrub.bytes / 1_000_000, scrub.damaged, scrub.mended);
        lines.push(format!("  read {records} records, {megabytes} MB: {damaged} damaged, {mended} of them mended"));
        lines.extend(scrub.findings.iter().map(finding));
        let more = damaged.saturating_sub(scrub.findings.len() as u64);
        lines.extend((more > 0).then(|| format!("  … and {more} more, in the log of the node")));
    }
    lines
}

fn finding(finding: &Finding) -> String {
    let files = match finding.files.as_slice() {
        [] => String::new(),
        files => format!(", bytes of {}", files.join(", ")),
    };
    format!("  {}: {}{files}", if finding.mended { "mended" } else { "damaged" }, finding.what)
}

fn line(node: &Verdict) -> String {
    let hash = node.state_hash.as_deref().unwrap_or("-");
    let trouble = node.broken.as_ref().or(node.error.as_ref());
    format!("node {}  {}  {hash}  {}", node.id, node.address, trouble.map_or("ok", String::as_str))
}

fn conclusion(comparison: &Comparison) -> CliResult {
    let exit = match comparison.nodes.iter().any(|node| left_damaged(node) > 0) {
        true => Exit::Damaged,
        false => Exit::Failed,
    };
    if comparison.agree { Ok(()) } else { Err(CliError::new(exit, trouble(comparison))) }
}

fn trouble(comparison: &Comparison) -> String {
    let list = |ids: Vec<NodeId>| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    let broken: Vec<_> = comparison.nodes.iter().filter(|n| n.broken.is_some()).map(|n| n.id).collect();
    let missing: Vec<_> = comparison.nodes.iter().filter(|n| n.error.is_some()).map(|n| n.id).collect();
    let damaged: Vec<_> = comparison.nodes.iter().filter(|n| left_damaged(n) > 0).map(|n| n.id).collect();
    let diverging = diverging(&comparison.nodes);
    let mut parts = Vec::new();
    if !damaged.is_empty() {
        parts.push(format!(
            "with damaged data: node {}. Run keelfs check --repair while the other nodes are up; a file that is damaged on \
             all of them must come from a backup",
            list(damaged)
        ));
    }
    if !diverging.is_empty() {
        parts.push(format!("diverging: node {}. Stop it, and keep its data directory for a look", list(diverging)));
    }
    if !broken.is_empty() {
        parts.push(format!("with a broken invariant: node {}", list(broken)));
    }
    if !missing.is_empty() {
        parts.push(format!("not compared: node {}. Start it, or give it more time with --timeout", list(missing)));
    }
    format!("the replicas are not all sound and equal at index {}; {}", comparison.index, parts.join("; "))
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
        Verdict { id, address, state_hash: hash.map(String::from), error, broken: None, scrub: None }
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
    fn damage_that_was_not_mended_is_not_soundness() {
        let finding = |mended| Finding { what: "x is damaged at offset 7".into(), files: vec!["/a b".into()], mended };
        let scrub =
            ScrubStatus { damaged: 2, mended: 1, findings: vec![finding(true), finding(false)], ..Default::default() };
        let mut bad = node(2, Some("a"));
        bad.scrub = Some(scrub.clone());
        let lines = lines_of(&bad);
        assert_eq!(lines[3], "  damaged: x is damaged at offset 7, bytes of /a b");
        let said = of(vec![node(1, Some("a")), bad.clone()]).unwrap_err();
        assert_eq!(said.exit, Exit::Damaged);
        assert!(said.message.contains("with damaged data: node 2"), "{said}");
        bad.scrub = Some(ScrubStatus { mended: 2, ..scrub });
        of(vec![node(1, Some("a")), bad]).unwrap();
    }

    #[test]
    fn a_pass_ends_with_the_process_that_was_to_make_it() {
        let pass = Pass { run: 7, number: 2 };
        let told = |run, demand_done| pass.standing(Ok((run, ScrubStatus { demand_done, ..Default::default() })));
        assert!(told(7, 2).is_ok_and(|scrub| pass.is_done(&scrub)));
        assert!(told(7, 1).is_ok_and(|scrub| !pass.is_done(&scrub)));
        // A new process counts from the beginning: what it says of its own second pass is not of this one either.
        for done in [0, 2] {
            assert_eq!(told(8, done).unwrap_err(), "it was restarted while its data was read");
        }
    }

    #[test]
    fn equal_hashes_agree() {
        of(vec![node(1, Some("a")), node(2, Some("a"))]).unwrap();
    }
}
