//! `keelfs cluster stop` and `destroy`: unmount, then end the nodes.

use super::config::{ClusterDir, NodeConfig};
use super::process;
use super::{is_foreign_mount, mount_server, server};
use crate::cli::args::{DestroyArgs, DirArgs};
use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::mounts::{self, Found, Unmount};
use crate::cli::output::{Output, warn};
use crate::fuse::table;
use crate::log::{DirectoryLock, StorageError};
use serde_json::json;
use std::fs;
use std::io::{IsTerminal, Write, stderr, stdin};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a node may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether a node's data is free.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a mount's process may take to end after its mount.
const MOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// `keelfs cluster stop`
pub fn stop(args: DirArgs, output: Output) -> CliResult {
    let cluster = ClusterDir::load(&args.dir)?;
    let _lock = ClusterDir::lock(&cluster.dir)?;
    let all: Vec<_> = cluster.config.nodes.iter().collect();
    end_mounts(&cluster)?;
    let ended = end_nodes(&cluster, &all, output)?;
    let (dir, what) = (cluster.dir.display(), json!({ "stopped": ended, "dir": cluster.dir }));
    output.show(&what, || match ended {
        0 => format!("nothing was running; the data is in {dir}"),
        _ => format!("{ended} nodes stopped; the data is in {dir}"),
    })
}

/// End the processes of these nodes. How many were running.
pub fn end_nodes(cluster: &ClusterDir, nodes: &[&NodeConfig], output: Output) -> CliResult<usize> {
    let servers: Vec<_> = nodes.iter().filter_map(|node| server(cluster, node)).collect();
    for pid in process::end(&servers, PATIENCE)? {
        output.say(&format!("process {pid} did not end within {} s and was killed", PATIENCE.as_secs()))?;
    }
    nodes.iter().try_for_each(|node| hold(cluster, node, PATIENCE).map(drop))?;
    nodes.iter().try_for_each(|node| forget_pid(cluster, node))?;
    Ok(servers.len())
}

/// Keep everybody from this node's data. Whoever has it locked for so long is a process that does not end, or a node that
/// we do not know for one: of another build, under another name.
fn hold(cluster: &ClusterDir, node: &NodeConfig, patience: Duration) -> CliResult<Option<DirectoryLock>> {
    let (data, deadline) = (cluster.data(node.id), Instant::now() + patience);
    if !data.exists() {
        return Ok(None);
    }
    loop {
        match DirectoryLock::acquire(&data) {
            Ok(lock) => return Ok(Some(lock)),
            // A process that ends lets go of its files last.
            Err(StorageError::InUse { .. }) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            Err(StorageError::InUse { holder, .. }) => {
                return Err(CliError::failed(format!(
                    "node {} still runs, as process {holder}: it has {} locked; end that process, then try again",
                    node.id,
                    data.display()
                )));
            }
            // Nobody has it: what else is wrong with it is for those who want to use it.
            Err(_) => return Ok(None),
        }
    }
}

/// Unmount everywhere, before the nodes end, so that programs see a clean end instead of a dead mount.
fn end_mounts(cluster: &ClusterDir) -> CliResult {
    let paths: Vec<_> = cluster.config.nodes.iter().filter_map(|node| node.mount.as_deref()).collect();
    paths.iter().try_for_each(|path| unmount(cluster, path))?;
    // Each process ends its session when its mount has ended; one that programs still use is ended with them.
    let deadline = Instant::now() + MOUNT_PATIENCE;
    for path in paths {
        let Some(server) = mount_server(cluster, path) else { continue };
        if !server.wait_gone(deadline) {
            process::end(&[server], MOUNT_PATIENCE)?;
        }
    }
    Ok(())
}

/// A mount that programs use, or whose process is gone, is taken out of sight at once. Another cluster may have been
/// mounted at the same path since: that is not ours to end.
fn unmount(cluster: &ClusterDir, path: &Path) -> CliResult {
    if mounts::found(path) != Found::Ours {
        return Ok(());
    }
    if is_foreign_mount(cluster, path) {
        warn(&format!("{} is a mount that this cluster has not made: it is left alone", path.display()));
        return Ok(());
    }
    match mounts::release(path, Unmount::Clean) {
        Ok(()) => Ok(()),
        Err(_) => {
            mounts::release(path, Unmount::Lazy)?;
            warn(&format!("{} was in use and has been detached: programs with files in it see errors", path.display()));
            Ok(())
        }
    }
}

fn forget_pid(cluster: &ClusterDir, node: &NodeConfig) -> CliResult {
    remove_if_there(&cluster.pid_file(node.id))
}

fn remove_if_there(file: &Path) -> CliResult {
    match fs::remove_file(file) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
            Err(why).tried(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// `keelfs cluster destroy`
pub fn destroy(args: DestroyArgs, output: Output) -> CliResult {
    let cluster = ClusterDir::load(&args.at.dir)?;
    if !args.yes {
        confirm(&cluster)?;
    }
    let _lock = ClusterDir::lock(&cluster.dir)?;
    let all: Vec<_> = cluster.config.nodes.iter().collect();
    end_mounts(&cluster)?;
    end_nodes(&cluster, &all, output)?;
    remove_cluster(&cluster)?;
    let dir = cluster.dir.display();
    output.show(&json!({ "destroyed": cluster.dir }), || match cluster.dir.exists() {
        false => format!("{dir} is gone"),
        true => format!("the cluster is gone; {dir} holds other things and stays"),
    })
}

fn confirm(cluster: &ClusterDir) -> CliResult {
    let dir = cluster.dir.display();
    if !stdin().is_terminal() {
        return Err(CliError::usage(format!("destroying {dir} deletes all its data: say --yes")));
    }
    let _ = write!(stderr(), "delete the cluster in {dir} with all its data? [y/N] ").and_then(|()| stderr().flush());
    let mut answer = String::new();
    stdin().read_line(&mut answer).tried(|| "cannot read the answer".into())?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::failed(format!("{dir} was left as it is"))),
    }
}

/// Remove what `start` made, cluster.toml last, and the directory itself if nothing else is in it.
fn remove_cluster(cluster: &ClusterDir) -> CliResult {
    let inside = table::mounts().into_iter().find(|mount| mount.path.starts_with(&cluster.dir));
    if let Some(mount) = inside {
        return Err(CliError::failed(format!(
            "cannot delete {}: {} is mounted in it; unmount that first",
            cluster.dir.display(),
            mount.path.display()
        )));
    }
    let nodes = &cluster.config.nodes;
    let _held = nodes.iter().map(|node| hold(cluster, node, Duration::ZERO)).collect::<CliResult<Vec<_>>>()?;
    for node in nodes {
        let data = cluster.data(node.id);
        if data.exists() {
            fs::remove_dir_all(&data).tried(|| format!("cannot delete {}", data.display()))?;
        }
        remove_if_there(&cluster.log(node.id))?;
        remove_if_there(&cluster.mount_log(node.id))?;
        remove_if_there(&cluster.pid_file(node.id))?;
    }
    if cluster.all_keys().exists() && cluster.config.tls {
        fs::remove_dir_all(cluster.all_keys()).tried(|| format!("cannot delete {}", cluster.all_keys().display()))?;
    }
    remove_if_there(&cluster.config_file())?;
    match fs::remove_dir(&cluster.dir) {
        Err(why) if why.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
            Err(why).tried(|| format!("cannot remove {}", cluster.dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::config::ClusterConfig;

    #[test]
    fn only_what_start_made_is_deleted() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().canonicalize().unwrap().join("cluster");
        let node = NodeConfig { id: 1, address: "127.0.0.1:1".parse().unwrap(), cs733: None, mount: None };
        let cluster = ClusterDir { dir: dir.clone(), config: ClusterConfig::new(vec![node], true) };
        fs::create_dir_all(cluster.data(1).join("log")).unwrap();
        fs::write(dir.join("mine"), "precious").unwrap();
        cluster.make_keys().unwrap();
        cluster.save().unwrap();
        let in_use = DirectoryLock::acquire(&cluster.data(1)).unwrap();
        let refused = remove_cluster(&cluster).unwrap_err().to_string();
        assert!(refused.contains(&format!("as process {}:", std::process::id())), "{refused}");
        assert!(cluster.data(1).join("log").exists() && cluster.config_file().exists());
        drop(in_use);
        remove_cluster(&cluster).unwrap();
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["mine"]);
        fs::remove_file(dir.join("mine")).unwrap();
        remove_cluster(&cluster).unwrap();
        assert!(!dir.exists());
    }
}
