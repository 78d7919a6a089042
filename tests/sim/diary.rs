//! What clients did and saw: the only thing that the black-box invariants know.
//!
//! Times are those of the world, in milliseconds. A machine runs a whole tick at once, so a call begins at the start of
//! its tick and ends at the end of it: two calls are in order only if they certainly were.

use crate::linearizable::Call;
use crate::network::TICK_MS;
use crate::os;
use crate::register;
use crate::trace::Trace;
use keelfs::fs::{LockOwner, LockRange};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The calls of one kind, by the object that they are about.
pub struct Book<I, O> {
    calls: Vec<(u64, Option<Call<I, O>>)>,
}

impl<I, O> Default for Book<I, O> {
    fn default() -> Book<I, O> {
        Book { calls: Vec::new() }
    }
}

/// A call that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Begun(usize);

impl<I: Clone, O: Clone> Book<I, O> {
    pub fn begin(&mut self, object: u64, client: u64, input: I) -> Begun {
        let call = Call { client, begin: os::now_ms(), input, end: None };
        self.calls.push((object, Some(call)));
        Begun(self.calls.len() - 1)
    }

    pub fn end(&mut self, begun: Begun, output: O) {
        if let Some((_, Some(call))) = self.calls.get_mut(begun.0) {
            call.end = Some((os::now_ms() + TICK_MS, output));
        }
    }

    /// It certainly did not take place.
    pub fn void(&mut self, begun: Begun) {
        if let Some((_, call)) = self.calls.get_mut(begun.0) {
            *call = None;
        }
    }

    pub fn by_object(&self) -> BTreeMap<u64, Vec<Call<I, O>>> {
        let mut objects: BTreeMap<u64, Vec<Call<I, O>>> = BTreeMap::new();
        for (object, call) in &self.calls {
            if let Some(call) = call {
                objects.entry(*object).or_default().push(call.clone());
            }
        }
        objects
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn answered(&self) -> u64 {
        self.calls.iter().filter(|(_, call)| call.as_ref().is_some_and(|call| call.end.is_some())).count() as u64
    }
}

/// Answers that clients have had, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    pub registers: u64,
    pub names: u64,
    pub appends: u64,
    pub append_reads: u64,
    pub walks: u64,
    pub renewals: u64,
    pub expiries: u64,
    pub tenures: u64,
}

impl Answered {
    pub fn since(self, before: Answered) -> Answered {
        Answered {
            registers: self.registers - before.registers,
            names: self.names - before.names,
            appends: self.appends - before.appends,
            append_reads: self.append_reads - before.append_reads,
            walks: self.walks - before.walks,
            renewals: self.renewals - before.renewals,
            expiries: self.expiries - before.expiries,
            tenures: self.tenures - before.tenures,
        }
    }

    pub fn by_kind(self) -> BTreeMap<String, u64> {
        let kinds = [
            ("registers", self.registers),
            ("names", self.names),
            ("appends", self.appends),
            ("reads of appends", self.append_reads),
            ("walks", self.walks),
            ("renewals", self.renewals),
            ("expiries", self.expiries),
            ("locks", self.tenures),
        ];
        kinds.map(|(kind, count)| (kind.to_owned(), count)).into()
    }

    pub fn sum(self) -> u64 {
        self.by_kind().values().sum()
    }
}

/// A change that was acknowledged: the entry that made it, and a checksum of the bytes that went with it.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub client: u64,
    pub index: u64,
    pub body_sum: u32,
}

/// A lock, and when it was certainly held.
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    pub file: u64,
    pub owner: LockOwner,
    pub range: LockRange,
    pub exclusive: bool,
    pub generation: u64,
    /// Not granted before this.
    pub asked_ms: u64,
    /// Granted by then.
    pub from_ms: u64,
    /// Not given back before this, nor lost with its session.
    pub until_ms: u64,
}

/// A name and what it means: its inode.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NameInput {
    Make,
    Look,
    /// Only if it means this inode.
    Unlink(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameOutput {
    Inode(u64),
    Absent,
    Taken,
    Removed,
    Raced,
}

#[derive(Default)]
pub struct Pages {
    pub registers: Book<register::Input, register::Output>,
    pub names: Book<NameInput, NameOutput>,
    /// Of tokens that are appended to one file, and what readers of it saw.
    pub appends: Book<u64, ()>,
    pub append_reads: Book<(), Vec<u64>>,
    pub acknowledged: Vec<Acknowledged>,
    /// When each expiring file may end at the earliest, by the name that its client gave it.
    pub expiring: BTreeMap<String, u64>,
    pub expiries_seen: u64,
    pub renewals: u64,
    pub walks: u64,
    /// Locks are taken in this run.
    pub locks: bool,
    pub tenures: Vec<Tenure>,
    /// Holders of a lock who were told that their session had ended.
    pub sessions_lost: u64,
    /// What a client saw that must not be.
    pub seen_wrong: Vec<String>,
    /// Clients that live, and those that have finished in the end.
    pub clients: BTreeSet<u64>,
    pub finished: BTreeSet<u64>,
    pub last_call: bool,
}

#[derive(Clone, Default)]
pub struct Diary {
    pages: Arc<Mutex<Pages>>,
    pub trace: Trace,
}

impl Diary {
    pub fn new(trace: Trace) -> Diary {
        Diary { pages: Arc::default(), trace }
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Pages) -> T) -> T {
        look(&mut self.pages.lock())
    }

    pub fn operations(&self) -> u64 {
        self.with(|pages| {
            let Pages { registers, names, appends, append_reads, .. } = pages;
            let others = (pages.expiries_seen + pages.renewals + pages.walks) as usize + pages.tenures.len();
            (registers.len() + names.len() + appends.len() + append_reads.len() + others) as u64
        })
    }

    pub fn answered(&self) -> Answered {
        self.with(|pages| Answered {
            registers: pages.registers.answered(),
            names: pages.names.answered(),
            appends: pages.appends.answered(),
            append_reads: pages.append_reads.answered(),
            walks: pages.walks,
            renewals: pages.renewals,
            expiries: pages.expiries_seen,
            tenures: pages.tenures.len() as u64,
        })
    }
}
