//! The data directory: who this node is, and how often it has started.
//!
//! ```text
//! identity.toml   cluster, node, instance, format, the members as they were noted last, whether the cluster has been
//!                 initialised from here, whether the node has been removed
//! incarnation     number of the last start; raised and synced before a start does anything that others can see
//! reserve         a few blocks, so that a node can start on a full disk
//! log/            the log's; made by `init` too, so that its absence is a loss and not a beginning
//! ```
//!
//! A node's identity is made once, by `init`, and never by starting: a node that found an empty disk where its data was
//! would otherwise vote with nothing in its memory. The cluster notes each node's instance and last start, so that a
//! directory that was made anew, or is an old copy, is refused by the others (`fs::nodes`).
//!
//! Cost: a disk that is lost means a new node number (`member replace`), never a repair in place.

use super::exit::{Exit, NodeError};
use crate::log::is_full;
use crate::net::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Version of the data directory's layout.
const FORMAT: u32 = 2;
/// Far more than there will ever be.
const NODE_MAX: NodeId = u32::MAX as NodeId;
const IDENTITY: &str = "identity.toml";
const INCARNATION: &str = "incarnation";
const RESERVE: &str = "reserve";
/// XFS wants room for whatever the making of a file might come to (`XFS_CREATE_SPACE_RES`), some 200 KiB.
const RESERVE_BYTES: u64 = 1 << 20;

/// What `init` is told.
#[derive(Clone, Debug)]
pub struct InitOptions {
    pub data: PathBuf,
    /// The same on all nodes of the cluster.
    pub cluster: Uuid,
    pub node: NodeId,
    /// All nodes of the first day, or those that are there when this one joins, with this one: number and address as the
    /// others reach it.
    pub members: BTreeMap<NodeId, SocketAddr>,
    /// The cluster is there already and has given this node its number.
    pub joins: bool,
}

/// An initialised data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirectory {
    pub path: PathBuf,
    pub cluster: Uuid,
    pub node: NodeId,
    /// Drawn when the directory was made.
    pub instance: Uuid,
    /// Whom to ask before the membership can be read from the log. At first what `init` was told.
    pub members: BTreeMap<NodeId, SocketAddr>,
    /// The first membership has been written, or is not this node's to write.
    pub bootstrapped: bool,
    /// The cluster has removed this node: it has nothing to say any more.
    pub removed: bool,
}

/// `identity.toml` as it is on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    cluster: Uuid,
    node: NodeId,
    instance: Uuid,
    bootstrapped: bool,
    removed: bool,
    member: Vec<StoredMember>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMember {
    node: NodeId,
    address: SocketAddr,
}

/// Read first, because a later format may have other fields.
#[derive(Deserialize)]
struct StoredFormat {
    format: u32,
}

impl DataDirectory {
    /// Make a directory (mode 0700) that a node can start from. Refused if anything is in it.
    pub fn init(options: InitOptions) -> Result<DataDirectory, NodeError> {
        let InitOptions { data: path, cluster, node, members, joins } = options;
        check_members(node, &members)?;
        refuse_data(&path)?;
        let parents = parents_to_change(&path)?;
        make_private(&path)?;
        // Else a power cut could take all of it, and the node with it.
        for parent in parents {
            sync_directory(&parent)
                .map_err(|e| NodeError { exit: Exit::StorageFailed, ..failed("sync", &parent, &e) })?;
        }
        // Only one node writes the first membership; two that did so could found two clusters of the same name.
        let bootstrapped = joins || members.keys().next() != Some(&node);
        let (instance, removed) = (Uuid::new_v4(), false);
        let directory = DataDirectory { path, cluster, node, instance, members, bootstrapped, removed };
        make_private(&directory.log())?;
        write_synced(&directory.path.join(INCARNATION), b"0\n")?;
        directory.write_identity()?;
        Ok(directory)
    }

    /// Refused if anything is in it that a new node could not begin from.
    pub fn must_be_free(path: &Path) -> Result<(), NodeError> {
        refuse_data(path)
    }

    /// Read the identity of a directory that was initialised before.
    pub fn open(path: &Path) -> Result<DataDirectory, NodeError> {
        let file = path.join(IDENTITY);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(uninitialised(path)),
            Err(e) => return Err(failed("read", &file, &e)),
        };
        let unusable = |why: String| NodeError::new(Exit::Damaged, format!("cannot use {}: {why}", file.display()));
        let StoredFormat { format } = toml::from_str(&text).map_err(|e| unusable(plain(&e)))?;
        if format != FORMAT {
            return Err(NodeError::failed(format!(
                "cannot start from {}: its format is {format}, this build reads {FORMAT}; start it with the build that wrote it",
                path.display()
            )));
        }
        let stored: Stored = toml::from_str(&text).map_err(|e| unusable(plain(&e)))?;
        let members = stored.member.into_iter().map(|member| (member.node, member.address)).collect();
        check_members(stored.node, &members)?;
        let Stored { cluster, node, instance, bootstrapped, removed, .. } = stored;
        let path_buf = path.to_path_buf();
        let directory = DataDirectory { path: path_buf, cluster, node, instance, members, bootstrapped, removed };
        if !directory.log().is_dir() {
            let log = directory.log();
            return Err(NodeError::new(
                Exit::Damaged,
                format!(
                    "{} is missing: node {node} has lost its log and must not vote; put a new node in its place, \
                     with an empty data directory and `keelfs member replace {node}`",
                    log.display()
                ),
            ));
        }
        Ok(directory)
    }

    /// A node that was removed from its cluster, or none, has no business there.
    pub fn must_be_member(&self) -> Result<(), NodeError> {
        let DataDirectory { path, cluster, node, .. } = self;
        match self.removed {
            true => Err(NodeError::failed(format!(
                "cannot start from {}: node {node} was removed from cluster {cluster}, and numbers are not given twice; delete \
                 the directory, and join again as a new node with `keelfs join`",
                path.display()
            ))),
            false => Ok(()),
        }
    }

    /// Is this the directory of a node that its cluster has removed? Anything else is for [`DataDirectory::open`] to judge.
    pub fn is_of_removed(path: &Path) -> bool {
        DataDirectory::open(path).is_ok_and(|directory| directory.removed)
    }

    /// Where this node said it is reached.
    pub fn address(&self) -> Option<SocketAddr> {
        self.members.get(&self.node).copied()
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Count this start; durable on return.
    pub fn raise_incarnation(&self) -> Result<u64, NodeError> {
        self.keep_name();
        let file = self.path.join(INCARNATION);
        let text = std::fs::read_to_string(&file).map_err(|e| failed("read", &file, &e))?;
        let last: Option<u64> = text.strip_suffix('\n').and_then(|number| number.parse().ok());
        let next = last.and_then(|last| last.checked_add(1)).ok_or_else(|| {
            NodeError::new(
                Exit::Damaged,
                format!(
                    "cannot use {}: {:?} is not the number of a start; replace the node with a new one",
                    file.display(),
                    text.chars().take(40).collect::<String>()
                ),
            )
        })?;
        let number = format!("{next}\n");
        let written = match replace_synced(&file, number.as_bytes()) {
            // A full disk does not keep a node from starting: it is needed to free space.
            Err(e) if is_full(&e) && release_reserve(&self.path).is_ok() => replace_synced(&file, number.as_bytes()),
            other => other,
        };
        written.map_err(|e| not_written(&file, &e))?;
        self.fill_reserve();
        Ok(next)
    }

    /// Have some blocks that nobody else gets, for the next start on a full disk.
    pub fn fill_reserve(&self) {
        let reserve = self.path.join(RESERVE);
        if reserve.metadata().is_ok_and(|metadata| metadata.len() >= RESERVE_BYTES) {
            return;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&reserve);
        let filled = file.and_then(|mut file| {
            file.write_all(&vec![0xff; RESERVE_BYTES as usize])?;
            file.sync_all()
        });
        match filled {
            Err(e) if is_full(&e) => tracing::debug!("no room for {} yet", reserve.display()),
            Err(e) => tracing::warn!("cannot make {}: {e}", reserve.display()),
            Ok(()) => {}
        }
    }

    /// Have the name of the directory itself durable before the node says anything: whoever made it may not have seen to
    /// that. An operator's own parent directory may not be ours to read; then it is theirs to keep.
    fn keep_name(&self) {
        let path = std::fs::canonicalize(&self.path).unwrap_or_default();
        if let Some(parent) = path.parent()
            && let Err(e) = sync_directory(parent)
        {
            tracing::warn!("cannot sync {}: {e}", parent.display());
        }
    }

    /// The first membership is in the log: never write it again.
    pub fn mark_bootstrapped(&mut self) -> Result<(), NodeError> {
        self.bootstrapped = true;
        self.write_identity()
    }

    /// Note the membership, for a start that cannot read it from its log. This node's own address stays as it is. A
    /// membership without this node, or one that makes no sense, is not noted.
    pub fn note_members(&mut self, mut members: BTreeMap<NodeId, SocketAddr>) -> Result<(), NodeError> {
        let (Some(at), Some(own)) = (self.address(), members.get_mut(&self.node)) else { return Ok(()) };
        *own = at;
        if !self.bootstrapped || members == self.members || check_members(self.node, &members).is_err() {
            return Ok(());
        }
        let noted = DataDirectory { members, ..self.clone() };
        noted.write_identity()?;
        *self = noted;
        Ok(())
    }

    /// The cluster has removed this node.
    pub fn mark_removed(&mut self) -> Result<(), NodeError> {
        self.removed = true;
        self.write_identity()
    }

    fn write_identity(&self) -> Result<(), NodeError> {
        let member = self.members.iter().map(|(node, address)| StoredMember { node: *node, address: *address });
        let DataDirectory { cluster, node, instance, bootstrapped, removed, .. } = *self;
        let member = member.collect();
        let stored = Stored { format: FORMAT, cluster, node, instance, bootstrapped, removed, member };
        let file = self.path.join(IDENTITY);
        let text = toml::to_string(&stored).map_err(|e| failed("write", &file, &e))?;
        write_synced(&file, text.as_bytes())
    }
}

fn check_members(node: NodeId, members: &BTreeMap<NodeId, SocketAddr>) -> Result<(), NodeError> {
    let usage = |why: String| Err(NodeError::new(Exit::Usage, why));
    if members.contains_key(&0) {
        return usage("node 0 cannot be a member: number the nodes from 1".into());
    }
    if let Some(large) = members.keys().find(|node| **node > NODE_MAX) {
        return usage(format!("node {large} cannot be a member: the highest number is {NODE_MAX}"));
    }
    if !members.contains_key(&node) {
        return usage(format!("node {node} is not among the members: list every node of the cluster, this one too"));
    }
    let mut addresses: Vec<_> = members.values().collect();
    addresses.sort();
    match addresses.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => usage(format!("two members have the address {}: give each node its own", pair[0])),
        None => Ok(()),
    }
}

fn refuse_data(path: &Path) -> Result<(), NodeError> {
    let path_shown = path.display();
    match std::fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("read", path, &e)),
        Ok(false) => Ok(()),
        Ok(true) if path.join(IDENTITY).exists() => {
            let DataDirectory { cluster, node, .. } = DataDirectory::open(path)?;
            Err(NodeError::failed(format!(
                "cannot initialise {path_shown}: it holds node {node} of cluster {cluster}; start that one, or name another directory"
            )))
        }
        Ok(true) => Err(NodeError::failed(format!(
            "cannot initialise {path_shown}: it is not empty; name an empty or a new directory"
        ))),
    }
}

fn uninitialised(path: &Path) -> NodeError {
    let path = path.display();
    NodeError::failed(format!(
        "cannot start from {path}: there is no {IDENTITY} in it; `keelfs init` makes a new node. If a node's data was here \
         and is lost, do not give its number again: put a new node in its place with `keelfs member replace`"
    ))
}

fn make_private(path: &Path) -> Result<(), NodeError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed("make", path, &e))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|e| failed("protect", path, &e))
}

/// The directories that get a new name when `path` is made with all that is missing above it.
fn parents_to_change(path: &Path) -> Result<Vec<PathBuf>, NodeError> {
    let path = std::path::absolute(path).map_err(|e| failed("make", path, &e))?;
    let missing = path.ancestors().take_while(|path| !path.exists());
    Ok(missing.filter_map(Path::parent).map(Path::to_path_buf).collect())
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Give the reserve of this data directory back to the disk. An error if there is none.
pub(super) fn release_reserve(data: &Path) -> std::io::Result<()> {
    std::fs::remove_file(data.join(RESERVE))?;
    sync_directory(data)
}

fn write_synced(file: &Path, bytes: &[u8]) -> Result<(), NodeError> {
    replace_synced(file, bytes).map_err(|e| not_written(file, &e))
}

/// Replace a small file so that after a power cut it is the old one or the new one.
fn replace_synced(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = file.with_extension("new");
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    to.write_all(bytes)?;
    to.sync_all()?;
    std::fs::rename(&new, file)?;
    sync_directory(file.parent().unwrap_or(Path::new(".")))
}

fn not_written(file: &Path, error: &std::io::Error) -> NodeError {
    NodeError { exit: Exit::StorageFailed, ..failed("write", file, error) }
}

fn failed(what: &str, path: &Path, why: &dyn std::fmt::Display) -> NodeError {
    NodeError::failed(format!("cannot {what} {}: {why}", path.display()))
}

/// The first line: toml's errors draw the source below it.
fn plain(error: &toml::de::Error) -> String {
    error.message().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(data: &Path, node: NodeId) -> InitOptions {
        let member = |n: u16| (NodeId::from(n), SocketAddr::from(([127, 0, 0, 1], 7000 + n)));
        InitOptions {
            data: data.into(),
            cluster: Uuid::from_u128(5),
            node,
            members: [1, 2, 3].map(member).into(),
            joins: false,
        }
    }

    #[test]
    fn what_init_wrote_is_what_a_start_reads_and_each_start_counts() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let made = DataDirectory::init(options(&data, 1)).unwrap();
        assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        let mut opened = DataDirectory::open(&data).unwrap();
        assert_eq!((&opened, opened.bootstrapped), (&made, false));
        assert_eq!((opened.raise_incarnation().unwrap(), opened.raise_incarnation().unwrap()), (1, 2));
        opened.mark_bootstrapped().unwrap();
        assert!(DataDirectory::open(&data).unwrap().bootstrapped);
        assert_eq!(opened.must_be_member(), Ok(()));
        opened.mark_removed().unwrap();
        let error = DataDirectory::open(&data).unwrap().must_be_member().unwrap_err();
        assert!(error.message.contains("node 1 was removed"), "{error}");
        assert_eq!(opened.raise_incarnation().unwrap(), 3);
    }

    #[test]
    fn every_directory_that_is_made_is_made_durable_from_where_its_name_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let new = [at("a/b"), at("a"), at("")].map(|path| path.components().collect::<PathBuf>());
        assert_eq!(parents_to_change(&at("a/b/c")).unwrap(), new);
        std::fs::create_dir(at("a")).unwrap();
        assert_eq!(parents_to_change(&at("a/b/c")).unwrap(), new[..2]);
        let data = at("a/b/c");
        DataDirectory::init(options(&data, 1)).unwrap();
        assert!(parents_to_change(&data).unwrap().is_empty());
        let here = std::env::current_dir().unwrap();
        assert_eq!(parents_to_change(Path::new("no-such-data")).unwrap(), [here], "a relative name has a parent too");
    }

    #[test]
    fn the_membership_is_noted_for_the_next_start_and_never_one_without_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = DataDirectory::init(InitOptions { joins: true, ..options(dir.path(), 1) }).unwrap();
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        node.note_members(BTreeMap::from([(1, at(9001)), (4, at(7004))])).unwrap();
        let noted = BTreeMap::from([(1, at(7001)), (4, at(7004))]);
        assert_eq!(DataDirectory::open(dir.path()).unwrap().members, noted, "it goes on listening where it did");
        for useless in [BTreeMap::new(), BTreeMap::from([(4, at(7004))]), BTreeMap::from([(1, at(1)), (4, at(7001))])] {
            node.note_members(useless).unwrap();
            assert_eq!(DataDirectory::open(dir.path()).unwrap(), node);
            assert_eq!(node.members, noted);
        }
        let mut founder = DataDirectory::init(options(&dir.path().join("other"), 1)).unwrap();
        founder.note_members(noted).unwrap();
        assert_eq!(founder.members.len(), 3, "what it will found the cluster with");
    }

    #[test]
    fn only_the_lowest_node_bootstraps_and_none_that_joins() {
        let dir = tempfile::tempdir().unwrap();
        let joins = InitOptions { joins: true, ..options(&dir.path().join("1"), 1) };
        assert!(DataDirectory::init(joins).unwrap().bootstrapped);
        assert!(DataDirectory::init(options(&dir.path().join("2"), 2)).unwrap().bootstrapped);
    }

    #[test]
    fn nothing_starts_from_an_empty_directory_and_nothing_is_initialised_twice() {
        let dir = tempfile::tempdir().unwrap();
        let error = DataDirectory::open(dir.path()).unwrap_err();
        assert!(error.message.contains("keelfs init"), "{error}");
        DataDirectory::init(options(dir.path(), 2)).unwrap();
        let error = DataDirectory::init(options(dir.path(), 1)).unwrap_err();
        assert!(error.message.contains("it holds node 2"), "{error}");
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("precious"), "x").unwrap();
        assert!(DataDirectory::init(options(&other, 1)).unwrap_err().message.contains("not empty"));
    }

    #[test]
    fn damage_and_later_formats_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let node = DataDirectory::init(options(dir.path(), 1)).unwrap();
        std::fs::write(dir.path().join(INCARNATION), "").unwrap();
        assert_eq!(node.raise_incarnation().unwrap_err().exit, Exit::Damaged);
        std::fs::remove_dir(node.log()).unwrap();
        let error = DataDirectory::open(dir.path()).unwrap_err();
        assert!(error.exit == Exit::Damaged && error.message.contains("lost its log"), "{error}");
        let file = dir.path().join(IDENTITY);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("format = 2", "format = 9\nnovelty = true")).unwrap();
        let error = DataDirectory::open(dir.path()).unwrap_err();
        assert!(error.exit == Exit::Failed && error.message.contains("format is 9"), "{error}");
        std::fs::write(&file, "node = ").unwrap();
        assert_eq!(DataDirectory::open(dir.path()).unwrap_err().exit, Exit::Damaged);
    }

    #[test]
    fn members_must_make_sense() {
        let dir = tempfile::tempdir().unwrap();
        let mut twice = options(dir.path(), 1);
        twice.members.insert(2, twice.members[&1]);
        let zero = InitOptions { members: [(0, twice.members[&1])].into(), node: 0, ..options(dir.path(), 1) };
        for bad in [twice, zero, options(dir.path(), 9)] {
            assert_eq!(DataDirectory::init(bad).unwrap_err().exit, Exit::Usage);
        }
    }
}
