//! A random tree against a model: each client has a directory of its own, changes it at random, and knows what must be in
//! it. Where a change is unknown, it must have been made or not; the directory is then left alone.

use crate::client::Player;
use crate::finals::Finals;
use crate::history::{Answer, Call, History, Outcome};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

/// What is where, in words.
type Look = BTreeMap<String, String>;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "d/a", "d/b", "e", "e/a"];
const FILE_BYTES_MAX: u64 = 9000;

/// The tree as it must be. Files by number, because names may share one.
#[derive(Clone, Default)]
struct Model {
    names: BTreeMap<String, Kind>,
    files: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

#[derive(Clone, PartialEq)]
enum Kind {
    Directory,
    File(u64),
    Link(String),
}

#[derive(Clone, Debug)]
enum Change {
    Mkdir(String),
    Create(String),
    Write(String, u64, Vec<u8>),
    Append(String, Vec<u8>),
    Truncate(String, u64),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
}

pub fn play(player: &mut Player) {
    while player.running() {
        let directory = format!("tree/{}", player.unique());
        let root = player.own().join(&directory);
        let made = player.call(Call::Do { what: format!("mkdir {directory}") }, || {
            fs::create_dir(&root)?;
            Ok(Answer::Done)
        });
        if matches!(made, Outcome::Ok(_)) {
            let one_of = live_in(player, &directory, &root);
            player.expect(&directory, one_of.iter().map(Model::look).collect());
        }
        player.pause(50, 200);
    }
}

/// Change the directory until the end, or until a change is unknown: what it then may look like.
fn live_in(player: &mut Player, directory: &str, root: &Path) -> Vec<Model> {
    let mut model = Model::default();
    for step in 1.. {
        if !player.running() {
            break;
        }
        let Some((change, after)) = propose(player, &model) else { continue };
        let call = Call::Do { what: format!("{change:.80?} in {directory}") };
        match player.call(call, || change.make(root).map(|()| Answer::Done)) {
            Outcome::Ok(_) => model = after,
            Outcome::Failed(_) => {}
            Outcome::Unknown(_) => return vec![model, after],
        }
        if step % 12 == 0 {
            compare(player, directory, &model);
        }
        player.pause(30, 150);
    }
    vec![model]
}

fn compare(player: &mut Player, directory: &str, model: &Model) {
    let mount = player.any();
    let path = mount.join(directory);
    player.call(Call::Do { what: format!("look at {}", path.display()) }, || {
        let (found, expected) = (look(&path)?, model.look());
        if found != expected {
            player.violation(format!("{} is {found:?}, and must be {expected:?}", path.display()));
        }
        Ok(Answer::Done)
    });
}

/// A change that can be made, and the model behind it.
fn propose(player: &mut Player, model: &Model) -> Option<(Change, Model)> {
    let (name, other) = (player.dice.of(&NAMES).to_string(), player.dice.of(&NAMES).to_string());
    let bytes = player.dice.below(FILE_BYTES_MAX);
    let fill = vec![player.dice.between(b'a'.into(), b'z'.into()) as u8; bytes as usize];
    let change = match player.dice.below(13) {
        0 => Change::Mkdir(["d", "e"][player.dice.below(2) as usize].into()),
        1..3 => Change::Create(name),
        3..5 => Change::Write(name, player.dice.below(FILE_BYTES_MAX), fill),
        5..7 => Change::Append(name, fill),
        7 => Change::Truncate(name, bytes),
        8 => Change::Unlink(name),
        9 => Change::Rmdir(name),
        10 => Change::Rename(name, other),
        11 => Change::Link(name, other),
        _ => Change::Symlink(other, name),
    };
    let mut after = model.clone();
    after.apply(&change)?;
    Some((change, after))
}

impl Change {
    fn make(&self, root: &Path) -> io::Result<()> {
        match self {
            Change::Mkdir(name) => fs::create_dir(root.join(name)),
            Change::Create(name) => File::create_new(root.join(name)).map(drop),
            Change::Write(name, at, bytes) => {
                OpenOptions::new().write(true).open(root.join(name))?.write_all_at(bytes, *at)
            }
            Change::Append(name, bytes) => OpenOptions::new().append(true).open(root.join(name))?.write_all(bytes),
            Change::Truncate(name, bytes) => OpenOptions::new().write(true).open(root.join(name))?.set_len(*bytes),
            Change::Unlink(name) => fs::remove_file(root.join(name)),
            Change::Rmdir(name) => fs::remove_dir(root.join(name)),
            Change::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
            Change::Link(from, to) => fs::hard_link(root.join(from), root.join(to)),
            Change::Symlink(target, name) => symlink(target, root.join(name)),
        }
    }
}

impl Model {
    /// `None`: it would be refused, and is not tried.
    fn apply(&mut self, change: &Change) -> Option<()> {
        match change {
            Change::Mkdir(name) => self.put(name, Kind::Directory),
            Change::Create(name) => {
                self.next += 1;
                self.files.insert(self.next, Vec::new());
                self.put(name, Kind::File(self.next))
            }
            Change::Write(name, at, bytes) => {
                let file = self.file(name)?;
                let end = *at as usize + bytes.len();
                // A write of no bytes extends nothing.
                if !bytes.is_empty() {
                    file.resize(file.len().max(end), 0);
                    file[*at as usize..end].copy_from_slice(bytes);
                }
                Some(())
            }
            Change::Append(name, bytes) => {
                self.file(name)?.extend_from_slice(bytes);
                Some(())
            }
            Change::Truncate(name, bytes) => {
                self.file(name)?.resize(*bytes as usize, 0);
                Some(())
            }
            Change::Unlink(name) if self.names.get(name)? != &Kind::Directory => self.names.remove(name).map(drop),
            Change::Unlink(_) => None,
            Change::Rmdir(name) => {
                let inside = format!("{name}/");
                let empty = !self.names.keys().any(|other| other.starts_with(&inside));
                (self.names.get(name)? == &Kind::Directory && empty).then(|| drop(self.names.remove(name)))
            }
            Change::Rename(from, to) => self.rename(from, to),
            Change::Link(from, to) => match self.names.get(from)?.clone() {
                Kind::File(number) => self.put(to, Kind::File(number)),
                _ => None,
            },
            Change::Symlink(target, name) => self.put(name, Kind::Link(target.clone())),
        }
    }

    /// Two names of one file are left as they are, as rename(2) has it.
    fn rename(&mut self, from: &str, to: &str) -> Option<()> {
        let moved = self.names.get(from).filter(|kind| **kind != Kind::Directory)?.clone();
        match self.names.get(to) {
            Some(Kind::Directory) => return None,
            Some(same) if *same == moved && matches!(moved, Kind::File(_)) => return Some(()),
            Some(_) => drop(self.names.remove(to)),
            None => {}
        }
        self.put(to, moved)?;
        (from != to).then(|| drop(self.names.remove(from)))
    }

    fn put(&mut self, name: &str, kind: Kind) -> Option<()> {
        let parent = name.split_once('/').map(|(parent, _)| parent);
        let has_parent = parent.is_none_or(|parent| self.names.get(parent) == Some(&Kind::Directory));
        (has_parent && !self.names.contains_key(name)).then(|| drop(self.names.insert(name.into(), kind)))
    }

    fn file(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        match self.names.get(name)? {
            Kind::File(number) => self.files.get_mut(number),
            _ => None,
        }
    }

    fn look(&self) -> Look {
        let names_of = |number| self.names.values().filter(|kind| **kind == Kind::File(number)).count() as u64;
        let described = self.names.iter().map(|(name, kind)| {
            let what = match kind {
                Kind::Directory => "directory".to_owned(),
                Kind::Link(target) => format!("link to {target}"),
                Kind::File(number) => file(&self.files[number], names_of(*number)),
            };
            (name.clone(), what)
        });
        described.collect()
    }
}

fn file(content: &[u8], names: u64) -> String {
    format!("{} bytes, sum {:08x}, {names} names", content.len(), crc32c::crc32c(content))
}

/// What is below a directory, in the words of the model.
pub fn look(root: &Path) -> io::Result<Look> {
    let mut found = Look::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let metadata = fs::symlink_metadata(&path)?;
        let what = if metadata.is_dir() {
            found.extend(look(&path)?.into_iter().map(|(inner, what)| (format!("{name}/{inner}"), what)));
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("link to {}", fs::read_link(&path)?.display())
        } else {
            file(&fs::read(&path)?, metadata.nlink())
        };
        found.insert(name, what);
    }
    Ok(found)
}

/// The final directories were read by the harness, in the same words.
pub fn check(history: &History, finals: &Finals) -> Vec<String> {
    let wrong = history.expected.iter().filter_map(|(directory, one_of)| {
        let found = finals.looks.get(directory)?;
        (!one_of.contains(found)).then(|| format!("{directory} is {found:?}, and must be one of {one_of:?}"))
    });
    let lost = history.expected.iter().filter(|(directory, _)| !finals.looks.contains_key(directory));
    wrong.chain(lost.map(|(directory, _)| format!("{directory} is lost"))).collect()
}
