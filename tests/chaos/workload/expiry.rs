//! Files that end by themselves: never before their time, never seen again afterwards, and at last all gone.
//!
//! Some have their time by the wall clock. The leader reads that when it is told, so nobody is held to it while clocks are
//! wrong; as soon as they are right again it must be kept, whatever they were before.

use crate::client::{Clocks, Player};
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Nanos, Op, Outcome, now};
use crate::xattr;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND: Nanos = 1_000_000_000;
/// The wall clock may be slewed meanwhile, and stops at microseconds here and there.
const CLOCK_MARGIN: Nanos = 10_000_000;

#[derive(Clone, Copy)]
enum Time {
    For(u64),
    /// So many seconds from now, and what is left of the one that runs.
    Until(u64),
}

pub fn play(player: &mut Player) {
    while player.running() {
        let file = format!("expiry/{}", player.unique());
        let (path, seconds, coin) = (player.own().join(&file), player.dice.between(1, 3), player.dice.percent(40));
        let time = match player.clocks() {
            Clocks::RightAgain => Time::Until(seconds),
            Clocks::Right if coin => Time::Until(seconds),
            _ => Time::For(seconds),
        };
        let made = player.call(Call::Do { what: format!("create {file}") }, || {
            File::create_new(&path)?;
            Ok(Answer::Done)
        });
        if matches!(made, Outcome::Ok(_)) && expire(player, &file, time) {
            watch(player, &file, time);
        }
        player.pause(100, 400);
    }
}

/// True if it was acknowledged.
fn expire(player: &Player, file: &str, time: Time) -> bool {
    let path = player.own().join(file);
    let (call, name, value) = match time {
        Time::For(ttl_s) => (Call::Expire { file: file.into(), ttl_s }, "ttl", format!("{ttl_s}s")),
        Time::Until(seconds) => {
            let (unix_s, due) = until(seconds);
            (Call::ExpireAt { file: file.into(), unix_s, due }, "expires", unix_s.to_string())
        }
    };
    let outcome = player.call(call, || {
        match xattr::set(&path, name, &value) {
            Ok(()) => Ok(Answer::Done),
            // It had ended before.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::STALE) => Ok(Answer::Refused),
            Err(error) => Err(error.into()),
        }
    });
    outcome == Outcome::Ok(Answer::Done)
}

/// The next full second after so many, by both clocks.
fn until(seconds: u64) -> (u64, Nanos) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_s = wall.as_secs() + seconds + 1;
    let left = Duration::from_secs(unix_s).saturating_sub(wall);
    (unix_s, now() + left.as_nanos() as Nanos)
}

/// Look for it on all mounts until it has been missing a few times; perhaps renew it once on the way.
fn watch(player: &mut Player, file: &str, time: Time) {
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
            expire(player, file, time);
        }
        player.pause(80, 250);
    }
}

/// How long after the end of its time a file was seen for the last time, at most.
pub fn latest(history: &History) -> Duration {
    let mut due: BTreeMap<&str, Nanos> = BTreeMap::new();
    let mut latest = 0;
    for op in history.of("expiry") {
        let has_effect = !op.failed() && op.answer() != Some(&Answer::Refused);
        match (&op.call, op.answer()) {
            // One that is unknown may have moved it away by as much.
            (Call::Expire { file, ttl_s }, _) if has_effect => {
                due.insert(file, op.end.map_or(Nanos::MAX, |end| end + ttl_s * SECOND));
            }
            (Call::ExpireAt { file, due: at, .. }, _) if has_effect => {
                due.insert(file, op.end.map_or(Nanos::MAX, |end| end.max(*at)));
            }
            (Call::IsThere { file }, Some(Answer::Present)) => {
                latest = latest.max(op.begin.saturating_sub(due.get(file.as_str()).copied().unwrap_or(Nanos::MAX)));
            }
            _ => {}
        }
    }
    Duration::from_nanos(latest)
}

/// Files that were given a time of the wall clock.
pub fn by_clock(history: &History) -> usize {
    let given = |op: &&Op| matches!(op.call, Call::ExpireAt { .. }) && op.answer() == Some(&Answer::Done);
    history.of("expiry").filter(given).count()
}

pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let mut files: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in history.of("expiry") {
        if let Call::Expire { file, .. } | Call::ExpireAt { file, .. } | Call::IsThere { file } = &op.call {
            files.entry(file).or_default().push(op);
        }
    }
    files.iter().filter_map(|(file, ops)| judge(file, ops, finals).map(|what| format!("{file} {what}"))).collect()
}

fn judge(file: &str, ops: &[&Op], finals: &Finals) -> Option<String> {
    // Renewals are by the same kind of time, so an unknown one can only have moved the deadline away.
    let mut earliest: Nanos = 0;
    let mut gone: Option<&Op> = None;
    for op in ops {
        match (&op.call, op.answer()) {
            (Call::Expire { .. } | Call::ExpireAt { .. }, Some(Answer::Done)) => {
                earliest = earliest.max(not_before(op));
                if let Some(gone) = gone {
                    return Some(format!("was given time by {op:?} after {gone:?}"));
                }
            }
            (_, Some(Answer::Absent | Answer::Refused)) => {
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
    let is_timed = ops.iter().any(|op| not_before(op) > 0 && op.answer() == Some(&Answer::Done));
    (is_timed && finals.has(file)).then(|| "is still there at the end".to_owned())
}

/// The end that a call gives to a file, at the earliest; 0: it gives none.
fn not_before(op: &Op) -> Nanos {
    match &op.call {
        Call::Expire { ttl_s, .. } => op.begin + ttl_s * SECOND,
        Call::ExpireAt { due, .. } => due.saturating_sub(CLOCK_MARGIN),
        _ => 0,
    }
}
