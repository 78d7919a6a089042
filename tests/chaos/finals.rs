//! The whole tree as it is at the end, read through a mount.

use crate::history::{Nanos, now};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Contents up to this many bytes are kept, of larger files only the sum.
const KEPT_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File { bytes: u64, sum: u32, nlink: u64 },
    Link(String),
}

/// What is there, by path.
#[derive(Default)]
pub struct Finals {
    /// When reading it began.
    pub at: Nanos,
    nodes: BTreeMap<String, Node>,
    contents: BTreeMap<String, Vec<u8>>,
    /// The directories below `tree`, in the words of that workload.
    pub looks: BTreeMap<String, BTreeMap<String, String>>,
}

impl Finals {
    fn read(root: &Path) -> io::Result<Finals> {
        let mut finals = Finals::begun(now());
        finals.walk(root, "")?;
        for name in finals.names("tree") {
            let directory = format!("tree/{name}");
            let look = crate::workload::look(&root.join(&directory))?;
            finals.looks.insert(directory, look);
        }
        Ok(finals)
    }

    fn walk(&mut self, root: &Path, directory: &str) -> io::Result<()> {
        for entry in fs::read_dir(root.join(directory))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            let at = root.join(&path);
            let metadata = fs::symlink_metadata(&at)?;
            let node = if metadata.is_dir() {
                self.walk(root, &path)?;
                Node::Directory
            } else if metadata.is_symlink() {
                Node::Link(fs::read_link(&at)?.to_string_lossy().into_owned())
            } else {
                let content = fs::read(&at)?;
                let (bytes, sum) = (content.len() as u64, crc32c::crc32c(&content));
                if bytes <= KEPT_BYTES_MAX {
                    self.contents.insert(path.clone(), content);
                }
                Node::File { bytes, sum, nlink: metadata.nlink() }
            };
            self.nodes.insert(path, node);
        }
        Ok(())
    }

    /// The same tree through several mounts at a time.
    pub fn read_all(roots: &[PathBuf]) -> Result<Vec<Finals>, String> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = roots.iter().map(|root| scope.spawn(|| Finals::read(root))).collect();
            let read = threads.into_iter().zip(roots).map(|(thread, root)| {
                let finals = thread.join().map_err(|_| "a reader panicked".to_owned())?;
                finals.map_err(|e| format!("cannot read {} at the end: {e}", root.display()))
            });
            read.collect()
        })
    }

    /// Nothing is there yet.
    pub fn begun(at: Nanos) -> Finals {
        Finals { at, ..Finals::default() }
    }

    /// As if this file were there.
    pub fn put(&mut self, path: &str, content: &str) {
        let (bytes, sum) = (content.len() as u64, crc32c::crc32c(content.as_bytes()));
        self.nodes.insert(path.into(), Node::File { bytes, sum, nlink: 1 });
        self.contents.insert(path.into(), content.into());
    }

    /// Where two differ.
    pub fn difference(&self, other: &Finals) -> Option<String> {
        let paths: BTreeSet<&String> = self.nodes.keys().chain(other.nodes.keys()).collect();
        paths.into_iter().find_map(|path| {
            let (one, two) = (self.nodes.get(path), other.nodes.get(path));
            (one != two).then(|| format!("{path} is {one:?} here and {two:?} there"))
        })
    }

    pub fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    pub fn text(&self, path: &str) -> Option<String> {
        self.contents.get(path).map(|content| String::from_utf8_lossy(content).into_owned())
    }

    /// Length and CRC32C.
    pub fn sum(&self, path: &str) -> Option<(u64, u32)> {
        match self.nodes.get(path)? {
            Node::File { bytes, sum, .. } => Some((*bytes, *sum)),
            Node::Directory | Node::Link(_) => None,
        }
    }

    pub fn names(&self, directory: &str) -> BTreeSet<String> {
        let inside = |path: &&String| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
        let paths = self.nodes.keys().filter(inside).map(|path| path[directory.len() + 1..].to_owned());
        paths.filter(|name| !name.contains('/')).collect()
    }
}
