//! Core and model, asked the same questions.

use super::{Naive, Node};
use crate::world::{SECOND_NS, World};
use bytes::Bytes;
use keelfs::fs::*;

impl Naive {
    /// Everything that can be asked of the core must be what the model holds.
    pub fn compare(&self, world: &World) {
        match world.ask(Query::Usage) {
            Ok(Answer::Usage(usage)) => assert_eq!(usage.inodes, self.nodes.len() as u64, "inodes"),
            other => panic!("usage: {other:?}"),
        }
        for (ino, node) in &self.nodes {
            let mut found = world.attributes(*ino).expect("an inode");
            if node.kind == FileKind::Directory {
                found.size = 0;
                let listed =
                    world.list(*ino).unwrap().into_iter().map(|e| (e.name, e.attributes.ino)).collect::<Vec<_>>();
                assert_eq!(listed, node.entries, "entries of {ino:?}");
            }
            assert_eq!(found, self.attributes(*ino), "attributes");
            if node.kind == FileKind::File {
                self.compare_content(world, *ino, node);
            }
            self.compare_xattrs(world, *ino, node);
        }
    }

    fn compare_content(&self, world: &World, ino: Ino, node: &Node) {
        let expected: Vec<u8> = node.bytes.iter().map(|byte| byte.unwrap_or(0)).collect();
        assert_eq!(world.bytes(ino, 0, u64::MAX).unwrap(), expected, "content of {ino:?}");
        let (from, to) = (expected.len() / 3, expected.len() * 2 / 3);
        assert_eq!(world.bytes(ino, from as u64, (to - from) as u64).unwrap(), expected[from..to], "part of {ino:?}");
        for at in [0, from, to, expected.len()] {
            let next = |hole: bool| (at..node.bytes.len()).find(|i| node.bytes[*i].is_none() == hole).map(|i| i as u64);
            let end_of_data = (at < node.bytes.len()).then(|| next(true).unwrap_or(node.bytes.len() as u64));
            for (hole, expected) in [(false, next(false)), (true, end_of_data)] {
                let found = world.ask(Query::Seek { ino, offset: at as u64, hole });
                assert_eq!(found, Ok(Answer::Offset(expected)), "seek in {ino:?} from {at}, hole: {hole}");
            }
        }
    }

    fn compare_xattrs(&self, world: &World, ino: Ino, node: &Node) {
        let names: Vec<u8> = node.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect();
        assert_eq!(world.ask(Query::ListXattrs { ino }), Ok(Answer::Bytes(names.into())), "attributes of {ino:?}");
        let stored = node.xattrs.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
        let computed = [
            ("version", Some(node.version.0.to_string())),
            ("change", Some(node.change.0.to_string())),
            ("ttl", node.deadline.map(|d| d.saturating_sub(self.now).div_ceil(SECOND_NS).max(1).to_string())),
            ("default-ttl", node.default_ttl.map(|ttl| (ttl / SECOND_NS).to_string())),
            ("replace-if", node.replace_if.map(|v| v.0.to_string())),
            ("ephemeral", node.ephemeral.map(|_| "session".to_owned())),
        ];
        let computed =
            computed.map(|(name, value)| (Bytes::from(format!("user.keelfs.{name}")), value.map(Bytes::from)));
        for (name, value) in stored.chain(computed) {
            let expected = value.map(Answer::Bytes).ok_or(Refusal::NoSuchXattr);
            assert_eq!(world.ask(Query::Xattr { ino, name: name.clone() }), expected, "{name:?} of {ino:?}");
        }
    }
}
