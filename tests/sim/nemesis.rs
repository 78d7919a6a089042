//! What goes wrong, and when: a plan that follows from the seed.
//!
//! Each run has its own choice of kinds (swarm testing: Groce et al., 2012), so that rare combinations come up and no kind
//! hides behind another. A fault that finds nothing to do (no leader to kill) is tried again until it does; a run in which
//! a planned kind of fault never happened is void.

use crate::network::{Host, Network, TICK_MS};
use crate::node::{NODES, Node, SYNC_MS, Standing};
use crate::os::{self, Dice};
use keelfs::log::disk::Disk;
use keelfs::log::simulated::{SimulatedDisk, Survival};
use keelfs::net::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The first seconds are quiet: the cluster is founded.
pub const QUIET_MS: u64 = 4_000;
/// Records of the log begin at multiples of this.
const RECORD_ALIGNMENT: usize = 64;
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
    DiskFull,
    Rot,
    ClockJump,
    ClockStrobe,
}

const ALL: [Fault; 24] = [
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
    Fault::DiskFull,
    Fault::Rot,
    Fault::ClockJump,
    Fault::ClockStrobe,
];

/// What of a fault is undone later.
enum Undo {
    Network,
    Disk(NodeId),
    Strobe(NodeId, u64),
}

pub struct Nemesis {
    dice: Dice,
    plan: Vec<(u64, Fault)>,
    undo: Vec<(u64, Undo)>,
    pub happened: BTreeMap<Fault, u64>,
    hosts: Vec<Host>,
}

impl Nemesis {
    pub fn new(seed: u64, until_ms: u64, hosts: Vec<Host>) -> Nemesis {
        let mut dice = Dice::new(seed, 2);
        let odds = *dice.pick(&[15, 30, 60]);
        let chosen = |fault: &Fault| dice.chance(if *fault == Fault::Rot { 40 } else { odds });
        let mut kinds: Vec<Fault> = ALL.into_iter().filter(chosen).collect();
        if kinds.is_empty() {
            kinds.push(*dice.pick(&ALL));
        }
        let every = *dice.pick(&[900, 1800, 4000]);
        let (mut plan, mut at, mut rot) = (Vec::new(), QUIET_MS, false);
        while at < until_ms {
            let fault = *dice.pick(&kinds);
            // One node at most has damaged data: more than the others can make good is nobody's promise.
            if fault != Fault::Rot || !rot {
                plan.push((at, fault));
            }
            rot |= fault == Fault::Rot;
            at += dice.between(every / 3, every * 2);
        }
        plan.reverse();
        Nemesis { dice, plan, undo: Vec::new(), happened: BTreeMap::new(), hosts }
    }

    /// Do what is due.
    pub fn step(&mut self, nodes: &mut [Node], network: &Network) {
        let now = os::now_ms();
        let due: Vec<Undo> = self.undo.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
        due.into_iter().for_each(|undo| self.undo(undo, nodes, network));
        while let Some((_, fault)) = self.plan.pop_if(|(at, _)| *at <= now) {
            match self.strike(fault, nodes, network) {
                true => *self.happened.entry(fault).or_default() += 1,
                false => {
                    self.plan.push((now + 50, fault));
                    self.plan.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
                    break;
                }
            }
        }
    }

    /// The kinds that were planned and have not happened once.
    pub fn missed(&self) -> BTreeSet<Fault> {
        let waiting = self.plan.iter().map(|(_, fault)| *fault);
        waiting.filter(|fault| !self.happened.contains_key(fault)).collect()
    }

    /// Nothing is wrong any more, but what clocks show.
    pub fn heal(&mut self, nodes: &mut [Node], network: &Network) {
        self.undo.clear();
        network.heal();
        for node in nodes {
            heal_disk(node);
            node.paused_ms = node.paused_ms.map(|(since, _)| (since, os::now_ms()));
            if let Standing::Down { until_ms } = &mut node.standing {
                *until_ms = os::now_ms();
            }
        }
    }

    fn undo(&mut self, undo: Undo, nodes: &mut [Node], network: &Network) {
        match undo {
            Undo::Network => network.heal(),
            Undo::Disk(node) => heal_disk(&mut nodes[node as usize - 1]),
            Undo::Strobe(_, 0) => {}
            Undo::Strobe(node, left) => {
                nodes[node as usize - 1].wall_offset_ms = self.jump();
                self.undo.push((os::now_ms() + 40, Undo::Strobe(node, left - 1)));
            }
        }
    }

    fn jump(&mut self) -> i64 {
        self.dice.between(0, 7_200_000) as i64 - 3_600_000
    }

    /// `false`: there is nothing that it could be done to now.
    fn strike(&mut self, fault: Fault, nodes: &mut [Node], network: &Network) -> bool {
        let now = os::now_ms();
        let up: Vec<NodeId> = nodes.iter().filter(|node| node.process().is_some()).map(|node| node.id).collect();
        let leader = leader(nodes);
        let Some(any) = (!up.is_empty()).then(|| *self.dice.pick(&up)) else { return false };
        let for_ms = now + *self.dice.pick(&[300, 1500, 5000, 10_000]);
        match (fault, leader) {
            (Fault::KillOne, _) => self.crash(nodes, network, &[any], false),
            (Fault::KillLeader, Some(leader)) => self.crash(nodes, network, &[leader], false),
            (Fault::KillMajority, _) if up.len() >= 3 => self.crash(nodes, network, &up[..3], false),
            (Fault::KillAll, _) => self.crash(nodes, network, &up, false),
            (Fault::PowerOne, _) => self.crash(nodes, network, &[any], true),
            (Fault::PowerLeader, Some(leader)) => self.crash(nodes, network, &[leader], true),
            (Fault::PowerAll, _) => self.crash(nodes, network, &up, true),
            (Fault::PowerMidWrite, _) => {
                let operations = self.dice.below(6);
                nodes[any as usize - 1].disk.halt_after(operations);
            }
            (Fault::PowerVoter, Some(leader)) => {
                let others = nodes.iter_mut().filter(|node| node.id != leader);
                others.for_each(|node| node.cut_after_vote = self.dice.chance(40));
                self.crash(nodes, network, &[leader], false);
            }
            (Fault::Pause, _) => nodes[any as usize - 1].paused_ms = Some((now, for_ms)),
            (Fault::PauseLeader, Some(leader)) => nodes[leader as usize - 1].paused_ms = Some((now, for_ms)),
            (Fault::IsolateLeader, Some(leader)) => self.isolate(network, &[leader], (true, true), for_ms),
            (Fault::LeaderDeaf, Some(leader)) => self.isolate(network, &[leader], (false, true), for_ms),
            (Fault::LeaderMute, Some(leader)) => self.isolate(network, &[leader], (true, false), for_ms),
            (Fault::Minority, _) => {
                let first = self.dice.between(1, NODES);
                self.isolate(network, &[first, first % NODES + 1], (true, true), for_ms);
            }
            (Fault::Ring, _) => self.ring(network, for_ms),
            (Fault::Lossy, _) => self.each_pair(network, for_ms, |network, from, to| network.lose(from, to, 20)),
            (Fault::SlowNetwork, _) => {
                self.each_pair(network, for_ms, |network, from, to| network.delay(from, to, 400))
            }
            (Fault::SlowDisk, _) => {
                nodes[any as usize - 1].sync_ms = *self.dice.pick(&[(50, 400), (500, 2500)]);
                self.undo.push((for_ms, Undo::Disk(any)));
            }
            (Fault::FsyncFails, _) => {
                let after = self.dice.below(20);
                nodes[any as usize - 1].disk.fail_sync_after(after, libc::EIO);
            }
            (Fault::DiskFull, _) => {
                let disk = &nodes[any as usize - 1].disk;
                disk.set_capacity(Some(used(disk) + self.dice.below(3) * 65_536));
                self.undo.push((for_ms, Undo::Disk(any)));
            }
            (Fault::Rot, _) => return self.rot(&mut nodes[any as usize - 1], network),
            (Fault::ClockJump, _) => nodes[leader.unwrap_or(any) as usize - 1].wall_offset_ms = self.jump(),
            (Fault::ClockStrobe, _) => self.undo.push((now, Undo::Strobe(leader.unwrap_or(any), 40))),
            _ => return false,
        }
        true
    }

    fn crash(&mut self, nodes: &mut [Node], network: &Network, which: &[NodeId], power: bool) {
        let kind = self.dice.below(3);
        for node in which {
            let down_ms = *self.dice.pick(&[20, 400, 2500]) + self.dice.below(500);
            let survival = match kind {
                0 => Survival::Nothing,
                _ => Survival::Random(self.dice.any()),
            };
            let until = os::now_ms() + down_ms;
            nodes[*node as usize - 1].crash(network, power.then_some(survival), until);
        }
    }

    /// `cut`: what these send to the others, and what the others send to them.
    fn isolate(&mut self, network: &Network, these: &[Host], cut: (bool, bool), until: u64) {
        let clients_too = self.dice.chance(50);
        let others = self.hosts.iter().filter(|host| !these.contains(host) && (clients_too || **host <= NODES));
        for other in others {
            for this in these {
                if cut.0 {
                    network.cut(*this, *other);
                }
                if cut.1 {
                    network.cut(*other, *this);
                }
            }
        }
        self.undo.push((until, Undo::Network));
    }

    /// Everyone reaches two neighbours: five majorities, no two the same.
    fn ring(&mut self, network: &Network, until: u64) {
        for from in 1..=NODES {
            for to in 1..=NODES {
                let apart = (from + NODES - to) % NODES;
                if !matches!(apart, 0 | 1 | 4) {
                    network.cut(from, to);
                }
            }
        }
        self.undo.push((until, Undo::Network));
    }

    fn each_pair(&mut self, network: &Network, until: u64, worsen: impl Fn(&Network, Host, Host)) {
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| *to != from) {
                if self.dice.chance(60) {
                    worsen(network, *from, *to);
                }
            }
        }
        self.undo.push((until, Undo::Network));
    }

    /// A bit of what is known to be durable flips, and the process restarts. The last batch is left alone: whether it is
    /// damaged or was torn nobody can say, and it is cut as torn.
    fn rot(&mut self, node: &mut Node, network: &Network) -> bool {
        let files = node.disk.list().unwrap_or_default();
        let newest = files.iter().rfind(|name| name.ends_with(".seg")).cloned();
        // Half of it hits the header of a record in the newest segment, where damage and a torn write look alike.
        let header = self.dice.chance(50);
        let any = (!files.is_empty()).then(|| self.dice.pick(&files).clone());
        let Some(file) = newest.clone().filter(|_| header).or(any) else { return false };
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
            return false;
        }
        let records: Vec<usize> = records.into_iter().filter(|at| *at < settled).skip(2).collect();
        let at = match header && !records.is_empty() {
            true => *self.dice.pick(&records) + self.dice.below(RECORD_ALIGNMENT as u64) as usize,
            false => self.dice.below(settled as u64) as usize,
        };
        node.rotten = true;
        node.disk.flip_bit(&file, at as u64, self.dice.below(8) as u8);
        if node.process().is_some() {
            node.crash(network, None, os::now_ms() + 100);
        }
        true
    }
}

/// Up to where its segment was durable when this record was written: as src/log/format.rs says.
fn durable_mark(record: &[u8]) -> Option<usize> {
    let mark = record.get(DURABLE_MARK)?.try_into().ok()?;
    Some(u32::from_le_bytes(mark) as usize)
}

fn heal_disk(node: &mut Node) {
    node.cut_after_vote = false;
    node.sync_ms = SYNC_MS;
    node.disk.set_capacity(None);
    node.disk.halt_after(u64::MAX);
    node.disk.fail_sync_after(u64::MAX, libc::EIO);
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
        (status.role == "leader" && node.paused_ms.is_none()).then_some((status.term, node.id))
    });
    leading.max().map(|(_, node)| node)
}

const _: () = assert!(QUIET_MS > TICK_MS);
