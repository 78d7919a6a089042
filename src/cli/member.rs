//! `keelfs join`, `keelfs leave` and `keelfs member`: who is in the cluster.
//!
//! All changes go to the leader, which refuses what would cost the cluster its majority. A new node gets its number from
//! the cluster, never from a person, because a number that was used before would bring its old votes into doubt.

use crate::cli::args::{AddArgs, JoinArgs, LeaveArgs, MemberVerb, NewNodeArgs, OneMemberArgs, RemoteArgs, ReplaceArgs};
use crate::cli::block_on;
use crate::cli::error::{CliError, CliResult};
use crate::cli::keys;
use crate::cli::output::{Output, Progress, columns};
use crate::cli::remote::Remote;
use crate::cli::serve::make_identity;
use crate::net::NodeId;
use crate::node::DataDirectory;
use crate::node::exit::Exit;
use crate::raft::{Becomes, MemberChange, MemberChanged, Roster, RosterEntry};
use crate::volume::Failure;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often we look whether a node that has left is gone.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub fn run(verb: MemberVerb, output: Output) -> CliResult {
    match verb {
        MemberVerb::List(args) => block_on(list(args, output)),
        MemberVerb::Add(args) => block_on(add(args, output)),
        MemberVerb::Remove(args) => block_on(remove(args, output)),
        MemberVerb::Promote(args) => block_on(promote(args, output)),
        MemberVerb::Replace(args) => block_on(replace(args, output)),
    }
}

/// A row of `member list`.
#[derive(Debug, Serialize)]
struct Row {
    id: NodeId,
    address: String,
    name: String,
    /// `leader`, `voter` or `learner`.
    role: &'static str,
    /// Of a learner: what it is to be once it has caught up.
    becomes: Option<String>,
    /// Entries that it is not known to have; `null`: not known, or everything.
    lag: Option<u64>,
    /// The whole cluster knows that its log reaches so far durably.
    holds: u64,
    /// Number of its last start; `null`: it has never started.
    incarnation: Option<u64>,
    /// It has answered the leader lately.
    answers: Option<bool>,
}

/// `keelfs member list`
async fn list(args: RemoteArgs, output: Output) -> CliResult {
    let roster = Remote::new(&args)?.roster().await?;
    let rows: Vec<Row> = roster.nodes.iter().map(|(node, entry)| row(&roster, *node, entry)).collect();
    output.show(&rows, || {
        let changing = if roster.changing { "\nthe voters are changing: two sets of them count" } else { "" };
        format!("{}{changing}", told(&rows))
    })
}

fn row(roster: &Roster, id: NodeId, entry: &RosterEntry) -> Row {
    let role = match (roster.leader == Some(id), entry.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    };
    let becomes = match entry.member.becomes {
        _ if entry.voter => None,
        Becomes::Learner => None,
        Becomes::Voter => Some("voter".to_string()),
        Becomes::Instead(old) => Some(format!("voter instead of {old}")),
    };
    Row {
        id,
        address: entry.member.address.clone(),
        name: entry.member.name.clone(),
        role,
        becomes,
        lag: entry.lag,
        holds: entry.holds,
        incarnation: entry.incarnation,
        answers: entry.answers,
    }
}

fn told(rows: &[Row]) -> String {
    let dash = |value: Option<String>| value.filter(|value| !value.is_empty()).unwrap_or("-".into());
    let cells = rows.iter().map(|row| {
        [
            row.id.to_string(),
            row.address.clone(),
            dash(Some(row.name.clone())),
            row.becomes.as_ref().map_or(row.role.into(), |becomes| format!("{}, becomes {becomes}", row.role)),
            dash(row.lag.map(|lag| lag.to_string())),
            dash(row.incarnation.map(|start| start.to_string())),
            dash(row.answers.map(|answers| if answers { "answers" } else { "silent" }.into())),
        ]
    });
    columns(["NODE", "ADDRESS", "NAME", "ROLE", "LAG", "START", "STATE"], cells.collect())
}

/// `keelfs member add`
async fn add(args: AddArgs, output: Output) -> CliResult {
    let remote = Remote::new(&args.remote)?;
    let becomes = if args.learner { Becomes::Learner } else { Becomes::Voter };
    let change = MemberChange::Add { address: args.address, name: args.name.unwrap_or_default(), becomes };
    let node = change_members(&remote, change, &format!("add {}", args.address)).await?;
    let nodes = addresses(&remote.roster().await?, Some(node));
    output.show(&json!({ "id": node, "address": args.address }), || {
        format!("{} is node {node}. On its machine: keelfs join --as {node} --data DIR --node {nodes}", args.address)
    })
}

/// `keelfs member promote`
async fn promote(args: OneMemberArgs, output: Output) -> CliResult {
    let change = MemberChange::Promote { node: args.member };
    let remote = Remote::new(&args.remote)?;
    let node = change_members(&remote, change, &format!("promote node {}", args.member)).await?;
    output.show(&json!({ "id": node, "role": "voter" }), || format!("node {node} is a voter"))
}

/// `keelfs member remove`
async fn remove(args: OneMemberArgs, output: Output) -> CliResult {
    let remote = Remote::new(&args.remote)?;
    remove_member(&remote, args.member).await?;
    output.show(&json!({ "removed": args.member }), || {
        format!(
            "node {} is removed; its number will not be given again, and its data directory can be deleted",
            args.member
        )
    })
}

/// It may be that an answer was lost, or a leader with it, and that another try was then refused because the node is gone
/// already: so after any error it is looked whether it was a member and is none any more.
async fn remove_member(remote: &Remote, node: NodeId) -> CliResult {
    let is_member = async || Some(remote.roster().await.ok()?.nodes.contains_key(&node));
    let before = is_member().await;
    match change_members(remote, MemberChange::Remove { node }, &format!("remove node {node}")).await {
        Err(_) if before == Some(true) && is_member().await == Some(false) => Ok(()),
        other => other.map(drop),
    }
}

/// `keelfs member replace`
async fn replace(args: ReplaceArgs, output: Output) -> CliResult {
    let remote = Remote::new(&args.remote)?;
    let roster = remote.roster().await?;
    let old = args.member;
    let entry = roster.nodes.get(&old).ok_or_else(|| no_member(&roster, old))?;
    let address = match args.address {
        Some(address) => address,
        None => entry.member.address.parse().map_err(|_| {
            CliError::usage(format!("node {old} has no address that could be taken over: give one with --address"))
        })?,
    };
    let node = NewNodeArgs { data: args.data, name: args.name };
    let what = format!("replace node {old}");
    let id = new_node(&remote, &node, address, Becomes::Instead(old), &what).await?;
    said_of_new(&remote, &node.data, id, output, &format!("it takes the place of node {old} when it has caught up"))
        .await
}

/// `keelfs join`
pub async fn join(args: JoinArgs, output: Output) -> CliResult {
    let remote = Remote::new(&args.remote)?;
    let JoinArgs { new, address, as_node, learner, .. } = args;
    let (becomes, then) = match learner {
        true => (Becomes::Learner, "it stays a learner until `keelfs member promote`"),
        false => (Becomes::Voter, "it gets a vote when it has caught up"),
    };
    let id = match (as_node, address) {
        (Some(node), _) => {
            reserved(&remote, &new.data, node).await?;
            node
        }
        (None, Some(address)) => new_node(&remote, &new, address, becomes, &format!("join as {address}")).await?,
        (None, None) => {
            return Err(CliError::usage("where will the others reach the new node? Give --address HOST:PORT"));
        }
    };
    said_of_new(&remote, &new.data, id, output, then).await
}

/// Have a number given out, and make the data directory of the node that it is for.
async fn new_node(
    remote: &Remote,
    new: &NewNodeArgs,
    address: SocketAddr,
    becomes: Becomes,
    what: &str,
) -> CliResult<NodeId> {
    // Looked at first: a number that was given out for nothing would have to be removed again.
    DataDirectory::must_be_free(&new.data)?;
    let change = MemberChange::Add { address, name: new.name.clone().unwrap_or_default(), becomes };
    let node = change_members(remote, change, what).await?;
    make(remote, &new.data, node).await.map_err(|error| {
        let next = format!(
            "node {node} is a member now: mend that and go on with `keelfs join --as {node}`, or give it up \
             with `keelfs member remove {node}`"
        );
        CliError::new(error.exit, format!("{}; {next}", error.message))
    })?;
    Ok(node)
}

/// The data directory of a number that `member add` had given out, and that has never started.
async fn reserved(remote: &Remote, data: &Path, node: NodeId) -> CliResult {
    let roster = remote.roster().await?;
    let entry = roster.nodes.get(&node).ok_or_else(|| no_member(&roster, node))?;
    if entry.incarnation.is_some() {
        return Err(CliError::failed(format!(
            "cannot join as node {node}: it has started before, so its data is elsewhere or lost; put a new node in its place \
             with `keelfs member replace {node}`"
        )));
    }
    make(remote, data, node).await
}

async fn make(remote: &Remote, data: &Path, node: NodeId) -> CliResult {
    let (cluster, roster) = (remote.cluster().await?, remote.roster().await?);
    let at = |(node, entry): (&NodeId, &RosterEntry)| Some((*node, entry.member.address.parse().ok()?));
    let mut members: BTreeMap<NodeId, SocketAddr> = roster.nodes.iter().filter_map(at).collect();
    // The node that is replaced may have had the same address.
    let own = members.get(&node).copied();
    members.retain(|member, address| *member == node || Some(*address) != own);
    make_identity(data, cluster, node, &members, true)
}

async fn said_of_new(remote: &Remote, data: &Path, node: NodeId, output: Output, then: &str) -> CliResult {
    let (cluster, shown) = (remote.cluster().await?, data.display());
    let keys = if remote.has_keys() { " --tls DIR (of its own keys)" } else { "" };
    output.show(&json!({ "data": data, "cluster": cluster, "id": node }), || {
        format!("{shown} is node {node} of cluster {cluster}. Start it with: keelfs serve --data {shown}{keys}; {then}")
    })
}

/// `keelfs leave`
pub async fn leave(args: LeaveArgs, output: Output) -> CliResult {
    let directory = DataDirectory::open(&args.data)?;
    let node = directory.node;
    let gone = json!({ "left": node, "cluster": directory.cluster });
    let then = || format!("node {node} has left cluster {}; {} can be deleted", directory.cluster, args.data.display());
    if directory.removed {
        return output.show(&gone, then);
    }
    let others = directory.members.iter().filter(|(member, _)| **member != node).map(|(_, address)| *address);
    let own = directory.address();
    let remote = Remote::to(
        own.into_iter().chain(others).collect(),
        directory.cluster,
        keys::of_client(args.tls.as_deref())?,
        args.timeout,
    )?;
    remove_member(&remote, node).await?;
    wait_until_ended(&remote, own, node).await;
    output.show(&gone, then)
}

/// The node ends by itself when it learns of it.
async fn wait_until_ended(remote: &Remote, address: Option<SocketAddr>, node: NodeId) {
    let (Some(address), mut progress) = (address, Progress::new()) else { return };
    progress.show(&format!("waiting until node {node} has ended …"));
    while Instant::now() < remote.deadline() {
        match remote.status_of(address, Instant::now() + Duration::from_secs(1)).await {
            Ok(status) if status.node == node => tokio::time::sleep(LOOK_EVERY).await,
            _ => return,
        }
    }
}

/// Have it done; which node it was about.
async fn change_members(remote: &Remote, change: MemberChange, what: &str) -> CliResult<NodeId> {
    let unknown =
        "no answer in time: whether it was done is unknown. Look with `keelfs member list` before you try again";
    remote.must_be_let_in().await?;
    match remote.change_members(change).await {
        Ok(Ok(changed)) => Ok(match changed {
            MemberChanged::Added { node }
            | MemberChanged::Promoted { node }
            | MemberChanged::Removed { node }
            | MemberChanged::Nothing { node } => node,
        }),
        Ok(Err(why)) => Err(CliError::failed(format!("cannot {what}: {why}"))),
        Err(Failure::Unknown) => Err(CliError::new(Exit::NoMajority, format!("cannot {what}: {unknown}"))),
        Err(failure) => {
            let (tried, about) = what.rsplit_once(' ').unwrap_or((what, ""));
            Err(CliError::call(tried, about, &failure))
        }
    }
}

fn no_member(roster: &Roster, node: NodeId) -> CliError {
    let known: Vec<_> = roster.nodes.keys().map(u64::to_string).collect();
    CliError::usage(format!("node {node} is no member: the members are {}", known.join(", ")))
}

/// Where to ask, as `--node` takes it.
fn addresses(roster: &Roster, but: Option<NodeId>) -> String {
    let others = roster.nodes.iter().filter(|(node, _)| Some(**node) != but);
    others.map(|(_, entry)| entry.member.address.clone()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;

    #[test]
    fn the_list_says_who_votes_who_will_and_who_is_silent() {
        let entry = |voter, becomes, lag, answers| RosterEntry {
            member: Member { becomes, ..Member::at("10.0.0.1:7700") },
            voter,
            incarnation: voter.then_some(3),
            holds: 0,
            lag,
            answers: Some(answers),
        };
        let nodes = [
            (1, entry(true, Becomes::Voter, Some(0), true)),
            (2, entry(true, Becomes::Voter, Some(40), false)),
            (6, entry(false, Becomes::Instead(2), None, false)),
            (7, entry(false, Becomes::Learner, Some(1), true)),
        ];
        let roster = Roster { leader: Some(1), changing: false, nodes: nodes.into() };
        let rows: Vec<Row> = roster.nodes.iter().map(|(node, entry)| row(&roster, *node, entry)).collect();
        let shown = told(&rows);
        let cells =
            |line: &str| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect::<Vec<_>>().join("|");
        let lines: Vec<String> = shown.lines().map(cells).collect();
        assert_eq!(lines[0], "NODE|ADDRESS|ROLE|LAG|START|STATE");
        assert_eq!(lines[1], "1|10.0.0.1:7700|leader|0|3|answers");
        assert_eq!(lines[2], "2|10.0.0.1:7700|voter|40|3|silent");
        assert_eq!(lines[3], "6|10.0.0.1:7700|learner, becomes voter instead of 2|-|-|silent");
        assert_eq!(lines[4], "7|10.0.0.1:7700|learner|1|-|answers");
    }
}
