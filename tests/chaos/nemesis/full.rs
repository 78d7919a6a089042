//! Disks without a free block: of a minority, which is left behind and votes on; of a majority, where nothing grows.

use super::storage::NOTICE_LIMIT;
use super::{Episode, Scene};
use crate::host;

/// More than a node with a full disk can take: what is left of its segment, and its reserve.
const TOO_MUCH_MIB: u64 = 400;

pub fn leader(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    fill(scene, &[leader])
}

pub fn followers(scene: &mut Scene) -> Episode {
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
    write(&file, 80)?;
    let full = scene.cluster.full();
    let leader = scene.cluster.leader();
    expect_running(scene, nodes)?;
    nodes.iter().for_each(|node| scene.cluster.node(*node).disk.empty());
    scene.cluster.wait_until_whole()?;
    remove(&file)?;
    scene.note(format!("the disks of {nodes:?} were filled: {full:?} said so, {leader:?} (node, term) led"));
    Ok(nodes.iter().all(|node| full.contains(node)) && leader.is_none_or(|(leader, _)| !nodes.contains(&leader)))
}

/// Three of five have no room: what grows is refused, and so it is known that nothing of it was done; deletes succeed.
/// When there is room again, all goes on by itself.
pub fn majority(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let mut three = scene.nodes_but(&[leader], 2);
    three.push(leader);
    let writer = scene.any_node();
    let mount = scene.cluster.node(writer).mount.clone();
    let [old, new] = ["ballast", "filler"].map(|name| mount.join(name).display().to_string());
    write(&old, 4)?;
    three.iter().try_for_each(|node| scene.cluster.node(*node).disk.fill())?;
    match write(&new, TOO_MUCH_MIB) {
        Err(why) if why.contains("No space left on device") => {}
        other => return Err(format!("{TOO_MUCH_MIB} MiB were written while three disks were full: {other:?}")),
    }
    // What the clients go on to write takes what is left.
    let all_full = |scene: &Scene| three.iter().all(|node| scene.cluster.full().contains(node));
    let said = host::until(NOTICE_LIMIT, || all_full(scene));
    remove(&old).map_err(|why| format!("a delete while three disks are full: {why}"))?;
    scene.hold(500, 2500);
    expect_running(scene, &three)?;
    three.iter().for_each(|node| scene.cluster.node(*node).disk.empty());
    scene.cluster.wait_until_whole()?;
    if !host::until(NOTICE_LIMIT, || write(&old, 4).is_ok()) {
        return Err(format!("there is room again, and no write succeeds: {:?} are full", scene.cluster.full()));
    }
    remove(&old)?;
    remove(&new)?;
    scene.note(format!("the disks of {three:?} were filled; all of them said so: {said}"));
    Ok(said)
}

fn expect_running(scene: &mut Scene, nodes: &[u64]) -> Result<(), String> {
    match nodes.iter().find(|node| !scene.cluster.runs(**node)) {
        Some(node) => Err(format!("node {node} ended because its disk was full: {}", scene.cluster.last_words(*node))),
        None => Ok(()),
    }
}

fn write(file: &str, mebibytes: u64) -> Result<(), String> {
    let (to, count) = (format!("of={file}"), format!("count={mebibytes}"));
    host::try_run(&["timeout", "-k", "5", "120", "dd", "if=/dev/urandom", &to, "bs=1M", &count]).map(drop)
}

fn remove(file: &str) -> Result<(), String> {
    host::try_run(&["timeout", "-k", "5", "120", "rm", "-f", file]).map(drop)
}
