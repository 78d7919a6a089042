//! The whole state as a sequence of bounded pieces, and back.
//!
//! ```text
//! Header, Inodes*, Dentries*, Extents*, Xattrs*, Sessions*, Replies*, Orphans*, Holds*, Nodes*, Locks*, End
//! ```
//!
//! Each kind in the order of its keys, each piece far below 1 MiB encoded, produced as it is asked for. Derived indexes
//! are not in it. The header brings what the sums do not cover and the hash that the imported state must have.
//!
//! I15 An export is of a format that this build reads, begins with its header, ends with its end, and comes to the hash
//!     that its header names.

use super::contents::Extent;
use super::derived::Derived;
use super::inode::Inode;
use super::locks::InodeLocks;
use super::nodes::NodeRecord;
use super::sessions::Session;
use super::state::Dentry;
use super::*;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::iter::{Peekable, once};
use std::sync::Arc;

/// Of the meaning of the items. Raised with every change of it.
const FORMAT: u32 = 2;
/// What a piece may weigh, by an upper estimate of its encoded bytes. One item always fits.
const ITEM_BYTES: usize = 512 << 10;
/// Upper estimate of the encoded bytes of an inode, an entry's key or an extent, without their names and values.
const FIXED_BYTES: usize = 256;

/// One bounded piece of an exported state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Item {
    Header(Header),
    Inodes(Vec<(Ino, Inode)>),
    Dentries(Vec<(Ino, Name, Dentry)>),
    Extents(Vec<(Ino, u64, Extent)>),
    Xattrs(Vec<(Ino, Bytes, Bytes)>),
    Sessions(Vec<(SessionId, Session)>),
    Replies(Vec<(SessionId, Sequence, Outcome)>),
    Orphans(Vec<(Ino, u32)>),
    Holds(Vec<(SessionId, Ino)>),
    Nodes(Vec<(u64, NodeRecord)>),
    Locks(Vec<(Ino, InodeLocks)>),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    format: u32,
    applied: LogIndex,
    cluster: ClusterTime,
    wall: Timestamp,
    next_ino: u64,
    next_node: u64,
    hash: u128,
}

impl State {
    /// The whole state as a sequence of bounded items, in a fixed order, for a snapshot file or the wire.
    pub fn export(&self) -> impl Iterator<Item = Item> + '_ {
        let inodes = self.inodes.iter().map(|(ino, inode)| (*ino, Inode::clone(inode)));
        let dentries = self.dentries.iter().map(|((parent, name), dentry)| (*parent, name.clone(), *dentry));
        let extents = self.extents.iter().map(|((ino, offset), extent)| (*ino, *offset, *extent));
        let xattrs = self.xattrs.iter().map(|((ino, name), value)| (*ino, name.clone(), value.clone()));
        let sessions = self.sessions.iter().map(|(id, session)| (*id, session.clone()));
        let replies = self.replies.iter().map(|((id, sequence), outcome)| (*id, *sequence, outcome.clone()));
        let orphans = self.orphans.iter().map(|(ino, holders)| (*ino, *holders));
        let holds = self.holds.iter().map(|(key, ())| *key);
        let nodes = self.nodes.iter().map(|(node, record)| (*node, record.clone()));
        let locks = self.locks.export().map(|(ino, locks)| (ino, locks.clone()));
        once(Item::Header(self.header()))
            .chain(batches(inodes, |(_, inode)| inode.size_of_target()).map(Item::Inodes))
            .chain(batches(dentries, |(_, name, _)| name.as_bytes().len()).map(Item::Dentries))
            .chain(batches(extents, |_| 0).map(Item::Extents))
            .chain(batches(xattrs, |(_, name, value)| name.len().saturating_add(value.len())).map(Item::Xattrs))
            .chain(batches(sessions, |(_, session)| session.label.len()).map(Item::Sessions))
            .chain(batches(replies, |_| 0).map(Item::Replies))
            .chain(batches(orphans, |_| 0).map(Item::Orphans))
            .chain(batches(holds, |_| 0).map(Item::Holds))
            .chain(batches(nodes, |_| 0).map(Item::Nodes))
            .chain(batches(locks, |(_, locks)| locks_bytes(locks)).map(Item::Locks))
            .chain(once(Item::End))
    }

    fn header(&self) -> Header {
        Header {
            format: FORMAT,
            applied: self.applied,
            cluster: self.cluster,
            wall: self.wall,
            next_ino: self.next_ino,
            next_node: self.next_node,
            hash: self.hash(),
        }
    }
}

/// Upper estimate of one encoded lock, in bytes.
const LOCK_BYTES: usize = 64;

fn locks_bytes(locks: &InodeLocks) -> usize {
    locks.held().len().saturating_add(locks.waiting().len()).saturating_mul(LOCK_BYTES)
}

/// Join items to pieces of about `ITEM_BYTES`. `bytes`: what an item has beside its fixed part.
fn batches<I: Iterator>(items: I, bytes: impl Fn(&I::Item) -> usize) -> impl Iterator<Item = Vec<I::Item>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || next_batch(&mut items, &bytes))
}

fn next_batch<I: Iterator>(items: &mut Peekable<I>, bytes: impl Fn(&I::Item) -> usize) -> Option<Vec<I::Item>> {
    let mut batch = vec![items.next()?];
    let mut weight = batch.first().map_or(0, &bytes);
    while let Some(item) = items.next_if(|item| {
        weight = weight.saturating_add(bytes(item)).saturating_add(FIXED_BYTES);
        weight <= ITEM_BYTES
    }) {
        batch.push(item);
    }
    Some(batch)
}

/// Rebuilds a state from its exported items; `finish` verifies that all came and the hash.
pub struct Importer {
    state: State,
    header: Option<Header>,
    ended: bool,
}

impl Default for Importer {
    fn default() -> Importer {
        Importer::new()
    }
}

impl Importer {
    pub fn new() -> Importer {
        Importer { state: State::bare(), header: None, ended: false }
    }

    pub fn add(&mut self, item: Item) -> Result<(), Broken> {
        if self.ended {
            return Err(broken("an item follows the end"));
        }
        match (item, self.header) {
            (Item::Header(header), None) => return self.begin(header),
            (Item::Header(_), Some(_)) => return Err(broken("a second header")),
            (_, None) => return Err(broken("the header is not the first item")),
            (Item::End, _) => self.ended = true,
            (item, _) => self.state.take_in(item)?,
        }
        Ok(())
    }

    fn begin(&mut self, header: Header) -> Result<(), Broken> {
        if header.format != FORMAT {
            return Err(broken(&format!("state format {}, this build reads {FORMAT}", header.format)));
        }
        self.header = Some(header);
        self.state.applied = header.applied;
        self.state.cluster = header.cluster;
        self.state.wall = header.wall;
        self.state.clock = header.wall;
        self.state.next_ino = header.next_ino;
        self.state.next_node = header.next_node;
        Ok(())
    }

    pub fn finish(self) -> Result<State, Broken> {
        let Importer { mut state, header, ended } = self;
        let hash = match header {
            Some(header) if ended => header.hash,
            _ => return Err(broken("the items end before their end")),
        };
        if state.hash() != hash {
            return Err(broken(&format!("the hash is {:032x}, and should be {hash:032x}", state.hash())));
        }
        state.derived = Derived::of(&state);
        Ok(state)
    }
}

impl State {
    /// Put the contents of an item where they belong; derived indexes are for later.
    fn take_in(&mut self, item: Item) -> Result<(), Broken> {
        match item {
            Item::Header(_) | Item::End => {}
            Item::Inodes(items) => self.inodes.fill(items.into_iter().map(|(ino, inode)| (ino, Arc::new(inode)))),
            Item::Dentries(items) => self.dentries.fill(items.into_iter().map(|(ino, name, to)| ((ino, name), to))),
            Item::Extents(items) => self.extents.fill(items.into_iter().map(|(ino, at, extent)| ((ino, at), extent))),
            Item::Xattrs(items) => {
                self.xattrs.fill(items.into_iter().map(|(ino, name, value)| ((ino, name), value)));
            }
            Item::Sessions(items) => self.sessions.fill(items.into_iter()),
            Item::Replies(items) => self.replies.fill(items.into_iter().map(|(id, seq, outcome)| ((id, seq), outcome))),
            Item::Orphans(items) => self.orphans.fill(items.into_iter()),
            Item::Holds(items) => self.holds.fill(items.into_iter().map(|key| (key, ()))),
            Item::Nodes(items) => self.nodes.fill(items.into_iter()),
            Item::Locks(items) => {
                for (ino, locks) in items {
                    self.locks.import(ino, locks)?;
                }
            }
        }
        Ok(())
    }
}

fn broken(what: &str) -> Broken {
    Broken { number: "I15", what: what.to_string() }
}
