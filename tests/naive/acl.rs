//! Access control lists, one sentence of acl(5) after another.

use super::{Naive, Node};
use crate::world::acl::{self, Entry};
use bytes::Bytes;
use keelfs::fs::*;

/// "A valid ACL contains exactly one entry with each of the tags owner, group and others; named ones only together with
/// a mask", and the entries are in the order of their tags.
fn is_valid(entries: &[Entry]) -> bool {
    let count = |tag: u16| entries.iter().filter(|entry| entry.tag == tag).count();
    let named = count(acl::USER) + count(acl::NAMED_GROUP);
    entries.is_sorted_by_key(|entry| entry.tag)
        && [acl::OWNER, acl::GROUP, acl::OTHERS].into_iter().all(|tag| count(tag) == 1)
        && (count(acl::MASK) == 1 || count(acl::MASK) == 0 && named == 0)
        && entries.iter().all(|entry| entry.permissions < 8)
}

/// "The group class permissions are those of the mask if there is one, and else of the owning group": by these entries
/// list and mode correspond, and how far each is shifted in a mode.
fn correspondence(entries: &[Entry]) -> [(u16, u32); 3] {
    let masked = entries.iter().any(|entry| entry.tag == acl::MASK);
    [(acl::OWNER, 6), (if masked { acl::MASK } else { acl::GROUP }, 3), (acl::OTHERS, 0)]
}

fn mode_of(entries: &[Entry]) -> u32 {
    let bits =
        |(tag, shift)| entries.iter().filter(move |e| e.tag == tag).map(move |e| u32::from(e.permissions) << shift);
    correspondence(entries).into_iter().flat_map(bits).sum()
}

/// "The corresponding entries are modified", each by the mode's bits of its class.
fn modified(mut entries: Vec<Entry>, mode: u32, modify: impl Fn(u16, u16) -> u16) -> Vec<Entry> {
    for (tag, shift) in correspondence(&entries) {
        let class = (mode >> shift & 7) as u16;
        entries.iter_mut().filter(|e| e.tag == tag).for_each(|e| e.permissions = modify(e.permissions, class));
    }
    entries
}

fn put(node: &mut Node, kind: AclKind, entries: &[Entry]) {
    let name = Bytes::from_static(kind.name());
    match kind == AclKind::Access && entries.len() == 3 {
        true => drop(node.xattrs.remove(&name)),
        false => drop(node.xattrs.insert(name, acl::encode(entries))),
    }
}

fn get(node: &Node, kind: AclKind) -> Option<Vec<Entry>> {
    node.xattrs.get(kind.name()).map(|list| acl::decode(list))
}

impl Naive {
    pub(super) fn set_acl(&mut self, ino: Ino, kind: AclKind, list: Option<&Bytes>, keep_setgid: bool) -> Outcome {
        let node = self.node(ino)?;
        if node.kind == FileKind::Symlink {
            return Err(Refusal::Unsupported);
        }
        let Some(entries) = list.map(|list| acl::decode(list)) else {
            return match node.xattrs.remove(kind.name()) {
                Some(_) => self.done(ino),
                None => Ok(Reply::Done),
            };
        };
        if !is_valid(&entries) {
            return Err(Refusal::Invalid);
        }
        if kind == AclKind::Default && node.kind != FileKind::Directory {
            return Err(Refusal::NotDirectory);
        }
        put(node, kind, &entries);
        if kind == AclKind::Access {
            node.mode = node.mode & 0o7000 | mode_of(&entries);
            node.mode &= if keep_setgid { 0o7777 } else { 0o5777 };
        }
        self.done(ino)
    }

    /// "If a default ACL is associated with the directory, the mode parameter and the default ACL determine the ACL of the
    /// new object", a subdirectory gets the default list too; "if not, the mode minus the umask".
    pub(super) fn inherit(&mut self, parent: Ino, node: &mut Node, umask: u32) {
        match get(&self.nodes[&parent], AclKind::Default) {
            _ if node.kind == FileKind::Symlink => {}
            None => node.mode &= !(umask & 0o777),
            Some(default) => {
                let access = modified(default.clone(), node.mode, |listed, asked| listed & asked);
                node.mode = node.mode & 0o7000 | mode_of(&access);
                put(node, AclKind::Access, &access);
                if node.kind == FileKind::Directory {
                    put(node, AclKind::Default, &default);
                }
            }
        }
    }
}

/// After a `chmod`.
pub(super) fn follow_mode(node: &mut Node) {
    if let Some(entries) = get(node, AclKind::Access) {
        put(node, AclKind::Access, &modified(entries, node.mode, |_, asked| asked));
    }
}
