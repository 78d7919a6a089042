//! What `stat`, `utimensat` and `setxattr` keep, at the ends of what they can be asked.

use crate::ground::{Ground, open, pattern};
use rustix::fs::{AtFlags, CWD, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, statx, utimensat};
use rustix::fs::{getxattr, listxattr, listxattr_query, lsetxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Largest value of an attribute, in bytes (`XATTR_SIZE_MAX`).
const VALUE_MAX: usize = 65_536;

fn time(seconds: i64, nanos: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanos as _ }
}

fn set(path: &Path, last_access: Timespec, last_modification: Timespec, flags: AtFlags) {
    utimensat(CWD, path, &Timestamps { last_access, last_modification }, flags).expect("utimensat");
}

type Pair = (i64, i64);

fn times(path: &Path) -> (Pair, Pair) {
    let seen = fs::symlink_metadata(path).expect("a stat");
    ((seen.atime(), seen.atime_nsec()), (seen.mtime(), seen.mtime_nsec()))
}

/// Holds [N7].
pub fn times_come_back_as_they_were_set(ground: &Ground) {
    let (here, there) = ground.both("file");
    drop(open(&here));
    // before 1970 with a fraction, the borders of 31 and 32 bits, and after
    let seconds = [0, 1, -1, -2, -(1 << 31), (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 86_400 * 365];
    for (at, second) in seconds.into_iter().enumerate() {
        let nanos = [0, 1, 800_000_000, 999_999_999][at % 4];
        set(&here, time(second, nanos), time(second + 1, 999_999_999 - nanos), AtFlags::empty());
        assert_eq!(times(&there), ((second, nanos), (second + 1, 999_999_999 - nanos)));
    }
    let (link_here, link_there) = ground.both("link");
    symlink(&here, &link_here).expect("a symlink");
    set(&link_here, time(-7, 5), time(77, 6), AtFlags::SYMLINK_NOFOLLOW);
    assert_eq!(times(&link_there), ((-7, 5), (77, 6)), "a link's own times");
    let refused = Timestamps { last_access: time(0, 1_000_000_000), last_modification: time(0, 0) };
    assert_eq!(utimensat(CWD, &here, &refused, AtFlags::empty()), Err(Errno::INVAL), "a second of nanoseconds");
}

/// Holds [N8].
pub fn reading_leaves_the_access_time(ground: &Ground) {
    if !ground.is_fuse() {
        return ground.skip("the access times of other file systems depend on how they are mounted");
    }
    let (here, there) = ground.both("file");
    fs::write(&here, "content").expect("a write");
    // long ago, so that relatime would set it
    set(&here, time(1000, 1), time(2000, 2), AtFlags::empty());
    for path in [&here, &there] {
        assert_eq!(fs::read(path).expect("a read"), b"content");
        assert_eq!(times(path), ((1000, 1), (2000, 2)));
    }
}

pub fn now_and_omit_are_kept_apart(ground: &Ground) {
    let (here, there) = ground.both("file");
    let file = open(&here);
    let (now, omit) = (time(0, UTIME_NOW as _), time(0, UTIME_OMIT as _));
    set(&here, time(100, 1), time(200, 2), AtFlags::empty());
    set(&here, omit, time(300, 3), AtFlags::empty());
    assert_eq!(times(&there), ((100, 1), (300, 3)), "the access time is left out");
    set(&there, time(400, 4), omit, AtFlags::empty());
    assert_eq!(times(&here), ((400, 4), (300, 3)), "the modification time is left out");
    let before = fs::metadata(&here).expect("a stat");
    set(&here, omit, omit, AtFlags::empty());
    let after = fs::metadata(&there).expect("a stat");
    assert_eq!((after.ctime(), after.ctime_nsec()), (before.ctime(), before.ctime_nsec()), "nothing to change");
    rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: omit }).expect("futimens");
    let seen = fs::metadata(&there).expect("a stat");
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (300, 3));
    let skew = Duration::from_secs(60);
    let accessed = seen.accessed().expect("an access time");
    let clock = SystemTime::now();
    assert!(accessed + skew > clock && accessed < clock + skew, "UTIME_NOW set {accessed:?}, the clock says {clock:?}");
    assert!((after.ctime(), after.ctime_nsec()) < (seen.ctime(), seen.ctime_nsec()), "the status change is seen");
}

pub fn modes_and_owners_are_seen_there(ground: &Ground) {
    let (here, there) = ground.both("file");
    drop(open(&here));
    for mode in [0o000, 0o777, 0o640, 0o1644, 0o4755, 0o2755] {
        fs::set_permissions(&here, fs::Permissions::from_mode(mode)).expect("chmod");
        assert_eq!(fs::metadata(&there).expect("a stat").mode() & 0o7777, mode);
    }
    if !rustix::process::geteuid().is_root() {
        return ground.note("owners are not changed: not root");
    }
    for (uid, gid) in [(12, 34), (0, 4_000_000_000), (4_000_000_000, 0)] {
        std::os::unix::fs::chown(&here, Some(uid), Some(gid)).expect("chown");
        let seen = fs::metadata(&there).expect("a stat");
        assert_eq!((seen.uid(), seen.gid()), (uid, gid));
    }
}

/// Holds [N9].
pub fn statx_agrees_with_stat(ground: &Ground) {
    let (here, there) = ground.both("file");
    fs::write(&here, pattern(5000, 1)).expect("a write");
    let asked = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let told = statx(CWD, &there, AtFlags::empty(), asked).expect("statx");
    let seen = fs::metadata(&here).expect("a stat");
    assert_eq!((told.stx_ino, told.stx_size, u64::from(told.stx_nlink)), (seen.ino(), 5000, 1));
    assert_eq!((told.stx_mtime.tv_sec, i64::from(told.stx_mtime.tv_nsec)), (seen.mtime(), seen.mtime_nsec()));
    assert_eq!((told.stx_blocks, u64::from(told.stx_blksize)), (seen.blocks(), seen.blksize()));
    if told.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return ground.note("statx tells no birth time");
    }
    let birth = told.stx_btime;
    set(&here, time(1, 0), time(1, 0), AtFlags::empty());
    let again = statx(CWD, &there, AtFlags::empty(), asked).expect("statx").stx_btime;
    assert_eq!((birth.tv_sec, birth.tv_nsec), (again.tv_sec, again.tv_nsec), "a birth time never changes");
    assert!(birth.tv_sec <= seen.ctime(), "born after its last change");
}

fn read(path: &Path, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; VALUE_MAX];
    let length = getxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

pub fn xattrs_keep_to_their_flags(ground: &Ground) {
    let (here, there) = ground.both("file");
    drop(open(&here));
    let name = "user.color";
    assert_eq!(setxattr(&here, name, b"x", XattrFlags::REPLACE), Err(Errno::NODATA), "REPLACE of nothing");
    assert_eq!(read(&there, name.as_bytes()), Err(Errno::NODATA));
    setxattr(&here, name, b"red", XattrFlags::CREATE).expect("CREATE of a new one");
    assert_eq!(setxattr(&there, name, b"blue", XattrFlags::CREATE), Err(Errno::EXIST), "CREATE of an old one");
    assert_eq!(read(&there, name.as_bytes()).as_deref(), Ok(&b"red"[..]));
    setxattr(&there, name, b"green", XattrFlags::REPLACE).expect("REPLACE of an old one");
    assert_eq!(read(&here, name.as_bytes()).as_deref(), Ok(&b"green"[..]));
    removexattr(&here, name).expect("a removal");
    assert_eq!(removexattr(&there, name), Err(Errno::NODATA), "a second removal");
    let link = ground.here.join("link");
    symlink(&here, &link).expect("a symlink");
    assert_eq!(lsetxattr(&link, name, b"x", XattrFlags::empty()), Err(Errno::PERM), "user.* of a symlink");
    if rustix::process::geteuid().is_root() {
        lsetxattr(&link, "trusted.color", b"x", XattrFlags::empty()).expect("trusted.* of a symlink");
    }
    assert_eq!(setxattr(&here, "color", b"x", XattrFlags::empty()), Err(Errno::OPNOTSUPP), "no namespace");
}

/// Holds [N3].
pub fn xattrs_of_every_size_come_back(ground: &Ground) {
    let (here, there) = ground.both("file");
    drop(open(&here));
    for length in [0, 1, 255, 1000, 3500, 4096, 20_000, VALUE_MAX] {
        let value = pattern(length, length);
        match setxattr(&here, "user.value", &value, XattrFlags::empty()) {
            // ext4 keeps them in one block, and says so
            Err(Errno::NOSPC) if length > 3500 && !ground.is_fuse() => {
                return ground.note(format!("a value of {length} bytes: ENOSPC"));
            }
            outcome => outcome.unwrap_or_else(|e| panic!("a value of {length} bytes: {e}")),
        }
        assert!(read(&there, b"user.value") == Ok(value), "a value of {length} bytes comes back");
    }
    let longer = setxattr(&here, "user.value", &vec![1; VALUE_MAX + 1], XattrFlags::empty());
    assert_eq!(longer, Err(Errno::TOOBIG), "a value of 64 KiB and a byte");
}

fn list(path: &Path) -> Vec<Vec<u8>> {
    let mut names = vec![0; VALUE_MAX];
    let length = listxattr(path, &mut names[..]).expect("a list");
    let names = names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    names.sort();
    names
}

pub fn xattr_names_are_bytes(ground: &Ground) {
    let (here, there) = ground.both("file");
    drop(open(&here));
    let longest = [b"user.".to_vec(), vec![b'n'; 250]].concat();
    let mut names = vec![b"user.\xff\xfe".to_vec(), b"user.new\nline".to_vec(), b"user.a".to_vec(), longest];
    for name in &names {
        setxattr(&here, name.as_slice(), name, XattrFlags::empty()).unwrap_or_else(|e| panic!("{name:?}: {e}"));
        assert_eq!(read(&there, name).as_ref(), Ok(name));
    }
    names.sort();
    assert_eq!(list(&there), names);
    let longer = [b"user.".to_vec(), vec![b'n'; 251]].concat();
    assert_eq!(setxattr(&here, longer.as_slice(), b"", XattrFlags::empty()), Err(Errno::RANGE), "a name of 256 bytes");
    for name in &names {
        removexattr(&there, name.as_slice()).expect("a removal");
    }
    assert!(list(&here).is_empty());
}

pub fn xattr_buffers_may_be_short(ground: &Ground) {
    let (here, there) = ground.both("file");
    drop(open(&here));
    setxattr(&here, "user.value", b"0123456789", XattrFlags::empty()).expect("a value");
    let mut short = [0; 9];
    assert_eq!(getxattr(&there, "user.value", &mut short[..]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr_query(&there, "user.value"), Ok(10), "the length, asked for");
    assert_eq!(listxattr(&there, &mut short[..]), Err(Errno::RANGE));
    assert!(listxattr_query(&there).expect("the length of the list") >= 11);
    let mut exact = [0; 10];
    assert_eq!(getxattr(&there, "user.value", &mut exact[..]), Ok(10));
}
