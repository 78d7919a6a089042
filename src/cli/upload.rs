//! A whole file's content on its way into the tree.
//!
//! Up to [`PUT_BYTES_MAX`] it is one command. More is written to a hidden file beside the target, which is then renamed;
//! until that rename nobody sees anything of it. The hidden file is given an expiry at once, so that an upload that
//! was cut off does not lie about for ever. Only the last command before the rename takes that expiry away, because an
//! expiry that the rename brought with it would end the target: who is killed just between the two leaves the whole
//! upload behind, hidden and for good.
//!
//! Both ways replace the content of a regular file and nothing else: owner, mode, access list and attributes are taken
//! over. Cost of the second way: the target becomes another inode, so its other hard links, and the programs that have
//! it open, keep the old content.

use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::files::Files;
use crate::cli::words::TreePath;
use crate::fs::*;
use crate::limits::{BODY_BYTES_MAX, PUT_BYTES_MAX};
use crate::volume::Failure;
use bytes::Bytes;
use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;
use std::time::Instant;

/// How long an unfinished upload may lie about, in nanoseconds: a day.
const UNFINISHED_NS: u64 = 86_400_000_000_000;
/// Of a file that is new.
const MODE: u32 = 0o644;
/// The bits of a mode that are about the owner.
const OWNERS_BITS: u32 = 0o700;
/// Setuid and setgid.
const PRIVILEGES: u32 = 0o6000;

/// Where the bytes come from.
pub struct Content {
    source: Box<dyn Read + Send>,
    name: String,
}

impl Content {
    /// `-` is standard input.
    pub fn open(file: &Path) -> CliResult<Content> {
        if file == Path::new("-") {
            return Ok(Content { source: Box::new(stdin()), name: "standard input".into() });
        }
        let source = File::open(file).tried(|| format!("cannot read {}", file.display()))?;
        Ok(Content { source: Box::new(source), name: file.display().to_string() })
    }

    /// The next `limit` bytes; fewer only at the end.
    fn next(&mut self, limit: usize) -> CliResult<Bytes> {
        let mut piece = Vec::new();
        let read = self.source.by_ref().take(limit as u64).read_to_end(&mut piece);
        read.tried(|| format!("cannot read {}", self.name))?;
        Ok(piece.into())
    }
}

/// What is to become of which name.
pub struct Target<'a> {
    parent: &'a str,
    name: Name,
    path: &'a TreePath,
    expected: Expected,
    expiry: ExpiryChange,
}

impl<'a> Target<'a> {
    pub fn new(path: &'a TreePath, expected: Expected, expiry: ExpiryChange) -> CliResult<Target<'a>> {
        let (parent, name) = place(path, "write")?;
        Ok(Target { parent, name, path, expected, expiry })
    }
}

/// The directory and the name that a path means; the root has none.
pub fn place<'a>(path: &'a TreePath, tried: &str) -> CliResult<(&'a str, Name)> {
    let refused = |why: String| CliError::usage(format!("cannot {tried} {path}: {why}"));
    let (parent, name) = path.split().ok_or_else(|| refused("it is the root directory".into()))?;
    Ok((parent, Name::new(name.as_bytes()).map_err(|why| refused(why.to_string()))?))
}

/// Why an upload failed: here, or there.
pub enum Error {
    Here(CliError),
    Call(Failure),
}

impl Error {
    pub fn said(self, tried: &str, path: &TreePath) -> CliError {
        match self {
            Error::Here(error) => error,
            Error::Call(failure) => CliError::call(tried, path.as_str(), &failure),
        }
    }
}

impl From<CliError> for Error {
    fn from(error: CliError) -> Error {
        Error::Here(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::Call(failure)
    }
}

/// Replace or create the target; its new version.
pub async fn put(files: &Files, target: &Target<'_>, mut content: Content) -> Result<LogIndex, Error> {
    let first = content.next(PUT_BYTES_MAX + 1)?;
    let parent = files.resolve(target.parent).await?.ino;
    if first.len() > PUT_BYTES_MAX {
        return put_large(files, target, parent, first, content).await;
    }
    let command = Command::Put {
        parent,
        name: target.name.clone(),
        expected: target.expected,
        expiry: target.expiry,
        mode: MODE,
        length: first.len() as u32,
    };
    version(&files.submit(command, first).await?)
}

async fn put_large(
    files: &Files,
    target: &Target<'_>,
    parent: Ino,
    first: Bytes,
    content: Content,
) -> Result<LogIndex, Error> {
    let hidden = hidden_name()?;
    // Looked at first: what cannot be replaced is refused before all of it was sent.
    let replaced = replaced(files, target).await?;
    // What replaces a file is open to nobody else until it has that file's permissions.
    let mode = replaced.as_ref().map_or(MODE, |file| file.mode & OWNERS_BITS);
    let made = Command::Make { parent, name: hidden.clone(), node: NewNode::File, mode, umask: 0 };
    let ino = match files.submit(made, Bytes::new()).await? {
        Reply::Attributes(attributes) => attributes.ino,
        other => return Err(unexpected(&other)),
    };
    let place = Place { parent, name: hidden.clone() };
    let result = match fill(files, ino, first, content).await {
        Ok(()) => take_place(files, target, replaced, (place, ino)).await,
        Err(error) => Err(error),
    };
    if result.is_err() {
        // The failure to tell is the first one; what stays behind now has its expiry, as a rule.
        let _ = files.submit(Command::Unlink { parent, name: hidden, expected: Some(ino) }, Bytes::new()).await;
    }
    result
}

/// Hidden, not a name that a person would choose, and never the same twice.
fn hidden_name() -> CliResult<Name> {
    let name = format!(".keelfs-write-{}", uuid::Uuid::new_v4().simple());
    Name::new(name.as_bytes()).tried(|| format!("cannot use the name {name}"))
}

async fn fill(files: &Files, ino: Ino, first: Bytes, mut content: Content) -> Result<(), Error> {
    let expiry = ExpiryChange::After { ns: UNFINISHED_NS };
    files.submit(Command::SetExpiry { ino, expiry }, Bytes::new()).await?;
    let (mut offset, mut piece) = (0, first);
    while !piece.is_empty() {
        let now = piece.split_to(piece.len().min(BODY_BYTES_MAX));
        let length = now.len() as u32;
        files.submit(Command::Write { ino, offset, length }, now).await?;
        offset += u64::from(length);
        if piece.is_empty() {
            piece = content.next(BODY_BYTES_MAX)?;
        }
    }
    Ok(())
}

/// Have the hidden file replace whichever file has the target's name now. `before`: the one that had it at first.
async fn take_place(
    files: &Files,
    target: &Target<'_>,
    before: Option<Attributes>,
    (hidden, ino): (Place, Ino),
) -> Result<LogIndex, Error> {
    if let Expected::Version(version) = target.expected {
        files.submit(Command::SetReplaceIf { ino, version: Some(version) }, Bytes::new()).await?;
    }
    let deadline = files.deadline();
    loop {
        let now = replaced(files, target).await?;
        let taken = take_over(files, ino, before.as_ref(), now.as_ref()).await;
        let result = match taken {
            Ok(()) => rename(files, target, now, (hidden.clone(), ino)).await,
            Err(failure) => Err(failure),
        };
        match result {
            // Somebody has replaced or removed the file that was looked at.
            Err(Failure::Refused(Refusal::Raced | Refusal::NoSuchInode)) if Instant::now() < deadline => continue,
            reply => return version(&reply?),
        }
    }
}

async fn rename(
    files: &Files,
    target: &Target<'_>,
    seen: Option<Attributes>,
    (from, ino): (Place, Ino),
) -> Result<Reply, Failure> {
    files.submit(Command::SetExpiry { ino, expiry: target.expiry }, Bytes::new()).await?;
    let to = Place { parent: from.parent, name: target.name.clone() };
    let replaced = Some(seen.map(|file| file.ino));
    let rename = Command::Rename { from, to, mode: RenameMode::Replace, moved: Some(ino), replaced };
    files.submit(rename, Bytes::new()).await
}

/// The file that has the target's name. What else has it is refused as [`Command::Put`] refuses it.
async fn replaced(files: &Files, target: &Target<'_>) -> Result<Option<Attributes>, Failure> {
    match files.resolve(target.path.as_str()).await {
        Ok(file) => match file.kind {
            FileKind::File => Ok(Some(file)),
            FileKind::Directory => Err(Refusal::IsDirectory.into()),
            _ => Err(Refusal::WrongKind.into()),
        },
        Err(Failure::Refused(Refusal::NoSuchName)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Replacing must neither open a secret to others nor shut out those who may use the file, nor lose what is noted on it.
/// One that was removed meanwhile still says whose it was.
async fn take_over(
    files: &Files,
    ino: Ino,
    before: Option<&Attributes>,
    now: Option<&Attributes>,
) -> Result<(), Failure> {
    let Some(file) = now.or(before) else { return Ok(()) };
    let set = async |changes| files.submit(Command::SetAttributes { ino, changes }, Bytes::new()).await.map(drop);
    let (uid, gid, mode) = (Some(file.uid), Some(file.gid), mode_after_write(file.mode));
    // For the owner alone, until it is complete who else may do what: without the list, the group's bits mean more.
    set(AttributeChanges { uid, gid, mode: Some(mode & OWNERS_BITS), ..AttributeChanges::default() }).await?;
    if let Some(file) = now {
        let acl = files.xattr(file.ino, AclKind::Access.name()).await?;
        files.submit(Command::SetAcl { ino, kind: AclKind::Access, acl, keep_setgid: true }, Bytes::new()).await?;
        take_xattrs(files, ino, file.ino).await?;
    }
    set(AttributeChanges { mode: Some(mode), ..AttributeChanges::default() }).await
}

/// A new content ends what a program may do by itself, unless it comes from root.
fn mode_after_write(mode: u32) -> u32 {
    if rustix::process::geteuid().is_root() { mode } else { mode & !PRIVILEGES }
}

/// Have exactly the plain attributes that another file has.
async fn take_xattrs(files: &Files, ino: Ino, from: Ino) -> Result<(), Failure> {
    let names = plain_xattrs(files, from).await?;
    for name in plain_xattrs(files, ino).await?.into_iter().filter(|name| !names.contains(name)) {
        files.submit(Command::RemoveXattr { ino, name }, Bytes::new()).await?;
    }
    for name in names {
        let Some(value) = files.xattr(from, name.clone()).await? else { continue };
        files.submit(Command::SetXattr { ino, name, value, mode: XattrMode::Any }, Bytes::new()).await?;
    }
    Ok(())
}

/// All but the access list, which has a command of its own, and a program's capabilities, which a new content ends.
async fn plain_xattrs(files: &Files, ino: Ino) -> Result<Vec<Bytes>, Failure> {
    let mut names = files.xattr_names(ino).await?;
    names.retain(|name| *name != AclKind::Access.name() && *name != CAPABILITIES);
    Ok(names)
}

/// The version that the change itself has made: who looked for it afterwards could find another's.
fn version(reply: &Reply) -> Result<LogIndex, Error> {
    match reply {
        Reply::Attributes(attributes) => Ok(attributes.version),
        other => Err(unexpected(other)),
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Call(Failure::Stopped(format!("a reply of another kind than asked for came: {reply:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_comes_in_full_pieces() {
        let mut content = Content { source: Box::new(&b"abcdefg"[..]), name: "test".into() };
        assert_eq!(&content.next(3).unwrap()[..], b"abc");
        assert_eq!(&content.next(3).unwrap()[..], b"def");
        assert_eq!(&content.next(3).unwrap()[..], b"g");
        assert!(content.next(3).unwrap().is_empty());
    }

    #[test]
    fn a_missing_file_and_the_root_are_named() {
        let missing = Content::open(Path::new("/no/such/file")).err().unwrap();
        assert_eq!(missing.message, "cannot read /no/such/file: no such file or directory");
        let root: TreePath = "/".parse().unwrap();
        assert!(place(&root, "write").unwrap_err().message.contains("root directory"));
    }

    #[test]
    fn hidden_names_are_names() {
        assert_ne!(hidden_name().unwrap(), hidden_name().unwrap());
    }
}
