//! Which files a body belongs to: for messages about one that is damaged.

use super::*;
use std::collections::BTreeSet;

impl State {
    /// Paths of the files that refer to the body of this entry, at most `count` of them, each by its first name; a file
    /// without a name is its inode's number in angle brackets. O(n) in extents.
    pub fn files_of_body(&self, index: LogIndex, count: usize) -> Vec<Vec<u8>> {
        let inodes = self.extents.iter().filter(|(_, extent)| extent.index == index).map(|((ino, _), _)| *ino);
        let inodes: BTreeSet<Ino> = inodes.collect();
        inodes.into_iter().take(count).map(|ino| self.path_of(ino)).collect()
    }

    fn path_of(&self, ino: Ino) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = ino;
        // No deeper than there are inodes, even if the tree were not one.
        for _ in 0..=self.inodes.len() {
            if at == Ino::ROOT {
                let joined = names.iter().rev().flat_map(|name: &Name| [b"/", name.as_bytes()].concat());
                return joined.collect();
            }
            let Some((parent, name)) = self.places(at).next() else { break };
            names.push(name);
            at = parent;
        }
        format!("<inode {}>", ino.0).into_bytes()
    }
}
