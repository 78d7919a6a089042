//! What a disk does to what lies on it: a record that is torn, a bit that turns over.

use super::members::{members, number_at, put_anew};
use super::storage::NOTICE_LIMIT;
use super::{Episode, Scene};
use crate::cluster::NODES;
use crate::disk::{self, Record, records_of, segments};
use crate::host;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What a node says with its exit code.
const DAMAGED: i32 = 75;
/// Words of a node that has found something wrong with what it stores.
const FOUND: [&str; 3] = ["damage", "mended", "torn"];

/// How long a follower goes on writing what the leader does not hear of.
const UNHEARD: Duration = Duration::from_millis(300);

/// A killed follower, once the others have gone on well behind it: what is then done to the end of its log is no loss
/// of anything that a majority does not have, nor, if there was any work, of anything that it had acknowledged.
fn kill_and_leave_behind(scene: &mut Scene) -> Result<u64, String> {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let node = scene.nodes_but(&[leader], 1)[0];
    let last = scene.cluster.statuses().iter().map(|status| status.replica.last_log).max().unwrap_or(0);
    scene.cluster.network.drop_packets(&[(node, leader, 100)]);
    std::thread::sleep(UNHEARD);
    scene.cluster.kill(node);
    scene.cluster.network.drop_packets(&[]);
    let ahead = |scene: &mut Scene| {
        let others = scene.cluster.statuses();
        others.len() as u64 == NODES - 1 && others.iter().all(|status| status.replica.applied > last + 20)
    };
    match host::until(NOTICE_LIMIT, || ahead(scene)) {
        true => Ok(node),
        false => Err(format!("the others did not go on without node {node}: {}", scene.cluster.told())),
    }
}

/// The last record of a log ends in the middle, as if the power had gone while it was written. If the leaders have noted
/// that it is held, it was no torn write but a lost one: the node is refused, and another takes its place, as it says.
pub fn torn(scene: &mut Scene) -> Episode {
    let (before, numbers) = (members(scene)?, (1..=NODES).map(|place| number_at(scene, place)).collect::<Vec<_>>());
    let node = kill_and_leave_behind(scene)?;
    let log = scene.cluster.log(node);
    let segment = segments(&log)?.pop().ok_or("no segment")?;
    let records = records_of(&segment)?;
    let Some(last) = records.last().filter(|last| last.bytes > 1) else { return Ok(false) };
    let at = last.at + scene.dice.between(1, last.bytes - 1);
    let kept_before = kept_copies(&log);
    disk::tear(&segment, at).map_err(|e| format!("cannot tear {}: {e}", segment.display()))?;
    scene.cluster.start_node(node)?;
    if scene.cluster.ends_instead(node)? {
        was_reverted(scene, node)?;
        scene.note(format!("node {node}: record at {} torn, which it was known to hold: it was refused", last.at));
        let number = numbers[node as usize - 1].clone()?;
        return put_anew(scene, node, number, &before).map(|_| false);
    }
    scene.cluster.wait_until_whole()?;
    // Where only zeros were cut off, nothing was torn.
    let kept = kept_copies(&log).saturating_sub(kept_before);
    scene.note(format!("node {node}: record at {} torn at {at}, {kept} copies kept", last.at));
    Ok(kept > 0)
}

fn was_reverted(scene: &mut Scene, node: u64) -> Result<(), String> {
    let (code, said) = (scene.cluster.wait_for_end(node, Duration::ZERO), scene.cluster.last_words(node));
    match code == Some(DAMAGED) && said.contains("has been reverted") {
        true => Ok(()),
        false => Err(format!("node {node} found a torn record and ended with {code:?}: {said}")),
    }
}

fn kept_copies(log: &Path) -> usize {
    let names = fs::read_dir(log).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("torn-")).count()
}

/// A bit of the log turns over at rest. The node mends it, or refuses to start and says where; then the bit is turned back.
/// Nobody is served anything wrong, which is for the clients to see. True if the node has found it, when it started or when
/// it was told to read all that it stores.
pub fn flip(scene: &mut Scene) -> Episode {
    let node = kill_and_leave_behind(scene)?;
    let all = segments(&scene.cluster.log(node))?;
    let segment = scene.dice.of(&all).clone();
    let Record { at, bytes } = *scene.dice.of(&records_of(&segment)?);
    let (at, bit) = (at + scene.dice.below(bytes), scene.dice.below(8) as u32);
    let turn = || disk::flip(&segment, at, bit).map_err(|e| format!("cannot flip a bit of {}: {e}", segment.display()));
    turn()?;
    let before = scene.cluster.words(node).len();
    scene.cluster.start_node(node)?;
    std::thread::sleep(Duration::from_millis(1500));
    let refused = !scene.cluster.runs(node);
    if refused {
        let (code, said) = (scene.cluster.wait_for_end(node, Duration::ZERO), scene.cluster.last_words(node));
        if code != Some(DAMAGED) || !said.contains(&*segment.to_string_lossy()) {
            return Err(format!("node {node} found a damaged log and ended with {code:?}: {said}"));
        }
        turn()?;
        scene.cluster.start_node(node)?;
    }
    scene.cluster.wait_until_whole()?;
    let address = scene.cluster.address(node);
    scene.cluster.keelfs(&["check", "--repair", "--json", "--timeout", "60s", "--node", &address])?;
    let words = scene.cluster.words(node);
    let said = words.get(before..).unwrap_or_default();
    let found = refused || FOUND.iter().any(|word| said.contains(word));
    let came = match (refused, found) {
        (true, _) => "refused to start",
        (false, true) => "mended it",
        (false, false) => "did not find it",
    };
    if !found {
        // In what nothing needs any more: a mark of what was durable, zeros between, or a body that whoever reads the log
        // at the end would stumble over.
        turn()?;
    }
    scene.note(format!("node {node}: a bit at {at} of one of {} segments turned over, and it {came}", all.len()));
    Ok(found)
}
