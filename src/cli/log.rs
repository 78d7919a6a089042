//! `keelfs log`: what stands in the log of a node that is stopped. For those who want to know what happened.

use crate::cli::args::LogArgs;
use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::output::{Output, raw};
use crate::log::untouched::UntouchedDisk;
use crate::log::{Body, DirectoryLock, Entry, Log, Options, StorageError, Threading};
use crate::node::{DataDirectory, NodeError};
use crate::raft::{Recorded, recorded};
use serde_json::{Value, json};
use std::sync::Arc;

/// Entries are read in pieces of this many bytes.
const PIECE_BYTES: usize = 8 << 20;
/// Fields of commands that hold bytes; shown as text, with escapes for what is none.
const BYTES_FIELDS: [&str; 4] = ["name", "target", "value", "acl"];

/// `keelfs log`
pub fn log(args: LogArgs, output: Output) -> CliResult {
    let directory = DataDirectory::open(&args.data)?;
    let _stopped = DirectoryLock::acquire(&directory.path).map_err(stored)?;
    let log = open(&directory)?;
    let committed = log.committed().map(|id| id.index);
    let end =
        log.state().last.map_or(0, |last| last.index + 1).min(args.to.map_or(u64::MAX, |to| to.saturating_add(1)));
    let mut next = args.from.max(log.state().last_purged.map_or(0, |purged| purged.index + 1));
    while next < end {
        let entries = log.entries(next, end, PIECE_BYTES, args.body > 0).map_err(stored)?;
        let Some(last) = entries.last() else { break };
        next = last.id.index + 1;
        let lines: Vec<String> =
            entries.iter().map(|entry| line(entry, committed, &args, output)).collect::<CliResult<_>>()?;
        if !raw(lines.concat().as_bytes())? {
            break;
        }
    }
    Ok(())
}

fn stored(error: StorageError) -> CliError {
    NodeError::from(error).into()
}

/// As the node would find it when it starts, without a byte of it changed.
fn open(directory: &DataDirectory) -> CliResult<Log> {
    let disk = UntouchedDisk::open(&directory.log()).tried(|| format!("cannot read {}", directory.log().display()))?;
    let options = Options { threading: Threading::Pumped, cache_bytes: 0, ..Options::default() };
    Log::open_on(Arc::new(disk), options).map_err(stored)
}

fn line(entry: &Entry, committed: Option<u64>, args: &LogArgs, output: Output) -> CliResult<String> {
    let id = entry.id;
    let recorded = recorded(&entry.command).tried(|| format!("cannot read entry {}", id.index))?;
    let (length, body) = body(&entry.body, args.body);
    if !output.json {
        let body = if body.is_empty() { body } else { format!("  {body}") };
        return Ok(format!("{:>8}  {}.{}  {}  +{length}{body}\n", id.index, id.term, id.node, text(&recorded)));
    }
    let mut object = json!({
        "index": id.index, "term": id.term, "node": id.node, "body_bytes": length,
        "known_committed": committed.is_some_and(|committed| id.index <= committed),
    });
    if args.body > 0 {
        object["body"] = body.into();
    }
    describe(&mut object, &recorded).tried(|| format!("cannot print entry {}", id.index))?;
    Ok(format!("{object}\n"))
}

/// Length of a body in bytes, and the first of them in hexadecimal.
fn body(body: &Body, shown: u32) -> (usize, String) {
    match body {
        Body::Absent(length) => (*length as usize, String::new()),
        Body::Bytes(bytes) => {
            let shown = bytes.iter().take(shown as usize);
            (bytes.len(), shown.map(|byte| format!("{byte:02x}")).collect())
        }
    }
}

fn text(recorded: &Recorded) -> String {
    match recorded {
        Recorded::Blank => "blank".into(),
        Recorded::Membership(members) => format!("{members:?}"),
        Recorded::Command(stamped) => {
            let request = &stamped.request;
            format!("{}.{}  {:?}", request.session.0, request.sequence.0, request.command)
        }
    }
}

fn describe(object: &mut Value, recorded: &Recorded) -> serde_json::Result<()> {
    match recorded {
        Recorded::Blank => object["kind"] = "blank".into(),
        Recorded::Membership(members) => {
            object["kind"] = "membership".into();
            object["members"] = serde_json::to_value(members)?;
        }
        Recorded::Command(stamped) => {
            let request = &stamped.request;
            object["kind"] = "command".into();
            object["cluster_ns"] = stamped.cluster.0.into();
            object["wall"] = serde_json::to_value(stamped.wall)?;
            object["session"] = request.session.0.into();
            object["sequence"] = request.sequence.0.into();
            object["first_outstanding"] = request.first_outstanding.0.into();
            object["credentials"] = serde_json::to_value(request.credentials)?;
            // Numbers of more than 64 bits are none in JSON.
            let command = serde_json::to_value(&request.command);
            object["command"] = command.unwrap_or_else(|_| format!("{:?}", request.command).into());
            readable(&mut object["command"]);
        }
    }
    Ok(())
}

/// Turn the bytes of names and the like into text.
fn readable(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (field, value) in fields {
        let bytes: Option<Vec<u8>> = match value {
            Value::Array(items) if BYTES_FIELDS.contains(&field.as_str()) => {
                items.iter().map(|item| item.as_u64().and_then(|byte| byte.try_into().ok())).collect()
            }
            _ => None,
        };
        match bytes {
            Some(bytes) => *value = bytes.escape_ascii().to_string().into(),
            None => readable(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Command, Ino, Name, Place, RenameMode};

    #[test]
    fn names_are_printed_as_text_wherever_they_stand() {
        let place = |name: &[u8]| Place { parent: Ino(1), name: Name::new(name).unwrap() };
        let (from, to) = (place(b"a b"), place(b"\xff\n"));
        let rename = Command::Rename { from, to, mode: RenameMode::Replace, moved: None, replaced: None };
        let mut value = serde_json::to_value(rename).unwrap();
        readable(&mut value);
        assert_eq!(value["Rename"]["from"]["name"], "a b");
        assert_eq!(value["Rename"]["to"]["name"], r"\xff\n");
        let mut value = serde_json::to_value(Command::KeepAlive { closed: vec![Ino(7)] }).unwrap();
        readable(&mut value);
        assert_eq!(value["KeepAlive"]["closed"], json!([7]), "numbers stay numbers");
    }
}
