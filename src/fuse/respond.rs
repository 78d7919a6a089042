//! One way to answer for every kind of reply that fuser has.

use super::handles::Opened;
use super::translate::{file_attr, kernel_lock_kind, kernel_lock_range};
use super::{GENERATION, TTL};
use crate::fs::{Attributes, LockHolder, Usage};
use crate::limits::NAME_BYTES_MAX;
use crate::volume::Capacity;
use bytes::Bytes;
use fuser::{
    Errno, FopenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr,
};

/// How files are opened. Direct IO: the kernel's pages would be revalidated by time and size only, and a remote writer
/// can put back both. Parallel writes: the cluster puts them in order, the kernel need not.
const FILE_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
/// The unit of `statfs(2)`, in bytes.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// What fuser 0.18 logs as an error (target and message) when the kernel no longer knew a request that was answered. That is
/// how a caller ends who was killed meanwhile, and no error.
pub fn log_of_killed_caller() -> (&'static str, String) {
    let unknown = std::io::Error::from_raw_os_error(libc::ENOENT);
    ("fuser::reply", format!("Failed to send FUSE reply: {unknown}"))
}

/// A reply that is given once. One that is dropped answers `EIO`: that is fuser's doing, and what a panic comes to.
pub trait Respond: Send + 'static {
    type With: Send;
    fn respond(self, outcome: Result<Self::With, Errno>);
}

macro_rules! respond {
    ($reply:ty, $with:ty, |$r:ident, $value:pat_param| $answer:expr) => {
        impl Respond for $reply {
            type With = $with;
            fn respond(self, outcome: Result<$with, Errno>) {
                let $r = self;
                match outcome {
                    Ok($value) => $answer,
                    Err(errno) => $r.error(errno),
                }
            }
        }
    };
}

respond!(ReplyEmpty, (), |reply, ()| reply.ok());
respond!(ReplyData, Bytes, |reply, bytes| reply.data(&bytes));
respond!(ReplyEntry, Attributes, |reply, attributes| reply.entry(&TTL, &file_attr(&attributes), GENERATION));
respond!(ReplyAttr, Attributes, |reply, attributes| reply.attr(&TTL, &file_attr(&attributes)));
respond!(ReplyOpen, Opened, |reply, opened| reply.opened(opened.into_handle(), FILE_FLAGS));
respond!(ReplyCreate, (Attributes, Opened), |reply, (attributes, opened)| {
    reply.created(&TTL, &file_attr(&attributes), GENERATION, opened.into_handle(), FILE_FLAGS)
});
respond!(ReplyWrite, u32, |reply, length| reply.written(length));
respond!(ReplyLseek, i64, |reply, offset| reply.offset(offset));
respond!(ReplyLock, Option<LockHolder>, |reply, holder| match holder {
    None => reply.locked(0, 0, libc::F_UNLCK, 0),
    Some(LockHolder { range, mode, pid, .. }) => {
        let (start, end) = kernel_lock_range(range);
        reply.locked(start, end, kernel_lock_kind(mode), pid)
    }
});
// Used is what files hold. What the log holds beyond that is neither used nor available yet: it is on its way back.
respond!(ReplyStatfs, (Capacity, Usage), |reply, (capacity, usage)| {
    let blocks = |bytes: u64| bytes / u64::from(STATFS_BLOCK_BYTES);
    let (used, available) = (blocks(usage.bytes), blocks(capacity.free_bytes));
    // Files that share data may come to more than the disk holds.
    let total = blocks(capacity.total_bytes).max(used.saturating_add(available));
    // An inode needs no place of its own on disk: as many can be made as there are free blocks, at the least.
    let inodes = usage.inodes.saturating_add(available);
    let (block, name) = (STATFS_BLOCK_BYTES, NAME_BYTES_MAX as u32);
    reply.statfs(total, total.saturating_sub(used), available, inodes, available, block, name, block)
});

/// A directory's handle: no flags, its listing is never cached.
pub struct DirectoryReply(pub ReplyOpen);

impl Respond for DirectoryReply {
    type With = Opened;
    fn respond(self, outcome: Result<Opened, Errno>) {
        match outcome {
            Ok(opened) => self.0.opened(opened.into_handle(), FopenFlags::empty()),
            Err(errno) => self.0.error(errno),
        }
    }
}

/// An attribute's bytes into a buffer of `room` bytes; 0 asks for their number.
pub struct XattrReply {
    pub reply: ReplyXattr,
    pub room: u32,
}

impl Respond for XattrReply {
    type With = Bytes;
    fn respond(self, outcome: Result<Bytes, Errno>) {
        match outcome {
            Ok(bytes) if self.room == 0 => self.reply.size(bytes.len() as u32),
            Ok(bytes) if bytes.len() > self.room as usize => self.reply.error(Errno::ERANGE),
            Ok(bytes) => self.reply.data(&bytes),
            Err(errno) => self.reply.error(errno),
        }
    }
}
