//! Rot on one node's disk: found, mended from the others, never served, never the end of more than its node.

use super::*;
use crate::codec;
use crate::fs::{Importer, Item};
use crate::log::{StorageError, rot};

impl Cluster {
    fn rot(&self, id: NodeId, bytes: &[u8]) {
        rot::rot(self.log_of(id), bytes);
    }

    fn log_of(&self, id: NodeId) -> &Path {
        self.nodes[id as usize - 1].directory.path()
    }

    /// What the node's own log holds of this body, whole.
    async fn own_body(&self, id: NodeId, version: LogIndex, expected: &Bytes) -> Result<(), StorageError> {
        let read = self.replica(id).read_body(version, 0, expected.len() as u32).await?;
        assert_eq!(read, expected, "wrong bytes were served");
        Ok(())
    }

    /// The node's log is whole: it needs nobody to start from it.
    async fn replays_alone(&mut self, id: NodeId) {
        for other in (1..=3).filter(|other| *other != id) {
            self.stop(other).await;
        }
        let applied = self.replica(id).status().applied;
        self.restart(id).await;
        assert!(self.replica(id).wait_applied(LogIndex(applied), Instant::now() + PATIENCE).await);
    }

    /// One pass of the scrub, at full speed.
    async fn scrub(&self, id: NodeId, mend: bool) -> ScrubStatus {
        let replica = self.replica(id);
        let number = replica.scrub(mend).unwrap();
        until("a scrub is done", || replica.status().scrub.demand_done >= number).await;
        replica.status().scrub
    }

    async fn restart(&mut self, id: NodeId) {
        self.stop(id).await;
        self.boot(id).await;
    }

    /// Make this node lead.
    async fn lead(&self, id: NodeId) {
        let deadline = Instant::now() + PATIENCE;
        while self.replica(id).status().role != "leader" {
            assert!(Instant::now() < deadline, "node {id} does not come to lead");
            let _ = self.leader().await.transfer_leader(id).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Bytes that do not repeat.
fn noise(seed: u64, length: usize) -> Bytes {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..length).map(|_| next()).collect()
}

fn is_damaged(result: &Result<(), StorageError>) -> bool {
    matches!(result, Err(StorageError::Damaged { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_body_is_mended_in_place_and_for_good() {
    let mut cluster = Cluster::start(3).await;
    let content = noise(1, 200_000);
    let version = cluster.put("file", content.clone()).await.version;
    cluster.agree().await;
    for id in 1..=3 {
        // Nothing is left in memory.
        cluster.restart(id).await;
    }
    cluster.agree().await;
    // Node 3's copy is damaged too, elsewhere: it must not be taken.
    cluster.rot(2, &content[100_000..100_040]);
    cluster.rot(3, &content[150_000..150_040]);
    let damage = cluster.own_body(2, version, &content).await.unwrap_err();
    assert!(matches!(damage, StorageError::Damaged { .. }), "{damage}");
    assert_eq!(cluster.replica(2).read_body(version, 0, 90_000).await.unwrap(), content[..90_000], "only that block");

    cluster.replica(2).mend_body(version, &damage);
    let deadline = Instant::now() + PATIENCE;
    while is_damaged(&cluster.own_body(2, version, &content).await) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_damaged(&cluster.own_body(3, version, &content).await));
    // From its own disk, alone.
    cluster.stop(1).await;
    cluster.stop(3).await;
    cluster.restart(2).await;
    cluster.own_body(2, version, &content).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_a_leader_meets_for_a_follower_is_mended_on_the_way() {
    let mut cluster = Cluster::start(3).await;
    cluster.agree().await;
    cluster.stop(3).await;
    for round in 0..5 {
        cluster.put(&format!("missed-{round}"), noise(round, 3000)).await;
    }
    cluster.restart(1).await;
    cluster.agree().await;
    cluster.lead(1).await;
    // One in a command, one in a body; both are read for the first time when node 3 needs them.
    cluster.rot(1, b"missed-1");
    cluster.rot(1, &noise(3, 3000)[1000..]);
    cluster.boot(3).await;
    cluster.agree().await;
    cluster.replica(1).going_on().expect("it goes on");
    cluster.replays_alone(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_in_the_log_is_mended_at_the_start() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..5 {
        cluster.put(&format!("file-{round}"), noise(round, 3000)).await;
    }
    cluster.agree().await;
    for header in [false, true] {
        cluster.stop(2).await;
        match header {
            false => cluster.rot(2, b"file-2"),                    // met by the replay
            true => rot::rot_header(cluster.log_of(2), b"file-2"), // met by the opening
        }
        cluster.boot(2).await;
        cluster.agree().await;
    }
    cluster.replays_alone(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_a_snapshot_covers_is_dropped_with_the_log_in_front_of_it() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..30 {
        cluster.put(&format!("file-{round}"), noise(round, 20_000)).await;
    }
    let follower = cluster.replica(2);
    until("there is a snapshot", || follower.status().snapshot > 0).await;
    let status = follower.status();
    let covered = status.snapshot - 1;
    assert!(status.purged < covered, "the log keeps a margin: {status:?}");
    // Nobody is there to mend it.
    for id in [1, 3, 2] {
        cluster.stop(id).await;
    }
    drop(follower);
    let log = Log::open(cluster.log_of(2)).unwrap();
    let command = log.entries(covered, covered + 1, 1, false).unwrap().remove(0).command;
    drop(log);
    cluster.rot(2, &command);
    cluster.boot(2).await;
    let back = cluster.replica(2);
    until("what the snapshot covers is purged", || back.status().purged == status.snapshot).await;
    drop(back);
    for id in [1, 3] {
        cluster.boot(id).await;
    }
    cluster.put("last", noise(99, 10)).await;
    cluster.agree().await;
}

/// Give another name to one file of the newest snapshot, with the right checksums and the right hash.
fn forge(directory: &Path, name: &[u8], other: &[u8]) {
    let log = Log::open(directory).unwrap();
    let reader = log.open_snapshot().unwrap().unwrap();
    let (last, meta) = (reader.last, reader.meta.clone());
    let mut items: Vec<Vec<u8>> = reader.map(|item| item.unwrap().to_vec()).collect();
    let named = |item: &Vec<u8>| item.windows(name.len()).position(|window| window == name);
    let (item, at) = items.iter_mut().find_map(|item| Some((named(item)?, item))).map(|(at, item)| (item, at)).unwrap();
    item[at..at + name.len()].copy_from_slice(other);
    let import = |items: &[Vec<u8>]| {
        let mut importer = Importer::new();
        items.iter().for_each(|item| importer.add(codec::decode::<Item>("item", item).unwrap()).unwrap());
        importer.finish()
    };
    // The header ends with the hash.
    let said = import(&items).err().unwrap().to_string();
    let hash = said.split("the hash is ").nth(1).and_then(|rest| rest.get(..32)).unwrap();
    let hash = u128::from_str_radix(hash, 16).unwrap().to_le_bytes();
    let end = items[0].len();
    items[0][end - 16..].copy_from_slice(&hash);
    import(&items).unwrap();
    log.write_snapshot(last, meta, &mut items.into_iter().map(|item| Ok(item.into()))).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_diverged_fences_itself_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..30 {
        cluster.put(&format!("file-{round}"), noise(round, 20_000)).await;
    }
    let follower = cluster.replica(2);
    until("there is a snapshot", || follower.status().snapshot > 0).await;
    drop(follower);
    cluster.stop(2).await;
    forge(cluster.log_of(2), b"file-3", b"eilf-3");
    cluster.boot(2).await;
    let wrong = cluster.replica(2);
    let Ok(Ending::Diverged(why)) = tokio::time::timeout(PATIENCE, wrong.failed()).await else {
        panic!("node 2 goes on");
    };
    assert!(why.contains("node 2") && why.contains("a majority has (node 1 "), "{why}");
    assert!(matches!(wrong.read_index().await, Err(ReplicaError::Stopped { .. })));
    assert!(matches!(wrong.going_on(), Err(ReplicaError::Stopped { .. })));
    until("it has left raft", || wrong.status().role == "shutdown").await;
    cluster.nodes[1].running = None;
    cluster.put("last", noise(99, 10)).await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_finds_and_mends_what_nobody_has_read() {
    let mut cluster = Cluster::start(3).await;
    let kept = noise(1, 100_000);
    cluster.put("kept", kept.clone()).await;
    for round in 2..30 {
        cluster.put("overwritten", noise(round, 20_000)).await;
    }
    let last = noise(99, 5000);
    cluster.put("last", last.clone()).await;
    let follower = cluster.replica(2);
    until("the first file is behind the purge point", || follower.status().purged > 10).await;
    drop(follower);
    cluster.agree().await;
    cluster.restart(2).await;
    cluster.agree().await;
    let clean = cluster.scrub(2, false).await;
    assert_eq!((clean.damaged, &clean.findings[..]), (0, &[][..]));
    assert!(clean.bytes > 105_000, "{clean:?}");

    cluster.rot(2, &kept[50_000..50_100]);
    cluster.rot(2, &last[..100]);
    rot::rot_snapshot(cluster.log_of(2));
    // Only looking, twice, changes nothing.
    for mend in [false, false, true] {
        let found = cluster.scrub(2, mend).await;
        assert_eq!((found.damaged, found.mended), (3, if mend { 3 } else { 0 }), "{found:?}");
        assert_eq!(found.findings[0].files, ["/kept"], "{found:?}");
        assert_eq!(found.findings[1].files, ["/last"], "{found:?}");
        assert!(found.findings[2].what.contains("snapshot-"), "{found:?}");
    }
    assert_eq!(cluster.scrub(2, false).await.damaged, 0);
    cluster.replays_alone(2).await;
    assert_eq!(cluster.scrub(2, false).await.damaged, 0, "from the disk, after a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_mends_all_that_is_missing_and_tells_of_the_first() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..120 {
        cluster.put(&format!("file-{round}"), noise(round, 5000)).await;
    }
    cluster.agree().await;
    let follower = cluster.replica(2);
    // Else the last one may be of an entry in the middle.
    follower.raft().trigger().snapshot().await.unwrap();
    until("most of it is behind the purge point", || follower.status().purged > 80).await;
    follower.inner.log.reclaim(&|_| false).unwrap();
    let found = cluster.scrub(2, true).await;
    assert!(found.damaged > 64 && found.mended == found.damaged, "{found:?}");
    assert_eq!(found.findings.len(), 32);
    assert_eq!(cluster.scrub(2, false).await.damaged, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_replaced_and_never_installed() {
    let mut cluster = Cluster::start(3).await;
    let kept = noise(1, 100_000);
    let file = cluster.put("kept", kept.clone()).await;
    for round in 2..30 {
        cluster.put(&format!("file-{}", round % 5), noise(round, 20_000)).await;
    }
    let follower = cluster.replica(2);
    until("there is a snapshot, and no log in front of it", || follower.status().purged > file.version.0).await;
    drop(follower);

    // Met at the start: the state comes from a peer.
    cluster.stop(2).await;
    rot::rot_snapshot(cluster.log_of(2));
    cluster.boot(2).await;
    cluster.agree().await;
    cluster.own_body(2, file.version, &kept).await.unwrap();
    cluster.replays_alone(2).await;
    cluster.own_body(2, file.version, &kept).await.unwrap();

    // Met when a follower without anything needs it: the leader writes it anew.
    cluster.boot(1).await;
    cluster.lead(2).await;
    rot::rot_snapshot(cluster.log_of(2));
    for file in std::fs::read_dir(cluster.nodes[2].directory.path()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    cluster.boot(3).await;
    cluster.agree().await;
    cluster.own_body(3, file.version, &kept).await.unwrap();
    // On a slow machine another may lead by now.
    cluster.replica(2).going_on().expect("it goes on");
}
