//! One simulated node: a machine with a disk and a clock, and the process on it while there is one.
//!
//! Inside runs what runs in a real node, wired as `node` wires it: log, replica, volume with its server, upkeep, and
//! client programs of that machine. The process has a runtime of its own, with one thread and a paused clock; a crash
//! drops the runtime, and with it everything that the process had in memory.

use crate::clients::{self, Diary};
use crate::network::{self, Host, Network};
use crate::os::{self, Dice};
use bytes::Bytes;
use keelfs::log::simulated::{Fired, SimulatedDisk, Survival};
use keelfs::log::{Log, Options, StorageError, Threading};
use keelfs::net::{self, Expulsion, Identity, NodeId, Server};
use keelfs::node::{Dispatch, members, upkeep};
use keelfs::raft::{Ending, Replica, Timing, Tuning};
use keelfs::volume::{self, Local, NodeStatus, Volume};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Voters when the cluster is founded: numbers 1 to 5, on hosts of these numbers.
pub const NODES: u64 = 5;
/// Machines that have programs and no data: the hosts behind those.
pub const OUTSIDERS: u64 = 2;
/// Machines for nodes that are added: behind these. Their numbers are the cluster's to give.
pub const FIRST_NEWCOMER: Host = NODES + OUTSIDERS + 1;
pub const NEWCOMERS_MAX: u64 = 4;
/// What no fault of a disk excuses begins so.
pub const DIVERGED: &str = "its state has diverged: ";
const CLUSTER: u128 = 0x5eed;
const SEGMENT_BYTES: u64 = 256 << 10;
/// Snapshots, purges and installs happen within seconds.
const TUNING: Tuning = Tuning {
    snapshot_after_bytes: 96 << 10,
    keep_entries: 40,
    keep_bytes: 64 << 10,
    keep_entries_min: 10,
    scrub_bytes_per_second: 0,
};

pub fn cluster_id() -> uuid::Uuid {
    uuid::Uuid::from_u128(CLUSTER)
}

pub fn is_outsider(host: Host) -> bool {
    (NODES + 1..FIRST_NEWCOMER).contains(&host)
}

/// The first membership.
pub fn founders() -> BTreeMap<NodeId, SocketAddr> {
    (1..=NODES).map(|node| (node, network::address(node))).collect()
}

/// The node of this number.
pub fn of(nodes: &[Node], id: NodeId) -> &Node {
    nodes.iter().find(|node| node.id == id).unwrap_or_else(|| panic!("there is no node {id}"))
}

/// The node of this number.
pub fn of_mut(nodes: &mut [Node], id: NodeId) -> &mut Node {
    nodes.iter_mut().find(|node| node.id == id).unwrap_or_else(|| panic!("there is no node {id}"))
}

/// A runtime whose time the world moves.
pub struct Machine {
    host: Host,
    runtime: Runtime,
    begin: tokio::time::Instant,
    /// Milliseconds of its own clock that have passed.
    pub elapsed_ms: u64,
    /// Stopped from, to, by the world's clock.
    paused_ms: Option<(u64, u64)>,
}

impl Machine {
    pub fn new(host: Host) -> Machine {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.unwrap_or_else(|e| panic!("no runtime: {e}"));
        let begin = runtime.block_on(async { tokio::time::Instant::now() });
        Machine { host, runtime, begin, elapsed_ms: 0, paused_ms: None }
    }

    pub fn host(&self) -> Host {
        self.host
    }

    /// Stop it until then. One that is stopped already has been since then, and not shorter.
    pub fn pause(&mut self, until_ms: u64) {
        let (since, until) = self.paused_ms.unwrap_or((os::now_ms(), 0));
        self.paused_ms = Some((since, until.max(until_ms)));
    }

    /// Whoever is stopped goes on now.
    pub fn wake(&mut self) {
        self.paused_ms = self.paused_ms.map(|(since, _)| (since, os::now_ms()));
    }

    pub fn is_paused(&self) -> bool {
        self.paused_ms.is_some()
    }

    /// Let `ms` of its clock pass, and what it has slept through. `false`: it is stopped.
    pub fn tick(&mut self, network: &Network, wall_offset_ms: i64, ms: u64) -> bool {
        let now = os::now_ms();
        match self.paused_ms {
            Some((_, until)) if now < until => return false,
            Some((since, _)) => {
                self.paused_ms = None;
                self.jump(network, wall_offset_ms, now - since);
            }
            None => {}
        }
        self.step(network, wall_offset_ms, ms);
        true
    }

    /// Run everything that can run, and let `ms` of its clock pass.
    fn step(&mut self, network: &Network, wall_offset_ms: i64, ms: u64) {
        network.enter(self.host);
        self.elapsed_ms += ms;
        let until = self.begin + Duration::from_millis(self.elapsed_ms);
        os::stepping(wall_offset_ms, || self.runtime.block_on(async { tokio::time::sleep_until(until).await }));
    }

    /// It was stopped for so long, and wakes up.
    fn jump(&mut self, network: &Network, wall_offset_ms: i64, ms: u64) {
        network.enter(self.host);
        self.elapsed_ms += ms;
        os::stepping(wall_offset_ms, || {
            self.runtime.block_on(async { tokio::time::advance(Duration::from_millis(ms)).await })
        });
    }

    pub fn within<T>(&self, network: &Network, wall_offset_ms: i64, run: impl FnOnce() -> T) -> T {
        network.enter(self.host);
        let _context = self.runtime.enter();
        os::stepping(wall_offset_ms, run)
    }
}

/// What the process has come to, as its own tasks tell.
#[derive(Default)]
pub struct Told {
    pub replica: Option<Replica>,
    pub failed: Option<String>,
    /// It may never again take part, the others say.
    pub expelled: Option<Expulsion>,
}

pub struct Process {
    pub machine: Machine,
    pub log: Log,
    pub told: Arc<Mutex<Told>>,
}

pub enum Standing {
    Up(Box<Process>),
    /// Starts again at this time.
    Down {
        until_ms: u64,
    },
    /// Refuses to start, by the rule for rot.
    Refused,
    /// Is no member any more.
    Removed,
}

pub struct Node {
    pub id: NodeId,
    pub host: Host,
    /// As it last knew the membership.
    pub members: BTreeMap<NodeId, SocketAddr>,
    pub disk: SimulatedDisk,
    pub incarnation: u64,
    pub standing: Standing,
    pub wall_offset_ms: i64,
    /// Parts of a million by which its steady clock is fast.
    pub drift_ppm: i64,
    drift_rest: i64,
    disk_busy_until_ms: u64,
    /// What a sync takes, in milliseconds: from, to. `None`: as usual.
    pub slow_ms: Option<(u64, u64)>,
    /// Syncs that took long.
    pub slow_syncs: u64,
    pub rotten: bool,
    /// The power is to go when its next vote is durable, as the process believes.
    pub cut_after_vote: bool,
    /// How often it did.
    pub votes_cut: u64,
    /// How many processes have ended.
    pub ended: u64,
    /// What its disk had done before this process began.
    fired_before: Fired,
    last_vote: Option<Bytes>,
    dice: Dice,
}

/// What all nodes are started with.
pub struct Site {
    pub seed: u64,
    pub network: Network,
    pub timing: Timing,
    pub diary: Diary,
    pub founded: bool,
    /// Programs on each node.
    pub programs: u64,
}

const SYNC_MS: (u64, u64) = (1, 6);

impl Node {
    pub fn new(id: NodeId, host: Host, members: BTreeMap<NodeId, SocketAddr>, seed: u64) -> Node {
        let mut dice = Dice::new(seed, 100 + id);
        Node {
            id,
            host,
            members,
            disk: SimulatedDisk::new(),
            incarnation: 0,
            standing: Standing::Down { until_ms: 0 },
            wall_offset_ms: dice.between(0, 4000) as i64 - 2000,
            drift_ppm: dice.between(0, 10_000) as i64 - 5000,
            drift_rest: 0,
            disk_busy_until_ms: 0,
            slow_ms: None,
            slow_syncs: 0,
            rotten: false,
            cut_after_vote: false,
            votes_cut: 0,
            ended: 0,
            fired_before: Fired::default(),
            last_vote: None,
            dice,
        }
    }

    pub fn process(&self) -> Option<&Process> {
        match &self.standing {
            Standing::Up(process) => Some(process),
            _ => None,
        }
    }

    pub fn machine(&mut self) -> Option<&mut Machine> {
        match &mut self.standing {
            Standing::Up(process) => Some(&mut process.machine),
            _ => None,
        }
    }

    pub fn is_paused(&self) -> bool {
        self.process().is_some_and(|process| process.machine.is_paused())
    }

    /// Whether this is what a process says that ends because of something that its disk has done to it.
    pub fn is_excuse(&self, why: &str) -> bool {
        if why.starts_with(DIVERGED) {
            return false;
        }
        let (before, now) = (self.fired_before, self.disk.fired());
        let writes = now.failed_writes > before.failed_writes;
        why.contains("Input/output error") && (writes || now.failed_syncs > before.failed_syncs)
            || why.contains("No space left on device") && (writes || now.full > before.full)
    }

    pub fn replica(&self) -> Option<Replica> {
        self.process()?.told.lock().replica.clone()
    }

    /// Start the process. `Err`: the log does not open.
    pub fn boot(&mut self, site: &mut Site) -> Result<(), StorageError> {
        self.incarnation += 1;
        site.network.power_on(self.host);
        let machine = Machine::new(self.host);
        let options = Options {
            segment_bytes: SEGMENT_BYTES,
            cache_bytes: 64 << 10,
            seed: os::splitmix(site.seed ^ (self.id << 32) ^ self.incarnation),
            threading: Threading::Pumped,
        };
        let disk = Arc::new(self.disk.clone());
        let log = machine.within(&site.network, self.wall_offset_ms, || Log::open_on(disk, options))?;
        let told = Arc::<Mutex<Told>>::default();
        let found = self.id == 1 && !site.founded;
        site.founded |= found;
        let start = Start {
            host: self.host,
            members: self.members.clone(),
            own: Identity { cluster: cluster_id(), node: Some(self.id), start: self.process_start(&log), keys: None },
            log: log.clone(),
            timing: site.timing,
            network: site.network.clone(),
            told: told.clone(),
            found,
            diary: site.diary.clone(),
            dice: Dice::new(site.seed, 1000 * self.id + self.incarnation),
            programs: site.programs,
        };
        machine.within(&site.network, self.wall_offset_ms, || drop(tokio::spawn(start.run())));
        self.standing = Standing::Up(Box::new(Process { machine, log, told }));
        Ok(())
    }

    fn process_start(&self, log: &Log) -> net::Start {
        let (instance, run) = (uuid::Uuid::from_u128(self.host.into()), self.incarnation);
        net::Start { instance, incarnation: self.incarnation, run, log_end: log.reach() }
    }

    /// One tick of the world: the process runs, the disk does what it has time for. `true`: it did, and all that was
    /// queued is durable, as far as the process knows.
    pub fn step(&mut self, network: &Network, tick_ms: u64) -> bool {
        let parts = tick_ms as i64 * (1_000_000 + self.drift_ppm) + self.drift_rest;
        self.drift_rest = parts % 1_000_000;
        let ms = (parts / 1_000_000) as u64;
        let Standing::Up(process) = &mut self.standing else { return false };
        if !process.machine.tick(network, self.wall_offset_ms, ms) {
            return false;
        }
        let now = os::now_ms();
        let pumped = now >= self.disk_busy_until_ms
            && process.machine.within(network, self.wall_offset_ms, || process.log.pump());
        if pumped {
            let (from, to) = self.slow_ms.unwrap_or(SYNC_MS);
            self.slow_syncs += u64::from(self.slow_ms.is_some());
            self.disk_busy_until_ms = now + self.dice.between(from, to);
        }
        pumped
    }

    /// Whether it has voted since it was last asked, and the power is to go for that.
    pub fn is_cut_after_vote(&mut self) -> bool {
        let vote = self.process().and_then(|process| process.log.vote());
        let voted = vote != self.last_vote;
        self.last_vote = vote;
        let cut = voted && std::mem::take(&mut self.cut_after_vote);
        self.votes_cut += u64::from(cut);
        cut
    }

    /// The process is gone. With power: what was written survives in the page cache; else only as the disk pleases.
    pub fn crash(&mut self, network: &Network, power: Option<Survival>, until_ms: u64) {
        match power {
            Some(survival) => {
                network.power_off(self.host);
                self.disk = self.disk.crash(survival);
            }
            None => {
                network.process_ended(self.host);
                self.disk = self.disk.kill();
            }
        }
        self.standing = Standing::Down { until_ms };
        self.ended += 1;
        self.fired_before = self.disk.fired();
        self.disk_busy_until_ms = 0;
    }
}

struct Start {
    host: Host,
    members: BTreeMap<NodeId, SocketAddr>,
    own: Identity,
    log: Log,
    timing: Timing,
    network: Network,
    told: Arc<Mutex<Told>>,
    found: bool,
    diary: Diary,
    dice: Dice,
    programs: u64,
}

impl Start {
    async fn run(self) {
        let node = self.own.node.unwrap_or_default();
        let log_told = self.told.clone();
        self.log.on_failure(Box::new(move |error| {
            log_told.lock().failed.get_or_insert(error.to_string());
        }));
        let started = Replica::start_tuned(self.own.clone(), self.log, self.members, self.timing, TUNING).await;
        let replica = match started {
            Ok(replica) => replica,
            Err(e) => {
                self.told.lock().failed.get_or_insert(format!("cannot start raft: {e:#}"));
                return;
            }
        };
        let local = Local::new(replica.clone(), self.own.clone());
        let status = status_of(self.own.clone(), self.host, replica.clone());
        let server = volume::Server::new(local.clone(), status);
        let stop = CancellationToken::new();
        let dispatch = Arc::new(Dispatch { replica: replica.clone(), server });
        tokio::spawn(Server::run(self.network.listen(self.host), self.own.clone(), dispatch, stop.clone()));
        if self.found {
            // Tried again by nobody: the founding is done before anything goes wrong.
            let _ = replica.initialize(founders()).await;
        }
        tokio::spawn(upkeep::run(replica.clone(), stop.clone()));
        tokio::spawn(members::stand(local.clone(), replica.clone(), stop.clone()));
        tokio::spawn(members::tend(replica.clone(), self.own, stop));
        self.told.lock().replica = Some(replica.clone());
        let volume = Volume::local(local, &format!("node {node}"));
        clients::start(&volume, self.host * 10, self.programs, &self.diary, &self.dice);
        let why = tokio::select! {
            why = replica.failed() => why,
            expulsion = replica.expelled() => {
                self.told.lock().expelled.get_or_insert(expulsion);
                return;
            }
        };
        let why = match why {
            Ending::Diverged(why) => format!("{DIVERGED}{why}"),
            why => why.to_string(),
        };
        self.told.lock().failed.get_or_insert(why);
    }
}

fn status_of(own: Identity, host: Host, replica: Replica) -> impl Fn() -> NodeStatus + Send + Sync {
    let node = own.node.unwrap_or_default();
    move || NodeStatus {
        cluster: own.cluster,
        node,
        address: network::address(host),
        pid: 1,
        version: String::new(),
        incarnation: own.start.incarnation,
        run: own.start.run,
        holds: replica.holds().0,
        mounts: Vec::new(),
        cs733: None,
        replica: replica.status(),
    }
}
