//! Queries: each is answered from one root, so every answer is consistent in itself.

use super::*;
use crate::limits::DIRECTORY_ANSWER_ENTRIES_MAX;
use crate::seeded::{Bug, planted};
use bytes::Bytes;
use inode::{Inode, Node};
use std::sync::Arc;

impl State {
    pub fn answer(&self, query: &Query) -> Result<Answer, Refusal> {
        match query {
            Query::Lookup { parent, name } => self.lookup(*parent, name).map(Answer::Attributes),
            Query::Resolve { path } => self.attributes(self.resolve(path)?).map(Answer::Attributes),
            Query::Attributes { ino } => self.attributes(*ino).map(Answer::Attributes),
            Query::Parent { ino } => self.parent_attributes(*ino).map(Answer::Attributes),
            Query::ReadLink { ino } => self.read_link(*ino).map(Answer::Bytes),
            Query::ReadDirectory { ino, after, limit } => self.read_directory(*ino, *after, *limit),
            Query::Xattr { ino, name } => self.xattr(*ino, name).map(Answer::Bytes),
            Query::ListXattrs { ino } => self.list_xattrs(*ino).map(Answer::Bytes),
            Query::Content { ino, offset, length } => self.content(*ino, *offset, *length).map(Answer::Content),
            Query::Seek { ino, offset, hole: false } => self.next_data(*ino, *offset).map(Answer::Offset),
            Query::Seek { ino, offset, hole: true } => self.next_hole(*ino, *offset).map(Answer::Offset),
            Query::TestLock { ino, session, owner, range, mode } => {
                self.inode(*ino)?;
                let request = LockHolder { session: *session, owner: *owner, range: *range, mode: *mode, pid: 0 };
                self.locks.test(*ino, request).map(Answer::Lock)
            }
            Query::LockStanding { ino, session, owner, range } => {
                Ok(Answer::LockStanding(self.locks.standing(*ino, *session, *owner, *range)))
            }
            Query::Usage => {
                Ok(Answer::Usage(Usage { inodes: self.inodes.len() as u64, bytes: self.derived.allocated }))
            }
        }
    }

    // --- names

    fn lookup(&self, parent: Ino, name: &Name) -> Result<Attributes, Refusal> {
        self.directory(parent)?;
        self.attributes(self.dentry(parent, name).ok_or(Refusal::NoSuchName)?.ino)
    }

    /// Empty components and `.` stay where they are, `..` goes up (at the root: stays), as in any path.
    fn resolve(&self, path: &[u8]) -> Result<Ino, Refusal> {
        path.split(|byte| *byte == b'/').try_fold(Ino::ROOT, |at, component| {
            self.directory(at)?;
            match component {
                b"" | b"." => Ok(at),
                b".." => self.parent_of(at).ok_or(Refusal::NoSuchName),
                _ => {
                    let name = Name::new(component).map_err(|_| Refusal::Invalid)?;
                    Ok(self.dentry(at, &name).ok_or(Refusal::NoSuchName)?.ino)
                }
            }
        })
    }

    fn parent_attributes(&self, ino: Ino) -> Result<Attributes, Refusal> {
        self.inode(ino)?;
        self.attributes(self.parent_of(ino).ok_or(Refusal::NoSuchName)?)
    }

    fn read_link(&self, ino: Ino) -> Result<Bytes, Refusal> {
        match &self.inode(ino)?.node {
            Node::Symlink { target } => Ok(target.clone()),
            _ => Err(Refusal::Invalid),
        }
    }

    fn read_directory(&self, ino: Ino, after: u64, limit: u32) -> Result<Answer, Refusal> {
        let end = self.directory(ino)?.cookie_next();
        let limit = (limit as usize).min(DIRECTORY_ANSWER_ENTRIES_MAX);
        let Some(first) = after.checked_add(1) else { return Ok(Answer::Directory { entries: Vec::new(), end }) };
        let cookies = self.derived.cookies.range((ino, first)..=(ino, u64::MAX));
        let entries = cookies.take(limit).map(|((_, cookie), name)| {
            let attributes = self.lookup(ino, name)?;
            Ok(DirectoryEntry { name: name.clone(), cookie: *cookie, attributes })
        });
        let mut entries = entries.collect::<Result<Vec<_>, Refusal>>()?;
        if planted(Bug::UnorderedReaddir) {
            entries.sort_by_key(|entry| entry.attributes.btime.nanos);
        }
        Ok(Answer::Directory { entries, end })
    }

    // --- attributes

    fn xattr(&self, ino: Ino, name: &Bytes) -> Result<Bytes, Refusal> {
        let inode = self.inode(ino)?;
        match words::virtual_name(name) {
            Some(part) => self.virtual_attribute(ino, inode, part),
            None => self.xattrs.get(&(ino, name.clone())).cloned().ok_or(Refusal::NoSuchXattr),
        }
    }

    fn list_xattrs(&self, ino: Ino) -> Result<Bytes, Refusal> {
        self.inode(ino)?;
        let names = self.xattrs_of(ino).flat_map(|(name, _)| name.iter().copied().chain([0]));
        Ok(names.collect::<Vec<u8>>().into())
    }

    // --- contents

    /// A file whose content is asked about: its size comes with it.
    fn readable(&self, ino: Ino) -> Result<(&Arc<Inode>, u64), Refusal> {
        let inode = self.file(ino)?;
        Ok((inode, inode.size()))
    }

    fn content(&self, ino: Ino, offset: u64, length: u64) -> Result<Content, Refusal> {
        let (inode, size) = self.readable(ino)?;
        let end = offset.saturating_add(length).min(size);
        let mut pieces = Vec::new();
        let mut at = offset.min(end);
        for (start, extent) in self.extents_within(ino, at, end) {
            let Some((start, part)) = extent.clip(start, at, end) else { continue };
            push_hole(&mut pieces, start.saturating_sub(at));
            pieces.push(Piece::Body { index: part.index, offset: part.offset, length: part.length });
            at = part.end(start);
        }
        push_hole(&mut pieces, end.saturating_sub(at));
        Ok(Content { version: inode.version, size, pieces })
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>, Refusal> {
        let (_, size) = self.readable(ino)?;
        Ok(self.extents_within(ino, offset, size).next().map(|(start, _)| start.max(offset)))
    }

    /// The end of the file counts as a hole.
    fn next_hole(&self, ino: Ino, offset: u64) -> Result<Option<u64>, Refusal> {
        let (_, size) = self.readable(ino)?;
        if offset >= size {
            return Ok(None);
        }
        let mut at = offset;
        for (start, extent) in self.extents_within(ino, offset, size) {
            if start > at {
                break;
            }
            at = extent.end(start);
        }
        Ok(Some(at.min(size)))
    }
}

fn push_hole(pieces: &mut Vec<Piece>, length: u64) {
    if length > 0 {
        pieces.push(Piece::Hole { length });
    }
}
