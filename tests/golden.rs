//! Golden scripts: stories of the file system that a reader without Rust can follow and judge.
//!
//! A script is a text file under `tests/golden/`. A line that begins with `>` is a command; the lines below it are the
//! answer; everything else is prose. Each script starts from an empty tree with one session, `a`. After every command
//! all invariants of the state are tested. The language is the table of [`Script::run`].
//!
//! `KEELFS_BLESS=1 cargo test --test golden` writes the present answers into the files and then fails, so that it cannot
//! hide a change from anyone: read the diff before it is committed.

mod world;

use bytes::Bytes;
use keelfs::fs::*;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use world::{Client, SECOND_NS, WALL_START, World, acl};

#[test]
fn every_script_gets_the_answers_that_it_tells() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut scripts: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "script"));
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts");
    let bless = std::env::var_os("KEELFS_BLESS").is_some();
    let changed: Vec<_> = scripts.iter().filter(|path| !holds(path, bless)).collect();
    assert!(changed.is_empty(), "{} script(s) differ: {changed:?}", changed.len());
    assert!(!bless, "scripts were blessed: run again without KEELFS_BLESS");
}

/// Run one script; show, and on demand write, what differs.
fn holds(path: &Path, bless: bool) -> bool {
    let told = std::fs::read_to_string(path).unwrap();
    let found = replay(&told);
    if told == found {
        return true;
    }
    println!("--- {}\n{}", path.display(), difference(&told, &found));
    if bless {
        std::fs::write(path, found).unwrap();
    }
    false
}

/// The script as it should read: its commands and prose, with the answers that they really get.
fn replay(text: &str) -> String {
    let (mut script, mut found, mut in_answer) = (Script::new(), String::new(), false);
    for line in text.lines() {
        if let Some(command) = line.strip_prefix('>') {
            in_answer = true;
            let answer = script.run(&words(command));
            writeln!(found, "{line}\n{}", answer.trim_end()).unwrap();
        } else if line.is_empty() || line.starts_with('#') {
            in_answer = false;
            writeln!(found, "{line}").unwrap();
        } else {
            assert!(in_answer, "neither command, answer nor prose (prose begins with '#'): {line}");
        }
    }
    found
}

/// Line by line, with the lines that both have left out but for their nearest.
fn difference(told: &str, found: &str) -> String {
    let (told, found): (Vec<_>, Vec<_>) = (told.lines().collect(), found.lines().collect());
    let same_start = told.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let same_end = told[same_start..].iter().rev().zip(found[same_start..].iter().rev()).take_while(|(a, b)| a == b);
    let same_end = same_end.count();
    let context = told[..same_start].iter().rev().take(3).rev().map(|line| format!("  {line}"));
    let gone = told[same_start..told.len() - same_end].iter().map(|line| format!("- {line}"));
    let come = found[same_start..found.len() - same_end].iter().map(|line| format!("+ {line}"));
    context.chain(gone).chain(come).collect::<Vec<_>>().join("\n")
}

/// Split at spaces; `"…"` holds together, with Rust's escapes, and `"…"*n` repeats.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), line.trim());
    while !rest.is_empty() {
        let mut quoted = false;
        let mut escaped = false;
        let end = rest.find(|c: char| {
            quoted ^= c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            c == ' ' && !quoted
        });
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(word.to_owned());
        rest = behind.trim_start();
    }
    words
}

/// The bytes of `"text"` or `"text"*times`.
fn bytes(word: &str) -> Bytes {
    let (text, times) = match word.rsplit_once("\"*") {
        Some((text, times)) => (format!("{text}\""), number(times) as usize),
        None => (word.to_owned(), 1),
    };
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    unescape(text.unwrap_or_else(|| panic!("not in quotes: {word}"))).repeat(times).into()
}

fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match (byte, byte == b'\\') {
            (byte, false) => byte,
            _ => match rest.next() {
                Some(b'n') => b'\n',
                Some(b'0') => 0,
                Some(b'x') => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => other.unwrap(),
            },
        });
    }
    bytes
}

/// Bytes as a script shows them: long runs of one byte shortened.
fn shown(bytes: &[u8]) -> String {
    let (mut parts, mut plain) = (Vec::new(), Vec::new());
    for run in bytes.chunk_by(|a, b| a == b) {
        if run.len() < 8 {
            plain.extend(run);
            continue;
        }
        flush(&mut parts, &mut plain);
        parts.push(format!("\"{}\"*{}", run[..1].escape_ascii(), run.len()));
    }
    flush(&mut parts, &mut plain);
    if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") }
}

fn flush(parts: &mut Vec<String>, plain: &mut Vec<u8>) {
    if !plain.is_empty() {
        parts.push(format!("\"{}\"", plain.escape_ascii()));
        plain.clear();
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

fn version(word: &str) -> LogIndex {
    LogIndex(number(word.strip_prefix('v').unwrap_or_else(|| panic!("not a version: {word}"))))
}

fn duration(word: &str) -> u64 {
    words::parse_duration_ns(word.as_bytes()).unwrap_or_else(|_| panic!("not a duration: {word}"))
}

struct Script {
    world: World,
    clients: BTreeMap<String, Client>,
    current: String,
    /// Inodes that the script has open, by the name it gave them: `@name` where a path may stand.
    open: BTreeMap<String, Ino>,
    umask: u32,
    /// What the leader has decided to propose, and not yet proposed.
    decided: Vec<Command>,
    /// A request that is still on its way, with its bytes.
    delayed: Option<(Request, Bytes)>,
}

impl Script {
    fn new() -> Script {
        let mut world = World::new();
        let first = world.open_session("a");
        let clients = BTreeMap::from([("a".to_owned(), first)]);
        Script {
            world,
            clients,
            current: "a".to_owned(),
            open: BTreeMap::new(),
            umask: 0,
            decided: vec![],
            delayed: None,
        }
    }

    /// One command and its answer.
    fn run(&mut self, words: &[String]) -> String {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            // names
            ["mkdir", path, rest @ ..] => self.make(path, NewNode::Directory, rest, 0o755),
            ["create", path, rest @ ..] => self.make(path, NewNode::File, rest, 0o644),
            ["mkfifo", path] => self.make(path, NewNode::Fifo, &[], 0o644),
            ["symlink", target, path] => {
                let target = Bytes::copy_from_slice(target.as_bytes());
                self.make(path, NewNode::Symlink { target }, &[], 0o777)
            }
            ["link", file, path] => {
                self.named(path, |s, at| Ok(Command::Link { ino: s.find(file)?, parent: at.parent, name: at.name }))
            }
            ["unlink", path] => {
                self.named(path, |_, at| Ok(Command::Unlink { parent: at.parent, name: at.name, expected: None }))
            }
            ["unlink", path, "seen-as", file] => self.named(path, |s, at| {
                Ok(Command::Unlink { parent: at.parent, name: at.name, expected: Some(s.find(file)?) })
            }),
            ["rmdir", path] => self
                .named(path, |_, at| Ok(Command::RemoveDirectory { parent: at.parent, name: at.name, expected: None })),
            ["rename", from, to] => self.rename(from, to, RenameMode::Replace),
            ["rename-noreplace", from, to] => self.rename(from, to, RenameMode::NoReplace),
            ["exchange", from, to] => self.rename(from, to, RenameMode::Exchange),
            ["ls", path] => self.list(path),
            ["readlink", path] => self.ask(|s| Ok(Query::ReadLink { ino: s.find(path)? })),
            ["stat", path] => self.stat(path),
            ["times", path] => self.times(path),

            // contents
            ["write", path, text] => self.write(path, bytes(text), 0),
            ["write", path, text, "at", offset] => self.write(path, bytes(text), number(offset)),
            ["append", path, text] => {
                let body = bytes(text);
                self.on_with(path, body.clone(), |ino| Command::Append { ino, length: body.len() as u32 })
            }
            ["put", path, text, rest @ ..] => self.put(path, bytes(text), rest),
            ["truncate", path, size] => {
                self.set(path, AttributeChanges { size: Some(number(size)), ..Default::default() })
            }
            ["copy", from, offset, length, "to", to, to_offset] => self.command(|s| {
                let (from_offset, to_offset, length) = (number(offset), number(to_offset), number(length));
                Ok(Command::CopyRange { from: s.find(from)?, from_offset, to: s.find(to)?, to_offset, length })
            }),
            ["allocate", path, offset, length] => self.allocate(path, AllocateMode::Extend, offset, length),
            ["allocate-keep", path, offset, length] => self.allocate(path, AllocateMode::KeepSize, offset, length),
            ["punch", path, offset, length] => self.allocate(path, AllocateMode::PunchHole, offset, length),
            ["zero", path, offset, length] => {
                self.allocate(path, AllocateMode::ZeroRange { keep_size: false }, offset, length)
            }
            ["zero-keep", path, offset, length] => {
                self.allocate(path, AllocateMode::ZeroRange { keep_size: true }, offset, length)
            }
            ["collapse", path, offset, length] => self.allocate(path, AllocateMode::Collapse, offset, length),
            ["insert", path, offset, length] => self.allocate(path, AllocateMode::Insert, offset, length),
            ["cat", path] => self.read(path, 0, u64::MAX),
            ["read", path, offset, length] => self.read(path, number(offset), number(length)),
            ["map", path] => self.map(path),
            ["seek-data", path, offset] => self.seek(path, offset, false),
            ["seek-hole", path, offset] => self.seek(path, offset, true),
            ["usage"] => self.ask(|_| Ok(Query::Usage)),
            ["live-bodies"] => {
                format!("{:?}", self.world.state.live_bodies(LogIndex(0)).map(|i| i.0).collect::<Vec<_>>())
            }

            // attributes
            ["chmod", mode, path] => {
                let mode = u32::from_str_radix(mode, 8).unwrap();
                self.set(path, AttributeChanges { mode: Some(mode), ..Default::default() })
            }
            ["chown", uid, gid, path] => {
                let (uid, gid) = (Some(number(uid) as u32), Some(number(gid) as u32));
                self.set(path, AttributeChanges { uid, gid, ..Default::default() })
            }
            ["touch", path] => self.set(path, AttributeChanges { mtime: Some(TimeChange::Now), ..Default::default() }),
            ["setfattr", path, name, value] => self.set_xattr(path, name, value, XattrMode::Any),
            ["setfattr", path, name, value, "create"] => self.set_xattr(path, name, value, XattrMode::Create),
            ["setfattr", path, name, value, "replace"] => self.set_xattr(path, name, value, XattrMode::Replace),
            ["rmfattr", path, name] => self.command(|s| words::remove_attribute(s.find(path)?, name.as_bytes())),
            ["getfattr", path, name] => {
                self.ask(|s| Ok(Query::Xattr { ino: s.find(path)?, name: Bytes::copy_from_slice(name.as_bytes()) }))
            }
            ["info", path] => self.lines(path, "user.keelfs.info"),
            ["umask", mask] => {
                self.umask = u32::from_str_radix(mask, 8).unwrap();
                "ok".to_owned()
            }
            ["setfacl", path, kind, list, rest @ ..] => {
                let (acl, keep_setgid) = (Some(acl::list(list.trim_matches('"'))), rest == ["keeping-setgid"]);
                self.on(path, |ino| Command::SetAcl { ino, kind: acl_kind(kind), acl, keep_setgid })
            }
            ["rmfacl", path, kind] => {
                self.on(path, |ino| Command::SetAcl { ino, kind: acl_kind(kind), acl: None, keep_setgid: false })
            }
            ["getfacl", path, kind] => self.get_acl(path, acl_kind(kind)),
            ["listfattr", path] => self.ask(|s| Ok(Query::ListXattrs { ino: s.find(path)? })),

            // locks
            ["lock", path, owner, mode, range, rest @ ..] => {
                self.lock(path, LockOwner::Posix(number(owner)), mode, self::range(range), rest == ["wait"])
            }
            ["flock", path, owner, mode, rest @ ..] => {
                self.lock(path, LockOwner::Flock(number(owner)), mode, range("all"), rest == ["wait"])
            }
            ["cancel", path, owner, range] => {
                let (owner, range) = (LockOwner::Posix(number(owner)), self::range(range));
                self.on(path, |ino| Command::CancelLock { ino, owner, range })
            }
            ["release", path, owner] => {
                let owner = LockOwner::Posix(number(owner));
                self.on(path, |ino| Command::ReleaseOwner { ino, owner })
            }
            ["release-flock", path, owner] => {
                let owner = LockOwner::Flock(number(owner));
                self.on(path, |ino| Command::ReleaseOwner { ino, owner })
            }
            ["locks", path] => self.lines(path, "user.keelfs.locks"),
            ["test-lock", path, owner, mode, range] => self.ask(|s| {
                let (owner, range, mode) = (LockOwner::Posix(number(owner)), self::range(range), lock_mode(mode));
                Ok(Query::TestLock { ino: s.find(path)?, session: s.client().id, owner, range, mode })
            }),
            ["standing", path, owner, range] => self.ask(|s| {
                let (owner, range) = (LockOwner::Posix(number(owner)), self::range(range));
                Ok(Query::LockStanding { ino: s.find(path)?, session: s.client().id, owner, range })
            }),
            ["flock-standing", path, owner] => self.ask(|s| {
                let owner = LockOwner::Flock(number(owner));
                Ok(Query::LockStanding { ino: s.find(path)?, session: s.client().id, owner, range: range("all") })
            }),

            // sessions, retries and time
            ["session", name] => self.session(name),
            ["end-session"] => self.command(|_| Ok(Command::CloseSession)),
            ["as", uid, gid] => {
                self.world.who = Credentials { uid: number(uid) as u32, gid: number(gid) as u32 };
                "ok".to_owned()
            }
            ["open", path, "as", name] => match self.find(path) {
                Ok(ino) => {
                    self.open.insert((*name).to_owned(), ino);
                    "ok".to_owned()
                }
                Err(refusal) => refused(&refusal),
            },
            ["keep-alive", closed @ ..] => self.command(|s| {
                Ok(Command::KeepAlive { closed: closed.iter().map(|word| s.find(word)).collect::<Result<_, _>>()? })
            }),
            ["asked-to-close"] => self.asked_to_close(),
            ["retry"] => {
                let client = self.client().clone();
                self.world.retry(&client).map_or("nothing to retry".to_owned(), |outcome| answered(&outcome))
            }
            ["a-copy-is-delayed"] => {
                self.delayed = self.client().last.clone();
                "ok".to_owned()
            }
            ["the-copy-arrives"] => {
                let (request, body) = self.delayed.clone().expect("a delayed copy");
                answered(&self.world.apply(request, body))
            }
            ["acknowledge"] => {
                let client = self.client_mut();
                client.first_outstanding = client.next;
                "ok".to_owned()
            }
            ["advance", by] => {
                self.world.now_ns += duration(by);
                "ok".to_owned()
            }
            ["tick"] => {
                let ticked = self.world.propose(Command::Tick);
                assert_eq!(ticked, Ok(Reply::Done));
                self.decide();
                self.act()
            }
            ["leader-decides"] => self.decide(),
            ["leader-acts"] => self.act(),
            ["next-deadline"] => match self.world.state.next_deadline() {
                Some(deadline) => format!("at {} s", deadline.0 as f64 / SECOND_NS as f64),
                None => "none".to_owned(),
            },
            ["snapshot-and-restore"] => {
                self.world.reimport();
                "ok".to_owned()
            }
            other => panic!("no such command: {other:?}"),
        };
        assert!(
            !answer.lines().any(|line| line.is_empty() || line.starts_with(['>', '#'])),
            "an answer looks like prose"
        );
        answer
    }

    fn client(&self) -> &Client {
        &self.clients[&self.current]
    }

    fn client_mut(&mut self) -> &mut Client {
        self.clients.get_mut(&self.current).expect("a current session")
    }

    /// The inode of a path or of an open `@name`.
    fn find(&self, word: &str) -> Result<Ino, Refusal> {
        if let Some(name) = word.strip_prefix('@') {
            return Ok(self.open[name]);
        }
        match self.world.ask(Query::Resolve { path: Bytes::copy_from_slice(word.as_bytes()) })? {
            Answer::Attributes(attributes) => Ok(attributes.ino),
            other => panic!("resolve: {other:?}"),
        }
    }

    fn place(&self, path: &str) -> Result<Place, Refusal> {
        let (parent, name) = path.rsplit_once('/').unwrap_or_else(|| panic!("not a path: {path}"));
        let parent = self.find(if parent.is_empty() { "/" } else { parent })?;
        Ok(Place { parent, name: Name::new(&unescape(name)).unwrap() })
    }

    fn submit(&mut self, command: Command, body: Bytes) -> Outcome {
        let mut client = self.client().clone();
        let outcome = self.world.submit(&mut client, command, body);
        self.clients.insert(self.current.clone(), client);
        outcome
    }

    fn command(&mut self, make: impl FnOnce(&Script) -> Result<Command, Refusal>) -> String {
        answered(&make(self).and_then(|command| self.submit(command, Bytes::new())))
    }

    fn named(&mut self, path: &str, make: impl FnOnce(&Script, Place) -> Result<Command, Refusal>) -> String {
        self.command(|s| make(s, s.place(path)?))
    }

    fn on(&mut self, path: &str, make: impl FnOnce(Ino) -> Command) -> String {
        self.command(|s| Ok(make(s.find(path)?)))
    }

    fn on_with(&mut self, path: &str, body: Bytes, make: impl FnOnce(Ino) -> Command) -> String {
        answered(&self.find(path).map(make).and_then(|command| self.submit(command, body)))
    }

    fn make(&mut self, path: &str, node: NewNode, mode: &[&str], default: u32) -> String {
        let mode = mode.first().map_or(default, |mode| u32::from_str_radix(mode, 8).unwrap());
        let umask = self.umask;
        self.named(path, |_, at| Ok(Command::Make { parent: at.parent, name: at.name, node, mode, umask }))
    }

    fn rename(&mut self, from: &str, to: &str, mode: RenameMode) -> String {
        self.command(|s| {
            Ok(Command::Rename { from: s.place(from)?, to: s.place(to)?, mode, moved: None, replaced: None })
        })
    }

    fn write(&mut self, path: &str, body: Bytes, offset: u64) -> String {
        let length = body.len() as u32;
        self.on_with(path, body, |ino| Command::Write { ino, offset, length })
    }

    fn put(&mut self, path: &str, body: Bytes, options: &[&str]) -> String {
        let (mut expected, mut expiry) = (Expected::Anything, ExpiryChange::Clear);
        for option in options {
            match option.strip_prefix("ttl=") {
                Some(ttl) => expiry = words::parse_ttl(ttl.as_bytes()).unwrap(),
                None => expected = Expected::Version(version(option)),
            }
        }
        let length = body.len() as u32;
        let command =
            |at: Place| Command::Put { parent: at.parent, name: at.name, expected, expiry, mode: 0o644, length };
        answered(&self.place(path).map(command).and_then(|command| self.submit(command, body)))
    }

    fn set(&mut self, path: &str, changes: AttributeChanges) -> String {
        self.on(path, |ino| Command::SetAttributes { ino, changes })
    }

    fn allocate(&mut self, path: &str, mode: AllocateMode, offset: &str, length: &str) -> String {
        let (offset, length) = (number(offset), number(length));
        self.on(path, |ino| Command::Allocate { ino, mode, offset, length })
    }

    fn set_xattr(&mut self, path: &str, name: &str, value: &str, mode: XattrMode) -> String {
        let command = self.find(path).and_then(|ino| words::set_attribute(ino, name.as_bytes(), &bytes(value), mode));
        answered(&command.and_then(|(command, body)| self.submit(command, body)))
    }

    fn lock(&mut self, path: &str, owner: LockOwner, mode: &str, range: LockRange, wait: bool) -> String {
        self.on(path, |ino| Command::Lock { ino, owner, range, mode: lock_mode(mode), pid: 100, wait })
    }

    fn session(&mut self, name: &str) -> String {
        self.current = name.to_owned();
        if let Some(client) = self.clients.get(name) {
            let lives = self.world.state.session_exists(client.id);
            return format!("session {}{}", client.id.0, if lives { "" } else { ", which has ended" });
        }
        let client = self.world.open_session(name);
        let answer = format!("session {}, new", client.id.0);
        self.clients.insert(name.to_owned(), client);
        answer
    }

    fn asked_to_close(&self) -> String {
        let asked = self.world.state.orphans_of(self.client().id, Ino(0), 100);
        if asked.is_empty() {
            "nothing".to_owned()
        } else {
            asked.iter().map(|ino| format!("inode {}\n", ino.0)).collect()
        }
    }

    fn decide(&mut self) -> String {
        self.decided = self.world.state.due(ClusterTime(self.world.now_ns), 100);
        match self.decided.is_empty() {
            true => "nothing is due".to_owned(),
            false => self.decided.iter().map(proposal).collect::<Vec<_>>().join("\n"),
        }
    }

    fn act(&mut self) -> String {
        if self.decided.is_empty() {
            return "nothing is due".to_owned();
        }
        let act = |command: Command| format!("{}: {}", proposal(&command), answered(&self.world.propose(command)));
        std::mem::take(&mut self.decided).into_iter().map(act).collect::<Vec<_>>().join("\n")
    }

    fn ask(&self, make: impl FnOnce(&Script) -> Result<Query, Refusal>) -> String {
        match make(self).and_then(|query| self.world.ask(query)) {
            Ok(Answer::Bytes(bytes)) => shown(&bytes),
            Ok(Answer::Offset(offset)) => {
                offset.map_or("no such place (ENXIO)".to_owned(), |offset| offset.to_string())
            }
            Ok(Answer::Lock(holder)) => {
                holder.map_or("free".to_owned(), |h| format!("session {} holds {}", h.session.0, lock_shown(&h)))
            }
            Ok(Answer::LockStanding(LockStanding::Held { generation })) => format!("held, generation {generation}"),
            Ok(Answer::LockStanding(standing)) => format!("{standing:?}").to_lowercase(),
            Ok(Answer::Usage(usage)) => format!("{} inodes, {} bytes", usage.inodes, usage.bytes),
            Ok(other) => format!("{other:?}"),
            Err(refusal) => refused(&refusal),
        }
    }

    /// An attribute whose value is text of several lines.
    fn lines(&self, path: &str, name: &'static str) -> String {
        match self.find(path).and_then(|ino| self.world.ask(Query::Xattr { ino, name: Bytes::from(name) })) {
            Ok(Answer::Bytes(bytes)) if bytes.is_empty() => "none".to_owned(),
            Ok(Answer::Bytes(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
            Ok(other) => panic!("an attribute: {other:?}"),
            Err(refusal) => refused(&refusal),
        }
    }

    fn get_acl(&self, path: &str, kind: AclKind) -> String {
        let name = Bytes::from_static(kind.name());
        match self.find(path).and_then(|ino| self.world.ask(Query::Xattr { ino, name })) {
            Ok(Answer::Bytes(list)) => acl::text(&list),
            Ok(other) => panic!("an access list: {other:?}"),
            Err(refusal) => refused(&refusal),
        }
    }

    fn stat(&self, path: &str) -> String {
        match self.find(path).and_then(|ino| self.world.attributes(ino)) {
            Ok(a) => format!(
                "{} {}, mode {:o}, links {}, owner {}:{}, size {}, stored {}, version v{}, change v{}",
                kind(a.kind),
                a.ino.0,
                a.mode,
                a.nlink,
                a.uid,
                a.gid,
                a.size,
                a.allocated,
                a.version.0,
                a.change.0
            ),
            Err(refusal) => refused(&refusal),
        }
    }

    fn times(&self, path: &str) -> String {
        let since = |t: Timestamp| format!("{}s+{}ns", t.seconds - WALL_START, t.nanos);
        match self.find(path).and_then(|ino| self.world.attributes(ino)) {
            Ok(a) => format!(
                "accessed {}, modified {}, changed {}, born {}",
                since(a.atime),
                since(a.mtime),
                since(a.ctime),
                since(a.btime)
            ),
            Err(refusal) => refused(&refusal),
        }
    }

    fn list(&self, path: &str) -> String {
        match self.find(path).and_then(|ino| self.world.list(ino)) {
            Ok(entries) if entries.is_empty() => "empty".to_owned(),
            Ok(entries) => {
                let line =
                    |e: &DirectoryEntry| format!("{}: {} {}\n", e.name, kind(e.attributes.kind), e.attributes.ino.0);
                entries.iter().map(line).collect()
            }
            Err(refusal) => refused(&refusal),
        }
    }

    fn read(&self, path: &str, offset: u64, length: u64) -> String {
        match self.find(path).and_then(|ino| self.world.bytes(ino, offset, length)) {
            Ok(bytes) => shown(&bytes),
            Err(refusal) => refused(&refusal),
        }
    }

    fn map(&self, path: &str) -> String {
        let content = match self.find(path).and_then(|ino| self.world.layout(ino, 0, u64::MAX)) {
            Ok(content) => content,
            Err(refusal) => return refused(&refusal),
        };
        let piece = |piece: &Piece| match piece {
            Piece::Hole { length } => format!("hole of {length}"),
            Piece::Body { index, offset, length } => format!("{length} from {offset} of entry {}", index.0),
        };
        match content.pieces.is_empty() {
            true => "nothing".to_owned(),
            false => content.pieces.iter().map(piece).collect::<Vec<_>>().join(", "),
        }
    }

    fn seek(&self, path: &str, offset: &str, hole: bool) -> String {
        self.ask(|s| Ok(Query::Seek { ino: s.find(path)?, offset: number(offset), hole }))
    }
}

fn kind(kind: FileKind) -> String {
    format!("{kind:?}").to_lowercase()
}

fn range(word: &str) -> LockRange {
    match word.split_once('-') {
        Some((start, end)) => LockRange { start: number(start), end: number(end) },
        None => LockRange { start: 0, end: u64::MAX },
    }
}

fn acl_kind(word: &str) -> AclKind {
    match word {
        "access" => AclKind::Access,
        "default" => AclKind::Default,
        _ => panic!("not a kind of access list: {word}"),
    }
}

fn lock_mode(word: &str) -> LockMode {
    match word {
        "shared" => LockMode::Shared,
        "exclusive" => LockMode::Exclusive,
        "unlock" => LockMode::Unlock,
        _ => panic!("not a lock mode: {word}"),
    }
}

fn lock_shown(lock: &LockHolder) -> String {
    let end = if lock.range.end == u64::MAX { "the end".to_owned() } else { lock.range.end.to_string() };
    format!("{} to {end}, {:?}", lock.range.start, lock.mode).to_lowercase()
}

fn proposal(command: &Command) -> String {
    match command {
        Command::Expire { ino, deadline } => {
            format!("expire inode {} with deadline {} s", ino.0, deadline.0 as f64 / SECOND_NS as f64)
        }
        Command::EndSession { session, .. } => format!("end session {}", session.0),
        other => format!("{other:?}"),
    }
}

fn answered(outcome: &Outcome) -> String {
    match outcome {
        Ok(Reply::Done) => "ok".to_owned(),
        Ok(Reply::Attributes(a)) => {
            format!("ok: {} {}, size {}, version v{}", kind(a.kind), a.ino.0, a.size, a.version.0)
        }
        Ok(Reply::Copied(length)) => format!("ok: copied {length}"),
        Ok(Reply::Locked { generation }) => format!("ok: locked, generation {generation}"),
        Ok(Reply::Waiting) => "waiting".to_owned(),
        Ok(Reply::Node(node)) => format!("node {node}"),
        Ok(Reply::Session(id)) => format!("ok: session {}", id.0),
        Err(refusal) => refused(refusal),
    }
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::VersionMismatch { current } => format!("refused: the version is v{}", current.0),
        other => format!("refused: {other}"),
    }
}
