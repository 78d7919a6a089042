//! A register with versions: what a file is to those who read, replace and compare-and-swap all of it.
//!
//! Versions are log indices: they rise with every change, but nobody knows by how much. A change whose outcome is unknown
//! leaves a version that is not known until somebody reads it.

use super::linearizable::{self, Call, Spec, Verdict};
use std::collections::HashSet;

/// A value stands for the whole content; 0: there is no such file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    Read,
    Write(u64),
    /// Replace the content if its version is this one.
    Cas {
        expected: u64,
        new: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The value and, if it was looked at in the same step, its version.
    Value(u64, Option<u64>),
    /// The version after the change, where the caller learns it.
    Written(Option<u64>),
    /// The version was another one; which, where the caller learns it.
    Mismatch(Option<u64>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub value: u64,
    /// The version, if anyone knows it.
    pub version: Option<u64>,
    /// The version is at least this.
    pub at_least: u64,
}

pub struct Register {
    pub initial: State,
}

/// Whether an order explains these calls of one register whose values are all different, as [`linearizable::check`] says.
///
/// First without the changes whose outcome nobody knows and whose value nobody saw: they need not have happened, and may
/// else stand anywhere, which makes the search long. Only if that explains nothing are they needed.
pub fn check(initial: State, calls: &[Call<Input, Output>], configurations_max: usize) -> Verdict {
    let seen: HashSet<u64> = calls.iter().filter_map(|call| call.end.as_ref()?.1.value()).collect();
    let counts =
        |call: &&Call<Input, Output>| call.end.is_some() || call.input.value().is_some_and(|v| seen.contains(&v));
    let told: Vec<_> = calls.iter().filter(counts).cloned().collect();
    let register = Register { initial };
    match linearizable::check(&register, &told, configurations_max) {
        Verdict::Linearizable => Verdict::Linearizable,
        _ => linearizable::check(&register, calls, configurations_max),
    }
}

impl Input {
    /// What it would make of the register.
    fn value(&self) -> Option<u64> {
        match self {
            Input::Read => None,
            Input::Write(new) | Input::Cas { new, .. } => Some(*new),
        }
    }
}

impl Output {
    /// What was seen in the register.
    fn value(&self) -> Option<u64> {
        match self {
            Output::Value(value, _) => Some(*value),
            Output::Written(_) | Output::Mismatch(_) => None,
        }
    }
}

impl Spec for Register {
    type State = State;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> State {
        self.initial.clone()
    }

    fn step(&self, state: &State, input: &Input, output: Option<&Output>) -> Option<State> {
        match (input, output) {
            (Input::Read, None) => Some(state.clone()),
            (Input::Read, Some(Output::Value(value, version))) => {
                (*value == state.value).then_some(())?;
                version.map_or(Some(state.clone()), |version| state.has(version))
            }
            (Input::Write(new), None) => Some(state.changed(*new, None)),
            (Input::Write(new), Some(Output::Written(version))) => state.written(*new, *version),
            // Unknown, or done: it is only done where the version is the expected one; else nothing changes.
            (Input::Cas { expected, new }, None) => {
                Some(state.has(*expected).map_or_else(|| state.clone(), |state| state.changed(*new, None)))
            }
            (Input::Cas { expected, new }, Some(Output::Written(version))) => {
                state.has(*expected)?.written(*new, *version)
            }
            (Input::Cas { expected, .. }, Some(Output::Mismatch(None))) => {
                (state.version != Some(*expected)).then(|| state.clone())
            }
            (Input::Cas { expected, .. }, Some(Output::Mismatch(Some(current)))) => {
                (current != expected).then(|| state.has(*current))?
            }
            _ => None,
        }
    }
}

impl State {
    /// The same state, if its version can be this one.
    fn has(&self, version: u64) -> Option<State> {
        let known = State { version: Some(version), ..self.clone() };
        match self.version {
            Some(known) if known != version => None,
            None if version < self.at_least => None,
            _ => Some(known),
        }
    }

    fn changed(&self, value: u64, version: Option<u64>) -> State {
        let at_least = version.unwrap_or(self.version.map_or(self.at_least, |version| version + 1));
        State { value, version, at_least }
    }

    fn written(&self, value: u64, version: Option<u64>) -> Option<State> {
        let least = self.version.map_or(self.at_least, |version| version + 1);
        version.is_none_or(|version| version >= least).then(|| self.changed(value, version))
    }
}
