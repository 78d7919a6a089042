//! The kernel's requests, one handler each: translate, hand over to a task, reply from there.
//!
//! A handler runs on an event loop of fuser and must neither wait for the cluster nor panic. It may wait for room: with
//! [`FUSE_REQUESTS_MAX`] requests under way the loops stop taking more, and what the kernel still queues can be killed.
//! Requests are not kept in order; what needs an order (writes of one handle, names of one directory), the kernel does not
//! send before the answer to the earlier one.

use super::attributes;
use super::call::{Call, Mounted};
use super::contents::Target;
use super::directory::Listing;
use super::locks::Wish;
use super::names::{self, Removal};
use super::options::MountOptions;
use super::respond::{DirectoryReply, Respond, XattrReply};
use super::translate::{self, ino};
use super::waiting;
use super::wire::{self, Seen};
use crate::fs::{AclKind, AttributeChanges, Credentials, LockMode, LockOwner, NewNode};
use crate::limits::{BODY_BYTES_MAX, FUSE_LOCK_WAITS_MAX, FUSE_REQUEST_DATA_BYTES, FUSE_REQUESTS_MAX};
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What we ask of the kernel, each alone, because one that it lacks would make it refuse a set.
///
/// Not asked for, on purpose: WRITEBACK_CACHE (a write must be in the cluster when it returns), CACHE_SYMLINKS (stale
/// links), SETXATTR_EXT, HANDLE_KILLPRIV_V2 and ALLOW_IDMAP (broken in fuser 0.18),
/// ABORT_ERROR (fuser takes the end of the session for a failure).
const CAPABILITIES: [InitFlags; 12] = [
    // Without these two the kernel grants locks by itself, on each node for itself.
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Setuid and setgid bits are cleared by the command that writes, in the same step.
    InitFlags::FUSE_HANDLE_KILLPRIV,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    // For what reads through pages all the same: mappings, sendfile.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    ACCESS_LISTS,
    // A default access list replaces the umask, so the command that makes a node must know both.
    InitFlags::FUSE_DONT_MASK,
];
/// The kernel judges access by the lists that it asks for.
const ACCESS_LISTS: InitFlags = InitFlags::FUSE_POSIX_ACL;
/// Locks that are granted by the kernel alone would be granted twice.
const INDISPENSABLE: InitFlags = InitFlags::FUSE_POSIX_LOCKS.union(InitFlags::FUSE_FLOCK_LOCKS);
/// Requests in the background (asynchronous IO) that the kernel sends at one time.
const BACKGROUND_MAX: u16 = 128;
/// What a listing may hold, in bytes, for the bound on what is under way.
const LISTING_BYTES: usize = 32 << 10;

pub struct Adapter {
    mounted: Arc<Mounted>,
    timeout: Duration,
    write_bytes_max: u32,
    /// Without a kernel that judges by access lists there are none: what nobody enforces would be a lie.
    offers_acls: bool,
    under_way: Arc<Semaphore>,
    lock_waits: Arc<Semaphore>,
}

impl Adapter {
    pub fn new(mounted: Arc<Mounted>, options: &MountOptions) -> Adapter {
        Adapter {
            mounted,
            timeout: options.timeout,
            write_bytes_max: options.write_bytes_max,
            offers_acls: false,
            under_way: Arc::new(Semaphore::new(FUSE_REQUESTS_MAX)),
            lock_waits: Arc::new(Semaphore::new(FUSE_LOCK_WAITS_MAX)),
        }
    }

    /// May an attribute of this name exist here at all?
    fn offers(&self, name: &OsStr) -> bool {
        match AclKind::named(name.as_bytes()) {
            Some(_) => self.offers_acls,
            None => attributes::is_offered(name),
        }
    }

    fn call(&self, request: &Request) -> Call {
        Call {
            mounted: self.mounted.clone(),
            credentials: Credentials { uid: request.uid(), gid: request.gid() },
            tid: request.pid(),
            deadline: Instant::now() + self.timeout,
        }
    }

    /// Room for one more request with so many bytes of data; waits for it as long as the request itself may wait.
    fn room(&self, call: &Call, data_bytes: usize) -> Result<OwnedSemaphorePermit, Errno> {
        let permits = 1 + (data_bytes.min(BODY_BYTES_MAX) / FUSE_REQUEST_DATA_BYTES) as u32;
        if let Ok(room) = self.under_way.clone().try_acquire_many_owned(permits) {
            return Ok(room);
        }
        let acquired = async { self.under_way.clone().acquire_many_owned(permits).await.map_err(|_| Errno::EIO) };
        self.mounted.runtime.block_on(waiting::bounded(call.tid, call.deadline, acquired))
    }

    /// Answer a request with what `work` comes to.
    fn run<R, W>(&self, request: &Request, data_bytes: usize, reply: R, work: impl FnOnce(Call) -> W)
    where
        R: Respond,
        W: Future<Output = Result<R::With, Errno>> + Send + 'static,
    {
        let call = self.call(request);
        let room = match self.room(&call, data_bytes) {
            Ok(room) => room,
            Err(errno) => return reply.respond(Err(errno)),
        };
        let (tid, deadline) = (call.tid, call.deadline);
        let work = work(call);
        self.mounted.runtime.spawn(async move {
            reply.respond(waiting::bounded(tid, deadline, work).await);
            drop(room);
        });
    }

    fn list(&self, request: &Request, directory: INodeNo, handle: u64, offset: u64, mut listing: impl Listing) {
        let call = self.call(request);
        let room = match self.room(&call, LISTING_BYTES) {
            Ok(room) => room,
            Err(errno) => return listing.finish(Err(errno)),
        };
        self.mounted.runtime.spawn(async move {
            let filled = call.list(ino(directory), handle, offset, &mut listing);
            let outcome = waiting::bounded(call.tid, call.deadline, filled).await;
            listing.finish(outcome);
            drop(room);
        });
    }

    fn lock(&self, request: &Request, wish: Wish, reply: ReplyEmpty) {
        if !wish.wait {
            return self.run(request, 0, reply, |call| async move { call.lock(wish).await });
        }
        // A wait may last for ever, so it must not take the room of those who could end it.
        let Ok(room) = self.lock_waits.clone().try_acquire_owned() else { return reply.error(Errno::ENOLCK) };
        let call = self.call(request);
        self.mounted.runtime.spawn(async move {
            reply.respond(waiting::unless_killed(call.tid, call.lock(wish)).await);
            drop(room);
        });
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::info!("the kernel does not offer {capability:?}");
            }
        }
        if !config.capabilities().contains(INDISPENSABLE) {
            tracing::error!("this kernel cannot hand locks over to keelfs: upgrade to Linux 3.1 or later");
            return Err(std::io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
        }
        self.offers_acls = config.capabilities().contains(ACCESS_LISTS);
        if !self.offers_acls {
            tracing::warn!(
                "this kernel judges access by modes alone, so access lists that other mounts set count for nothing on \
                 this one: upgrade to Linux 4.9 or later"
            );
        }
        // Where a figure is too large, the kernel names the largest.
        let _ = config.set_max_write(self.write_bytes_max).or_else(|largest| config.set_max_write(largest));
        let _ = config.set_max_readahead(BODY_BYTES_MAX as u32).or_else(|largest| config.set_max_readahead(largest));
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
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

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        self.run(request, 0, reply, move |call| async move {
            call.make(ino(parent), &name, translate::new_node(mode, rdev)?, (mode, umask)).await
        });
    }

    fn mkdir(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let name = name.to_owned();
        self.run(r, 0, reply, move |call| async move {
            call.make(ino(parent), &name, NewNode::Directory, (mode, umask)).await
        });
    }

    fn symlink(&self, r: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let name = name.to_owned();
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        self.run(r, 0, reply, move |call| async move {
            call.make(ino(parent), &name, NewNode::Symlink { target }, (0o777, 0)).await
        });
    }

    fn link(&self, r: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.run(r, 0, reply, move |call| async move { call.link(ino(inode), ino(parent), &name).await });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.run(request, 0, reply, move |call| async move { call.remove(ino(parent), &name, Removal::File).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.run(
            request,
            0,
            reply,
            move |call| async move { call.remove(ino(parent), &name, Removal::Directory).await },
        );
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
            call.rename(from, to, translate::rename_mode(flags)?).await
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_owned();
        self.run(
            request,
            0,
            reply,
            move |call| async move { call.create(ino(parent), &name, (mode, umask), flags).await },
        );
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
        self.run(request, size as usize, reply, move |call| async move {
            call.read(ino(inode), handle.0, (offset, size), fills_pages).await
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
            let data = match target {
                Target::Pages(offset) => call.mounted.direct_writes.laid_over(ino(inode), offset, data),
                Target::At(_) | Target::End => Bytes::copy_from_slice(data),
            };
            async move { call.write(ino(inode), handle.0, target, data).await }
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
