//! Kernel types ↔ ours: inode numbers, attributes, times, modes, ranges.
//!
//! Times before 1970: fuser 0.18 hands a `timespec` of (−2 s, 800 000 000 ns) over as the epoch *minus* 2.8 s, although
//! the kernel means 1.2 s before it. The pair can be read back out of the wrong value, which [`timestamp`] does; should
//! a later fuser be right, that function is the one to change (its test says so). fuser's way out is correct.

use super::names::Renaming;
use crate::fs::{
    AllocateMode, Attributes, FileKind, Ino, LockMode, LockRange, Name, NewNode, RenameMode, TimeChange, Timestamp,
    XattrMode,
};
use fuser::{Errno, FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The block that `stat(2)` advises for IO, in bytes: programs that follow it ask the cluster less often.
const BLOCK_BYTES: u32 = 64 << 10;
/// The unit of `st_blocks`, in bytes.
const STAT_BLOCK_BYTES: u64 = 512;
/// The kernel's "to the end of the file" (`OFFSET_MAX`).
const KERNEL_RANGE_END: u64 = i64::MAX as u64;

pub fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub fn name(name: &OsStr) -> Result<Name, Errno> {
    Name::new(name.as_bytes()).map_err(super::errno::of_bad_name)
}

/// Permission bits with setuid, setgid and sticky.
pub fn permissions(mode: u32) -> u32 {
    mode & 0o7777
}

pub fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size,
        blocks: attributes.allocated.div_ceil(STAT_BLOCK_BYTES),
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: system_time(attributes.btime),
        kind: file_type(attributes.kind),
        perm: permissions(attributes.mode) as u16,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What `mknod(2)` asks for.
pub fn new_node(mode: u32, rdev: u32) -> Result<NewNode, Errno> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Ok(NewNode::File),
        libc::S_IFIFO => Ok(NewNode::Fifo),
        libc::S_IFSOCK => Ok(NewNode::Socket),
        libc::S_IFCHR => Ok(NewNode::CharDevice { rdev }),
        libc::S_IFBLK => Ok(NewNode::BlockDevice { rdev }),
        _ => Err(Errno::EINVAL),
    }
}

/// A time for fuser; one that `SystemTime` cannot hold becomes the epoch.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let base = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(whole),
        false => UNIX_EPOCH.checked_add(whole),
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// A time from fuser, with its mistake before 1970 undone.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
            Timestamp { seconds, nanos: after.subsec_nanos() }
        }
        Err(before) => {
            let swapped = before.duration();
            Timestamp { seconds: 0i64.saturating_sub_unsigned(swapped.as_secs()), nanos: swapped.subsec_nanos() }
        }
    }
}

pub fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::To(timestamp(time)),
    }
}

/// What `renameat2(2)` asks for. Unknown flags are refused, and what it refuses itself: to exchange and something else.
pub fn renaming(flags: RenameFlags) -> Result<Renaming, Errno> {
    const FREE_WHITEOUT: u32 = libc::RENAME_NOREPLACE | libc::RENAME_WHITEOUT;
    let (mode, only_if_free) = match flags.bits() {
        0 => (RenameMode::Replace, false),
        libc::RENAME_NOREPLACE => (RenameMode::NoReplace, true),
        libc::RENAME_EXCHANGE => (RenameMode::Exchange, false),
        libc::RENAME_WHITEOUT => (RenameMode::Whiteout, false),
        FREE_WHITEOUT => (RenameMode::Whiteout, true),
        _ => return Err(Errno::EINVAL),
    };
    Ok(Renaming { mode, only_if_free })
}

pub fn allocate_mode(mode: i32) -> Result<AllocateMode, Errno> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Ok(AllocateMode::Extend),
        libc::FALLOC_FL_KEEP_SIZE => Ok(AllocateMode::KeepSize),
        PUNCH => Ok(AllocateMode::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Ok(AllocateMode::ZeroRange { keep_size: false }),
        ZERO_KEEP => Ok(AllocateMode::ZeroRange { keep_size: true }),
        libc::FALLOC_FL_COLLAPSE_RANGE => Ok(AllocateMode::Collapse),
        libc::FALLOC_FL_INSERT_RANGE => Ok(AllocateMode::Insert),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

pub fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Any),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::EINVAL),
    }
}

pub fn lock_mode(kind: i32) -> Result<LockMode, Errno> {
    match kind {
        libc::F_RDLCK => Ok(LockMode::Shared),
        libc::F_WRLCK => Ok(LockMode::Exclusive),
        libc::F_UNLCK => Ok(LockMode::Unlock),
        _ => Err(Errno::EINVAL),
    }
}

pub fn kernel_lock_kind(mode: LockMode) -> i32 {
    match mode {
        LockMode::Shared => libc::F_RDLCK,
        LockMode::Exclusive => libc::F_WRLCK,
        LockMode::Unlock => libc::F_UNLCK,
    }
}

pub fn lock_range(start: u64, end: u64) -> LockRange {
    LockRange { start, end: if end >= KERNEL_RANGE_END { u64::MAX } else { end } }
}

/// First and last byte as the kernel counts them.
pub fn kernel_lock_range(range: LockRange) -> (u64, u64) {
    (range.start.min(KERNEL_RANGE_END), range.end.min(KERNEL_RANGE_END))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of a `timespec` (its `time.rs`); when this no longer holds, `timestamp` must change too.
    fn as_fuser_hands_it(seconds: i64, nanos: u32) -> SystemTime {
        match seconds >= 0 {
            true => UNIX_EPOCH + Duration::new(seconds as u64, nanos),
            false => UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos),
        }
    }

    /// What fuser 0.18 makes of a `SystemTime` in a reply.
    fn as_fuser_sends_it(time: SystemTime) -> (i64, u32) {
        match time.duration_since(UNIX_EPOCH) {
            Ok(d) => (d.as_secs() as i64, d.subsec_nanos()),
            Err(e) if e.duration().subsec_nanos() == 0 => (0i64.saturating_sub_unsigned(e.duration().as_secs()), 0),
            Err(e) => (-(e.duration().as_secs() as i64) - 1, 1_000_000_000 - e.duration().subsec_nanos()),
        }
    }

    #[test]
    fn a_time_comes_back_as_it_was_set() {
        let times = [(0, 0), (1, 5), (-1, 0), (-1, 999_999_999), (-2, 800_000_000), (i64::MAX, 7), (i64::MIN, 0)];
        for (seconds, nanos) in times {
            let kept = timestamp(as_fuser_hands_it(seconds, nanos));
            assert_eq!(kept, Timestamp { seconds, nanos });
            assert_eq!(as_fuser_sends_it(system_time(kept)), (seconds, nanos));
        }
    }

    #[test]
    fn a_lock_to_the_end_of_the_file_has_no_end() {
        assert_eq!(lock_range(10, i64::MAX as u64), LockRange { start: 10, end: u64::MAX });
        assert_eq!(kernel_lock_range(LockRange { start: 10, end: u64::MAX }), (10, i64::MAX as u64));
        assert_eq!(kernel_lock_range(lock_range(3, 9)), (3, 9));
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert_eq!(renaming(RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_EXCHANGE), Err(Errno::EINVAL));
        assert_eq!(renaming(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE), Err(Errno::EINVAL));
        assert_eq!(allocate_mode(libc::FALLOC_FL_PUNCH_HOLE), Err(Errno::EOPNOTSUPP));
        assert_eq!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE), Err(Errno::EINVAL));
    }
}
