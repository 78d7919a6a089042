//! Random operations on one file, through two mounts, against an array of bytes.
//!
//! Like fsx (Apple, 1991), with two sides: each operation goes through one of them, at random, and the other must agree
//! at once. Maps keep to their rule: a side looks at the attributes before it maps, and what it stores is synced before
//! anybody else looks. `KEELFS_SEED` and `KEELFS_POSIX_OPERATIONS` repeat or lengthen a run; a failure prints both and the
//! operations before it.

use crate::common::rounds;
use crate::ground::{Ground, content, difference};
use crate::system::{Map, allocate};
use rustix::fs::copy_file_range;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Debug, Formatter};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Largest file, in bytes: small, so that operations meet.
const FILE_MAX: usize = 256 << 10;
/// Most bytes of one operation.
const LENGTH_MAX: usize = 32 << 10;
/// Operations that a failure shows.
const SHOWN: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Write,
    Append,
    Read,
    Truncate,
    Extend,
    Reserve,
    Punch,
    Zero,
    ZeroKeepingSize,
    Copy,
    MapRead,
    MapWrite,
    Reopen,
}

/// How often each comes, relative to the others.
const WEIGHTS: [(Kind, u64); 13] = [
    (Kind::Write, 20),
    (Kind::Append, 8),
    (Kind::Read, 15),
    (Kind::Truncate, 8),
    (Kind::Extend, 3),
    (Kind::Reserve, 2),
    (Kind::Punch, 6),
    (Kind::Zero, 4),
    (Kind::ZeroKeepingSize, 3),
    (Kind::Copy, 8),
    (Kind::MapRead, 10),
    (Kind::MapWrite, 10),
    (Kind::Reopen, 3),
];

struct Step {
    side: usize,
    kind: Kind,
    /// Bytes of the file, or for a truncation its new end.
    range: Range<usize>,
    /// Where a copy goes.
    to: usize,
}

impl Debug for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let side = ["here", "there"][self.side];
        write!(f, "{:?} {side} {:?}", self.kind, self.range)?;
        if self.kind == Kind::Copy { write!(f, " to {}", self.to) } else { Ok(()) }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn kind(&mut self) -> Kind {
        let mut left = self.next() % WEIGHTS.iter().map(|(_, weight)| weight).sum::<u64>();
        for (kind, weight) in WEIGHTS {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        Kind::Read
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

struct Exerciser {
    paths: [PathBuf; 2],
    /// For everything but appends.
    files: [File; 2],
    appenders: [File; 2],
    model: Vec<u8>,
    random: Random,
    /// Operations that this file system does not have, and how often they were asked for.
    unsupported: BTreeMap<Kind, usize>,
}

pub fn a_model_agrees_after_every_step(ground: &Ground) {
    let operations = rounds("KEELFS_POSIX_OPERATIONS", 2000);
    let seed = rounds("KEELFS_SEED", 1);
    ground.note(format!("{operations} operations, KEELFS_SEED={seed}"));
    let mut exerciser = Exerciser::new(ground, seed as u64);
    let mut history: VecDeque<String> = VecDeque::new();
    for number in 0..operations {
        let step = exerciser.choose();
        history.push_back(format!("{number}: size {}, {step:?}", exerciser.model.len()));
        history.drain(..history.len().saturating_sub(SHOWN));
        if let Err(why) = exerciser.carry_out(&step).and_then(|()| exerciser.compare(number, operations)) {
            let shown = Vec::from(history).join("\n");
            panic!("KEELFS_SEED={seed}, operation {number} of {operations}: {why}\n{shown}");
        }
    }
    for (kind, times) in exerciser.unsupported {
        ground.note(format!("{kind:?} is not supported here and was left out {times} times"));
    }
}

impl Exerciser {
    fn new(ground: &Ground, seed: u64) -> Exerciser {
        let (here, there) = ground.both("file");
        File::create_new(&here).expect("a new file");
        let paths = [here, there];
        let files = paths.each_ref().map(|path| open(path, false));
        let appenders = paths.each_ref().map(|path| open(path, true));
        Exerciser { paths, files, appenders, model: Vec::new(), random: Random(seed), unsupported: BTreeMap::new() }
    }

    fn choose(&mut self) -> Step {
        let random = &mut self.random;
        let (side, mut kind) = (random.below(2), random.kind());
        let size = self.model.len();
        if size == 0 && matches!(kind, Kind::Read | Kind::Copy | Kind::MapRead | Kind::MapWrite) {
            kind = Kind::Write;
        }
        let length = 1 + random.below(LENGTH_MAX);
        let within = matches!(kind, Kind::Copy | Kind::MapRead | Kind::MapWrite);
        let start = random.below(if within { size } else { FILE_MAX - length });
        let mut range = start..start + length;
        if within {
            range.end = range.end.min(size);
        }
        let to = random.below(FILE_MAX - range.len());
        Step { side, kind, range, to }
    }

    /// Do it to the file and to the model.
    fn carry_out(&mut self, step: &Step) -> Result<(), String> {
        let (file, range) = (&self.files[step.side], step.range.clone());
        let failed = |error: std::io::Error| format!("{step:?}: {error}");
        match step.kind {
            Kind::Write => {
                let bytes = self.random.bytes(range.len());
                file.write_all_at(&bytes, range.start as u64).map_err(failed)?;
                put(&mut self.model, range.start, &bytes);
            }
            Kind::Append => self.append(step)?,
            Kind::Read => return self.read(step),
            Kind::Truncate => {
                file.set_len(range.start as u64).map_err(failed)?;
                self.model.resize(range.start, 0);
            }
            Kind::Extend | Kind::Reserve | Kind::Punch | Kind::Zero | Kind::ZeroKeepingSize => self.allocate(step)?,
            Kind::Copy => self.copy(step)?,
            Kind::MapRead => return self.map_read(step),
            Kind::MapWrite => self.map_write(step),
            Kind::Reopen => {
                self.files[step.side] = open(&self.paths[step.side], false);
                self.appenders[step.side] = open(&self.paths[step.side], true);
            }
        }
        Ok(())
    }

    fn append(&mut self, step: &Step) -> Result<(), String> {
        let room = FILE_MAX.saturating_sub(self.model.len());
        let bytes = self.random.bytes(step.range.len().min(room));
        self.appenders[step.side].write_all(&bytes).map_err(|error| format!("{step:?}: {error}"))?;
        self.model.extend_from_slice(&bytes);
        Ok(())
    }

    fn read(&self, step: &Step) -> Result<(), String> {
        let mut found = vec![0; step.range.len()];
        let mut length = 0;
        // a read may be short; at the end it is empty
        while length < found.len() {
            let at = (step.range.start + length) as u64;
            match self.files[step.side].read_at(&mut found[length..], at) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) => return Err(format!("{step:?}: {error}")),
            }
        }
        let size = self.model.len();
        let expected = &self.model[step.range.start.min(size)..step.range.end.min(size)];
        difference(&found[..length], expected).map_or(Ok(()), Err)
    }

    fn allocate(&mut self, step: &Step) -> Result<(), String> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let (mode, zeros, grows) = match step.kind {
            Kind::Extend => (0, false, true),
            Kind::Reserve => (keep, false, false),
            Kind::Punch => (libc::FALLOC_FL_PUNCH_HOLE | keep, true, false),
            Kind::Zero => (libc::FALLOC_FL_ZERO_RANGE, true, true),
            _ => (libc::FALLOC_FL_ZERO_RANGE | keep, true, false),
        };
        let (start, length) = (step.range.start as i64, step.range.len() as i64);
        match allocate(&self.files[step.side], mode, start, length) {
            Err(libc::EOPNOTSUPP) => {
                *self.unsupported.entry(step.kind).or_default() += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("{step:?}: {}", std::io::Error::from_raw_os_error(error))),
            Ok(()) => {}
        }
        if grows && self.model.len() < step.range.end {
            self.model.resize(step.range.end, 0);
        }
        let size = self.model.len();
        if zeros {
            self.model[step.range.start.min(size)..step.range.end.min(size)].fill(0);
        }
        Ok(())
    }

    /// Inside the file; a copy onto itself must be refused.
    fn copy(&mut self, step: &Step) -> Result<(), String> {
        let (file, mut from, mut to) = (&self.files[step.side], step.range.start as u64, step.to as u64);
        let outcome = copy_file_range(file, Some(&mut from), file, Some(&mut to), step.range.len());
        let overlaps = step.to < step.range.end && step.range.start < step.to + step.range.len();
        let copied = match (outcome, overlaps) {
            (Err(rustix::io::Errno::INVAL), true) => return Ok(()),
            (Ok(copied), true) => return Err(format!("{step:?} onto itself copied {copied} bytes")),
            (Err(error), _) => return Err(format!("{step:?}: {error}")),
            (Ok(copied), false) => copied,
        };
        if copied == 0 || copied > step.range.len() {
            return Err(format!("{step:?} copied {copied} bytes"));
        }
        let bytes = self.model[step.range.start..step.range.start + copied].to_vec();
        put(&mut self.model, step.to, &bytes);
        Ok(())
    }

    fn map(&self, step: &Step) -> Map {
        let file = &self.files[step.side];
        file.metadata().expect("its attributes");
        Map::shared(file, self.model.len())
    }

    fn map_read(&self, step: &Step) -> Result<(), String> {
        let found = self.map(step).read(step.range.start, step.range.len());
        difference(&found, &self.model[step.range.clone()]).map_or(Ok(()), Err)
    }

    fn map_write(&mut self, step: &Step) {
        let bytes = self.random.bytes(step.range.len());
        let map = self.map(step);
        map.write(step.range.start, &bytes);
        map.sync();
        put(&mut self.model, step.range.start, &bytes);
    }

    /// The size on both sides after every step, the whole content now and then and at the end.
    fn compare(&self, number: usize, operations: usize) -> Result<(), String> {
        for (file, side) in self.files.iter().zip(["here", "there"]) {
            let size = file.metadata().map_err(|error| format!("a stat {side}: {error}"))?.len();
            if size != self.model.len() as u64 {
                return Err(format!("the size {side} is {size}, expected {}", self.model.len()));
            }
            if (number.is_multiple_of(16) || number + 1 == operations)
                && let Some(difference) = difference(&content(file), &self.model)
            {
                return Err(format!("the content {side}: {difference}"));
            }
        }
        Ok(())
    }
}

fn open(path: &PathBuf, append: bool) -> File {
    OpenOptions::new().read(true).write(true).append(append).open(path).expect("an open")
}

fn put(model: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if model.len() < at + bytes.len() {
        model.resize(at + bytes.len(), 0);
    }
    model[at..at + bytes.len()].copy_from_slice(bytes);
}
