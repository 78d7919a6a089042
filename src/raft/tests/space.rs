//! Disks that fill up and are emptied again, on simulated disks with small segments.

use super::*;
use crate::fs::{NewNode, Refusal};
use crate::log::disk::Disk;

const SEGMENT_BYTES: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

fn used(disk: &SimulatedDisk) -> u64 {
    let names = disk.list().unwrap();
    names.iter().filter_map(|name| disk.open(name).ok()?.allocated().ok()).sum()
}

fn name(text: impl std::fmt::Display) -> Name {
    Name::new(text.to_string().as_bytes()).unwrap()
}

impl super::Cluster {
    fn disk(&self, id: NodeId) -> &SimulatedDisk {
        self.nodes[id as usize - 1].disk.as_ref().unwrap()
    }

    async fn unlink(&mut self, file: impl std::fmt::Display) -> Outcome {
        let command = Command::Unlink { parent: Ino::ROOT, name: name(file), expected: None };
        self.propose(command, Bytes::new()).await
    }

    /// Say, as a mount does, that no unlinked file is open: only then does it go.
    async fn close_orphans(&mut self) {
        loop {
            let closed = self.leader().await.state().orphans_of(self.session, Ino(0), 1000);
            if closed.is_empty() {
                return;
            }
            self.propose(Command::KeepAlive { closed }, Bytes::new()).await.unwrap();
        }
    }

    async fn try_put(&mut self, file: impl std::fmt::Display, length: usize) -> Outcome {
        let command = Command::Put {
            parent: Ino::ROOT,
            name: name(file),
            expected: Expected::Anything,
            expiry: ExpiryChange::Keep,
            mode: 0o644,
            length: length as u32,
        };
        self.propose(command, body(7, length)).await
    }

    /// What node 1's disk holds comes down to this, with no more than a snapshot's worth of commands now and then.
    async fn settles_at(&mut self, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        while used(self.disk(1)) > bytes {
            let names = self.disk(1).list().unwrap();
            assert!(Instant::now() < deadline, "{} bytes are used, not {bytes}: {names:?}", used(self.disk(1)));
            self.try_put("poke", 300 << 10).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Files that are overwritten, and small files that come and go though a few stay, leave no more behind than a few
/// segments each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_use_is_bounded_by_what_the_files_hold() {
    let mut cluster = Cluster::start_on(vec![SimulatedDisk::new()], SEGMENT_BYTES).await;
    let file = cluster.put("overwritten", Bytes::new()).await.ino;
    for round in 0..10u8 {
        for part in 0..64 {
            let command = Command::Write { ino: file, offset: part << 16, length: 1 << 16 };
            cluster.propose(command, body(round, 1 << 16)).await.unwrap();
        }
        // 4 MiB of it, the same again in the log, the reserve, and segments under way.
        cluster.settles_at(14 * MIB).await;
    }
    cluster.unlink("overwritten").await.unwrap();
    cluster.close_orphans().await;
    let mut kept = 0;
    for wave in 0..8 {
        for number in 0..500 {
            cluster.try_put(format!("{wave}-{number}"), 1000).await.unwrap();
        }
        for number in (0..500).filter(|number| number % 50 > 0) {
            cluster.unlink(format!("{wave}-{number}")).await.unwrap();
        }
        cluster.close_orphans().await;
        kept += 10;
        cluster.settles_at(8 * MIB).await;
    }
    let leader = cluster.leader().await;
    let (root, mut found) = (leader.state(), 0);
    for wave in 0..8 {
        for number in (0..500).step_by(50) {
            let query = Query::Lookup { parent: Ino::ROOT, name: name(format!("{wave}-{number}")) };
            let Ok(Answer::Attributes(attributes)) = root.answer(&query) else { panic!("{wave}-{number} is gone") };
            assert_eq!(read(&leader, attributes.ino).await, body(7, 1000));
            found += 1;
        }
    }
    assert_eq!(found, kept);
}

/// FAULTS 17 to 19 within one process: three small disks are written full and emptied; then one fills up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_majority_refuses_what_grows_and_a_full_minority_is_carried() {
    let disks: Vec<_> = (0..3).map(|_| SimulatedDisk::new()).collect();
    disks.iter().for_each(|disk| disk.set_capacity(Some(16 * MIB)));
    let mut cluster = Cluster::start_on(disks, SEGMENT_BYTES).await;
    for round in 0..2 {
        let mut files = 0;
        let refused = loop {
            match cluster.try_put(files, 256 << 10).await {
                Ok(_) => files += 1,
                Err(refusal) => break refusal,
            }
            assert!(files < 64, "16 MiB do not fit");
        };
        assert_eq!(refused, Refusal::NoSpace);
        assert!(files >= 16, "round {round}: only {files} files of 256 KiB fit");
        // Less than that may still fit.
        let mut small = 0;
        while cluster.try_put(format!("small-{small}"), 2000).await.is_ok() {
            small += 1;
            assert!(small < 1000, "it is not full");
        }
        let node = NewNode::Directory;
        let make = Command::Make { parent: Ino::ROOT, name: name("directory"), node, mode: 0o755, umask: 0 };
        assert_eq!(cluster.propose(make, Bytes::new()).await, Err(Refusal::NoSpace));
        for file in 0..files {
            cluster.unlink(file).await.unwrap();
        }
        for file in 0..small {
            cluster.unlink(format!("small-{file}")).await.unwrap();
        }
        cluster.close_orphans().await;
        for replica in cluster.running() {
            until("there is room again", || !replica.status().storage_full).await;
        }
    }
    cluster.agree().await;

    // The leader's disk is filled by others: it makes way, and what it cannot take is caught up later.
    let leader = cluster.leader().await.status().leader.unwrap();
    let mut capacity = used(cluster.disk(leader));
    cluster.disk(leader).set_capacity(Some(capacity));
    let full = cluster.replica(leader);
    until("the full one says so", || full.status().storage_full).await;
    until("another leads", || full.status().leader.is_some_and(|now| now != leader)).await;
    for file in 0..24 {
        cluster.try_put(file, 256 << 10).await.unwrap();
        // What it gives back of the files that were unlinked is taken by others, too.
        capacity = used(cluster.disk(leader)).min(capacity);
        cluster.disk(leader).set_capacity(Some(capacity));
    }
    let ahead = cluster.leader().await.state().applied();
    assert!(full.state().applied() < ahead, "it took 6 MiB");
    cluster.stop(leader).await;
    drop(full);
    cluster.boot(leader).await;
    assert!(cluster.replica(leader).status().storage_full, "it starts on its full disk");
    cluster.disk(leader).set_capacity(Some(32 * MIB));
    cluster.agree().await;
}

/// What frees no space and needs none in the tree takes some in the log, and is not stopped by a full disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_reserve_is_used_up_waits_for_room_and_does_not_end() {
    let mut cluster = Cluster::start_on(vec![SimulatedDisk::new()], SEGMENT_BYTES).await;
    cluster.put("file", body(1, 1000)).await;
    let leader = cluster.leader().await;
    // Others fill the disk; what is given back is taken by them, too.
    let mut capacity = used(cluster.disk(1));
    cluster.disk(1).set_capacity(Some(capacity));
    // No disk is filled faster than a node looks.
    until("it sees that", || leader.status().storage_full).await;
    let mut refused = None;
    for _ in 0..200 {
        capacity = used(cluster.disk(1)).min(capacity);
        cluster.disk(1).set_capacity(Some(capacity));
        let command = Command::KeepAlive { closed: vec![Ino(u64::MAX); 20_000] };
        let request = cluster.request(command);
        if let Err(error) = leader.propose(request, Bytes::new()).await {
            refused = Some(error);
            break;
        }
    }
    assert_eq!(refused, Some(ReplicaError::NotLeader { leader: None }));
    leader.going_on().unwrap();
    cluster.disk(1).set_capacity(None);
    cluster.unlink("file").await.unwrap();
}
