//! Five mounts make the same names with O_EXCL: one of them wins each. Listings have what was there all the time.

use super::EPOCHS;
use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

const EPOCH_S: u64 = 5;

fn name(epoch: u64) -> String {
    format!("create/{}", epoch % EPOCHS)
}

pub fn prepare(root: &Path) -> io::Result<()> {
    (0..EPOCHS).try_for_each(|epoch| std::fs::create_dir(root.join(name(epoch))))
}

pub fn play(player: &mut Player) {
    let (mut epoch, mut next) = (0, 0);
    while player.running() {
        if player.seconds() / EPOCH_S != epoch {
            (epoch, next) = (player.seconds() / EPOCH_S, 0);
        }
        let directory = name(epoch);
        let path = player.own().join(&directory);
        if player.dice.percent(15) {
            player.call(Call::List { directory }, || {
                let names =
                    std::fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
                Ok(Answer::Names(names.collect::<io::Result<_>>()?))
            });
        } else {
            let name = format!("{epoch}-{next}");
            next += 1;
            player.call(Call::Create { directory, name: name.clone() }, || match File::create_new(path.join(name)) {
                Ok(_) => Ok(Answer::Done),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Answer::Refused),
                Err(error) => Err(error),
            });
        }
        player.pause(60, 200);
    }
}

pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let mut directories: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in history.of("create") {
        if let Call::Create { directory, .. } | Call::List { directory } = &op.call {
            directories.entry(directory).or_default().push(op);
        }
    }
    directories.iter().flat_map(|(directory, ops)| judge(directory, ops, finals)).collect()
}

fn judge(directory: &str, ops: &[&Op], finals: &Finals) -> Vec<String> {
    let mut names: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        if let Call::Create { name, .. } = &op.call {
            names.entry(name).or_default().push(op);
        }
    }
    let there: BTreeSet<String> = finals.names(directory);
    let mut wrong: Vec<String> =
        names.iter().filter_map(|(name, tries)| contest(name, tries, there.contains(*name))).collect();
    let unasked = there.iter().filter(|name| !names.contains_key(name.as_str()));
    wrong.extend(unasked.map(|name| format!("nobody made {name}")));
    wrong.extend(ops.iter().filter_map(|op| listing(op, &names)));
    wrong.into_iter().map(|what| format!("{directory}: {what}")).collect()
}

/// One name, and all who tried to make it.
fn contest(name: &str, tries: &[&Op], is_there: bool) -> Option<String> {
    let won: Vec<&&Op> = tries.iter().filter(|op| op.answer() == Some(&Answer::Done)).collect();
    let refused: Vec<&&Op> = tries.iter().filter(|op| op.answer() == Some(&Answer::Refused)).collect();
    let possible: Vec<&&Op> = tries.iter().filter(|op| !op.failed() && op.answer() != Some(&Answer::Refused)).collect();
    if won.len() > 1 {
        return Some(format!("{name} was made twice: {won:?}"));
    }
    if won.len() == 1 && !is_there {
        return Some(format!("{name} was made, and is lost"));
    }
    if is_there && possible.is_empty() {
        return Some(format!("{name} is there, and nobody can have made it"));
    }
    // Whoever was refused came behind one who can have made it.
    let early = refused.iter().find(|op| !possible.iter().any(|maker| maker.begin < op.ended()));
    if let Some(early) = early {
        return Some(format!("{name} existed before anybody had begun to make it: {early:?}"));
    }
    let late = won.first().and_then(|maker| refused.iter().find(|op| op.ended() < maker.begin));
    late.map(|op| format!("{name} existed for {op:?} and was made later"))
}

fn listing(list: &Op, names: &BTreeMap<&str, Vec<&Op>>) -> Option<String> {
    let Some(Answer::Names(seen)) = list.answer() else { return None };
    let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
    for (name, tries) in names {
        let was_there = tries.iter().any(|op| op.answer().is_some() && op.ended() < list.begin);
        let can_be = tries.iter().any(|op| !op.failed() && op.begin < list.ended());
        if was_there && !seen.contains(name) {
            return Some(format!("a listing by client {} misses {name}, which was there before", list.client));
        }
        if seen.contains(name) && !can_be {
            return Some(format!("a listing by client {} has {name} before it was made", list.client));
        }
    }
    None
}
