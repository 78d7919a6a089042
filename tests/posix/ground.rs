//! Where a check works: a new directory, seen from both sides.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What FUSE answers to `statfs` (linux/magic.h).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// One check's directory. `here` and `there` are the same directory on two mounts, or, if only one was given, twice the
/// same path.
pub struct Ground {
    pub here: PathBuf,
    pub there: PathBuf,
    notes: Mutex<Vec<String>>,
    skipped: Mutex<Option<String>>,
}

impl Ground {
    /// Short names: a socket's path has 108 bytes.
    pub fn new(places: &[PathBuf], number: usize) -> Ground {
        let name = format!("posix-{}-{number}", std::process::id());
        let here = places[0].join(&name);
        fs::create_dir(&here).unwrap_or_else(|e| panic!("cannot make {}: {e}", here.display()));
        let there = places[places.len() - 1].join(&name);
        assert!(
            there.is_dir(),
            "{} was made and is not at {}: both must be mounts of the same directory",
            here.display(),
            there.display()
        );
        Ground { here, there, notes: Mutex::default(), skipped: Mutex::default() }
    }

    /// Are both sides one mount?
    pub fn is_alone(&self) -> bool {
        self.here == self.there
    }

    pub fn is_fuse(&self) -> bool {
        let told = rustix::fs::statfs(&self.here).expect("statfs");
        told.f_type as i64 == FUSE_SUPER_MAGIC
    }

    /// The same name on both sides.
    pub fn both(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.here.join(name), self.there.join(name))
    }

    /// A new file with this content, open for both on both sides.
    pub fn open_on_both(&self, name: &str, content: &[u8]) -> (File, File) {
        let (here, there) = self.both(name);
        fs::write(&here, content).expect("a write");
        (open(&here), open(&there))
    }

    /// Something that holds, but that a reader of the results should know.
    pub fn note(&self, text: impl Into<String>) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text.into());
    }

    pub fn skip(&self, reason: impl Into<String>) {
        *self.skipped.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.into());
    }

    /// Remove the directory; the notes, and why the check was skipped.
    pub fn end(self) -> (Vec<String>, Option<String>) {
        if let Err(error) = fs::remove_dir_all(&self.here) {
            self.note(format!("cannot remove {}: {error}", self.here.display()));
        }
        let notes = self.notes.into_inner().unwrap_or_else(PoisonError::into_inner);
        (notes, self.skipped.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An existing or new file, open for reading and writing.
pub fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}

/// All that is there, through a descriptor.
pub fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().expect("its attributes").len()).expect("a size")];
    file.read_exact_at(&mut bytes, 0).expect("the content");
    bytes
}

/// Two contents are equal; if not, where they part, not megabytes of both.
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if let Some(difference) = difference(found, expected) {
        panic!("{what}: {difference}");
    }
}

pub fn difference(found: &[u8], expected: &[u8]) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} bytes, expected {}", found.len(), expected.len()));
    }
    let at = found.iter().zip(expected).position(|(one, other)| one != other)?;
    let many = found.iter().zip(expected).filter(|(one, other)| one != other).count();
    Some(format!("byte {at} is {:#04x}, expected {:#04x}; {many} bytes differ", found[at], expected[at]))
}

/// Bytes that tell where they belong.
pub fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31).wrapping_add(at >> 8).wrapping_add(seed * 57) % 251 + 1) as u8).collect()
}
