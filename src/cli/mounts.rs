//! Mount points: whose they are, and how they are given back.
//!
//! Only mounts of type `fuse.keelfs` are ever unmounted here; a foreign mount is never touched.

use crate::cli::error::{CliError, CliResult, Tried};
use crate::fuse::table::mounted_at;
use rustix::fs::{Access, access};
use rustix::mount::{UnmountFlags, unmount};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

const DEVICE: &str = "/dev/fuse";
/// How long a mount may take to answer before it counts as silent.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// What is mounted on exactly this path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Ours,
    Foreign,
}

/// `path` must be absolute and without symlinks; it is not touched, because a dead mount would answer ENOTCONN.
pub fn found(path: &Path) -> Found {
    match mounted_at(path) {
        None => Found::Nothing,
        Some(mount) if mount.is_ours() => Found::Ours,
        Some(_) => Found::Foreign,
    }
}

/// A path made absolute, following symlinks of its directory only: its last component may be a dead mount.
pub fn absolute(path: &Path) -> CliResult<PathBuf> {
    let what = || format!("cannot find {}", path.display());
    let path = std::path::absolute(path).tried(what)?;
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().tried(what)?.join(name)),
        _ => Ok(path),
    }
}

/// How a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Answers,
    /// The process that served it is gone (ENOTCONN).
    Dead,
    /// There may be a process, and it does not answer in time: stopped, or without a majority.
    Silent,
}

/// Ask the mount for its root. From a thread, because it may take its time.
pub fn life(path: &Path) -> Life {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    // Nobody may be listening any more when the answer comes.
    std::thread::spawn(move || {
        let _ = tell.send(rustix::fs::stat(&path).map(drop));
    });
    match told.recv_timeout(ANSWER_PATIENCE) {
        Ok(Ok(())) => Life::Answers,
        Ok(Err(rustix::io::Errno::NOTCONN)) => Life::Dead,
        Ok(Err(_)) | Err(_) => Life::Silent,
    }
}

/// See to it that something can be mounted here: a directory that is empty, after a dead mount of ours was cleaned off it.
pub fn prepare(path: &Path) -> CliResult {
    fuse_is_there()?;
    match found(path) {
        Found::Foreign => {
            return Err(CliError::failed(format!(
                "{} is a mount of another file system: choose another directory",
                path.display()
            )));
        }
        Found::Ours if life(path) != Life::Dead => {
            return Err(CliError::failed(format!(
                "{} is a keelfs mount of another process: `keelfs umount {}` first, or choose another directory",
                path.display(),
                path.display()
            )));
        }
        Found::Ours => release(path, Unmount::Lazy)?,
        Found::Nothing => (),
    }
    must_be_empty(path)
}

fn must_be_empty(path: &Path) -> CliResult {
    let mut entries = std::fs::read_dir(path).tried(|| format!("cannot use the mount point {}", path.display()))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(CliError::failed(format!(
            "{} is not empty, and a mount would hide what is in it: choose another directory",
            path.display()
        ))),
    }
}

fn fuse_is_there() -> CliResult {
    if !Path::new(DEVICE).exists() {
        return Err(CliError::failed(
            "cannot mount: /dev/fuse is not there. Load it with `modprobe fuse`; in a container, run that with \
             `--device /dev/fuse --cap-add SYS_ADMIN`",
        ));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if access(DEVICE, Access::READ_OK | Access::WRITE_OK).is_err() {
        return Err(CliError::failed(
            "cannot mount as an ordinary user: /dev/fuse is not open to all here. As root: chmod 666 /dev/fuse",
        ));
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&paths).any(|dir| dir.join("fusermount3").exists()) {
        true => Ok(()),
        false => Err(CliError::failed(
            "cannot mount as an ordinary user: fusermount3 is not there. Install the package fuse3",
        )),
    }
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Refused while a program uses the mount.
    Clean,
    /// Out of sight now, gone when its last user has gone.
    Lazy,
}

/// Unmount ours. Fails on a foreign mount and where nothing is mounted.
pub fn release(path: &Path, how: Unmount) -> CliResult {
    match found(path) {
        Found::Ours => (),
        Found::Nothing => return Err(CliError::failed(format!("{} is not mounted", path.display()))),
        Found::Foreign => {
            return Err(CliError::failed(format!(
                "{} is a mount of another file system, not of keelfs: it is left alone",
                path.display()
            )));
        }
    }
    if rustix::process::geteuid().is_root() { release_as_root(path, how) } else { release_as_user(path, how) }
}

fn release_as_root(path: &Path, how: Unmount) -> CliResult {
    let flags = match how {
        Unmount::Clean => UnmountFlags::NOFOLLOW,
        Unmount::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(busy(path)),
        Err(why) => Err(why).tried(|| format!("cannot unmount {}", path.display())),
    }
}

fn release_as_user(path: &Path, how: Unmount) -> CliResult {
    let what = || format!("cannot unmount {}: cannot run fusermount3 (package fuse3)", path.display());
    let flag = if how == Unmount::Lazy { "-uz" } else { "-u" };
    let run = Command::new("fusermount3").arg(flag).arg("--").arg(path).output().tried(what)?;
    let said = String::from_utf8_lossy(&run.stderr);
    match run.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(busy(path)),
        false => Err(CliError::failed(format!("cannot unmount {}: {}", path.display(), said.trim()))),
    }
}

fn busy(path: &Path) -> CliError {
    CliError::failed(format!(
        "cannot unmount {}: a program uses it (`fuser -vm {}` names it). End that, or add --lazy",
        path.display(),
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_mounts_and_plain_directories_are_left_alone() {
        assert_eq!(found(Path::new("/proc")), Found::Foreign);
        assert!(release(Path::new("/proc"), Unmount::Lazy).unwrap_err().message.contains("left alone"));
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(found(tmp.path()), Found::Nothing);
        must_be_empty(tmp.path()).unwrap();
        assert!(must_be_empty(Path::new("/proc")).unwrap_err().message.contains("is not empty"));
        assert!(release(tmp.path(), Unmount::Clean).unwrap_err().message.contains("is not mounted"));
    }

    #[test]
    fn a_missing_last_component_is_no_obstacle_to_an_absolute_path() {
        let tmp = tempfile::tempdir().unwrap();
        let real = tmp.path().canonicalize().unwrap();
        assert_eq!(absolute(&tmp.path().join("new")).unwrap(), real.join("new"));
        assert!(absolute(&tmp.path().join("no/new")).unwrap_err().message.contains("cannot find"));
    }
}
