//! Locks with fencing: two never hold one at the same time, and the generation rises with every grant. A holder proves
//! that it still holds by a write through the descriptor that has the lock: one whose session has ended is refused.

use super::against_time;
use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Nanos, Op, Outcome};
use rustix::fs::{FlockOperation, fgetxattr, flock};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The two families, which do not see each other: each has a file of its own.
const FILES: [&str; 2] = ["lock/flock", "lock/range"];

pub fn prepare(root: &Path) -> io::Result<()> {
    FILES.iter().try_for_each(|file| std::fs::write(root.join(file), super::register::spelled(0)))
}

pub fn play(player: &mut Player) {
    while player.running() {
        let file = *player.dice.of(&FILES);
        let path = player.own().join(file);
        let opened = player.opened(file, OpenOptions::new().read(true).write(true).open(path));
        if let Some(open) = opened {
            hold(player, file, &open);
        }
        player.pause(50, 250);
    }
}

/// Try to lock it, or wait for it; if that succeeds keep it for a while, and prove it at the end. Closing gives it back.
fn hold(player: &mut Player, file: &str, open: &File) {
    let waits = player.dice.percent(30);
    let locked = player.call(Call::Lock { file: file.into() }, || match lock(file, open, waits) {
        Ok(()) => Ok(Answer::Locked(generation(open)?, content(open)?)),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(Answer::Refused),
        Err(error) => Err(error.into()),
    });
    let Outcome::Ok(Answer::Locked(generation, _)) = locked else { return };
    player.pause(20, 200);
    player.call(Call::Guarded { file: file.into(), generation }, || {
        open.write_all_at(super::register::spelled(generation).as_bytes(), 0)?;
        Ok(Answer::Done)
    });
}

fn lock(file: &str, open: &File, waits: bool) -> Result<(), Errno> {
    let (whole, range) = match waits {
        true => (FlockOperation::LockExclusive, libc::F_OFD_SETLKW),
        false => (FlockOperation::NonBlockingLockExclusive, libc::F_OFD_SETLK),
    };
    match file == FILES[0] {
        true => flock(open, whole),
        false => lock_range(open, range),
    }
}

fn lock_range(open: &File, command: libc::c_int) -> Result<(), Errno> {
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open, and the pointer is to a struct flock of ours.
    match unsafe { libc::fcntl(open.as_raw_fd(), command, &range) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

pub fn generation(open: &File) -> io::Result<u64> {
    let mut digits = [0; 32];
    let length = fgetxattr(open, "user.keelfs.lock-gen", &mut digits[..])?;
    let text = std::str::from_utf8(&digits[..length]).unwrap_or_default();
    text.parse().map_err(|_| io::Error::other(format!("the generation {text:?} is no number")))
}

fn content(open: &File) -> io::Result<u64> {
    let mut digits = [0; 16];
    open.read_exact_at(&mut digits, 0)?;
    let text = std::str::from_utf8(&digits).unwrap_or_default();
    u64::from_str_radix(text, 16).map_err(|_| io::Error::other(format!("the content {text:?} is no number")))
}

/// One grant, and until when it was certainly held.
struct Grant<'a> {
    op: &'a Op,
    generation: u64,
    seen: u64,
    held: Option<(Nanos, Nanos)>,
}

pub fn check(history: &History, _: &Finals) -> Vec<String> {
    FILES.iter().flat_map(|file| judge(file, history)).collect()
}

fn judge(name: &str, history: &History) -> Vec<String> {
    let mut proofs: BTreeMap<u64, &Op> = BTreeMap::new();
    let mut grants: Vec<Grant> = Vec::new();
    for op in history.of("lock") {
        match (&op.call, op.answer()) {
            (Call::Guarded { file, generation }, Some(_)) if file == name => drop(proofs.insert(*generation, op)),
            (Call::Lock { file }, Some(Answer::Locked(generation, seen))) if file == name => {
                grants.push(Grant { op, generation: *generation, seen: *seen, held: None });
            }
            _ => {}
        }
    }
    for grant in &mut grants {
        // Held from when it was granted to, at least, when the proof was begun.
        grant.held = proofs.get(&grant.generation).map(|proof| (grant.op.ended(), proof.begin));
    }
    grants.sort_by_key(|grant| grant.generation);
    let wrong = [twice(&grants), overlap(&grants), unfenced(&grants, &proofs)].into_iter().flatten();
    let mut wrong: Vec<String> = wrong.map(|what| format!("{name}: {what}")).collect();
    if let Some((before, after)) = against_time(grants.iter().map(|grant| grant.op)) {
        wrong.push(format!("{name}: the generation of {after:?} is above that of {before:?}, which came later"));
    }
    wrong
}

fn twice(grants: &[Grant]) -> Option<String> {
    let pair = grants.windows(2).find(|pair| pair[0].generation == pair[1].generation)?;
    Some(format!("generation {} was granted to {:?} and to {:?}", pair[0].generation, pair[0].op, pair[1].op))
}

fn overlap(grants: &[Grant]) -> Option<String> {
    let mut held: Vec<(Nanos, Nanos, &Op)> =
        grants.iter().filter_map(|grant| grant.held.map(|(from, to)| (from, to, grant.op))).collect();
    held.sort_by_key(|(from, ..)| *from);
    let mut longest: Option<&(Nanos, Nanos, &Op)> = None;
    for next in &held {
        if let Some(before) = longest.filter(|before| next.0 < before.1) {
            return Some(format!("held by two at a time: {:?} and {:?}", before.2, next.2));
        }
        if longest.is_none_or(|before| next.1 > before.1) {
            longest = Some(next);
        }
    }
    None
}

/// A holder sees nothing of later holders, and everything that an earlier one has proven.
fn unfenced(grants: &[Grant], proofs: &BTreeMap<u64, &Op>) -> Option<String> {
    let proven: BTreeSet<u64> = proofs.keys().copied().collect();
    for grant in grants {
        let before = proven.range(..grant.generation).next_back().copied().unwrap_or(0);
        if grant.seen >= grant.generation || grant.seen < before {
            return Some(format!("{:?} found generation {} in the file", grant.op, grant.seen));
        }
    }
    None
}
