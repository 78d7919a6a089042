//! A directory of the host that is looked at and never changed: what is written stays in memory.
//!
//! Opening a log mends it (a torn tail is cut, what is not proven durable is written once more). Whoever only wants to
//! look at a stopped node's log opens it on this disk, and sees what the node would see, while every byte on the disk
//! stays what it was. Cost: each file that opening writes to, the last segment as a rule, is held in memory as a whole.

use super::disk::{Disk, DiskFile};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory, and what has been changed of it in memory alone.
pub struct UntouchedDisk {
    directory: PathBuf,
    names: Mutex<BTreeMap<String, Arc<UntouchedFile>>>,
}

impl UntouchedDisk {
    /// Look at `directory`; its files are opened when they are needed.
    pub fn open(directory: &Path) -> io::Result<UntouchedDisk> {
        let mut names = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                names.insert(name, Arc::new(UntouchedFile(Mutex::new(Content::Untouched(entry.path())))));
            }
        }
        Ok(UntouchedDisk { directory: directory.into(), names: Mutex::new(names) })
    }

    fn missing(&self, name: &str) -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, format!("{} is missing", self.path_of(name)))
    }
}

impl Disk for UntouchedDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.names.lock().get(name).cloned().ok_or_else(|| self.missing(name))?;
        Ok(file)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = Arc::new(UntouchedFile(Mutex::new(Content::Changed(Vec::new()))));
        self.names.lock().insert(name.into(), file.clone());
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names.lock();
        let file = names.remove(from).ok_or_else(|| self.missing(from))?;
        names.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.names.lock().remove(name).map(drop).ok_or_else(|| self.missing(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names.lock().keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    /// None: nothing is to be prepared here for later.
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn path_of(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

struct UntouchedFile(Mutex<Content>);

enum Content {
    /// As on the disk, at this path.
    Untouched(PathBuf),
    Opened(File),
    Changed(Vec<u8>),
}

impl Content {
    fn file(&mut self) -> io::Result<Option<&File>> {
        if let Content::Untouched(path) = self {
            *self = Content::Opened(File::open(path)?);
        }
        Ok(match self {
            Content::Opened(file) => Some(file),
            Content::Untouched(_) | Content::Changed(_) => None,
        })
    }

    /// The bytes, from now on in memory, at least so many of them.
    fn bytes(&mut self, length: usize) -> io::Result<&mut Vec<u8>> {
        if let Some(file) = self.file()? {
            let mut bytes = vec![0; file.metadata()?.len() as usize];
            file.read_exact_at(&mut bytes, 0)?;
            *self = Content::Changed(bytes);
        }
        match self {
            Content::Changed(bytes) => {
                bytes.resize(bytes.len().max(length), 0);
                Ok(bytes)
            }
            Content::Untouched(_) | Content::Opened(_) => Err(io::Error::other("a file that was not read")),
        }
    }
}

impl DiskFile for UntouchedFile {
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        self.0.lock().bytes(bytes as usize).map(drop)
    }

    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let (mut content, mut at) = (self.0.lock(), offset as usize);
        for slice in slices.iter() {
            content.bytes(at + slice.len())?[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut content = self.0.lock();
        match content.file()? {
            Some(file) => file.read_exact_at(buffer, offset),
            None => {
                let bytes = content.bytes(0)?;
                let found = bytes.get(offset as usize..offset as usize + buffer.len());
                buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mut content = self.0.lock();
        let all = content.bytes(0)?;
        let end = all.len().min((offset + bytes) as usize);
        if let Some(range) = all.get_mut(offset as usize..end) {
            range.fill(0);
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut content = self.0.lock();
        match content.file()? {
            Some(file) => Ok(file.metadata()?.len()),
            None => Ok(content.bytes(0)?.len() as u64),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        let mut content = self.0.lock();
        match content.file()? {
            Some(file) => Ok(file.metadata()?.blocks() * 512),
            None => Ok(content.bytes(0)?.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::super::{Body, Entry, EntryId, Log, Options, Threading};
    use super::*;
    use bytes::Bytes;
    use std::collections::BTreeMap;

    fn entry(index: u64) -> Entry {
        let body = Body::Bytes(Bytes::from(vec![index as u8; 100]));
        Entry { id: EntryId { term: 1, node: 1, index }, command: Bytes::from_static(b"command"), body }
    }

    fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
    }

    fn pumped() -> Options {
        Options { segment_bytes: 64 << 10, threading: Threading::Pumped, ..Options::default() }
    }

    /// The tail is torn, so that opening would cut it, keep a copy and write the rest anew.
    #[test]
    fn looking_at_a_torn_log_shows_what_is_whole_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open_on(Arc::new(RealDisk::open(directory.path()).unwrap()), pumped()).unwrap();
        log.append((0..10).map(entry).collect(), Box::new(|_| ()));
        // Written, and not yet proven durable by a later write; the log stays open, because closing it would do that.
        assert!(log.pump());
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
        let segment = content(directory.path()).into_keys().find(is_segment).expect("a segment");
        let mut bytes = std::fs::read(&segment).unwrap();
        let last = bytes.windows(100).rposition(|window| window == [9; 100]).expect("the last body");
        bytes[last + 50] ^= 1;
        std::fs::write(&segment, bytes).unwrap();

        let before = content(directory.path());
        let looked_at = Log::open_on(Arc::new(UntouchedDisk::open(directory.path()).unwrap()), pumped()).unwrap();
        let found: Vec<u64> =
            looked_at.entries(0, 100, 1 << 20, true).unwrap().iter().map(|entry| entry.id.index).collect();
        assert_eq!(found, (0..9).collect::<Vec<_>>());
        drop(looked_at);
        assert_eq!(content(directory.path()), before);
    }
}
