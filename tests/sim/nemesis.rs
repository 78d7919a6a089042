//! What goes wrong, and when: a plan that follows from the seed.
//!
//! Each run has its own choice of kinds (swarm testing: Groce et al., 2012), so that rare combinations come up and no kind
//! hides behind another. A fault that finds nothing to do (no leader to kill) is tried again until it does. One that is only
//! prepared (the next sync fails, nothing gets through) has happened when something was seen of it; if nothing is, it is
//! prepared again. A run in which a planned kind of fault never happened is void. What a fault undoes is what it did itself.

use crate::network::{Host, Network, TICK_MS, Wrong};
use crate::node::{self, Machine, Node, Standing};
use crate::operator::{Desk, Order};
use crate::os::{self, Dice};
use keelfs::log::disk::Disk;
use keelfs::log::simulated::{Fired, SimulatedDisk, Survival};
use keelfs::net::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The first seconds are quiet: the cluster is founded.
pub const QUIET_MS: u64 = 4_000;
/// Records of the log begin at multiples of this.
const RECORD_ALIGNMENT: usize = 64;
const NEVER: u64 = u64::MAX;
/// How long something prepared may wait for its moment.
const ARMED_MS: u64 = 5_000;
/// Longer than a session lives without a sign of life.
const AWAY_MS: (u64, u64) = (35_000, 45_000);
const DURABLE_MARK: std::ops::Range<usize> = 40..44;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillOne,
    KillLeader,
    KillMajority,
    KillAll,
    PowerOne,
    PowerLeader,
    PowerMidWrite,
    /// Of a node that has just voted: the leader is killed, so that there is an election.
    PowerVoter,
    PowerAll,
    Pause,
    PauseLeader,
    IsolateLeader,
    Minority,
    LeaderDeaf,
    LeaderMute,
    Ring,
    Lossy,
    SlowNetwork,
    SlowDisk,
    FsyncFails,
    /// Halfway: the first half of it is written.
    WriteFails,
    DiskFull,
    Rot,
    ClockJump,
    ClockStrobe,
    AddMember,
    ReplaceMember,
    RemoveMember,
    /// A machine of clients is stopped or cut off for longer than its session lives. Only in runs that are long enough.
    OutsiderAway,
}

const ALL: [Fault; 28] = [
    Fault::KillOne,
    Fault::KillLeader,
    Fault::KillMajority,
    Fault::KillAll,
    Fault::PowerOne,
    Fault::PowerLeader,
    Fault::PowerMidWrite,
    Fault::PowerVoter,
    Fault::PowerAll,
    Fault::Pause,
    Fault::PauseLeader,
    Fault::IsolateLeader,
    Fault::Minority,
    Fault::LeaderDeaf,
    Fault::LeaderMute,
    Fault::Ring,
    Fault::Lossy,
    Fault::SlowNetwork,
    Fault::SlowDisk,
    Fault::FsyncFails,
    Fault::WriteFails,
    Fault::DiskFull,
    Fault::Rot,
    Fault::ClockJump,
    Fault::ClockStrobe,
    Fault::AddMember,
    Fault::ReplaceMember,
    Fault::RemoveMember,
];

/// What of a fault is undone later.
enum Undo {
    /// What this fault did to the network.
    Network(u64),
    SlowDisk(NodeId),
    FullDisk(NodeId),
    Strobe(NodeId, u64),
}

/// Where it is seen that something prepared has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// The network has held something back for this fault.
    Felt(u64),
    SlowSyncs(NodeId, u64),
    FailedSyncs(NodeId, u64),
    FailedWrites(NodeId, u64),
    Halts(NodeId, u64),
    /// It was refused room, or told how little there is: the product need not wait for a refusal.
    Full(NodeId, u64),
    /// Of all nodes, how often a vote cost them their power.
    VotesCut(u64),
    /// Of the operator, how many orders it has carried out.
    Ordered(u64),
}

impl Fault {
    /// How often in a run.
    fn times_max(self) -> usize {
        match self {
            // One node at most has damaged data: more than the others can make good is nobody's promise.
            Fault::Rot => 1,
            // Where every vote costs a node its power nobody is elected, and nothing is seen but that.
            Fault::PowerVoter => 4,
            // Four members at least, and as many new ones as there are machines for.
            Fault::AddMember | Fault::RemoveMember => 1,
            Fault::ReplaceMember => 2,
            _ => usize::MAX,
        }
    }
}

/// A fault that is prepared.
struct Armed {
    fault: Fault,
    sign: Sign,
    until_ms: u64,
    /// Of the node, when it was prepared: what is to befall one process is prepared anew for the next.
    ended: u64,
}

/// What became of an attempt.
enum Struck {
    Done,
    Armed(Sign, u64),
    /// There is nothing that it could be done to now.
    Nothing,
}

/// What things can be done to.
pub struct Targets<'a> {
    pub nodes: &'a mut [Node],
    /// Machines that have clients only.
    pub outsiders: &'a mut [Machine],
    pub network: &'a Network,
    pub desk: &'a Desk,
}

pub struct Nemesis {
    dice: Dice,
    plan: Vec<(u64, Fault)>,
    undo: Vec<(u64, Undo)>,
    armed: Vec<Armed>,
    pub happened: BTreeMap<Fault, u64>,
    hosts: Vec<Host>,
    faults: u64,
}

impl Nemesis {
    /// `away`: for long, a machine of clients is as good as gone.
    pub fn new(seed: u64, until_ms: u64, hosts: Vec<Host>, away: bool) -> Nemesis {
        let mut dice = Dice::new(seed, 2);
        let odds = *dice.pick(&[15, 30, 60]);
        let chosen = |fault: &Fault| dice.chance(if *fault == Fault::Rot { 40 } else { odds });
        let mut kinds: Vec<Fault> = ALL.into_iter().filter(chosen).collect();
        if kinds.is_empty() {
            kinds.push(*dice.pick(&ALL));
        }
        let every = *dice.pick(&[900, 1800, 4000]);
        let (mut plan, mut at) = (Vec::<(u64, Fault)>::new(), QUIET_MS);
        while at < until_ms {
            let fault = *dice.pick(&kinds);
            if plan.iter().filter(|(_, planned)| *planned == fault).count() < fault.times_max() {
                plan.push((at, fault));
            }
            at += dice.between(every / 3, every * 2);
        }
        if away {
            plan.push((dice.between(2 * QUIET_MS, 4 * QUIET_MS), Fault::OutsiderAway));
        }
        plan.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let (undo, armed) = (Vec::new(), Vec::new());
        Nemesis { dice, plan, undo, armed, happened: BTreeMap::new(), hosts, faults: 0 }
    }

    /// Do what is due.
    pub fn step(&mut self, on: &mut Targets) {
        let now = os::now_ms();
        self.look(on);
        let due: Vec<Undo> = self.undo.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
        due.into_iter().for_each(|undo| self.undo(undo, on));
        while let Some((_, fault)) = self.plan.pop_if(|(at, _)| *at <= now) {
            match self.strike(fault, on) {
                Struck::Done => self.has_happened(fault),
                Struck::Armed(sign, until_ms) => {
                    let ended = sign.node().map_or(0, |node| node::of(on.nodes, node).ended);
                    self.armed.push(Armed { fault, sign, until_ms, ended });
                }
                Struck::Nothing => {
                    self.put_off(fault);
                    break;
                }
            }
        }
    }

    /// Anything has gone wrong, or may any time.
    pub fn has_begun(&self) -> bool {
        !self.happened.is_empty() || !self.armed.is_empty()
    }

    fn has_happened(&mut self, fault: Fault) {
        *self.happened.entry(fault).or_default() += 1;
    }

    fn put_off(&mut self, fault: Fault) {
        self.plan.push((os::now_ms() + 50, fault));
        self.plan.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    }

    /// See what has become of what was prepared.
    fn look(&mut self, on: &mut Targets) {
        for mut armed in std::mem::take(&mut self.armed) {
            let ended = armed.sign.node().map_or(0, |node| node::of(on.nodes, node).ended);
            if armed.sign.is_there(on) {
                self.has_happened(armed.fault);
            } else if armed.until_ms <= os::now_ms() {
                armed.sign.disarm(on.nodes);
                self.put_off(armed.fault);
            } else {
                if let Some(node) = armed.sign.node().filter(|_| armed.ended != ended) {
                    armed.ended = ended;
                    armed.sign.arm(&node::of(on.nodes, node).disk, self.dice.below(6), self.errno());
                }
                self.armed.push(armed);
            }
        }
    }

    /// The kinds that were planned and have not happened once.
    pub fn missed(&self) -> BTreeSet<Fault> {
        let waiting = self.plan.iter().map(|(_, fault)| *fault).chain(self.armed.iter().map(|armed| armed.fault));
        waiting.filter(|fault| !self.happened.contains_key(fault)).collect()
    }

    /// Nothing is wrong any more, but what clocks show.
    pub fn heal(&mut self, on: &mut Targets) {
        self.undo.clear();
        on.network.heal();
        on.outsiders.iter_mut().for_each(Machine::wake);
        for node in on.nodes.iter_mut() {
            heal_disk(node);
            node.machine().into_iter().for_each(Machine::wake);
            if let Standing::Down { until_ms } = &mut node.standing {
                *until_ms = os::now_ms();
            }
        }
    }

    fn undo(&mut self, undo: Undo, on: &mut Targets) {
        match undo {
            Undo::Network(fault) => on.network.mend(fault),
            Undo::SlowDisk(node) => node::of_mut(on.nodes, node).slow_ms = None,
            Undo::FullDisk(node) => node::of(on.nodes, node).disk.set_capacity(None),
            Undo::Strobe(_, 0) => {}
            Undo::Strobe(node, left) => {
                node::of_mut(on.nodes, node).wall_offset_ms = self.jump();
                self.undo.push((os::now_ms() + 40, Undo::Strobe(node, left - 1)));
            }
        }
    }

    fn jump(&mut self) -> i64 {
        self.dice.between(0, 7_200_000) as i64 - 3_600_000
    }

    fn strike(&mut self, fault: Fault, on: &mut Targets) -> Struck {
        let up: Vec<NodeId> = on.nodes.iter().filter(|node| node.process().is_some()).map(|node| node.id).collect();
        let leader = leader(on.nodes);
        let Some(any) = (!up.is_empty()).then(|| *self.dice.pick(&up)) else { return Struck::Nothing };
        let until = os::now_ms() + *self.dice.pick(&[300, 1500, 5000, 10_000]);
        match (fault, leader) {
            (Fault::KillOne, _) => self.crash(on, &[any], false),
            (Fault::KillLeader, Some(leader)) => self.crash(on, &[leader], false),
            (Fault::KillMajority, _) if up.len() >= 3 => self.crash(on, &up[..3], false),
            (Fault::KillAll, _) => self.crash(on, &up, false),
            (Fault::PowerOne, _) => self.crash(on, &[any], true),
            (Fault::PowerLeader, Some(leader)) => self.crash(on, &[leader], true),
            (Fault::PowerAll, _) => self.crash(on, &up, true),
            (Fault::PowerVoter, Some(leader)) => self.lie_in_wait(on, leader),
            (Fault::Pause, _) => pause(on, any, until),
            (Fault::PauseLeader, Some(leader)) => pause(on, leader, until),
            (Fault::IsolateLeader, Some(leader)) => {
                self.isolate(on, &[node::of(on.nodes, leader).host], (true, true), until)
            }
            (Fault::LeaderDeaf, Some(leader)) => {
                self.isolate(on, &[node::of(on.nodes, leader).host], (false, true), until)
            }
            (Fault::LeaderMute, Some(leader)) => {
                self.isolate(on, &[node::of(on.nodes, leader).host], (true, false), until)
            }
            (Fault::Minority, _) => {
                let hosts = hosts_of(on.nodes);
                let first = self.dice.below(hosts.len() as u64) as usize;
                self.isolate(on, &[hosts[first], hosts[(first + 1) % hosts.len()]], (true, true), until)
            }
            (Fault::Ring, _) => self.ring(on, until),
            (Fault::Lossy, _) => self.each_pair(on, until, Wrong::Loss(20)),
            (Fault::SlowNetwork, _) => self.each_pair(on, until, Wrong::Delay(400)),
            (Fault::SlowDisk | Fault::FsyncFails | Fault::WriteFails | Fault::PowerMidWrite | Fault::DiskFull, _) => {
                self.harm_disk(fault, node::of_mut(on.nodes, any), until)
            }
            (Fault::Rot, _) => self.rot(node::of_mut(on.nodes, any), on.network),
            (Fault::ClockJump, _) => {
                node::of_mut(on.nodes, leader.unwrap_or(any)).wall_offset_ms = self.jump();
                Struck::Done
            }
            (Fault::ClockStrobe, _) => {
                self.undo.push((os::now_ms(), Undo::Strobe(leader.unwrap_or(any), 40)));
                Struck::Done
            }
            (Fault::AddMember | Fault::ReplaceMember | Fault::RemoveMember, _) => self.order(fault, on),
            (Fault::OutsiderAway, _) => self.send_away(on),
            _ => Struck::Nothing,
        }
    }

    /// The leader is killed, and some of those who vote for the next lose power as soon as they have.
    fn lie_in_wait(&mut self, on: &mut Targets, leader: NodeId) -> Struck {
        if self.armed.iter().any(|armed| armed.fault == Fault::PowerVoter) {
            return Struck::Nothing;
        }
        let before = on.nodes.iter().map(|node| node.votes_cut).sum();
        let others: Vec<&mut Node> = on.nodes.iter_mut().filter(|node| node.id != leader).collect();
        let sure = self.dice.below(others.len() as u64);
        others
            .into_iter()
            .enumerate()
            .for_each(|(at, node)| node.cut_after_vote = at as u64 == sure || self.dice.chance(40));
        self.crash(on, &[leader], false);
        Struck::Armed(Sign::VotesCut(before), os::now_ms() + ARMED_MS)
    }

    /// One of a kind at a time.
    fn harm_disk(&mut self, fault: Fault, node: &mut Node, until: u64) -> Struck {
        if self.armed.iter().any(|armed| armed.fault == fault && armed.sign.node() == Some(node.id)) {
            return Struck::Nothing;
        }
        let (fired, soon) = (node.disk.fired(), os::now_ms() + ARMED_MS);
        let (sign, until, after) = match fault {
            Fault::FsyncFails => (Sign::FailedSyncs(node.id, fired.failed_syncs), soon, 20),
            Fault::WriteFails => (Sign::FailedWrites(node.id, fired.failed_writes), soon, 20),
            Fault::PowerMidWrite => (Sign::Halts(node.id, fired.halts), soon, 6),
            Fault::SlowDisk if node.slow_ms.is_none() => {
                node.slow_ms = Some(*self.dice.pick(&[(50, 400), (500, 2500)]));
                self.undo.push((until, Undo::SlowDisk(node.id)));
                (Sign::SlowSyncs(node.id, node.slow_syncs), until, 0)
            }
            Fault::DiskFull if !self.is_to_be_emptied(node.id) => {
                node.disk.set_capacity(Some(used(&node.disk) + self.dice.below(3) * 65_536));
                self.undo.push((until, Undo::FullDisk(node.id)));
                (Sign::Full(node.id, fired.full + fired.told_room), until, 0)
            }
            _ => return Struck::Nothing,
        };
        sign.arm(&node.disk, self.dice.below(after), self.errno());
        Struck::Armed(sign, until)
    }

    /// Its disk is full by an earlier fault.
    fn is_to_be_emptied(&self, node: NodeId) -> bool {
        self.undo.iter().any(|(_, undo)| matches!(undo, Undo::FullDisk(full) if *full == node))
    }

    /// Have the membership changed. Whoever is to go may be dead; one that refuses to start is the first to be replaced.
    fn order(&mut self, fault: Fault, on: &Targets) -> Struck {
        let staying: Vec<&Node> = on.nodes.iter().filter(|node| !on.desk.is_leaving(node.id)).collect();
        let refused = staying.iter().find(|node| matches!(node.standing, Standing::Refused)).map(|node| node.id);
        let any = self.dice.pick(&staying).id;
        let order = match fault {
            Fault::ReplaceMember => Order::Replace(refused.unwrap_or(any)),
            Fault::RemoveMember => Order::Remove(refused.unwrap_or(any)),
            _ => Order::Add,
        };
        let before = on.desk.done();
        match on.desk.order(order) {
            true => Struck::Armed(Sign::Ordered(before), NEVER),
            false => Struck::Nothing,
        }
    }

    /// One machine of clients is gone for longer than its session lives.
    fn send_away(&mut self, on: &mut Targets) -> Struck {
        let until = os::now_ms() + self.dice.between(AWAY_MS.0, AWAY_MS.1);
        let which = self.dice.below(on.outsiders.len() as u64) as usize;
        if self.dice.chance(50) {
            on.outsiders[which].pause(until);
            return Struck::Done;
        }
        let (fault, host) = (self.fault(), on.outsiders[which].host());
        for other in self.hosts.iter().filter(|other| **other != host) {
            on.network.worsen(fault, host, *other, Wrong::Cut);
            on.network.worsen(fault, *other, host, Wrong::Cut);
        }
        self.on_network(fault, until)
    }

    /// Of a write that fails. A file that has its blocks may lack room all the same: on a disk that promises too much.
    fn errno(&mut self) -> i32 {
        if self.dice.chance(20) { libc::ENOSPC } else { libc::EIO }
    }

    fn fault(&mut self) -> u64 {
        self.faults += 1;
        self.faults
    }

    fn on_network(&mut self, fault: u64, until: u64) -> Struck {
        self.undo.push((until, Undo::Network(fault)));
        Struck::Armed(Sign::Felt(fault), until)
    }

    fn crash(&mut self, on: &mut Targets, which: &[NodeId], power: bool) -> Struck {
        let kind = self.dice.below(3);
        for node in which {
            let down_ms = *self.dice.pick(&[20, 400, 2500]) + self.dice.below(500);
            let survival = match kind {
                0 => Survival::Nothing,
                _ => Survival::Random(self.dice.any()),
            };
            let until = os::now_ms() + down_ms;
            node::of_mut(on.nodes, *node).crash(on.network, power.then_some(survival), until);
        }
        Struck::Done
    }

    /// `cut`: what these send to the others, and what the others send to them.
    fn isolate(&mut self, on: &Targets, these: &[Host], cut: (bool, bool), until: u64) -> Struck {
        let (fault, clients_too) = (self.fault(), self.dice.chance(50));
        let others =
            self.hosts.iter().filter(|host| !these.contains(host) && (clients_too || !node::is_outsider(**host)));
        for other in others {
            for this in these {
                if cut.0 {
                    on.network.worsen(fault, *this, *other, Wrong::Cut);
                }
                if cut.1 {
                    on.network.worsen(fault, *other, *this, Wrong::Cut);
                }
            }
        }
        self.on_network(fault, until)
    }

    /// Everyone reaches two neighbours: of five, five majorities, no two the same.
    fn ring(&mut self, on: &Targets, until: u64) -> Struck {
        let (fault, hosts) = (self.fault(), hosts_of(on.nodes));
        for (at, from) in hosts.iter().enumerate() {
            for (to_at, to) in hosts.iter().enumerate() {
                let apart = (at + hosts.len() - to_at) % hosts.len();
                if apart > 1 && apart < hosts.len() - 1 {
                    on.network.worsen(fault, *from, *to, Wrong::Cut);
                }
            }
        }
        self.on_network(fault, until)
    }

    fn each_pair(&mut self, on: &Targets, until: u64, wrong: Wrong) -> Struck {
        let fault = self.fault();
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| *to != from) {
                if self.dice.chance(60) {
                    on.network.worsen(fault, *from, *to, wrong);
                }
            }
        }
        self.on_network(fault, until)
    }

    /// A bit of what is known to be durable flips, and the process restarts. The last batch is left alone: whether it is
    /// damaged or was torn nobody can say, and it is cut as torn.
    fn rot(&mut self, node: &mut Node, network: &Network) -> Struck {
        let files = node.disk.list().unwrap_or_default();
        let newest = files.iter().rfind(|name| name.ends_with(".seg")).cloned();
        // Half of it hits the header of a record in the newest segment, where damage and a torn write look alike.
        let header = self.dice.chance(50);
        let any = (!files.is_empty()).then(|| self.dice.pick(&files).clone());
        let Some(file) = newest.clone().filter(|_| header).or(any) else { return Struck::Nothing };
        let content = node.disk.content(&file).unwrap_or_default();
        let written = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let starts = content.chunks(RECORD_ALIGNMENT).enumerate();
        let records: Vec<usize> =
            starts.filter(|(_, block)| block.starts_with(b"kREC")).map(|(at, _)| at * RECORD_ALIGNMENT).collect();
        let settled = match newest == Some(file.clone()) {
            true => records.iter().filter_map(|at| durable_mark(&content[*at..])).filter(|to| *to <= written).max(),
            false => Some(written),
        };
        let settled = settled.unwrap_or(0);
        if settled < 4096 {
            return Struck::Nothing;
        }
        let records: Vec<usize> = records.into_iter().filter(|at| *at < settled).skip(2).collect();
        let at = match header && !records.is_empty() {
            true => *self.dice.pick(&records) + self.dice.below(RECORD_ALIGNMENT as u64) as usize,
            false => self.dice.below(settled as u64) as usize,
        };
        if !node.disk.flip_bit(&file, at as u64, self.dice.below(8) as u8) {
            return Struck::Nothing;
        }
        node.rotten = true;
        if node.process().is_some() {
            node.crash(network, None, os::now_ms() + 100);
        }
        Struck::Done
    }
}

/// Up to where its segment was durable when this record was written: as src/log/format.rs says.
fn durable_mark(record: &[u8]) -> Option<usize> {
    let mark = record.get(DURABLE_MARK)?.try_into().ok()?;
    Some(u32::from_le_bytes(mark) as usize)
}

/// Where nodes are that have not been removed.
fn hosts_of(nodes: &[Node]) -> Vec<Host> {
    nodes.iter().filter(|node| !matches!(node.standing, Standing::Removed)).map(|node| node.host).collect()
}

fn heal_disk(node: &mut Node) {
    node.cut_after_vote = false;
    node.slow_ms = None;
    node.disk.set_capacity(None);
    node.disk.halt_after(NEVER);
    node.disk.fail_sync_after(NEVER, libc::EIO);
    node.disk.fail_write_after(NEVER, libc::EIO);
}

fn pause(on: &mut Targets, node: NodeId, until: u64) -> Struck {
    node::of_mut(on.nodes, node).machine().into_iter().for_each(|machine| machine.pause(until));
    Struck::Done
}

impl Sign {
    fn node(self) -> Option<NodeId> {
        match self {
            Sign::Felt(_) | Sign::VotesCut(_) | Sign::Ordered(_) => None,
            Sign::SlowSyncs(node, _) | Sign::Full(node, _) => Some(node),
            Sign::FailedSyncs(node, _) | Sign::FailedWrites(node, _) | Sign::Halts(node, _) => Some(node),
        }
    }

    fn is_there(self, on: &Targets) -> bool {
        let fired = |node: NodeId, before: u64, count: fn(&Fired) -> u64| {
            count(&node::of(on.nodes, node).disk.fired()) > before
        };
        match self {
            Sign::Felt(fault) => on.network.was_felt(fault),
            Sign::SlowSyncs(node, before) => node::of(on.nodes, node).slow_syncs > before,
            Sign::FailedSyncs(node, before) => fired(node, before, |fired| fired.failed_syncs),
            Sign::FailedWrites(node, before) => fired(node, before, |fired| fired.failed_writes),
            Sign::Halts(node, before) => fired(node, before, |fired| fired.halts),
            Sign::Full(node, before) => fired(node, before, |fired| fired.full + fired.told_room),
            Sign::Ordered(before) => on.desk.done() > before,
            Sign::VotesCut(before) => on.nodes.iter().map(|node| node.votes_cut).sum::<u64>() > before,
        }
    }

    /// Prepare what befalls one process; a full or slow disk stays so, whoever uses it.
    fn arm(self, disk: &SimulatedDisk, after: u64, errno: i32) {
        match self {
            Sign::FailedSyncs(..) => disk.fail_sync_after(after, libc::EIO),
            Sign::FailedWrites(..) => disk.fail_write_after(after, errno),
            Sign::Halts(..) => disk.halt_after(after),
            _ => {}
        }
    }

    fn disarm(self, nodes: &mut [Node]) {
        match self {
            Sign::VotesCut(_) => nodes.iter_mut().for_each(|node| node.cut_after_vote = false),
            other => other.node().into_iter().for_each(|node| other.arm(&node::of(nodes, node).disk, NEVER, libc::EIO)),
        }
    }
}

fn used(disk: &SimulatedDisk) -> u64 {
    let files = disk.list().unwrap_or_default();
    let sizes = files.iter().filter_map(|name| disk.open(name).ok()?.allocated().ok());
    sizes.sum()
}

/// Whoever leads, by its own word; the one in the highest term.
pub fn leader(nodes: &[Node]) -> Option<NodeId> {
    let leading = nodes.iter().filter_map(|node| {
        let status = node.replica()?.status();
        (status.role == "leader" && !node.is_paused()).then_some((status.term, node.id))
    });
    leading.max().map(|(_, node)| node)
}

const _: () = assert!(QUIET_MS > TICK_MS);
