//! `keelfs write` of more than one step replaces the content of a file, and nothing else of it.

use crate::common::Cluster;
use crate::common::process::Finished;
use crate::common::xattr::list;
use rustix::fs::{CWD, FileType, XattrFlags, getxattr, mknodat, setxattr};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

const SMALL: usize = 10;
const LARGE: usize = 3 << 20;

fn write(cluster: &Cluster, path: &str, content: &Path) -> Finished {
    cluster.keelfs(&["write", path, &content.to_string_lossy(), "--node", &cluster.address(1)])
}

fn is_refused(written: &Finished) -> bool {
    written.status.is_some_and(|status| status.code() == Some(1))
}

/// What a file is to those who may and may not use it.
fn guise(file: &Path) -> (u32, u32, u32, Vec<String>, Vec<u8>) {
    let found = fs::metadata(file).expect("a file");
    let mut note = vec![0; 64];
    let length = getxattr(file, "user.note", &mut note[..]).unwrap_or_default();
    note.truncate(length);
    (found.mode() & 0o7777, found.uid(), found.gid(), list(file), note)
}

#[test]
fn large_writes_change_what_small_ones_change() {
    let cluster = Cluster::start(1, [1]);
    let mount = cluster.at(1);
    let mut seen = Vec::new();
    for length in [SMALL, LARGE] {
        let content = cluster.outside(&format!("content-{length}"));
        fs::write(&content, vec![b'x'; length]).expect("a file");
        let name = format!("secret-{length}");
        let file = mount.join(&name);
        fs::write(&file, "old").expect("a write");
        chown(&file, Some(1234), Some(5678)).expect("a chown");
        fs::set_permissions(&file, Permissions::from_mode(0o4750)).expect("a chmod");
        setxattr(&file, "user.note", b"kept", XattrFlags::empty()).expect("an attribute");
        write(&cluster, &format!("/{name}"), &content).expect_success();
        assert_eq!(fs::metadata(&file).expect("a file").len(), length as u64);
        seen.push(guise(&file));

        symlink("nowhere", mount.join(format!("link-{length}"))).expect("a link");
        assert!(is_refused(&write(&cluster, &format!("/link-{length}"), &content)));
        assert!(mount.join(format!("link-{length}")).is_symlink(), "the link was replaced");
        let fifo = mount.join(format!("fifo-{length}"));
        mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).expect("a fifo");
        assert!(is_refused(&write(&cluster, &format!("/fifo-{length}"), &content)));
        assert!(fs::symlink_metadata(&fifo).expect("a fifo").file_type().is_fifo(), "the fifo was replaced");
    }
    assert_eq!(seen[0], seen[1], "after a small write and after a large one");
    let (mode, uid, gid, _, note) = &seen[1];
    assert_eq!((*mode, *uid, *gid, &note[..]), (0o4750, 1234, 5678, &b"kept"[..]));
    let hidden = fs::read_dir(mount)
        .expect("a list")
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".keelfs-write-"));
    assert_eq!(hidden.count(), 0, "an upload lies about");
}
