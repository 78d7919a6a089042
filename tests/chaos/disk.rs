//! A node's disk: a file system of its own in an image, mounted through a loop device; and how to be bad to it.

use crate::host::{run, try_run, until};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `FS_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`, and its flags for "everything is written before" and "without flushing the
/// log" (linux/fs.h, xfs_fs.h).
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
const FLUSH_ALL: u32 = 0;
const NO_LOG_FLUSH: u32 = 2;
/// `FIFREEZE` and `FITHAW`, `_IOWR('X', 119 and 120, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

const IMAGE_BYTES: u64 = 2 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

pub struct Disk {
    kind: Kind,
    image: PathBuf,
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Disk {
    pub fn make(directory: &Path, name: &str, kind: Kind) -> Disk {
        let (image, path) = (directory.join(format!("{name}.image")), directory.join(name));
        fs::create_dir_all(&path).expect("a mount point");
        let file = File::create(&image).expect("an image");
        file.set_len(IMAGE_BYTES).expect("a sparse image");
        let name = image.to_str().expect("a path in UTF-8");
        match kind {
            Kind::Ext4 => run(&["mkfs.ext4", "-q", "-F", "-m", "0", name]),
            Kind::Xfs => run(&["mkfs.xfs", "-q", "-f", name]),
        };
        let disk = Disk { kind, image, path };
        disk.mount().unwrap_or_else(|why| panic!("{why}"));
        disk
    }

    pub fn mount(&self) -> Result<(), String> {
        let options = match self.kind {
            // The journal commits when it is told to, and not every five seconds.
            Kind::Ext4 => "loop,commit=300",
            Kind::Xfs => "loop",
        };
        let (image, path) = (self.image.to_string_lossy(), self.path.to_string_lossy());
        try_run(&["mount", "-o", options, &image, &path]).map(drop)
    }

    /// Nothing may use it any more; a process that was killed a moment ago may still be on its way out.
    pub fn unmount(&self) -> Result<(), String> {
        let mut why = String::new();
        let path = self.path.to_string_lossy().into_owned();
        let gone = until(Duration::from_secs(20), || match try_run(&["umount", &path]) {
            Ok(_) => true,
            Err(error) => {
                why = error;
                false
            }
        });
        gone.then_some(()).ok_or(why)
    }

    /// Cut its power: what was not synced is lost, and every access fails from now on.
    pub fn cut(&self) -> Result<(), String> {
        self.shut_down(NO_LOG_FLUSH)
    }

    /// Let every write and sync fail from now on; what was written before is safe.
    ///
    /// An image that finds no blocks would fail by itself, but not honestly: the loop driver takes a write that its full
    /// file has cut short for done (Linux 6.18, `lo_complete_rq`), so the sync before the first failing one lies.
    pub fn fail(&self) -> Result<(), String> {
        self.shut_down(FLUSH_ALL)
    }

    fn shut_down(&self, flag: u32) -> Result<(), String> {
        let root = File::open(&self.path).map_err(|e| format!("cannot open {}: {e}", self.path.display()))?;
        control(&root, FS_IOC_SHUTDOWN, flag).map_err(|e| format!("cannot shut {} down: {e}", self.path.display()))
    }

    /// Every write waits.
    pub fn freeze(&self) -> Result<(), String> {
        let root = File::open(&self.path).map_err(|e| e.to_string())?;
        control(&root, FIFREEZE, 0).map_err(|e| format!("cannot freeze {}: {e}", self.path.display()))
    }

    pub fn thaw(&self) -> Result<(), String> {
        let root = File::open(&self.path).map_err(|e| e.to_string())?;
        control(&root, FITHAW, 0).map_err(|e| format!("cannot thaw {}: {e}", self.path.display()))
    }

    /// Take all its free blocks.
    pub fn fill(&self) -> Result<(), String> {
        let file = File::create(self.filler()).map_err(|e| format!("cannot make {}: {e}", self.filler().display()))?;
        let (mut length, mut piece) = (0u64, 256u64 << 20);
        while piece >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), length, piece) {
                Ok(()) => length += piece,
                Err(_) => piece /= 2,
            }
        }
        file.sync_all().map_err(|e| e.to_string())
    }

    pub fn empty(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_file(&self.image);
    }
}

fn control(file: &File, request: libc::c_ulong, argument: u32) -> std::io::Result<()> {
    // SAFETY: the descriptor is open, and the pointer is to a number of ours.
    match unsafe { libc::ioctl(file.as_raw_fd(), request as _, &argument) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A record of a segment file, as far as the harness must know: where it begins and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub at: u64,
    pub bytes: u64,
}

/// The segments of a stopped node's log, in order.
pub fn segments(log: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(log).map_err(|e| format!("cannot list {}: {e}", log.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut segments: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect();
    segments.sort();
    if segments.is_empty() { Err(format!("no segment in {}", log.display())) } else { Ok(segments) }
}

/// The records of a segment, in order. Found by their magic and the segment's number, as the layout in `src/log/format.rs`
/// has it; checksums are not looked at.
pub fn records_of(path: &Path) -> Result<Vec<Record>, String> {
    let bytes = fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    let sequence = number(12);
    let mut records = Vec::new();
    let mut at = 64;
    while at + 64 <= bytes.len() {
        if &bytes[at..at + 4] == b"kREC" && number(at + 4) == sequence {
            let (command, body) = (u64::from(number(at + 44)), u64::from(number(at + 48)));
            let end = at as u64 + 64 + body.div_ceil(16 << 10) * 4 + command;
            let end = if body >= 64 << 10 { end.next_multiple_of(4096) } else { end } + body;
            records.push(Record { at: at as u64, bytes: end - at as u64 });
            at = end.next_multiple_of(64) as usize;
        } else {
            at += 64;
        }
    }
    if records.is_empty() { Err(format!("no record in {}", path.display())) } else { Ok(records) }
}

/// Let a write have ended in the middle of a record: nothing of the file from there on.
pub fn tear(segment: &Path, at: u64) -> std::io::Result<()> {
    let file = File::options().write(true).open(segment)?;
    let length = file.metadata()?.len();
    fallocate(&file, FallocateFlags::ZERO_RANGE, at, length - at)?;
    file.sync_all()
}

/// Turn one bit over.
pub fn flip(segment: &Path, at: u64, bit: u32) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(segment)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ (1 << bit)], at)?;
    file.sync_all()
}
