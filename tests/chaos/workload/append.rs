//! Appends from five mounts to one file, and readers of it. Every acknowledged record is there once, an unknown one at
//! most once, none is interleaved, the order is that of time; and every read saw a beginning of the final file with
//! all that had been acknowledged.

use super::{EPOCHS, against_time};
use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Op};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

const EPOCH_S: u64 = 10;

fn name(epoch: u64) -> String {
    format!("append/{epoch}")
}

pub fn prepare(root: &Path) -> io::Result<()> {
    (0..EPOCHS).try_for_each(|epoch| File::create(root.join(name(epoch))).map(drop))
}

pub fn play(player: &mut Player) {
    while player.running() {
        let file = name(player.epoch(EPOCH_S));
        let path = player.own().join(&file);
        if player.dice.percent(25) {
            player.call(Call::ReadAll { file }, || {
                let bytes = std::fs::read(&path)?;
                Ok(Answer::Bytes(bytes.len() as u64, crc32c::crc32c(&bytes)))
            });
        } else {
            append(player, &path, file);
        }
        player.pause(60, 300);
    }
}

fn append(player: &mut Player, path: &Path, file: String) {
    let record = player.unique().to_string();
    let Some(mut open) = player.opened(&file, OpenOptions::new().append(true).open(path)) else { return };
    // Of every length up to some pages, so that an interleaved one would show.
    let longest = if player.dice.percent(10) { 20_000 } else { 200 };
    let fill = player.dice.below(longest);
    let line = format!("{record} {}\n", "x".repeat(fill as usize));
    player.call(Call::Append { file, record }, || match open.write(line.as_bytes())? {
        length if length == line.len() => Ok(Answer::Done),
        length => Err(io::Error::other(format!("{length} bytes of {} were appended", line.len()))),
    });
}

pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let mut files: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in history.of("append") {
        if let Call::Append { file, .. } | Call::ReadAll { file } = &op.call {
            files.entry(file).or_default().push(op);
        }
    }
    files.iter().flat_map(|(file, ops)| judge(file, ops, finals)).collect()
}

fn judge(file: &str, ops: &[&Op], finals: &Finals) -> Vec<String> {
    let Some(text) = finals.text(file) else { return vec![format!("{file} is missing at the end")] };
    let appends: BTreeMap<&str, &Op> = ops.iter().filter_map(|op| Some((record(op)?, *op))).collect();
    let mut wrong = Vec::new();
    // Where each record ends.
    let (mut ends, mut order, mut at) = (BTreeMap::new(), Vec::new(), 0);
    for line in text.split_inclusive('\n') {
        at += line.len();
        let whole = line.strip_suffix('\n').and_then(|line| line.split_once(' '));
        match whole.filter(|(_, fill)| fill.bytes().all(|byte| byte == b'x')).map(|(record, _)| record) {
            Some(record) if appends.get(record).is_some_and(|op| !op.failed()) => {
                order.extend(appends.get(record));
                if ends.insert(record, at).is_some() {
                    wrong.push(format!("{file}: record {record} is there twice"));
                }
            }
            _ => wrong.push(format!("{file}: at byte {at} ends what nobody appended: {:.60}", line.escape_debug())),
        }
    }
    for (record, op) in &appends {
        if op.answer().is_some() && !ends.contains_key(record) {
            wrong.push(format!("{file}: record {record} was acknowledged, and is lost"));
        }
    }
    if let Some((before, after)) = against_time(order) {
        wrong.push(format!("{file}: {after:?} had ended before {before:?} began, and comes behind it"));
    }
    let reads = ops.iter().filter_map(|op| stale(op, &text, &appends, &ends));
    wrong.extend(reads.map(|what| format!("{file}: {what}")));
    wrong
}

fn record(op: &Op) -> Option<&str> {
    match &op.call {
        Call::Append { record, .. } => Some(record),
        _ => None,
    }
}

/// What is wrong with a read.
fn stale(read: &Op, text: &str, appends: &BTreeMap<&str, &Op>, ends: &BTreeMap<&str, usize>) -> Option<String> {
    let Some(Answer::Bytes(length, sum)) = read.answer() else { return None };
    let seen = text.as_bytes().get(..*length as usize);
    if seen.map(crc32c::crc32c) != Some(*sum) {
        return Some(format!("a read by client {} saw {length} bytes that are no beginning of it", read.client));
    }
    let missed = appends
        .iter()
        .find(|(record, op)| op.ended() < read.begin && ends.get(*record).is_some_and(|end| *end as u64 > *length));
    missed.map(|(record, _)| format!("a read by client {} missed record {record}, acknowledged before", read.client))
}
