//! Members come and go while clients work: a machine that was lost is replaced, the leader is removed and its machine joins
//! anew. Numbers are never given twice.

use super::{Episode, Scene};
use crate::cluster::{GUEST, NODES, PATIENCE, wait};
use crate::host::until;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Child;

/// The disk of a node is lost with all that was on it; a new node takes its place.
pub fn replace(scene: &mut Scene) -> Episode {
    let place = scene.any_node();
    let (before, old) = (members(scene)?, number_at(scene, place)?);
    scene.cluster.kill(place);
    put_anew(scene, place, old, &before)
}

/// An empty node takes the place of this one, which does not run.
pub fn put_anew(scene: &mut Scene, place: u64, old: u64, before: &BTreeMap<u64, String>) -> Episode {
    wipe(scene, place)?;
    let (number, data) = (old.to_string(), scene.cluster.data(place).display().to_string());
    let others = scene.cluster.addresses_but(place);
    scene.cluster.keelfs(&["member", "replace", &number, "--data", &data, "--node", &others])?;
    scene.cluster.start_node(place)?;
    became_whole(scene, place, before)
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

/// A sixth node joins and gets its vote, and goes again.
pub fn add(scene: &mut Scene) -> Episode {
    let before = members(scene)?;
    let directory = scene.cluster.setup.directory.join("guest");
    let (data, all) = (directory.join("data").display().to_string(), scene.cluster.addresses_but(0));
    fs::create_dir_all(&directory).map_err(|e| format!("cannot make {}: {e}", directory.display()))?;
    let address = scene.cluster.address(GUEST);
    scene.cluster.keelfs(&["join", "--data", &data, "--address", &address, "--node", &all])?;
    let process = scene.cluster.serve(GUEST, &directory.join("data"))?;
    let mut guest = Guest { process, directory };
    let six = voters(scene, NODES + 1)?;
    let new: Vec<u64> = six.keys().filter(|number| !before.contains_key(number)).copied().collect();
    let &[number] = new.as_slice() else { return Err(format!("{six:?} were {before:?} before one joined")) };
    scene.hold(1000, 4000);
    let checked = scene.cluster.check(&format!("{all},{address}"))?;
    if checked["agree"] != true {
        return Err(format!("six replicas do not agree: {checked}"));
    }
    match scene.dice.percent(50) {
        true => scene.cluster.keelfs(&["member", "remove", &number.to_string(), "--node", &all])?,
        false => scene.cluster.keelfs(&["leave", "--data", &data])?,
    };
    match wait(&mut guest.process, PATIENCE) {
        Some(status) if status.success() => {}
        other => return Err(format!("node {number} was removed, and its process ended with {other:?}")),
    }
    if voters(scene, NODES)?.keys().ne(before.keys()) {
        return Err(format!("the members were {before:?} before one joined and left"));
    }
    scene.cluster.wait_until_whole()?;
    scene.note(format!("node {number} joined, voted and left"));
    Ok(true)
}

/// The process of a node that is there for a while, and where its data is.
struct Guest {
    process: Child,
    directory: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn wipe(scene: &mut Scene, place: u64) -> Result<(), String> {
    let data = scene.cluster.data(place);
    fs::remove_dir_all(&data).map_err(|e| format!("cannot remove {}: {e}", data.display()))
}

/// Five voters again, the new one under a number that nobody had.
fn became_whole(scene: &mut Scene, place: u64, before: &BTreeMap<u64, String>) -> Episode {
    voters(scene, NODES)?;
    scene.cluster.wait_until_whole()?;
    let new = number_at(scene, place)?;
    scene.note(format!("node {new} has taken place {place}"));
    match before.contains_key(&new) {
        true => Err(format!("the number {new} was given twice")),
        false => Ok(true),
    }
}

/// Wait until the cluster has so many voters and nobody else.
fn voters(scene: &mut Scene, count: u64) -> Result<BTreeMap<u64, String>, String> {
    let mut last = BTreeMap::new();
    let voting = until(PATIENCE, || {
        last = members(scene).unwrap_or_default();
        last.len() as u64 == count && last.values().all(|role| role == "voter" || role == "leader")
    });
    if voting { Ok(last) } else { Err(format!("{count} voters are not there within {PATIENCE:?}: {last:?}")) }
}

/// Number and role.
pub fn members(scene: &mut Scene) -> Result<BTreeMap<u64, String>, String> {
    let nodes = scene.cluster.addresses_but(0);
    let told = scene.cluster.keelfs(&["member", "list", "--json", "--node", &nodes])?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&told).map_err(|e| format!("member list: {e}: {told}"))?;
    let row = |row: &serde_json::Value| Some((row["id"].as_u64()?, row["role"].as_str()?.to_owned()));
    Ok(rows.iter().filter_map(row).collect())
}

pub fn number_at(scene: &Scene, place: u64) -> Result<u64, String> {
    let mut number = None;
    until(PATIENCE, || {
        number = scene.cluster.number_at(place);
        number.is_some()
    });
    number.ok_or_else(|| format!("the node at place {place} does not answer"))
}
