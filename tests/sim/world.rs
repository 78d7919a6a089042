//! A run: five nodes, their clients, the network between them, what goes wrong, and everyone who watches.
//!
//! Time passes in ticks. In each, what is due on the network arrives, the nemesis does what it has planned, every machine
//! runs until it has nothing left to do, every disk does one batch if it is not busy, and the invariants are looked at.
//! First comes a phase with faults (safety), then all is healed, and everything must come to an end (liveness).

use crate::clients::{self, Diary};
use crate::diary::Answered;
use crate::invariants::{Held, Invariants, expiry, locks};
use crate::nemesis::{Nemesis, Targets};
use crate::network::{self, Host, Network, TICK_MS};
use crate::node::{self, FIRST_NEWCOMER, Machine, NEWCOMERS_MAX, NODES, Node, OUTSIDERS, Site, Standing};
use crate::operator::{self, Desk};
use crate::os::{self, Dice};
use crate::trace::Trace;
use keelfs::log::StorageError;
use keelfs::log::simulated::Survival;
use keelfs::net::{Expulsion, NodeId};
use keelfs::raft::{Replica, Timing};
use keelfs::volume::{Client, Volume};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const PROGRAMS: u64 = 2;
/// Runs in which locks are taken. Not all: whoever waits for one of a dead session waits as long as a session lives.
const LOCKS_PERCENT: u64 = 35;
/// Runs in which a machine of clients is away for longer than its session lives, and comes back.
const AWAY_PERCENT: u64 = 4;
const AWAY_SAFETY_MS: u64 = 64_000;
/// How long everything may take to come to an end once nothing is wrong any more.
const LIVENESS_MS: u64 = 120_000;
/// Between the healing and the last call.
const SETTLE_MS: u64 = 2_000;
/// With fewer answers while things go wrong, all clients together, a run proves nothing.
const ANSWER_EVERY_MS: u64 = 1_000;
/// What a run may take longer until it proves something.
const MORE_MS: u64 = 60_000;
const ROLES_EVERY_MS: u64 = 6;
const CHECK_EVERY_MS: u64 = 2_000;
/// What clients saw is judged so often, to see sooner what is broken.
const HISTORY_EVERY_MS: u64 = 5_000;

pub struct World {
    site: Site,
    nodes: Vec<Node>,
    outsiders: Vec<Machine>,
    /// Of the outsiders: they end when the run does.
    volumes: Vec<Volume>,
    desk: Desk,
    nemesis: Nemesis,
    invariants: Invariants,
    consequences: BTreeMap<String, u64>,
    dice: Dice,
    safety_ms: u64,
    /// What clients had been answered when the first fault struck, and when all was healed.
    answered: (Option<Answered>, Option<Answered>),
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub broken: Option<String>,
    /// Why the run proves nothing.
    pub void: Option<String>,
    pub simulated_ms: u64,
    pub operations: u64,
    pub answered: u64,
    /// Of these, between the first fault and the healing.
    pub amid_faults: BTreeMap<String, u64>,
    pub entries: u64,
    pub leaders: u64,
    pub faults: BTreeMap<String, u64>,
    /// What some of them came to.
    pub consequences: BTreeMap<String, u64>,
    pub trace: u64,
}

fn timing(dice: &mut Dice) -> Timing {
    let (heartbeat, min, max) = *dice.pick(&[(50, 200, 400), (100, 400, 800), (250, 1000, 2000)]);
    Timing {
        heartbeat: Duration::from_millis(heartbeat),
        election_min: Duration::from_millis(min),
        election_max: Duration::from_millis(max),
    }
}

impl World {
    pub fn new(seed: u64) -> World {
        os::begin(seed);
        let mut dice = Dice::new(seed, 3);
        let trace = Trace::default();
        let network = Network::new(seed, trace.clone());
        keelfs::net::dial_through(Rc::new(network.clone()));
        let diary = Diary::new(trace);
        let away = Dice::new(seed, 5).chance(AWAY_PERCENT);
        let locks = Dice::new(seed, 4).chance(LOCKS_PERCENT) || away;
        diary.with(|pages| pages.locks = locks);
        let hosts: Vec<Host> = (1..FIRST_NEWCOMER + NEWCOMERS_MAX).collect();
        let safety_ms = *dice.pick(&[14_000, 20_000, 40_000]);
        let safety_ms = if away { AWAY_SAFETY_MS } else { safety_ms };
        let site = Site {
            seed,
            network: network.clone(),
            timing: timing(&mut dice),
            diary,
            founded: false,
            programs: PROGRAMS,
        };
        let mut world = World {
            nodes: (1..=NODES).map(|id| Node::new(id, id, node::founders(), seed)).collect(),
            outsiders: Vec::new(),
            volumes: Vec::new(),
            desk: Desk::default(),
            nemesis: Nemesis::new(seed, safety_ms, hosts, away),
            invariants: Invariants::default(),
            consequences: BTreeMap::new(),
            site,
            dice,
            safety_ms,
            answered: (None, None),
        };
        (NODES + 1..=NODES + OUTSIDERS).for_each(|host| world.add_outsider(host));
        world.hire_operator();
        world
    }

    /// Of any founder, and then of the others.
    fn client(&mut self) -> Client {
        let first = self.dice.below(NODES);
        let addresses = (0..NODES).map(|node| network::address(1 + (first + node) % NODES)).collect();
        Client::new(addresses, node::cluster_id()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn add_outsider(&mut self, host: Host) {
        self.site.network.power_on(host);
        let machine = Machine::new(host);
        let client = self.client();
        let (diary, dice) = (self.site.diary.clone(), Dice::new(self.site.seed, 500 + host));
        let volume = machine.within(&self.site.network, 0, || {
            let volume = client.volume(&format!("outsider {host}"));
            clients::start(&volume, host * 10, PROGRAMS, &diary, &dice);
            volume
        });
        self.outsiders.push(machine);
        self.volumes.push(volume);
    }

    /// On the first machine without data.
    fn hire_operator(&mut self) {
        let client = self.client();
        self.outsiders[0]
            .within(&self.site.network, 0, || drop(tokio::spawn(operator::run(client, self.desk.clone()))));
    }

    pub fn run(mut self) -> Outcome {
        let held = self.play();
        let lost = self.site.diary.with(|pages| pages.sessions_lost);
        *self.consequences.entry("lost the session that held a lock".into()).or_default() += lost;
        let mut outcome = Outcome {
            broken: held.err(),
            void: None,
            simulated_ms: os::now_ms(),
            operations: self.site.diary.operations(),
            answered: self.site.diary.answered().sum(),
            amid_faults: self.amid_faults().by_kind(),
            entries: self.invariants.state_machine_safety.entries() as u64,
            leaders: self.invariants.election_safety.leaders() as u64,
            faults: self.nemesis.happened.iter().map(|(fault, count)| (format!("{fault:?}"), *count)).collect(),
            consequences: self.consequences.clone(),
            trace: self.site.diary.trace.hash(),
        };
        if outcome.broken.is_none() {
            outcome.void = self.void();
        }
        // The runtimes are not ended in order: the process ends here.
        std::mem::take(&mut self.nodes).into_iter().for_each(drop);
        outcome
    }

    fn amid_faults(&self) -> Answered {
        let (before, by_then) = self.answered;
        let by_then = by_then.unwrap_or_else(|| self.site.diary.answered());
        before.map_or(Answered::default(), |before| by_then.since(before))
    }

    fn void(&self) -> Option<String> {
        let missed = self.nemesis.missed();
        if !missed.is_empty() {
            return Some(format!("planned, and never happened: {missed:?}"));
        }
        let (had, least) = (self.amid_faults().sum(), self.safety_ms / ANSWER_EVERY_MS);
        (had < least).then(|| format!("amid the faults clients had {had} answers, of at least {least}"))
    }

    fn play(&mut self) -> Held {
        while os::now_ms() < self.safety_ms {
            self.tick(true)?;
            if os::now_ms() % HISTORY_EVERY_MS < TICK_MS {
                self.invariants.so_far(&self.site.diary)?;
            }
        }
        // A fault that has found nothing to do yet has some more time; so has a cluster that is to answer with no help of ours.
        while self.void().is_some() && os::now_ms() < self.safety_ms + MORE_MS {
            self.tick(true)?;
        }
        self.nemesis.heal(&mut Targets {
            nodes: &mut self.nodes,
            outsiders: &mut self.outsiders,
            network: &self.site.network,
            desk: &self.desk,
        });
        self.answered.1 = Some(self.site.diary.answered());
        let healed = os::now_ms();
        while os::now_ms() < healed + LIVENESS_MS {
            self.tick(false)?;
            let last_call = os::now_ms() > healed + SETTLE_MS;
            self.site.diary.with(|pages| pages.last_call |= last_call);
            if last_call && self.unfinished().is_none() {
                return self.invariants.in_the_end(&self.site.diary, &self.replicas());
            }
        }
        // What clients saw may say why.
        self.invariants.in_the_end(&self.site.diary, &self.replicas())?;
        Err(format!(
            "liveness: {} s after all was healed, {}",
            LIVENESS_MS / 1000,
            self.unfinished().unwrap_or_default()
        ))
    }

    fn replicas(&self) -> Vec<(NodeId, Replica)> {
        self.nodes.iter().filter_map(|node| Some((node.id, node.replica()?))).collect()
    }

    /// What is still to come: clients, nodes, equal states.
    fn unfinished(&self) -> Option<String> {
        let waiting: Vec<u64> =
            self.site.diary.with(|pages| pages.clients.difference(&pages.finished).copied().collect());
        if !waiting.is_empty() {
            return Some(format!("clients {waiting:?} have not finished"));
        }
        if self.desk.is_busy() {
            return Some("the operator has not carried out its order".into());
        }
        let (replicas, all) = (self.replicas(), self.nodes.len());
        let refused = self.nodes.iter().filter(|node| matches!(node.standing, Standing::Refused)).count();
        let removed = self.nodes.iter().filter(|node| matches!(node.standing, Standing::Removed)).count();
        if replicas.len() + refused + removed < all || refused > 1 {
            return Some(format!("{} of {all} nodes run, {refused} refuse to, {removed} are removed", replicas.len()));
        }
        let states: Vec<_> = replicas.iter().map(|(node, replica)| (node, replica.state())).collect();
        let applied: Vec<_> = states.iter().map(|(node, state)| (**node, state.applied().0)).collect();
        let equal = states
            .windows(2)
            .all(|pair| pair[0].1.applied() == pair[1].1.applied() && pair[0].1.hash() == pair[1].1.hash());
        if !equal {
            return Some(format!("the nodes have applied up to {applied:?}, or differ"));
        }
        // Of processes that have ended they are held until their sessions end.
        let held = locks::are_free(&replicas).err();
        held.or_else(|| expiry::late(&self.site.diary, &replicas))
    }

    fn tick(&mut self, faults: bool) -> Held {
        os::set_now_ms(os::now_ms() + TICK_MS);
        self.site.network.deliver();
        if faults {
            self.nemesis.step(&mut Targets {
                nodes: &mut self.nodes,
                outsiders: &mut self.outsiders,
                network: &self.site.network,
                desk: &self.desk,
            });
            if self.answered.0.is_none() && self.nemesis.has_begun() {
                self.answered.0 = Some(self.site.diary.answered());
            }
            self.forget_dead_clients();
        }
        for number in 0..self.nodes.len() {
            self.tick_node(number)?;
        }
        self.set_up_newcomers();
        for machine in &mut self.outsiders {
            machine.tick(&self.site.network, 0, TICK_MS);
        }
        if let Some(panicked) = crate::panicked() {
            return Err(format!("a panic: {panicked}"));
        }
        match self.site.diary.with(|pages| pages.seen_wrong.first().cloned()) {
            Some(wrong) => Err(format!("a client saw what must not be: {wrong}")),
            None => Ok(()),
        }
    }

    /// What the operator was promised: a machine with an empty disk, which has been told who the members are.
    fn set_up_newcomers(&mut self) {
        while let Some(new) = self.desk.next_newcomer() {
            self.site.diary.trace.note("newcomer", &[new.id, new.host]);
            self.nodes.push(Node::new(new.id, new.host, new.members, self.site.seed));
        }
    }

    /// Clients end with the process that they are part of.
    fn forget_dead_clients(&mut self) {
        let up: Vec<Host> = self.nodes.iter().filter(|node| node.process().is_some()).map(|node| node.host).collect();
        let lives = |host: Host| node::is_outsider(host) || up.contains(&host);
        self.site.diary.with(|pages| pages.clients.retain(|client| lives(client / 10)));
    }

    fn tick_node(&mut self, number: usize) -> Held {
        let now = os::now_ms();
        let node = &mut self.nodes[number];
        match &node.standing {
            Standing::Refused | Standing::Removed => return Ok(()),
            Standing::Down { until_ms } if now < *until_ms => return Ok(()),
            Standing::Down { .. } => return self.boot(number),
            Standing::Up(_) => {}
        }
        let pumped = node.step(&self.site.network, TICK_MS);
        let Some(process) = node.process() else { return Ok(()) };
        if node.disk.is_off() {
            // What it was asked to truncate may be gone already.
            self.invariants.look_at_log(node.id, &process.log)?;
            let survival = Survival::Random(self.dice.any());
            node.crash(&self.site.network, Some(survival), now + self.dice.between(20, 1500));
            self.forget_dead_clients();
            self.count("power went in mid-write");
            return Ok(());
        }
        let expelled = process.told.lock().expelled.clone();
        if expelled.is_some() || self.desk.is_given_up(node.id) {
            return self.gone(number, expelled);
        }
        let failed = process.told.lock().failed.clone();
        if let Some(why) = failed {
            // So may what was truncated in the batch whose sync has failed: the next process finds it done.
            self.invariants.look_at_log(node.id, &process.log)?;
            return self.exited(number, &why);
        }
        match pumped {
            true => self.invariants.pumped(node.id, &process.log)?,
            false => self.invariants.look_at_log(node.id, &process.log)?,
        }
        if pumped && node.is_cut_after_vote() {
            node.crash(&self.site.network, Some(Survival::Nothing), now + self.dice.between(20, 1500));
            self.forget_dead_clients();
            self.count("power went after a vote");
            return Ok(());
        }
        let Some(process) = node.process() else { return Ok(()) };
        if now % ROLES_EVERY_MS < TICK_MS
            && let Some(replica) = node.replica()
        {
            self.invariants.look_at_replica(node.id, node.incarnation, &process.log, &replica)?;
            if now % CHECK_EVERY_MS < TICK_MS {
                self.invariants.look_at_state(node.id, &replica)?;
                node.members = replica.members();
            }
        }
        Ok(())
    }

    fn boot(&mut self, number: usize) -> Held {
        let node = &mut self.nodes[number];
        match node.boot(&mut self.site) {
            Ok(()) => {
                let Some(process) = node.process() else { return Ok(()) };
                self.invariants.opened(node.id, &process.log)
            }
            Err(StorageError::Damaged { .. }) if node.rotten => {
                node.standing = Standing::Refused;
                self.count("refused to start: rot");
                Ok(())
            }
            Err(error @ StorageError::Io { .. }) if node.disk.is_off() || node.is_excuse(&error.to_string()) => {
                // No space, a write or sync that fails, or the power went again.
                self.site.diary.trace.tell(|| format!("node {} does not start: {error}", node.id));
                let power = node.disk.is_off().then(|| Survival::Random(self.dice.any()));
                node.crash(&self.site.network, power, os::now_ms() + 300);
                Ok(())
            }
            Err(error) => Err(format!("node {} does not start, for no reason: {error}", node.id)),
        }
    }

    /// It may never again take part: right only for a node that was removed.
    fn gone(&mut self, number: usize, expelled: Option<Expulsion>) -> Held {
        let node = &mut self.nodes[number];
        match expelled {
            Some(Expulsion { removed: true, .. }) if self.desk.is_leaving(node.id) => {}
            Some(expulsion) => return Err(format!("identity: node {} was expelled: {}", node.id, expulsion.why)),
            None => {}
        }
        node.crash(&self.site.network, None, u64::MAX);
        node.standing = Standing::Removed;
        self.site.diary.trace.note("removed", &[node.id]);
        self.forget_dead_clients();
        self.count("were removed");
        Ok(())
    }

    /// What the faults came to.
    fn count(&mut self, what: &str) {
        *self.consequences.entry(what.into()).or_default() += 1;
    }

    /// The process has ended by itself, because its disk or its Raft failed.
    fn exited(&mut self, number: usize, why: &str) -> Held {
        let node = &mut self.nodes[number];
        self.site.diary.trace.note("exited", &[node.id]);
        self.site.diary.trace.tell(|| format!("node {} has ended: {why}", node.id));
        let what = match (node.is_excuse(why), node.rotten) {
            (true, _) if why.contains("No space left") => "ended: no space",
            (true, _) => "ended: its disk failed",
            (false, true) if !why.starts_with(node::DIVERGED) => "ended: rot",
            _ => return Err(format!("node {} ended for no reason: {why}", node.id)),
        };
        self.count(what);
        let node = &mut self.nodes[number];
        // It ended with the exit code that says that a restart does not help.
        if node.rotten && why.contains("no good copy could be had") {
            node.crash(&self.site.network, None, u64::MAX);
            node.standing = Standing::Refused;
            self.forget_dead_clients();
            return Ok(());
        }
        let until = os::now_ms() + self.dice.between(200, 2000);
        // Often the machine is restarted as well, and then a failed sync has really lost something.
        let power = self.dice.chance(50).then(|| Survival::Random(self.dice.any()));
        node.crash(&self.site.network, power, until);
        self.forget_dead_clients();
        Ok(())
    }
}
