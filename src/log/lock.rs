//! One process per data directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::StorageError;

/// Holds the lock on a data directory until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Lock `directory` (which must exist); `InUse` names the process that holds it.
    pub fn acquire(directory: &Path) -> Result<DirectoryLock, StorageError> {
        let path = directory.join("lock");
        let io = |operation| {
            let file = path.display().to_string();
            move |source| StorageError::Io { operation, file, source }
        };
        // Not truncated on opening: until the lock is ours, the content is the holder's.
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(directory, &mut file)),
            Err(error) => return Err(io("lock")(error.into())),
        }
        // In place and always as long: on a full disk there is no block for a file that was emptied first.
        write!(file, "{:<20}", std::process::id()).map_err(io("write"))?;
        Ok(DirectoryLock { _file: file })
    }
}

fn in_use(directory: &Path, file: &mut File) -> StorageError {
    let mut holder = String::new();
    // The number only helps the operator; without it the refusal stands.
    let _ = file.take(20).read_to_string(&mut holder);
    let holder = if holder.trim().is_empty() { "unknown" } else { holder.trim() };
    StorageError::InUse { directory: directory.display().to_string(), holder: holder.into() }
}
