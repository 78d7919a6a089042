//! `cluster.toml`: what `keelfs cluster` has to remember between its verbs, in the cluster's directory.
//!
//! ```text
//! DIR/cluster.toml   this file
//! DIR/node-N/        the data directory of node N
//! DIR/node-N.log     what node N says
//! DIR/node-N.pid     its process, for people: the verbs look in /proc
//! DIR/mount-N.log    what the mount beside node N says
//! DIR/keys/          with --tls: the authority, and the keys of each node and of the mounts and verbs
//! ```

use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::words::Which;
use crate::net::keys::{create_authority, issue};
use crate::net::{Keys, NodeId, Role};
use crate::node::DataDirectory;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;
const FILE: &str = "cluster.toml";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    format: u32,
    pub cluster: uuid::Uuid,
    /// The nodes have keys, and talk to nobody who has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    #[serde(rename = "node")]
    pub nodes: Vec<NodeConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    pub id: NodeId,
    pub address: SocketAddr,
    pub cs733: Option<SocketAddr>,
    /// Absolute.
    pub mount: Option<PathBuf>,
}

/// A cluster's directory (absolute) and what its file says.
#[derive(Clone, Debug)]
pub struct ClusterDir {
    pub dir: PathBuf,
    pub config: ClusterConfig,
}

impl ClusterConfig {
    pub fn new(nodes: Vec<NodeConfig>, tls: bool) -> ClusterConfig {
        ClusterConfig { format: FORMAT, cluster: uuid::Uuid::new_v4(), tls, nodes }
    }
}

impl ClusterDir {
    /// Is there a cluster in `dir`?
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    pub fn load(dir: &Path) -> CliResult<ClusterDir> {
        let file = dir.join(FILE);
        if !file.exists() {
            return Err(CliError::failed(format!(
                "no cluster in {}: {FILE} is not there. Start one with `keelfs cluster start --dir {}`",
                dir.display(),
                dir.display()
            )));
        }
        let dir = dir.canonicalize().tried(|| format!("cannot open {}", dir.display()))?;
        let text = fs::read_to_string(&file).tried(|| format!("cannot read {}", file.display()))?;
        let config = parse(&text).tried(|| format!("cannot use {}", file.display()))?;
        Ok(ClusterDir { dir, config })
    }

    /// Write the file whole or not at all.
    pub fn save(&self) -> CliResult {
        let what = || format!("cannot write {}", self.dir.join(FILE).display());
        let text = toml::to_string(&self.config).tried(what)?;
        let new = self.dir.join("cluster.toml.new");
        let mut file = File::create(&new).tried(what)?;
        file.write_all(text.as_bytes()).tried(what)?;
        file.sync_all().tried(what)?;
        fs::rename(&new, self.dir.join(FILE)).tried(what)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).tried(what)
    }

    /// Keep other `keelfs cluster` processes off this directory until the value is dropped.
    pub fn lock(dir: &Path) -> CliResult<File> {
        let what = || format!("cannot lock {}", dir.display());
        let handle = File::open(dir).tried(what)?;
        match handle.try_lock() {
            Ok(()) => Ok(handle),
            Err(fs::TryLockError::WouldBlock) => Err(CliError::failed(format!(
                "{} is in use by another `keelfs cluster` command: wait until it has ended",
                dir.display()
            ))),
            Err(fs::TryLockError::Error(why)) => Err(why).tried(what),
        }
    }

    /// The nodes that can run: not those that were removed from the membership.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeConfig> {
        self.config.nodes.iter().filter(|node| !DataDirectory::is_of_removed(&self.data(node.id)))
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    pub fn data(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("node-{node}"))
    }

    pub fn log(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("node-{node}.log"))
    }

    pub fn mount_log(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("mount-{node}.log"))
    }

    pub fn pid_file(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("node-{node}.pid"))
    }

    /// What keys there are of this cluster, if it has any.
    pub fn all_keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    /// Where the keys of a node are. `None`: it has none.
    pub fn node_keys(&self, node: NodeId) -> Option<PathBuf> {
        self.config.tls.then(|| self.all_keys().join(format!("node-{node}")))
    }

    /// Where the keys of the mounts and verbs are. `None`: they have none.
    pub fn client_directory(&self) -> Option<PathBuf> {
        self.config.tls.then(|| self.all_keys().join("client"))
    }

    pub fn client_keys(&self) -> CliResult<Option<Keys>> {
        Ok(self.client_directory().map(|dir| Keys::load(&dir)).transpose()?)
    }

    /// Make the authority, and the keys of all nodes and of the clients.
    pub fn make_keys(&self) -> CliResult {
        let authority = self.all_keys().join("authority");
        let (Some(client), all) = (self.client_directory(), &self.config.nodes) else { return Ok(()) };
        create_authority(&authority)?;
        issue(&authority, &client, Role::Client)?;
        let mut directories = all.iter().filter_map(|node| self.node_keys(node.id));
        directories.try_for_each(|dir| Ok(issue(&authority, &dir, Role::Node)?))
    }

    /// The nodes that the words name, in order, each once. `Leader` is `leader`.
    pub fn chosen(&self, which: &[Which], leader: Option<NodeId>) -> CliResult<Vec<&NodeConfig>> {
        let mut ids = Vec::new();
        for word in which {
            match word {
                Which::All => ids.extend(self.nodes().map(|n| n.id)),
                Which::Leader => ids.push(leader.ok_or_else(no_leader)?),
                Which::Node(id) if self.config.nodes.iter().any(|n| n.id == *id) => ids.push(*id),
                Which::Node(id) => return Err(CliError::usage(self.no_such_node(*id))),
            }
        }
        Ok(self.config.nodes.iter().filter(|n| ids.contains(&n.id)).collect())
    }

    fn no_such_node(&self, id: NodeId) -> String {
        let known: Vec<_> = self.config.nodes.iter().map(|n| n.id.to_string()).collect();
        format!("there is no node {id} in {}: its nodes are {}", self.dir.display(), known.join(", "))
    }
}

fn no_leader() -> CliError {
    CliError::failed("there is no leader now: see `keelfs cluster status`; a majority of the nodes must be running")
}

fn parse(text: &str) -> Result<ClusterConfig, String> {
    let config: ClusterConfig = toml::from_str(text).map_err(|why| why.message().to_string())?;
    if config.format != FORMAT {
        return Err(format!("it has format {}, this build reads {FORMAT}", config.format));
    }
    let mut ids: Vec<_> = config.nodes.iter().map(|n| n.id).collect();
    ids.sort_unstable();
    ids.dedup();
    match (config.nodes.len(), ids.len()) {
        (0, _) => Err("it names no node".into()),
        (named, different) if named != different => Err("it names a node twice".into()),
        _ => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_cluster(dir: &Path) -> ClusterDir {
        let node = |id: u64, mount: Option<&str>| NodeConfig {
            id,
            address: SocketAddr::from(([127, 0, 0, 1], 7700 + id as u16)),
            cs733: (id == 1).then(|| "127.0.0.1:8701".parse().unwrap()),
            mount: mount.map(PathBuf::from),
        };
        let config = ClusterConfig::new(vec![node(1, Some("/tmp/a b")), node(2, None), node(3, None)], false);
        ClusterDir { dir: dir.canonicalize().unwrap(), config }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let tmp = tempfile::tempdir().unwrap();
        let saved = some_cluster(tmp.path());
        saved.save().unwrap();
        let loaded = ClusterDir::load(tmp.path()).unwrap();
        assert_eq!(loaded.config, saved.config);
        assert_eq!(loaded.dir, saved.dir);
    }

    #[test]
    fn the_file_as_people_see_it_is_read_and_strange_ones_are_refused() {
        let good = "format = 1\ncluster = \"6f1c0fd0-6a3b-4c46-9f3c-000000000001\"\n\n[[node]]\nid = 1\n\
                    address = \"127.0.0.1:7701\"\ncs733 = \"127.0.0.1:8701\"\nmount = \"/srv/mnt\"\n";
        let config = parse(good).unwrap();
        assert_eq!(config.nodes[0].mount.as_deref(), Some(Path::new("/srv/mnt")));
        let refused = |text: &str| parse(text).unwrap_err();
        assert!(refused(&good.replace("format = 1", "format = 9")).contains("format 9, this build reads 1"));
        assert!(refused(&format!("{good}\n[[node]]\nid = 1\naddress = \"127.0.0.1:2\"\n")).contains("twice"));
        assert!(refused(&good.replace("mount", "muont")).contains("muont"));
    }

    #[test]
    fn a_directory_without_a_cluster_says_how_to_make_one() {
        let tmp = tempfile::tempdir().unwrap();
        let said = ClusterDir::load(tmp.path()).unwrap_err().message;
        assert!(said.contains("keelfs cluster start --dir"), "{said}");
    }

    #[test]
    fn nodes_are_chosen_once_each_and_unknown_ones_named() {
        let tmp = tempfile::tempdir().unwrap();
        let cluster = some_cluster(tmp.path());
        let ids = |which: &[Which], leader| {
            cluster.chosen(which, leader).map(|nodes| nodes.iter().map(|n| n.id).collect::<Vec<_>>())
        };
        assert_eq!(ids(&[Which::Node(3), Which::Leader, Which::Node(3)], Some(1)), Ok(vec![1, 3]));
        assert_eq!(ids(&[Which::All], None), Ok(vec![1, 2, 3]));
        assert!(ids(&[Which::Leader], None).unwrap_err().message.contains("no leader"));
        assert!(ids(&[Which::Node(9)], None).unwrap_err().message.contains("its nodes are 1, 2, 3"));
    }

    #[test]
    fn one_command_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        let held = ClusterDir::lock(tmp.path()).unwrap();
        assert!(ClusterDir::lock(tmp.path()).unwrap_err().message.contains("in use"));
        drop(held);
        ClusterDir::lock(tmp.path()).unwrap();
    }
}
