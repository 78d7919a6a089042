//! Random locks of both families, by processes on three mounts, against a model that knows nothing but single bytes.

use super::puppet::{Chance, Lock, Puppet, held};
use crate::common::{Cluster, rounds, wait_for};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::PathBuf;

const MOUNTS: u64 = 3;
const PROCESSES: usize = 6;
const SLOTS: usize = 3;
/// Of the file in the model; the last stands for all behind it.
const BYTES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// Of `fcntl` record locks.
    Process(usize),
    /// An open file description, with the process that has it.
    Description(usize, usize),
}

use Owner::{Description, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

type Holders = BTreeMap<Owner, Mode>;

#[derive(Default)]
struct Model {
    bytes: [Holders; BYTES],
    flocks: Holders,
    /// The description in each slot of each process.
    slots: [[Option<usize>; SLOTS]; PROCESSES],
    descriptions: usize,
}

/// First and last byte.
type Range = (usize, usize);

impl Owner {
    fn process(self) -> usize {
        match self {
            Process(process) | Description(process, _) => process,
        }
    }
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Mode::Shared => "shared",
            Mode::Exclusive => "exclusive",
        }
    }
}

fn clash(holders: &Holders, owner: Owner, mode: Mode) -> bool {
    holders.iter().any(|(other, held)| *other != owner && (mode == Mode::Exclusive || *held == Mode::Exclusive))
}

fn set(holders: &mut Holders, owner: Owner, mode: Option<Mode>) {
    match mode {
        Some(mode) => holders.insert(owner, mode),
        None => holders.remove(&owner),
    };
}

impl Model {
    /// `false`: refused. `None` unlocks.
    fn lock(&mut self, owner: Owner, (first, last): Range, mode: Option<Mode>) -> bool {
        let bytes = &mut self.bytes[first..=last];
        let refused = mode.is_some_and(|mode| bytes.iter().any(|holders| clash(holders, owner, mode)));
        if !refused {
            bytes.iter_mut().for_each(|holders| set(holders, owner, mode));
        }
        !refused
    }

    fn flock(&mut self, owner: Owner, mode: Option<Mode>) -> bool {
        let refused = mode.is_some_and(|mode| clash(&self.flocks, owner, mode));
        if !refused {
            set(&mut self.flocks, owner, mode);
        }
        !refused
    }

    /// The locks of whole descriptions are gone some time after the close: `true` if it is the last one.
    fn close(&mut self, process: usize, slot: usize) -> bool {
        let description = self.slots[process][slot].take();
        let last = !self.slots[process].contains(&description);
        let owner = Description(process, description.expect("an open slot"));
        for holders in &mut self.bytes {
            holders.retain(|held, _| *held != Process(process) && !(last && *held == owner));
        }
        self.flocks.retain(|held, _| !(last && *held == owner));
        last
    }

    fn open(&mut self, process: usize, slot: usize) {
        self.slots[process][slot] = Some(self.descriptions);
        self.descriptions += 1;
    }

    /// What each owner holds of the bytes: mode, first and last byte.
    fn runs(&self) -> Vec<(Owner, Mode, Range)> {
        let mut runs: Vec<(Owner, Mode, Range)> = Vec::new();
        for (byte, holders) in self.bytes.iter().enumerate() {
            for (owner, mode) in holders {
                let grows = |run: &&mut (Owner, Mode, Range)| (run.0, run.1, run.2.1 + 1) == (*owner, *mode, byte);
                match runs.iter_mut().find(grows) {
                    Some(run) => run.2.1 = byte,
                    None => runs.push((*owner, *mode, (byte, byte))),
                }
            }
        }
        runs
    }

    /// What `user.keelfs.locks` must show, sorted.
    fn shown(&self, pids: &[u32]) -> Vec<Lock> {
        let lock = |family: &str, owner: Owner, mode: Mode, (start, end): Range| Lock {
            pid: pids[owner.process()],
            family: family.to_owned(),
            mode: mode.word().to_owned(),
            start: start as u64,
            end: if end == BYTES - 1 { u64::MAX } else { end as u64 },
        };
        let ranges = self.runs().into_iter().map(|(owner, mode, range)| lock("posix", owner, mode, range));
        let flocks = self.flocks.iter().map(|(owner, mode)| lock("flock", *owner, *mode, (0, BYTES - 1)));
        let mut shown: Vec<Lock> = ranges.chain(flocks).collect();
        shown.sort();
        shown
    }
}

/// The model and what it is held against.
struct Pair {
    model: Model,
    processes: Vec<Puppet>,
    /// The file, on the mount of each process.
    paths: Vec<PathBuf>,
    chance: Chance,
    refused: usize,
}

/// `KEELFS_LOCK_STEPS` says how many; `KEELFS_LOCK_SEED` which.
/// Holds [L1].
pub fn random_locks_are_those_of_the_model(cluster: &Cluster) {
    let paths: Vec<_> = (0..PROCESSES as u64).map(|n| cluster.at(n % MOUNTS + 1).join("ranges")).collect();
    std::fs::write(&paths[0], "").expect("a write");
    let processes = paths.iter().map(|_| Puppet::start()).collect();
    let chance = Chance::new("KEELFS_LOCK_SEED");
    let mut pair = Pair { model: Model::default(), processes, paths, chance, refused: 0 };
    let steps = rounds("KEELFS_LOCK_STEPS", 400);
    (0..steps).for_each(|_| pair.step());
    assert!(pair.refused > 0, "the processes never met: nothing was tested");
    println!("{steps} random steps, {} locks refused, all as in the model", pair.refused);
}

impl Pair {
    fn step(&mut self) {
        let process = self.chance.below(PROCESSES);
        let slot = self.chance.below(SLOTS);
        let lasting = match self.model.slots[process][slot] {
            None => {
                self.open(process, slot);
                false
            }
            Some(_) if self.chance.below(10) == 0 => self.close(process, slot),
            Some(description) => {
                self.ask(process, slot, Description(process, description));
                false
            }
        };
        self.compare(lasting);
    }

    fn order(&mut self, process: usize, order: &str) -> Result<String, Errno> {
        let answer = self.processes[process].ask(order);
        println!("process {process}: {order}: {answer:?}");
        answer
    }

    /// Anew, or as a copy of another slot.
    fn open(&mut self, process: usize, slot: usize) {
        let from = self.chance.below(SLOTS);
        let order = match self.model.slots[process][from] {
            Some(description) => {
                self.model.slots[process][slot] = Some(description);
                format!("dup {from} {slot}")
            }
            None => {
                self.model.open(process, slot);
                format!("open {slot} {}", self.paths[process].display())
            }
        };
        self.order(process, &order).expect("an open file");
    }

    fn close(&mut self, process: usize, slot: usize) -> bool {
        self.order(process, &format!("close {slot}")).expect("a close");
        self.model.close(process, slot)
    }

    fn ask(&mut self, process: usize, slot: usize, description: Owner) {
        let (a, b) = (self.chance.below(BYTES), self.chance.below(BYTES));
        let range = (a.min(b), a.max(b));
        let mode = *self.chance.of(&[None, Some(Mode::Shared), Some(Mode::Shared), Some(Mode::Exclusive)]);
        match self.chance.below(10) {
            0..4 => self.lock(process, slot, "posix", Process(process), range, mode),
            4..7 => self.lock(process, slot, "ofd", description, range, mode),
            7 => self.flock(process, slot, description, mode),
            8 => self.getlk(process, slot, "posix", Process(process), range, mode),
            _ => self.getlk(process, slot, "ofd", description, range, mode),
        }
    }

    fn lock(&mut self, process: usize, slot: usize, family: &str, owner: Owner, range: Range, mode: Option<Mode>) {
        let word = mode.map_or("unlock", Mode::word);
        let answer = self.order(process, &format!("{family} {slot} {word} {} try", words(range)));
        let granted = self.model.lock(owner, range, mode);
        self.expect_lock(granted, answer);
    }

    fn flock(&mut self, process: usize, slot: usize, owner: Owner, mode: Option<Mode>) {
        let word = mode.map_or("unlock", Mode::word);
        let answer = self.order(process, &format!("flock {slot} {word} try"));
        let granted = self.model.flock(owner, mode);
        self.expect_lock(granted, answer);
    }

    fn expect_lock(&mut self, granted: bool, answer: Result<String, Errno>) {
        self.refused += !granted as usize;
        assert_eq!(answer, if granted { Ok(String::new()) } else { Err(Errno::AGAIN) });
    }

    /// The first lock in the way, or one of those that begin there.
    fn getlk(&mut self, process: usize, slot: usize, family: &str, owner: Owner, range: Range, mode: Option<Mode>) {
        let mode = mode.unwrap_or(Mode::Exclusive);
        let answer = self.order(process, &format!("getlk {family} {slot} {} {}", mode.word(), words(range)));
        let mut in_the_way = self.model.runs();
        in_the_way.retain(|(other, held, (first, last))| {
            let met = *first <= range.1 && range.0 <= *last;
            met && clash(&Holders::from([(*other, *held)]), owner, mode)
        });
        let first = in_the_way.iter().map(|(.., (first, _))| *first).min();
        let told = |(other, held, told): &(Owner, Mode, Range)| {
            // Whoever asks for a description is told of no process.
            let pid = if family == "ofd" { -1 } else { self.processes[other.process()].pid() as i64 };
            format!("{} {} {pid}", held.word(), words(*told))
        };
        let expected: Vec<String> = match first {
            None => vec!["free".to_owned()],
            Some(_) => in_the_way.iter().filter(|(.., (start, _))| Some(*start) == first).map(told).collect(),
        };
        assert!(expected.contains(&answer.expect("an answer")), "expected one of {expected:?}");
    }

    /// `lasting`: what was given back may take a while to be so.
    fn compare(&mut self, lasting: bool) {
        let pids: Vec<u32> = self.processes.iter().map(Puppet::pid).collect();
        let path = self.chance.of(&self.paths).clone();
        let expected = self.model.shown(&pids);
        let shown = || {
            let mut shown = held(&path);
            shown.sort();
            shown
        };
        if lasting {
            wait_for("the locks of a closed file to be gone", || (shown() == expected).then_some(()));
        }
        assert_eq!(shown(), expected, "the pids are {pids:?}");
    }
}

/// Start and length as `fcntl` counts it.
fn words((first, last): Range) -> String {
    let length = if last == BYTES - 1 { 0 } else { last - first + 1 };
    format!("{first} {length}")
}
