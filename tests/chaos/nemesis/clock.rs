//! The wall clock of the leader jumps: an hour ahead, an hour back, to and fro. Nothing that expires notices, nobody is
//! elected, and the time of a file never goes back.

use super::{Episode, Scene};
use crate::host;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

const HOUR_S: i64 = 3600;

pub fn shift(scene: &mut Scene) -> Episode {
    let (leader, term) = scene.cluster.wait_for_leader()?;
    let file = scene.cluster.node(leader).mount.join("times");
    let mut last = written(&file)?;
    let mut went_ahead = false;
    for seconds in [HOUR_S, -HOUR_S, HOUR_S, -HOUR_S, HOUR_S, 0] {
        scene.cluster.shift_clock(leader, seconds);
        // The node looks at its clock's file every second.
        scene.hold(1100, 1600);
        let time = written(&file)?;
        if time < last {
            return Err(format!("the time of a file went back by {:?}", last.duration_since(time)));
        }
        went_ahead |= time > SystemTime::now() + Duration::from_secs(HOUR_S as u64 / 2);
        last = time;
    }
    scene.cluster.wait_until_whole()?;
    match scene.cluster.wait_for_leader()? {
        (_, next) if next == term => Ok(went_ahead),
        (_, next) => Err(format!("the leader's wall clock jumped, and the term went from {term} to {next}")),
    }
}

/// Append to it; its time of modification.
fn written(file: &Path) -> Result<SystemTime, String> {
    let script = format!("echo again >> {}", file.display());
    host::try_run(&["timeout", "-k", "5", "40", "sh", "-c", &script])?;
    let metadata = fs::metadata(file).map_err(|e| format!("cannot look at {}: {e}", file.display()))?;
    metadata.modified().map_err(|e| e.to_string())
}
