//! Sizes: large ones that must work, larger ones that must be refused.

use crate::ground::{Ground, open, pattern};
use crate::system::{allocate, code, truncate};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

const GIB: u64 = 1 << 30;

/// Holds [C1].
pub fn sizes_beyond_four_gibibytes(ground: &Ground) {
    let (one, other) = ground.open_on_both("large", b"begin");
    one.set_len(5 * GIB).expect("five gibibytes of nothing");
    assert_eq!(other.metadata().expect("its attributes").len(), 5 * GIB);
    let bytes = pattern(100_000, 1);
    // across the border of 32 bits
    other.write_all_at(&bytes, 4 * GIB - 50_000).expect("a write");
    let mut seen = vec![0; 100_000];
    one.read_exact_at(&mut seen, 4 * GIB - 50_000).expect("a read");
    assert!(seen == bytes, "what was written across 4 GiB");
    other.set_len(4 * GIB - 1).expect("a shorter file");
    one.set_len(4 * GIB + 100).expect("a longer file");
    let mut tail = vec![9; 101];
    other.read_exact_at(&mut tail, 4 * GIB - 1).expect("a read");
    assert!(tail.iter().all(|byte| *byte == 0), "what was cut off has come back: {tail:?}");
    assert_eq!(one.read_at(&mut tail, 4 * GIB + 100).expect("a read at the end"), 0);
    other.set_len(5).expect("a short file");
    assert_eq!(fs::read(ground.here.join("large")).expect("a read"), b"begin");
}

/// Holds [C1].
pub fn sizes_out_of_bounds_are_refused(ground: &Ground) {
    let (file, other) = ground.open_on_both("file", b"content");
    assert_eq!(truncate(&file, -1), Err(libc::EINVAL));
    for size in [i64::MAX, 1 << 62] {
        assert_eq!(truncate(&file, size), Err(libc::EFBIG), "truncate to {size}");
    }
    for offset in [i64::MAX as u64 - 100, 1 << 62] {
        let refused = file.write_at(b"x", offset).expect_err("a write beyond every file");
        assert_eq!(code(&refused), libc::EFBIG, "a write at {offset}");
        let mut byte = [0];
        assert_eq!(file.read_at(&mut byte, offset).expect("a read beyond the end"), 0);
    }
    assert_eq!(other.metadata().expect("its attributes").len(), 7);
}

/// The last byte that a file may have, and the first one behind it.
/// Holds [C1].
pub fn a_file_ends_at_sixteen_tebibytes(ground: &Ground) {
    if !ground.is_fuse() {
        return ground.skip("other file systems end elsewhere");
    }
    let (file, other) = ground.open_on_both("file", b"content");
    let most = 16 << 40;
    file.write_all_at(b"x", most - 1).expect("the last byte");
    assert_eq!(other.metadata().expect("its attributes").len(), most);
    let mut bytes = [9; 3];
    assert_eq!(other.read_at(&mut bytes, most - 2).expect("a read of the end"), 2);
    assert_eq!(&bytes, b"\0x\x09");
    for (bytes, offset) in [("x", most), ("xy", most - 1)] {
        let refused = file.write_at(bytes.as_bytes(), offset).expect_err("a write beyond the largest file");
        assert_eq!(code(&refused), libc::EFBIG, "{bytes} at {offset}");
    }
    assert_eq!(truncate(&file, most as i64 + 1), Err(libc::EFBIG));
    assert_eq!(allocate(&file, 0, most as i64 - 10, 11), Err(libc::EFBIG));
    file.set_len(7).expect("a short file");
    file.set_len(most).expect("the largest file, of holes");
    assert_eq!(other.metadata().expect("its attributes").len(), most);
}

/// `RLIMIT_FSIZE`: what fits is written, the next write fails, and the file has not grown.
pub fn a_process_keeps_to_its_file_size_limit(ground: &Ground) {
    const LIMIT: u64 = 70_000;
    let (here, there) = ground.both("file");
    drop(open(&here));
    let mut target = std::ffi::OsString::from("of=");
    target.push(&here);
    let mut writer = Command::new("dd");
    writer.args(["if=/dev/zero", "bs=4096", "count=100", "conv=notrunc"]).arg(target).env("LC_ALL", "C");
    // SAFETY: two system calls of the new process, before it becomes another program.
    unsafe {
        writer.pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = writer.output().expect("dd");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("File too large"), "{said}");
    assert_eq!(fs::metadata(&there).expect("a stat").size(), LIMIT);
}
