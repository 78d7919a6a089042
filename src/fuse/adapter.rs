//! The kernel's requests under way: what was agreed with the kernel, and how a request becomes a task that answers it.
//!
//! A handler ([`requests`](super::requests)) runs on an event loop of fuser and must neither wait for the cluster nor panic.
//! It may wait for room: with [`FUSE_REQUESTS_MAX`] requests under way the loops stop taking more, and what the kernel still
//! queues can be killed.

use super::attributes;
use super::call::{Call, Mounted};
use super::directory::Listing;
use super::locks::Wish;
use super::options::MountOptions;
use super::respond::Respond;
use super::translate::ino;
use super::waiting;
use crate::fs::{AclKind, Credentials};
use crate::limits::{BODY_BYTES_MAX, FUSE_LOCK_WAITS_MAX, FUSE_REQUEST_DATA_BYTES, FUSE_REQUESTS_MAX};
use fuser::{Errno, INodeNo, InitFlags, KernelConfig, ReplyEmpty, Request};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What we ask of the kernel, each alone, because one that it lacks would make it refuse a set.
///
/// Not asked for, on purpose: WRITEBACK_CACHE (a write must be in the cluster when it returns), CACHE_SYMLINKS (stale
/// links), ATOMIC_O_TRUNC (it truncates while pages of a mapping are being written back, which then come back: the
/// kernel holds them off for a truncation of its own only), SETXATTR_EXT, HANDLE_KILLPRIV_V2 and ALLOW_IDMAP (broken in fuser 0.18),
/// ABORT_ERROR (fuser takes the end of the session for a failure).
const CAPABILITIES: [InitFlags; 11] = [
    // Without these two the kernel grants locks by itself, on each node for itself.
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
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
    pub mounted: Arc<Mounted>,
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

    /// Agree with the kernel on what the mount can do.
    pub fn agree(&mut self, config: &mut KernelConfig) -> std::io::Result<()> {
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

    /// May an attribute of this name exist here at all?
    pub fn offers(&self, name: &OsStr) -> bool {
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
    pub fn run<R, W>(&self, request: &Request, data_bytes: usize, reply: R, work: impl FnOnce(Call) -> W)
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

    pub fn list(&self, request: &Request, directory: INodeNo, handle: u64, offset: u64, mut listing: impl Listing) {
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

    pub fn lock(&self, request: &Request, wish: Wish, reply: ReplyEmpty) {
        if !wish.wait {
            return self.run(request, 0, reply, |call| async move { call.lock(wish).await });
        }
        // A wait may last for ever, so it must not take the room of those who could end it.
        let Ok(room) = self.lock_waits.clone().try_acquire_owned() else { return reply.error(Errno::ENOLCK) };
        let call = self.call(request);
        self.mounted.runtime.spawn(async move {
            let (tid, deadline) = (call.tid, call.deadline);
            // Who is of a pid namespace that we do not see could not be seen to be killed.
            let outcome = match tid {
                0 => waiting::bounded(tid, deadline, call.lock(wish)).await,
                _ => waiting::unless_killed(tid, call.lock(wish)).await,
            };
            reply.respond(outcome);
            drop(room);
        });
    }
}
