//! What wild bytes meet: one function for each reader of bytes that others wrote. None may panic, hang or allocate without
//! bound, whatever it is given. The property tests of `tests/hostile.rs` call them, and so do the targets in `fuzz/`.

use bytes::Bytes;
use keelfs::fs::{Ino, XattrMode, words};
use keelfs::log::disk::Disk;
use keelfs::log::simulated::SimulatedDisk;
use keelfs::log::{Log, Options, Threading};
use keelfs::net::Message;
use keelfs::{gateway, net, raft, volume};
use std::io::IoSlice;
use std::sync::Arc;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// The first bytes on a connection.
pub fn frame(bytes: &[u8]) -> bool {
    RUNTIME.with(|runtime| runtime.block_on(net::wild_frame(bytes)))
}

/// A message in a valid frame: its kind, then its header, then its body, cut where the second byte says.
pub fn message(bytes: &[u8]) -> bool {
    let [kind, cut, rest @ ..] = bytes else { return false };
    let (header, body) = rest.split_at(rest.len() * usize::from(*cut) / 255);
    let message = Message { kind: *kind, header: Bytes::copy_from_slice(header), body: Bytes::copy_from_slice(body) };
    raft::wild_message(&message) | volume::wild_message(&message)
}

/// The command of an entry.
pub fn command(bytes: &[u8]) -> bool {
    raft::wild_command(&Bytes::copy_from_slice(bytes), 5)
}

/// A segment of the log, under the name that its header claims: opened, and everything in it read.
pub fn segment(bytes: &[u8]) -> bool {
    let sequence = bytes.get(12..16).and_then(|bytes| bytes.try_into().ok()).map_or(1, u32::from_le_bytes);
    log(&format!("{sequence:016}.seg"), bytes)
}

/// A snapshot file, beside an empty log.
pub fn snapshot(bytes: &[u8]) -> bool {
    log("snapshot-00000000000000000001", bytes)
}

fn log(name: &str, bytes: &[u8]) -> bool {
    let disk = SimulatedDisk::new();
    let options = |seed| Options { segment_bytes: 96 << 10, cache_bytes: 0, seed, threading: Threading::Pumped };
    if name.starts_with("snapshot") {
        drop(Log::open_on(Arc::new(disk.clone()), options(1)));
    }
    let file = disk.create(name).expect("a file");
    file.write_at(0, &mut [IoSlice::new(bytes)]).expect("a write");
    let Ok(log) = Log::open_on(Arc::new(disk), options(2)) else { return false };
    let mut sound =
        log.open_snapshot().is_ok_and(|reader| reader.is_none_or(|reader| reader.into_iter().all(|i| i.is_ok())));
    let _ = (log.vote(), log.committed(), log.state(), log.verify_snapshot());
    let first = log.state().last_purged.map_or(0, |purged| purged.index.saturating_add(1));
    sound &= log.entries(first, u64::MAX, 1 << 20, true).is_ok();
    let mut next = log.next_stored(0);
    for _ in 0..100 {
        let Some(index) = next else { break };
        sound &= log.verify(index).is_ok();
        let _ = log.read_body(index, 0, log.body_length(index).unwrap_or(0));
        next = index.checked_add(1).and_then(|from| log.next_stored(from));
    }
    while log.pump() {}
    sound
}

/// The value of an attribute, behind the name of one.
pub fn attribute(bytes: &[u8]) -> bool {
    const NAMES: [&str; 8] = ["cas", "replace-if", "ttl", "expires", "default-ttl", "ephemeral", "version", "x"];
    let Some((which, value)) = bytes.split_first() else { return false };
    let name = format!("user.keelfs.{}", NAMES[usize::from(*which) % NAMES.len()]);
    words::set_attribute(Ino(2), name.as_bytes(), value, XattrMode::Any).is_ok()
}

/// What a client of the cs733 protocol sends, in pieces of the length that the first byte says.
pub fn cs733(bytes: &[u8]) -> usize {
    let Some((piece, rest)) = bytes.split_first() else { return 0 };
    gateway::wild_requests(rest.chunks(usize::from(*piece).max(1)))
}
