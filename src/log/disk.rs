//! The seam between the log and the world: one directory of files.
//!
//! Everything that the log does to a disk goes through [`Disk`] and [`DiskFile`]. [`RealDisk`] is a directory of the
//! host; [`super::simulated::SimulatedDisk`] is one in memory that loses power on demand. The traits promise only what
//! POSIX does: a write is durable after `sync_data` of its file, a name after `sync_dir`; until then any part may survive.
//!
//! Absent on purpose: retries of a failed sync. The kernel marks the pages clean after the first failure and lies the
//! second time, so whoever sees an error stops writing for good.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, fdatasync, statvfs};

/// Most slices that the kernel takes in one vectored write (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

/// A flat directory of files, named without separators.
pub trait Disk: Send + Sync + 'static {
    /// Open an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Create an empty file, or empty an existing one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Atomic; replaces `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Every name, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Make creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that new files may still take.
    fn free_bytes(&self) -> io::Result<u64>;
    /// What a message to the operator calls this file.
    fn path_of(&self, name: &str) -> String;
}

/// An open file. It stays readable after its name is gone.
pub trait DiskFile: Send + Sync {
    /// Allocate `0..bytes` and extend the file to it; bytes that were there stay.
    fn preallocate(&self, bytes: u64) -> io::Result<()>;
    /// Write all slices, one behind the other, from `offset`.
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Fill `buffer` from `offset`; a shorter file is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
    /// Give the blocks of this range back; it reads as zeros afterwards.
    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Forget what memory holds of this range, so that the next reading asks the disk. Best effort; a disk without a
    /// cache has nothing to do.
    fn forget(&self, _offset: u64, _bytes: u64) {}
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Bytes of disk that are allocated to it.
    fn allocated(&self) -> io::Result<u64>;
}

/// A directory of the host.
pub struct RealDisk {
    directory: PathBuf,
}

impl RealDisk {
    /// Use `directory`, created if it is missing (its parent is not).
    pub fn open(directory: &Path) -> io::Result<RealDisk> {
        if !directory.is_dir() {
            std::fs::create_dir(directory)?;
            sync_parent(directory)?;
        }
        Ok(RealDisk { directory: directory.to_path_buf() })
    }
}

fn sync_parent(directory: &Path) -> io::Result<()> {
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.directory.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.directory.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = statvfs(&self.directory)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn path_of(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
            // A file system without fallocate still works; its segments grow as they are written.
            Err(rustix::io::Errno::OPNOTSUPP) if self.0.metadata()?.len() < bytes => self.0.set_len(bytes),
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_at(&self, mut offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut rest = slices;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let count = rest.len().min(SLICES_MAX);
            let written = match rustix::io::pwritev(&self.0, &rest[..count], offset) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                other => other?,
            };
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(fdatasync(&self.0)?)
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.0, flags, offset, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros(offset, bytes),
            other => Ok(other?),
        }
    }

    fn forget(&self, offset: u64, bytes: u64) {
        // Without it the cache is looked at instead of the disk: less is found, nothing is wrong.
        let _ = rustix::fs::fadvise(&self.0, offset, NonZeroU64::new(bytes), rustix::fs::Advice::DontNeed);
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }
}

impl RealFile {
    /// The meaning of a hole, without its saving.
    fn write_zeros(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let zeros = [0; 64 << 10];
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(zeros.len() as u64) as usize;
            self.0.write_all_at(&zeros[..piece], offset + done)?;
            done += piece as u64;
        }
        Ok(())
    }
}
