//! Metadata snapshots: the whole state at one index, as bounded items in one file of the log.
//!
//! Bodies are not in it. They are named by log index, the same on all nodes, and stay where they are; a node that installs
//! another's snapshot fetches those that it lacks.

use super::bodies::Verified;
use super::payload::{self, StoredMeta};
use super::store::io_error;
use crate::codec;
use crate::fs::{Importer, Item, State};
use crate::log::{Log, SnapshotReader, StagedSnapshot, StorageError};
use bytes::Bytes;
use std::io;
use tokio::sync::OwnedMutexGuard;

/// What openraft passes around as a snapshot.
pub enum SnapshotData {
    /// The newest one in this log's directory.
    OnDisk(Log),
    /// One that has come from another node and has not its place on the disk yet.
    Received(Box<Received>),
}

pub struct Received {
    pub state: State,
    /// Its bodies, all of them here.
    pub bodies: Verified,
    /// As a file, durable.
    pub staged: StagedSnapshot,
    /// While it is held, no space is reclaimed: nothing but `state` refers to the new bodies.
    pub space: OwnedMutexGuard<()>,
}

/// Stream a state into the newest snapshot file.
pub fn write(log: &Log, meta: &StoredMeta, state: &State) -> io::Result<()> {
    let encoded = payload::encode_formatted("snapshot meta", meta).map_err(io_error)?;
    let mut items = state.export().map(|item| encode(&item));
    log.write_snapshot(meta.last, encoded, &mut items).map_err(io_error)
}

/// Stream a state that has come from another node into a file that has not its place yet.
pub fn stage(log: &Log, meta: &StoredMeta, state: &State) -> io::Result<StagedSnapshot> {
    let encoded = payload::encode_formatted("snapshot meta", meta).map_err(io_error)?;
    let mut items = state.export().map(|item| encode(&item));
    log.stage_snapshot(meta.last, encoded, &mut items).map_err(io_error)
}

pub fn encode(item: &Item) -> Result<Bytes, StorageError> {
    codec::encode("snapshot item", item).map(Bytes::from).map_err(|e| StorageError::Io {
        operation: "encoding",
        file: "a snapshot".into(),
        source: io_error(e),
    })
}

/// What the newest snapshot is of.
pub fn newest(log: &Log) -> io::Result<Option<StoredMeta>> {
    open(log).map(|opened| opened.map(|(meta, _)| meta))
}

/// The newest snapshot and a reader of its items.
pub fn open(log: &Log) -> io::Result<Option<(StoredMeta, SnapshotReader)>> {
    let Some(reader) = log.open_snapshot().map_err(io_error)? else { return Ok(None) };
    let meta: StoredMeta = payload::decode_formatted("snapshot meta", &reader.meta).map_err(io_error)?;
    if meta.last != reader.last {
        return Err(io::Error::other(format!("a snapshot of {:?} says that it is of {:?}", reader.last, meta.last)));
    }
    Ok(Some((meta, reader)))
}

/// The state of the newest snapshot.
pub fn load(log: &Log) -> io::Result<Option<(StoredMeta, State)>> {
    let Some((meta, reader)) = open(log)? else { return Ok(None) };
    let mut importer = Importer::new();
    for item in reader {
        add(&mut importer, &item.map_err(io_error)?)?;
    }
    let state = finish(importer, &meta)?;
    Ok(Some((meta, state)))
}

/// Load the newest snapshot of `source`, and make it that of `log` too if they are two.
pub fn adopt(source: &Log, log: &Log) -> io::Result<State> {
    let (meta, state) = load(source)?.ok_or_else(|| io::Error::other("the snapshot is gone"))?;
    if newest(log)?.is_none_or(|own| own.last != meta.last) {
        write(log, &meta, &state)?;
    }
    Ok(state)
}

pub fn add(importer: &mut Importer, item: &Bytes) -> io::Result<()> {
    let item: Item = codec::decode("snapshot item", item).map_err(io_error)?;
    importer.add(item).map_err(io_error)
}

/// The imported state, if it is whole and of the index that it should be of.
pub fn finish(importer: Importer, meta: &StoredMeta) -> io::Result<State> {
    let state = importer.finish().map_err(io_error)?;
    match state.applied().0 == meta.last.index {
        true => Ok(state),
        false => {
            Err(io::Error::other(format!("a snapshot of {} holds a state at {}", meta.last.index, state.applied().0)))
        }
    }
}
