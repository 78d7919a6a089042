//! The kernel's requests, one handler each: translate, hand over to a task ([`Adapter::run`]), reply from there.
//!
//! Requests are not kept in order; what needs an order (writes of one handle, names of one directory), the kernel does not
//! send before the answer to the earlier one.

use super::adapter::Adapter;
use super::contents::Target;
use super::locks::Wish;
use super::names::{self, Removal};
use super::respond::{DirectoryReply, XattrReply};
use super::translate::{self, ino};
use super::wire::{self, Seen};
use crate::fs::{AttributeChanges, LockMode, LockOwner, NewNode};
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

impl Adapter {
    /// `mknod`, `mkdir` and `symlink`. `permissions`: mode and umask.
    fn make(
        &self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        permissions: (u32, u32),
        node: Result<NewNode, Errno>,
        reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        self.run(request, 0, reply, move |call| async move { call.make(ino(parent), &name, node?, permissions).await });
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.agree(config)
    }

    fn destroy(&mut self) {
        self.mounted.handles.close_all();
        for (ino, owner) in self.mounted.locks.all_released() {
            self.mounted.give_back(ino, vec![owner]);
        }
    }

    // --- names

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.run(request, 0, reply, move |call| async move { call.lookup(ino(parent), &name).await });
    }

    fn mknod(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        self.make(r, (parent, name), (mode, umask), translate::new_node(mode, rdev), reply);
    }

    fn mkdir(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.make(r, (parent, name), (mode, umask), Ok(NewNode::Directory), reply);
    }

    fn symlink(&self, r: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        self.make(r, (parent, name), (0o777, 0), Ok(NewNode::Symlink { target }), reply);
    }

    fn link(&self, r: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.run(r, 0, reply, move |call| async move { call.link(ino(inode), ino(parent), &name).await });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.run(request, 0, reply, move |call| async move { call.remove(ino(parent), &name, Removal::File).await });
    }

    fn rmdir(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.run(r, 0, reply, move |call| async move { call.remove(ino(parent), &name, Removal::Directory).await });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.run(request, 0, reply, move |call| async move {
            let (from, to) = (names::place(ino(parent), &name)?, names::place(ino(new_parent), &new_name)?);
            call.rename(from, to, translate::renaming(flags)?).await
        });
    }

    fn create(
        &self,
        r: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, permissions) = (name.to_owned(), (mode, umask));
        self.run(r, 0, reply, move |call| async move { call.create(ino(parent), &name, permissions, flags).await });
    }

    // --- open files and directories

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.run(request, 0, reply, move |call| async move { call.open(ino(inode), flags.0).await });
    }

    fn opendir(&self, request: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.run(request, 0, DirectoryReply(reply), move |call| async move { call.open(ino(inode), 0).await });
    }

    fn flush(&self, r: &Request, inode: INodeNo, _: FileHandle, owner: fuser::LockOwner, reply: ReplyEmpty) {
        let owners = self.mounted.locks.flushed(ino(inode), owner.0);
        if owners.is_empty() {
            return reply.ok();
        }
        let given_back = self.mounted.give_back(ino(inode), owners);
        self.run(r, 0, reply, move |call| async move {
            match tokio::time::timeout_at(call.deadline.into(), given_back).await {
                Ok(_) => Ok(()),
                Err(_) => Err(Errno::ETIMEDOUT),
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<fuser::LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let owners = self.mounted.locks.released(ino(inode), handle.0);
        if !owners.is_empty() {
            self.mounted.give_back(ino(inode), owners);
        }
        self.mounted.handles.close(ino(inode));
        reply.ok();
    }

    fn releasedir(&self, _: &Request, inode: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.mounted.handles.close_directory(ino(inode), handle.0);
        reply.ok();
    }

    fn readdir(&self, request: &Request, inode: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.list(request, inode, handle.0, offset, reply);
    }

    fn readdirplus(&self, r: &Request, inode: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.list(r, inode, handle.0, offset, reply);
    }

    /// What has been written is durable already.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    // --- contents

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        caller: Option<fuser::LockOwner>,
        reply: ReplyData,
    ) {
        // Only a read into a caller's buffer says whose it is (fs/fuse/file.c, `fuse_send_read`).
        let fills_pages = caller.is_none();
        self.run(request, size as usize, reply, move |call| {
            let filling = fills_pages.then(|| call.mounted.overlay.fills(ino(inode)));
            async move { call.read(ino(inode), handle.0, (offset, size), filling).await }
        });
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<fuser::LockOwner>,
        reply: ReplyWrite,
    ) {
        let target = Target::of(offset, flags.0, write_flags.contains(WriteFlags::FUSE_WRITE_CACHE));
        self.run(request, data.len(), reply, |call| {
            let arrived = target.arrives(&call.mounted.overlay, ino(inode), data.len());
            let data = Bytes::copy_from_slice(data);
            async move { call.write(ino(inode), handle.0, target, data, arrived).await }
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.run(request, 0, reply, move |call| async move {
            call.allocate(ino(inode), handle.0, mode, offset, length).await
        });
    }

    fn lseek(&self, r: &Request, inode: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.run(r, 0, reply, move |call| async move { call.seek(ino(inode), offset, whence).await });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.run(request, 0, reply, move |call| async move {
            call.copy((ino(from), from_offset), (ino(to), to_offset), to_handle.0, length).await
        });
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.run(request, 0, reply, |call| async move { call.capacity().await });
    }

    // --- attributes

    fn getattr(&self, request: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(request, 0, reply, move |call| async move { call.attributes(ino(inode)).await });
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = AttributeChanges {
            mode: mode.map(translate::permissions),
            uid,
            gid,
            size,
            atime: atime.map(translate::time_change),
            mtime: mtime.map(translate::time_change),
        };
        let handle = handle.map(|handle| handle.0);
        self.run(request, 0, reply, move |call| async move { call.set_attributes(ino(inode), handle, changes).await });
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        self.run(request, 0, reply, move |call| async move { call.read_link(ino(inode)).await });
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if !self.offers(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (name, value) = (name.to_owned(), Bytes::copy_from_slice(value));
        self.run(request, value.len(), reply, move |call| async move {
            call.set_xattr(ino(inode), &name, value, flags).await
        });
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        if !self.offers(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let name = name.to_owned();
        let reply = XattrReply { reply, room };
        self.run(request, room as usize, reply, move |call| async move { call.xattr(ino(inode), &name).await });
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, room: u32, reply: ReplyXattr) {
        let reply = XattrReply { reply, room };
        self.run(request, room as usize, reply, move |call| async move { call.xattr_names(ino(inode)).await });
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if !self.offers(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let name = name.to_owned();
        self.run(request, 0, reply, move |call| async move { call.remove_xattr(ino(inode), &name).await });
    }

    // --- locks

    fn getlk(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        owner: fuser::LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        // Only fcntl asks.
        let (owner, range) = (LockOwner::Posix(owner.0), translate::lock_range(start, end));
        self.run(request, 0, reply, move |call| async move {
            call.test_lock(ino(inode), owner, range, translate::lock_mode(kind)?).await
        });
    }

    fn setlk(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        owner: fuser::LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let seen = Seen { fh: handle.0, owner: owner.0, start, end, kind, pid };
        let owner = match wire::is_flock(request, seen) {
            Some(true) => LockOwner::Flock(owner.0),
            Some(false) => LockOwner::Posix(owner.0),
            None => {
                tracing::error!("cannot tell flock from fcntl in a lock request of this kernel: no lock is given");
                return reply.error(Errno::ENOLCK);
            }
        };
        let mode = match translate::lock_mode(kind) {
            Ok(mode) => mode,
            Err(errno) => return reply.error(errno),
        };
        let (ino, range) = (ino(inode), translate::lock_range(start, end));
        let wait = sleep && mode != LockMode::Unlock;
        self.lock(request, Wish { ino, handle: handle.0, owner, range, mode, pid, wait }, reply);
    }

    // --- what the kernel does by itself, or nobody does

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    /// `default_permissions`: the kernel checks access.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// The kernel then answers as for any file that is always ready.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
