//! Rot for tests: bits flipped in the files of a real directory. Nothing else of a file is touched, because its node may be
//! writing to it. (A simulated disk rots by itself.)

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Flip a bit of these bytes wherever they are in the segments of a log.
pub fn rot(log: &Path, bytes: &[u8]) {
    rot_at(log, bytes, |_, place| place + 3);
}

/// Flip a bit in the header of each record that holds these bytes.
pub fn rot_header(log: &Path, bytes: &[u8]) {
    rot_at(log, bytes, |content, place| content[..place].windows(4).rposition(|word| word == b"kREC").unwrap() + 20);
}

/// Flip a bit in the middle of the newest snapshot.
pub fn rot_snapshot(log: &Path) {
    let names = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let newest = names.filter(|path| path.to_string_lossy().contains("snapshot-")).max().unwrap();
    let content = fs::read(&newest).unwrap();
    flip(&newest, &content, content.len() / 2);
}

/// `at`: which place to flip in this content, for bytes that were found at that place.
fn rot_at(log: &Path, bytes: &[u8], at: impl Fn(&[u8], usize) -> usize) {
    let mut found = 0;
    for entry in fs::read_dir(log).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let content = fs::read(&path).unwrap();
        for (place, _) in content.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes) {
            flip(&path, &content, at(&content, place));
            found += 1;
        }
    }
    assert!(found > 0, "{} does not have these bytes", log.display());
}

fn flip(file: &Path, content: &[u8], place: usize) {
    let open = File::options().write(true).open(file).unwrap();
    open.write_all_at(&[content[place] ^ 4], place as u64).unwrap();
}
