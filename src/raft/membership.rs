//! Who is in the cluster, and how that changes.
//!
//! A new node is a *learner* first: it gets the log and has no vote. When it has caught up, the leader makes it a *voter*,
//! if that is what it shall become; one that replaces another takes its place in the same step. Voters change through two
//! sets of voters at once (joint consensus), so any number of them may change together without two majorities that do not
//! meet. (Ongaro's thesis, chapter 4; openraft, `docs/cluster_control/joint-consensus.md`.)
//!
//! What is refused is decided here before openraft is asked: openraft would begin a change that the remaining voters cannot
//! finish, and until they can, nothing else would be committed either. So who is counted on must have answered since the
//! change was asked for, not only a moment ago.
//!
//! Decision: what a learner shall become stands in the membership itself, and whoever leads sees to it. So `join` needs
//! nobody who waits for the new node to catch up, and a change of leaders in between does not matter; a change that was
//! left half done, with two sets of voters, is finished by the next leader too.
//!
//! Decision: a leader that shall be removed first hands its lead to another. Cost: one more change of leaders than if it
//! led its own removal, which openraft can do but which has been the more fragile way (its issues 2091 and 2098).

use super::replica::{Replica, ReplicaError};
use super::types::*;
use crate::fs::{NodeCommand, Outcome, Reply};
use crate::net::NodeId;
use openraft::errors::{ChangeMembershipError, ClientWriteError, PreconditionFailed, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, Instant, RaftMetrics};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// A learner that lacks no more entries than this has caught up: what is left is on its way.
const LAG_ENTRIES_MAX: u64 = 256;
/// How often it is looked who has answered.
const ASK_EVERY: Duration = Duration::from_millis(20);
const UNDER_WAY: &str = "another change of the membership is under way: wait a moment and try again";
/// How long the lead may take to pass to another node.
const HAND_OVER_TIME: Duration = Duration::from_secs(3);

/// A node of the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `HOST:PORT`, where the others reach it.
    pub address: String,
    /// For people; may be empty.
    pub name: String,
    /// Of a learner.
    pub becomes: Becomes,
}

/// What a learner shall become once it has caught up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Becomes {
    #[default]
    Voter,
    /// A voter, in the place of this node, which goes in the same step.
    Instead(NodeId),
    /// It stays one until it is promoted.
    Learner,
}

/// What an operator may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// A new node, as a learner; its number comes back.
    Add {
        address: SocketAddr,
        name: String,
        becomes: Becomes,
    },
    /// A learner that has caught up becomes a voter now.
    Promote {
        node: NodeId,
    },
    Remove {
        node: NodeId,
    },
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChanged {
    Added {
        node: NodeId,
    },
    Promoted {
        node: NodeId,
    },
    Removed {
        node: NodeId,
    },
    /// It was so already.
    Nothing {
        node: NodeId,
    },
}

/// Why it was not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// It would harm the cluster, or makes no sense; nothing was changed.
    #[error("{0}")]
    Refused(String),
}

/// The membership as one node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    pub leader: Option<NodeId>,
    /// The voters are about to change: two sets of them count.
    pub changing: bool,
    pub nodes: BTreeMap<NodeId, RosterEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterEntry {
    pub member: Member,
    pub voter: bool,
    /// Number of its last start that the cluster knows.
    pub incarnation: Option<u64>,
    /// Its log is known to the whole cluster to reach so far durably.
    pub holds: u64,
    /// Entries of the leader's log that the node is not known to have; only the leader tells.
    pub lag: Option<u64>,
    /// It has answered lately; only the leader tells.
    pub answers: Option<bool>,
}

/// What decides about a change: the membership, and who is well.
#[derive(Clone, Debug)]
struct View {
    own: NodeId,
    configs: Vec<BTreeSet<NodeId>>,
    nodes: BTreeMap<NodeId, Member>,
    /// The entry that made it so.
    made_by: Option<LogId>,
    /// That entry is committed.
    settled: bool,
    /// Nodes that answer, this one included.
    alive: BTreeSet<NodeId>,
    /// Entries of this log that each other node is not known to have.
    lags: BTreeMap<NodeId, u64>,
    /// Whose start is known to the cluster.
    started: BTreeSet<NodeId>,
}

/// What a leader does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Leave the old set of voters.
    Finish,
    Promote {
        node: NodeId,
        instead: Option<NodeId>,
    },
}

impl Member {
    pub fn at(address: impl ToString) -> Member {
        Member { address: address.to_string(), name: String::new(), becomes: Becomes::Voter }
    }
}

impl View {
    fn voters(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().copied().collect()
    }

    fn is_changing(&self) -> bool {
        self.configs.len() > 1
    }

    fn known(&self, node: NodeId) -> Result<&Member, String> {
        let list = || self.nodes.keys().map(u64::to_string).collect::<Vec<_>>().join(", ");
        self.nodes.get(&node).ok_or_else(|| format!("node {node} is no member: the members are {}", list()))
    }

    /// Would these voters have a majority that answers?
    fn must_live(&self, voters: &BTreeSet<NodeId>, what: &str) -> Result<(), String> {
        let (alive, all) = (voters.intersection(&self.alive).count(), voters.len());
        let silent: Vec<_> = voters.difference(&self.alive).map(u64::to_string).collect();
        match (all, alive > all / 2) {
            (0, _) => Err(format!("{what} would leave the cluster without a voter")),
            (_, true) => Ok(()),
            _ => Err(format!(
                "{what} would leave {all} voters of which only {alive} answer, and nothing could be changed any more: first \
                 start node {}, or replace it",
                silent.join(", ")
            )),
        }
    }

    fn must_be_settled(&self) -> Result<(), String> {
        match self.is_changing() || !self.settled {
            true => Err(UNDER_WAY.into()),
            false => Ok(()),
        }
    }

    fn may_add(&self, address: SocketAddr, becomes: Becomes) -> Result<(), String> {
        let replaced = match becomes {
            Becomes::Instead(node) => Some(self.known(node).map(|_| node)?),
            Becomes::Voter | Becomes::Learner => None,
        };
        let is_there =
            |(node, member): &(&NodeId, &Member)| Some(**node) != replaced && member.address.parse() == Ok(address);
        if let Some((node, _)) = self.nodes.iter().find(is_there) {
            return Err(format!("{address} is node {node}'s address: give the new node one of its own"));
        }
        let rival = |member: &&Member| replaced.is_some() && member.becomes == becomes;
        let rival = self.nodes.iter().find(|(node, member)| rival(member) && !self.voters().contains(node));
        match (rival, replaced) {
            (Some((node, _)), Some(old)) => Err(format!(
                "node {node} is about to replace node {old} already: start it, or give it up with `keelfs member remove {node}`"
            )),
            _ => self.must_be_settled(),
        }
    }

    fn may_promote(&self, node: NodeId) -> Result<(), String> {
        self.known(node)?;
        self.must_be_settled()?;
        if !self.alive.contains(&node) || !self.started.contains(&node) {
            return Err(format!("node {node} does not answer: start it, and promote it when it has caught up"));
        }
        let lag = self.lags.get(&node).copied().unwrap_or(u64::MAX);
        if lag > LAG_ENTRIES_MAX {
            let lag = if lag == u64::MAX { "everything".into() } else { format!("{lag} entries") };
            return Err(format!("node {node} has not caught up: it lacks {lag}; see `keelfs member list`"));
        }
        let mut voters = self.voters();
        voters.insert(node);
        self.must_live(&voters, &format!("promoting node {node}"))
    }

    fn may_remove(&self, node: NodeId) -> Result<(), String> {
        self.known(node)?;
        self.must_be_settled()?;
        let mut voters = self.voters();
        match voters.remove(&node) {
            true => self.must_live(&voters, &format!("removing node {node}")),
            false => Ok(()),
        }
    }

    /// What is to be done next without anybody asking.
    fn due(&self) -> Option<Step> {
        if !self.settled {
            return None;
        }
        if self.is_changing() {
            return Some(Step::Finish);
        }
        let voters = self.voters();
        let learners = self.nodes.iter().filter(|(node, _)| !voters.contains(node));
        let mut steps = learners.filter_map(|(node, member)| {
            let instead = match member.becomes {
                Becomes::Learner => return None,
                Becomes::Voter => None,
                // If it has gone meanwhile, there is nothing left to take.
                Becomes::Instead(old) => Some(old).filter(|old| self.nodes.contains_key(old)),
            };
            let mut after = voters.clone();
            after.insert(*node);
            instead.map(|old| after.remove(&old));
            let fit = self.may_promote(*node).is_ok() && self.must_live(&after, "this").is_ok();
            fit.then_some(Step::Promote { node: *node, instead })
        });
        steps.next()
    }

    /// The voter that is furthest and answers, but for this node.
    fn heir(&self) -> Option<NodeId> {
        let others = self.voters().into_iter().filter(|node| *node != self.own && self.alive.contains(node));
        others.min_by_key(|node| self.lags.get(node).copied().unwrap_or(u64::MAX))
    }
}

impl Step {
    fn change(self) -> Changes {
        match self {
            Step::Finish => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Step::Promote { node, instead: None } => ChangeMembers::AddVoterIds(BTreeSet::from([node])),
            Step::Promote { node, instead: Some(old) } => ChangeMembers::Batch(vec![
                ChangeMembers::AddVoterIds(BTreeSet::from([node])),
                ChangeMembers::RemoveVoters(BTreeSet::from([old])),
            ]),
        }
    }
}

type Changes = ChangeMembers<NodeId, Member>;

impl Replica {
    /// Leader only: carry out a change; on return it is committed.
    pub async fn change_members(&self, change: MemberChange) -> Result<MemberChanged, MemberError> {
        let view = self.asked_view().await?;
        match change {
            MemberChange::Add { address, name, becomes } => {
                view.may_add(address, becomes).map_err(MemberError::Refused)?;
                let node = self.allocate().await?;
                // That took a moment, in which another change may have come in between.
                let view = self.view(&self.metrics(), None);
                view.may_add(address, becomes).map_err(MemberError::Refused)?;
                let member = Member { address: address.to_string(), name, becomes };
                self.change(&view, ChangeMembers::AddNodes(BTreeMap::from([(node, member)]))).await?;
                Ok(MemberChanged::Added { node })
            }
            MemberChange::Promote { node } if view.voters().contains(&node) => Ok(MemberChanged::Nothing { node }),
            MemberChange::Promote { node } => {
                view.may_promote(node).map_err(MemberError::Refused)?;
                self.change(&view, ChangeMembers::AddVoterIds(BTreeSet::from([node]))).await?;
                Ok(MemberChanged::Promoted { node })
            }
            MemberChange::Remove { node } => {
                view.may_remove(node).map_err(MemberError::Refused)?;
                self.remove_member(&view, node).await
            }
        }
    }

    /// Leader only: what is due without anybody asking. `true`: something was changed.
    pub async fn tend_members(&self) -> Result<bool, MemberError> {
        if self.must_lead().is_err() || self.view(&self.metrics(), None).due().is_none() {
            return Ok(false);
        }
        let view = self.asked_view().await?;
        let Some(step) = view.due() else { return Ok(false) };
        if let Step::Promote { instead: Some(old), .. } = step
            && old == view.own
            && self.hand_over(&view).await.is_some()
        {
            return Ok(false);
        }
        match step {
            Step::Finish => tracing::info!("finishing a change of the membership"),
            Step::Promote { node, instead: None } => tracing::info!("node {node} has caught up and becomes a voter"),
            Step::Promote { node, instead: Some(old) } => {
                tracing::info!("node {node} has caught up and takes the place of node {old}")
            }
        }
        self.change(&view, step.change()).await?;
        Ok(true)
    }

    /// The number of a new node.
    async fn allocate(&self) -> Result<NodeId, MemberError> {
        match self.propose_alone(NodeCommand::Allocate).await? {
            Ok(Reply::Node(node)) => Ok(node),
            other => Err(MemberError::Refused(format!("no number could be given out: {other:?}"))),
        }
    }

    async fn remove_member(&self, view: &View, node: NodeId) -> Result<MemberChanged, MemberError> {
        if node == view.own
            && let Some(leader) = self.hand_over(view).await
        {
            return Err(ReplicaError::NotLeader { leader: Some(leader) }.into());
        }
        let change = match view.voters().contains(&node) {
            true => ChangeMembers::RemoveVoters(BTreeSet::from([node])),
            false => ChangeMembers::RemoveNodes(BTreeSet::from([node])),
        };
        self.change(view, change).await?;
        Ok(MemberChanged::Removed { node })
    }

    /// Let another lead; who it then is.
    async fn hand_over(&self, view: &View) -> Option<NodeId> {
        let heir = view.heir()?;
        self.transfer_leader(heir).await.ok()?;
        let mut leader = self.leader();
        let passed = leader.wait_for(|leader| leader.is_some_and(|leader| leader != view.own));
        let passed = tokio::time::timeout(HAND_OVER_TIME, passed).await.ok()?.ok()?;
        *passed
    }

    /// Through both steps of a change, if it has two. Guarded by the membership that was judged.
    async fn change(&self, view: &View, change: Changes) -> Result<(), MemberError> {
        let (raft, last_membership_log_id) = (self.raft().clone(), view.made_by);
        let guard = Precondition::LastMembershipLogId { last_membership_log_id };
        // In a task of its own: both steps are to be done though the asker may go.
        let changed = tokio::spawn(async move { raft.change_membership_if(change, false, [guard]).await });
        match changed.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                let made_by_now = *self.metrics().membership_config.log_id();
                Err(why_not(error, self.id(), view.made_by, made_by_now))
            }
            Err(_) => Err(ReplicaError::Unknown.into()),
        }
    }

    /// The leader's view, of which those are alive that have answered since it was asked for.
    async fn asked_view(&self) -> Result<View, ReplicaError> {
        let (begun, patience) = (std::time::Instant::now(), self.silence_max() / 2);
        loop {
            self.must_lead()?;
            let view = self.view(&self.metrics(), Some(begun));
            if view.alive.len() == view.nodes.len() || begun.elapsed() >= patience {
                return Ok(view);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// `since`: alive are those that have answered since then; else those that have answered lately.
    fn view(&self, metrics: &RaftMetrics<Types>, since: Option<std::time::Instant>) -> View {
        let own = self.id();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = metrics.replication.iter().flatten();
        let lag = |id: &Option<LogId>| id.as_ref().map_or(u64::MAX, |id| last.saturating_sub(id.index));
        let heard = metrics.heartbeat.iter().flatten();
        let within = since.map_or(self.silence_max(), |since| since.elapsed());
        let lately = heard.filter(|(_, at)| at.is_some_and(|at| at.elapsed() <= within));
        let root = self.state();
        let nodes: BTreeMap<_, _> = membership.nodes().map(|(node, member)| (*node, member.clone())).collect();
        View {
            own,
            configs: membership.get_joint_config().clone(),
            made_by: *metrics.membership_config.log_id(),
            settled: metrics.committed_membership_config == metrics.membership_config,
            alive: lately.map(|(node, _)| *node).chain([own]).collect(),
            lags: matched.map(|(node, id)| (*node, lag(id))).chain([(own, 0)]).collect(),
            started: nodes.keys().copied().filter(|node| root.node_start(*node).is_some()).collect(),
            nodes,
        }
    }

    /// The membership as this node knows it.
    pub fn roster(&self) -> Roster {
        let metrics = self.metrics();
        let (view, root, leads) = (self.view(&metrics, None), self.state(), self.must_lead().is_ok());
        let voters = view.voters();
        let entry = |(node, member): (&NodeId, &Member)| {
            let entry = RosterEntry {
                member: member.clone(),
                voter: voters.contains(node),
                incarnation: root.node_start(*node).map(|start| start.incarnation),
                holds: root.node_holds(*node).0,
                lag: view.lags.get(node).copied().filter(|lag| leads && *lag != u64::MAX),
                answers: leads.then(|| view.alive.contains(node)),
            };
            (*node, entry)
        };
        Roster {
            leader: *self.leader().borrow(),
            changing: view.is_changing(),
            nodes: view.nodes.iter().map(entry).collect(),
        }
    }

    async fn propose_alone(&self, command: NodeCommand) -> Result<Outcome, ReplicaError> {
        self.propose(super::replica::alone(crate::fs::Command::Node(command)), bytes::Bytes::new()).await
    }
}

/// Why a change was not made, or not known to be. `judged`: the entry of the membership that was judged; `now`: that of the
/// membership as it is, perhaps by the first step of this very change.
fn why_not(
    error: RaftError<Types, ClientWriteError<Types>>,
    own: NodeId,
    judged: Option<LogId>,
    now: Option<LogId>,
) -> MemberError {
    let error = match error {
        RaftError::Fatal(fatal) => return ReplicaError::Stopped { why: fatal.to_string() }.into(),
        RaftError::APIError(error) => error,
    };
    let under_way = || MemberError::Refused(UNDER_WAY.into());
    match error {
        // Appended, and may be committed under another lead.
        ClientWriteError::LogEntryDiscarded(_) => ReplicaError::Unknown.into(),
        ClientWriteError::PreconditionFailed(PreconditionFailed::LastMembershipLogIdMismatch { expected, .. })
            if expected == judged =>
        {
            under_way()
        }
        ClientWriteError::ForwardToLeader(forward) if now == judged => {
            ReplicaError::NotLeader { leader: forward.leader_id.filter(|leader| *leader != own) }.into()
        }
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) if now == judged => under_way(),
        // The second step failed: the first is made, and the next leader, or this one, goes on from there.
        ClientWriteError::ForwardToLeader(_)
        | ClientWriteError::PreconditionFailed(_)
        | ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => ReplicaError::Unknown.into(),
        other => MemberError::Refused(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
