//! What clients saw of files and names is linearizable, each by itself.
//!
//! Source: Herlihy and Wing, "Linearizability: A Correctness Condition for Concurrent Objects" (1990).

use super::Held;
use crate::diary::{Diary, NameInput, NameOutput};
use crate::linearizable::{Spec, Verdict, check};
use crate::register::{self, State};

const CONFIGURATIONS_MAX: usize = 2_000_000;

pub fn holds(diary: &Diary) -> Held {
    let (registers, names) = diary.with(|pages| (pages.registers.by_object(), pages.names.by_object()));
    let initial = State { value: 0, version: None, at_least: 0 };
    registers.iter().try_for_each(|(number, calls)| {
        told(&format!("register {number}"), register::check(initial.clone(), calls, CONFIGURATIONS_MAX))
    })?;
    names
        .iter()
        .try_for_each(|(number, calls)| told(&format!("name {number}"), check(&Slot, calls, CONFIGURATIONS_MAX)))
}

fn told(what: &str, verdict: Verdict) -> Held {
    match verdict {
        Verdict::Linearizable => Ok(()),
        Verdict::Violated(why) => Err(format!("linearizability of {what}: {why}")),
        Verdict::Undecided(after) => Err(format!("linearizability of {what}: undecided after {after} configurations")),
    }
}

/// A name.
struct Slot;

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Meaning {
    Absent,
    Inode(u64),
    /// It was made, and its maker never learned which inode that is.
    SomeInode,
}

impl Meaning {
    fn may_be(&self, ino: u64) -> bool {
        matches!(self, Meaning::SomeInode) || *self == Meaning::Inode(ino)
    }
}

impl Spec for Slot {
    type State = Meaning;
    type Input = NameInput;
    type Output = NameOutput;

    fn initial(&self) -> Meaning {
        Meaning::Absent
    }

    fn step(&self, state: &Meaning, input: &NameInput, output: Option<&NameOutput>) -> Option<Meaning> {
        let absent = *state == Meaning::Absent;
        let (fits, next) = match (input, output) {
            (NameInput::Look, None) => (true, state.clone()),
            (NameInput::Make, None) => (true, if absent { Meaning::SomeInode } else { state.clone() }),
            (NameInput::Unlink(ino), None) if *state == Meaning::Inode(*ino) => (true, Meaning::Absent),
            // It may be that one, or not: what is seen next decides, so nothing is claimed to be gone.
            (NameInput::Unlink(_), None) => (true, state.clone()),
            (NameInput::Look | NameInput::Unlink(_), Some(NameOutput::Absent)) => (absent, Meaning::Absent),
            (NameInput::Look, Some(NameOutput::Inode(ino))) => (state.may_be(*ino), Meaning::Inode(*ino)),
            (NameInput::Make, Some(NameOutput::Inode(ino))) => (absent, Meaning::Inode(*ino)),
            (NameInput::Make, Some(NameOutput::Taken)) => (!absent, state.clone()),
            (NameInput::Unlink(ino), Some(NameOutput::Removed)) => (state.may_be(*ino), Meaning::Absent),
            (NameInput::Unlink(ino), Some(NameOutput::Raced)) => {
                (!absent && *state != Meaning::Inode(*ino), state.clone())
            }
            _ => (false, state.clone()),
        };
        fits.then_some(next)
    }
}
