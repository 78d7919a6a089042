//! The one field of the kernel's protocol that fuser 0.18 does not hand over: is a lock request `flock` or `fcntl`?
//!
//! Both arrive as SETLK, told apart by `FUSE_LK_FLOCK` in `fuse_lk_in.lk_flags` (linux/fuse.h), and the two families must
//! not be mixed: a program that takes both on one file would wait for itself. Nothing else tells them apart: a flock has
//! the range of a whole-file fcntl lock, and its owner is the same number as that of an open file description lock.
//!
//! fuser's `Request` is the header at the start of the buffer that the kernel filled, so the arguments follow it. They are
//! believed only if the header's length covers them and they repeat what fuser did hand over; otherwise no lock is
//! given. fuser is pinned to the exact version for this.

use fuser::Request;

/// `struct fuse_in_header`, the part before `uid`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    length: u32,
    opcode: u32,
    unique: u64,
    nodeid: u64,
}

/// `struct fuse_lk_in`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LockArguments {
    fh: u64,
    owner: u64,
    start: u64,
    end: u64,
    kind: i32,
    pid: u32,
    flags: u32,
    padding: u32,
}

const HEADER_BYTES: usize = 40;
const SETLK: u32 = 32;
const SETLKW: u32 = 33;
const FUSE_LK_FLOCK: u32 = 1 << 0;

const _: () = assert!(size_of::<Request>() == HEADER_BYTES);
const _: () = assert!(size_of::<LockArguments>() == 48);

/// What fuser hands over of a lock request.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub fh: u64,
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    pub kind: i32,
    pub pid: u32,
}

/// `Some(true)`: `flock(2)`; `Some(false)`: `fcntl(2)`; `None`: this is not the layout that we know.
pub fn is_flock(request: &Request, seen: Seen) -> Option<bool> {
    let arguments = lock_arguments(request)?;
    let repeated = LockArguments { flags: arguments.flags, padding: arguments.padding, ..seen.into() };
    (arguments == repeated).then_some(arguments.flags & FUSE_LK_FLOCK != 0)
}

impl From<Seen> for LockArguments {
    fn from(seen: Seen) -> LockArguments {
        let Seen { fh, owner, start, end, kind, pid } = seen;
        LockArguments { fh, owner, start, end, kind, pid, flags: 0, padding: 0 }
    }
}

fn lock_arguments(request: &Request) -> Option<LockArguments> {
    let start = std::ptr::from_ref(request).cast::<u8>();
    // SAFETY: `Request` is a transparent `fuse_in_header` of 40 bytes (asserted above), which begins with these fields.
    let header = unsafe { start.cast::<Header>().read_unaligned() };
    let known = header.unique == request.unique().0
        && matches!(header.opcode, SETLK | SETLKW)
        && header.length as usize == HEADER_BYTES + size_of::<LockArguments>();
    if !known {
        return None;
    }
    // SAFETY: fuser parses a request in place, in the buffer that it read from /dev/fuse, and refuses it unless the
    // buffer holds `length` bytes from the header on. The length is that of a lock request, so its arguments follow
    // within the same allocation, which fuser does not touch before the handler returns.
    Some(unsafe { start.add(HEADER_BYTES).cast::<LockArguments>().read_unaligned() })
}
