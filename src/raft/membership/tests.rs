use super::*;
use crate::log::{EntryId, Log};
use crate::net::{Identity, Start};
use crate::raft::{Timing, Tuning};
use openraft::errors::{ForwardToLeader, InProgress};

fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
    nodes.iter().copied().collect()
}

/// Node 1 leads; all listed as alive have caught up and started.
fn view(voters: &[NodeId], learners: &[(NodeId, Becomes)], alive: &[NodeId]) -> View {
    let at = |node: NodeId, becomes| (node, Member { becomes, ..Member::at(format!("10.0.0.{node}:7700")) });
    let voting = voters.iter().map(|node| at(*node, Becomes::Voter));
    View {
        own: 1,
        configs: vec![set(voters)],
        nodes: voting.chain(learners.iter().map(|(node, becomes)| at(*node, *becomes))).collect(),
        made_by: None,
        settled: true,
        alive: set(alive),
        lags: alive.iter().map(|node| (*node, 0)).collect(),
        started: set(alive),
    }
}

impl View {
    fn unsettled(self) -> View {
        View { settled: false, ..self }
    }
}

fn refused(result: Result<(), String>, with: &str) {
    let why = result.unwrap_err();
    assert!(why.contains(with), "{why}");
}

#[test]
fn no_removal_leaves_the_cluster_without_a_majority_that_answers() {
    let five = view(&[1, 2, 3, 4, 5], &[], &[1, 2, 3]);
    assert_eq!(five.may_remove(4), Ok(()), "a dead one: three of the remaining four answer");
    refused(five.may_remove(3), "only 2 answer");
    refused(five.may_remove(3), "start node 4, 5");
    refused(five.may_remove(9), "the members are 1, 2, 3, 4, 5");
    refused(view(&[1], &[], &[1]).may_remove(1), "without a voter");
    assert_eq!(view(&[1], &[(2, Becomes::Learner)], &[1]).may_remove(2), Ok(()), "a learner never counts");
}

#[test]
fn a_learner_votes_only_when_it_answers_and_has_caught_up() {
    let mut with = view(&[1, 2, 3], &[(6, Becomes::Learner)], &[1, 2, 3, 6]);
    assert_eq!(with.may_promote(6), Ok(()));
    with.lags.insert(6, LAG_ENTRIES_MAX + 1);
    refused(with.may_promote(6), "lacks 257 entries");
    with.lags.remove(&6);
    refused(with.may_promote(6), "lacks everything");
    let silent = view(&[1, 2, 3], &[(6, Becomes::Learner)], &[1, 2, 3]);
    refused(silent.may_promote(6), "does not answer");
    with.lags.insert(6, 0);
    with.started.remove(&6);
    refused(with.may_promote(6), "does not answer");
    refused(view(&[1, 2], &[(6, Becomes::Learner)], &[1, 6]).may_promote(4), "no member");
}

#[test]
fn an_address_belongs_to_one_node_unless_the_new_one_replaces_it() {
    let three = view(&[1, 2, 3], &[], &[1, 2]);
    let (taken, free) = ("10.0.0.3:7700".parse().unwrap(), "10.0.0.6:7700".parse().unwrap());
    assert_eq!(three.may_add(free, Becomes::Voter), Ok(()));
    refused(three.may_add(taken, Becomes::Voter), "node 3's address");
    assert_eq!(three.may_add(taken, Becomes::Instead(3)), Ok(()));
    refused(three.may_add(free, Becomes::Instead(9)), "no member");
    let replacing = view(&[1, 2, 3], &[(6, Becomes::Instead(3))], &[1, 2]);
    refused(replacing.may_add("10.0.0.7:7700".parse().unwrap(), Becomes::Instead(3)), "member remove 6");
}

#[test]
fn one_change_at_a_time_and_the_leader_finishes_what_was_left_half_done() {
    let mut joint = view(&[1, 2, 3], &[(6, Becomes::Voter)], &[1, 2, 3, 6]);
    joint.configs.push(set(&[1, 2, 3, 6]));
    joint.settled = false;
    assert_eq!(joint.due(), None, "its first step is not committed yet");
    refused(view(&[1], &[], &[1]).unsettled().may_add(([10, 0, 0, 9], 1).into(), Becomes::Voter), "under way");
    joint.settled = true;
    assert_eq!(joint.due(), Some(Step::Finish));
    for refusal in [joint.may_remove(2), joint.may_promote(6), joint.may_add(([10, 0, 0, 9], 1).into(), Becomes::Voter)]
    {
        refused(refusal, "under way");
    }
}

#[test]
fn the_leader_promotes_who_is_ready_and_puts_a_replacement_in_its_place_in_one_step() {
    let ready = view(&[1, 2, 3], &[(6, Becomes::Learner), (7, Becomes::Voter)], &[1, 2, 3, 6, 7]);
    assert_eq!(ready.due(), Some(Step::Promote { node: 7, instead: None }));
    assert_eq!(view(&[1, 2, 3], &[(7, Becomes::Voter)], &[1, 2, 3]).due(), None, "it does not answer yet");
    let replacing = view(&[1, 2, 3], &[(7, Becomes::Instead(3))], &[1, 2, 7]);
    assert_eq!(replacing.due(), Some(Step::Promote { node: 7, instead: Some(3) }));
    // Of two voters one is dead: with the new one in its place two of two answer.
    let pair = view(&[1, 2], &[(7, Becomes::Instead(2))], &[1, 7]);
    assert_eq!(pair.due(), Some(Step::Promote { node: 7, instead: Some(2) }));
    let gone = view(&[1, 2], &[(7, Becomes::Instead(3))], &[1, 2, 7]);
    assert_eq!(gone.due(), Some(Step::Promote { node: 7, instead: None }));
}

#[test]
fn a_change_that_may_have_been_made_is_not_said_to_be_undone() {
    let id = |index| Some(log_id(EntryId { term: 1, node: 1, index }));
    let (judged, joint) = (id(5), id(6));
    let forward = || ForwardToLeader::<Types>::new(2, Member::at("10.0.0.2:7700"));
    let mismatch = |expected| PreconditionFailed::LastMembershipLogIdMismatch { expected, actual: id(7) };
    let in_progress = || ChangeMembershipError::InProgress(InProgress { committed: judged, membership_log_id: id(7) });
    let why = |error: ClientWriteError<Types>, now| why_not(RaftError::APIError(error), 1, judged, now);
    let elsewhere = MemberError::Replica(ReplicaError::NotLeader { leader: Some(2) });
    assert_eq!(why(forward().into(), judged), elsewhere, "nothing was begun");
    assert_eq!(why(mismatch(judged).into(), id(7)), MemberError::Refused(UNDER_WAY.into()), "by another");
    for (error, now) in [
        (ClientWriteError::LogEntryDiscarded(forward()), judged),
        (forward().into(), joint),
        (mismatch(joint).into(), id(7)),
        (in_progress().into(), id(7)),
    ] {
        assert_eq!(why(error, now), MemberError::Replica(ReplicaError::Unknown));
    }
}

#[test]
fn the_lead_goes_to_the_voter_that_is_furthest_and_answers() {
    let mut five = view(&[1, 2, 3, 4], &[(6, Becomes::Learner)], &[1, 2, 3, 6]);
    five.lags.extend([(2, 9), (3, 4), (4, 0)]);
    assert_eq!(five.heir(), Some(3));
    assert_eq!(view(&[1, 2], &[], &[1]).heir(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_judged_by_an_older_membership_is_not_done() {
    let directory = tempfile::tempdir().unwrap();
    let start = Start { incarnation: 1, run: 1, ..Start::default() };
    let own = Identity { cluster: uuid::Uuid::from_u128(1), node: Some(1), start, keys: None };
    let address = |node: u8| SocketAddr::from(([127, 0, 0, node], 1));
    let members = BTreeMap::from([(1, address(1))]);
    let log = Log::open(directory.path()).unwrap();
    let replica = Replica::start_tuned(own, log, members.clone(), Timing::default(), Tuning::default()).await.unwrap();
    replica.initialize(members).await.unwrap();
    let add = |node: NodeId| ChangeMembers::AddNodes(BTreeMap::from([(node, Member::at(address(node as u8)))]));
    let settled = async || loop {
        match replica.asked_view().await {
            Ok(view) if view.settled => return view,
            _ => tokio::time::sleep(ASK_EVERY).await,
        }
    };
    let judged = settled().await;
    replica.change(&judged, add(2)).await.unwrap();
    assert_eq!(replica.change(&judged, add(3)).await, Err(MemberError::Refused(UNDER_WAY.into())));
    replica.change(&settled().await, add(3)).await.unwrap();
    replica.shutdown().await;
}
