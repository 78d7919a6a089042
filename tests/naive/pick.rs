//! Numbers in random commands that stand for what exists when the command is submitted: the n-th of its sort.

use super::Naive;
use keelfs::fs::*;

pub const STEP: u64 = 1 << 40;
pub const DIRECTORY: u64 = STEP;
pub const FILE: u64 = 2 * STEP;
pub const ANY: u64 = 3 * STEP;
/// As a parent: the place of the n-th of all names.
pub const ENTRY: u64 = 4 * STEP;
/// The inode, or the version, that is at the name or inode that the command is about.
pub const TRUE_INO: Ino = Ino(u64::MAX);
pub const TRUE_VERSION: LogIndex = LogIndex(u64::MAX);

impl Naive {
    /// Put what is really there in the place of what `pick` marks.
    pub fn resolve(&self, command: &mut Command) {
        let version_of = |ino: Option<Ino>| ino.and_then(|i| self.nodes.get(&i)).map_or(LogIndex(1), |n| n.version);
        let set_version = |mark: &mut LogIndex, ino: Option<Ino>| {
            if *mark == TRUE_VERSION {
                *mark = version_of(ino);
            }
        };
        let set_ino = |mark: &mut Option<Ino>, ino: Option<Ino>| match mark {
            Some(TRUE_INO) => *mark = ino,
            Some(mark) => self.resolve_ino(mark),
            None => {}
        };
        match command {
            Command::Make { parent, .. } => self.resolve_ino(parent),
            Command::Link { ino, parent, .. } => [ino, parent].into_iter().for_each(|ino| self.resolve_ino(ino)),
            Command::Unlink { parent, name, expected } | Command::RemoveDirectory { parent, name, expected } => {
                self.resolve_place(parent, name);
                set_ino(expected, self.lookup(*parent, name));
            }
            Command::Rename { from, to, moved, replaced, .. } => {
                self.resolve_place(&mut from.parent, &mut from.name);
                self.resolve_place(&mut to.parent, &mut to.name);
                set_ino(moved, self.lookup(from.parent, &from.name));
                if let Some(replaced) = replaced {
                    set_ino(replaced, self.lookup(to.parent, &to.name));
                }
            }
            Command::Put { parent, name, expected, .. } => {
                self.resolve_place(parent, name);
                if let Expected::Version(version) = expected {
                    set_version(version, self.lookup(*parent, name));
                }
            }
            Command::Replace { ino, expected, .. } => {
                self.resolve_ino(ino);
                set_version(expected, Some(*ino));
            }
            // the version of a file that a rename may hit
            Command::SetReplaceIf { ino, version } => {
                let mut target = Ino(ino.0.wrapping_add(1));
                [ino, &mut target].into_iter().for_each(|ino| self.resolve_ino(ino));
                version.iter_mut().for_each(|version| set_version(version, Some(target)));
            }
            Command::CopyRange { from, to, .. } => [from, to].into_iter().for_each(|ino| self.resolve_ino(ino)),
            Command::KeepAlive { closed } => closed.iter_mut().for_each(|ino| self.resolve_ino(ino)),
            Command::Write { ino, .. }
            | Command::Append { ino, .. }
            | Command::Allocate { ino, .. }
            | Command::SetAttributes { ino, .. }
            | Command::SetXattr { ino, .. }
            | Command::RemoveXattr { ino, .. }
            | Command::SetAcl { ino, .. }
            | Command::SetExpiry { ino, .. }
            | Command::SetDefaultTtl { ino, .. }
            | Command::SetEphemeral { ino, .. } => self.resolve_ino(ino),
            _ => {}
        }
    }

    fn resolve_ino(&self, ino: &mut Ino) {
        let of_kind = |wanted: Option<FileKind>| {
            let all = self.nodes.iter().filter(move |(_, node)| wanted.is_none_or(|kind| node.kind == kind));
            all.map(|(ino, _)| *ino).collect::<Vec<_>>()
        };
        let all = match ino.0 / STEP {
            1 => of_kind(Some(FileKind::Directory)),
            2 => of_kind(Some(FileKind::File)),
            3 => of_kind(None),
            _ => return,
        };
        *ino = all.get(ino.0 as usize % STEP as usize % all.len().max(1)).copied().unwrap_or(Ino(99));
    }

    /// The inode at a place, after resolving what `pick` marks.
    pub fn look(&self, place: &mut Place) -> Option<Ino> {
        self.resolve_place(&mut place.parent, &mut place.name);
        self.lookup(place.parent, &place.name)
    }

    fn resolve_place(&self, parent: &mut Ino, name: &mut Name) {
        if parent.0 / STEP != 4 {
            return self.resolve_ino(parent);
        }
        let all = self.nodes.iter().flat_map(|(ino, node)| node.entries.iter().map(|(name, _)| (*ino, name.clone())));
        let all: Vec<_> = all.collect();
        match all.get(parent.0 as usize % STEP as usize % all.len().max(1)) {
            Some(place) => (*parent, *name) = place.clone(),
            None => *parent = Ino::ROOT,
        }
    }
}
