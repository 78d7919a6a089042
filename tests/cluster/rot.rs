//! Bits flip on disks: what is read is right or an error, what is damaged is mended, and a node that cannot be believed
//! ends with a code that says so.

use crate::common::process::{Finished, run};
use crate::common::{Cluster, wait_for};
use keelfs::codec;
use keelfs::fs::{Importer, Item};
use keelfs::log::Log;
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
/// The exit code for damaged data and diverged replicas.
const DAMAGED: i32 = 75;

/// Bytes that do not repeat.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..length).map(|_| next()).collect()
}

fn log_of(cluster: &Cluster, node: u64) -> PathBuf {
    cluster.directory().join(format!("node-{node}/log"))
}

/// Flip a bit wherever these bytes are in a node's log, or at the place that `at` finds near them.
fn rot_at(cluster: &Cluster, node: u64, bytes: &[u8], at: impl Fn(&[u8], usize) -> usize) {
    let mut found = 0;
    for entry in fs::read_dir(log_of(cluster, node)).expect("a log") {
        let path = entry.expect("a file").path();
        let content = fs::read(&path).expect("its content");
        let file = File::options().write(true).open(&path).expect("a file");
        for place in content.windows(bytes.len()).enumerate().filter(|(_, w)| *w == bytes).map(|(place, _)| place) {
            let place = at(&content, place);
            file.write_all_at(&[content[place] ^ 4], place as u64).expect("a flipped bit");
            found += 1;
        }
    }
    assert!(found > 0, "node {node} does not have these bytes");
}

fn rot(cluster: &Cluster, node: u64, bytes: &[u8]) {
    rot_at(cluster, node, bytes, |_, place| place + 3);
}

/// In the header of the record that holds these bytes.
fn rot_header(cluster: &Cluster, node: u64, bytes: &[u8]) {
    rot_at(cluster, node, bytes, |content, place| {
        content[..place].windows(4).rposition(|word| word == b"kREC").expect("a record") + 20
    });
}

fn keelfs(arguments: &[&str]) -> Finished {
    run(Command::new(env!("CARGO_BIN_EXE_keelfs")).args(arguments), None, LIMIT)
}

fn check(cluster: &Cluster, option: &str) -> Finished {
    let directory = cluster.directory();
    let checked = keelfs(&["check", option, "--dir", directory.to_str().expect("a path")]);
    println!("keelfs check {option}: {:?}\n{}{}", checked.status, checked.stdout, checked.stderr);
    checked
}

/// Run a node that is expected to end by itself.
fn serve(cluster: &Cluster, node: u64) -> Finished {
    let data = cluster.directory().join(format!("node-{node}"));
    let ended = keelfs(&["serve", "--data", data.to_str().expect("a path")]);
    let last = ended.stderr.lines().next_back().unwrap_or_default();
    println!("node {node} ended: {:?}\n{last}", ended.status);
    ended
}

fn exit_code(finished: &Finished) -> Option<i32> {
    finished.status.and_then(|status| status.code())
}

/// Row 14.
#[test]
fn damaged_file_data_is_never_served_and_is_mended_by_reading_it() {
    let cluster = Cluster::start(3, 1..=3);
    let content = noise(1, 3 << 20);
    fs::write(cluster.at(1).join("file"), &content).expect("a write");
    cluster.expect_agreement();
    // Restarted, so that nothing of it is in memory.
    cluster.restart(&[2]);
    rot(&cluster, 2, &content[1_500_000..1_500_100]);
    assert!(fs::read(cluster.at(2).join("file")).expect("a read") == content, "wrong bytes were served");
    wait_for("the record to be mended", || {
        let said = fs::read_to_string(cluster.directory().join("node-2.log")).expect("what node 2 says");
        said.contains("was mended").then_some(())
    });
    check(&cluster, "--data").expect_success();

    // The same range on all three: an error, there and nowhere else.
    cluster.restart(&[1, 2, 3]);
    (1..=3).for_each(|node| rot(&cluster, node, &content[2_500_000..2_500_100]));
    let checked = check(&cluster, "--repair");
    assert_eq!(exit_code(&checked), Some(DAMAGED));
    assert!(checked.stdout.contains("bytes of /file") && checked.stderr.contains("from a backup"));
    for node in 1..=3 {
        let file = File::open(cluster.at(node).join("file")).expect("the file");
        let mut piece = vec![0; 4096];
        let failed = file.read_exact_at(&mut piece, 2_500_000).expect_err("a read of what is lost");
        assert_eq!(Errno::from_io_error(&failed), Some(Errno::IO), "{failed}");
        for at in [0, 1_500_000, 2_400_000, 2_700_000] {
            file.read_exact_at(&mut piece, at).expect("a read beside it");
            assert!(piece == content[at as usize..][..4096], "wrong bytes at {at}");
        }
    }
}

/// Row 12, and what nobody has read yet.
#[test]
fn rot_in_the_log_is_mended_from_peers_or_the_node_refuses_to_start() {
    let cluster = Cluster::start(3, [1]);
    for number in 0..5 {
        fs::write(cluster.at(1).join(format!("precious-{number}")), noise(number, 9000)).expect("a write");
    }
    cluster.expect_agreement();

    // Found by looking, mended when that is wanted.
    cluster.restart(&[3]);
    rot(&cluster, 3, &noise(4, 9000)[..100]);
    let checked = check(&cluster, "--data");
    assert_eq!(exit_code(&checked), Some(DAMAGED));
    assert!(checked.stdout.contains("/precious-4") && checked.stderr.contains("node 3"), "file and node are named");
    assert!(check(&cluster, "--repair").expect_success().stdout.contains("mended"));
    check(&cluster, "--data").expect_success();

    // In the header of an entry, while nobody can help: refused, by name and place, with what to do.
    cluster.kill(&[1, 2, 3]);
    rot_header(&cluster, 2, b"precious-2");
    let refused = serve(&cluster, 2);
    assert_eq!(exit_code(&refused), Some(DAMAGED));
    for word in [".seg is damaged at offset ", "(entry ", "keelfs member replace"] {
        assert!(refused.stderr.contains(word), "{word:?} is not said: {}", refused.stderr);
    }
    // With the others it starts, whole.
    cluster.restart(&[1, 2, 3]);
    cluster.expect_agreement();
    check(&cluster, "--data").expect_success();
}

/// Row 42: the newest snapshot of a stopped node is made to say something else, with right checksums and the right hash.
#[test]
fn a_node_whose_state_has_diverged_fences_itself_and_the_others_serve() {
    let cluster = Cluster::start(3, [1]);
    fs::write(cluster.at(1).join("the-truth"), "x").expect("a write");
    let block = noise(7, 1 << 20);
    wait_for("node 2 to have a snapshot", || {
        (0..16).for_each(|number| fs::write(cluster.at(1).join(format!("{number}")), &block).expect("a write"));
        let nodes = cluster.status();
        nodes.iter().find(|node| node.id == 2)?.row["snapshot"].as_u64().filter(|index| *index > 0)
    });
    cluster.kill(&[2]);
    forge(&log_of(&cluster, 2), b"the-truth", b"the-trick");
    let ended = serve(&cluster, 2);
    assert_eq!(exit_code(&ended), Some(DAMAGED));
    assert!(ended.stderr.contains("it has diverged and serves nothing more"), "{}", ended.stderr);
    let again = serve(&cluster, 2);
    assert_eq!(exit_code(&again), Some(DAMAGED));
    assert!(again.stderr.contains("keelfs member replace"), "{}", again.stderr);
    fs::write(cluster.at(1).join("after"), "the others go on").expect("a write");
    assert_eq!(fs::read_to_string(cluster.at(1).join("the-truth")).expect("a read"), "x");
}

/// Give another name to one file of the newest snapshot.
fn forge(directory: &Path, name: &[u8], other: &[u8]) {
    let log = Log::open(directory).expect("a log");
    let reader = log.open_snapshot().expect("a disk").expect("a snapshot");
    let (last, meta) = (reader.last, reader.meta.clone());
    let mut items: Vec<Vec<u8>> = reader.map(|item| item.expect("an item").to_vec()).collect();
    let place = |item: &&mut Vec<u8>| item.windows(name.len()).position(|window| window == name);
    let (at, item) = items.iter_mut().find_map(|item| Some((place(&item)?, item))).expect("the name");
    item[at..at + name.len()].copy_from_slice(other);
    let import = |items: &[Vec<u8>]| {
        let mut importer = Importer::new();
        items
            .iter()
            .for_each(|item| importer.add(codec::decode::<Item>("item", item).expect("an item")).expect("order"));
        importer.finish()
    };
    // The header ends with the hash.
    let said = import(&items).err().expect("another hash").to_string();
    let hash = said.split("the hash is ").nth(1).and_then(|rest| rest.get(..32)).expect("the hash that it has");
    let end = items[0].len();
    items[0][end - 16..].copy_from_slice(&u128::from_str_radix(hash, 16).expect("a hash").to_le_bytes());
    import(&items).map(drop).expect("a sound state");
    log.write_snapshot(last, meta, &mut items.into_iter().map(|item| Ok(item.into()))).expect("a snapshot");
}
