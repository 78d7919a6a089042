//! What one mount has done, the other sees: every time, at once.

use crate::common::{Cluster, rounds, wait_for};
use rustix::fs::{FlockOperation, XattrFlags, flock, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Raise `KEELFS_ROUNDS` (to 10,000, say) to look longer.
/// Holds [V1].
#[test]
fn what_one_mount_has_written_the_other_reads() {
    let cluster = Cluster::start(5, [1, 2]);
    let rounds = rounds("KEELFS_ROUNDS", 500);
    let held = [cluster.at(1), cluster.at(2)].map(|mount| {
        let path = mount.join("held");
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).expect("the held file")
    });
    for round in 0..rounds {
        let (here, there) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let (writer, reader) = (cluster.at(here as u64 + 1), cluster.at(there as u64 + 1));
        match round / 2 % 8 {
            0 => replaced(writer, reader, round),
            1 => appended(writer, reader, round),
            2 => created_and_removed(writer, reader, round),
            3 => renamed(writer, reader, round),
            4 => made_another_mode(writer, reader, round),
            5 => given_an_attribute(writer, reader, round),
            6 => locked(&held[here], &held[there], round),
            _ => written_in_place(&held[here], &held[there], round),
        }
    }
    println!("{rounds} alternating changes over two mounts were seen by the other mount");
    cluster.expect_agreement();
}

fn replaced(writer: &Path, reader: &Path, round: usize) {
    let content = format!("{round} ").repeat(1 + round % 400);
    fs::write(writer.join("replaced"), &content).expect("a write");
    assert_eq!(fs::read_to_string(reader.join("replaced")).expect("a read"), content, "round {round}");
}

fn appended(writer: &Path, reader: &Path, round: usize) {
    let path = writer.join("appended");
    let before = fs::metadata(reader.join("appended")).map_or(0, |file| file.len());
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("an open for appending");
    let line = format!("round {round}\n");
    file.write_all(line.as_bytes()).expect("an append");
    assert_eq!(fs::metadata(reader.join("appended")).expect("a stat").len(), before + line.len() as u64);
    assert!(fs::read_to_string(reader.join("appended")).expect("a read").ends_with(&line), "round {round}");
}

fn created_and_removed(writer: &Path, reader: &Path, round: usize) {
    let name = format!("new-{round}");
    assert!(!reader.join(&name).exists(), "a name that was never made (it also tempts the kernel to remember so)");
    File::create_new(writer.join(&name)).expect("a new file");
    assert!(reader.join(&name).exists(), "round {round}: created there, missing here");
    assert!(names(reader).contains(&name), "round {round}: created there, not listed here");
    fs::remove_file(writer.join(&name)).expect("an unlink");
    assert!(!reader.join(&name).exists(), "round {round}: removed there, still here");
    assert!(!names(reader).contains(&name), "round {round}: removed there, still listed here");
}

fn renamed(writer: &Path, reader: &Path, round: usize) {
    fs::write(writer.join("incoming"), round.to_string()).expect("a write");
    fs::rename(writer.join("incoming"), writer.join("current")).expect("a rename");
    assert_eq!(fs::read_to_string(reader.join("current")).expect("a read"), round.to_string());
    assert!(!reader.join("incoming").exists(), "round {round}: the old name is still here");
}

/// Both sides keep their files open: the reader's pages must not outlive the writer's write.
fn written_in_place(writer: &File, reader: &File, round: usize) {
    let content = format!("{round:08}");
    writer.write_all_at(content.as_bytes(), 4096).expect("a write in place");
    let mut seen = [0; 8];
    reader.read_exact_at(&mut seen, 4096).expect("a read in place");
    assert_eq!(seen, content.as_bytes(), "round {round}");
}

fn made_another_mode(writer: &Path, reader: &Path, round: usize) {
    let mode = 0o600 + round as u32 % 0o100;
    fs::set_permissions(writer.join("held"), fs::Permissions::from_mode(mode)).expect("a chmod");
    assert_eq!(fs::metadata(reader.join("held")).expect("a stat").mode() & 0o777, mode, "round {round}");
}

fn given_an_attribute(writer: &Path, reader: &Path, round: usize) {
    let (name, value, mut seen) = ("user.round", round.to_string(), [0; 20]);
    setxattr(writer.join("held"), name, value.as_bytes(), XattrFlags::empty()).expect("an attribute");
    let length = getxattr(reader.join("held"), name, &mut seen[..]).expect("the attribute");
    assert_eq!(&seen[..length], value.as_bytes(), "round {round}");
    removexattr(writer.join("held"), name).expect("a removal");
    assert_eq!(getxattr(reader.join("held"), name, &mut seen[..]), Err(Errno::NODATA), "round {round}: removed there");
}

fn locked(writer: &File, reader: &File, round: usize) {
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    assert_eq!(flock(writer, exclusive), Ok(()), "round {round}");
    assert_eq!(flock(reader, exclusive), Err(Errno::AGAIN), "round {round}: locked there, free here");
    flock(writer, FlockOperation::Unlock).expect("an unlock");
    assert_eq!(flock(reader, exclusive), Ok(()), "round {round}: given back there, locked here");
    flock(reader, FlockOperation::Unlock).expect("an unlock");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Holds [V2], [V3].
#[test]
fn an_unlinked_open_file_stays_readable_on_another_mount_and_then_goes() {
    let cluster = Cluster::start(5, [1, 2]);
    let before = inodes_used(cluster.at(1));
    fs::write(cluster.at(1).join("doomed"), "still here").expect("a write");
    let mut open = OpenOptions::new().read(true).write(true).open(cluster.at(2).join("doomed")).expect("an open");
    fs::remove_file(cluster.at(1).join("doomed")).expect("an unlink");
    assert!(!cluster.at(2).join("doomed").exists());

    let mut content = String::new();
    open.read_to_string(&mut content).expect("a read of an unlinked file");
    assert_eq!(content, "still here");
    open.write_all(b", and growing").expect("a write to an unlinked file");
    // longer than the sessions need to say which orphans they hold, so a node that forgot ours would free it now
    std::thread::sleep(std::time::Duration::from_secs(5));
    let mut content = vec![0; 23];
    open.read_exact_at(&mut content, 0).expect("a read after a while");
    assert_eq!(content, b"still here, and growing");
    assert_eq!(open.metadata().expect("its attributes").nlink(), 0);
    assert_eq!(inodes_used(cluster.at(1)), before + 1, "the orphan is an inode");
    println!("the orphan was read, written and kept");

    drop(open);
    wait_for("the orphan's inode to go after its close", || (inodes_used(cluster.at(1)) == before).then_some(()));
    cluster.expect_agreement();
}

fn inodes_used(mount: &Path) -> u64 {
    let counts = rustix::fs::statvfs(mount).expect("statfs");
    counts.f_files - counts.f_ffree
}

/// The process of a mount is killed with a file open: who holds it is told so, and the next start mounts anew.
#[test]
fn a_killed_mount_says_so_and_is_mounted_again() {
    let cluster = Cluster::start(1, [1]);
    let path = cluster.at(1).join("open");
    let mut file = File::create(&path).expect("a new file");
    file.write_all(b"before").expect("a write");
    cluster.signal_mount(1, Signal::KILL);
    let refused = wait_for("the kernel to notice", || file.write_all(b"after").err());
    assert!([libc::ENOTCONN, libc::ECONNABORTED].map(Some).contains(&refused.raw_os_error()), "{refused}");
    let gone = fs::metadata(cluster.at(1)).expect_err("a mount without a process");
    assert_eq!(gone.raw_os_error(), Some(libc::ENOTCONN));
    cluster.command(["start".into()]).expect_success();
    cluster.wait_until_whole();
    assert_eq!(fs::read_to_string(&path).expect("the file"), "before");
    assert!(file.write_all(b"after").is_err(), "a descriptor of the dead mount stays dead");
}
