//! Faults of whole disks: power cuts, failing and slow syncs.

use super::{Episode, Scene};
use crate::cluster::NODES;
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, Instant};

/// What a node says with its exit code.
const STORAGE_FAILED: i32 = 74;
/// What is written before a power cut and never synced.
const WITNESS: &[u8] = b"not synced";
/// How long a node may take to notice; it tells noticing from not noticing.
pub const NOTICE_LIMIT: Duration = Duration::from_secs(40);

/// For so long each sync takes two seconds.
const SLOW_TIME: Duration = Duration::from_secs(8);

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

/// Every sync of the leader takes two seconds, and then every one of a follower.
pub fn slow_disk(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    slow(scene, leader, "the leader")?;
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let follower = scene.nodes_but(&[leader], 1)[0];
    slow(scene, follower, "a follower")?;
    Ok(true)
}

/// At most one change of leader comes of it, whatever the node is.
fn slow(scene: &mut Scene, node: u64, what: &str) -> Result<(), String> {
    let (_, term) = scene.cluster.wait_for_leader()?;
    let begun = Instant::now();
    while begun.elapsed() < SLOW_TIME {
        let disk = &scene.cluster.node(node).disk;
        disk.freeze()?;
        std::thread::sleep(Duration::from_secs(2));
        disk.thaw()?;
        std::thread::sleep(Duration::from_millis(60));
    }
    scene.cluster.wait_until_whole()?;
    let (_, next) = scene.cluster.wait_for_leader()?;
    scene.note(format!("{} changes of leader while each sync of {what} took 2 s", next - term));
    match next - term {
        0..2 => Ok(()),
        many => Err(format!("{many} elections because the disk of {what} was slow")),
    }
}
