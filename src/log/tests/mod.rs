//! The fears about the log, one file each.

mod cost;
mod crash;
mod faults;
mod format;
mod mend;
mod real;
mod rig;
mod space;
mod subsets;
mod unreadable;

use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;

use super::{Body, Done, Entry, EntryId, StorageError};

/// An entry whose bytes follow from its index and term.
pub fn entry(term: u64, index: u64, command: usize, body: usize) -> Entry {
    let id = EntryId { term, node: term % 5, index };
    let bytes = |salt: u64, length: usize| -> Bytes {
        let mut x = salt ^ (term << 40) ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            bytes.extend_from_slice(&x.to_le_bytes());
        }
        bytes.truncate(length);
        bytes.into()
    };
    Entry { id, command: bytes(1 << 60, command), body: Body::Bytes(bytes(1 << 61, body)) }
}

pub fn body(entry: &Entry) -> &Bytes {
    match &entry.body {
        Body::Bytes(body) => body,
        Body::Absent(_) => panic!("an entry without its body"),
    }
}

/// A callback, and where its result arrives.
pub fn waiter() -> (Done, mpsc::Receiver<Result<(), Arc<StorageError>>>) {
    let (send, receive) = mpsc::channel();
    (Box::new(move |result| drop(send.send(result))), receive)
}
