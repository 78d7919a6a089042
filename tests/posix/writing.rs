//! Writing, in the ways that programs choose: appended, direct, synchronous; and reading it through the kernel's pages.

use crate::ground::{Ground, assert_same, content, open, pattern};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const APPENDERS: usize = 4;
const RECORDS: usize = 40;
/// Appender, number and length of a record, each four bytes.
const HEADER: usize = 12;
/// Largest record, in bytes: what is promised to stay in one piece on every mount.
const RECORD_MAX: usize = 64 << 10;

/// Holds [A2].
pub fn appends_from_both_sides_are_whole(ground: &Ground) {
    let (here, there) = ground.both("journal");
    File::create(&here).expect("a new file");
    std::thread::scope(|scope| {
        for appender in 0..APPENDERS {
            let path = if appender % 2 == 0 { &here } else { &there };
            scope.spawn(move || append_records(path, appender));
        }
    });
    let bytes = fs::read(&there).expect("a read");
    let (mut at, mut next) = (0, [0; APPENDERS]);
    while at < bytes.len() {
        let [appender, number, length] = header(&bytes[at..]);
        assert!(appender < APPENDERS, "no record begins at byte {at}");
        assert_eq!(number, next[appender], "appender {appender}, at byte {at}");
        let found = bytes.get(at..at + length).unwrap_or_else(|| panic!("the record at byte {at} is cut"));
        assert_same(found, &record(appender, number), &format!("record {number} of appender {appender} at byte {at}"));
        next[appender] += 1;
        at += length;
    }
    assert_eq!(next, [RECORDS; APPENDERS], "all records of all appenders");
    ground.note(format!("{} records, {} bytes", APPENDERS * RECORDS, bytes.len()));
}

fn append_records(path: &Path, appender: usize) {
    let mut file = OpenOptions::new().append(true).open(path).expect("an open for appending");
    for number in 0..RECORDS {
        let record = record(appender, number);
        assert_eq!(file.write(&record).expect("an append"), record.len(), "one write, one piece");
    }
}

fn record(appender: usize, number: usize) -> Vec<u8> {
    let length =
        if number.is_multiple_of(8) { RECORD_MAX } else { HEADER + (number * 7919 + appender * 104_729) % 60_000 };
    let mut record: Vec<u8> = [appender, number, length].iter().flat_map(|n| (*n as u32).to_le_bytes()).collect();
    record.extend(pattern(length - HEADER, appender * 100 + number));
    record
}

fn header(bytes: &[u8]) -> [usize; 3] {
    [0, 4, 8].map(|at| {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).expect("a whole header");
        u32::from_le_bytes(four) as usize
    })
}

/// What the kernel sends in one piece, whatever the memory that it comes from.
const STEP: usize = (1 << 20) - 4096;

/// Holds [A1]. A local file system promises less: there a reader may see one page of a write and not yet the next.
pub fn a_write_is_seen_whole_or_not_at_all(ground: &Ground) {
    if !ground.is_fuse() {
        return ground.skip("ext4 and others write page by page");
    }
    let (one, other) = ground.open_on_both("file", &vec![b'0'; STEP]);
    let over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        scope.spawn(|| {
            for letter in (b'a'..=b'z').cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                one.write_all_at(&vec![letter; STEP], 0).expect("a write");
            }
        });
        let seen: Vec<_> = (0..40).map(|_| content(&other)).collect();
        over.store(true, Ordering::Relaxed);
        seen
    });
    for bytes in &seen {
        assert_same(bytes, &vec![bytes[0]; STEP], "one write, seen whole");
    }
    let versions: BTreeSet<u8> = seen.iter().map(|bytes| bytes[0]).collect();
    assert!(versions.len() > 3, "the reader has met {} writes: too few to say anything", versions.len());
}

/// Memory at an address that direct IO can use.
#[repr(align(4096))]
struct Pages([u8; 8192]);

/// Holds [C6].
pub fn direct_io_is_seen(ground: &Ground) {
    let (here, there) = ground.both("file");
    let open = |path: &Path| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(path)
    };
    let one = match open(&here) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return ground.skip("no O_DIRECT here (EINVAL)"),
        opened => opened.expect("an open"),
    };
    let other = open(&there).expect("an open");
    for round in 0..10 {
        let mut pages = Box::new(Pages([round; 8192]));
        one.write_all_at(&pages.0, 4096 * u64::from(round)).expect("a direct write");
        let buffered = File::open(&there).expect("an open");
        let mut seen = [0; 8192];
        buffered.read_exact_at(&mut seen, 4096 * u64::from(round)).expect("a read");
        assert_same(&seen, &[round; 8192], "a direct write, read through pages");
        fs::write(&there, vec![round + 100; 40_960 + 8192]).expect("a write");
        other.read_exact_at(&mut pages.0, 8192).expect("a direct read");
        assert_same(&pages.0, &[round + 100; 8192], "a write, read directly");
    }
}

/// Holds [D2].
pub fn synchronous_writes_are_seen(ground: &Ground) {
    for (name, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
        let (here, there) = ground.both(name);
        let file = OpenOptions::new().write(true).create_new(true).custom_flags(flag).open(&here).expect("an open");
        let bytes = pattern(100_000, 1);
        file.write_all_at(&bytes, 50).expect("a synchronous write");
        file.sync_data().and_then(|()| file.sync_all()).expect("fdatasync and fsync");
        rustix::fs::syncfs(&file).expect("syncfs");
        File::open(&ground.here).and_then(|directory| directory.sync_all()).expect("fsync of the directory");
        assert_same(&fs::read(there).expect("a read")[50..], &bytes, name);
    }
}

/// `sendfile` takes the kernel's pages as they are, where `read` may ask the file system. Whoever opens the file after a
/// write gets what it wrote. The size stays, so that only the content tells.
/// Holds [V7].
pub fn pages_do_not_outlive_an_open(ground: &Ground) {
    let (one, other) = ground.open_on_both("file", &pattern(20_000, 0));
    for round in 1..=10 {
        let expected = pattern(20_000, round);
        if round % 2 == 0 { &one } else { &other }.write_all_at(&expected, 0).expect("a write");
        for side in [&ground.here, &ground.there] {
            let opened = File::open(side.join("file")).expect("an open");
            assert_same(&sent(&opened), &expected, &format!("round {round}, opened after the write"));
        }
    }
}

/// The same through a descriptor that was open, and had sent the file, before the write: on another side it has to look at
/// the file's attributes first, because the kernel splices from its pages without a look.
/// Holds [V10].
pub fn pages_do_not_outlive_a_write(ground: &Ground) {
    let (one, other) = ground.open_on_both("file", &pattern(20_000, 0));
    sent(&other);
    for (round, (writer, side)) in [(&other, "its own side"), (&one, "the other side")].into_iter().enumerate() {
        let expected = pattern(20_000, round + 1);
        writer.write_all_at(&expected, 0).expect("a write");
        other.metadata().expect("attributes");
        assert_same(&sent(&other), &expected, &format!("sent through an open file after a write on {side}"));
    }
}

/// The whole file through `sendfile` and a pipe.
fn sent(file: &File) -> Vec<u8> {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut offset = 0;
    let mut bytes = vec![0; 65_536];
    let length = rustix::fs::sendfile(&writer, file, Some(&mut offset), bytes.len()).expect("sendfile");
    drop(writer);
    std::io::Read::read_exact(&mut &reader, &mut bytes[..length]).expect("what was sent");
    bytes.truncate(length);
    bytes
}

/// Programs are read through pages as well.
pub fn a_program_runs_as_it_was_written_there(ground: &Ground) {
    let (here, there) = ground.both("program");
    for round in 0..5 {
        fs::write(&here, format!("#!/bin/sh\necho round {round}\n")).expect("a write");
        fs::set_permissions(&here, fs::Permissions::from_mode(0o755)).expect("chmod");
        let output = Command::new(&there).output().unwrap_or_else(|e| panic!("cannot run {}: {e}", there.display()));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("round {round}\n"));
    }
    // a binary, replaced in place by another of the same size once it has run
    let program = fs::read("/bin/true").expect("/bin/true");
    let mut file = open(&ground.here.join("binary"));
    file.write_all(&program).expect("a write");
    drop(file);
    let binary = ground.there.join("binary");
    fs::set_permissions(ground.here.join("binary"), fs::Permissions::from_mode(0o755)).expect("chmod");
    assert!(Command::new(&binary).status().expect("a run").success());
    let mut script = b"#!/bin/sh\nexit 7\n".to_vec();
    script.resize(program.len(), b'\n');
    fs::write(ground.here.join("binary"), &script).expect("a write");
    assert_eq!(Command::new(&binary).status().expect("a run").code(), Some(7), "the new program runs");
    assert_same(&content(&File::open(&binary).expect("an open")), &script, "the new program");
}
