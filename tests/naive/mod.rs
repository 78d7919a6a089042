//! A file system as one would write it on a slate: bytes in vectors, names in lists, everything searched from the start.

mod acl;
mod compare;
mod contents;
pub mod pick;

use crate::world::{SECOND_NS, WALL_START};
use bytes::Bytes;
use keelfs::fs::*;
use keelfs::limits::SESSION_TTL_NS;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
struct Node {
    kind: FileKind,
    mode: u32,
    uid: u32,
    gid: u32,
    /// `None`: a hole.
    bytes: Vec<Option<u8>>,
    entries: Vec<(Name, Ino)>,
    target: Bytes,
    xattrs: BTreeMap<Bytes, Bytes>,
    version: LogIndex,
    change: LogIndex,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    btime: Timestamp,
    deadline: Option<u64>,
    default_ttl: Option<u64>,
    ephemeral: Option<SessionId>,
    replace_if: Option<LogIndex>,
    /// Sessions that may have it open, once it has no name.
    holders: BTreeSet<SessionId>,
}

#[derive(Clone, Debug)]
struct Standing {
    last_seen: u64,
    first_outstanding: Sequence,
    outcomes: BTreeMap<Sequence, Outcome>,
}

pub struct Naive {
    nodes: BTreeMap<Ino, Node>,
    sessions: BTreeMap<SessionId, Standing>,
    next_ino: u64,
    index: LogIndex,
    now: u64,
    wall: Timestamp,
    /// The wall clock of whoever stamped the last entry, in nanoseconds.
    clock: i128,
    // of the request that is being applied
    session: SessionId,
    who: Credentials,
}

type Answered<T = ()> = Result<T, Refusal>;

impl Naive {
    pub fn new() -> Naive {
        let (zero, none) = (Timestamp::default(), SessionId(0));
        let mut naive = Naive {
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_ino: 2,
            index: LogIndex(0),
            now: 0,
            wall: zero,
            clock: 0,
            session: none,
            who: Credentials::default(),
        };
        naive.nodes.insert(Ino::ROOT, naive.blank(FileKind::Directory, 0o755));
        naive
    }

    /// The next entry of the log, stamped at this cluster time.
    pub fn advance(&mut self, now_ns: u64) {
        self.index.0 += 1;
        self.now = now_ns;
        let stamp = Timestamp { seconds: WALL_START + (now_ns / SECOND_NS) as i64, nanos: (now_ns % SECOND_NS) as u32 };
        let mut next = Timestamp { nanos: self.wall.nanos + 1, ..self.wall };
        if next.nanos == 1_000_000_000 {
            next = Timestamp { seconds: next.seconds + 1, nanos: 0 };
        }
        self.wall = stamp.max(next);
        self.clock = nanos(stamp);
    }

    pub fn open(&mut self) -> SessionId {
        let id = SessionId(self.index.0);
        let outcomes = BTreeMap::new();
        self.sessions.insert(id, Standing { last_seen: self.now, first_outstanding: Sequence(1), outcomes });
        id
    }

    pub fn apply(&mut self, request: &Request, body: &Bytes) -> Outcome {
        (self.session, self.who) = (request.session, request.credentials);
        if request.session == SessionId(0) {
            return self.lead(&request.command);
        }
        let now = self.now;
        let standing = self.sessions.get_mut(&request.session).ok_or(Refusal::SessionEnded)?;
        standing.last_seen = now;
        standing.first_outstanding = standing.first_outstanding.max(request.first_outstanding);
        if request.sequence < standing.first_outstanding {
            return Err(Refusal::GivenUp);
        }
        if let Some(outcome) = standing.outcomes.get(&request.sequence) {
            return outcome.clone();
        }
        let outcome = self.execute(&request.command, body);
        if let Some(standing) = self.sessions.get_mut(&request.session) {
            standing.outcomes.insert(request.sequence, outcome.clone());
        }
        outcome
    }

    fn lead(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Tick => {}
            Command::Expire { ino, deadline } => {
                if self.due_at(*ino) == Some(deadline.0) && deadline.0 <= self.now {
                    self.unname(*ino);
                }
            }
            Command::EndSession { session, last_seen } => {
                let silent = |s: &Standing| s.last_seen == last_seen.0 && last_seen.0 + SESSION_TTL_NS <= self.now;
                if self.sessions.get(session).is_some_and(silent) {
                    self.end(*session);
                }
            }
            other => panic!("not the leader's: {other:?}"),
        }
        Ok(Reply::Done)
    }

    fn execute(&mut self, command: &Command, body: &Bytes) -> Outcome {
        match command.clone() {
            Command::KeepAlive { closed } => {
                closed.iter().for_each(|ino| self.let_go(self.session, *ino));
                Ok(Reply::Done)
            }
            Command::CloseSession => {
                self.end(self.session);
                Ok(Reply::Done)
            }
            Command::Make { parent, name, node, mode, umask } => {
                self.free_name(parent, &name)?;
                let kind = match &node {
                    NewNode::File => FileKind::File,
                    NewNode::Directory => FileKind::Directory,
                    NewNode::Symlink { .. } => FileKind::Symlink,
                    NewNode::Fifo => FileKind::Fifo,
                    other => panic!("not made here: {other:?}"),
                };
                let ino = self.create(parent, name, kind, (mode, umask));
                if let NewNode::Symlink { target } = node {
                    self.node(ino)?.target = target;
                }
                self.shown(ino)
            }
            Command::Link { ino, parent, name } => {
                if self.node(ino)?.kind == FileKind::Directory {
                    return Err(Refusal::NotPermitted);
                }
                if self.names(ino).is_empty() {
                    return Err(Refusal::NoSuchName);
                }
                self.free_name(parent, &name)?;
                self.enter(parent, name, ino);
                self.touch(ino);
                self.shown(ino)
            }
            Command::Unlink { parent, name, expected } => {
                let ino = self.at(parent, &name, expected)?;
                match self.node(ino)?.kind {
                    FileKind::Directory => Err(Refusal::IsDirectory),
                    _ => self.leave(parent, &name),
                }
            }
            Command::RemoveDirectory { parent, name, expected } => {
                let ino = self.at(parent, &name, expected)?;
                match self.node(ino)? {
                    node if node.kind != FileKind::Directory => Err(Refusal::NotDirectory),
                    node if !node.entries.is_empty() => Err(Refusal::NotEmpty),
                    _ => self.leave(parent, &name),
                }
            }
            Command::Rename { from, to, mode, moved, replaced } => self.rename(from, to, mode, moved, replaced),
            Command::Write { ino, offset, .. } => {
                self.file(ino)?;
                self.write(ino, offset, body)
            }
            Command::Append { ino, .. } => {
                let end = self.file(ino)?.bytes.len() as u64;
                self.write(ino, end, body)
            }
            Command::Replace { ino, expected, expiry, .. } => {
                self.file(ino)?;
                self.named(ino)?;
                self.expect_version(ino, expected)?;
                self.set_deadline(ino, expiry);
                self.rewrite(ino, body)
            }
            Command::Put { parent, name, expected, expiry, mode, .. } => {
                self.put((parent, name), expected, expiry, mode, body)
            }
            Command::Allocate { ino, mode, offset, length } => {
                self.allocate(ino, mode, offset as usize, length as usize)
            }
            Command::CopyRange { from, from_offset, to, to_offset, length } => {
                self.copy((from, from_offset as usize), (to, to_offset as usize), length as usize)
            }
            Command::SetAttributes { ino, changes } => self.set_attributes(ino, &changes),
            Command::SetXattr { ino, name, value, mode } => {
                match (mode, self.node(ino)?.xattrs.contains_key(&name)) {
                    (XattrMode::Create, true) => return Err(Refusal::XattrExists),
                    (XattrMode::Replace, false) => return Err(Refusal::NoSuchXattr),
                    _ => self.node(ino)?.xattrs.insert(name, value),
                };
                self.done(ino)
            }
            Command::RemoveXattr { ino, name } => {
                self.node(ino)?.xattrs.remove(&name).ok_or(Refusal::NoSuchXattr)?;
                self.done(ino)
            }
            Command::SetAcl { ino, kind, acl, keep_setgid } => self.set_acl(ino, kind, acl.as_ref(), keep_setgid),
            Command::SetReplaceIf { ino, version } => match self.node(ino)? {
                node if node.kind == FileKind::Directory => Err(Refusal::IsDirectory),
                node => {
                    node.replace_if = version;
                    self.done(ino)
                }
            },
            Command::SetExpiry { ino, expiry } => {
                self.mortal(ino)?;
                self.named(ino)?;
                self.set_deadline(ino, expiry);
                self.done(ino)
            }
            Command::SetDefaultTtl { ino, ttl_ns } => {
                self.directory(ino)?.default_ttl = ttl_ns.filter(|ns| *ns > 0);
                self.done(ino)
            }
            Command::SetEphemeral { ino, ephemeral } => {
                self.mortal(ino)?;
                if ephemeral {
                    self.named(ino)?;
                }
                self.node(ino)?.ephemeral = ephemeral.then_some(self.session);
                self.done(ino)
            }
            other => panic!("not in this model: {other:?}"),
        }
    }

    // --- finding

    fn node(&mut self, ino: Ino) -> Answered<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Refusal::NoSuchInode)
    }

    fn directory(&mut self, ino: Ino) -> Answered<&mut Node> {
        let node = self.node(ino)?;
        if node.kind == FileKind::Directory { Ok(node) } else { Err(Refusal::NotDirectory) }
    }

    fn file(&mut self, ino: Ino) -> Answered<&mut Node> {
        let node = self.node(ino)?;
        match node.kind {
            FileKind::File => Ok(node),
            FileKind::Directory => Err(Refusal::IsDirectory),
            _ => Err(Refusal::WrongKind),
        }
    }

    /// Not the root, which never ends.
    fn mortal(&mut self, ino: Ino) -> Answered<&mut Node> {
        if ino == Ino::ROOT { Err(Refusal::NotPermitted) } else { self.node(ino) }
    }

    fn named(&self, ino: Ino) -> Answered {
        if self.names(ino).is_empty() { Err(Refusal::NoSuchInode) } else { Ok(()) }
    }

    fn names(&self, ino: Ino) -> Vec<(Ino, Name)> {
        let all =
            self.nodes.iter().flat_map(|(parent, node)| node.entries.iter().map(|(n, i)| (*parent, n.clone(), *i)));
        all.filter(|(_, _, i)| *i == ino).map(|(parent, name, _)| (parent, name)).collect()
    }

    fn lookup(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.nodes.get(&parent)?.entries.iter().find(|(n, _)| n == name).map(|(_, ino)| *ino)
    }

    /// Can a name be added here?
    fn room(&mut self, parent: Ino) -> Answered {
        self.directory(parent)?;
        if parent == Ino::ROOT || !self.names(parent).is_empty() { Ok(()) } else { Err(Refusal::NoSuchName) }
    }

    fn free_name(&mut self, parent: Ino, name: &Name) -> Answered {
        self.room(parent)?;
        if self.lookup(parent, name).is_some() { Err(Refusal::NameTaken) } else { Ok(()) }
    }

    fn at(&mut self, parent: Ino, name: &Name, expected: Option<Ino>) -> Answered<Ino> {
        self.directory(parent)?;
        let ino = self.lookup(parent, name).ok_or(Refusal::NoSuchName)?;
        if expected.is_none_or(|seen| seen == ino) { Ok(ino) } else { Err(Refusal::Raced) }
    }

    fn expect_version(&mut self, ino: Ino, expected: LogIndex) -> Answered {
        match (expected, self.node(ino)?.version) {
            (LogIndex(0), _) => Err(Refusal::NameTaken),
            (expected, current) if expected == current => Ok(()),
            (_, current) => Err(Refusal::VersionMismatch { current }),
        }
    }

    // --- marking

    /// Something of the inode changed, not its content.
    fn touch(&mut self, ino: Ino) {
        let (index, wall) = (self.index, self.wall);
        if let Some(node) = self.nodes.get_mut(&ino) {
            (node.change, node.ctime) = (index, wall);
        }
    }

    fn done(&mut self, ino: Ino) -> Outcome {
        self.touch(ino);
        Ok(Reply::Done)
    }

    /// The content, or the entries, changed.
    fn renew(&mut self, ino: Ino) {
        self.touch(ino);
        let (index, wall) = (self.index, self.wall);
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        (node.version, node.mtime) = (index, wall);
        if node.kind == FileKind::File {
            self.shed(ino);
        }
    }

    /// A changed file loses what gives it rights of its own.
    fn shed(&mut self, ino: Ino) {
        let who = self.who;
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.xattrs.remove(CAPABILITIES);
        if who.uid != 0 {
            drop_privileges(node, who);
        }
    }

    fn set_deadline(&mut self, ino: Ino, expiry: ExpiryChange) {
        let (now, clock) = (self.now, self.clock);
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.deadline = match expiry {
            ExpiryChange::Keep => node.deadline,
            ExpiryChange::Clear => None,
            ExpiryChange::After { ns } => Some(now + ns),
            ExpiryChange::At { unix_seconds } => {
                Some(now + (i128::from(unix_seconds) * 1_000_000_000 - clock).max(0) as u64)
            }
        };
    }

    // --- names

    fn blank(&self, kind: FileKind, mode: u32) -> Node {
        Node {
            kind,
            mode,
            uid: self.who.uid,
            gid: self.who.gid,
            bytes: vec![],
            entries: vec![],
            target: Bytes::new(),
            xattrs: BTreeMap::new(),
            version: self.index,
            change: self.index,
            atime: self.wall,
            mtime: self.wall,
            ctime: self.wall,
            btime: self.wall,
            deadline: None,
            default_ttl: None,
            ephemeral: None,
            replace_if: None,
            holders: BTreeSet::new(),
        }
    }

    fn create(&mut self, parent: Ino, name: Name, kind: FileKind, permissions: (u32, u32)) -> Ino {
        let ino = self.bear(parent, kind, permissions);
        self.enter(parent, name, ino);
        ino
    }

    fn bear(&mut self, parent: Ino, kind: FileKind, (mode, umask): (u32, u32)) -> Ino {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        let mut node = self.blank(kind, if kind == FileKind::Symlink { 0o777 } else { mode & 0o7777 });
        self.inherit(parent, &mut node, umask);
        let directory = &self.nodes[&parent];
        if directory.mode & 0o2000 != 0 {
            node.gid = directory.gid;
            node.mode |= if kind == FileKind::Directory { 0o2000 } else { 0 };
        }
        node.deadline = directory.default_ttl.map(|ttl| self.now + ttl);
        self.nodes.insert(ino, node);
        ino
    }

    fn enter(&mut self, parent: Ino, name: Name, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.entries.push((name, ino));
        }
        self.renew(parent);
    }

    /// Take a name away; the inode may go with it.
    fn leave(&mut self, parent: Ino, name: &Name) -> Outcome {
        let ino = self.lookup(parent, name).ok_or(Refusal::NoSuchName)?;
        self.node(parent)?.entries.retain(|(n, _)| n != name);
        self.renew(parent);
        self.lose_name(ino);
        Ok(Reply::Done)
    }

    fn lose_name(&mut self, ino: Ino) {
        self.touch(ino);
        if !self.names(ino).is_empty() {
            return;
        }
        let alive: BTreeSet<_> = self.sessions.keys().copied().collect();
        match self.nodes.get_mut(&ino) {
            Some(node) if !alive.is_empty() => node.holders = alive,
            _ => drop(self.nodes.remove(&ino)),
        }
    }

    fn unname(&mut self, ino: Ino) {
        for (parent, name) in self.names(ino) {
            let _ = self.leave(parent, &name);
        }
    }

    fn let_go(&mut self, session: SessionId, ino: Ino) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        if node.holders.remove(&session) && node.holders.is_empty() {
            self.nodes.remove(&ino);
        }
    }

    fn is_below(&self, ino: Ino, above: Ino) -> bool {
        ino == above || self.names(ino).first().is_some_and(|(parent, _)| self.is_below(*parent, above))
    }

    fn rename(
        &mut self,
        from: Place,
        to: Place,
        mode: RenameMode,
        moved: Option<Ino>,
        seen: Option<Option<Ino>>,
    ) -> Outcome {
        let source = self.at(from.parent, &from.name, moved)?;
        self.room(to.parent)?;
        let target = self.lookup(to.parent, &to.name);
        let exchange = mode == RenameMode::Exchange;
        if exchange && target.is_none() {
            return Err(Refusal::NoSuchName);
        }
        if seen.is_some_and(|seen| seen != target) {
            return Err(Refusal::Raced);
        }
        let is_directory = |ino: Ino| self.nodes[&ino].kind == FileKind::Directory;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Refusal::NameTaken),
            (RenameMode::Replace | RenameMode::Whiteout, Some(t)) if is_directory(source) && !is_directory(t) => {
                return Err(Refusal::NotDirectory);
            }
            (RenameMode::Replace | RenameMode::Whiteout, Some(t)) if !is_directory(source) && is_directory(t) => {
                return Err(Refusal::IsDirectory);
            }
            (_, Some(t)) if t == source => return self.shown(source),
            _ => {}
        }
        let falls_in = exchange && target.is_some_and(|t| is_directory(t) && self.is_below(from.parent, t));
        if is_directory(source) && self.is_below(to.parent, source) || falls_in {
            return Err(Refusal::IntoItself);
        }
        if !exchange && target.is_some_and(|t| !self.nodes[&t].entries.is_empty()) {
            return Err(Refusal::NotEmpty);
        }
        match (self.nodes[&source].replace_if, target) {
            (None, _) | (Some(LogIndex(0)), None) => {}
            (Some(_), None) => return Err(Refusal::NoSuchName),
            (Some(version), Some(t)) => self.expect_version(t, version)?,
        }
        let whiteout = (mode == RenameMode::Whiteout).then(|| self.bear(from.parent, FileKind::CharDevice, (0, 0)));
        self.move_names(&from, &to, source, target, exchange, whiteout);
        self.shown(source)
    }

    fn move_names(
        &mut self,
        from: &Place,
        to: &Place,
        source: Ino,
        target: Option<Ino>,
        exchange: bool,
        whiteout: Option<Ino>,
    ) {
        match target {
            Some(_) => self.point(to, source),
            None => self.enter(to.parent, to.name.clone(), source),
        }
        match (target, whiteout) {
            (Some(target), _) if exchange => self.point(from, target),
            (_, Some(whiteout)) => self.point(from, whiteout),
            _ => self.nodes.get_mut(&from.parent).unwrap().entries.retain(|(n, _)| *n != from.name),
        }
        self.renew(from.parent);
        self.renew(to.parent);
        self.touch(source);
        self.nodes.get_mut(&source).unwrap().replace_if = None;
        let Some(target) = target else { return };
        let older =
            if !exchange || self.nodes[&source].version <= self.nodes[&target].version { source } else { target };
        self.nodes.get_mut(&older).unwrap().version = self.index;
        if exchange {
            self.touch(target);
        } else {
            self.lose_name(target);
        }
    }

    fn point(&mut self, place: &Place, ino: Ino) {
        let entries = &mut self.nodes.get_mut(&place.parent).unwrap().entries;
        entries.iter_mut().filter(|(n, _)| *n == place.name).for_each(|(_, i)| *i = ino);
    }

    // --- endings

    fn due_at(&self, ino: Ino) -> Option<u64> {
        let node = self.nodes.get(&ino)?;
        if node.entries.is_empty() && !self.names(ino).is_empty() { node.deadline } else { None }
    }

    pub fn due(&self, now: u64) -> Vec<Command> {
        let mut silent: Vec<_> = self.sessions.iter().map(|(id, s)| (ClusterTime(s.last_seen), *id)).collect();
        silent.retain(|(seen, _)| seen.0 + SESSION_TTL_NS <= now);
        silent.sort();
        let mut ended: Vec<_> =
            self.nodes.keys().filter_map(|ino| Some((ClusterTime(self.due_at(*ino)?), *ino))).collect();
        ended.retain(|(deadline, _)| deadline.0 <= now);
        ended.sort();
        let ends = silent.into_iter().map(|(last_seen, session)| Command::EndSession { session, last_seen });
        ends.chain(ended.into_iter().map(|(deadline, ino)| Command::Expire { ino, deadline })).collect()
    }

    /// Files that are tied to the session go, then directories, the newest first; a full one ends once it is empty.
    fn end(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        let tied: Vec<_> = self.nodes.iter().filter(|(_, n)| n.ephemeral == Some(session)).map(|(i, _)| *i).collect();
        let (directories, files): (Vec<_>, Vec<_>) =
            tied.into_iter().partition(|ino| self.nodes[ino].kind == FileKind::Directory);
        for ino in files.into_iter().chain(directories.into_iter().rev()) {
            let (now, node) = (self.now, self.nodes.get_mut(&ino).unwrap());
            node.ephemeral = None;
            if node.entries.is_empty() {
                self.unname(ino);
            } else {
                node.deadline = Some(now);
                self.touch(ino);
            }
        }
        let all: Vec<_> = self.nodes.keys().copied().collect();
        all.into_iter().for_each(|ino| self.let_go(session, ino));
    }

    // --- showing

    fn shown(&self, ino: Ino) -> Outcome {
        Ok(Reply::Attributes(self.attributes(ino)))
    }

    fn attributes(&self, ino: Ino) -> Attributes {
        let node = &self.nodes[&ino];
        let subdirectories = node.entries.iter().filter(|(_, i)| self.nodes[i].kind == FileKind::Directory).count();
        let names = self.names(ino).len();
        let nlink = match node.kind {
            FileKind::Directory if names == 0 && ino != Ino::ROOT => 0,
            FileKind::Directory => 2 + subdirectories,
            _ => names,
        };
        Attributes {
            ino,
            kind: node.kind,
            mode: node.mode,
            nlink: nlink as u32,
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            size: (node.bytes.len() + node.target.len()) as u64,
            allocated: node.bytes.iter().flatten().count() as u64,
            atime: node.atime,
            mtime: node.mtime,
            ctime: node.ctime,
            btime: node.btime,
            version: node.version,
            change: node.change,
        }
    }
}

fn drop_privileges(node: &mut Node, who: Credentials) {
    let setgid_goes = node.mode & 0o010 != 0 || who.uid != 0 && who.gid != node.gid;
    node.mode &= if setgid_goes { !0o6000 } else { !0o4000 };
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}
