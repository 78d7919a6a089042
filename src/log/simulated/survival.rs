//! What is left of a simulated disk when the power goes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Inode, World, apply_name};

/// What a crash keeps or loses at once.
const SECTOR_BYTES: u64 = 512;

/// What survives of everything that was not synced when the power went.
#[derive(Clone, Copy, Debug)]
pub enum Survival {
    Nothing,
    Everything,
    /// In the order of the calls: this many bytes of writes, and all changes of names and lengths before them.
    Prefix(u64),
    /// Any subset of changes and of the sectors of writes.
    Random(u64),
    /// This subset: of the pieces that [`unsynced_pieces`](super::SimulatedDisk::unsynced_pieces) counts, in the order of the calls, those whose
    /// bit is set. The 65th goes with the first, and so on.
    Subset(u64),
}

impl World {
    pub(super) fn after_crash(&self, survival: Survival) -> World {
        let (names, capacity, fired) = (self.durable_names.clone(), self.capacity, self.fired);
        let mut next = World { names, capacity, fired, ..World::default() };
        let mut inodes = self.inodes.clone();
        let mut dice = Dice::new(match survival {
            Survival::Random(seed) => seed,
            _ => 0,
        });
        let mut left = match survival {
            Survival::Nothing => 0,
            Survival::Prefix(bytes) => bytes,
            _ => u64::MAX,
        };
        // How likely a change survives, in sixteenths; drawn once, so that all or nothing is common.
        let odds = [0, 2, 8, 14, 16][dice.below(5) as usize];
        let mut piece = 0;
        let mut survives = || {
            piece += 1;
            match survival {
                Survival::Subset(these) => these >> ((piece - 1) % 64) & 1 == 1,
                _ => dice.below(16) < odds,
            }
        };
        for change in &self.unsynced {
            match survival {
                Survival::Nothing => break,
                Survival::Prefix(_) if left == 0 && change.weight() > 0 => break,
                Survival::Random(_) | Survival::Subset(_) => next.survive_some(&mut inodes, change, &mut survives),
                _ => next.survive(&mut inodes, &prefix(change, left)),
            }
            left = left.saturating_sub(change.weight());
        }
        next.settle(inodes);
        next
    }

    fn survive(&mut self, inodes: &mut BTreeMap<u64, Inode>, change: &Change) {
        match change.inode() {
            Some(inode) => inodes.entry(inode).or_default().apply_durable(change),
            None => apply_name(&mut self.names, change),
        }
    }

    fn survive_some(
        &mut self,
        inodes: &mut BTreeMap<u64, Inode>,
        change: &Change,
        survives: &mut impl FnMut() -> bool,
    ) {
        match change {
            Change::Write { inode, offset, bytes } => {
                for (at, piece) in sectors(*offset, bytes) {
                    if survives() {
                        let piece = Change::Write { inode: *inode, offset: at, bytes: piece.to_vec() };
                        self.survive(inodes, &piece);
                    }
                }
            }
            other if survives() => self.survive(inodes, other),
            _ => {}
        }
    }

    /// What is durable is what the next process sees.
    fn settle(&mut self, inodes: BTreeMap<u64, Inode>) {
        self.durable_names = self.names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        for (number, mut inode) in inodes.into_iter().filter(|(number, _)| named.contains(number)) {
            inode.now = inode.durable.clone();
            inode.blocks.clear();
            inode.allocate(0, inode.now.len() as u64);
            self.inodes.insert(number, inode);
        }
        // A name may survive whose file never had a durable byte.
        for number in named {
            self.inodes.entry(number).or_default();
        }
    }
}

fn prefix(change: &Change, bytes_max: u64) -> Change {
    match change {
        Change::Write { inode, offset, bytes } => {
            let keep = (bytes.len() as u64).min(bytes_max) as usize;
            Change::Write { inode: *inode, offset: *offset, bytes: bytes[..keep].to_vec() }
        }
        other => other.clone(),
    }
}

/// The pieces of a write by sector of the file.
pub(super) fn sectors(offset: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut pieces = Vec::new();
    let (mut at, mut rest) = (offset, bytes);
    while !rest.is_empty() {
        let length = ((SECTOR_BYTES - at % SECTOR_BYTES) as usize).min(rest.len());
        let (piece, behind) = rest.split_at(length);
        pieces.push((at, piece));
        (at, rest) = (at + length as u64, behind);
    }
    pieces
}

/// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled".
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}
