//! `keelfs mount` and `keelfs umount`: a mount without a replica in its process.

use crate::cli::args::{MountArgs, UmountArgs};
use crate::cli::block_on;
use crate::cli::cluster::process::{self, leave_session};
use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::keys;
use crate::cli::mounts::{self, Found, Life, Unmount};
use crate::cli::output::{Output, warn};
use crate::cli::remote::Remote;
use crate::fuse::{self, Mount, MountOptions};
use crate::node::exit::Exit;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

/// How long the cluster may take to answer before a mount is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often we look whether a mount has come, or gone.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a mount that is given up may take to unmount by itself.
const LAST_WORDS: Duration = Duration::from_secs(5);
const REMOUNT: &str = "remount";
/// The mount option that names the directory of keys.
const TLS: &str = "tls=";

/// `keelfs mount`
pub fn mount(args: MountArgs, output: Output) -> CliResult {
    if args.own_session {
        leave_session()?;
    }
    let dir = mounts::absolute(&args.dir)?;
    if args.options.iter().any(|word| word == REMOUNT) {
        return remount(&args, &dir);
    }
    let mut options = mount_options(&but_keys(&args.options))?;
    options.source = source(&args);
    mounts::prepare(&dir)?;
    match args.background {
        true => mount_in_background(&args, &dir, output),
        false => block_on(serve_mount(&args, &dir, options)),
    }
}

/// `mount -o remount,ro DIR`: other flags for a mount that is there. What is not named stays as it is, also what the mount's
/// own process was told: mount(8) repeats the words of fstab or of its table.
fn remount(args: &MountArgs, dir: &Path) -> CliResult {
    let what = || format!("cannot remount {}", dir.display());
    let mut options = fuse::flags_of(dir).tried(what)?;
    // Its process keeps the keys that it has.
    take(&mut options, &but_keys(&args.options))?;
    fuse::remount(dir, &options).tried(what)
}

/// As fstab has it, so that mount(8) and umount(8) find the mount by it.
fn source(args: &MountArgs) -> String {
    args.source.clone().unwrap_or_else(|| format!("{}:/", spelled(args)))
}

fn spelled(args: &MountArgs) -> String {
    args.nodes.0.iter().map(|address| address.to_string()).collect::<Vec<_>>().join(",")
}

/// From `--tls`, else from the words of `-o`, which is what fstab has.
fn directory_of_keys(args: &MountArgs) -> Option<&Path> {
    let option = args.options.iter().rev().find_map(|word| word.strip_prefix(TLS)).map(Path::new);
    args.tls.as_deref().or(option)
}

/// The words of `-o` that say how the mount behaves.
fn but_keys(words: &[String]) -> Vec<String> {
    words.iter().filter(|word| !word.starts_with(TLS)).cloned().collect()
}

/// Serve until a signal comes or somebody unmounts.
async fn serve_mount(args: &MountArgs, dir: &Path, options: MountOptions) -> CliResult {
    // A mount that nobody answers would only make programs wait: say so now.
    let keys = keys::of_client(directory_of_keys(args))?;
    // Nil: whichever cluster answers.
    let cluster = args.cluster.unwrap_or_default();
    let remote = Remote::to(args.nodes.0.clone(), cluster, keys, PATIENCE)?.pinned().await?;
    let volume = remote.volume(&format!("mount {}", dir.display()));
    let what = || format!("cannot mount at {}", dir.display());
    let (mounting, runtime, at) = (volume.clone(), tokio::runtime::Handle::current(), dir.to_owned());
    let mounted = tokio::task::spawn_blocking(move || fuse::mount(mounting, runtime, &at, options)).await;
    let mounted = mounted.tried(what)?.tried(what)?;
    let ended = until_told_or_unmounted(&mounted).await;
    let unmounted = tokio::task::spawn_blocking(move || mounted.unmount()).await;
    volume.close().await;
    let what = || format!("cannot unmount {}", dir.display());
    unmounted.tried(what)?.tried(what)?;
    ended
}

async fn until_told_or_unmounted(mounted: &Mount) -> CliResult {
    let listen = |kind| signal(kind).tried(|| "cannot listen for signals".into());
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        end = mounted.ended() => end.tried(|| format!("the mount at {} ended", mounted.path().display())),
    }
}

/// Run this very command in a process of its own, and watch until its mount answers.
fn mount_in_background(args: &MountArgs, dir: &Path, output: Output) -> CliResult {
    let log = args
        .log
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("keelfs-mount-{}.log", Uuid::new_v4().simple())));
    let log = std::path::absolute(&log).tried(|| format!("cannot write {}", log.display()))?;
    let (nodes, source, options) = (spelled(args), source(args), args.options.join(","));
    let keys = keys::directory(directory_of_keys(args))?;
    let cluster = args.cluster.map(|cluster| cluster.to_string());
    let mut words: Vec<&OsStr> = ["mount", "--own-session", &nodes].map(OsStr::new).into();
    words.extend([dir.as_os_str(), OsStr::new("--source"), OsStr::new(&source)]);
    if let Some(cluster) = &cluster {
        words.extend([OsStr::new("--cluster"), OsStr::new(cluster)]);
    }
    if !options.is_empty() {
        words.extend([OsStr::new("-o"), OsStr::new(&options)]);
    }
    if let Some(keys) = &keys {
        words.extend([OsStr::new("--tls"), keys.as_os_str()]);
    }
    let mut child = process::Detached { words, log: &log }.start()?;
    wait_until_mounted(&mut child, dir, &log)?;
    if args.quiet {
        return Ok(());
    }
    let (pid, dir) = (child.id(), dir.display());
    output.show(&json!({ "mount": args.dir, "pid": pid, "log": log }), || {
        format!("mounted at {dir}, served by process {pid}; its log is {}", log.display())
    })
}

fn wait_until_mounted(child: &mut Child, dir: &Path, log: &Path) -> CliResult {
    let deadline = Instant::now() + PATIENCE + Duration::from_secs(5);
    loop {
        let said = || process::last_lines(log, 0, 8);
        if let Some(status) = child.try_wait().tried(|| "cannot watch the mount's process".into())? {
            let exit = if status.code() == Some(Exit::NoMajority as i32) { Exit::NoMajority } else { Exit::Failed };
            return Err(CliError::new(exit, format!("cannot mount at {}:{}", dir.display(), said())));
        }
        if mounts::found(dir) == Found::Ours && mounts::life(dir) == Life::Answers {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = format!("no answer in time at {}, so it is not mounted:{}", dir.display(), said());
            give_up(child, dir);
            return Err(CliError::new(Exit::NoMajority, why));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A mount that nobody serves any more would be in everybody's way.
fn give_up(child: &mut Child, dir: &Path) {
    // It is our child, and not yet waited for: the number is still its own.
    let pid = Pid::from_child(child);
    let _ = kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + LAST_WORDS;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
    let _ = child.kill();
    let _ = child.wait();
    if mounts::found(dir) == Found::Ours
        && let Err(error) = mounts::release(dir, Unmount::Lazy)
    {
        warn(&error.to_string());
    }
}

/// `keelfs umount`
pub fn umount(args: UmountArgs, output: Output) -> CliResult {
    let dir = mounts::absolute(&args.dir)?;
    mounts::release(&dir, if args.lazy { Unmount::Lazy } else { Unmount::Clean })?;
    if output.json { output.show(&json!({ "unmounted": dir }), String::new) } else { Ok(()) }
}

/// The words of `-o`.
pub fn mount_options(words: &[String]) -> CliResult<MountOptions> {
    let mut options = MountOptions::default();
    take(&mut options, words)?;
    Ok(options)
}

fn take(options: &mut MountOptions, words: &[String]) -> CliResult {
    options.take(words).map_err(|bad| CliError::usage(bad.to_string()))
}

/// Called as `mount.fuse.keelfs SOURCE DIR [-sfnv] [-o OPTIONS]`, as mount(8) does for `mount -t fuse.keelfs`: the same as
/// words of ours. Called by its own name: unchanged.
pub fn from_mount8(words: Vec<OsString>) -> Vec<OsString> {
    let name = words.first().map(PathBuf::from).unwrap_or_default();
    if name.file_name() != Some(OsStr::new("mount.fuse.keelfs")) {
        return words;
    }
    let mut ours: Vec<OsString> = ["keelfs", "mount", "--background", "--quiet"].map(OsString::from).into();
    // A mount that is there needs no address; its source may be a name.
    let is_remount = words.iter().any(|word| word.to_string_lossy().split(',').any(|option| option == REMOUNT));
    let mut rest = words.into_iter().skip(1);
    let mut places = 0;
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("-o") => ours.extend([word].into_iter().chain(rest.next())),
            Some(flags) if flags.starts_with('-') => (),
            // HOST[:PORT][,…]:/ as in fstab
            Some(source) if places == 0 => {
                places = 1;
                ours.extend(["--source", source].map(OsString::from));
                let nodes = if is_remount { "localhost" } else { source.strip_suffix(":/").unwrap_or(source) };
                ours.push(nodes.into());
            }
            _ => ours.push(word),
        }
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount8_speaks_another_order() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            from_mount8(words("/sbin/mount.fuse.keelfs a:7700,b:/ /srv -n -o rw,_netdev,allow_other")),
            words("keelfs mount --background --quiet --source a:7700,b:/ a:7700,b /srv -o rw,_netdev,allow_other")
        );
        assert_eq!(
            from_mount8(words("/sbin/mount.fuse.keelfs keelfs /srv -o ro,remount")),
            words("keelfs mount --background --quiet --source keelfs localhost /srv -o ro,remount")
        );
        assert_eq!(from_mount8(words("keelfs mount a /srv")), words("keelfs mount a /srv"));
    }

    #[test]
    fn a_bad_option_is_a_mistake_in_usage() {
        let refused = mount_options(&["rw", "alow_other"].map(String::from)).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.contains("alow_other"), "{refused}");
    }
}
