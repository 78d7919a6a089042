//! A log on a simulated disk beside a model of what it must hold.
//!
//! The model keeps one state per record that the log was told to write. After a crash the log must equal one of these
//! states, no earlier than the last acknowledged one: nothing acknowledged is lost, nothing is half there, nothing is
//! reordered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::super::simulated::{SimulatedDisk, Survival};
use super::super::{Body, Done, Entry, EntryId, Log, Options, StorageError, Threading};
use super::{body, entry};

#[derive(Clone, Debug, Default)]
pub struct State {
    pub entries: BTreeMap<u64, Entry>,
    pub purged: Option<EntryId>,
    pub vote: Option<Bytes>,
    bodies: BTreeMap<u64, Bytes>,
    imports: BTreeMap<u64, Bytes>,
}

impl State {
    pub fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    pub fn last(&self) -> Option<EntryId> {
        self.entries.values().next_back().map(|entry| entry.id).or(self.purged)
    }

    pub fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn id(&self, index: u64) -> Option<EntryId> {
        self.entries.get(&index).map(|e| e.id).or(self.purged.filter(|purged| purged.index == index))
    }

    /// Whether what was imported agrees with the entries up to here: else these were never committed, and Raft would
    /// not purge them.
    fn is_true_upto(&self, index: u64) -> bool {
        self.entries
            .range(..=index)
            .all(|(index, entry)| self.imports.get(index).is_none_or(|import| import == body(entry)))
    }

    fn body(&self, index: u64) -> Option<&Bytes> {
        let own = self.entries.get(&index).map(body).filter(|body| !body.is_empty());
        own.or_else(|| self.imports.get(&index)).or_else(|| self.bodies.get(&index))
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    /// Commands and bodies of these sizes.
    Append(Vec<(usize, usize)>),
    Vote,
    /// Back by this many entries, but not below the committed one.
    Truncate(u64),
    /// Up to this many entries behind the first.
    Purge(u64),
    /// As after a snapshot install: this far ahead of the last entry.
    PurgeAhead(u64),
    /// To another entry of an index that the log holds, this far behind the first.
    PurgeOther(u64),
    Import(u64, usize),
    Commit,
    Snapshot(usize),
    /// Entries whose index has a remainder of 0 by this are live.
    Reclaim(u64),
    Pump,
    Restart,
}

pub struct Rig {
    pub disk: SimulatedDisk,
    log: Option<Log>,
    options: Options,
    pub states: Vec<State>,
    acknowledged: Arc<AtomicUsize>,
    term: u64,
    /// Declared dead once: may be there or not.
    dead: BTreeSet<u64>,
    /// Behind the last entry that was ever said to be committed, as far as the open log can know.
    committed_next: u64,
    snapshot: Option<(EntryId, usize)>,
    snapshots_tried: Vec<(EntryId, usize)>,
    pub opened: u64,
}

impl Rig {
    pub fn new(segment_bytes: u64) -> Rig {
        let options = Options { segment_bytes, cache_bytes: 40_000, seed: 7, threading: Threading::Pumped };
        Rig {
            disk: SimulatedDisk::new(),
            log: None,
            options,
            states: vec![State::default()],
            acknowledged: Arc::default(),
            term: 1,
            dead: BTreeSet::new(),
            committed_next: 0,
            snapshot: None,
            snapshots_tried: Vec::new(),
            opened: 0,
        }
    }

    pub fn state(&self) -> &State {
        &self.states[self.states.len() - 1]
    }

    pub fn log(&self) -> &Log {
        self.log.as_ref().expect("the log is open")
    }

    /// Forget the log without letting it write another byte.
    pub fn drop_log(&mut self) {
        self.log = None;
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub fn try_open(&mut self) -> Result<(), StorageError> {
        self.opened += 1;
        self.options.seed = self.opened;
        self.log = Some(Log::open_on(Arc::new(self.disk.clone()), self.options.clone())?);
        Ok(())
    }

    /// Open, crashing again and again if the power goes meanwhile.
    pub fn open(&mut self, survival: Survival) {
        while let Err(error) = self.try_open() {
            assert!(self.disk.is_off(), "refused to open without rot: {error}");
            self.disk = self.disk.crash(survival);
        }
        self.verify();
    }

    /// The same story up to here, on another disk: what became of this one in a crash.
    pub fn after(&self, survival: Survival) -> Rig {
        let mut branch = Rig {
            disk: self.disk.crash(survival),
            log: None,
            options: self.options.clone(),
            states: self.states.clone(),
            acknowledged: Arc::new(AtomicUsize::new(self.acknowledged())),
            term: self.term,
            dead: self.dead.clone(),
            committed_next: self.committed_next,
            snapshot: self.snapshot,
            snapshots_tried: self.snapshots_tried.clone(),
            opened: self.opened,
        };
        branch.open(survival);
        branch
    }

    pub fn crash(&mut self, survival: Survival) {
        self.disk = self.disk.crash(survival);
        self.drop_log();
        self.open(survival);
    }

    /// Only the process ends, and another one opens what it has written.
    pub fn kill(&mut self) {
        self.disk = self.disk.kill();
        self.drop_log();
        self.open(Survival::Nothing);
    }

    fn done(&self) -> Done {
        let (step, acknowledged) = (self.states.len() - 1, self.acknowledged.clone());
        Box::new(move |result| {
            if result.is_ok() {
                let before = acknowledged.fetch_max(step, Ordering::SeqCst);
                assert!(before <= step, "acknowledged out of order");
            }
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) {
        let mut next = self.state().clone();
        change(&mut next);
        self.states.push(next);
    }

    pub fn run(&mut self, op: &Op) {
        match op {
            Op::Append(sizes) => self.append(sizes),
            Op::Vote => {
                self.term += 1;
                let vote = Bytes::from(format!("vote {}", self.term));
                self.change(|state| state.vote = Some(vote.clone()));
                self.log().save_vote(vote, self.done());
            }
            Op::Truncate(back) => self.truncate(*back),
            Op::Purge(ahead) => {
                let index = self.state().first() + ahead;
                if let Some(id) = self.state().id(index).filter(|_| self.state().is_true_upto(index)) {
                    self.purge(id);
                }
            }
            Op::PurgeAhead(ahead) => {
                self.purge(EntryId { term: self.term, node: 9, index: self.state().next() + ahead })
            }
            Op::PurgeOther(ahead) => {
                self.term += 1;
                let index = self.state().first() + ahead;
                self.purge(EntryId { term: self.term, node: 9, index });
            }
            Op::Import(index, size) => self.import(*index, *size),
            Op::Commit => {
                let last = self.log().state().last.filter(|last| self.state().is_true_upto(last.index));
                self.committed_next = self.committed_next.max(last.map_or(0, |last| last.index + 1));
                if last.is_some() {
                    self.log().save_committed(last);
                }
            }
            Op::Snapshot(items) => self.write_snapshot(*items),
            Op::Reclaim(modulus) => self.reclaim(*modulus),
            Op::Pump => drop(self.log().pump()),
            Op::Restart => self.restart(),
        }
    }

    fn append(&mut self, sizes: &[(usize, usize)]) {
        let from = self.state().next();
        let entries: Vec<Entry> = sizes.iter().zip(from..).map(|(s, i)| entry(self.term, i, s.0, s.1)).collect();
        let imports = &self.state().imports;
        let truth = |entry: Entry| match imports.get(&entry.id.index).filter(|_| entry.id.term.is_multiple_of(2)) {
            Some(import) => Entry { body: Body::Bytes(import.clone()), ..entry },
            None => entry,
        };
        let entries: Vec<Entry> = entries.into_iter().map(truth).collect();
        for entry in &entries {
            self.change(|state| drop(state.entries.insert(entry.id.index, entry.clone())));
        }
        self.log().append(entries.clone(), self.done());
        if !self.disk.is_off() && !entries.is_empty() {
            assert_eq!(self.log().entries(from, u64::MAX, usize::MAX, true).unwrap(), entries);
        }
    }

    fn truncate(&mut self, back: u64) {
        let state = self.state();
        let floor = self.committed_next.max(state.first());
        let next = state.next().saturating_sub(back).max(floor.min(state.next()));
        let keep = next.checked_sub(1).and_then(|index| state.id(index));
        self.term += 1;
        self.change(|state| drop(state.entries.split_off(&next)));
        self.log().truncate_after(keep, self.done());
    }

    fn purge(&mut self, upto: EntryId) {
        let state = self.state();
        if state.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        if state.id(upto.index) != Some(upto) {
            let trusted = self.log().committed().map_or(0, |committed| committed.index + 1).max(state.first());
            self.committed_next = self.committed_next.min(trusted);
            self.change(|state| drop(state.entries.split_off(&trusted)));
        }
        self.change(|state| {
            let rest = state.entries.split_off(&(upto.index + 1));
            for (index, entry) in std::mem::replace(&mut state.entries, rest) {
                if !body(&entry).is_empty() {
                    state.bodies.insert(index, body(&entry).clone());
                }
            }
            state.purged = Some(upto);
        });
        self.log().purge(upto, self.done());
    }

    fn import(&mut self, index: u64, size: usize) {
        // The leader's body of an entry that is here too is the same, unless ours was never committed.
        let committed = index < self.committed_next;
        let imported = self.state().imports.get(&index);
        let bytes = match imported.or_else(|| self.state().body(index)) {
            Some(same) if imported.is_some() => same.clone(),
            Some(same) if committed || index < self.state().first() || size.is_multiple_of(2) => same.clone(),
            _ => body(&entry(99, index, 0, size.max(1))).clone(),
        };
        self.change(|state| drop(state.imports.insert(index, bytes.clone())));
        self.log().import_body(index, bytes, self.done());
    }

    fn write_snapshot(&mut self, items: usize) {
        let Some(last) = self.state().purged.filter(|last| self.snapshot.is_none_or(|old| old.0.index < last.index))
        else {
            return;
        };
        self.snapshots_tried.push((last, items));
        let (meta, bytes) = snapshot(last, items);
        if self.log().write_snapshot(last, meta, &mut bytes.map(Ok)).is_ok() {
            self.snapshot = Some((last, items));
        }
    }

    fn reclaim(&mut self, modulus: u64) {
        let purged_next = self.state().first();
        let dead = |index: &u64| !index.is_multiple_of(modulus);
        self.dead.extend((0..purged_next).filter(dead));
        let dead = self.dead.clone();
        let _ = self.log().reclaim(&|index| !dead.contains(&index));
    }

    fn restart(&mut self) {
        self.drop_log();
        if !self.disk.is_off() {
            self.acknowledged.store(self.states.len() - 1, Ordering::SeqCst);
        }
        if self.try_open().is_ok() {
            self.verify();
        }
    }

    /// The open log equals a state that is not older than what was acknowledged. The model goes on from it.
    pub fn verify(&mut self) {
        let acknowledged = self.acknowledged();
        let held = self.read_all();
        let fits = |state: &State| {
            (state.purged, state.last(), &state.vote) == (held.purged, held.last(), &held.vote)
                && state.entries == held.entries
        };
        // Bodies may tell two states apart that are equal else.
        let fitting: Vec<usize> = (acknowledged..self.states.len())
            .filter(|at| fits(&self.states[*at]) && self.bodies_fit(&self.states[*at]).is_ok())
            .collect();
        let Some(at) = fitting.last().copied() else { self.explain(&held, &fits) };
        // An import whose bytes were there anyway cannot be seen: it may have been lost or not.
        let unsure =
            self.states[at].imports.keys().filter(|import| !self.states[fitting[0]].imports.contains_key(import));
        self.dead.extend(unsure.copied().collect::<Vec<_>>());
        self.states.truncate(at + 1);
        self.acknowledged = Arc::new(AtomicUsize::new(at));
        let committed_next = self.log().committed().map_or(0, |committed| committed.index + 1);
        assert!(committed_next <= self.committed_next.max(held.first()));
        self.committed_next = committed_next;
        self.verify_snapshot();
    }

    fn explain(&self, held: &State, fits: &dyn Fn(&State) -> bool) -> ! {
        let acknowledged = self.acknowledged();
        let states = &self.states[acknowledged..];
        let bodies = states.iter().find(|state| fits(state)).map(|state| self.bodies_fit(state));
        let short = |state: &State| {
            format!("{:?} {:?} {:?} {:?}", state.purged, state.last(), state.vote, state.entries.keys())
        };
        let wanted: Vec<String> = states.iter().map(short).collect();
        panic!(
            "opening {}, {acknowledged} acknowledged: {bodies:?}\nheld {}\nwant {wanted:#?}",
            self.opened,
            short(held)
        );
    }

    fn read_all(&self) -> State {
        let log = self.log();
        let state = log.state();
        assert_eq!(state.last, state.durable, "what is there after opening is durable");
        let entries = log.entries(0, u64::MAX, usize::MAX, true).unwrap();
        let from = state.last_purged.map_or(0, |purged| purged.index + 1);
        entries.iter().zip(from..).for_each(|(entry, index)| assert_eq!(entry.id.index, index, "a hole"));
        let entries: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.id.index, entry)).collect();
        let held = State { entries, purged: state.last_purged, vote: log.vote(), ..State::default() };
        assert_eq!(held.last(), state.last);
        held
    }

    /// Every body is there with its bytes, or was declared dead.
    pub fn bodies_fit(&self, state: &State) -> Result<(), String> {
        for index in 0..state.next().max(state.imports.keys().next_back().map_or(0, |last| last + 1)) {
            let dead = self.dead.contains(&index) && !state.entries.contains_key(&index);
            let want = state.body(index);
            let got = match want {
                Some(want) => self.log().read_body(index, 0, want.len() as u32),
                None => self.log().read_body(index, 0, 0),
            };
            match (want, got) {
                (Some(want), Ok(got)) if *want == got => {}
                (None, Err(StorageError::NoBody { .. })) => {}
                (_, Err(StorageError::NoBody { .. })) if dead => {}
                (want, got) => {
                    return Err(format!(
                        "body {index}: want {:?}, got {:?}",
                        want.map(Bytes::len),
                        got.map(|b| b.len())
                    ));
                }
            }
        }
        Ok(())
    }

    fn verify_snapshot(&mut self) {
        let found = self.log().open_snapshot().unwrap().map(|reader| {
            let last = reader.last;
            let meta = reader.meta.clone();
            (last, meta, reader.collect::<Result<Vec<Bytes>, _>>().unwrap())
        });
        let held = found.map(|(last, meta, items)| {
            let (want_meta, want_items) = snapshot(last, items.len());
            assert_eq!((meta, items.clone()), (want_meta, want_items.collect()));
            (last, items.len())
        });
        let at = |snapshot: Option<(EntryId, usize)>| snapshot.map(|(last, _)| last.index);
        assert!(
            at(held) >= at(self.snapshot) && held.is_none_or(|held| self.snapshots_tried.contains(&held)),
            "{held:?}"
        );
        self.snapshot = held;
    }
}

/// A snapshot whose content follows from its last entry.
pub fn snapshot(last: EntryId, items: usize) -> (Bytes, impl Iterator<Item = Bytes>) {
    let meta = Bytes::from(format!("meta of {last:?}"));
    (meta, (0..items as u64).map(move |i| body(&entry(last.term, i, 0, 10 + 300 * i as usize)).clone()))
}
