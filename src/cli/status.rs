//! What the nodes tell about themselves: `keelfs status`, and the ground of `keelfs cluster status`.

use crate::cli::args::RemoteArgs;
use crate::cli::error::CliResult;
use crate::cli::output::{Output, columns, warn};
use crate::cli::remote::Remote;
use crate::net::NodeId;
use crate::raft::{Comparison, ScrubStatus};
use crate::volume::NodeStatus;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long one node gets to tell its status before it counts as silent.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

/// One row. What a silent node cannot tell is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeReport {
    pub id: NodeId,
    pub address: SocketAddr,
    /// On the node's machine.
    pub pid: Option<u32>,
    /// `leader`, `follower`, `candidate`, `learner`, …; `down`: does not answer.
    pub role: String,
    pub term: Option<u64>,
    pub leader: Option<NodeId>,
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    /// Entries of the leader's log that it does not have.
    pub lag: Option<u64>,
    /// Number of this start of the node.
    pub incarnation: Option<u64>,
    /// Hexadecimal, at `applied`.
    pub state_hash: Option<String>,
    /// Index of the newest metadata snapshot; what was last purged from the Raft log.
    pub snapshot: Option<u64>,
    pub purged: Option<u64>,
    pub log_bytes: Option<u64>,
    /// Where the states of the replicas were last compared, and with whom this one agrees.
    pub compared: Option<Comparison>,
    /// What is stored was last read and verified, with this result.
    pub scrub: Option<ScrubStatus>,
    /// Bytes that its disk takes before its reserve is touched; whether that is none.
    pub free_bytes: Option<u64>,
    pub storage_full: Option<bool>,
    /// On the node's machine.
    pub mount: Option<PathBuf>,
    /// Why a silent node is silent.
    pub error: Option<String>,
}

impl NodeReport {
    fn of(id: NodeId, address: SocketAddr, told: Result<NodeStatus, String>) -> NodeReport {
        let (told, error) = match told {
            // Another node moved to this address: that is not the one we ask about.
            Ok(told) if told.node != id => (None, Some(format!("node {} answers there", told.node))),
            Ok(told) => (Some(told), None),
            Err(why) => (None, Some(why)),
        };
        let replica = told.as_ref().map(|told| &told.replica);
        NodeReport {
            id,
            address,
            pid: told.as_ref().map(|told| told.pid),
            role: replica.map_or("down", |r| &r.role).to_lowercase(),
            term: replica.map(|r| r.term),
            leader: replica.and_then(|r| r.leader),
            last_log: replica.map(|r| r.last_log),
            applied: replica.map(|r| r.applied),
            lag: None,
            incarnation: told.as_ref().map(|told| told.incarnation),
            state_hash: replica.map(|r| r.state_hash.clone()),
            snapshot: replica.map(|r| r.snapshot),
            purged: replica.map(|r| r.purged),
            log_bytes: replica.map(|r| r.log_bytes),
            compared: replica.map(|r| r.compared.clone()),
            scrub: replica.map(|r| r.scrub.clone()),
            free_bytes: replica.map(|r| r.free_bytes),
            storage_full: replica.map(|r| r.storage_full),
            mount: told.as_ref().and_then(|told| told.mounts.first()).map(PathBuf::from),
            error,
        }
    }

    pub fn answers(&self) -> bool {
        self.error.is_none()
    }
}

/// Ask all of these at once; each gets its own short time.
pub async fn gather(remote: &Remote, nodes: impl IntoIterator<Item = (NodeId, SocketAddr)>) -> Vec<NodeReport> {
    let deadline = Instant::now() + NODE_PATIENCE;
    let asked = nodes
        .into_iter()
        .map(async |(id, address)| NodeReport::of(id, address, remote.status_of(address, deadline).await));
    with_lags(futures_util::future::join_all(asked).await)
}

/// Fill in how far each is behind the leader among them.
pub fn with_lags(mut reports: Vec<NodeReport>) -> Vec<NodeReport> {
    let leader = leader(&reports);
    let end = reports.iter().find(|report| Some(report.id) == leader).and_then(|report| report.last_log);
    for report in &mut reports {
        report.lag = end.zip(report.last_log).map(|(end, own)| end.saturating_sub(own));
    }
    reports
}

/// The node that leads: the one that says so in the highest term.
pub fn leader(reports: &[NodeReport]) -> Option<NodeId> {
    let leaders = reports.iter().filter(|report| report.role == "leader");
    leaders.max_by_key(|report| report.term).map(|report| report.id)
}

/// What a node knows of itself that is not right.
fn troubles(report: &NodeReport) -> Vec<String> {
    let compared = report.compared.iter().filter(|compared| !compared.differ.is_empty());
    let differ = compared.map(|compared| {
        format!("node {}: its state after entry {} is not that of {:?}", report.id, compared.index, compared.differ)
    });
    let scrub = report.scrub.iter().filter(|scrub| scrub.damaged > scrub.mended);
    let damaged = scrub.map(|scrub| {
        let left = scrub.damaged - scrub.mended;
        format!("node {}: {left} damaged records were found and not mended; see keelfs check --repair", report.id)
    });
    differ.chain(damaged).collect()
}

/// The reports as a table for people. The columns that nobody fills are left out.
pub fn table(reports: &[NodeReport]) -> String {
    let heads = [
        "NODE",
        "ADDRESS",
        "PID",
        "ROLE",
        "TERM",
        "LAST LOG",
        "APPLIED",
        "LAG",
        "START",
        "STATE HASH",
        "STORAGE",
        "MOUNT",
    ];
    columns(heads, reports.iter().map(row).collect())
}

fn row(report: &NodeReport) -> [String; 12] {
    fn or_dash(value: Option<impl ToString>) -> String {
        value.map_or("-".into(), |v| v.to_string())
    }
    let hash = report.state_hash.as_ref().map(|hash| hash.chars().take(12).collect::<String>());
    [
        report.id.to_string(),
        report.address.to_string(),
        or_dash(report.pid),
        report.role.clone(),
        or_dash(report.term),
        or_dash(report.last_log),
        or_dash(report.applied),
        or_dash(report.lag),
        or_dash(report.incarnation),
        or_dash(hash),
        or_dash(report.storage_full.filter(|full| *full).map(|_| "full")),
        or_dash(report.mount.as_ref().map(|path| path.display())),
    ]
}

/// `keelfs status`. Having no leader is an answer, not a failure.
pub async fn status(args: RemoteArgs, output: Output) -> CliResult {
    let remote = Remote::new(&args)?;
    let members = remote.members().await?;
    let reports = gather(&remote, members).await;
    output.show(&reports, || table(&reports))?;
    reports.iter().flat_map(troubles).for_each(|trouble| warn(&trouble));
    if leader(&reports).is_none() {
        warn("no node leads: the cluster waits until a majority of its nodes runs and can reach one another");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::ReplicaStatus;

    fn report(id: NodeId, role: &str, term: u64) -> NodeReport {
        let address = SocketAddr::from(([127, 0, 0, 1], 7700 + id as u16));
        let (role, state_hash) = (role.to_string(), "ab".repeat(16));
        let replica = ReplicaStatus {
            role,
            term,
            leader: None,
            last_log: 9,
            applied: 8,
            state_hash,
            snapshot: 0,
            purged: 0,
            log_bytes: 1,
            compared: Default::default(),
            scrub: Default::default(),
            free_bytes: 1 << 30,
            storage_full: false,
        };
        let (cluster, version) = (uuid::Uuid::nil(), "1".to_string());
        let told = NodeStatus {
            cluster,
            node: id,
            address,
            pid: 42,
            version,
            incarnation: 6,
            run: 1,
            holds: 8,
            mounts: vec![],
            cs733: None,
            replica,
        };
        NodeReport::of(id, address, Ok(told))
    }

    #[test]
    fn a_leader_that_was_deposed_does_not_count() {
        let reports = [report(1, "Leader", 3), report(2, "Leader", 4), report(3, "Follower", 4)];
        assert_eq!(leader(&reports), Some(2));
        assert_eq!(leader(&reports[2..]), None);
    }

    #[test]
    fn a_table_leaves_out_what_nobody_knows() {
        let down = NodeReport::of(2, "127.0.0.1:7702".parse().unwrap(), Err("refused".into()));
        let shown = table(&with_lags(vec![report(1, "Leader", 3), down]));
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "NODE  ADDRESS         PID  ROLE    TERM  LAST LOG  APPLIED  LAG  START  STATE HASH");
        assert_eq!(lines[1], "1     127.0.0.1:7701  42   leader  3     9         8        0    6      abababababab");
        assert_eq!(lines[2], "2     127.0.0.1:7702  -    down    -     -         -        -    -      -");
        let full = NodeReport { storage_full: Some(true), ..report(3, "Follower", 3) };
        let shown = table(&with_lags(vec![report(1, "Leader", 3), full]));
        assert!(shown.lines().nth(2).unwrap().ends_with("abababababab  full"), "{shown}");
    }
}
