//! Outcomes as lines of text: from the process of a run to whoever started it, and to people.

use crate::world::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn line(outcome: &Outcome) -> Value {
    json!({
        "broken": outcome.broken, "void": outcome.void, "simulated_ms": outcome.simulated_ms,
        "operations": outcome.operations, "answered": outcome.answered, "amid_faults": outcome.amid_faults, "entries": outcome.entries,
        "leaders": outcome.leaders, "faults": outcome.faults, "consequences": outcome.consequences, "trace": outcome.trace,
    })
}

/// The opposite; a process that said nothing has failed.
pub fn parse(text: &str) -> Option<Outcome> {
    let value: Value = serde_json::from_str(text.lines().last()?).ok()?;
    let number = |name: &str| value[name].as_u64();
    let words = |name: &str| value[name].as_str().map(str::to_owned);
    let counts = |name: &str| {
        let counts = value[name].as_object()?.iter();
        Some(counts.filter_map(|(kind, count)| Some((kind.clone(), count.as_u64()?))).collect())
    };
    Some(Outcome {
        broken: words("broken"),
        void: words("void"),
        simulated_ms: number("simulated_ms")?,
        operations: number("operations")?,
        answered: number("answered")?,
        amid_faults: counts("amid_faults")?,
        entries: number("entries")?,
        leaders: number("leaders")?,
        faults: counts("faults")?,
        consequences: counts("consequences")?,
        trace: number("trace")?,
    })
}

/// In so many runs everything that clients do has been answered amid faults at least once.
const SEEDS_FOR_ALL: u64 = 10;

#[derive(Default)]
pub struct Sum {
    pub seeds: u64,
    pub failed: Vec<u64>,
    simulated_ms: u64,
    operations: u64,
    answered: u64,
    amid_faults: BTreeMap<String, u64>,
    entries: u64,
    leaders: u64,
    faults: BTreeMap<String, u64>,
    consequences: BTreeMap<String, u64>,
}

impl Sum {
    pub fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_ms += outcome.simulated_ms;
        self.operations += outcome.operations;
        self.answered += outcome.answered;
        self.entries += outcome.entries;
        self.leaders += outcome.leaders;
        add(&mut self.faults, &outcome.faults);
        add(&mut self.consequences, &outcome.consequences);
        add(&mut self.amid_faults, &outcome.amid_faults);
        if outcome.broken.is_some() || outcome.void.is_some() {
            self.failed.push(seed);
        }
    }

    /// What clients do and were never answered amid faults, in so many runs that they should have been.
    pub fn unanswered(&self) -> Vec<&String> {
        let never = self.amid_faults.iter().filter(|(_, count)| **count == 0 && self.seeds >= SEEDS_FOR_ALL);
        never.map(|(kind, _)| kind).collect()
    }

    pub fn print(&self) {
        let faults: u64 = self.faults.values().sum();
        println!(
            "{} seeds, {:.2} simulated hours, {} operations ({} answered), {} entries applied, {} leaders, {faults} faults",
            self.seeds,
            self.simulated_ms as f64 / 3_600_000.0,
            self.operations,
            self.answered,
            self.entries,
            self.leaders
        );
        println!("faults: {}", list(&self.faults));
        println!("answered amid faults: {}", list(&self.amid_faults));
        println!("of nodes: {}", list(&self.consequences));
        match self.unanswered().as_slice() {
            [] => {}
            never => println!("VOID: amid faults nobody was answered about {never:?}"),
        }
        match self.failed.as_slice() {
            [] => println!("no violation"),
            failed => println!("FAILED seeds: {failed:?}"),
        }
    }
}

fn add(sum: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    more.iter().for_each(|(kind, count)| *sum.entry(kind.clone()).or_default() += count);
}

fn list(counts: &BTreeMap<String, u64>) -> String {
    counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}
