//! Faults of disks: power cuts, full disks, failing and slow syncs, torn and flipped records.

use super::{Episode, Scene};
use crate::cluster::NODES;
use crate::disk::{Record, last_segment};
use crate::{disk, host};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a node says with its exit code.
const STORAGE_FAILED: i32 = 74;
const DAMAGED: i32 = 75;
/// What is written before a power cut and never synced.
const WITNESS: &[u8] = b"not synced";
/// How long a node may take to notice; it tells noticing from not noticing.
const NOTICE_LIMIT: Duration = Duration::from_secs(40);

/// All of these lose power at one instant, and boot in this order. True if what was not synced is gone.
fn cut_power(scene: &mut Scene, nodes: &[u64]) -> Episode {
    for node in nodes {
        // Something that is in memory only.
        let witness = scene.cluster.node(*node).disk.path.join("witness");
        fs::write(&witness, WITNESS).map_err(|e| format!("cannot write {}: {e}", witness.display()))?;
        scene.cluster.signal(*node, Signal::STOP);
    }
    nodes.iter().try_for_each(|node| scene.cluster.node(*node).disk.cut())?;
    nodes.iter().for_each(|node| scene.cluster.kill(*node));
    let mut lost = false;
    for node in nodes {
        let disk = &scene.cluster.node(*node).disk;
        disk.unmount()?;
        disk.mount()?;
        // Its name may have been synced along with something else, its content not.
        lost |= fs::read(disk.path.join("witness")).ok().as_deref() != Some(WITNESS);
    }
    for node in nodes {
        scene.cluster.start_node(*node)?;
        scene.hold(0, 300);
    }
    scene.cluster.wait_until_whole()?;
    Ok(lost)
}

pub fn power_one(scene: &mut Scene) -> Episode {
    let node = scene.any_node();
    cut_power(scene, &[node])
}

/// The old leader boots first.
pub fn power_all(scene: &mut Scene) -> Episode {
    let (leader, term) = scene.cluster.wait_for_leader()?;
    let mut order = vec![leader];
    order.extend(scene.nodes_but(&[leader], NODES as usize - 1));
    let lost = cut_power(scene, &order)?;
    match scene.cluster.wait_for_leader()? {
        (_, next) if next > term => Ok(lost),
        (node, next) => Err(format!("after the power cut node {node} leads in term {next}, which is not above {term}")),
    }
}

/// A killed follower, once the others have gone on well behind it: what is then done to the end of its log is no loss
/// of anything that a majority does not have.
fn kill_and_leave_behind(scene: &mut Scene) -> Result<u64, String> {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let node = scene.nodes_but(&[leader], 1)[0];
    let last = scene.cluster.statuses().iter().map(|status| status.replica.last_log).max().unwrap_or(0);
    scene.cluster.kill(node);
    let ahead = |scene: &mut Scene| {
        let others = scene.cluster.statuses();
        others.len() as u64 == NODES - 1 && others.iter().all(|status| status.replica.applied > last + 20)
    };
    match host::until(NOTICE_LIMIT, || ahead(scene)) {
        true => Ok(node),
        false => Err(format!("the others did not go on without node {node}: {}", scene.cluster.told())),
    }
}

/// The last record of a log ends in the middle, as if the power had gone while it was written.
pub fn torn(scene: &mut Scene) -> Episode {
    let node = kill_and_leave_behind(scene)?;
    let log = scene.cluster.log(node);
    let (segment, records) = last_segment(&log)?;
    let Some(last) = records.last().filter(|last| last.bytes > 1) else { return Ok(false) };
    let at = last.at + scene.dice.between(1, last.bytes - 1);
    disk::tear(&segment, at).map_err(|e| format!("cannot tear {}: {e}", segment.display()))?;
    scene.cluster.start_node(node)?;
    scene.cluster.wait_until_whole()?;
    // Where only zeros were cut off, nothing was torn.
    let kept = kept_copies(&log);
    scene.note(format!("node {node}: record at {} torn at {at}, {kept} copies kept", last.at));
    Ok(kept > 0)
}

fn kept_copies(log: &Path) -> usize {
    let names = fs::read_dir(log).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("torn-")).count()
}

/// A bit of the log turns over at rest. The node repairs it, or lives with it, or refuses to start and says where; then the
/// bit is turned back. Nobody is served anything wrong, which is for the clients to see.
pub fn flip(scene: &mut Scene) -> Episode {
    let node = kill_and_leave_behind(scene)?;
    let (segment, records) = last_segment(&scene.cluster.log(node))?;
    let Record { at, bytes } = *scene.dice.of(&records);
    let (at, bit) = (at + scene.dice.below(bytes), scene.dice.below(8) as u32);
    let turn = || disk::flip(&segment, at, bit).map_err(|e| format!("cannot flip a bit of {}: {e}", segment.display()));
    turn()?;
    scene.cluster.start_node(node)?;
    std::thread::sleep(Duration::from_millis(1500));
    if scene.cluster.runs(node) {
        scene.note(format!("node {node}: a bit at {at} turned over, and it started"));
    } else {
        let (code, said) = (scene.cluster.wait_for_end(node, Duration::ZERO), scene.cluster.last_words(node));
        if code != Some(DAMAGED) || !said.contains(&*segment.to_string_lossy()) {
            return Err(format!("node {node} found a damaged log and ended with {code:?}: {said}"));
        }
        scene.note(format!("node {node}: a bit at {at} turned over, and it refused to start"));
        turn()?;
        scene.cluster.start_node(node)?;
    }
    scene.cluster.wait_until_whole()?;
    Ok(true)
}

/// Writing and syncing fail, for real, on a disk that is whole up to there. The node must notice, and end.
pub fn failing_disk(scene: &mut Scene) -> Episode {
    let node = scene.any_node();
    scene.cluster.node(node).disk.fail()?;
    let begun = Instant::now();
    let code = scene.cluster.wait_for_end(node, NOTICE_LIMIT);
    let (took, said) = (begun.elapsed(), scene.cluster.last_words(node));
    scene.cluster.kill(node);
    scene.cluster.node(node).disk.unmount()?;
    scene.cluster.node(node).disk.mount()?;
    scene.cluster.start_node(node)?;
    scene.cluster.wait_until_whole()?;
    match code {
        Some(STORAGE_FAILED) => {
            scene.note(format!("node {node} ended with 74, {} ms after its disk had failed", took.as_millis()));
            Ok(true)
        }
        code => Err(format!("node {node} could not write and ended with {code:?}: {said}")),
    }
}

pub fn full_leader(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    fill(scene, &[leader])
}

pub fn full_followers(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let two = scene.nodes_but(&[leader], 2);
    fill(scene, &two)
}

/// No free block on these disks, while more is written than a segment holds: the others carry it. True if these said that
/// they are full, and none of them leads.
fn fill(scene: &mut Scene, nodes: &[u64]) -> Episode {
    nodes.iter().try_for_each(|node| scene.cluster.node(*node).disk.fill())?;
    let writer = scene.nodes_but(nodes, 1)[0];
    let file = scene.cluster.node(writer).mount.join("filler").display().to_string();
    let more = format!("of={file}");
    host::try_run(&["timeout", "-k", "5", "120", "dd", "if=/dev/urandom", &more, "bs=1M", "count=80"])?;
    let full = scene.cluster.full();
    let leader = scene.cluster.leader();
    for node in nodes {
        if !scene.cluster.runs(*node) {
            return Err(format!("node {node} ended because its disk was full: {}", scene.cluster.last_words(*node)));
        }
    }
    nodes.iter().for_each(|node| scene.cluster.node(*node).disk.empty());
    scene.cluster.wait_until_whole()?;
    host::try_run(&["timeout", "-k", "5", "120", "rm", "-f", &file])?;
    scene.note(format!("the disks of {nodes:?} were filled: {full:?} said so, {leader:?} (node, term) led"));
    Ok(nodes.iter().all(|node| full.contains(node)) && leader.is_none_or(|(leader, _)| !nodes.contains(&leader)))
}

/// Every sync of the leader takes two seconds.
pub fn slow_disk(scene: &mut Scene) -> Episode {
    let (leader, term) = scene.cluster.wait_for_leader()?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let disk = &scene.cluster.node(leader).disk;
        disk.freeze()?;
        std::thread::sleep(Duration::from_secs(2));
        disk.thaw()?;
        std::thread::sleep(Duration::from_millis(60));
    }
    scene.cluster.wait_until_whole()?;
    let (_, next) = scene.cluster.wait_for_leader()?;
    scene.note(format!("{} elections while each sync of the leader took 2 s for 10 s", next - term));
    match next - term {
        0..3 => Ok(true),
        many => Err(format!("{many} elections because the leader's disk was slow")),
    }
}
