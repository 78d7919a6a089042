//! Registers: files of sixteen digits that five mounts read, overwrite and compare-and-swap. The history of each file
//! must be linearizable, judged by a checker that knows nothing of our log.

use super::EPOCHS;
use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Op, Outcome};
use crate::linearizable::{self, Verdict};
use crate::register::{self, Input, Output, State};
use crate::xattr;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Files in use at one time, and for how many seconds.
const FILES: u64 = 3;
const EPOCH_S: u64 = 4;
/// Where the search gives up.
const CONFIGURATIONS_MAX: usize = 3_000_000;

fn name(epoch: u64, number: u64) -> String {
    format!("register/{epoch}-{number}")
}

pub fn prepare(root: &Path) -> io::Result<()> {
    for epoch in 0..EPOCHS {
        for number in 0..FILES {
            std::fs::write(root.join(name(epoch, number)), spelled(0))?;
        }
    }
    Ok(())
}

pub fn spelled(value: u64) -> String {
    format!("{value:016x}")
}

pub fn play(player: &mut Player) {
    while player.running() {
        let file = name(player.epoch(EPOCH_S), player.dice.below(FILES));
        let path = player.own().join(&file);
        match player.dice.below(10) {
            0..5 => drop(read(player, &path, file)),
            5..8 => write(player, &path, file),
            _ => swap(player, &path, file),
        }
        player.pause(20, 120);
    }
}

fn write(player: &mut Player, path: &Path, file: String) {
    let value = player.unique();
    // The name and the permission first: what can fail here has certainly changed nothing.
    let Some(open) = player.opened(&file, OpenOptions::new().write(true).open(path)) else { return };
    player.call(Call::Write { file, value }, || {
        open.write_all_at(spelled(value).as_bytes(), 0)?;
        Ok(Answer::Done)
    });
}

/// The value, with the version that it certainly had when it was read.
fn read(player: &mut Player, path: &Path, file: String) -> Option<(u64, u64)> {
    let outcome = player.call(Call::Read { file }, || {
        let before = xattr::version(path)?;
        let mut text = [0; 16];
        File::open(path)?.read_exact_at(&mut text, 0)?;
        let value = std::str::from_utf8(&text).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        let value = value.ok_or_else(|| io::Error::other(format!("no number: {}", text.escape_ascii())))?;
        Ok(Answer::Value(value, (xattr::version(path)? == before).then_some(before)))
    });
    match outcome {
        Outcome::Ok(Answer::Value(value, Some(version))) => Some((value, version)),
        _ => None,
    }
}

fn swap(player: &mut Player, path: &Path, file: String) {
    let Some((_, expected)) = read(player, path, file.clone()) else { return };
    let value = player.unique();
    player.call(Call::Cas { file, expected, value }, || match xattr::cas(path, expected, &spelled(value)) {
        Ok(()) => Ok(Answer::Done),
        Err(Errno::BUSY) => Ok(Answer::Refused),
        Err(error) => Err(error.into()),
    });
}

pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let mut files: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in history.of("register") {
        if let Call::Read { file } | Call::Write { file, .. } | Call::Cas { file, .. } = &op.call {
            files.entry(file).or_default().push(op);
        }
    }
    files.iter().filter_map(|(file, ops)| judge(file, ops, finals)).collect()
}

fn judge(file: &str, ops: &[&Op], finals: &Finals) -> Option<String> {
    let mut calls: Vec<linearizable::Call<Input, Output>> = ops.iter().filter_map(|op| call(op)).collect();
    let Some(last) = finals.text(file).and_then(|text| u64::from_str_radix(&text, 16).ok()) else {
        return Some(format!("{file}: at the end it holds no number"));
    };
    let after = ops.iter().filter_map(|op| op.end).max().unwrap_or_default() + 1;
    let end = Some((u64::MAX, Output::Value(last, None)));
    calls.push(linearizable::Call { client: 0, begin: after.max(finals.at), input: Input::Read, end });
    let initial = State { value: 0, version: None, at_least: 0 };
    match register::check(initial, &calls, CONFIGURATIONS_MAX) {
        Verdict::Linearizable => None,
        Verdict::Violated(why) => Some(format!("{file} is not linearizable: {why}")),
        Verdict::Undecided(after) => {
            Some(format!("{file}: {} calls, undecided after {after} configurations: void", calls.len()))
        }
    }
}

/// `None`: it cannot matter.
fn call(op: &Op) -> Option<linearizable::Call<Input, Output>> {
    let (input, output) = match (&op.call, &op.outcome) {
        (_, Outcome::Failed(_)) | (Call::Read { .. }, Outcome::Unknown(_)) => return None,
        (Call::Read { .. }, Outcome::Ok(Answer::Value(value, version))) => {
            (Input::Read, Some(Output::Value(*value, *version)))
        }
        (Call::Write { value, .. }, outcome) => (Input::Write(*value), answered(outcome)),
        (Call::Cas { expected, value, .. }, Outcome::Ok(Answer::Refused)) => {
            (Input::Cas { expected: *expected, new: *value }, Some(Output::Mismatch(None)))
        }
        (Call::Cas { expected, value, .. }, outcome) => {
            (Input::Cas { expected: *expected, new: *value }, answered(outcome))
        }
        _ => return None,
    };
    let end = output.map(|output| (op.ended(), output));
    Some(linearizable::Call { client: op.client, begin: op.begin, input, end })
}

fn answered(outcome: &Outcome) -> Option<Output> {
    matches!(outcome, Outcome::Ok(_)).then_some(Output::Written(None))
}
