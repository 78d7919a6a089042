//! What is in files, and what `setattr` changes: vectors of bytes, a hole being a byte that is not there.

use super::acl::follow_mode;
use super::{Naive, drop_privileges};
use bytes::Bytes;
use keelfs::fs::*;

impl Naive {
    pub(super) fn write(&mut self, ino: Ino, offset: u64, body: &Bytes) -> Outcome {
        let (offset, bytes) = (offset as usize, &mut self.node(ino)?.bytes);
        if !body.is_empty() {
            bytes.resize(bytes.len().max(offset + body.len()), None);
            bytes[offset..offset + body.len()].iter_mut().zip(body).for_each(|(old, new)| *old = Some(*new));
            self.renew(ino);
        }
        self.shown(ino)
    }

    pub(super) fn rewrite(&mut self, ino: Ino, body: &Bytes) -> Outcome {
        self.node(ino)?.bytes = body.iter().map(|byte| Some(*byte)).collect();
        self.renew(ino);
        self.shown(ino)
    }

    pub(super) fn put(
        &mut self,
        (parent, name): (Ino, Name),
        expected: Expected,
        expiry: ExpiryChange,
        mode: u32,
        body: &Bytes,
    ) -> Outcome {
        self.room(parent)?;
        let ino = match (self.lookup(parent, &name), expected) {
            (Some(ino), _) => {
                self.file(ino)?;
                if let Expected::Version(version) = expected {
                    self.expect_version(ino, version)?;
                }
                self.set_deadline(ino, expiry);
                ino
            }
            (None, Expected::Version(version)) if version.0 > 0 => return Err(Refusal::NoSuchName),
            (None, _) => {
                let ino = self.create(parent, name, FileKind::File, (mode, 0));
                // no wish leaves what the directory gave
                let wish = if expiry == ExpiryChange::Clear { ExpiryChange::Keep } else { expiry };
                self.set_deadline(ino, wish);
                ino
            }
        };
        self.rewrite(ino, body)
    }

    pub(super) fn allocate(&mut self, ino: Ino, mode: AllocateMode, offset: usize, length: usize) -> Outcome {
        let bytes = &mut self.file(ino)?.bytes;
        let (size, end) = (bytes.len(), offset + length);
        if length == 0 {
            return Err(Refusal::Invalid);
        }
        match mode {
            AllocateMode::Extend if end > size => bytes.resize(end, None),
            AllocateMode::Extend | AllocateMode::KeepSize => {
                self.touch(ino);
                self.shed(ino);
                return self.shown(ino);
            }
            AllocateMode::PunchHole | AllocateMode::ZeroRange { .. } => {
                if mode == (AllocateMode::ZeroRange { keep_size: false }) {
                    bytes.resize(size.max(end), None);
                }
                let size = bytes.len();
                bytes[offset.min(size)..end.min(size)].fill(None);
            }
            AllocateMode::Collapse if end >= size => return Err(Refusal::Invalid),
            AllocateMode::Collapse => drop(bytes.drain(offset..end)),
            AllocateMode::Insert if offset >= size => return Err(Refusal::Invalid),
            AllocateMode::Insert => drop(bytes.splice(offset..offset, vec![None; length])),
        }
        self.renew(ino);
        self.shown(ino)
    }

    pub(super) fn copy(&mut self, (from, at): (Ino, usize), (to, place): (Ino, usize), length: usize) -> Outcome {
        let source = self.file(from)?.bytes.clone();
        self.file(to)?;
        let piece = &source[at.min(source.len())..(at + length).min(source.len()).max(at.min(source.len()))];
        if piece.is_empty() {
            return Ok(Reply::Copied(0));
        }
        if from == to && at.abs_diff(place) < piece.len() {
            return Err(Refusal::Invalid);
        }
        let bytes = &mut self.file(to)?.bytes;
        bytes.resize(bytes.len().max(place + piece.len()), None);
        bytes[place..place + piece.len()].copy_from_slice(piece);
        self.renew(to);
        Ok(Reply::Copied(piece.len() as u64))
    }

    pub(super) fn set_attributes(&mut self, ino: Ino, changes: &AttributeChanges) -> Outcome {
        self.node(ino)?;
        if let Some(size) = changes.size {
            let file = self.file(ino)?;
            let same = file.bytes.len() as u64 == size;
            let version = file.version;
            file.bytes.resize(size as usize, None);
            self.renew(ino);
            if same {
                self.node(ino)?.version = version;
            }
        }
        if *changes != AttributeChanges::default() {
            self.touch(ino);
        }
        let wall = self.wall;
        let time = |change: Option<TimeChange>, old: Timestamp| match change {
            None => old,
            Some(TimeChange::Now) => wall,
            Some(TimeChange::To(time)) => time,
        };
        let who = self.who;
        let node = self.node(ino)?;
        if changes.uid.is_some() || changes.gid.is_some() {
            node.xattrs.remove(CAPABILITIES);
            if node.kind != FileKind::Directory {
                drop_privileges(node, who);
            }
        }
        node.mode = changes.mode.map_or(node.mode, |mode| mode & 0o7777);
        if changes.mode.is_some() {
            follow_mode(node);
        }
        node.uid = changes.uid.unwrap_or(node.uid);
        node.gid = changes.gid.unwrap_or(node.gid);
        (node.atime, node.mtime) = (time(changes.atime, node.atime), time(changes.mtime, node.mtime));
        self.shown(ino)
    }
}
