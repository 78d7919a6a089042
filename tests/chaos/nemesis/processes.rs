//! Faults of processes: killed, paused, restarted.

use super::held::Held;
use super::{Episode, Scene};
use crate::cluster::{NODES, PATIENCE, wait};
use crate::host;
use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A killed program that waits for us must end; this tells an end from none.
const KILLED_LIMIT: Duration = Duration::from_secs(20);

pub fn kill_leader(scene: &mut Scene) -> Episode {
    let (leader, term) = scene.cluster.wait_for_leader()?;
    scene.cluster.kill(leader);
    let (_, next) = scene.cluster.wait_for_leader_but(Some(leader))?;
    scene.hold(0, 3000);
    scene.cluster.start_node(leader)?;
    scene.cluster.wait_until_whole()?;
    Ok(next > term)
}

pub fn kill_followers(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let two = scene.nodes_but(&[leader], 2);
    two.iter().for_each(|node| scene.cluster.kill(*node));
    scene.hold(1500, 4000);
    let (_, _) = scene.cluster.wait_for_leader()?;
    two.iter().try_for_each(|node| scene.cluster.start_node(*node))?;
    scene.cluster.wait_until_whole()?;
    Ok(true)
}

/// Service comes back by itself when one of three returns. Meanwhile whoever waits can be killed.
pub fn kill_majority(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let mut three = scene.nodes_but(&[leader], 2);
    three.push(leader);
    let left = scene.nodes_but(&three, 1)[0];
    three.iter().for_each(|node| scene.cluster.kill(*node));
    kill_a_caller(scene, left)?;
    scene.hold_perhaps_until_calls_fail(500, 3000);
    let Some((first, rest)) = three.split_first() else { return Ok(false) };
    scene.cluster.start_node(*first)?;
    scene.cluster.wait_for_leader()?;
    rest.iter().try_for_each(|node| scene.cluster.start_node(*node))?;
    scene.cluster.wait_until_whole()?;
    Ok(true)
}

/// A program that writes without a majority waits; killed, it ends.
fn kill_a_caller(scene: &mut Scene, node: u64) -> Result<(), String> {
    let path = scene.cluster.node(node).mount.join("killed");
    let mut caller = Command::new("dd");
    caller.args(["if=/dev/zero", "bs=1", "count=1", "conv=notrunc", &format!("of={}", path.display())]);
    let mut caller =
        caller.stdin(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| format!("cannot run dd: {e}"))?;
    if wait(&mut caller, Duration::from_millis(700)).is_some_and(|status| status.success()) {
        return Err("a write was acknowledged without a majority".into());
    }
    let _ = caller.kill();
    let begun = Instant::now();
    match wait(&mut caller, KILLED_LIMIT) {
        Some(_) => scene.note(format!("a killed caller ended after {} ms", begun.elapsed().as_millis())),
        None => return Err(format!("a killed caller did not end within {KILLED_LIMIT:?}")),
    }
    Ok(())
}

pub fn kill_all(scene: &mut Scene) -> Episode {
    let (_, term) = scene.cluster.wait_for_leader()?;
    (1..=NODES).for_each(|node| scene.cluster.kill(node));
    scene.hold(0, 1000);
    for node in scene.nodes_but(&[], NODES as usize) {
        scene.cluster.start_node(node)?;
        scene.hold(0, 600);
    }
    scene.cluster.wait_until_whole()?;
    let (_, next) = scene.cluster.wait_for_leader()?;
    match next > term {
        true => Ok(true),
        false => Err(format!("after all were killed the term is {next}; it was {term}: an old leader went on")),
    }
}

pub fn pause_leader(scene: &mut Scene) -> Episode {
    let (leader, term) = scene.cluster.wait_for_leader()?;
    scene.cluster.signal(leader, Signal::STOP);
    let next = scene.cluster.wait_for_leader_but(Some(leader));
    match scene.dice.percent(30) {
        true => scene.hold(10_000, 10_500),
        false => scene.hold(500, 6000),
    }
    scene.cluster.signal(leader, Signal::CONT);
    let (_, next) = next?;
    scene.cluster.wait_until_whole()?;
    Ok(next > term)
}

/// One or two others sleep, and the service goes on; awake again, they catch up and depose nobody.
pub fn pause_followers(scene: &mut Scene) -> Episode {
    let (leader, term) = scene.cluster.wait_for_leader()?;
    let count = scene.dice.between(1, 2) as usize;
    let some = scene.nodes_but(&[leader], count);
    some.iter().for_each(|node| scene.cluster.signal(*node, Signal::STOP));
    scene.hold(3000, 9000);
    let answered = scene.cluster.statuses().len();
    some.iter().for_each(|node| scene.cluster.signal(*node, Signal::CONT));
    scene.cluster.wait_until_whole()?;
    let (_, next) = scene.cluster.wait_for_leader()?;
    scene.note(format!("{some:?} were paused; the term went from {term} to {next}"));
    Ok(answered + count <= NODES as usize)
}

pub fn rolling_restart(scene: &mut Scene) -> Episode {
    for node in scene.nodes_but(&[], NODES as usize) {
        match scene.cluster.stop(node)? {
            Some(0) => {}
            code => return Err(format!("node {node} was asked to end and did so with {code:?}")),
        }
        scene.cluster.start_node(node)?;
        scene.cluster.wait_until_whole()?;
    }
    Ok(true)
}

/// A mount sleeps for longer than its session lives: what it held is another's, and awake it begins a new session.
pub fn pause_mount(scene: &mut Scene) -> Episode {
    let node = scene.any_node();
    let other = scene.nodes_but(&[node], 1)[0];
    let held = Held::by(scene, node)?;
    scene.cluster.signal_mount(node, Signal::STOP);
    let gone = held.goes_to(scene, other);
    scene.cluster.signal_mount(node, Signal::CONT);
    let gone = gone?;
    scene.hold(500, 3000);
    gone.must_be_lost()?;
    let file = scene.cluster.node(node).mount.join("awake").display().to_string();
    let write = || host::try_run(&["timeout", "-k", "5", "40", "sh", "-c", &format!("echo again >> {file}")]).is_ok();
    match host::until(PATIENCE, write) {
        true => Ok(true),
        false => Err(format!("the mount of node {node} was paused, and nothing can be written through it any more")),
    }
}
