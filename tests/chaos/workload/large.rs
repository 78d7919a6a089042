//! Large files: written in one call, read back through another mount, compared again at the end.

use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Op, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Files that each client keeps.
const KEPT: usize = 3;
const BYTES_MIN: u64 = 300 << 10;
const BYTES_MAX: u64 = 2 << 20;

/// Bytes that tell where they belong.
pub fn pattern(bytes: u64, seed: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(31) ^ (at >> 9) ^ seed.wrapping_mul(57)) as u8).collect()
}

pub fn play(player: &mut Player) {
    let mut kept = VecDeque::new();
    while player.running() {
        let seed = player.unique();
        let (file, bytes) = (format!("large/{seed}"), player.dice.between(BYTES_MIN, BYTES_MAX));
        let path = player.own().join(&file);
        let content = pattern(bytes, seed);
        let stored = player.call(Call::Store { file: file.clone(), bytes, seed }, || {
            let mut open = File::create(&path)?;
            open.write_all(&content)?;
            open.sync_all()?;
            Ok(Answer::Done)
        });
        if matches!(stored, Outcome::Ok(_)) {
            let there = player.any().join(&file);
            read_back(player, &there, &content);
            kept.push_back(file);
        }
        if kept.len() > KEPT
            && let Some(file) = kept.pop_front()
        {
            let path = player.own().join(&file);
            player.call(Call::Remove { file }, || std::fs::remove_file(&path).map(|()| Answer::Done));
        }
        player.pause(1500, 4000);
    }
}

fn read_back(player: &Player, path: &Path, content: &[u8]) {
    player.call(Call::Do { what: format!("read {}", path.display()) }, || {
        if std::fs::read(path)? != content {
            player.violation(format!("{} does not hold what was written", path.display()));
        }
        Ok(Answer::Done)
    });
}

pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let mut stored: BTreeMap<&str, &Op> = BTreeMap::new();
    for op in history.of("large") {
        match &op.call {
            Call::Store { file, .. } if op.answer().is_some() => drop(stored.insert(file, op)),
            // Gone, or perhaps gone.
            Call::Remove { file } if !op.failed() => drop(stored.remove(file.as_str())),
            _ => {}
        }
    }
    let lost = stored.iter().filter(|(file, op)| match &op.call {
        Call::Store { bytes, seed, .. } => finals.sum(file) != Some((*bytes, crc32c::crc32c(&pattern(*bytes, *seed)))),
        _ => false,
    });
    lost.map(|(file, op)| format!("{file} was acknowledged, and holds something else: {op:?}")).collect()
}
