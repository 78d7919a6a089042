//! The tree as a directory of this machine: the only user of fuser.
//!
//! A request of the kernel becomes a command or a query to the [`Volume`], in a task of its own, and the answer goes
//! back from there. The files: [`requests`] has one handler for each request, [`adapter`] makes a task of it, [`respond`]
//! has one way to answer them all; [`names`], [`contents`], [`attributes`], [`directory`] and [`locks`] say what a request
//! means; [`translate`], [`errno`] and [`wire`] know the kernel's types; [`waiting`] keeps callers killable; [`caller`]
//! knows their groups; [`handles`] counts opens, and [`lock_table`] locks; [`overlay`] keeps mapped pages from undoing
//! writes; [`options`] and [`mounts`] mount.
//!
//! Absent on purpose: a cache. Whether a page, a name or an attribute may be kept is promise 1's to say, and without
//! leases it says no: entries and attributes are valid for no time at all, and files are opened for direct IO, because
//! pages would be revalidated by time and size, both of which a remote writer can put back. Cost: every `read`, and every
//! step of a path, asks the cluster.
//!
//! What goes through the kernel's pages all the same: mappings (private ones are read afresh when they are made; a
//! shared one is coherent on its node, and with others as of the last open or attribute answer), programs being
//! executed, and `sendfile`. Their pages are not dropped when others have written: that would come after the write has
//! completed, so it would be no promise, and would cost a question for every mapped file at every change (the other
//! costs: [`overlay`]). `O_TMPFILE` and birth times are not to be had: fuser 0.18 knows neither.
//!
//! Decision: fuser does not say whether a lock request is `flock` or `fcntl`; [`wire`] reads it from the kernel's bytes.
//!
//! Sources: linux/Documentation/filesystems/fuse/, linux/fs/fuse/{dir,file,inode}.c, fuser 0.18.

mod adapter;
mod attributes;
mod call;
mod caller;
mod contents;
mod directory;
mod errno;
mod handles;
mod lock_table;
mod locks;
mod mounts;
mod names;
mod options;
mod overlay;
mod requests;
mod respond;
pub mod table;
mod translate;
mod waiting;
mod wire;

pub use mounts::{MountError, flags_of, remount};
pub use options::{BadOption, MountOptions};
pub use respond::log_of_killed_caller;

use crate::volume::Volume;
use adapter::Adapter;
use call::Mounted;
use fuser::{Config, Generation, Session, SessionACL};
use handles::Handles;
use lock_table::LockTable;
use overlay::Overlay;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long the kernel may keep what it was told of names and attributes: not at all (promise 1).
const TTL: Duration = Duration::ZERO;
/// Threads that take requests from the kernel.
const EVENT_LOOPS: usize = 4;
/// How long an unmount waits for the last user of the tree, and how often it looks.
const LAST_USER_TIME: Duration = Duration::from_secs(3);
const LAST_USER_LOOK: Duration = Duration::from_millis(10);
/// Inode numbers are never reused, so there is one generation.
const GENERATION: Generation = Generation(0);

/// Mount the volume at an existing directory. A dead keelfs mount there is removed first; a living one, or a dead one of
/// someone else, is an error. Tasks on `runtime` answer the kernel. Blocks until the kernel has greeted: call it from a
/// thread that no task needs.
pub fn mount(
    volume: Volume,
    runtime: tokio::runtime::Handle,
    at: &Path,
    options: MountOptions,
) -> Result<Mount, MountError> {
    let path = mounts::canonical(at)?;
    mounts::clear(&path)?;
    let device = mounts::mount(&path, &options)?;
    let overlay = Arc::new(Overlay::default());
    let mounted = Arc::new(Mounted {
        handles: Handles::new(volume.clone(), overlay.clone()),
        locks: Arc::new(LockTable::default()),
        overlay,
        freshness: options.freshness,
        volume,
        runtime,
    });
    let adapter = Adapter::new(mounted, &options);
    // The kernel admits the mounting user only, unless told `allow_other`; fuser need not check again.
    let session = Session::from_fd(adapter, device, SessionACL::All, config());
    session.and_then(|session| Mount::start(path.clone(), session)).map_err(|error| {
        if let Err(stays) = mounts::unmount(&path) {
            tracing::warn!("{stays}");
        }
        MountError::Session { why: error.to_string() }
    })
}

fn config() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(EVENT_LOOPS);
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
        let ours = table::mounted_at(&path).filter(|entry| entry.is_ours());
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

    /// Until the mount has ended, by an unmount here or from outside; an error if it ended by a failure.
    pub fn ended(&self) -> impl Future<Output = Result<(), String>> + use<> {
        let mut end = self.end.clone();
        async move {
            match end.wait_for(|end| end.is_some()).await {
                Ok(end) => end.clone().unwrap_or(Ok(())),
                Err(_) => Err("its thread has panicked".to_owned()),
            }
        }
    }

    /// Unmount and wait a little until the kernel has let go. A tree in use disappears now and ends with its last user.
    /// Blocks, also on requests that the kernel still has: call it from a thread that no task needs.
    pub fn unmount(self) -> Result<(), MountError> {
        self.detach()?;
        let until = Instant::now() + LAST_USER_TIME;
        while self.end.borrow().is_none() && Instant::now() < until {
            std::thread::sleep(LAST_USER_LOOK);
        }
        match &*self.end.borrow() {
            Some(Err(why)) => tracing::warn!("the mount at {} ended with an error: {why}", self.path.display()),
            Some(Ok(())) => {}
            None => tracing::warn!("what was mounted at {} is still in use", self.path.display()),
        }
        Ok(())
    }

    /// Take our mount out of the tree, unless it is out already.
    fn detach(&self) -> Result<(), MountError> {
        // Then what is there now is another one, and it may well have our number: the kernel gives the lowest that is free.
        if matches!(*self.end.borrow(), Some(Ok(()))) {
            return Ok(());
        }
        let above = table::mounted_at(&self.path).map(|entry| entry.device);
        match self.device.is_some() && above == self.device {
            true => mounts::unmount(&self.path),
            false => Ok(()),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!("cannot unmount: {error}");
        }
    }
}
