//! Client programs: each does one operation after another on files that all share, and writes down what it saw.

use crate::diary::Acknowledged;
pub use crate::diary::Diary;
use crate::diary::{NameInput, NameOutput, Pages};
use crate::lockers;
use crate::network::TICK_MS;
use crate::os::{self, Dice};
use crate::register::{Input, Output};
use bytes::Bytes;
use keelfs::fs::{
    Answer, Attributes, Command, Credentials, Expected, ExpiryChange, Ino, LogIndex, Name, NewNode, Query, Refusal,
    Reply,
};
use keelfs::volume::{Failure, Freshness, Volume};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const REGISTERS: u64 = 4;
const SLOTS: u64 = 3;
const STABLE_NAMES: u64 = 7;
/// Names at one answer: a walk takes several.
const WALK_STEP: u32 = 3;
/// Clocks may be fast or slow by half a percent each; deadlines are compared with a margin for that.
const DRIFT_MARGIN_PERCENT: u64 = 2;
pub const GRAIN_MS: u64 = 30;
/// How long the last operations may take, once nothing is wrong any more.
const LAST_CALL: Duration = Duration::from_secs(30);

/// So many programs, and one more that takes locks if this run has any.
pub fn start(volume: &Volume, first: u64, count: u64, diary: &Diary, dice: &Dice) {
    for number in first..first + count {
        diary.with(|pages| pages.clients.insert(number));
        let client = Client {
            number,
            volume: volume.clone(),
            diary: diary.clone(),
            dice: Dice::new(dice.clone().any(), number),
            versions: BTreeMap::new(),
            inodes: BTreeMap::new(),
            log: None,
            directory: None,
            mine: None,
        };
        tokio::spawn(client.run());
    }
    if diary.with(|pages| pages.locks) {
        lockers::start(volume, first + count, diary, dice);
    }
}

struct Client {
    number: u64,
    volume: Volume,
    diary: Diary,
    dice: Dice,
    /// Of registers, as last seen.
    versions: BTreeMap<u64, u64>,
    /// Of slots, as last seen: may be out of date, on purpose.
    inodes: BTreeMap<u64, u64>,
    log: Option<Ino>,
    directory: Option<Ino>,
    mine: Option<Expiring>,
}

/// A file that ends by itself, which only this client touches.
struct Expiring {
    name: String,
    version: LogIndex,
    ttl_ms: u64,
    /// Not before this.
    earliest_ms: u64,
    gone: bool,
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"))
}

pub fn put(file: &str, expected: Expected, expiry: ExpiryChange, body: &Bytes) -> Command {
    let length = body.len() as u32;
    Command::Put { parent: Ino::ROOT, name: name(file), expected, expiry, mode: 0o644, length }
}

impl Client {
    async fn run(mut self) {
        while !self.diary.with(|pages| pages.last_call) {
            let pause = if self.dice.chance(10) { 1500 } else { 120 };
            sleep(Duration::from_millis(3 * TICK_MS + self.dice.below(pause))).await;
            let within = Duration::from_millis(*self.dice.pick(&[1500, 4000, 4000, 12_000]));
            self.operation(within).await;
        }
        sleep(Duration::from_millis(3 * TICK_MS)).await;
        let done = self.write(self.number % REGISTERS, None, LAST_CALL).await;
        sleep(Duration::from_millis(3 * TICK_MS)).await;
        let mut read = true;
        for register in 0..REGISTERS {
            read &= self.read(register, LAST_CALL).await;
            sleep(Duration::from_millis(3 * TICK_MS)).await;
        }
        read &= self.read_log(LAST_CALL).await;
        if done && read {
            self.diary.with(|pages| pages.finished.insert(self.number));
        }
    }

    async fn operation(&mut self, within: Duration) {
        let register = if self.dice.chance(60) { 0 } else { self.dice.below(REGISTERS) };
        let kind = self.dice.below(100);
        self.diary.trace.note("operation", &[self.number, kind]);
        match kind {
            0..22 => _ = self.read(register, within).await,
            22..34 => _ = self.write(register, None, within).await,
            34..50 => {
                // Mostly by what is true now, in the company of others who know it too.
                if self.dice.chance(70) && self.read(register, within).await {
                    sleep(Duration::from_millis(3 * TICK_MS)).await;
                }
                let expected = self.versions.get(&register).copied();
                let _ = self.write(register, expected, within).await;
            }
            50..62 => self.append(within).await,
            62..68 => _ = self.read_log(within).await,
            68..84 => self.name(within).await,
            84..88 => self.walk(within).await,
            _ => self.expiring(within).await,
        }
    }

    async fn submit(&self, command: Command, body: Bytes, within: Duration) -> Result<Reply, Failure> {
        self.volume.submit(Credentials::default(), command, body, Instant::now() + within).await
    }

    async fn lookup(&self, parent: Ino, file: &str, within: Duration) -> Result<Option<Attributes>, Failure> {
        let query = Query::Lookup { parent, name: name(file) };
        match self.volume.query(query, Instant::now() + within).await {
            Ok(Answer::Attributes(attributes)) => Ok(Some(attributes)),
            Err(Failure::Refused(Refusal::NoSuchName)) => Ok(None),
            Ok(other) => self.wrong(format!("looking up {file} was answered with {other:?}")),
            Err(failure) => Err(failure),
        }
    }

    /// Write down what must not be.
    fn wrong<T>(&self, what: String) -> Result<T, Failure> {
        let line = format!("client {} at {} ms: {what}", self.number, os::now_ms());
        self.diary.with(|pages| pages.seen_wrong.push(line));
        Err(Failure::Unknown)
    }

    fn acknowledged(&self, index: LogIndex, body: &Bytes) {
        let acknowledged = Acknowledged { client: self.number, index: index.0, body_sum: crc32c::crc32c(body) };
        self.diary.with(|pages| pages.acknowledged.push(acknowledged));
    }

    async fn read(&mut self, register: u64, within: Duration) -> bool {
        let begun = self.diary.with(|pages| pages.registers.begin(register, self.number, Input::Read));
        let seen = self.read_value(register, within).await;
        self.diary.with(|pages| match &seen {
            Ok((value, version)) => pages.registers.end(begun, Output::Value(*value, *version)),
            Err(_) => pages.registers.void(begun),
        });
        if let Ok((_, Some(version))) = seen {
            self.versions.insert(register, version);
        }
        seen.is_ok()
    }

    async fn read_value(&self, register: u64, within: Duration) -> Result<(u64, Option<u64>), Failure> {
        let Some(attributes) = self.lookup(Ino::ROOT, &format!("r{register}"), within).await? else {
            return Ok((0, None));
        };
        let deadline = Instant::now() + within;
        let read = self.volume.read_as(attributes.ino, 0, 1 << 20, Freshness::Linearizable, deadline).await;
        let (head, bytes) = match read {
            Ok(read) => read,
            Err(Failure::Refused(refusal)) => return self.wrong(format!("reading r{register} was refused: {refusal}")),
            Err(failure) => return Err(failure),
        };
        match content_value(&bytes) {
            Some(value) if head.size == bytes.len() as u64 => Ok((value, Some(head.version.0))),
            _ => self.wrong(format!("r{register} holds {} bytes that nobody wrote", bytes.len())),
        }
    }

    async fn write(&mut self, register: u64, expected: Option<u64>, within: Duration) -> bool {
        let value = self.dice.any() | 1;
        let size = if self.dice.chance(5) { 70_000 } else { self.dice.below(1500) };
        let body = content(value, size as usize);
        let input = match expected {
            None => Input::Write(value),
            Some(expected) => Input::Cas { expected, new: value },
        };
        let begun = self.diary.with(|pages| pages.registers.begin(register, self.number, input));
        let demand = expected.map_or(Expected::Anything, |version| Expected::Version(LogIndex(version)));
        let command = put(&format!("r{register}"), demand, ExpiryChange::Keep, &body);
        let output = match self.submit(command, body.clone(), within).await {
            Ok(Reply::Attributes(attributes)) => {
                self.acknowledged(attributes.version, &body);
                self.versions.insert(register, attributes.version.0);
                Some(Output::Written(Some(attributes.version.0)))
            }
            Err(Failure::Refused(Refusal::VersionMismatch { current })) => {
                self.versions.insert(register, current.0);
                Some(Output::Mismatch(Some(current.0)))
            }
            Err(Failure::NoMajority) => {
                self.diary.with(|pages| pages.registers.void(begun));
                return false;
            }
            Err(Failure::Refused(Refusal::NoSpace)) => {
                self.diary.with(|pages| pages.registers.void(begun));
                return false;
            }
            Ok(_) | Err(Failure::Refused(_)) => {
                let _ = self.wrong::<()>(format!("writing r{register} was refused"));
                None
            }
            Err(_) => None,
        };
        let done = output.is_some();
        if let Some(output) = output {
            self.diary.with(|pages| pages.registers.end(begun, output));
        }
        done
    }

    /// The file that everyone appends to.
    async fn log_file(&mut self, within: Duration) -> Option<Ino> {
        if self.log.is_none() {
            let made = self.submit(
                put("log", Expected::Version(LogIndex(0)), ExpiryChange::Keep, &Bytes::new()),
                Bytes::new(),
                within,
            );
            if matches!(made.await, Ok(_) | Err(Failure::Refused(Refusal::NameTaken))) {
                self.log = self.lookup(Ino::ROOT, "log", within).await.ok().flatten().map(|attributes| attributes.ino);
            }
        }
        self.log
    }

    async fn append(&mut self, within: Duration) {
        let Some(ino) = self.log_file(within).await else { return };
        let token = self.dice.any();
        let begun = self.diary.with(|pages| pages.appends.begin(0, self.number, token));
        let body = Bytes::copy_from_slice(&token.to_le_bytes());
        let done = self.submit(Command::Append { ino, length: 8 }, body.clone(), within).await;
        match done {
            Ok(Reply::Attributes(attributes)) => {
                self.acknowledged(attributes.version, &body);
                self.diary.with(|pages| pages.appends.end(begun, ()));
            }
            Err(Failure::NoMajority | Failure::Refused(Refusal::NoSpace)) => {
                self.diary.with(|pages| pages.appends.void(begun));
            }
            Ok(_) | Err(Failure::Refused(_)) => drop(self.wrong::<()>(format!("an append was answered with {done:?}"))),
            Err(_) => {}
        }
    }

    async fn read_log(&mut self, within: Duration) -> bool {
        let Some(ino) = self.log_file(within).await else { return false };
        let begun = self.diary.with(|pages| pages.append_reads.begin(0, self.number, ()));
        let read = self.volume.read(ino, 0, 1 << 22, Instant::now() + within).await;
        let Ok(bytes) = read else {
            self.diary.with(|pages| pages.append_reads.void(begun));
            return false;
        };
        let (tokens, torn) = bytes.as_chunks::<8>();
        if !torn.is_empty() {
            let _ = self.wrong::<()>(format!("the file of appends has {} bytes: one is torn", bytes.len()));
        }
        let tokens = tokens.iter().map(|token| u64::from_le_bytes(*token)).collect();
        self.diary.with(|pages| pages.append_reads.end(begun, tokens));
        true
    }

    /// A name that comes and goes, and is removed only by those who know what it means.
    async fn name(&mut self, within: Duration) {
        let slot = self.dice.below(SLOTS);
        let file = format!("n{slot}");
        let known = self.inodes.get(&slot).copied();
        let input = match (self.dice.below(10), known) {
            (0..3, _) => NameInput::Look,
            (3..7, Some(ino)) => NameInput::Unlink(ino),
            _ => NameInput::Make,
        };
        let begun = self.diary.with(|pages| pages.names.begin(slot, self.number, input.clone()));
        let output = match input {
            NameInput::Look => self.lookup(Ino::ROOT, &file, within).await.map(|found| match found {
                Some(attributes) => NameOutput::Inode(attributes.ino.0),
                None => NameOutput::Absent,
            }),
            NameInput::Make => {
                let node = NewNode::File;
                let make = Command::Make { parent: Ino::ROOT, name: name(&file), node, mode: 0o644, umask: 0 };
                name_output(self.submit(make, Bytes::new(), within).await)
            }
            NameInput::Unlink(ino) => {
                let unlink = Command::Unlink { parent: Ino::ROOT, name: name(&file), expected: Some(Ino(ino)) };
                name_output(self.submit(unlink, Bytes::new(), within).await)
            }
        };
        if let Ok(NameOutput::Inode(ino)) = output {
            self.inodes.insert(slot, ino);
        }
        let asked_only = input == NameInput::Look;
        self.diary.with(|Pages { names, .. }| match output {
            Ok(output) => names.end(begun, output),
            Err(Failure::NoMajority | Failure::Refused(Refusal::NoSpace)) => names.void(begun),
            Err(_) if asked_only => names.void(begun),
            Err(_) => {}
        });
    }

    /// Walk a directory in steps while names come and go in it: those that stay are seen once each.
    async fn walk(&mut self, within: Duration) {
        let Some(directory) = self.directory(within).await else { return };
        let passing = format!("passing-{}", self.dice.below(4));
        let change = match self.dice.chance(50) {
            true => {
                let node = NewNode::File;
                Command::Make { parent: directory, name: name(&passing), node, mode: 0o644, umask: 0 }
            }
            false => Command::Unlink { parent: directory, name: name(&passing), expected: None },
        };
        let (mut after, mut seen) = (0, Vec::new());
        let mut change = Some(change);
        loop {
            let query = Query::ReadDirectory { ino: directory, after, limit: WALK_STEP };
            let Ok(Answer::Directory { entries, .. }) = self.volume.query(query, Instant::now() + within).await else {
                return;
            };
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            seen.extend(entries.into_iter().map(|entry| entry.name.to_string()));
            if let Some(change) = change.take() {
                let _ = self.submit(change, Bytes::new(), within).await;
            }
        }
        let stable: Vec<&String> = seen.iter().filter(|name| name.starts_with("stable")).collect();
        let distinct: BTreeSet<_> = stable.iter().collect();
        if stable.len() as u64 != STABLE_NAMES || distinct.len() != stable.len() {
            let _ = self.wrong::<()>(format!("a walk saw {seen:?}, of {STABLE_NAMES} names that stay"));
        }
        self.diary.with(|pages| pages.walks += 1);
    }

    /// The directory of walks, with every name that stays.
    async fn directory(&mut self, within: Duration) -> Option<Ino> {
        if self.directory.is_none() {
            let make =
                |parent, file: &str, node| Command::Make { parent, name: name(file), node, mode: 0o755, umask: 0 };
            let there =
                |made: Result<Reply, Failure>| matches!(made, Ok(_) | Err(Failure::Refused(Refusal::NameTaken)));
            if !there(self.submit(make(Ino::ROOT, "d", NewNode::Directory), Bytes::new(), within).await) {
                return None;
            }
            let directory = self.lookup(Ino::ROOT, "d", within).await.ok()??.ino;
            for number in 0..STABLE_NAMES {
                let made =
                    self.submit(make(directory, &format!("stable-{number}"), NewNode::File), Bytes::new(), within);
                if !there(made.await) {
                    return None;
                }
            }
            self.directory = Some(directory);
        }
        self.directory
    }

    async fn expiring(&mut self, within: Duration) {
        match &self.mine {
            None => self.make_expiring(within).await,
            Some(mine) if !mine.gone && self.dice.chance(60) => self.renew(within).await,
            Some(_) => self.look_at_expiring(within).await,
        }
    }

    async fn make_expiring(&mut self, within: Duration) {
        let ttl_ms = self.dice.between(800, 4000);
        let file = format!("e-{}-{:x}", self.number, self.dice.any());
        let begin = os::now_ms();
        let body = content(1, 10);
        let command = put(&file, Expected::Version(LogIndex(0)), ExpiryChange::After { ns: ttl_ms * 1_000_000 }, &body);
        if let Ok(Reply::Attributes(attributes)) = self.submit(command, body.clone(), within).await {
            self.acknowledged(attributes.version, &body);
            self.mine = Some(Expiring { name: file, version: attributes.version, ttl_ms, earliest_ms: 0, gone: false });
            self.lives_from(begin);
        }
    }

    /// It was given its time at `begin` or later.
    fn lives_from(&mut self, begin: u64) {
        let Some(mine) = &mut self.mine else { return };
        let least = (mine.ttl_ms * (100 - DRIFT_MARGIN_PERCENT) / 100).saturating_sub(GRAIN_MS);
        mine.earliest_ms = mine.earliest_ms.max(begin + least);
        let (name, earliest) = (mine.name.clone(), mine.earliest_ms);
        self.diary.with(|pages| pages.expiring.insert(name, earliest));
    }

    /// Renew it, by preference in the moment in which it would end. By name and version: whoever succeeds knows that the
    /// name was still there.
    async fn renew(&mut self, within: Duration) {
        let Some(mine) = &self.mine else { return };
        let (file, version, ttl_ms) = (mine.name.clone(), mine.version, mine.ttl_ms);
        let end = mine.earliest_ms + mine.ttl_ms * DRIFT_MARGIN_PERCENT / 100 + GRAIN_MS;
        let at = (end + self.dice.below(400)).saturating_sub(250);
        if self.dice.chance(70) {
            sleep(Duration::from_millis(at.saturating_sub(os::now_ms()))).await;
        }
        let (begin, body) = (os::now_ms(), content(2, 10));
        let expiry = ExpiryChange::After { ns: ttl_ms * 1_000_000 };
        let command = put(&file, Expected::Version(version), expiry, &body);
        match self.submit(command, body.clone(), within).await {
            Ok(Reply::Attributes(attributes)) => {
                self.acknowledged(attributes.version, &body);
                self.has_version(attributes.version);
                self.lives_from(begin);
                self.diary.with(|pages| pages.renewals += 1);
                // Whoever was about to remove it does so now.
                sleep(Duration::from_millis(self.dice.below(300))).await;
                self.look_at_expiring(within).await;
            }
            Err(Failure::Refused(Refusal::NoSuchName)) => self.is_gone(),
            // An earlier renewal whose outcome nobody knew.
            Err(Failure::Refused(Refusal::VersionMismatch { current })) => self.has_version(current),
            // It may have been renewed: its end is later then, never earlier.
            _ => {}
        }
    }

    fn has_version(&mut self, version: LogIndex) {
        if let Some(mine) = &mut self.mine {
            mine.version = version;
        }
    }

    async fn look_at_expiring(&mut self, within: Duration) {
        let Some(mine) = &self.mine else { return };
        let (file, gone) = (mine.name.clone(), mine.gone);
        match self.lookup(Ino::ROOT, &file, within).await {
            Ok(None) if gone => {
                self.mine = None;
                self.diary.with(|pages| {
                    pages.expiries_seen += 1;
                    pages.expiring.remove(&file);
                });
            }
            Ok(None) => self.is_gone(),
            Ok(Some(_)) if gone => drop(self.wrong::<()>(format!("{file} had expired, and is there again"))),
            Ok(Some(_)) | Err(_) => {}
        }
    }

    fn is_gone(&mut self) {
        let Some(mine) = &mut self.mine else { return };
        mine.gone = true;
        let (file, earliest) = (mine.name.clone(), mine.earliest_ms);
        if os::now_ms() + TICK_MS < earliest {
            let _ = self.wrong::<()>(format!("{file} is gone before {earliest} ms"));
        }
    }
}

fn name_output(result: Result<Reply, Failure>) -> Result<NameOutput, Failure> {
    match result {
        Ok(Reply::Attributes(attributes)) => Ok(NameOutput::Inode(attributes.ino.0)),
        Ok(_) => Ok(NameOutput::Removed),
        Err(Failure::Refused(Refusal::NameTaken)) => Ok(NameOutput::Taken),
        Err(Failure::Refused(Refusal::NoSuchName)) => Ok(NameOutput::Absent),
        Err(Failure::Refused(Refusal::Raced)) => Ok(NameOutput::Raced),
        Err(failure) => Err(failure),
    }
}

/// A value, and bytes that follow from it: any wrong byte is seen.
fn content(value: u64, padding: usize) -> Bytes {
    let mut bytes = value.to_le_bytes().to_vec();
    let mut dice = Dice::new(value, 7);
    bytes.extend(std::iter::repeat_with(|| dice.any() as u8).take(padding));
    bytes.into()
}

fn content_value(bytes: &Bytes) -> Option<u64> {
    let value = u64::from_le_bytes(*bytes.first_chunk()?);
    (content(value, bytes.len() - 8) == bytes).then_some(value)
}
