//! The four verbs as commands and queries of the volume.
//!
//! `write`, `cas` and `delete` are one command each. `read` needs three questions, in this order: which inode and version,
//! its seconds left, its bytes and their version. Versions only rise, so if the two versions are equal, they and the bytes
//! are what the file had when the seconds were told; otherwise everything is asked again until the deadline.

use super::answers::Answer;
use crate::fs::{self, Command, Credentials, Expected, ExpiryChange, FileKind, Ino, LogIndex, Name, Query, Refusal};
use crate::fs::{Attributes, Reply};
use crate::limits::{BODY_BYTES_MAX, CS733_OPERATION_SECONDS_MAX};
use crate::volume::{Failure, Freshness, Head, Volume};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// Permission bits of a file that a client creates.
const NEW_FILE_MODE: u32 = 0o644;

/// A file as it was at one index, with its first piece of at most [`BODY_BYTES_MAX`] bytes.
#[derive(Debug)]
pub struct Contents {
    ino: Ino,
    version: LogIndex,
    size: u64,
    seconds_left: u64,
    first: Bytes,
    /// Bytes handed out so far.
    taken: u64,
}

impl Contents {
    pub fn announcement(&self) -> Answer {
        Answer::Contents { version: self.version, bytes: self.size, seconds_left: self.seconds_left }
    }

    pub fn take_first(&mut self) -> Bytes {
        self.taken = self.first.len() as u64;
        std::mem::take(&mut self.first)
    }
}

/// Create the file or replace its whole content; the expiry becomes the given one, or none.
pub async fn write(volume: &Volume, name: Name, expiry_ns: Option<u64>, content: Bytes) -> Answer {
    match put(volume, name, Expected::Anything, expiry_ns, content).await {
        Ok(answer) => answer,
        // the name is a directory's or a device's: "not found" would be a strange answer to a write
        Err(failure) => match failure.into() {
            Answer::FileNotFound => Answer::Internal,
            answer => answer,
        },
    }
}

/// [`fn@write`] if the file has this version (0: if there is no file of this name).
pub async fn compare_and_swap(
    volume: &Volume,
    name: Name,
    version: LogIndex,
    expiry_ns: Option<u64>,
    content: Bytes,
) -> Answer {
    match put(volume, name.clone(), Expected::Version(version), expiry_ns, content).await {
        Ok(answer) => answer,
        Err(Failure::Refused(Refusal::NameTaken)) => current_version(volume, name).await,
        Err(failure) => failure.into(),
    }
}

pub async fn delete(volume: &Volume, name: Name) -> Answer {
    let unlink = Command::Unlink { parent: Ino::ROOT, name, expected: None };
    match volume.submit(credentials(), unlink, Bytes::new(), deadline()).await {
        Ok(_) => Answer::Deleted,
        Err(failure) => failure.into(),
    }
}

/// Find a file and read its first piece.
pub async fn open(volume: &Volume, name: &Name) -> Result<Contents, Failure> {
    let deadline = deadline();
    while Instant::now() < deadline {
        let file = lookup(volume, name.clone(), deadline).await?;
        if file.kind != FileKind::File {
            return Err(Refusal::NoSuchName.into());
        }
        match contents_of(volume, &file, deadline).await {
            Ok(Some(contents)) => return Ok(contents),
            // changed meanwhile, or replaced by another file: look again
            Ok(None) | Err(Failure::Refused(Refusal::NoSuchInode)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::NoMajority)
}

/// The next piece of a file whose version still is the announced one; `None` behind the last.
pub async fn next_piece(volume: &Volume, contents: &mut Contents) -> Result<Option<Bytes>, Failure> {
    if contents.taken == contents.size {
        return Ok(None);
    }
    let (head, piece) = piece(volume, contents.ino, contents.taken, deadline()).await?;
    if head.version != contents.version {
        return Err(Refusal::VersionMismatch { current: head.version }.into());
    }
    if piece.is_empty() {
        return Err(unexpected("a read"));
    }
    contents.taken += piece.len() as u64;
    Ok(Some(piece))
}

/// `None`: the file changed while it was looked at.
async fn contents_of(volume: &Volume, file: &Attributes, deadline: Instant) -> Result<Option<Contents>, Failure> {
    let seconds_left = seconds_left(volume, file.ino, deadline).await?;
    let (Head { version, size }, first) = piece(volume, file.ino, 0, deadline).await?;
    let contents = Contents { ino: file.ino, version, size, seconds_left, first, taken: 0 };
    Ok((version == file.version).then_some(contents))
}

async fn piece(volume: &Volume, ino: Ino, offset: u64, deadline: Instant) -> Result<(Head, Bytes), Failure> {
    volume.read_as(ino, offset, BODY_BYTES_MAX as u32, Freshness::Linearizable, deadline).await
}

/// Seconds until the file ends, rounded up and at least 1; 0: it has no expiry.
async fn seconds_left(volume: &Volume, ino: Ino, deadline: Instant) -> Result<u64, Failure> {
    let name = Bytes::from_static(b"user.keelfs.ttl");
    match volume.query(Query::Xattr { ino, name }, deadline).await {
        Ok(fs::Answer::Bytes(digits)) => {
            let seconds = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse::<u64>().ok());
            seconds.ok_or_else(|| unexpected("an expiry"))
        }
        Ok(_) => Err(unexpected("an attribute")),
        Err(Failure::Refused(Refusal::NoSuchXattr)) => Ok(0),
        Err(failure) => Err(failure),
    }
}

async fn put(
    volume: &Volume,
    name: Name,
    expected: Expected,
    expiry_ns: Option<u64>,
    content: Bytes,
) -> Result<Answer, Failure> {
    let put = Command::Put {
        parent: Ino::ROOT,
        name,
        expected,
        expiry: expiry_ns.map_or(ExpiryChange::Clear, |ns| ExpiryChange::After { ns }),
        mode: NEW_FILE_MODE,
        length: content.len() as u32,
    };
    match volume.submit(credentials(), put, content, deadline()).await? {
        Reply::Attributes(file) => Ok(Answer::Written { version: file.version }),
        _ => Err(unexpected("a command")),
    }
}

/// What to tell a client that wanted to create a file where there is one. If it has gone meanwhile, 0 is the truth.
async fn current_version(volume: &Volume, name: Name) -> Answer {
    match lookup(volume, name, deadline()).await {
        Ok(file) => Answer::VersionMismatch { current: file.version },
        Err(Failure::Refused(Refusal::NoSuchName)) => Answer::VersionMismatch { current: LogIndex(0) },
        Err(failure) => failure.into(),
    }
}

async fn lookup(volume: &Volume, name: Name, deadline: Instant) -> Result<Attributes, Failure> {
    attributes(volume, Query::Lookup { parent: Ino::ROOT, name }, deadline).await
}

async fn attributes(volume: &Volume, query: Query, deadline: Instant) -> Result<Attributes, Failure> {
    match volume.query(query, deadline).await? {
        fs::Answer::Attributes(attributes) => Ok(attributes),
        _ => Err(unexpected("a query")),
    }
}

/// Nothing that correct nodes of this version say.
fn unexpected(to: &'static str) -> Failure {
    Failure::Damaged(format!("the answer to {to} is of another kind than the question"))
}

/// Files are owned by the user that the node runs as.
fn credentials() -> Credentials {
    Credentials { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(CS733_OPERATION_SECONDS_MAX)
}
