//! The way from a verb to a running cluster: which nodes to ask, for how long, and what they tell.

use crate::cli::args::RemoteArgs;
use crate::cli::cluster::config::ClusterDir;
use crate::cli::error::{CliError, CliResult, Tried, plain};
use crate::cli::keys;
use crate::cli::words::NodeList;
use crate::fs::LogIndex;
use crate::net::{Keys, NetError, NodeId};
use crate::node::exit::Exit;
use crate::raft::{MemberChange, MemberChanged, Roster};
use crate::volume::{Client, Failure, NodeStatus, Volume};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Where a verb looks for a cluster when it is told nothing.
const DEFAULT_DIR: &str = "./cluster";

/// How long the leader may take to answer what another node has answered already.
const LEADER_PATIENCE: Duration = Duration::from_secs(2);

/// How long the first node may take to show whether it lets us in.
const DOOR_PATIENCE: Duration = Duration::from_secs(1);

const NODES_VARIABLE: &str = "KEELFS_NODES";

/// The nodes that a verb may ask, and how long it may take.
pub struct Remote {
    client: Client,
    keys: Option<Keys>,
    cluster: Uuid,
    nodes: Vec<SocketAddr>,
    pub timeout: Duration,
    started: Instant,
}

impl Remote {
    /// From `--node` or `--dir`, else from KEELFS_NODES, else from `./cluster` if it is there.
    pub fn new(args: &RemoteArgs) -> CliResult<Remote> {
        let here = Path::new(DEFAULT_DIR);
        // Nil: whichever cluster answers at the addresses.
        let at =
            |nodes: NodeList| Remote::to(nodes.0, Uuid::nil(), keys::of_client(args.tls.as_deref())?, args.timeout);
        match (&args.node, &args.dir) {
            (Some(nodes), _) => return at(nodes.clone()),
            (None, Some(dir)) => return Remote::of_cluster(&ClusterDir::load(dir)?, args.timeout),
            (None, None) => {}
        }
        match nodes_of_environment()? {
            Some(nodes) => at(nodes),
            None if ClusterDir::exists(here) && args.tls.is_some() => Err(CliError::usage(format!(
                "--tls is for nodes that are named with --node HOST:PORT (or {NODES_VARIABLE}); the cluster in {DEFAULT_DIR} \
                 has its own keys, or none"
            ))),
            None if ClusterDir::exists(here) => Remote::of_cluster(&ClusterDir::load(here)?, args.timeout),
            None => Err(CliError::usage(format!(
                "which cluster? There is none in {DEFAULT_DIR}: name nodes with --node HOST:PORT (or {NODES_VARIABLE}), or a \
                 cluster's directory with --dir"
            ))),
        }
    }

    pub fn of_cluster(cluster: &ClusterDir, timeout: Duration) -> CliResult<Remote> {
        let nodes = cluster.config.nodes.iter().map(|node| node.address).collect();
        Remote::to(nodes, cluster.config.cluster, cluster.client_keys()?, timeout)
    }

    pub fn to(nodes: Vec<SocketAddr>, cluster: Uuid, keys: Option<Keys>, timeout: Duration) -> CliResult<Remote> {
        let client = Client::with_keys(nodes.clone(), cluster, keys.clone());
        let client = client.tried(|| "cannot reach a cluster".into())?;
        Ok(Remote { client, keys, cluster, nodes, timeout, started: Instant::now() })
    }

    /// The cluster is one of nodes with keys.
    pub fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// When the verb must have ended.
    pub fn deadline(&self) -> Instant {
        self.started + self.timeout
    }

    /// The tree, in a session that is named after this process and what it does.
    pub fn volume(&self, purpose: &str) -> Volume {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.client.volume(&format!("{}, process {}, {purpose}", host.trim(), std::process::id()))
    }

    /// Fails if every node refuses to talk to us: that does not pass by waiting, as their being away may.
    pub async fn must_be_let_in(&self) -> CliResult {
        let mut refusal = None;
        for address in &self.nodes {
            let deadline = self.deadline().min(Instant::now() + DOOR_PATIENCE);
            match self.client.status_of(*address, deadline).await {
                Err(why @ NetError::Handshake { .. }) => refusal = Some(why),
                _ => return Ok(()),
            }
        }
        match refusal {
            Some(why) => Err(CliError::failed(why.to_string())),
            None => Ok(()),
        }
    }

    /// The id of the cluster that answers.
    pub async fn cluster(&self) -> CliResult<Uuid> {
        self.must_be_let_in().await?;
        match self.cluster.is_nil() {
            true => Ok(self.client.status(self.deadline()).await.map_err(|_| self.nobody())?.cluster),
            false => Ok(self.cluster),
        }
    }

    /// The same, once a node has answered, and from now on no other cluster, whatever comes to answer at these addresses.
    pub async fn pinned(self) -> CliResult<Remote> {
        self.must_be_let_in().await?;
        let cluster = self.client.status(self.deadline()).await.map_err(|_| self.nobody())?.cluster;
        Remote::to(self.nodes, cluster, self.keys, self.timeout)
    }

    /// The membership as the leader knows it, or else as whoever answers does.
    pub async fn roster(&self) -> CliResult<Roster> {
        self.must_be_let_in().await?;
        let roster = self.client.roster(self.deadline()).await.map_err(|_| self.nobody())?;
        let leader = roster.leader.and_then(|leader| roster.nodes.get(&leader)?.member.address.parse().ok());
        let Some(leader) = leader else { return Ok(roster) };
        let deadline = self.deadline().min(Instant::now() + LEADER_PATIENCE);
        match self.only(leader) {
            Ok(client) => Ok(client.roster(deadline).await.unwrap_or(roster)),
            Err(_) => Ok(roster),
        }
    }

    /// Have the leader change the membership; the inner `Err` is its refusal in words.
    pub async fn change_members(&self, change: MemberChange) -> Result<Result<MemberChanged, String>, Failure> {
        self.client.change_members(change, self.deadline()).await
    }

    /// All nodes, as the first one that answers knows them.
    pub async fn members(&self) -> CliResult<BTreeMap<NodeId, SocketAddr>> {
        self.must_be_let_in().await?;
        let answer = self.client.members(self.deadline()).await;
        answer.map_err(|_| self.nobody())
    }

    fn nobody(&self) -> CliError {
        let asked: Vec<_> = self.nodes.iter().map(SocketAddr::to_string).collect();
        CliError::new(
            Exit::NoMajority,
            format!("no node answers at {}: are they running, and are these their addresses?", asked.join(", ")),
        )
    }

    /// The members as this very node knows them; none if it does not answer.
    pub async fn members_at(&self, address: SocketAddr, deadline: Instant) -> BTreeMap<NodeId, SocketAddr> {
        match self.only(address) {
            Ok(client) => client.members(deadline).await.unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        }
    }

    pub async fn status_of(&self, address: SocketAddr, deadline: Instant) -> Result<NodeStatus, String> {
        self.client.status_of(address, deadline).await.map_err(|why| plain(&why))
    }

    /// The state's hash right after entry `index` at this very node, hexadecimal, once the node has applied it. `None`:
    /// it has not, or does not know it any more.
    pub async fn hash_at(
        &self,
        address: SocketAddr,
        index: LogIndex,
        deadline: Instant,
    ) -> Result<Option<String>, String> {
        let hash = self.only(address)?.hash_at(index, deadline).await.map_err(|why| plain(&why))?;
        Ok(hash.map(|hash| format!("{hash:032x}")))
    }

    /// The first broken invariant of this very node's state, in words.
    pub async fn check_of(&self, address: SocketAddr, deadline: Instant) -> Result<Option<String>, String> {
        self.only(address)?.check(deadline).await.map_err(|why| format!("its invariants were not tested: {why}"))
    }

    /// Begin a scrub of this very node; the number of the pass.
    pub async fn scrub(&self, address: SocketAddr, mend: bool) -> Result<u64, String> {
        let begun = self.only(address)?.scrub(mend, self.deadline()).await;
        begun.map_err(|why| plain(&why))?.ok_or_else(|| "too many scrubs wait there already".into())
    }

    fn only(&self, address: SocketAddr) -> Result<Client, String> {
        Client::with_keys(vec![address], self.cluster, self.keys.clone()).map_err(|why| why.to_string())
    }
}

fn nodes_of_environment() -> CliResult<Option<NodeList>> {
    let Some(text) = std::env::var_os(NODES_VARIABLE).filter(|text| !text.is_empty()) else { return Ok(None) };
    let nodes = text.to_string_lossy().parse();
    nodes.map(Some).map_err(|why| CliError::usage(format!("cannot use {NODES_VARIABLE}: {why}")))
}
