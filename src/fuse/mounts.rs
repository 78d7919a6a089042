//! Mounting and unmounting.
//!
//! keelfs mounts by itself and gives fuser the open device, because fuser 0.18 (its `mnt` module) cannot set the type
//! `fuse.keelfs` when it mounts as root, and after an unmount from outside may unmount another file system at that path.
//! Root calls `mount(2)`; users go through `fusermount3`, which has the privilege.
//!
//! Whose a mount is, the kernel's table tells ([`super::table`]): type `fuse.keelfs` is ours. A dead one of ours
//! (its daemon was killed: every access says ENOTCONN) is cleaned up before mounting; a foreign one is never touched.

use super::options::MountOptions;
use super::table::{FILE_SYSTEM_TYPE, mounted_at};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::ffi::CString;
use std::fs::File;
use std::io::{Error, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const SUBTYPE: &str = "keelfs";
const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";
/// How long an existing mount may take to say whether it lives.
const PROBE_TIME: Duration = Duration::from_secs(5);
/// Dead mounts of ours that are removed from one path, at most.
const STALE_MAX: usize = 16;

/// Why there is no mount (or why it stays), and what to do about it. The caller says where it was to be.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{why}; give an existing directory (mkdir -p {path})")]
    NoDirectory { path: String, why: String },
    #[error("a keelfs is mounted there already; unmount it first (keelfs umount {path})")]
    Mounted { path: String },
    #[error(
        "a {fs_type} is mounted there and does not answer ({why}); it is not ours, so unmount it yourself or choose another directory"
    )]
    ForeignBroken { fs_type: String, why: String },
    #[error(
        "{DEVICE} is missing; load the kernel module (modprobe fuse), or give the container the device (--device {DEVICE} --cap-add SYS_ADMIN)"
    )]
    NoDevice,
    #[error("{DEVICE} cannot be opened ({why}); run as root or fix its permissions")]
    DeviceDenied { why: String },
    #[error(
        "{FUSERMOUNT} is missing, which mounts for users who are not root; install the package fuse3, or run as root"
    )]
    NoFusermount,
    #[error("{FUSERMOUNT} refused: {why}")]
    Fusermount { why: String },
    #[error("{why}")]
    Refused { why: String },
    #[error("the kernel did not take the mount up: {why}")]
    Session { why: String },
    #[error("{path}: {why}")]
    Unmount { path: String, why: String },
}

/// The path as the kernel's table spells it; of a dead mount only the parent can be asked.
pub fn canonical(path: &Path) -> Result<PathBuf, MountError> {
    match path.canonicalize() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                parent.canonicalize().map(|parent| parent.join(name)).map_err(|error| no_directory(path, &error))
            }
            _ => Err(no_directory(path, &error)),
        },
        other => other.map_err(|error| no_directory(path, &error)),
    }
}

fn no_directory(path: &Path, why: &dyn std::fmt::Display) -> MountError {
    MountError::NoDirectory { path: path.display().to_string(), why: why.to_string() }
}

/// Make the path free for a mount: dead mounts of ours are removed, a living one of ours and a dead foreign one are errors.
/// A living foreign one is a directory like any other.
pub fn clear(path: &Path) -> Result<(), MountError> {
    let shown = || path.display().to_string();
    for _ in 0..STALE_MAX {
        let Some(entry) = mounted_at(path) else { break };
        let ours = entry.is_ours();
        match probe(path) {
            Ok(()) if ours => return Err(MountError::Mounted { path: shown() }),
            Ok(()) => break,
            Err(error) if ours && error.raw_os_error() == Some(libc::ENOTCONN) => {
                tracing::info!("removing a dead keelfs mount at {}", path.display());
                detach(path)?;
            }
            Err(_) if ours => return Err(MountError::Mounted { path: shown() }),
            Err(error) => {
                let (fs_type, why) = (entry.fs_type, error.to_string());
                return Err(MountError::ForeignBroken { fs_type, why });
            }
        }
    }
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(no_directory(path, &"it is not a directory")),
        Err(error) => Err(no_directory(path, &error)),
    }
}

/// Does what is mounted here answer? Asked from a thread of its own, which a hanging file system may keep.
fn probe(path: &Path) -> Result<(), Error> {
    let (path, (sender, receiver)) = (path.to_owned(), mpsc::sync_channel(1));
    std::thread::spawn(move || {
        // The receiver may have stopped waiting.
        let _ = sender.send(path.metadata().map(drop));
    });
    receiver.recv_timeout(PROBE_TIME).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// Mount at a canonical path; the device on which the kernel's requests come.
pub fn mount(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    match rustix::process::geteuid().is_root() {
        true => mount_as_root(path, options),
        false => mount_as_user(path, options),
    }
}

fn mount_as_root(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = open_device()?;
    let user = format!("user_id={},group_id={}", rustix::process::getuid(), rustix::process::getgid());
    let other = if options.allow_other { ",allow_other" } else { "" };
    // 40000: the root is a directory; the kernel asks for its other attributes.
    let data = format!("fd={},rootmode=40000,{user},default_permissions{other}", device.as_raw_fd());
    let data = CString::new(data).map_err(|error| refused(&error))?;
    let source = plain(&options.source);
    rustix::mount::mount(source, path, FILE_SYSTEM_TYPE, flags(options), Some(data.as_c_str())).map_err(|errno| {
        match errno {
            rustix::io::Errno::PERM => refused(&"not permitted; mounting needs the capability SYS_ADMIN"),
            rustix::io::Errno::NODEV => refused(&"the kernel does not know fuse; load it (modprobe fuse)"),
            other => refused(&other),
        }
    })?;
    Ok(device.into())
}

/// The flags of a mount of ours, as [`remount`] takes them; everything else has its default.
pub fn flags_of(path: &Path) -> Result<MountOptions, MountError> {
    let entry = mounted_at(&canonical(path)?).filter(|entry| entry.is_ours());
    let entry = entry.ok_or_else(|| refused(&"no keelfs is mounted there"))?;
    Ok(MountOptions {
        read_only: entry.has("ro"),
        setuid: !entry.has("nosuid"),
        devices: !entry.has("nodev"),
        execute: !entry.has("noexec"),
        ..MountOptions::default()
    })
}

/// Give a mount of ours other flags: read-only, devices, setuid bits, execution.
pub fn remount(path: &Path, options: &MountOptions) -> Result<(), MountError> {
    let path = canonical(path)?;
    if !mounted_at(&path).is_some_and(|entry| entry.is_ours()) {
        return Err(refused(&"no keelfs is mounted there"));
    }
    rustix::mount::mount_remount(&path, flags(options), c"").map_err(|errno| refused(&errno))
}

fn flags(options: &MountOptions) -> MountFlags {
    let wanted = [
        (options.read_only, MountFlags::RDONLY),
        (!options.setuid, MountFlags::NOSUID),
        (!options.devices, MountFlags::NODEV),
        (!options.execute, MountFlags::NOEXEC),
    ];
    wanted.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).collect()
}

fn open_device() -> Result<File, MountError> {
    File::options().read(true).write(true).open(DEVICE).map_err(|error| match error.kind() {
        ErrorKind::NotFound => MountError::NoDevice,
        _ => MountError::DeviceDenied { why: error.to_string() },
    })
}

/// `fusermount3` mounts and sends the device back over the socket that `_FUSE_COMMFD` names: here its standard input.
fn mount_as_user(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| refused(&error))?;
    if options.devices || options.setuid {
        return Err(refused(&"the options allow_dev and allow_suid are root's to give; leave them out"));
    }
    // A comma would end the name.
    let source = plain(&options.source).replace(',', "_");
    let mut words = format!("fsname={source},subtype={SUBTYPE},default_permissions,nosuid,nodev");
    words.push_str(if options.allow_other { ",allow_other" } else { "" });
    words.push_str(if options.read_only { ",ro" } else { "" });
    words.push_str(if options.execute { "" } else { ",noexec" });
    let child = Command::new(FUSERMOUNT)
        .args(["-o", &words, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| no_fusermount(&error))?;
    let device = receive_device(&ours);
    let output = child.wait_with_output().map_err(|error| refused(&error))?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ => Err(MountError::Fusermount { why: said(&output.stderr) }),
    }
}

fn receive_device(socket: &UnixStream) -> rustix::io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags))?;
    let devices = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok(devices.flatten().next())
}

/// Unmount, at once if nobody uses it, else as soon as the last user has gone.
pub fn unmount(path: &Path) -> Result<(), MountError> {
    if !rustix::process::geteuid().is_root() {
        return fusermount_unmount(path, &["-u"]).or_else(|_| detach(path));
    }
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => {
            tracing::warn!("{} is in use: it is detached, and ends with its last user", path.display());
            detach(path)
        }
        Err(errno) => Err(not_unmounted(path, &errno)),
    }
}

/// Take the mount out of the tree now; it ends with its last user.
fn detach(path: &Path) -> Result<(), MountError> {
    match rustix::process::geteuid().is_root() {
        true => rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|errno| not_unmounted(path, &errno)),
        false => fusermount_unmount(path, &["-u", "-z"]),
    }
}

fn fusermount_unmount(path: &Path, how: &[&str]) -> Result<(), MountError> {
    let output = Command::new(FUSERMOUNT).args(how).arg("--").arg(path).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(not_unmounted(path, &said(&output.stderr))),
        Err(error) => Err(not_unmounted(path, &format!("{FUSERMOUNT}: {error} (package fuse3)"))),
    }
}

fn said(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim().trim_start_matches("fusermount3: ").to_owned()
}

fn no_fusermount(error: &Error) -> MountError {
    match error.kind() {
        ErrorKind::NotFound => MountError::NoFusermount,
        _ => MountError::Fusermount { why: error.to_string() },
    }
}

fn refused(why: &dyn std::fmt::Display) -> MountError {
    MountError::Refused { why: why.to_string() }
}

fn not_unmounted(path: &Path, why: &dyn std::fmt::Display) -> MountError {
    MountError::Unmount { path: path.display().to_string(), why: why.to_string() }
}

/// A source without what would end a line of the kernel's table, or mean something to who reads one.
fn plain(source: &str) -> String {
    source.chars().map(|c| if c == '\\' || c.is_control() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn a_source_cannot_add_lines() {
        assert_eq!(plain("a:1,b:2\n\\x"), "a:1,b:2__x");
    }

    #[test]
    fn a_foreign_mount_and_a_missing_directory_are_left_alone() {
        let before = table::mounts();
        clear(Path::new("/proc")).unwrap();
        assert_eq!(table::mounts(), before);
        let missing = canonical(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(missing.to_string().contains("mkdir -p /nowhere/at/all"), "{missing}");
        assert!(clear(Path::new("/proc/version")).unwrap_err().to_string().contains("not a directory"));
    }
}
