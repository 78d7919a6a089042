//! Holes, allocation, copies inside the file system, and what of it `stat` and `df` tell.

use crate::ground::{Ground, assert_same, content, open, pattern};
use crate::system::allocate;
use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
/// The unit of `st_blocks`, in bytes.
const STAT_BLOCK: u64 = 512;

/// Holds [C1].
pub fn holes_and_data_are_told_apart(ground: &Ground) {
    let (one, other) = ground.open_on_both("sparse", &[]);
    one.write_all_at(&pattern(64 * KIB, 1), MIB as u64).expect("a write");
    one.set_len(3 * MIB as u64).expect("a longer file");
    let (mib, end) = (MIB as u64, (MIB + 64 * KIB) as u64);
    for file in [&one, &other] {
        assert_eq!(seek(file, SeekFrom::Data(0)), Ok(mib));
        assert_eq!(seek(file, SeekFrom::Data(mib + 5)), Ok(mib + 5));
        assert_eq!(seek(file, SeekFrom::Hole(0)), Ok(0));
        assert_eq!(seek(file, SeekFrom::Hole(mib)), Ok(end));
        assert_eq!(seek(file, SeekFrom::Hole(end + 5)), Ok(end + 5));
        assert_eq!(seek(file, SeekFrom::Data(end)), Err(Errno::NXIO), "no data behind the last");
        assert_eq!(seek(file, SeekFrom::Hole(3 * mib)), Err(Errno::NXIO), "nothing at the end");
        let size = file.metadata().expect("its attributes").size();
        assert_eq!(size, 3 * mib, "seeking changes nothing");
    }
}

/// Holds [C2], [C3].
pub fn allocation_keeps_to_its_modes(ground: &Ground) {
    let written = pattern(256 * KIB, 2);
    let (one, other) = ground.open_on_both("file", &written);
    let mut expected = written.clone();

    allocate(&one, KEEP, 0, MIB as i64).expect("space behind the end");
    assert_same(&content(&other), &expected, "KEEP_SIZE");
    allocate(&one, 0, 0, 512 * KIB as i64).expect("space, and a larger file");
    expected.resize(512 * KIB, 0);
    assert_same(&content(&other), &expected, "mode 0");
    allocate(&other, PUNCH | KEEP, 10_000, 100_000).expect("a hole");
    expected[10_000..110_000].fill(0);
    assert_same(&content(&one), &expected, "PUNCH_HOLE");
    allocate(&other, PUNCH | KEEP, 500 * KIB as i64, MIB as i64).expect("a hole over the end");
    expected[500 * KIB..].fill(0);
    assert_same(&content(&one), &expected, "PUNCH_HOLE over the end");
    allocate(&one, ZERO | KEEP, 200_000, MIB as i64).expect("zeros");
    expected[200_000..].fill(0);
    assert_same(&content(&other), &expected, "ZERO_RANGE, KEEP_SIZE");
    allocate(&one, ZERO, 150_000, 600_000).expect("zeros, and a larger file");
    expected[150_000..].fill(0);
    expected.resize(750_000, 0);
    assert_same(&content(&other), &expected, "ZERO_RANGE");
    senseless_allocations(ground, &one);
    shifts(ground, &one, &expected);
}

fn senseless_allocations(ground: &Ground, file: &File) {
    assert_eq!(allocate(file, 0, 0, 0), Err(libc::EINVAL), "no length");
    assert_eq!(allocate(file, 0, -1, 10), Err(libc::EINVAL), "a negative offset");
    assert_eq!(allocate(file, PUNCH, 0, 4096), Err(libc::EOPNOTSUPP), "a hole that may change the size");
    assert_eq!(allocate(file, 0, i64::MAX - 10, 100), Err(libc::EFBIG), "beyond every file");
    let unwritable = File::open(ground.here.join("file")).expect("an open for reading");
    assert_eq!(allocate(&unwritable, 0, 0, 10), Err(libc::EBADF));
}

fn shifts(ground: &Ground, file: &File, before: &[u8]) {
    let (block, mut expected) = (64 * KIB, before.to_vec());
    match allocate(file, libc::FALLOC_FL_COLLAPSE_RANGE, 0, block as i64) {
        Ok(()) => drop(expected.drain(..block)),
        Err(libc::EOPNOTSUPP) => ground.note("COLLAPSE_RANGE: EOPNOTSUPP (the kernel's FUSE hands it to nobody)"),
        Err(other) => panic!("COLLAPSE_RANGE: {}", std::io::Error::from_raw_os_error(other)),
    }
    match allocate(file, libc::FALLOC_FL_INSERT_RANGE, block as i64, block as i64) {
        Ok(()) => drop(expected.splice(block..block, vec![0; block])),
        Err(libc::EOPNOTSUPP) => ground.note("INSERT_RANGE: EOPNOTSUPP (the kernel's FUSE hands it to nobody)"),
        Err(other) => panic!("INSERT_RANGE: {}", std::io::Error::from_raw_os_error(other)),
    }
    assert_same(&content(file), &expected, "COLLAPSE_RANGE and INSERT_RANGE");
}

/// Holds [A5].
pub fn ranges_are_copied(ground: &Ground) {
    let from = pattern(3 * MIB, 3);
    let (source, _) = ground.open_on_both("source", &from);
    let (target, other) = ground.open_on_both("target", b"previous");
    let mut copied = 0;
    while copied < from.len() as u64 {
        let (mut at, mut to) = (copied, copied);
        let more = copy_file_range(&source, Some(&mut at), &target, Some(&mut to), from.len() - copied as usize);
        let more = more.expect("a copy") as u64;
        assert!(more > 0 && at == copied + more && to == at, "{more} bytes, offsets {at} and {to}");
        copied += more;
    }
    assert_same(&content(&other), &from, "a copy of a whole file");

    let (mut at, mut to) = (5000, 2 * MIB as u64 + 7);
    let same = copy_file_range(&target, Some(&mut at), &target, Some(&mut to), 100_000);
    assert_eq!(same, Ok(100_000), "inside one file");
    let mut expected = from.clone();
    expected.copy_within(5000..105_000, 2 * MIB + 7);
    assert_same(&content(&other), &expected, "a copy inside one file");
    let (mut at, mut to) = (0, 1000);
    let overlap = copy_file_range(&target, Some(&mut at), &target, Some(&mut to), 4000);
    assert_eq!(overlap, Err(Errno::INVAL), "a copy onto itself");
    assert_same(&content(&other), &expected, "a refused copy");
    source.write_all_at(&[0; 100], 0).expect("a write");
    assert_same(&content(&other), &expected, "a copy is its own");
}

pub fn copies_end_at_the_end_of_the_file(ground: &Ground) {
    let from = pattern(100_000, 4);
    let (source, _) = ground.open_on_both("source", &from);
    let (target, other) = ground.open_on_both("target", &[]);
    let (mut at, mut to) = (90_000, 200_000);
    assert_eq!(copy_file_range(&source, Some(&mut at), &target, Some(&mut to), 50_000), Ok(10_000));
    let mut expected = vec![0; 200_000];
    expected.extend_from_slice(&from[90_000..]);
    assert_same(&content(&other), &expected, "a copy behind the end leaves a hole");
    let (mut at, mut to) = (100_000, 0);
    assert_eq!(copy_file_range(&source, Some(&mut at), &target, Some(&mut to), 10), Ok(0), "nothing at the end");
    let appender = OpenOptions::new().append(true).open(ground.here.join("target")).expect("an open for appending");
    assert_eq!(copy_file_range(&source, None, &appender, None, 10), Err(Errno::BADF), "never onto O_APPEND");
    let unwritable = File::open(ground.here.join("target")).expect("an open for reading");
    assert_eq!(copy_file_range(&source, None, &unwritable, None, 10), Err(Errno::BADF));
    let directory = File::open(&ground.here).expect("a directory");
    let refused = copy_file_range(&directory, None, &target, None, 10);
    assert!(matches!(refused, Err(Errno::ISDIR | Errno::INVAL)), "{refused:?}");
}

/// `cp --reflink=always`. Holds [C4].
pub fn a_clone_is_made_or_refused(ground: &Ground) {
    let (from, _) = ground.open_on_both("source", &pattern(MIB, 4));
    let to = File::create(ground.here.join("clone")).expect("a new file");
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => assert_same(&fs::read(ground.there.join("clone")).expect("a read"), &content(&from), "a clone"),
        Err(Errno::OPNOTSUPP) => ground.note("FICLONE: EOPNOTSUPP (copy_file_range shares the data where it can)"),
        Err(other) => panic!("FICLONE: {other}"),
    }
}

/// Holds [N10].
pub fn blocks_tell_what_a_file_takes(ground: &Ground) {
    let (one, other) = ground.open_on_both("file", &[]);
    one.set_len(64 * MIB as u64).expect("a sparse file");
    let taken = || {
        one.sync_all().expect("fsync");
        other.metadata().expect("its attributes").blocks() * STAT_BLOCK
    };
    let slack = 256 * KIB as u64;
    assert!(taken() <= slack, "a file of holes takes {} bytes", taken());
    for piece in 0..4 {
        one.write_all_at(&pattern(MIB, piece), (piece * 2 * MIB) as u64).expect("a write");
    }
    let expect = |bytes: usize, what: &str| {
        let (found, bytes) = (taken(), bytes as u64);
        assert!(found >= bytes && found <= bytes + slack, "{what}: takes {found} bytes, expected {bytes}");
    };
    expect(4 * MIB, "four pieces");
    one.write_all_at(&pattern(MIB, 9), 0).expect("a write over the first");
    expect(4 * MIB, "written twice");
    allocate(&one, PUNCH | KEEP, 2 * MIB as i64, MIB as i64).expect("a hole");
    expect(3 * MIB, "one punched out");
    one.set_len(4 * MIB as u64 + 512 * KIB as u64).expect("a shorter file");
    expect(MIB + 512 * KIB, "cut in the third");
    let copy = open(&ground.here.join("copy"));
    let (mut at, mut to) = (0, 0);
    let copied = copy_file_range(&one, Some(&mut at), &copy, Some(&mut to), MIB).expect("a copy");
    copy.sync_all().expect("fsync");
    let shown = copy.metadata().expect("its attributes").blocks() * STAT_BLOCK;
    assert!(shown + slack >= copied as u64, "a copy of {copied} bytes shows {shown}");
}

/// Others may use a local file system too, so a look that does not fit is followed by another.
/// Holds [N10].
pub fn df_tells_what_files_take(ground: &Ground) {
    let mut looks = Vec::new();
    for _ in 0..3 {
        let (rose, fell) = df_around_a_file(ground);
        if about_a_file(rose) && about_a_file(fell) {
            return;
        }
        looks.push(format!("df rose by {rose} bytes and fell by {fell}"));
    }
    panic!("{FILE} bytes were written, and removed at least 5 s before the second look: {}", looks.join("; "));
}

/// What `df` is told of, in bytes.
const FILE: usize = 8 * MIB;

fn about_a_file(change: u64) -> bool {
    let file = FILE as u64;
    change >= file - file / 4 && change <= file * 2
}

/// By how many bytes the used space rose with a new file, and fell in the seconds after its end.
fn df_around_a_file(ground: &Ground) -> (u64, u64) {
    let path = ground.here.join("file");
    let before = used(&ground.there);
    fs::write(&path, pattern(FILE, 5)).and_then(|()| File::open(&path)?.sync_all()).expect("a write");
    let with = used(&ground.there);
    fs::remove_file(&path).expect("an unlink");
    let mut fell = 0;
    for _ in 0..20 {
        fell = with.saturating_sub(used(&ground.there));
        if about_a_file(fell) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    (with.saturating_sub(before), fell)
}

fn used(path: &Path) -> u64 {
    let told = rustix::fs::statvfs(path).expect("statfs");
    (told.f_blocks - told.f_bfree) * told.f_frsize
}
