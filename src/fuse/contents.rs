//! Contents: reading, writing, allocating, seeking, copying.
//!
//! A write is durable on a majority when it returns, so `fsync` has nothing to do. `O_APPEND` becomes an Append, whose
//! offset is found in apply: the offset that the kernel sends is this mount's idea of the size. Pages of a shared
//! mapping that the kernel writes back are never appends, whatever handle they come through.

use super::call::{Call, changed_attributes, unexpected};
use super::caller;
use super::errno::{Kind, of_failure};
use super::overlay::{Arrived, Filling, Overlay};
use super::translate;
use crate::fs::{AllocateMode, Answer, AttributeChanges, Attributes, Command, Ino, Query, Reply, TimeChange, Usage};
use crate::volume::{Capacity, Failure};
use bytes::Bytes;
use fuser::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most bytes that one copy reply can report, in whole pages.
const COPY_BYTES_MAX: u64 = !4095u32 as u64;

/// From so many bytes on, an allocation is worth a question whether there is room.
const DOUBTFUL_BYTES: u64 = 64 << 20;

/// How long `statfs(2)` looks for a majority. Longer than a read takes, shorter than who looks at a broken cluster waits.
const CAPACITY_TIME: Duration = Duration::from_secs(2);

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    At(u64),
    End,
    /// Whole pages of a mapping, written back.
    Pages(u64),
}

impl Target {
    pub fn of(offset: u64, open_flags: i32, from_page_cache: bool) -> Target {
        match open_flags & libc::O_APPEND {
            _ if from_page_cache => Target::Pages(offset),
            0 => Target::At(offset),
            _ => Target::End,
        }
    }

    /// Tell the overlay of so many bytes for this place, before anything is waited for.
    pub fn arrives(self, overlay: &Arc<Overlay>, ino: Ino, length: usize) -> Arrived {
        let to_end_of = |offset: u64| offset..offset.saturating_add(length as u64);
        match self {
            Target::At(offset) => overlay.write_arrived(ino, Some(to_end_of(offset))),
            Target::End => overlay.write_arrived(ino, None),
            Target::Pages(offset) => overlay.pages_arrived(ino, to_end_of(offset)),
        }
    }
}

impl Call {
    /// `filling`: the bytes are for the page cache, not for a caller's buffer.
    pub async fn read(
        &self,
        ino: Ino,
        handle: u64,
        (offset, length): (u64, u32),
        filling: Option<Filling>,
    ) -> Result<Bytes, Errno> {
        self.lock_session(ino, handle).await?;
        let read = self.volume().read_as(ino, offset, length, self.mounted.freshness, self.deadline).await;
        let (head, bytes) = read.map_err(|failure| of_failure(&failure, Kind::Question))?;
        if let Some(filling) = filling {
            filling.filled(offset, u64::from(length), &bytes, head.version);
        }
        Ok(bytes)
    }

    /// `arrived`: as [`Target::arrives`] has it.
    pub async fn write(
        &self,
        ino: Ino,
        handle: u64,
        target: Target,
        data: Bytes,
        arrived: Arrived,
    ) -> Result<u32, Errno> {
        let length = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        let turn = tokio::time::timeout_at(self.deadline.into(), arrived.turn()).await;
        turn.map_err(|_| of_failure(&Failure::NoMajority, Kind::Change))?;
        let (command, body) = match target {
            Target::At(offset) => (Command::Write { ino, offset, length }, data.clone()),
            Target::Pages(offset) => (Command::Write { ino, offset, length }, arrived.laid_over(offset, data.clone())),
            Target::End => (Command::Append { ino, length }, data.clone()),
        };
        // Pages come with whichever handle the kernel finds: that says nothing about who has stored in them.
        let handle = (!matches!(target, Target::Pages(_))).then_some(handle);
        let written = changed_attributes(self.change(ino, handle, command, body).await?)?;
        match target {
            Target::At(offset) => arrived.answered(offset, written.version, written.size, data),
            Target::End => {
                arrived.answered(written.size.saturating_sub(u64::from(length)), written.version, written.size, data)
            }
            Target::Pages(_) => {}
        }
        Ok(length)
    }

    /// Every way to set attributes, sizes included.
    pub async fn set_attributes(
        &self,
        ino: Ino,
        handle: Option<u64>,
        changes: AttributeChanges,
    ) -> Result<Attributes, Errno> {
        self.may_set(ino, &changes).await?;
        let size = changes.size;
        let changed = self.change(ino, handle, Command::SetAttributes { ino, changes }, Bytes::new()).await?;
        let attributes = changed_attributes(changed)?;
        if let Some(size) = size {
            self.mounted.overlay.cleared(ino, size..u64::MAX, attributes.version);
        }
        Ok(attributes)
    }

    /// Of a descriptor the kernel knows the owner that the file had when it was last looked at. That may be long ago, and who
    /// gave a file away must not go on opening it to others.
    async fn may_set(&self, ino: Ino, changes: &AttributeChanges) -> Result<(), Errno> {
        let AttributeChanges { mode, uid, gid, size: _, atime, mtime } = changes;
        let owner = uid.is_some() || gid.is_some();
        let times = [atime, mtime].into_iter().any(|time| matches!(time, Some(TimeChange::To(_))));
        if self.credentials.uid == 0 || !(owner || mode.is_some() || times) || owner && caller::may_give(self.tid) {
            return Ok(());
        }
        self.must_own(ino).await
    }

    /// `EPERM` unless the caller owns the file now, or may do what its owner may.
    pub async fn must_own(&self, ino: Ino) -> Result<(), Errno> {
        let is_owner = self.credentials.uid == 0
            || self.attributes(ino).await?.uid == self.credentials.uid
            || caller::acts_as_owner(self.tid);
        if is_owner { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Submit a change that came through a handle: not if the locks that were taken through it are lost.
    async fn change(&self, ino: Ino, handle: Option<u64>, command: Command, body: Bytes) -> Result<Reply, Errno> {
        let locked_in = match handle {
            Some(handle) => self.lock_session(ino, handle).await?,
            None => None,
        };
        match locked_in {
            Some(session) => self.submit_within(session, command, body).await,
            None => self.submit_with(command, body).await,
        }
    }

    pub async fn allocate(&self, ino: Ino, handle: u64, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        let mode = translate::allocate_mode(mode)?;
        self.may_promise(ino, mode, length).await?;
        let command = Command::Allocate { ino, mode, offset, length };
        let allocated = changed_attributes(self.change(ino, Some(handle), command, Bytes::new()).await?)?;
        if matches!(mode, AllocateMode::PunchHole | AllocateMode::ZeroRange { .. }) {
            self.mounted.overlay.cleared(ino, offset..offset.saturating_add(length), allocated.version);
        }
        Ok(())
    }

    /// Nothing is reserved, but what is more than there is room for is refused at once.
    async fn may_promise(&self, ino: Ino, mode: AllocateMode, length: u64) -> Result<(), Errno> {
        let is_promise = matches!(mode, AllocateMode::Extend | AllocateMode::KeepSize);
        if !is_promise || length < DOUBTFUL_BYTES {
            return Ok(());
        }
        let capacity = self.volume().capacity(self.deadline).await;
        let free = capacity.map_err(|failure| of_failure(&failure, Kind::Change))?.free_bytes;
        // What the file has already, of this range or another, needs no new room.
        match free >= length || free.saturating_add(self.attributes(ino).await?.allocated) >= length {
            true => Ok(()),
            false => Err(Errno::ENOSPC),
        }
    }

    pub async fn seek(&self, ino: Ino, offset: i64, whence: i32) -> Result<i64, Errno> {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Err(Errno::EINVAL),
        };
        let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        match self.query(Query::Seek { ino, offset, hole }).await? {
            Answer::Offset(Some(found)) => i64::try_from(found).map_err(|_| Errno::EOVERFLOW),
            Answer::Offset(None) => Err(Errno::ENXIO),
            other => Err(unexpected(&other)),
        }
    }

    /// Bytes copied; fewer than asked is the caller's signal to go on.
    pub async fn copy(&self, from: (Ino, u64), to: (Ino, u64), to_handle: u64, length: u64) -> Result<u32, Errno> {
        let length = length.min(COPY_BYTES_MAX);
        let command = Command::CopyRange { from: from.0, from_offset: from.1, to: to.0, to_offset: to.1, length };
        match self.change(to.0, Some(to_handle), command, Bytes::new()).await? {
            Reply::Copied(bytes) => u32::try_from(bytes).map_err(|_| unexpected(&bytes)),
            other => Err(unexpected(&other)),
        }
    }

    /// Of the cluster's disks, and of all files. Without a majority they are the files as that node knows
    /// them: who looks at a broken cluster looks at `df` first.
    pub async fn capacity(&self) -> Result<(Capacity, Usage), Errno> {
        let question = |failure| of_failure(&failure, Kind::Question);
        let soon = self.deadline.min(Instant::now() + CAPACITY_TIME);
        let usage = match self.volume().query(Query::Usage, soon).await {
            Err(Failure::NoMajority) => self.volume().peek(Query::Usage, self.deadline).await,
            told => told,
        };
        let usage = match usage.map_err(question)? {
            Answer::Usage(usage) => usage,
            other => return Err(unexpected(&other)),
        };
        Ok((self.volume().capacity(self.deadline).await.map_err(question)?, usage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_pages_are_never_appended() {
        assert_eq!(Target::of(9, libc::O_APPEND | libc::O_WRONLY, false), Target::End);
        assert_eq!(Target::of(9, libc::O_APPEND | libc::O_WRONLY, true), Target::Pages(9));
        assert_eq!(Target::of(9, libc::O_WRONLY, false), Target::At(9));
    }
}
