//! The second judge: the committed log itself, as `keelfs log` prints it of each stopped node.
//!
//! All nodes hold one content at one index. Requests are replayed by session and sequence, each takes effect once; the
//! entries that clients caused stand in the order of time, and what reads saw lies between. Linear in the length of the
//! log, where the other judge searches; but it trusts the log, which the other does not.
//!
//! Of a log that has given its beginning to a snapshot, only some can be judged: what began after a client had seen a version
//! of the entries that are left. All requests of such a call, also repeated ones, are among these.

use crate::history::{Answer, Call, History, Nanos, Op};
use crate::workload::against_time;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Bytes of each body that are looked at: a register's value, or the number of an appended record.
const BODY_BYTES: usize = 32;
/// How long a session lives that is not heard from, in cluster time.
const SESSION_TTL_NS: u64 = keelfs::limits::SESSION_TTL_NS;
/// Values below this are none of a register's: clients have numbers from 100 on.
const VALUE_MIN: u64 = 100 << 32;

/// The log of one node, by index, as it was printed.
pub type Printed = BTreeMap<u64, String>;

pub fn print(binary: &Path, data: &Path) -> Result<Printed, String> {
    let mut command = Command::new(binary);
    command.args(["log", "--json", "--body", &BODY_BYTES.to_string()]).arg(data);
    let output = command.output().map_err(|e| format!("cannot run keelfs log: {e}"))?;
    if !output.status.success() {
        return Err(format!("keelfs log {}: {}", data.display(), String::from_utf8_lossy(&output.stderr).trim()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(numbered).collect()
}

/// What is known to be committed differs from node to node.
fn numbered(line: &str) -> Result<(u64, String), String> {
    let mut value: Value =
        serde_json::from_str(line).map_err(|e| format!("keelfs log printed no JSON: {e}: {line}"))?;
    let index = value["index"].as_u64().ok_or_else(|| format!("an entry without an index: {line}"))?;
    value["known_committed"] = Value::Null;
    Ok((index, value.to_string()))
}

/// Up to `agreed`, which all nodes had applied, no two logs differ in an entry that both have.
pub fn compare(logs: &[(u64, Printed)], agreed: u64) -> Vec<String> {
    let mut seen: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (node, log) in logs {
        for (index, line) in log.range(..=agreed) {
            let (first, content) = *seen.entry(*index).or_insert((*node, line));
            if content != line {
                wrong.push(format!("entry {index} has two contents: node {first}: {content}; node {node}: {line}"));
                break;
            }
        }
    }
    wrong
}

/// What the entries did to registers and appended records.
#[derive(Default)]
struct Replay {
    /// The first entry that is left, if others were in front of it.
    begins_at: Option<u64>,
    /// By session opened in front of that: requests from here on are none that stood there too.
    sure_from: BTreeMap<u64, u64>,
    sessions: BTreeMap<u64, Session>,
    ended: BTreeSet<u64>,
    cluster_ns: u64,
    /// Version and value of each inode that was written.
    versions: BTreeMap<u64, u64>,
    /// Where each value was written, and what index overwrote it.
    values: BTreeMap<u64, (u64, Option<u64>)>,
    current: BTreeMap<u64, u64>,
    records: BTreeMap<String, u64>,
    /// Values of which it is not known whether they were written where they stand.
    doubtful: BTreeSet<u64>,
    wrong: Vec<String>,
    repeated: usize,
}

/// What a log says of a history.
#[derive(Default)]
pub struct Verdict {
    pub wrong: Vec<String>,
    /// Requests that came more than once.
    pub repeated: usize,
    /// Where the log begins, if that is not its beginning.
    pub begins_at: Option<u64>,
    /// Calls that were held against it.
    pub judged: usize,
}

#[derive(Default)]
struct Session {
    last_seen: u64,
    first_outstanding: u64,
    done: BTreeMap<u64, String>,
}

pub fn check(log: &Printed, agreed: u64, history: &History) -> Verdict {
    let begins_at = log.keys().next().copied().filter(|first| *first > 1);
    let mut replay = Replay { begins_at, ..Replay::default() };
    let mut entries = Vec::new();
    for (index, line) in log.range(..=agreed) {
        match serde_json::from_str::<Value>(line) {
            Ok(entry) => entries.push((*index, entry)),
            Err(error) => replay.wrong.push(format!("entry {index} is no JSON: {error}")),
        }
    }
    let reached = reached(begins_at, history);
    let judged: Vec<&Op> = history.ops.iter().filter(|op| op.begin >= reached).collect();
    if begins_at.is_some() {
        replay.sure_from = sure_from(&entries, &judged);
    }
    entries.iter().for_each(|(index, entry)| replay.entry(*index, entry));
    replay.judge(&judged);
    Verdict { wrong: replay.wrong, repeated: replay.repeated, begins_at, judged: judged.len() }
}

/// Of each session the first request of these calls: it numbers its requests as they come, so all from there on are as
/// young, and no repetitions of what stood in front of the log.
fn sure_from(entries: &[(u64, Value)], judged: &[&Op]) -> BTreeMap<u64, u64> {
    let values: BTreeSet<u64> = judged.iter().filter_map(|op| written_by(op)).collect();
    let records: BTreeSet<&str> = judged.iter().filter_map(|op| appended_by(op)).collect();
    let mut first = BTreeMap::new();
    for (_, entry) in entries {
        let body = unhex(entry["body"].as_str().unwrap_or_default());
        let is_young = register_value(&body).is_some_and(|value| values.contains(&value))
            || record(&body).is_some_and(|record| records.contains(record));
        if let (Some(session), Some(sequence)) = (entry["session"].as_u64(), entry["sequence"].as_u64())
            && is_young
        {
            let known = first.entry(session).or_insert(sequence);
            *known = sequence.min(*known);
        }
    }
    first
}

/// When the log had certainly reached the entry that is the first that is left.
fn reached(begins_at: Option<u64>, history: &History) -> Nanos {
    let Some(first) = begins_at else { return 0 };
    let seen = |op: &Op| match op.answer() {
        Some(Answer::Value(_, Some(version))) => *version >= first,
        _ => false,
    };
    history.ops.iter().filter(|op| seen(op)).map(Op::ended).min().unwrap_or(Nanos::MAX)
}

impl Replay {
    fn entry(&mut self, index: u64, entry: &Value) {
        if entry["kind"] != "command" {
            return;
        }
        let number = |field: &str| entry[field].as_u64().unwrap_or_default();
        let (session, sequence) = (number("session"), number("sequence"));
        self.cluster_ns = self.cluster_ns.max(number("cluster_ns"));
        let command = &entry["command"];
        if session == 0 {
            return self.without_session(index, command);
        }
        let now = self.cluster_ns;
        if self.begins_at.is_some_and(|first| session < first) && !self.ended.contains(&session) {
            self.sessions.entry(session).or_default();
        }
        // Of a session that has ended nothing is carried out.
        let Some(known) = self.sessions.get_mut(&session) else { return };
        known.last_seen = now;
        known.first_outstanding = known.first_outstanding.max(number("first_outstanding"));
        if sequence < known.first_outstanding {
            return;
        }
        let text = command.to_string();
        if let Some(before) = known.done.insert(sequence, text.clone()) {
            self.repeated += 1;
            if before != text {
                self.wrong.push(format!("request {session}.{sequence} is first {before} and at {index} {text}"));
            }
            return;
        }
        if command == "CloseSession" {
            self.end(session);
        }
        let bytes = unhex(entry["body"].as_str().unwrap_or_default());
        match self.begins_at.is_none_or(|first| session >= first)
            || self.sure_from.get(&session).is_some_and(|from| sequence >= *from)
        {
            true => self.carry_out(index, command, &bytes),
            false => self.carry_out_perhaps(command, &bytes),
        }
    }

    fn without_session(&mut self, index: u64, command: &Value) {
        if command.get("OpenSession").is_some() {
            self.sessions.insert(index, Session { last_seen: self.cluster_ns, ..Session::default() });
        }
        if let Some(end) = command.get("EndSession") {
            let (session, seen) = (end["session"].as_u64().unwrap_or_default(), end["last_seen"].as_u64());
            let silent = |known: &Session| {
                Some(known.last_seen) == seen && known.last_seen.saturating_add(SESSION_TTL_NS) <= self.cluster_ns
            };
            // One that was opened in front of the log and is silent in it may have ended or not, and sends nothing more.
            let is_forgotten = self.begins_at.is_some_and(|first| session < first);
            if self.sessions.get(&session).map_or(is_forgotten, silent) {
                self.end(session);
            }
        }
    }

    fn end(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.ended.insert(session);
    }

    /// A request that may have stood in front of the log as well: what it was to change is not known until the next one.
    fn carry_out_perhaps(&mut self, command: &Value, bytes: &[u8]) {
        let fields = command.as_object().and_then(|object| object.values().next());
        let Some(ino) = fields.and_then(|fields| fields["ino"].as_u64()) else { return };
        self.versions.remove(&ino);
        self.current.remove(&ino);
        self.doubtful.extend(register_value(bytes));
    }

    fn carry_out(&mut self, index: u64, command: &Value, bytes: &[u8]) {
        let Some((verb, fields)) = command.as_object().and_then(|object| object.iter().next()) else { return };
        let Some(ino) = fields["ino"].as_u64() else { return };
        match verb.as_str() {
            "Replace" if self.begins_at.is_some() && !self.versions.contains_key(&ino) => {
                self.doubtful.extend(register_value(bytes));
            }
            "Replace" if self.versions.get(&ino).copied().unwrap_or(0) != fields["expected"].as_u64().unwrap_or(0) => {}
            "Write" | "Replace" => self.written(index, ino, register_value(bytes)),
            "Append" => {
                self.versions.insert(ino, index);
                if let Some(record) = record(bytes)
                    && let Some(before) = self.records.insert(record.into(), index)
                {
                    self.wrong.push(format!("record {record} was appended at {before} and again at {index}"));
                }
            }
            _ => {}
        }
    }

    fn written(&mut self, index: u64, ino: u64, value: Option<u64>) {
        self.versions.insert(ino, index);
        if let Some(before) = self.current.remove(&ino)
            && let Some((_, overwritten)) = self.values.get_mut(&before)
        {
            *overwritten = Some(index);
        }
        let Some(value) = value.filter(|value| *value >= VALUE_MIN) else { return };
        self.current.insert(ino, value);
        if let Some((before, _)) = self.values.insert(value, (index, None)) {
            self.wrong.push(format!("value {value:x} was written at {before} and again at {index}"));
        }
    }

    fn judge(&mut self, judged: &[&Op]) {
        let mut by_index: BTreeMap<u64, &Op> = BTreeMap::new();
        let mut wrong = Vec::new();
        for op in judged {
            let index = match &op.call {
                Call::Cas { value, .. } if self.doubtful.contains(value) => continue,
                Call::Write { value, .. } | Call::Cas { value, .. } => self.values.get(value).map(|(index, _)| *index),
                Call::Append { record, .. } => self.records.get(record).copied(),
                _ => continue,
            };
            let refused = op.failed() || op.answer() == Some(&Answer::Refused);
            match index {
                Some(index) if refused => wrong.push(format!("entry {index} carried out what was refused: {op:?}")),
                Some(index) => drop(by_index.insert(index, op)),
                None if op.answer().is_some() && !refused => wrong.push(format!("not in the log: {op:?}")),
                None => {}
            }
        }
        if let Some((before, after)) = against_time(by_index.values().copied()) {
            wrong.push(format!("{after:?} had ended before {before:?} began, and stands behind it in the log"));
        }
        let later: BTreeSet<u64> = judged.iter().filter_map(|op| written_by(op)).collect();
        let reads = judged.iter().filter_map(|op| self.misread(op, &by_index, &later));
        wrong.extend(reads);
        self.wrong.extend(wrong);
    }

    /// A read that saw a value before it was written, or after another write had ended.
    fn misread(&self, read: &Op, by_index: &BTreeMap<u64, &Op>, later: &BTreeSet<u64>) -> Option<String> {
        let Some(Answer::Value(value, version)) = read.answer() else { return None };
        if *value < VALUE_MIN || self.doubtful.contains(value) {
            return None;
        }
        let Some((index, overwritten)) = self.values.get(value) else {
            // It may stand in front of the log, unless the call that wrote it began behind that.
            if self.begins_at.is_some() && !later.contains(value) {
                return None;
            }
            return Some(format!("the log has not what this read saw: {read:?}"));
        };
        if version.is_some_and(|version| version != *index) {
            return Some(format!("the value was written at {index}: {read:?}"));
        }
        let writer = by_index.get(index).filter(|writer| writer.begin > read.ended());
        let next = overwritten.and_then(|next| by_index.get(&next)).filter(|next| next.ended() < read.begin);
        let early = writer.map(|writer| format!("{read:?} saw what {writer:?} was yet to write"));
        early.or_else(|| next.map(|next| format!("{read:?} saw what {next:?} had overwritten")))
    }
}

fn written_by(op: &Op) -> Option<u64> {
    match &op.call {
        Call::Write { value, .. } | Call::Cas { value, .. } => Some(*value),
        _ => None,
    }
}

fn appended_by(op: &Op) -> Option<&str> {
    match &op.call {
        Call::Append { record, .. } => Some(record),
        _ => None,
    }
}

/// The number in front of an appended record. The names of large contents are none.
fn record(bytes: &[u8]) -> Option<&str> {
    let first = std::str::from_utf8(bytes.split(|byte| *byte == b' ').next()?).ok()?;
    first.parse::<u64>().is_ok().then_some(first)
}

fn register_value(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes.get(..16)?).ok().filter(|_| bytes.len() == 16)?;
    u64::from_str_radix(text, 16).ok()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len() / 2).filter_map(|at| digits(at * 2)).collect()
}
