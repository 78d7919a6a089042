//! Members come and go while clients work: a machine that was lost is replaced, the leader is removed and its machine joins
//! anew. Numbers are never given twice.

use super::{Episode, Scene};
use crate::cluster::{NODES, PATIENCE};
use crate::host::until;
use std::collections::BTreeMap;
use std::fs;

/// The disk of a node is lost with all that was on it; a new node takes its place.
pub fn replace(scene: &mut Scene) -> Episode {
    let place = scene.any_node();
    let (before, old) = (members(scene)?, number_at(scene, place)?);
    scene.cluster.kill(place);
    wipe(scene, place)?;
    let (number, data) = (old.to_string(), scene.cluster.data(place).display().to_string());
    let others = scene.cluster.addresses_but(place);
    scene.cluster.keelfs(&["member", "replace", &number, "--data", &data, "--node", &others])?;
    scene.cluster.start_node(place)?;
    became_whole(scene, place, &before)
}

/// The leader is told to go, goes, and its machine becomes another node.
pub fn remove_leader(scene: &mut Scene) -> Episode {
    let (place, _) = scene.cluster.wait_for_leader()?;
    let (before, old) = (members(scene)?, number_at(scene, place)?);
    let others = scene.cluster.addresses_but(place);
    scene.cluster.keelfs(&["member", "remove", &old.to_string(), "--node", &others])?;
    if !until(PATIENCE, || !scene.cluster.runs(place)) {
        return Err(format!("node {old} was removed, and its process does not end"));
    }
    scene.cluster.wait_for_leader_but(Some(place))?;
    scene.hold(0, 2000);
    wipe(scene, place)?;
    let (address, data) = (scene.cluster.address(place), scene.cluster.data(place).display().to_string());
    scene.cluster.keelfs(&["join", "--data", &data, "--address", &address, "--node", &others])?;
    scene.cluster.start_node(place)?;
    became_whole(scene, place, &before)
}

fn wipe(scene: &mut Scene, place: u64) -> Result<(), String> {
    let data = scene.cluster.data(place);
    fs::remove_dir_all(&data).map_err(|e| format!("cannot remove {}: {e}", data.display()))
}

/// Five voters again, the new one under a number that nobody had.
fn became_whole(scene: &mut Scene, place: u64, before: &BTreeMap<u64, String>) -> Episode {
    let mut last = BTreeMap::new();
    let voting = until(PATIENCE, || {
        last = members(scene).unwrap_or_default();
        last.len() as u64 == NODES && last.values().all(|role| role == "voter" || role == "leader")
    });
    if !voting {
        return Err(format!("five voters are not there within {PATIENCE:?}: {last:?}"));
    }
    scene.cluster.wait_until_whole()?;
    let new = number_at(scene, place)?;
    scene.note(format!("node {new} has taken place {place}"));
    match before.contains_key(&new) {
        true => Err(format!("the number {new} was given twice")),
        false => Ok(true),
    }
}

/// Number and role.
fn members(scene: &mut Scene) -> Result<BTreeMap<u64, String>, String> {
    let nodes = scene.cluster.addresses_but(0);
    let told = scene.cluster.keelfs(&["member", "list", "--json", "--node", &nodes])?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&told).map_err(|e| format!("member list: {e}: {told}"))?;
    let row = |row: &serde_json::Value| Some((row["id"].as_u64()?, row["role"].as_str()?.to_owned()));
    Ok(rows.iter().filter_map(row).collect())
}

fn number_at(scene: &Scene, place: u64) -> Result<u64, String> {
    let mut number = None;
    until(PATIENCE, || {
        number = scene.cluster.number_at(place);
        number.is_some()
    });
    number.ok_or_else(|| format!("the node at place {place} does not answer"))
}
