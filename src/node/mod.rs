//! One running node: the data directory, the log, Raft, the listener, the front ends, and their end.
//!
//! Start, in order: identity, directory lock, incarnation, log, Raft (which votes only when the others have let this start
//! in), listener, the first membership (once in a
//! cluster's life, on the node with the lowest number), upkeep, front ends. Stop, in order: mounts first, so that no
//! program is left waiting on a file system without a server; then the other front ends and the sessions, whose ends still
//! go through the log; then Raft; the listener last, because Raft's last words go through it.
//!
//! Absent on purpose: a supervisor. A node that cannot go on ends with a code that says why ([`exit::Exit`]), and whoever
//! started it decides.

pub mod exit;
mod fatal;
mod fence;
pub mod identity;
pub mod members;
pub mod upkeep;

pub use exit::{Exit, NodeError};
pub use identity::{DataDirectory, InitOptions};

use crate::fuse::{self, Mount, MountOptions};
use crate::gateway;
use crate::log::{DirectoryLock, Log};
use crate::net::{self, Caller, Expulsion, Handler, Identity, Keys, Message, NodeId, Role, Start};
use crate::raft::{self, Replica, Timing, Tuning};
use crate::volume::{Client, KIND_FIRST, Local, NodeStatus, Volume};
use fatal::Fatal;
use futures_util::future::{Either, join_all, ready};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// How long peers may take to say whether the cluster exists already.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// How long the next leader may take to take over.
const HAND_OVER_TIME: Duration = Duration::from_secs(1);
/// Connections, and segments of a terabyte of live data.
const OPEN_FILES_WANTED: u64 = 20_000;
/// How long each step of a shutdown may take.
const STEP_TIME: Duration = Duration::from_secs(10);

/// How to run a node whose data directory is initialised.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub data: PathBuf,
    /// Where to listen, if not at the address that the members know.
    pub listen: Option<SocketAddr>,
    /// Serve the cs733 text protocol here.
    pub cs733_listen: Option<SocketAddr>,
    /// Mount the tree at these paths.
    pub mounts: Vec<(PathBuf, MountOptions)>,
    pub timing: Timing,
    /// A node's: what peers and clients must have as well. `None`: nothing is encrypted or authenticated.
    pub keys: Option<Keys>,
    /// Listen off loopback although there nothing is encrypted or authenticated.
    pub insecure_no_tls: bool,
    /// How fast the scrub reads; 0: there is none.
    pub scrub_bytes_per_second: u64,
}

impl NodeOptions {
    fn tuning(&self) -> Tuning {
        Tuning { scrub_bytes_per_second: self.scrub_bytes_per_second, ..Tuning::default() }
    }
}

/// A node that runs.
pub struct Node {
    status: Arc<dyn Fn() -> NodeStatus + Send + Sync>,
    own: Identity,
    local: Local,
    replica: Replica,
    volumes: Vec<Volume>,
    mounts: Vec<Mount>,
    fatal: Fatal,
    /// Ends the front ends and upkeep.
    front: CancellationToken,
    /// Ends the listener.
    back: CancellationToken,
    tasks: TaskTracker,
    /// Ends the sessions of mounts that have ended.
    endings: TaskTracker,
    _lock: DirectoryLock,
}

impl Node {
    /// Bring a node up; it serves on return. Must be called within a tokio runtime.
    pub async fn start(options: NodeOptions) -> Result<Node, NodeError> {
        let mut directory = DataDirectory::open(&options.data)?;
        directory.must_be_member()?;
        must_be_of_node(options.keys.as_ref())?;
        raise_open_files_limit();
        let lock = DirectoryLock::acquire(&directory.path)?;
        fence::refuse(&directory.path)?;
        let address = listen_address(&directory, &options)?;
        let listener = bind(address, "peers and clients").await?;
        let cs733 = match options.cs733_listen {
            Some(address) => Some(bind(address, "the cs733 protocol").await?),
            None => None,
        };
        let incarnation = directory.raise_incarnation()?;
        // Who asks for what is damaged here cannot say how far its log reaches, and is not judged by that: it is no run yet.
        let (instance, run) = (directory.instance, Uuid::new_v4().as_u64_pair());
        let asks = Start { instance, incarnation, run: run.1, log_end: u64::MAX };
        let own = Identity {
            cluster: directory.cluster,
            node: Some(directory.node),
            start: asks,
            keys: options.keys.clone(),
        };
        let (fatal, log) = (Fatal::new(), open_log(&directory, own.clone()).await?);
        let log_end = log.reach();
        let start = Start { run: run.0, log_end, ..asks };
        let own = Identity { start, ..own };
        fatal.watch_log(&log);
        let fresh = log.state().last.is_none() && log.state().last_purged.is_none();
        let replica =
            Replica::start_tuned(own.clone(), log, directory.members.clone(), options.timing, options.tuning())
                .await
                .map_err(|e| refine(&e, "start raft"))?;
        fatal.watch_replica(replica.clone(), directory.path.clone());
        let local = Local::new(replica.clone(), own.clone());
        let status = status_of(&directory, &options, start, replica.clone(), address, cs733.as_ref());
        let (front, back, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let mut node = Node {
            status: status.clone(),
            own: own.clone(),
            local: local.clone(),
            replica: replica.clone(),
            volumes: Vec::new(),
            mounts: Vec::new(),
            fatal,
            front,
            back,
            tasks,
            endings: TaskTracker::new(),
            _lock: lock,
        };
        let server = crate::volume::Server::new(local, move || status());
        let dispatch = Arc::new(Dispatch { replica, server });
        let serving = net::Server::run(listener, own, dispatch, node.back.clone());
        node.keep_running("the listener", node.back.clone(), serving);
        if let Err(error) = node.bring_up(&mut directory, fresh, cs733, options.mounts).await {
            node.stop().await;
            return Err(error);
        }
        Ok(node)
    }

    /// What needs the listener: the first membership, upkeep, the front ends.
    async fn bring_up(
        &mut self,
        directory: &mut DataDirectory,
        fresh: bool,
        cs733: Option<TcpListener>,
        mounts: Vec<(PathBuf, MountOptions)>,
    ) -> Result<(), NodeError> {
        if !directory.bootstrapped {
            bootstrap(directory, &self.replica, &self.own, fresh).await?;
        }
        let (fatal, stop) = (self.fatal.clone(), self.back.clone());
        let identity = members::keep_identity(self.replica.clone(), directory.clone(), fatal, stop.clone());
        self.keep_running("the keeping of the identity", stop, identity);
        let (replica, front) = (&self.replica, &self.front);
        self.keep_running("upkeep", front.clone(), upkeep::run(replica.clone(), front.clone()));
        let standing = members::stand(self.local.clone(), replica.clone(), front.clone());
        self.keep_running("the node's standing", front.clone(), standing);
        let tending = members::tend(replica.clone(), self.own.clone(), front.clone());
        self.keep_running("the tending of the members", front.clone(), tending);
        self.start_gateway(cs733);
        self.mount_all(mounts).await
    }

    fn start_gateway(&mut self, cs733: Option<TcpListener>) {
        if let Some(listener) = cs733 {
            let volume = self.volume("cs733");
            let serving = gateway::serve(volume, listener, self.front.clone());
            self.keep_running("the cs733 listener", self.front.clone(), serving);
        }
    }

    /// Without this task the node would only look alive: if it ends before `stop` is cancelled, so does the node.
    fn keep_running(
        &self,
        what: &'static str,
        stop: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.spawn(self.fatal.clone().unless_stopped(what, stop, task));
    }

    async fn mount_all(&mut self, mounts: Vec<(PathBuf, MountOptions)>) -> Result<(), NodeError> {
        for (path, options) in mounts {
            let volume = self.volume(&format!("mount {}", path.display()));
            let runtime = tokio::runtime::Handle::current();
            let failed = format!("cannot mount at {}", path.display());
            let mounting = volume.clone();
            let mount = tokio::task::spawn_blocking(move || fuse::mount(mounting, runtime, &path, options)).await;
            let mount = mount.map_err(|e| NodeError::failed(format!("{failed}: {e}")))?;
            let mount = mount.map_err(|e| NodeError::failed(format!("{failed}: {e}")))?;
            self.end_with(&mount, volume);
            self.mounts.push(mount);
        }
        Ok(())
    }

    /// A mount's locks, ephemeral files and what it had open end with it, also if it ends before the node does.
    fn end_with(&mut self, mount: &Mount, volume: Volume) {
        let (path, ended, front) = (mount.path().to_owned(), mount.ended(), self.front.clone());
        self.endings.spawn(async move {
            let Some(outcome) = front.run_until_cancelled(ended).await else { return };
            match outcome {
                Ok(()) => tracing::info!("the mount at {} has ended", path.display()),
                Err(why) => tracing::error!("the mount at {} has ended: {why}", path.display()),
            }
            volume.close().await;
        });
    }

    /// The tree through this node, with a session of its own that ends when the node stops.
    pub fn volume(&mut self, purpose: &str) -> Volume {
        let NodeStatus { node, pid, .. } = self.status();
        let volume = Volume::local(self.local.clone(), &format!("node {node}, process {pid}, {purpose}"));
        self.volumes.push(volume.clone());
        volume
    }

    pub fn status(&self) -> NodeStatus {
        (self.status)()
    }

    /// Serve until SIGTERM or SIGINT, or until the node cannot go on; then stop. A second signal ends the process at once.
    pub async fn run(mut self) -> Result<(), NodeError> {
        let mut signals = Signals::new()?;
        tokio::select! {
            error = self.fatal.reason() => match error.exit {
                Exit::Done => tracing::warn!("{error}"),
                _ => return Err(self.die(error)),
            },
            () = signals.next() => {}
        }
        tracing::info!("stopping; a signal now ends the process at once");
        tokio::select! {
            () = self.stop() => Ok(()),
            () = signals.next() => std::process::exit(Exit::Failed as i32),
        }
    }

    /// The disk or Raft has failed: nothing can be finished any more, only the mounts should not stay behind.
    fn die(&mut self, error: NodeError) -> NodeError {
        tracing::error!("{error}");
        fatal::end_soon(error.exit);
        for mount in self.mounts.drain(..) {
            if let Err(e) = mount.unmount() {
                tracing::error!("cannot unmount: {e:#}");
            }
        }
        error
    }

    /// If this node leads, let the peer that is furthest take over at once instead of after an election timeout.
    async fn hand_over(&self) {
        let node = self.replica.id();
        let mut leader = self.replica.leader();
        if *leader.borrow() != Some(node) {
            return;
        }
        let roster = self.replica.roster();
        let votes = |node: &NodeId| roster.nodes.get(node).is_some_and(|entry| entry.voter);
        let furthest = ask_peers(&self.own, &self.replica.members()).await.into_iter().filter(|peer| votes(&peer.node));
        let Some(next) = furthest.max_by_key(|peer| peer.replica.last_log) else { return };
        if self.replica.transfer_leader(next.node).await.is_ok() {
            let _ =
                timeout(HAND_OVER_TIME, leader.wait_for(|leader| leader.is_some_and(|leader| leader != node))).await;
        }
    }

    /// Unmount, drain, end the sessions, stop Raft, close the listener. Every step is bounded.
    pub async fn stop(&mut self) {
        let mounts = std::mem::take(&mut self.mounts);
        step("unmounting", async {
            let unmounted = tokio::task::spawn_blocking(move || unmount_all(mounts)).await;
            unmounted.unwrap_or_else(|e| tracing::error!("cannot unmount: {e}"));
        })
        .await;
        self.front.cancel();
        step("ending the sessions", async {
            join_all(self.volumes.iter().map(Volume::close)).await;
            self.endings.close();
            self.endings.wait().await;
        })
        .await;
        step("handing over the lead", self.hand_over()).await;
        step("stopping raft", self.replica.shutdown()).await;
        self.back.cancel();
        self.tasks.close();
        step("closing connections", self.tasks.wait()).await;
    }
}

fn unmount_all(mounts: Vec<Mount>) {
    for mount in mounts {
        if let Err(e) = mount.unmount() {
            tracing::error!("cannot unmount: {e:#}");
        }
    }
}

async fn step<T>(what: &str, work: impl Future<Output = T>) {
    if timeout(STEP_TIME, work).await.is_err() {
        tracing::warn!("{what} takes more than {STEP_TIME:?}: going on without");
    }
}

/// Messages of Raft go to Raft, all others to the volume's server.
pub struct Dispatch {
    pub replica: Replica,
    pub server: crate::volume::Server,
}

impl Handler for Dispatch {
    fn handle(&self, from: &Caller, message: Message) -> impl Future<Output = Message> + Send + 'static {
        match (message.kind >= KIND_FIRST, from.node) {
            (true, _) => Either::Left(self.server.handle(from.node, message)),
            (false, Some(_)) => Either::Right(Either::Left(self.replica.handle(from, message))),
            (false, None) => Either::Right(Either::Right(ready(Message::refused("clients have no part in raft")))),
        }
    }

    fn answer_bytes(&self, message: &Message) -> usize {
        if message.kind >= KIND_FIRST { self.server.answer_bytes(message) } else { 0 }
    }

    fn admit(&self, node: NodeId, start: &Start) -> Result<(), Expulsion> {
        self.replica.admit(node, start)
    }
}

/// Each segment of the log is an open file, and so is each connection: the default of 1024 is not for servers.
fn raise_open_files_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot raise the limit of open files: {e}");
    }
    if limit.maximum.is_some_and(|files| files < OPEN_FILES_WANTED) {
        tracing::warn!("the limit of open files is {:?}; {OPEN_FILES_WANTED} are wanted (ulimit -Hn)", limit.maximum);
    }
}

fn listen_address(directory: &DataDirectory, options: &NodeOptions) -> Result<SocketAddr, NodeError> {
    let address = options.listen.or(directory.address());
    let address = address.ok_or_else(|| NodeError::failed("no address to listen at: give --listen"))?;
    let open = |address: &SocketAddr| !address.ip().is_loopback() && !options.insecure_no_tls;
    let refused = |address: SocketAddr, instead: &str| {
        Err(NodeError::failed(format!(
            "cannot listen at {address}: it can be reached from other machines, and nothing would be encrypted or \
             authenticated; {instead}, or give --insecure-no-tls on a network that you trust"
        )))
    };
    if open(&address) && options.keys.is_none() {
        return refused(address, "give the node keys with --tls (`keelfs keys` makes them), use a loopback address");
    }
    match options.cs733_listen.filter(open) {
        Some(cs733) => refused(cs733, "the cs733 protocol has no encryption: use a loopback address"),
        None => Ok(address),
    }
}

/// Nobody would call one that can only prove that it is a client.
fn must_be_of_node(keys: Option<&Keys>) -> Result<(), NodeError> {
    match keys.map(Keys::role) {
        None | Some(Role::Node) => Ok(()),
        Some(Role::Client) => Err(NodeError::failed(
            "cannot serve with the keys of a client: make some for this node with `keelfs keys node`, and name their \
             directory with --tls",
        )),
    }
}

async fn bind(address: SocketAddr, whom: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address)
        .await
        .map_err(|e| NodeError::failed(format!("cannot listen for {whom} at {address}: {e}")))
}

/// Entries that are damaged here and that no snapshot covers come from the other nodes, if these have them.
async fn open_log(directory: &DataDirectory, own: Identity) -> Result<Log, NodeError> {
    let (path, members) = (directory.log(), directory.members.clone());
    let open = move || Log::open_supplied(&path, &|range| raft::supply(&own, &members, range));
    let opened = tokio::task::spawn_blocking(open).await;
    Ok(opened.map_err(|e| NodeError::failed(format!("cannot open the log: {e}")))??)
}

/// An error of Raft's start, with the exit code of what is beneath it.
fn refine(error: &anyhow::Error, what: &str) -> NodeError {
    match error.chain().find_map(storage_error) {
        Some(storage) => NodeError::from(storage),
        None => NodeError::failed(format!("cannot {what}: {error:#}")),
    }
}

/// The storage error that this is, or that an IO error was made of.
fn storage_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e crate::log::StorageError> {
    let inner = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
    error.downcast_ref().or_else(|| inner?.downcast_ref())
}

/// Write the first membership, unless the cluster turns out to exist.
async fn bootstrap(
    directory: &mut DataDirectory,
    replica: &Replica,
    own: &Identity,
    fresh: bool,
) -> Result<(), NodeError> {
    if fresh {
        refuse_second_founding(directory, own).await?;
        replica.initialize(directory.members.clone()).await.map_err(|e| refine(&e, "found the cluster"))?;
        tracing::info!("founded cluster {} with {} members", directory.cluster, directory.members.len());
    }
    // Not fresh: an earlier start founded it and was stopped before it could note that.
    directory.mark_bootstrapped()
}

/// A peer with entries in its log is of a cluster that exists: this node's log must have been lost.
async fn refuse_second_founding(directory: &DataDirectory, own: &Identity) -> Result<(), NodeError> {
    let DataDirectory { cluster, node, members, .. } = directory;
    match ask_peers(own, members).await.into_iter().find(|peer| peer.replica.last_log > 0) {
        None => Ok(()),
        Some(peer) => Err(NodeError::failed(format!(
            "cannot found cluster {cluster}: node {} of it has data, and this node has none; its disk was lost or emptied. \
             Put a new node in its place, with an empty data directory and `keelfs member replace {node}`",
            peer.node
        ))),
    }
}

/// What the other members say of themselves, those that answer in time.
async fn ask_peers(own: &Identity, members: &BTreeMap<NodeId, SocketAddr>) -> Vec<NodeStatus> {
    let addresses: Vec<_> =
        members.iter().filter(|(node, _)| Some(**node) != own.node).map(|(_, address)| *address).collect();
    let Ok(client) = Client::with_keys(addresses.clone(), own.cluster, own.keys.clone()) else { return Vec::new() };
    let deadline = Instant::now() + PROBE_TIME;
    let asked = addresses.into_iter().map(|address| client.status_of(address, deadline));
    join_all(asked).await.into_iter().flatten().collect()
}

fn status_of(
    directory: &DataDirectory,
    options: &NodeOptions,
    start: Start,
    replica: Replica,
    address: SocketAddr,
    cs733: Option<&TcpListener>,
) -> Arc<dyn Fn() -> NodeStatus + Send + Sync> {
    let mounts: Vec<String> = options.mounts.iter().map(|(path, _)| path.display().to_string()).collect();
    let cs733 = cs733.and_then(|listener| listener.local_addr().ok());
    let (cluster, node): (_, NodeId) = (directory.cluster, directory.node);
    Arc::new(move || NodeStatus {
        cluster,
        node,
        address,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        incarnation: start.incarnation,
        run: start.run,
        holds: replica.holds().0,
        mounts: mounts.clone(),
        cs733,
        replica: replica.status(),
    })
}

#[cfg(test)]
mod tests;

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, NodeError> {
        let listen = |kind| signal(kind).map_err(|e| NodeError::failed(format!("cannot listen for signals: {e}")));
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
