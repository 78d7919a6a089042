//! The tree as a directory of this machine: the only user of fuser.
//!
//! A request of the kernel becomes a command or a query to the [`Volume`], in a task of its own, and the answer goes
//! back from there. The files: [`adapter`] has one handler for each request, [`respond`] one way to answer them all;
//! [`names`], [`contents`], [`attributes`], [`directory`] and [`locks`] say what a request means; [`translate`], [`errno`]
//! and [`wire`] know the kernel's types; [`waiting`] keeps callers killable; [`handles`] counts opens; [`mounts`] mounts.
//!
//! Absent on purpose: a cache. Whether a page, a name or an attribute may be kept is promise 1's to say, and without
//! leases it says no: entries and attributes are valid for no time at all, and files are opened for direct IO, because
//! pages would be revalidated by time and size, both of which a remote writer can put back. Cost: every `read`, and every
//! step of a path, asks the cluster.
//!
//! What goes through the kernel's pages all the same: mappings (private ones are read afresh when they are made; a
//! shared one is coherent on its node, and with others as of the last open or attribute answer), programs being
//! executed, and `sendfile`. `O_TMPFILE` and birth times are not to be had: fuser 0.18 knows neither.
//!
//! Decision: fuser does not say whether a lock request is `flock` or `fcntl`; [`wire`] reads it from the kernel's bytes.
//!
//! Sources: linux/Documentation/filesystems/fuse/, linux/fs/fuse/{dir,file,inode}.c, fuser 0.18.

mod adapter;
mod attributes;
mod call;
mod contents;
mod directory;
mod errno;
mod handles;
mod locks;
mod mounts;
mod names;
mod respond;
mod translate;
mod waiting;
mod wire;

pub use mounts::{FILE_SYSTEM_TYPE, MountEntry, MountError, mounted_at};

use crate::volume::{Freshness, Volume};
use adapter::Adapter;
use call::Mounted;
use fuser::{Config, Generation, Session, SessionACL};
use handles::Handles;
use locks::LockTable;
use mounts::Terms;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long the kernel may keep what it was told of names and attributes: not at all (promise 1).
const TTL: Duration = Duration::ZERO;
/// Inode numbers are never reused, so there is one generation.
const GENERATION: Generation = Generation(0);

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the first column of `df` shows.
    pub source: String,
    /// Other users than the mounting one may use it; `/etc/fuse.conf` must allow that to a user who is not root.
    pub allow_other: bool,
    pub read_only: bool,
    /// How long an operation may wait for the cluster.
    pub timeout: Duration,
    /// What reads may return: [`Freshness::Nearest`] is fast, works without a majority, and may be stale.
    pub freshness: Freshness,
    /// Threads that take requests from the kernel.
    pub event_loops: usize,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            source: "keelfs".to_owned(),
            allow_other: false,
            read_only: false,
            timeout: Duration::from_secs(30),
            freshness: Freshness::Linearizable,
            event_loops: 4,
        }
    }
}

/// Mount the volume at an existing directory. A dead keelfs mount there is removed first; a living one, or a dead one of
/// someone else, is an error. Blocks until the kernel has greeted: call it from a blocking thread.
pub fn mount(
    volume: Volume,
    runtime: tokio::runtime::Handle,
    at: &Path,
    options: MountOptions,
) -> Result<Mount, MountError> {
    let path = mounts::canonical(at)?;
    mounts::clear(&path)?;
    let terms = Terms { source: &options.source, allow_other: options.allow_other, read_only: options.read_only };
    let device = mounts::mount(&path, &terms)?;
    let mounted = Arc::new(Mounted {
        handles: Handles::new(volume.clone()),
        locks: Arc::new(LockTable::default()),
        freshness: options.freshness,
        volume,
        runtime,
    });
    let adapter = Adapter::new(mounted, options.timeout);
    // The kernel admits the mounting user only, unless told `allow_other`; fuser need not check again.
    let session = Session::from_fd(adapter, device, SessionACL::All, config(&options));
    session.and_then(|session| Mount::start(path.clone(), session)).map_err(|error| {
        if let Err(stays) = mounts::unmount(&path) {
            tracing::warn!("{stays}");
        }
        MountError::Session { path: path.display().to_string(), why: error.to_string() }
    })
}

fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(options.event_loops.max(1));
    config.clone_fd = true;
    config
}

/// A mounted tree. Dropping it unmounts.
pub struct Mount {
    path: PathBuf,
    /// The kernel's number of this mount, so that no other one at the same path is ever unmounted in its place.
    device: Option<String>,
    /// Why the mount ended, once it has.
    end: watch::Receiver<Option<Result<(), String>>>,
}

impl Mount {
    fn start(path: PathBuf, session: Session<Adapter>) -> std::io::Result<Mount> {
        let ours = mounts::mounted_at(&path).filter(|entry| entry.fs_type == FILE_SYSTEM_TYPE);
        let (ended, end) = watch::channel(None);
        std::thread::Builder::new().name("fuse".into()).spawn(move || {
            let outcome = session.run().map_err(|error| error.to_string());
            ended.send_replace(Some(outcome));
        })?;
        Ok(Mount { path, device: ours.map(|entry| entry.device), end })
    }

    /// Where it is mounted, canonical.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmount: at once if nobody uses it, else it disappears now and ends with its last user. Nothing happens if it has
    /// been unmounted already. Blocks while the kernel writes back what is mapped: call it from a blocking thread.
    pub fn unmount(&self) -> Result<(), MountError> {
        let above = mounts::mounted_at(&self.path).map(|entry| entry.device);
        match self.device.is_some() && above == self.device {
            true => mounts::unmount(&self.path),
            false => Ok(()),
        }
    }

    /// Until the mount has ended, by [`Mount::unmount`] or from outside; an error if it ended by a failure.
    pub async fn ended(&self) -> Result<(), String> {
        let mut end = self.end.clone();
        match end.wait_for(|end| end.is_some()).await {
            Ok(end) => end.clone().unwrap_or(Ok(())),
            Err(_) => Err("its thread has panicked".to_owned()),
        }
    }

    /// Unmount, then wait until the mount has ended, at most this long.
    pub async fn close(self, time: Duration) -> Result<(), MountError> {
        let path = self.path.display().to_string();
        let why = match tokio::task::spawn_blocking(move || self.unmount().map(|()| self)).await {
            Ok(unmounted) => match tokio::time::timeout(time, unmounted?.ended()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => why,
                Err(_) => "it is still in use".to_owned(),
            },
            Err(panic) => panic.to_string(),
        };
        Err(MountError::Unmount { path, why })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!("{error}");
        }
    }
}

/// Unmount a keelfs by path, whichever process serves it; a dead one too. Refuses what is not ours.
pub fn unmount(at: &Path) -> Result<(), MountError> {
    let path = mounts::canonical(at)?;
    match mounts::mounted_at(&path) {
        Some(entry) if entry.fs_type == FILE_SYSTEM_TYPE => mounts::unmount(&path),
        Some(entry) => {
            let why = format!("a {} is mounted there, not a keelfs", entry.fs_type);
            Err(MountError::Unmount { path: path.display().to_string(), why })
        }
        None => {
            Err(MountError::Unmount { path: path.display().to_string(), why: "nothing is mounted there".to_owned() })
        }
    }
}
