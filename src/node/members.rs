//! A node's standing in the cluster: it says that it has started, looks whether it may still take part, and, while it
//! leads, tends the membership and notes how far the logs of the others reach.

use super::exit::{Exit, NodeError};
use super::fatal::Fatal;
use super::{DataDirectory, ask_peers};
use crate::fs::{Command, LogIndex, NodeCommand, NodeHolds};
use crate::net::{Expulsion, Identity};
use crate::raft::{MemberError, Replica, ReplicaError};
use crate::volume::{Local, sessionless};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How often a node looks at what is known of it.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long one try to say that it has started may take.
const SAY_TIME: Duration = Duration::from_secs(5);
/// How often the leader notes how far the logs reach: an old copy of a data directory that is younger than this is known for
/// one only by the node that led when it was made.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// How long noting may take before the leader looks anew.
const NOTE_TIME: Duration = Duration::from_secs(10);

/// See to it that the cluster knows of this start, and keep looking whether this process may go on, until `stop`.
pub async fn stand(local: Local, replica: Replica, stop: CancellationToken) {
    let (node, start) = (replica.id(), replica.start_noted());
    loop {
        replica.examine_itself();
        if replica.state().node_start(node) != Some(&start) {
            let command = Command::Node(NodeCommand::Start { node, start });
            stop.run_until_cancelled(local.propose_alone(command, Instant::now() + SAY_TIME)).await;
        }
        if stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Note the membership in the data directory as it changes, and keep its reserve filled, until `stop`; and end the node when it is known that it may
/// never again take part: at once, and for good if it was removed. From here on nobody else writes the directory's identity.
pub(super) async fn keep_identity(
    replica: Replica,
    mut directory: DataDirectory,
    fatal: Fatal,
    stop: CancellationToken,
) {
    tokio::select! {
        never = tend_directory(&replica, &mut directory) => match never {},
        expulsion = replica.expelled() => heed(expulsion, directory, &fatal),
        () = stop.cancelled() => {}
    }
}

async fn tend_directory(replica: &Replica, directory: &mut DataDirectory) -> Infallible {
    let mut seen = BTreeMap::new();
    loop {
        let members = replica.members();
        if members != seen {
            seen.clone_from(&members);
            if let Err(e) = directory.note_members(members) {
                tracing::warn!("the membership was not noted, which only matters if the log is damaged: {e}");
            }
        }
        directory.fill_reserve();
        sleep(LOOK_EVERY).await;
    }
}

fn heed(expulsion: Expulsion, mut directory: DataDirectory, fatal: &Fatal) {
    if !expulsion.removed {
        return fatal.report(NodeError::new(Exit::Damaged, expulsion.why));
    }
    if let Err(e) = directory.mark_removed() {
        tracing::error!("{e}");
    }
    let (node, cluster, path) = (directory.node, directory.cluster, directory.path.display());
    fatal.report(NodeError::new(
        Exit::Done,
        format!("node {node} has been removed from cluster {cluster}; its data directory {path} can be deleted"),
    ));
}

/// What a leader does for the membership, until `stop`.
pub async fn tend(replica: Replica, own: Identity, stop: CancellationToken) {
    let mut noted = Noted { at: Instant::now(), applied: LogIndex(0) };
    while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
        if replica.cluster_time().is_none() {
            continue;
        }
        match stop.run_until_cancelled(replica.tend_members()).await {
            Some(Err(MemberError::Replica(ReplicaError::NotLeader { .. }))) | Some(Ok(_)) => {}
            Some(Err(e)) => tracing::warn!("the membership could not be changed: {e}"),
            None => return,
        }
        stop.run_until_cancelled(noted.note(&replica, &own)).await;
    }
}

/// The last time that the logs' ends were noted.
struct Noted {
    at: Instant,
    /// The entry in which that was done, if nothing else came in between.
    applied: LogIndex,
}

impl Noted {
    async fn note(&mut self, replica: &Replica, own: &Identity) {
        let before = replica.state().applied();
        // An idle cluster need not go on noting its own notes.
        if self.at.elapsed() < NOTE_EVERY || before == self.applied {
            return;
        }
        self.at = Instant::now();
        let holds = holds_of_all(replica, own).await;
        if holds.is_empty() {
            return;
        }
        let before = replica.state().applied();
        let proposed = replica.propose(sessionless(Command::Node(NodeCommand::Holds(holds))), Bytes::new());
        if let Ok(Ok(_)) = timeout(NOTE_TIME, proposed).await {
            self.applied = LogIndex(before.0.saturating_add(1));
        }
    }
}

/// What each node that answers says it holds, where that is news.
async fn holds_of_all(replica: &Replica, identity: &Identity) -> Vec<NodeHolds> {
    let own = NodeHolds { node: replica.id(), run: replica.start_noted().run, upto: replica.holds() };
    let others = ask_peers(identity, &replica.members()).await;
    let others =
        others.into_iter().map(|told| NodeHolds { node: told.node, run: told.run, upto: LogIndex(told.holds) });
    let root = replica.state();
    others.chain([own]).filter(|holds| holds.upto > root.node_holds(holds.node)).collect()
}
