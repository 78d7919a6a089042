//! Faults of the network: packets are dropped where they arrive. A node's mount is cut off with it.

use super::held::{Gone, Held};
use super::{Episode, Scene};
use crate::cluster::NODES;
use std::time::Instant;

type Ways = Vec<(u64, u64, u64)>;

/// Nothing passes between these and the others.
fn cut(some: &[u64]) -> Ways {
    pairs(|from, to| some.contains(&from) != some.contains(&to))
}

fn pairs(is_cut: impl Fn(u64, u64) -> bool) -> Ways {
    let all = (1..=NODES).flat_map(|from| (1..=NODES).map(move |to| (from, to)));
    all.filter(|(from, to)| from != to && is_cut(*from, *to)).map(|(from, to)| (from, to, 100)).collect()
}

/// Drop, hold, heal; true if anything was dropped.
fn hold(scene: &mut Scene, ways: &Ways, during: impl FnOnce(&mut Scene) -> Result<(), String>) -> Episode {
    scene.cluster.network.drop_packets(ways);
    let held = during(scene);
    let dropped = scene.cluster.network.dropped();
    scene.cluster.network.drop_packets(&[]);
    held?;
    scene.cluster.wait_until_whole()?;
    Ok(dropped > 0)
}

pub fn cut_minority(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let two = scene.nodes_but(&[leader], 2);
    hold(scene, &cut(&two), |scene| {
        scene.hold_perhaps_until_calls_fail(3000, 7000);
        Ok(())
    })
}

pub fn cut_leader(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    hold(scene, &cut(&[leader]), |scene| {
        scene.cluster.wait_for_leader_but(Some(leader))?;
        scene.hold(1000, 5000);
        Ok(())
    })
}

pub fn cut_leader_minority(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    let another = scene.nodes_but(&[leader], 1)[0];
    hold(scene, &cut(&[leader, another]), |scene| {
        scene.cluster.wait_for_leader_but(Some(leader))?;
        scene.hold(1000, 5000);
        Ok(())
    })
}

/// The leader is heard and hears nobody. Its heartbeats keep the others quiet until its connections break, for want of
/// anything that acknowledges them; then there is another leader.
pub fn one_way(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    hold(scene, &pairs(|_, to| to == leader), |scene| {
        let begun = Instant::now();
        scene.cluster.wait_for_leader_but(Some(leader))?;
        scene.note(format!("another leader after {:.1} s", begun.elapsed().as_secs_f64()));
        scene.hold(500, 3000);
        Ok(())
    })
}

/// The leader hears everybody and is heard by nobody: there is another leader, whom the old one hears.
pub fn mute_leader(scene: &mut Scene) -> Episode {
    let (leader, _) = scene.cluster.wait_for_leader()?;
    hold(scene, &pairs(|from, _| from == leader), |scene| {
        let begun = Instant::now();
        scene.cluster.wait_for_leader_but(Some(leader))?;
        scene.note(format!("another leader after {:.1} s", begun.elapsed().as_secs_f64()));
        scene.hold(500, 5000);
        Ok(())
    })
}

/// Each node reaches its two neighbours only: a majority with itself, and another one for each.
pub fn ring(scene: &mut Scene) -> Episode {
    let ways = pairs(|from, to| ![1, NODES - 1].contains(&from.abs_diff(to)));
    hold(scene, &ways, |scene| {
        scene.hold_perhaps_until_calls_fail(5000, 10_000);
        Ok(())
    })
}

pub fn lossy(scene: &mut Scene) -> Episode {
    let percent = scene.dice.between(5, 25);
    let ways = pairs(|_, _| true).into_iter().map(|(from, to, _)| (from, to, percent)).collect();
    hold(scene, &ways, |scene| {
        scene.hold(4000, 8000);
        Ok(())
    })
}

/// A machine is cut off for longer than its mount's session lives: what it holds goes to others.
pub fn cut_holder(scene: &mut Scene) -> Episode {
    let node = scene.any_node();
    let other = scene.nodes_but(&[node], 1)[0];
    let held = Held::by(scene, node)?;
    let mut gone = None;
    let happened = hold(scene, &cut(&[node]), |scene| {
        scene.cluster.wait_for_leader_but(Some(node))?;
        gone = Some(held.goes_to(scene, other)?);
        Ok(())
    })?;
    gone.map_or(Ok(()), Gone::must_be_lost)?;
    Ok(happened)
}
