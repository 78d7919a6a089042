//! System calls that the standard library does not offer, as small safe functions.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

/// A mapping of a file's beginning; unmapped when dropped.
pub struct Map {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl Map {
    pub fn shared(file: &File, length: usize) -> Map {
        Map::new(file, length, libc::MAP_SHARED)
    }

    pub fn private(file: &File, length: usize) -> Map {
        Map::new(file, length, libc::MAP_PRIVATE)
    }

    fn new(file: &File, length: usize, kind: libc::c_int) -> Map {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED, "a mapping of {length} bytes: {}", Error::last_os_error());
        Map { start: NonNull::new(start).expect("an address"), length }
    }

    /// Bytes of the file, as they are now.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length);
        let mut bytes = vec![0; length];
        // SAFETY: within the mapping, and into a buffer of that length. Nothing shortens the file meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().cast::<u8>().add(offset), bytes.as_mut_ptr(), length)
        };
        bytes
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: within the mapping, which is writable.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().cast::<u8>().add(offset), bytes.len());
        }
    }

    pub fn sync(&self) {
        // SAFETY: the whole mapping.
        let outcome = unsafe { libc::msync(self.start.as_ptr(), self.length, libc::MS_SYNC) };
        assert_eq!(outcome, 0, "msync: {}", Error::last_os_error());
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nothing borrows from it.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

/// `opendir(3)` and what goes with it: the standard library has no positions.
pub struct Listing(NonNull<libc::DIR>);

impl Listing {
    pub fn open(path: &Path) -> Listing {
        let name = CString::new(path.as_os_str().as_bytes()).expect("a path");
        // SAFETY: a string that ends with NUL.
        let stream = unsafe { libc::opendir(name.as_ptr()) };
        Listing(NonNull::new(stream).unwrap_or_else(|| panic!("opendir: {}", Error::last_os_error())))
    }

    /// Where the next entry will be found again.
    pub fn tell(&self) -> libc::c_long {
        // SAFETY: open until dropped.
        unsafe { libc::telldir(self.0.as_ptr()) }
    }

    pub fn seek(&mut self, position: libc::c_long) {
        // SAFETY: open, and the position came from `tell`.
        unsafe { libc::seekdir(self.0.as_ptr(), position) }
    }

    pub fn rewind(&mut self) {
        // SAFETY: open until dropped.
        unsafe { libc::rewinddir(self.0.as_ptr()) }
    }
}

impl Iterator for Listing {
    type Item = String;

    /// The next name but the dots.
    fn next(&mut self) -> Option<String> {
        loop {
            // SAFETY: open; the entry is read before the next call.
            let name = unsafe {
                *libc::__errno_location() = 0;
                let entry = libc::readdir(self.0.as_ptr());
                if entry.is_null() {
                    let error = Error::last_os_error();
                    assert_eq!(error.raw_os_error(), Some(0), "readdir: {error}");
                    return None;
                }
                std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes().to_vec()
            };
            if name != b"." && name != b".." {
                return Some(String::from_utf8(name).expect("a name of ours"));
            }
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: opened in `open`.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

/// `fallocate(2)` with any flags and numbers, also senseless ones. The errno, if it fails.
pub fn allocate(file: &File, mode: libc::c_int, offset: i64, length: i64) -> Result<(), i32> {
    // SAFETY: plain numbers and an open descriptor.
    errno(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) })
}

/// `renameat2(2)` with any flags.
pub fn rename(from: &Path, to: &Path, flags: libc::c_uint) -> Result<(), i32> {
    let text = |path: &OsStr| CString::new(path.as_bytes()).expect("a path");
    let (from, to) = (text(from.as_os_str()), text(to.as_os_str()));
    // SAFETY: two strings that end with NUL.
    errno(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
}

/// `ftruncate(2)` to any number.
pub fn truncate(file: &File, size: i64) -> Result<(), i32> {
    // SAFETY: plain numbers and an open descriptor.
    errno(unsafe { libc::ftruncate(file.as_raw_fd(), size) })
}

fn errno(outcome: libc::c_int) -> Result<(), i32> {
    match outcome {
        0 => Ok(()),
        _ => Err(code(&Error::last_os_error())),
    }
}

pub fn code(error: &Error) -> i32 {
    error.raw_os_error().unwrap_or_else(|| panic!("not an error of the system: {error}"))
}
