//! The verbs on files: `read`, `write`, `cas`, `rm`, `stat`, `ttl`.
//!
//! They speak to the cluster without a mount and without the kernel, so no access check stands between: whoever reaches
//! a node's port may do everything. What they make belongs to the user who runs them.

use crate::cli::args::{CasArgs, ContentArgs, PathArgs, RmArgs, StatArgs, TtlArgs, WriteArgs};
use crate::cli::error::{CliError, CliResult};
use crate::cli::output::{self, Output};
use crate::cli::remote::Remote;
use crate::cli::upload::{self, Content, Target};
use crate::cli::words::{TreePath, Ttl};
use crate::fs::*;
use crate::node::exit::Exit;
use crate::volume::{Failure, Freshness, Volume};
use bytes::Bytes;
use serde_json::json;
use std::time::{Duration, Instant};

/// Bytes of a file that are read in one step.
const READ_STEP: u32 = 4 << 20;

/// A connection for one verb.
pub struct Files {
    volume: Volume,
    /// Of each call, not of the verb: an upload may take as long as its bytes do.
    timeout: Duration,
}

impl Files {
    pub async fn connect(remote: &Remote) -> CliResult<Files> {
        remote.must_be_let_in().await?;
        Ok(Files { volume: remote.volume("command"), timeout: remote.timeout })
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    pub async fn submit(&self, command: Command, body: Bytes) -> Result<Reply, Failure> {
        self.volume.submit(own_credentials(), command, body, self.deadline()).await
    }

    pub async fn resolve(&self, path: &str) -> Result<Attributes, Failure> {
        match self
            .volume
            .query(Query::Resolve { path: Bytes::copy_from_slice(path.as_bytes()) }, self.deadline())
            .await?
        {
            Answer::Attributes(attributes) => Ok(attributes),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn xattr(&self, ino: Ino, name: impl Into<Bytes>) -> Result<Option<Bytes>, Failure> {
        let query = Query::Xattr { ino, name: name.into() };
        match self.volume.query(query, self.deadline()).await {
            Ok(Answer::Bytes(value)) => Ok(Some(value)),
            Ok(other) => Err(unexpected(&other)),
            Err(Failure::Refused(Refusal::NoSuchXattr)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The names of those that are stored.
    pub async fn xattr_names(&self, ino: Ino) -> Result<Vec<Bytes>, Failure> {
        match self.volume.query(Query::ListXattrs { ino }, self.deadline()).await? {
            Answer::Bytes(list) => {
                let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                Ok(names.map(Bytes::copy_from_slice).collect())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// `user.keelfs.ttl`, in seconds; `None` if it has no end.
    async fn ttl(&self, ino: Ino) -> Result<Option<String>, Failure> {
        let value = self.xattr(ino, &b"user.keelfs.ttl"[..]).await?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// End the session: nothing waits for this process any more.
    async fn close(&self) {
        self.volume.close().await;
    }
}

fn unexpected(answer: &Answer) -> Failure {
    Failure::Stopped(format!("an answer of another kind than asked for came: {answer:?}"))
}

fn own_credentials() -> Credentials {
    Credentials { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// `keelfs read`
pub async fn read(args: PathArgs, output: Output) -> CliResult {
    let files = Files::connect(&Remote::new(&args.remote)?).await?;
    let result = read_file(&files, &args.path, output).await;
    files.close().await;
    result
}

async fn read_file(files: &Files, path: &TreePath, output: Output) -> CliResult {
    let failed = |failure: Failure| CliError::call("read", path.as_str(), &failure);
    let file = files.resolve(path.as_str()).await.map_err(failed)?;
    must_be_file(&file, "read", path)?;
    if file.size <= u64::from(READ_STEP) {
        return copy_out(files, &file, path, output).await;
    }
    // Removed or replaced while we read, it stays until we are through; only a session can say that it reads.
    files.volume.session(files.deadline()).await.map_err(failed)?;
    let counted = files.volume.opened(file.ino);
    let result = copy_out(files, &file, path, output).await;
    if counted {
        files.volume.closed(file.ino);
    }
    result
}

/// Each step is of one version. If others change the file between two steps, that is an error: what was printed by then
/// is the beginning of an older version.
async fn copy_out(files: &Files, file: &Attributes, path: &TreePath, output: Output) -> CliResult {
    let (mut collected, mut offset, mut first) = (Vec::new(), 0, None);
    loop {
        let step = files.volume.read_as(file.ino, offset, READ_STEP, Freshness::Linearizable, files.deadline()).await;
        let (head, piece) = step.map_err(|failure| CliError::call("read", path.as_str(), &failure))?;
        let version = *first.get_or_insert(head.version);
        if head.version != version {
            let (seen, now) = (version.0, head.version.0);
            let what = format!("{path} changed while it was read, from version {seen} to {now}");
            return Err(CliError::failed(format!("{what}: what was printed is not whole; read it again")));
        }
        offset += piece.len() as u64;
        if output.json {
            collected.extend_from_slice(&piece)
        } else if !output::raw(&piece)? {
            return Ok(());
        }
        if offset >= head.size || piece.is_empty() {
            return if output.json {
                output.show(&content_json(path, version, collected), String::new)
            } else {
                Ok(())
            };
        }
    }
}

fn content_json(path: &TreePath, version: LogIndex, content: Vec<u8>) -> serde_json::Value {
    let size = content.len();
    match String::from_utf8(content) {
        Ok(text) => json!({ "path": path.as_str(), "version": version.0, "size": size, "text": text }),
        Err(binary) => {
            let hex: String = binary.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "path": path.as_str(), "version": version.0, "size": size, "hex": hex })
        }
    }
}

fn must_be_file(file: &Attributes, tried: &str, path: &TreePath) -> CliResult {
    match file.kind {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(CliError::failed(format!("cannot {tried} {path}: is a directory"))),
        FileKind::Symlink => {
            Err(CliError::failed(format!("cannot {tried} {path}: is a symbolic link, and links are not followed here")))
        }
        _ => Err(CliError::failed(format!("cannot {tried} {path}: is not a regular file"))),
    }
}

/// `keelfs write`
pub async fn write(args: WriteArgs, output: Output) -> CliResult {
    let (files, content) = prepare(&args.content).await?;
    let target = Target::new(&args.path, Expected::Anything, expiry(args.content.ttl))?;
    let result = upload::put(&files, &target, content).await;
    let result = result.map_err(|error| error.said("write", &args.path));
    let shown = match result {
        Ok(version) => show_version(output, &args.path, version),
        Err(error) => Err(error),
    };
    files.close().await;
    shown
}

/// `keelfs cas`
pub async fn cas(args: CasArgs, output: Output) -> CliResult {
    let (files, content) = prepare(&args.content).await?;
    let expected = Expected::Version(LogIndex(args.version));
    let target = Target::new(&args.path, expected, expiry(args.content.ttl))?;
    let result = match upload::put(&files, &target, content).await {
        Ok(version) => show_version(output, &args.path, version),
        Err(error) => lost(&files, &args, error, output).await,
    };
    files.close().await;
    result
}

async fn prepare(args: &ContentArgs) -> CliResult<(Files, Content)> {
    let remote = Remote::new(&args.remote)?;
    let content = Content::open(&args.file)?;
    Ok((Files::connect(&remote).await?, content))
}

/// `write` and `cas` cancel an expiry that they do not renew.
fn expiry(ttl: Option<Ttl>) -> ExpiryChange {
    match ttl {
        Some(Ttl { ns }) if ns > 0 => ExpiryChange::After { ns },
        _ => ExpiryChange::Clear,
    }
}

fn show_version(output: Output, path: &TreePath, version: LogIndex) -> CliResult {
    output.show(&json!({ "path": path.as_str(), "version": version.0 }), || version.0.to_string())
}

/// A `cas` that did not happen: on a mismatch, print what is there now.
async fn lost(files: &Files, args: &CasArgs, error: upload::Error, output: Output) -> CliResult {
    let current = match error {
        upload::Error::Call(Failure::Refused(Refusal::VersionMismatch { current })) => current,
        upload::Error::Call(Failure::Refused(Refusal::NameTaken)) => {
            let now = files.resolve(args.path.as_str()).await;
            now.map_err(|failure| CliError::call("cas", args.path.as_str(), &failure))?.version
        }
        other => return Err(other.said("cas", &args.path)),
    };
    show_version(output, &args.path, current)?;
    let (path, wanted, current) = (&args.path, args.version, current.0);
    Err(CliError::new(
        Exit::VersionMismatch,
        match (wanted, current) {
            (_, 0) => format!("cannot cas {path}: it does not exist, and version {wanted} was expected"),
            (0, _) => {
                format!("cannot cas {path}: it exists with version {current}, and version 0 means that it must not")
            }
            _ => format!("cannot cas {path}: its version is {current}, not {wanted}: someone was faster"),
        },
    ))
}

/// `keelfs rm`
pub async fn rm(args: RmArgs, output: Output) -> CliResult {
    let files = Files::connect(&Remote::new(&args.at.remote)?).await?;
    let result = remove(&files, &args.at.path, args.directory).await;
    files.close().await;
    result?;
    if output.json {
        output.show(&json!({ "path": args.at.path.as_str(), "removed": true }), String::new)
    } else {
        Ok(())
    }
}

async fn remove(files: &Files, path: &TreePath, directory: bool) -> CliResult {
    let failed = |failure: Failure| CliError::call("remove", path.as_str(), &failure);
    let (parent, name) = upload::place(path, "remove")?;
    let parent = files.resolve(parent).await.map_err(failed)?.ino;
    let deadline = files.deadline();
    // Raced: the name came to mean another file meanwhile. Whichever is there now is the one that was meant.
    loop {
        let seen = files.resolve(path.as_str()).await.map_err(failed)?;
        let (name, expected) = (name.clone(), Some(seen.ino));
        let command = match seen.kind {
            FileKind::Directory if !directory => {
                let why = "is a directory; add --directory if it is empty and you mean it";
                return Err(CliError::failed(format!("cannot remove {path}: {why}")));
            }
            FileKind::Directory => Command::RemoveDirectory { parent, name, expected },
            _ => Command::Unlink { parent, name, expected },
        };
        match files.submit(command, Bytes::new()).await {
            Err(Failure::Refused(Refusal::Raced)) if Instant::now() < deadline => continue,
            result => return result.map(drop).map_err(failed),
        }
    }
}

/// `keelfs stat`
pub async fn stat(args: StatArgs, output: Output) -> CliResult {
    let files = Files::connect(&Remote::new(&args.at.remote)?).await?;
    let path = &args.at.path;
    let failed = |failure: Failure| CliError::call("stat", path.as_str(), &failure);
    let file = files.resolve(path.as_str()).await.map_err(failed)?;
    if args.version_only {
        return show_version(output, path, file.version);
    }
    let ttl = files.ttl(file.ino).await.map_err(failed)?;
    output.show(&stat_json(path, &file, ttl.as_deref()), || stat_text(path, &file, ttl.as_deref()))
}

fn stat_json(path: &TreePath, file: &Attributes, ttl: Option<&str>) -> serde_json::Value {
    json!({
        "path": path.as_str(), "kind": kind(file.kind), "ino": file.ino.0, "size": file.size,
        "allocated": file.allocated, "mode": format!("{:04o}", file.mode), "nlink": file.nlink,
        "uid": file.uid, "gid": file.gid, "version": file.version.0, "change": file.change.0,
        "ttl_seconds": ttl.and_then(|seconds| seconds.parse::<u64>().ok()),
        "mtime": rfc3339(file.mtime), "ctime": rfc3339(file.ctime), "btime": rfc3339(file.btime),
    })
}

fn stat_text(path: &TreePath, file: &Attributes, ttl: Option<&str>) -> String {
    let ttl = ttl.map_or("for ever".into(), |seconds| format!("{seconds} s left"));
    [
        format!("path     {path}"),
        format!("kind     {}, {} bytes", kind(file.kind), file.size),
        format!("version  {}", file.version.0),
        format!("change   {}", file.change.0),
        format!("expiry   {ttl}"),
        format!("mode     {:04o}, uid {}, gid {}, {} links", file.mode, file.uid, file.gid, file.nlink),
        format!("modified {}", rfc3339(file.mtime)),
        format!("inode    {}", file.ino.0),
    ]
    .join("\n")
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symbolic link",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

fn rfc3339(time: Timestamp) -> String {
    let since = std::time::Duration::new(time.seconds.unsigned_abs(), if time.seconds < 0 { 0 } else { time.nanos });
    let at = match time.seconds {
        0.. => std::time::UNIX_EPOCH.checked_add(since),
        _ => None,
    };
    match at {
        // humantime prints the years 1970 to 9999.
        Some(at) if time.seconds < 253_402_300_800 => humantime::format_rfc3339_millis(at).to_string(),
        _ => format!("{} s since 1970", time.seconds),
    }
}

/// `keelfs ttl`
pub async fn ttl(args: TtlArgs, output: Output) -> CliResult {
    let files = Files::connect(&Remote::new(&args.at.remote)?).await?;
    let result = show_or_set_ttl(&files, &args, output).await;
    files.close().await;
    result
}

async fn show_or_set_ttl(files: &Files, args: &TtlArgs, output: Output) -> CliResult {
    let path = args.at.path.as_str();
    let tried = if args.duration.is_some() { "set the expiry of" } else { "read the expiry of" };
    let failed = |failure: Failure| CliError::call(tried, path, &failure);
    let ino = files.resolve(path).await.map_err(failed)?.ino;
    if let Some(ttl) = args.duration {
        let command = Command::SetExpiry { ino, expiry: expiry(Some(ttl)) };
        files.submit(command, Bytes::new()).await.map_err(failed)?;
    }
    let left = files.ttl(ino).await.map_err(failed)?;
    let seconds = left.as_deref().and_then(|seconds| seconds.parse::<u64>().ok());
    output.show(&json!({ "path": path, "ttl_seconds": seconds }), || left.unwrap_or_else(|| "none".into()))
}

/// Give the root directory, which a new tree has for root, to the user who runs us: an ordinary user who started a cluster
/// is to be able to use its mount.
pub async fn own_the_root(remote: &Remote) -> CliResult {
    let files = Files::connect(remote).await?;
    let failed = |failure: Failure| CliError::call("take over", "/", &failure);
    let root = files.resolve("/").await.map_err(failed)?;
    if root.uid == 0 {
        let Credentials { uid, gid } = own_credentials();
        let changes = AttributeChanges { uid: Some(uid), gid: Some(gid), ..AttributeChanges::default() };
        files.submit(Command::SetAttributes { ino: root.ino, changes }, Bytes::new()).await.map_err(failed)?;
    }
    files.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ttl_above_zero_sets_an_expiry() {
        assert_eq!(expiry(Some(Ttl { ns: 5 })), ExpiryChange::After { ns: 5 });
        assert_eq!(expiry(Some(Ttl { ns: 0 })), ExpiryChange::Clear);
        assert_eq!(expiry(None), ExpiryChange::Clear);
    }

    #[test]
    fn times_print_whatever_they_are() {
        assert_eq!(rfc3339(Timestamp { seconds: 0, nanos: 1_000_000 }), "1970-01-01T00:00:00.001Z");
        for seconds in [i64::MIN, -1, i64::MAX, 253_402_300_800] {
            assert_eq!(rfc3339(Timestamp { seconds, nanos: 999_999_999 }), format!("{seconds} s since 1970"));
        }
    }
}
