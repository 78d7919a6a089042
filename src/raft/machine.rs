//! openraft's state machine over [`State`]: apply in order, publish, answer.
//!
//! The state is in memory only. What is durable of it is the log, and from time to time a snapshot of the whole at one
//! index; a restart loads the newest snapshot and replays the headers behind it.
//!
//! Decision: a batch is published before its proposers are answered, so that whoever got an answer finds its effect in the
//! published root. Cost: the first of a batch waits for the last, some microseconds each.

use super::ending::{Endings, storage_error};
use super::payload::StoredMeta;
use super::publish::Published;
use super::snapshot::{self, Received, SnapshotData};
use super::store::{blocking, completion, durable, io_error, is_full};
use super::types::*;
use crate::fs::{LogIndex, Stamp, State};
use crate::log::{EntryId, Log, StorageError};
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use std::io;
use std::sync::Arc;

/// Entries that are applied between two publications at most.
const BATCH_ENTRIES_MAX: usize = 256;

pub struct Machine {
    state: State,
    /// The last entry applied; `None`: none, not even entry 0.
    last: Option<LogId>,
    membership: StoredMembership,
    published: Arc<Published>,
    log: Log,
    endings: Endings,
}

impl Machine {
    /// A machine that continues from the newest snapshot of `log`, or from the empty state.
    pub async fn load(log: Log, endings: Endings) -> io::Result<Machine> {
        let reading = log.clone();
        let (state, last, membership) = match blocking(move || snapshot::load(&reading)).await? {
            Some((meta, state)) => (state, Some(log_id(meta.last)), meta.stored_membership().map_err(io_error)?),
            None => (State::new(), None, StoredMembership::default()),
        };
        let published = Arc::new(Published::new(state.clone()));
        Ok(Machine { state, last, membership, published, log, endings })
    }

    /// The entry that the state is at, if any.
    pub fn loaded(&self) -> Option<EntryId> {
        self.last.as_ref().map(entry_id)
    }

    pub fn published(&self) -> Arc<Published> {
        self.published.clone()
    }

    fn apply_entry(&mut self, entry: &Entry) -> Applied {
        let index = LogIndex(entry.log_id.index);
        self.last = Some(entry.log_id);
        match &entry.payload {
            EntryPayload::Normal(proposal) => {
                let Stamped { cluster, wall, request } = &*proposal.stamped;
                let stamp = Stamp { index, cluster: *cluster, wall: *wall };
                Applied::Outcome(self.state.apply(stamp, request, proposal.body_length().into()))
            }
            EntryPayload::Blank => {
                self.state.skip(index);
                Applied::Nothing
            }
            EntryPayload::Membership(membership) => {
                let members: Vec<u64> = membership.nodes().map(|(node, _)| *node).collect();
                self.state.set_members(index, &members);
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Applied::Nothing
            }
        }
    }

    fn apply_batch(&mut self, batch: Vec<io::Result<EntryResponder<Types>>>) -> io::Result<()> {
        let mut answers = Vec::new();
        let mut hashes = Vec::with_capacity(batch.len());
        for item in batch {
            let (entry, responder) = item?;
            let applied = self.apply_entry(&entry);
            hashes.push((self.state.applied(), self.state.hash()));
            answers.extend(responder.map(|responder| (responder, applied)));
        }
        self.published.publish(&self.state, &hashes);
        for (responder, applied) in answers {
            responder.send(applied);
        }
        Ok(())
    }

    /// What is applied, as a snapshot says it, and the state itself; `None`: nothing is.
    pub fn whole(&mut self) -> Option<(StoredMeta, State)> {
        Some((StoredMeta::new(self.last.as_ref(), &self.membership)?, self.state.clone()))
    }

    /// The newest snapshot is damaged; the state in memory is not.
    async fn write_anew(&mut self, damage: &io::Error) -> io::Result<Option<StoredMeta>> {
        tracing::warn!("the newest snapshot is written anew: {damage}");
        let Some((meta, state)) = self.whole() else { return Ok(None) };
        let (log, stored) = (self.log.clone(), meta.clone());
        match blocking(move || snapshot::write(&log, &stored, &state)).await {
            // Whoever wants to send it finds the damage again, and asks again.
            Err(e) if is_full(&e) => tracing::warn!("no room for a snapshot in the place of a damaged one: {e}"),
            written => self.endings.note(written)?,
        }
        Ok(Some(meta))
    }

    /// Have it durable that what is applied is committed. A state from a peer leans on the bodies of all that is applied
    /// here, but the log, which shall let go of what contradicts that state, trusts only what it knows to be committed:
    /// after a loss of power that may be less.
    async fn note_applied(&self) -> io::Result<()> {
        let Some(last) = self.loaded() else { return Ok(()) };
        if self.log.committed().is_none_or(|committed| committed.index < last.index) {
            self.log.save_committed(Some(last));
        }
        let (done, noted) = completion();
        self.log.append(Vec::new(), done);
        durable(noted).await
    }

    fn become_loaded(&mut self, meta: &SnapshotMeta, state: State) {
        self.published.publish(&state, &[(state.applied(), state.hash())]);
        self.state = state;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH_ENTRIES_MAX);
        while let Some(batch) = batches.next().await {
            self.apply_batch(batch)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = StoredMeta::new(self.last.as_ref(), &self.membership);
        Builder { meta, state: self.state.clone(), log: self.log.clone(), endings: self.endings.clone() }
    }

    /// By now openraft has truncated what contradicts the snapshot, and the bodies are durable here. The file becomes the
    /// newest snapshot in one step (rename), and only then does the state change: a crash leaves the old or the new.
    ///
    /// In between the log lets go of what the snapshot covers. openraft would purge it only afterwards, and entries that
    /// were never committed may be among it: a reader of the new state would take their bodies for the committed ones.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let log = self.log.clone();
        let (state, space) = match data {
            SnapshotData::OnDisk(source) => (blocking(move || snapshot::adopt(&source, &log)).await?, None),
            SnapshotData::Received(received) => {
                let Received { state, bodies, staged, space } = *received;
                if meta.last_log_id.as_ref().map(entry_id) != Some(staged.last()) {
                    return Err(io::Error::other(format!("a snapshot of {:?} instead of {meta}", staged.last())));
                }
                self.note_applied().await?;
                let placed = blocking(move || {
                    bodies.check(&log, &state)?;
                    log.place_snapshot(staged).map_err(io_error)?;
                    Ok(state)
                });
                let state = self.endings.note(placed.await)?;
                if let Some(last) = &meta.last_log_id {
                    let (done, purged) = completion();
                    self.log.purge(entry_id(last), done);
                    durable(purged).await?;
                }
                (state, Some(space))
            }
        };
        let before = self.state.applied().0;
        self.become_loaded(meta, state);
        // Only now does the published state refer to the bodies that came: until here nothing may be reclaimed.
        drop(space);
        tracing::info!("installed a snapshot: applied {before} before, {} now", self.state.applied().0);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot<SnapshotData>>> {
        let log = self.log.clone();
        let newest = match blocking(move || snapshot::newest(&log)).await {
            Err(error) if is_damage(&error) => self.write_anew(&error).await?,
            newest => newest?,
        };
        let Some(meta) = newest else { return Ok(None) };
        Ok(Some(Snapshot {
            meta: meta.snapshot_meta().map_err(io_error)?,
            snapshot: SnapshotData::OnDisk(self.log.clone()),
        }))
    }
}

fn is_damage(error: &io::Error) -> bool {
    matches!(storage_error(error), Some(StorageError::Damaged { .. }))
}

/// Writes a snapshot of the state that it was made from, while apply goes on.
pub struct Builder {
    meta: Option<StoredMeta>,
    state: State,
    log: Log,
    endings: Endings,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot<SnapshotData>> {
        let Some(meta) = self.meta.clone() else {
            return Ok(Snapshot { meta: SnapshotMeta::default(), snapshot: SnapshotData::OnDisk(self.log.clone()) });
        };
        let (log, state, stored) = (self.log.clone(), self.state.clone(), meta.clone());
        match blocking(move || snapshot::write(&log, &stored, &state)).await {
            // The one before stays, and so does what it would have let go: a later try may find room.
            Err(e) if is_full(&e) => {
                tracing::warn!("no room for a snapshot: {e}");
                let newest = match snapshot::newest(&self.log) {
                    Err(damage) if is_damage(&damage) => None,
                    newest => newest?,
                };
                let meta = newest.map(|meta| meta.snapshot_meta().map_err(io_error)).transpose()?;
                let snapshot = SnapshotData::OnDisk(self.log.clone());
                return Ok(Snapshot { meta: meta.unwrap_or_default(), snapshot });
            }
            written => self.endings.note(written)?,
        }
        Ok(Snapshot { meta: meta.snapshot_meta().map_err(io_error)?, snapshot: SnapshotData::OnDisk(self.log.clone()) })
    }
}
