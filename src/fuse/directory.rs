//! Listing a directory, in pages, resumable at any offset.
//!
//! The kernel's offset of an entry is its cookie plus two: 1 is `.`, 2 is `..`. Cookies outlive the changes around them,
//! so a walk can go on after a restart of anything. What a walk may miss or show is what POSIX allows: entries that are
//! added or removed while it is under way. It ends with what was there when it began, or else who renames each entry
//! that is shown, and so gives it a new place at the end, would walk for ever.

use super::call::{Call, attributes_of, unexpected};
use super::translate::{file_attr, file_type};
use super::{GENERATION, TTL};
use crate::fs::{Answer, Attributes, DirectoryEntry, Ino, Query};
use fuser::{Errno, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

const OFFSET_DOT: u64 = 1;
const OFFSET_DOT_DOT: u64 = 2;
/// Entries that are asked for at a time; a reply buffer of 32 KiB holds some hundreds.
const PAGE_ENTRIES: u32 = 256;

/// A reply that is filled entry by entry.
pub trait Listing: Send + 'static {
    /// `false`: no room, the entry was not added.
    fn add(&mut self, offset: u64, name: &[u8], attributes: &Attributes) -> bool;
    fn finish(self, outcome: Result<(), Errno>);
}

impl Listing for ReplyDirectory {
    fn add(&mut self, offset: u64, name: &[u8], attributes: &Attributes) -> bool {
        let ino = INodeNo(attributes.ino.0);
        !ReplyDirectory::add(self, ino, offset, file_type(attributes.kind), OsStr::from_bytes(name))
    }

    fn finish(self, outcome: Result<(), Errno>) {
        match outcome {
            Ok(()) => self.ok(),
            Err(errno) => self.error(errno),
        }
    }
}

impl Listing for ReplyDirectoryPlus {
    fn add(&mut self, offset: u64, name: &[u8], attributes: &Attributes) -> bool {
        let attr = file_attr(attributes);
        !ReplyDirectoryPlus::add(self, attr.ino, offset, OsStr::from_bytes(name), &TTL, &attr, GENERATION)
    }

    fn finish(self, outcome: Result<(), Errno>) {
        match outcome {
            Ok(()) => self.ok(),
            Err(errno) => self.error(errno),
        }
    }
}

impl Call {
    /// Fill the listing with what follows `offset`.
    pub async fn list(&self, ino: Ino, handle: u64, offset: u64, listing: &mut impl Listing) -> Result<(), Errno> {
        if offset < OFFSET_DOT_DOT && !self.list_dots(ino, offset, listing).await? {
            return Ok(());
        }
        let mut walk_end = match offset {
            0 => None,
            _ => self.mounted.handles.walk_end(handle),
        };
        let mut after = Some(cookie(offset));
        while let Some(from) = after {
            let (page, end) = self.page(ino, from).await?;
            let walk_end = *walk_end.get_or_insert(end);
            self.mounted.handles.set_walk_end(handle, walk_end);
            after = fill(within(&page, walk_end), listing);
        }
        Ok(())
    }

    /// `false`: no room for all of them.
    async fn list_dots(&self, ino: Ino, offset: u64, listing: &mut impl Listing) -> Result<bool, Errno> {
        let own = self.attributes(ino).await?;
        if offset < OFFSET_DOT && !listing.add(OFFSET_DOT, b".", &own) {
            return Ok(false);
        }
        let parent = self.query(Query::Parent { ino }).await.and_then(attributes_of);
        // The parent of a removed directory may be gone.
        Ok(listing.add(OFFSET_DOT_DOT, b"..", parent.as_ref().unwrap_or(&own)))
    }

    /// Entries, and the cookie that is above all cookies now.
    async fn page(&self, ino: Ino, after: u64) -> Result<(Vec<DirectoryEntry>, u64), Errno> {
        match self.query(Query::ReadDirectory { ino, after, limit: PAGE_ENTRIES }).await? {
            Answer::Directory { entries, end } => Ok((entries, end)),
            other => Err(unexpected(&other)),
        }
    }
}

/// The entries of a page that belong to a walk.
fn within(page: &[DirectoryEntry], walk_end: u64) -> &[DirectoryEntry] {
    let (inside, _) = page.split_at(page.partition_point(|entry| entry.cookie < walk_end));
    inside
}

/// Add a page's entries. The cookie to go on after, or `None` if the listing is full or the directory at its end.
fn fill(page: &[DirectoryEntry], listing: &mut impl Listing) -> Option<u64> {
    let room = page.iter().all(|entry| listing.add(offset(entry.cookie), entry.name.as_bytes(), &entry.attributes));
    let last = page.last().filter(|_| room && page.len() >= PAGE_ENTRIES as usize)?;
    Some(last.cookie)
}

fn offset(cookie: u64) -> u64 {
    cookie.saturating_add(OFFSET_DOT_DOT)
}

fn cookie(offset: u64) -> u64 {
    offset.saturating_sub(OFFSET_DOT_DOT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{FileKind, LogIndex, Name, Timestamp};

    /// A reply buffer that holds `room` entries.
    struct Buffer {
        room: usize,
        entries: Vec<(u64, Vec<u8>)>,
    }

    impl Listing for Buffer {
        fn add(&mut self, offset: u64, name: &[u8], _: &Attributes) -> bool {
            if self.entries.len() == self.room {
                return false;
            }
            self.entries.push((offset, name.to_vec()));
            true
        }

        fn finish(self, _: Result<(), Errno>) {}
    }

    fn entry(cookie: u64) -> DirectoryEntry {
        let time = Timestamp::default();
        let attributes = Attributes {
            ino: Ino(cookie + 100),
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            version: LogIndex(1),
            change: LogIndex(1),
        };
        DirectoryEntry { name: Name::new(format!("f{cookie}").as_bytes()).unwrap(), cookie, attributes }
    }

    /// Walk like the kernel: buffer by buffer, each from the last offset that was returned.
    fn walk(directory: &[DirectoryEntry], room: usize) -> Vec<Vec<u8>> {
        let (mut names, mut from) = (Vec::new(), OFFSET_DOT_DOT);
        loop {
            let mut buffer = Buffer { room, entries: Vec::new() };
            let mut after = Some(cookie(from));
            while let Some(cookie) = after {
                let page: Vec<_> =
                    directory.iter().filter(|e| e.cookie > cookie).take(PAGE_ENTRIES as usize).cloned().collect();
                after = fill(&page, &mut buffer);
            }
            let Some((last, _)) = buffer.entries.last() else { return names };
            from = *last;
            names.extend(buffer.entries.into_iter().map(|(_, name)| name));
        }
    }

    #[test]
    fn every_entry_comes_once_whatever_the_buffer() {
        // Cookies with gaps, as removals leave them; more than two pages.
        let directory: Vec<_> = (1..=700).map(|n| entry(n * 3)).collect();
        let expected: Vec<_> = directory.iter().map(|e| e.name.as_bytes().to_vec()).collect();
        for room in [1, 7, 255, 256, 257, 699, 700, 5000] {
            assert_eq!(walk(&directory, room), expected, "{room} entries a buffer");
        }
        assert!(walk(&[], 10).is_empty());
    }

    #[test]
    fn a_walk_ends_with_what_was_there_when_it_began() {
        let page: Vec<_> = (1..=4).map(entry).collect();
        assert_eq!(within(&page, 3).len(), 2);
        assert_eq!(within(&page, 1).len(), 0);
        assert_eq!(within(&page, u64::MAX).len(), 4);
    }

    #[test]
    fn offsets_of_the_dots_are_no_cookies() {
        assert_eq!(cookie(offset(1)), 1);
        assert!(offset(1) > OFFSET_DOT_DOT);
        assert_eq!(cookie(0), 0);
    }
}
