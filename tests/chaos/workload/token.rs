//! Tokens that are moved between directories by rename. Each is in one place at all times: its history of moves and looks
//! is linearizable, and at the end it lies in one directory.
//!
//! The renames do not replace, because of two mounts that make the same move at the same time with plain ones, both may be
//! told that they made it. Holds [A8].

use super::EPOCHS;
use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Op};
use crate::linearizable::{self, Spec, Verdict};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

const TOKENS: u64 = 3;
const PLACES: u64 = 3;
const EPOCH_S: u64 = 5;
const CONFIGURATIONS_MAX: usize = 3_000_000;

/// Tokens too are used for a while only.
fn name(token: u64, place: u64) -> String {
    format!("token/{place}/{token}")
}

pub fn prepare(root: &Path) -> io::Result<()> {
    (0..PLACES).try_for_each(|place| fs::create_dir(root.join(format!("token/{place}"))))?;
    (0..TOKENS * EPOCHS).try_for_each(|token| File::create(root.join(name(token, 0))).map(drop))
}

pub fn play(player: &mut Player) {
    while player.running() {
        let token = player.epoch(EPOCH_S) * TOKENS + player.dice.below(TOKENS);
        let (from, step) = (player.dice.below(PLACES), player.dice.between(1, PLACES - 1));
        let (to, root) = ((from + step) % PLACES, player.own().to_owned());
        let path = root.join(name(token, from));
        if player.dice.percent(30) {
            player.call(Call::Look { token, place: from }, || match fs::symlink_metadata(&path) {
                Ok(_) => Ok(Answer::Present),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Answer::Absent),
                Err(error) => Err(error),
            });
        } else {
            let target = root.join(name(token, to));
            player.call(Call::Move { token, from, to }, || {
                match renameat_with(CWD, &path, CWD, &target, RenameFlags::NOREPLACE) {
                    Ok(()) => Ok(Answer::Done),
                    // It is not where it was to come from: in a third place, or there already.
                    Err(Errno::NOENT | Errno::EXIST) => Ok(Answer::Refused),
                    Err(error) => Err(error.into()),
                }
            });
        }
        player.pause(60, 250);
    }
}

/// Where one token is.
struct Token;

#[derive(Debug)]
enum Input {
    Move(u64, u64),
    Look(u64),
}

impl Spec for Token {
    type State = u64;
    type Input = Input;
    type Output = Answer;

    fn initial(&self) -> u64 {
        0
    }

    fn step(&self, at: &u64, input: &Input, output: Option<&Answer>) -> Option<u64> {
        match (input, output) {
            (Input::Move(from, to), None) => Some(if from == at { *to } else { *at }),
            (Input::Move(from, to), Some(Answer::Done)) => (from == at).then_some(*to),
            (Input::Move(from, _), Some(Answer::Refused)) => (from != at).then_some(*at),
            (Input::Look(place), Some(Answer::Present)) => (place == at).then_some(*at),
            (Input::Look(place), Some(Answer::Absent)) => (place != at).then_some(*at),
            _ => None,
        }
    }
}

pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let mut tokens: BTreeMap<u64, Vec<linearizable::Call<Input, Answer>>> = BTreeMap::new();
    for op in history.of("token").filter(|op| !op.failed()) {
        if let Some((token, call)) = call(op) {
            tokens.entry(token).or_default().push(call);
        }
    }
    tokens.into_iter().filter_map(|(token, calls)| judge(token, calls, finals)).collect()
}

fn call(op: &Op) -> Option<(u64, linearizable::Call<Input, Answer>)> {
    let end = op.answer().map(|answer| (op.ended(), answer.clone()));
    let (token, input) = match &op.call {
        Call::Move { token, from, to } => (*token, Input::Move(*from, *to)),
        Call::Look { token, place } if end.is_some() => (*token, Input::Look(*place)),
        _ => return None,
    };
    Some((token, linearizable::Call { client: op.client, begin: op.begin, input, end }))
}

fn judge(token: u64, mut calls: Vec<linearizable::Call<Input, Answer>>, finals: &Finals) -> Option<String> {
    let places: Vec<u64> = (0..PLACES).filter(|place| finals.has(&name(token, *place))).collect();
    let &[place] = places.as_slice() else { return Some(format!("token {token} is at the end at {places:?}")) };
    let end = Some((u64::MAX, Answer::Present));
    calls.push(linearizable::Call { client: 0, begin: finals.at, input: Input::Look(place), end });
    match linearizable::check(&Token, &calls, CONFIGURATIONS_MAX) {
        Verdict::Linearizable => None,
        Verdict::Violated(why) => Some(format!("token {token} was in two places or none: {why}")),
        Verdict::Undecided(after) => Some(format!("token {token}: undecided after {after} configurations: void")),
    }
}
