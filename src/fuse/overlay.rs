//! Keeps `write(2)` and stores through a mapping of one file from undoing each other on one mount.
//!
//! Files are open for direct IO, so the kernel (fs/fuse/file.c, `fuse_direct_io`) writes around its page cache: it cleans the
//! pages of the range, sends the write, and drops those pages. A page that a mapping dirties between the first step and
//! the last is written back whole, and what it holds of the written range is older than the write. To us that looks like any
//! other page. But a page that was dropped comes back only by a read, so: a written-back page that overlaps a
//! write, with no read of it after that write was answered, is older than the write, and the write's bytes are put over it.
//!
//! Not covered: appends, whose place is not known before the answer; and a page and a write that are on their way at once,
//! which nobody puts in order.
//!
//! What is remembered is bounded in bytes and in time; the kernel drops the pages as soon as it has the answer.

use crate::fs::Ino;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Bytes of writes that are remembered on one mount.
const REMEMBERED_BYTES_MAX: usize = 16 << 20;
/// How long a write is remembered after its answer: the kernel drops the pages as soon as it has that. Short, because what
/// a program stores into a page that was not dropped after all (older kernels, asynchronous writes) must not be undone.
const REMEMBERED_TIME: Duration = Duration::from_millis(250);
const PAGE_BYTES: u64 = 4096;

/// The direct writes of one mount that pages may still be older than.
#[derive(Default)]
pub struct DirectWrites {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of each inode, in the order of their answers; those that have none yet come last, in the order of their arrival.
    writes: HashMap<Ino, Vec<DirectWrite>>,
    /// Answered writes, oldest first.
    answered: VecDeque<(Instant, Ino, u64)>,
    bytes: usize,
    next: u64,
}

struct DirectWrite {
    id: u64,
    offset: u64,
    data: Bytes,
    is_answered: bool,
}

impl DirectWrite {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.data.len() as u64)
    }
}

impl DirectWrites {
    /// A write is about to be sent. It is forgotten with what is returned, unless that is told of its success.
    pub fn sent(&self, ino: Ino, offset: u64, data: Bytes) -> Sent<'_> {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.bytes += data.len();
        state.writes.entry(ino).or_default().push(DirectWrite { id, offset, data, is_answered: false });
        Sent { writes: self, ino, id, is_answered: false }
    }

    fn answered(&self, ino: Ino, id: u64) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let Some(writes) = state.writes.get_mut(&ino) else { return };
        let Some(at) = writes.iter().position(|write| write.id == id) else { return };
        let mut write = writes.remove(at);
        write.is_answered = true;
        let after_answered = writes.partition_point(|write| write.is_answered);
        writes.insert(after_answered, write);
        state.answered.push_back((now, ino, id));
        state.forget_old(now);
    }

    /// The kernel fills its pages of this range: they have seen every write that was answered before.
    pub fn filled(&self, ino: Ino, offset: u64, length: u64) {
        let mut state = self.state.lock();
        let Some(writes) = state.writes.get_mut(&ino) else { return };
        // A page that is read only in part does not come into the page cache by that.
        let (from, to) = (offset.next_multiple_of(PAGE_BYTES), offset.saturating_add(length) / PAGE_BYTES * PAGE_BYTES);
        if from >= to {
            return;
        }
        let mut freed = 0;
        let mut split = Vec::new();
        for write in writes.iter_mut().filter(|write| write.is_answered && write.offset < to && from < write.end()) {
            let (head, tail) = (from.saturating_sub(write.offset) as usize, write.end().saturating_sub(to) as usize);
            let length = write.data.len();
            freed += length - head - tail;
            if tail > 0 {
                let data = write.data.slice(length - tail..);
                split.push((write.id, DirectWrite { id: write.id, offset: to, data, is_answered: true }));
            }
            write.data.truncate(head);
        }
        for (id, rest) in split {
            if let Some(at) = writes.iter().position(|write| write.id == id) {
                writes.insert(at + 1, rest);
            }
        }
        writes.retain(|write| !write.data.is_empty());
        if writes.is_empty() {
            state.writes.remove(&ino);
        }
        state.bytes -= freed;
    }

    /// The content of pages that the kernel writes back, with the writes put over it that they are older than.
    pub fn laid_over(&self, ino: Ino, offset: u64, pages: &[u8]) -> Bytes {
        let mut state = self.state.lock();
        state.forget_old(Instant::now());
        let end = offset.saturating_add(pages.len() as u64);
        let Some(writes) = state.writes.get(&ino) else { return Bytes::copy_from_slice(pages) };
        let mut pages = BytesMut::from(pages);
        for write in writes.iter().filter(|write| write.offset < end && offset < write.end()) {
            let (from, to) = (write.offset.max(offset), write.end().min(end));
            let source = &write.data[(from - write.offset) as usize..(to - write.offset) as usize];
            pages[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        pages.freeze()
    }
}

/// A write that is under way.
pub struct Sent<'a> {
    writes: &'a DirectWrites,
    ino: Ino,
    id: u64,
    is_answered: bool,
}

impl Sent<'_> {
    /// The kernel is about to be told of the write's success.
    pub fn answered(mut self) {
        self.is_answered = true;
        self.writes.answered(self.ino, self.id);
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.writes.state.lock().remove(self.ino, self.id);
        }
    }
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        while let Some(&(at, ino, id)) = self.answered.front() {
            if now.duration_since(at) < REMEMBERED_TIME && self.bytes <= REMEMBERED_BYTES_MAX {
                break;
            }
            self.answered.pop_front();
            self.remove(ino, id);
        }
    }

    fn remove(&mut self, ino: Ino, id: u64) {
        let Some(writes) = self.writes.get_mut(&ino) else { return };
        let gone: usize = writes.extract_if(.., |write| write.id == id).map(|write| write.data.len()).sum();
        if writes.is_empty() {
            self.writes.remove(&ino);
        }
        self.bytes -= gone;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);

    fn sent<'a>(writes: &'a DirectWrites, offset: u64, data: &'static [u8]) -> Sent<'a> {
        writes.sent(INO, offset, Bytes::from_static(data))
    }

    #[test]
    fn a_page_that_is_older_than_a_write_does_not_undo_it() {
        let writes = DirectWrites::default();
        let new = sent(&writes, 2, b"new");
        assert_eq!(writes.laid_over(INO, 0, b"........").as_ref(), b"..new...", "under way");
        assert_eq!(writes.laid_over(INO, 3, b"........").as_ref(), b"ew......");
        assert_eq!(writes.laid_over(Ino(8), 0, b"........").as_ref(), b"........");
        new.answered();
        assert_eq!(writes.laid_over(INO, 0, b"........").as_ref(), b"..new...", "answered");
        writes.filled(INO, 0, PAGE_BYTES);
        assert_eq!(writes.laid_over(INO, 0, b"........").as_ref(), b"........", "read since");
        assert_eq!(writes.state.lock().bytes, 0);
    }

    #[test]
    fn only_whole_pages_that_are_read_after_the_answer_count() {
        static DATA: [u8; 2 * PAGE_BYTES as usize] = [1; 2 * PAGE_BYTES as usize];
        let writes = DirectWrites::default();
        let two_pages = sent(&writes, PAGE_BYTES, &DATA);
        writes.filled(INO, 0, 8 * PAGE_BYTES);
        two_pages.answered();
        writes.filled(INO, PAGE_BYTES + 1, PAGE_BYTES);
        assert_eq!(writes.state.lock().bytes, DATA.len());
        writes.filled(INO, 2 * PAGE_BYTES, PAGE_BYTES);
        assert_eq!(writes.laid_over(INO, PAGE_BYTES, &[0]).as_ref(), [1]);
        assert_eq!(writes.laid_over(INO, 2 * PAGE_BYTES, &[0]).as_ref(), [0]);
        assert_eq!(writes.state.lock().bytes, PAGE_BYTES as usize);
        writes.filled(INO, PAGE_BYTES, PAGE_BYTES);
        let state = writes.state.lock();
        assert_eq!((state.bytes, state.writes.len()), (0, 0));
    }

    #[test]
    fn the_write_that_was_answered_last_is_on_top_and_a_failed_one_is_not_there() {
        let writes = DirectWrites::default();
        let (first, second, failed) = (sent(&writes, 0, b"a"), sent(&writes, 0, b"b"), sent(&writes, 0, b"c"));
        drop(failed);
        assert_eq!(writes.laid_over(INO, 0, b".").as_ref(), b"b");
        second.answered();
        first.answered();
        assert_eq!(writes.laid_over(INO, 0, b".").as_ref(), b"a");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        static DATA: [u8; 1 << 20] = [1; 1 << 20];
        let writes = DirectWrites::default();
        for round in 0..64 {
            sent(&writes, round << 20, &DATA).answered();
        }
        let state = writes.state.lock();
        assert!(state.bytes <= REMEMBERED_BYTES_MAX && state.bytes > REMEMBERED_BYTES_MAX / 2, "{}", state.bytes);
        assert_eq!(state.writes[&INO].len(), state.answered.len());
    }
}
