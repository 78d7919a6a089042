//! Keeps `write(2)` and stores through a mapping of one file from undoing each other on one mount.
//!
//! Files are open for direct IO, so the kernel (fs/fuse/file.c, `fuse_direct_io`) writes around its page cache: it cleans and
//! drops the pages of the range, sends the write, and drops those pages again. A page that a mapping dirties between the first
//! step and the last is written back whole, and what it holds of the written range is older than the write. To us that
//! looks like any other page. So:
//!
//! * a write and a page that overlap are sent one after the other, as they arrived, and never are both on their way;
//! * a page was filled by a read, which says of which version of the file it is: until the kernel has read the page anew, a
//!   written-back page that overlaps an answered write is older than that write, and the write's bytes are put over it.
//!
//! An append has its place only when it is answered: until then it overlaps every page of the file.
//!
//! The kernel clears the rest of a page behind the end of the file when it writes the page back, and when it hears of another
//! size (fs/iomap/buffered-io.c, `iomap_writeback_handle_eof`; fs/fuse/inode.c, `fuse_change_attributes_i`). With a size that
//! is no longer true at that moment, it clears what a page has read of an append since. So where a page ends in zeros that
//! begin where a remembered write made the file longer, that write and those behind it are put over them, unless a page was
//! read since that had something else there. Cost: who stores just these zeros through a mapping within seconds may find
//! the write again.
//!
//! What is remembered is bounded in bytes and in time, and is nothing unless the file's pages have been in the kernel's
//! cache since it was opened here, which few files' have.
//!
//! Absent on purpose: telling the kernel to drop pages (FUSE_NOTIFY_INVAL_INODE). It would have to come after the answer, since
//! it waits for pages that are on their way; so it would come at any time later, when it makes the kernel disregard the size
//! that a `fstat` under way brings; and if our process is killed while it waits, the process never ends, and
//! whoever uses the mount waits with it. It would mend nothing on kernels that drop the pages a second time by themselves:
//! Linux 6.18, and stable ones since late 2025. On older ones a page that is read at the very moment of a write may stay.
//! (Asynchronous `O_DIRECT` is no other case: without FUSE_ASYNC_DIO, which we do not ask for, the kernel waits.)

use crate::fs::{Ino, LogIndex};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Bytes of writes that are remembered on one mount, each counted with [`ENTRY_BYTES`].
const REMEMBERED_BYTES_MAX: usize = 16 << 20;
const ENTRY_BYTES: usize = 256;
/// How long a write is remembered after its answer. The kernel drops the pages as soon as it has that, but it may be kept
/// from running; and a page that it is reading meanwhile counts on its own.
const REMEMBERED_TIME: Duration = Duration::from_secs(5);
const PAGE_BYTES: u64 = 4096;
/// What was cleared may seem to begin so much before the former end: by the zeros in which the file ended.
const ZEROS_BEFORE_END_MAX: u64 = 64;

/// The writes and pages of one mount that may be older than one another.
#[derive(Default)]
pub struct Overlay {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Default)]
struct State {
    inodes: HashMap<Ino, Inode>,
    /// Writes that are remembered, oldest first; some have been forgotten since.
    answered: VecDeque<(Instant, Ino, u64)>,
    bytes: usize,
    next: u64,
    is_swept: bool,
}

/// Only as long as there is something to know.
#[derive(Default)]
struct Inode {
    /// The kernel may have had pages of it since it was opened.
    has_pages: bool,
    /// Reads into pages that are under way.
    filling: usize,
    /// In the order of their arrival.
    under_way: Vec<UnderWay>,
    /// In the order in which they took effect.
    answered: Vec<Answered>,
}

struct UnderWay {
    id: u64,
    is_pages: bool,
    /// `None`: an append, which may come to lie anywhere.
    range: Option<Range<u64>>,
}

struct Answered {
    id: u64,
    version: LogIndex,
    offset: u64,
    data: Bytes,
    /// It ends where the file did then: the file may have ended at `offset` before.
    is_last: bool,
    /// What pages may still be older than: parts of the write, in order.
    parts: Vec<Range<u64>>,
    /// What has not been cleared since, in order.
    standing: Vec<Range<u64>>,
}

impl Overlay {
    /// A write has arrived: bytes for this range, or for the end of the file. To be called in the order of arrival.
    pub fn write_arrived(self: &Arc<Self>, ino: Ino, range: Option<Range<u64>>) -> Arrived {
        self.arrived(ino, false, range)
    }

    /// As [`Overlay::write_arrived`], for pages that the kernel writes back.
    pub fn pages_arrived(self: &Arc<Self>, ino: Ino, range: Range<u64>) -> Arrived {
        self.arrived(ino, true, Some(range))
    }

    fn arrived(self: &Arc<Self>, ino: Ino, is_pages: bool, range: Option<Range<u64>>) -> Arrived {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        let inode = state.inodes.entry(ino).or_default();
        inode.has_pages |= is_pages;
        inode.under_way.push(UnderWay { id, is_pages, range });
        Arrived { overlay: self.clone(), ino, id }
    }

    /// The kernel is about to fill pages.
    pub fn fills(self: &Arc<Self>, ino: Ino) -> Filling {
        let mut state = self.state.lock();
        let inode = state.inodes.entry(ino).or_default();
        inode.has_pages = true;
        inode.filling += 1;
        Filling { overlay: self.clone(), ino }
    }

    /// This range has become a hole, or was cut off, as of this version: what was written there before never comes back.
    pub fn cleared(&self, ino: Ino, range: Range<u64>, version: LogIndex) {
        let mut state = self.state.lock();
        let Some(inode) = state.inodes.get_mut(&ino) else { return };
        for write in inode.answered.iter_mut().filter(|write| write.version < version) {
            cut(&mut write.parts, &range);
            cut(&mut write.standing, &range);
        }
        state.forget_replaced(ino);
    }

    /// The last handle is closed. Mappings keep theirs, so there is no dirty page, and an open drops the clean ones.
    pub fn closed(&self, ino: Ino) {
        let mut state = self.state.lock();
        let Some(inode) = state.inodes.get_mut(&ino) else { return };
        inode.has_pages = false;
        let gone: usize = inode.answered.drain(..).map(|write| write.bytes()).sum();
        state.bytes -= gone;
        state.tidy(ino);
    }

    /// Forget what is old, from time to time, as long as anything is remembered.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REMEMBERED_TIME).await;
            let mut state = self.state.lock();
            state.forget_old(Instant::now());
            if state.answered.is_empty() {
                state.is_swept = false;
                return;
            }
        }
    }
}

/// A write, or pages, under way until this is dropped.
pub struct Arrived {
    overlay: Arc<Overlay>,
    ino: Ino,
    id: u64,
}

impl Arrived {
    /// Until it may be sent: what arrived before, overlaps it and is of the other kind has an outcome. What arrives later
    /// waits for this one, so nobody waits in a circle.
    pub async fn turn(&self) {
        loop {
            let ended = self.overlay.ended.notified();
            if self.is_first() {
                return;
            }
            ended.await;
        }
    }

    fn is_first(&self) -> bool {
        let state = self.overlay.state.lock();
        let all = state.inodes.get(&self.ino).map_or(&[][..], |inode| &inode.under_way);
        let own = all.iter().find(|one| one.id == self.id);
        own.is_none_or(|own| !all.iter().any(|earlier| earlier.holds_up(own)))
    }

    /// Pages, at their turn, with the writes put over them that they are older than.
    pub fn laid_over(&self, offset: u64, pages: Bytes) -> Bytes {
        let state = self.overlay.state.lock();
        let Some(inode) = state.inodes.get(&self.ino) else { return pages };
        if inode.answered.is_empty() {
            return pages;
        }
        let (range, cleared) = (offset..offset.saturating_add(pages.len() as u64), inode.cleared(offset, &pages));
        let mut parts = inode.answered.iter().flat_map(|write| write.parts_within(&range, &cleared)).peekable();
        if parts.peek().is_none() {
            return pages;
        }
        let mut pages = BytesMut::from(pages);
        for (at, bytes) in parts {
            let from = (at - offset) as usize;
            pages[from..from + bytes.len()].copy_from_slice(bytes);
        }
        pages.freeze()
    }

    /// The kernel is about to be told of a write's success: it lies at this offset, since this version, in which the file
    /// has this size. Within a runtime.
    pub fn answered(self, offset: u64, version: LogIndex, size: u64, data: Bytes) {
        let mut state = self.overlay.state.lock();
        let Some(inode) = state.inodes.get_mut(&self.ino) else { return };
        if !inode.has_pages || data.is_empty() {
            return;
        }
        let whole = offset..offset.saturating_add(data.len() as u64);
        let is_last = whole.end == size;
        let (parts, standing) = (Vec::from([whole.clone()]), Vec::from([whole]));
        let write = Answered { id: self.id, version, offset, data, is_last, parts, standing };
        let bytes = write.bytes();
        inode.answered.insert(inode.answered.partition_point(|other| other.version < version), write);
        state.bytes += bytes;
        let now = Instant::now();
        state.answered.push_back((now, self.ino, self.id));
        state.forget_old(now);
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(self.overlay.clone().sweep());
        }
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        let mut state = self.overlay.state.lock();
        if let Some(inode) = state.inodes.get_mut(&self.ino) {
            inode.under_way.retain(|one| one.id != self.id);
        }
        state.tidy(self.ino);
        drop(state);
        self.overlay.ended.notify_waiters();
    }
}

/// A read into pages, under way until this is dropped.
pub struct Filling {
    overlay: Arc<Overlay>,
    ino: Ino,
}

impl Filling {
    /// The pages of this range have the file's content at this version, these bytes and behind the end nothing: they are no
    /// older than the writes until then.
    pub fn filled(self, offset: u64, length: u64, bytes: &[u8], version: LogIndex) {
        // A page that is read only in part does not come into the page cache by that.
        let (from, to) = (offset.next_multiple_of(PAGE_BYTES), offset.saturating_add(length) / PAGE_BYTES * PAGE_BYTES);
        let mut state = self.overlay.state.lock();
        let Some(inode) = state.inodes.get_mut(&self.ino) else { return };
        for write in inode.answered.iter_mut().filter(|write| write.version <= version) {
            cut(&mut write.parts, &(from..to));
            write.compare(&(from..to), offset, bytes);
        }
        state.forget_replaced(self.ino);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let mut state = self.overlay.state.lock();
        if let Some(inode) = state.inodes.get_mut(&self.ino) {
            inode.filling -= 1;
        }
        state.tidy(self.ino);
    }
}

impl Inode {
    /// What the kernel may have cleared of these pages: the zeros in which each of them ends, from a former end of the file.
    fn cleared(&self, offset: u64, pages: &[u8]) -> Vec<Range<u64>> {
        let cleared = |(number, page): (usize, &[u8])| {
            let from = offset + number as u64 * PAGE_BYTES;
            let zeros = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1) as u64;
            let (zeros, end) = (from + zeros, from + page.len() as u64);
            if zeros == end {
                return None;
            }
            let begins = self.answered.iter().filter(|write| write.is_last).map(|write| write.offset);
            // A page that lies behind the end as a whole is dropped, not cleared.
            let in_page = zeros.max(from + 1)..end.min(zeros + ZEROS_BEFORE_END_MAX);
            begins.filter(|begin| in_page.contains(begin)).min().map(|begin| begin..end)
        };
        pages.chunks(PAGE_BYTES as usize).enumerate().filter_map(cleared).collect()
    }
}

impl UnderWay {
    fn holds_up(&self, later: &UnderWay) -> bool {
        let overlap = match (&self.range, &later.range) {
            (Some(one), Some(other)) => !within(one, other).is_empty(),
            _ => true,
        };
        self.id < later.id && self.is_pages != later.is_pages && overlap
    }
}

impl Answered {
    /// What it costs to remember. The data is one buffer, of which any part keeps the whole.
    fn bytes(&self) -> usize {
        self.data.len() + ENTRY_BYTES
    }

    /// A page was read with these bytes from `offset`: what is not there any more has been replaced or cleared, by whomever.
    fn compare(&mut self, pages: &Range<u64>, offset: u64, bytes: &[u8]) {
        let overlap = within(&(self.offset..self.offset + self.data.len() as u64), pages);
        if overlap.is_empty() {
            return;
        }
        let place = |from: u64| (overlap.start - from) as usize..(overlap.end - from) as usize;
        if bytes.get(place(offset)) != self.data.get(place(self.offset)) {
            cut(&mut self.standing, &overlap);
        }
    }

    /// What it has within a range, and pages of that range have not: where, and the bytes. `cleared`: what pages may have
    /// lost again.
    fn parts_within(&self, range: &Range<u64>, cleared: &[Range<u64>]) -> impl Iterator<Item = (u64, &[u8])> {
        let older = self.parts.iter().map(|part| within(part, range));
        let lost = self.standing.iter().flat_map(|part| cleared.iter().map(|cleared| within(part, cleared)));
        let parts = older.chain(lost).filter(|part| !part.is_empty());
        parts.map(|part| {
            (part.start, &self.data[(part.start - self.offset) as usize..(part.end - self.offset) as usize])
        })
    }
}

fn cut(parts: &mut Vec<Range<u64>>, range: &Range<u64>) {
    let rest = |part: &Range<u64>| [part.start..part.end.min(range.start), part.start.max(range.end)..part.end];
    if !range.is_empty() {
        *parts = parts.iter().flat_map(rest).filter(|part| !part.is_empty()).collect();
    }
}

fn within(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        while let Some(&(at, ino, id)) = self.answered.front() {
            let is_over = self.bytes > REMEMBERED_BYTES_MAX;
            if now.duration_since(at) < REMEMBERED_TIME && !is_over {
                break;
            }
            self.answered.pop_front();
            match self.inodes.get(&ino) {
                // Its pages may be older yet.
                Some(inode) if inode.filling > 0 && !is_over => self.answered.push_back((now, ino, id)),
                _ => self.forget(ino, id),
            }
        }
    }

    fn forget(&mut self, ino: Ino, id: u64) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let gone: usize = inode.answered.extract_if(.., |write| write.id == id).map(|write| write.bytes()).sum();
        self.bytes -= gone;
        self.tidy(ino);
    }

    /// Writes of which nothing is left to put over anything.
    fn forget_replaced(&mut self, ino: Ino) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let is_replaced = |write: &mut Answered| write.parts.is_empty() && write.standing.is_empty();
        let gone: usize = inode.answered.extract_if(.., is_replaced).map(|write| write.bytes()).sum();
        self.bytes -= gone;
    }

    fn tidy(&mut self, ino: Ino) {
        let is_idle = |inode: &Inode| {
            !inode.has_pages && inode.filling == 0 && inode.under_way.is_empty() && inode.answered.is_empty()
        };
        if self.inodes.get(&ino).is_some_and(is_idle) {
            self.inodes.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const INO: Ino = Ino(7);
    const PAGE: usize = PAGE_BYTES as usize;

    fn overlay() -> Arc<Overlay> {
        let overlay = Arc::new(Overlay::default());
        drop(overlay.fills(INO));
        overlay
    }

    fn write(overlay: &Arc<Overlay>, offset: u64, data: &[u8], version: u64) {
        let write = overlay.write_arrived(INO, Some(offset..offset + data.len() as u64));
        let size = offset + data.len() as u64;
        write.answered(offset, LogIndex(version), size, Bytes::copy_from_slice(data));
    }

    fn laid_over(overlay: &Arc<Overlay>, offset: u64, pages: &[u8]) -> Bytes {
        let arrived = overlay.pages_arrived(INO, offset..offset + pages.len() as u64);
        arrived.turn().now_or_never().expect("nothing is under way");
        arrived.laid_over(offset, Bytes::copy_from_slice(pages))
    }

    fn is_turn(arrived: &Arrived) -> bool {
        arrived.turn().now_or_never().is_some()
    }

    #[tokio::test]
    async fn a_page_that_is_older_than_a_write_does_not_undo_it() {
        let overlay = overlay();
        write(&overlay, 2, b"new", 20);
        assert_eq!(laid_over(&overlay, 0, b"........"), "..new...");
        assert_eq!(laid_over(&overlay, 3, b"........"), "ew......");
        overlay.fills(INO).filled(0, PAGE_BYTES, b"", LogIndex(19));
        assert_eq!(laid_over(&overlay, 0, b"........"), "..new...", "what was read is older");
        overlay.fills(INO).filled(1, PAGE_BYTES, b"", LogIndex(20));
        assert_eq!(laid_over(&overlay, 0, b"........"), "..new...", "not a whole page");
        overlay.fills(INO).filled(0, PAGE_BYTES, b"..new...", LogIndex(20));
        assert_eq!(laid_over(&overlay, 0, b"........"), "........", "read since");
        overlay.fills(INO).filled(0, PAGE_BYTES, b"........", LogIndex(21));
        assert_eq!(overlay.state.lock().bytes, 0, "nothing of it stands");
    }

    #[tokio::test]
    async fn what_was_cleared_of_a_page_behind_an_end_that_is_no_longer_true_comes_from_the_writes() {
        let overlay = overlay();
        write(&overlay, 5, b"end\0", 20);
        overlay.fills(INO).filled(0, PAGE_BYTES, b"12345end\0", LogIndex(20));
        assert_eq!(laid_over(&overlay, 0, b"12345\0\0\0\0"), "12345end\0");
        assert_eq!(laid_over(&overlay, 0, b"1234\0\0\0\0\0"), "1234\0end\0", "the file ended in a zero");
        assert_eq!(laid_over(&overlay, 0, b"12345\0\0new"), "12345\0\0new", "it was stored into");
        assert_eq!(laid_over(&overlay, 0, b"12345e\0\0\0"), "12345e\0\0\0", "the file never ended there");
        let mut pages = [1; 2 * PAGE];
        pages[5..PAGE].fill(0);
        assert_eq!(laid_over(&overlay, 0, &pages)[..9], *b"\x01\x01\x01\x01\x01end\0", "of a page in front of others");
        overlay.fills(INO).filled(0, PAGE_BYTES, b"12345\0\0\0\0", LogIndex(21));
        assert_eq!(laid_over(&overlay, 0, b"12345\0\0\0\0"), "12345\0\0\0\0", "others have cleared it");
        write(&overlay, 5, b"end", 22);
        overlay.cleared(INO, 6..u64::MAX, LogIndex(23));
        assert_eq!(laid_over(&overlay, 0, b"12345\0\0\0"), "12345e\0\0", "what was cut off stays away");
    }

    #[tokio::test]
    async fn what_took_effect_last_is_on_top_and_what_failed_is_not_there() {
        let overlay = overlay();
        drop(overlay.write_arrived(INO, Some(0..1)));
        write(&overlay, 0, b"later", 31);
        write(&overlay, 3, b"earlier", 30);
        assert_eq!(laid_over(&overlay, 0, b"............"), "laterrlier..");
    }

    #[tokio::test]
    async fn of_a_write_what_has_been_read_is_not_laid_over_and_the_rest_is() {
        let overlay = overlay();
        write(&overlay, 0, &[1; 3 * PAGE], 20);
        overlay.fills(INO).filled(PAGE_BYTES, PAGE_BYTES, &[1; PAGE], LogIndex(20));
        let told = laid_over(&overlay, 0, &[2; 3 * PAGE]);
        assert_eq!((told[PAGE - 1], told[PAGE], told[2 * PAGE - 1], told[2 * PAGE]), (1, 2, 2, 1));
        assert_eq!(overlay.state.lock().bytes, 3 * PAGE + ENTRY_BYTES, "the buffer is still there");
        overlay.closed(INO);
        let state = overlay.state.lock();
        assert_eq!((state.bytes, state.inodes.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_write_and_a_page_are_sent_one_after_the_other() {
        let overlay = overlay();
        let page = overlay.pages_arrived(INO, 0..PAGE_BYTES);
        let (write_in, write_behind) =
            (overlay.write_arrived(INO, Some(9..10)), overlay.write_arrived(INO, Some(PAGE_BYTES..PAGE_BYTES + 1)));
        let next_page = overlay.pages_arrived(INO, 0..PAGE_BYTES);
        assert!(is_turn(&page) && !is_turn(&write_in) && is_turn(&write_behind) && !is_turn(&next_page));
        let turn = async { write_in.turn().await };
        let (_, ()) = tokio::join!(turn, async { drop(page) });
        assert!(!is_turn(&next_page));
        write_in.answered(9, LogIndex(20), 10, Bytes::from_static(b"w"));
        assert!(is_turn(&next_page));
        assert_eq!(next_page.laid_over(8, Bytes::from_static(b"...")), ".w.");
    }

    #[tokio::test]
    async fn an_append_is_laid_where_it_came_to_lie() {
        let overlay = overlay();
        let append = overlay.write_arrived(INO, None);
        let page = overlay.pages_arrived(INO, 0..8);
        assert!(is_turn(&append) && !is_turn(&page));
        append.answered(5, LogIndex(20), 8, Bytes::from_static(b"end"));
        assert!(is_turn(&page));
        assert_eq!(page.laid_over(0, Bytes::from_static(b"12345\0\0\0")), "12345end");
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded_and_nothing_without_pages() {
        let overlay = overlay();
        for round in 0..64 {
            write(&overlay, round << 20, &[1; 1 << 20], 20 + round);
        }
        let mut state = overlay.state.lock();
        assert!(state.bytes <= REMEMBERED_BYTES_MAX && state.bytes > REMEMBERED_BYTES_MAX / 2, "{}", state.bytes);
        assert_eq!(state.inodes[&INO].answered.len(), state.answered.len());
        state.forget_old(Instant::now() + REMEMBERED_TIME);
        assert_eq!((state.bytes, state.answered.len()), (0, 0));
        drop(state);
        overlay.closed(INO);
        write(&overlay, 0, b"new", 100);
        let state = overlay.state.lock();
        assert_eq!((state.bytes, state.inodes.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_write_is_remembered_while_pages_are_being_read() {
        let overlay = overlay();
        let slow = overlay.fills(INO);
        write(&overlay, 0, b"new", 20);
        overlay.state.lock().forget_old(Instant::now() + REMEMBERED_TIME);
        assert_eq!(laid_over(&overlay, 0, b"..."), "new");
        slow.filled(0, PAGE_BYTES, b"", LogIndex(19));
        overlay.state.lock().forget_old(Instant::now() + 3 * REMEMBERED_TIME);
        assert_eq!(laid_over(&overlay, 0, b"..."), "...");
    }
}
