//! Open files and directories of one mount.
//!
//! An open costs no log entry: the volume only counts, so that its session can answer for an inode whose last name has
//! gone ("I hold it" or "I do not"). The count must rise before the inode is looked at, and a session must exist, because
//! only sessions are asked.

use super::overlay::Overlay;
use crate::fs::Ino;
use crate::volume::Volume;
use fuser::FileHandle;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Handles {
    volume: Volume,
    /// Is told of the last close of an inode.
    overlay: Arc<Overlay>,
    next: AtomicU64,
    counts: Mutex<HashMap<Ino, u64>>,
    /// Of open directories, by handle: the cookie at which the walk that is under way ends.
    walk_ends: Mutex<HashMap<u64, u64>>,
}

impl Handles {
    pub fn new(volume: Volume, overlay: Arc<Overlay>) -> Arc<Handles> {
        let next = AtomicU64::new(1);
        Arc::new(Handles { volume, overlay, next, counts: Mutex::default(), walk_ends: Mutex::default() })
    }

    /// Count an open. The guard takes it back unless it is turned into a handle. `None`: the inode has lost its names, and
    /// this session has already said that it does not hold it.
    pub fn open(self: &Arc<Self>, ino: Ino) -> Option<Opened> {
        let mut counts = self.counts.lock();
        if !self.volume.opened(ino) {
            return None;
        }
        *counts.entry(ino).or_default() += 1;
        Some(Opened { handles: Some(self.clone()), ino })
    }

    /// How often the inode is open here.
    pub fn count(&self, ino: Ino) -> u64 {
        self.counts.lock().get(&ino).copied().unwrap_or(0)
    }

    /// Count a close.
    pub fn close(&self, ino: Ino) {
        let mut counts = self.counts.lock();
        let Some(count) = counts.get_mut(&ino) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(&ino);
            // Before anybody can have opened it anew.
            self.overlay.closed(ino);
        }
        self.volume.closed(ino);
    }

    pub fn walk_end(&self, handle: u64) -> Option<u64> {
        self.walk_ends.lock().get(&handle).copied()
    }

    pub fn set_walk_end(&self, handle: u64, end: u64) {
        self.walk_ends.lock().insert(handle, end);
    }

    /// Count the close of a directory.
    pub fn close_directory(&self, ino: Ino, handle: u64) {
        self.walk_ends.lock().remove(&handle);
        self.close(ino);
    }

    /// The mount has ended: whatever the kernel did not release is closed now.
    pub fn close_all(&self) {
        for (ino, count) in self.counts.lock().drain() {
            (0..count).for_each(|_| self.volume.closed(ino));
        }
    }
}

/// An open that is counted but not yet the kernel's.
pub struct Opened {
    handles: Option<Arc<Handles>>,
    ino: Ino,
}

impl Opened {
    /// Hand the open over to the kernel, which will release it.
    pub fn into_handle(mut self) -> FileHandle {
        match self.handles.take() {
            Some(handles) => FileHandle(handles.next.fetch_add(1, Ordering::Relaxed)),
            None => FileHandle(0),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(handles) = self.handles.take() {
            handles.close(self.ino);
        }
    }
}
