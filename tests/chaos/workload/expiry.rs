//! Files that end by themselves: never before their time, never seen again afterwards, and at last all gone.

use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Nanos, Op, Outcome};
use crate::xattr;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::time::Duration;

pub fn play(player: &mut Player) {
    while player.running() {
        let file = format!("expiry/{}", player.unique());
        let (path, ttl_s) = (player.own().join(&file), player.dice.between(1, 3));
        let made = player.call(Call::Do { what: format!("create {file}") }, || {
            File::create_new(&path)?;
            Ok(Answer::Done)
        });
        if matches!(made, Outcome::Ok(_)) && expire(player, &file, ttl_s) {
            watch(player, &file, ttl_s);
        }
        player.pause(100, 400);
    }
}

/// True if it was acknowledged.
fn expire(player: &Player, file: &str, ttl_s: u64) -> bool {
    let path = player.own().join(file);
    let outcome = player.call(Call::Expire { file: file.into(), ttl_s }, || {
        match xattr::set(&path, "ttl", &format!("{ttl_s}s")) {
            Ok(()) => Ok(Answer::Done),
            // It had ended before.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::STALE) => Ok(Answer::Refused),
            Err(error) => Err(error.into()),
        }
    });
    outcome == Outcome::Ok(Answer::Done)
}

/// Look for it on all mounts until it has been missing a few times; perhaps renew it once on the way.
fn watch(player: &mut Player, file: &str, ttl_s: u64) {
    let (mut missing, mut may_renew) = (0, player.dice.percent(50));
    while missing < 3 && player.running() {
        let path = player.any().join(file);
        let looked = player.call(Call::IsThere { file: file.into() }, || match fs::symlink_metadata(&path) {
            Ok(_) => Ok(Answer::Present),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Answer::Absent),
            Err(error) => Err(error),
        });
        missing += u64::from(looked == Outcome::Ok(Answer::Absent));
        if may_renew && missing == 0 && player.dice.percent(15) {
            may_renew = false;
            expire(player, file, ttl_s);
        }
        player.pause(80, 250);
    }
}

/// How long after the end of its time a file was seen for the last time, at most.
pub fn latest(history: &History) -> Duration {
    let mut due: BTreeMap<&str, Nanos> = BTreeMap::new();
    let mut latest = 0;
    for op in history.of("expiry") {
        match (&op.call, op.answer()) {
            // One that is unknown may have moved it away by as much.
            (Call::Expire { file, ttl_s }, answer) if answer != Some(&Answer::Refused) => {
                let end = op.end.map_or(Nanos::MAX, |end| end + ttl_s * 1_000_000_000);
                due.insert(file, end);
            }
            (Call::IsThere { file }, Some(Answer::Present)) => {
                latest = latest.max(op.begin.saturating_sub(due.get(file.as_str()).copied().unwrap_or(Nanos::MAX)));
            }
            _ => {}
        }
    }
    Duration::from_nanos(latest)
}

pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let mut files: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in history.of("expiry") {
        if let Call::Expire { file, .. } | Call::IsThere { file } = &op.call {
            files.entry(file).or_default().push(op);
        }
    }
    files.iter().filter_map(|(file, ops)| judge(file, ops, finals).map(|what| format!("{file} {what}"))).collect()
}

fn judge(file: &str, ops: &[&Op], finals: &Finals) -> Option<String> {
    // Renewals are by the same time, so an unknown one can only have moved the deadline away.
    let mut earliest: Nanos = 0;
    let mut gone: Option<&Op> = None;
    for op in ops {
        match (&op.call, op.answer()) {
            (Call::Expire { ttl_s, .. }, Some(Answer::Done)) => {
                earliest = earliest.max(op.begin + ttl_s * 1_000_000_000);
                if let Some(gone) = gone {
                    return Some(format!("was given time by {op:?} after {gone:?}"));
                }
            }
            (Call::IsThere { .. } | Call::Expire { .. }, Some(Answer::Absent | Answer::Refused)) => {
                if op.ended() < earliest {
                    return Some(format!("ended {} ns too early: {op:?}", earliest - op.ended()));
                }
                gone = Some(op);
            }
            (Call::IsThere { .. }, Some(Answer::Present)) => {
                if let Some(gone) = gone {
                    return Some(format!("was seen by {op:?} after {gone:?}"));
                }
            }
            _ => {}
        }
    }
    let is_timed = ops.iter().any(|op| matches!(op.call, Call::Expire { .. }) && op.answer() == Some(&Answer::Done));
    (is_timed && finals.has(file)).then(|| "is still there at the end".to_owned())
}
