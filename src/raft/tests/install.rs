//! A node dies in the middle of installing a snapshot, at every single change that it makes to its disk.

use super::*;
use crate::fs::State;
use crate::log::simulated::{SimulatedDisk, Survival};
use crate::log::{Options, Threading};
use crate::raft::ending::Endings;
use crate::raft::store::{Store, completion, durable};
use openraft::storage::RaftLogStorage;

type Taken = (StoredMeta, Vec<Bytes>);

/// The newest snapshot of the only node, and the state in it.
async fn take(cluster: &mut Cluster) -> (Taken, State) {
    let replica = cluster.replica(1);
    let before = replica.status().snapshot;
    let applied = replica.applied().borrow().0;
    replica.raft().trigger().snapshot().await.unwrap();
    until("a snapshot of all that is applied", || replica.status().snapshot > before.max(applied - 1)).await;
    drop(replica);
    cluster.stop(1).await;
    let log = Log::open(cluster.nodes[0].directory.path()).unwrap();
    let (meta, reader) = snapshot::open(&log).unwrap().unwrap();
    let items = reader.collect::<Result<Vec<_>, _>>().unwrap();
    let (_, state) = snapshot::load(&log).unwrap().unwrap();
    drop(log);
    cluster.boot(1).await;
    cluster.leader().await;
    ((meta, items), state)
}

/// The laggard: node 2, on a disk that may lose power.
async fn boot(disk: &SimulatedDisk, seed: u64, members: &BTreeMap<NodeId, SocketAddr>) -> Option<Replica> {
    let options = Options { segment_bytes: 1 << 20, cache_bytes: 0, seed, threading: Threading::Own };
    let log = Log::open_on(Arc::new(disk.clone()), options).ok()?;
    let incarnation = 1000 + seed;
    let start =
        Start { incarnation, run: incarnation, log_end: log.state().last.map_or(0, |id| id.index), ..Start::default() };
    let own = Identity { cluster: uuid::Uuid::from_u128(1), node: Some(2), start, keys: None };
    Replica::start_tuned(own, log, members.clone(), TIMING, TUNING).await.ok()
}

/// Send a snapshot as a leader would; `true`: it was installed.
async fn offer(to: &Replica, (meta, items): &Taken, transfer: u64) -> bool {
    let caller = Caller {
        address: ([127, 0, 0, 1], 1).into(),
        node: Some(1),
        start: Start::default(),
        purpose: Purpose::Snapshot,
    };
    let vote = (&Vote::new_committed(1000, 1)).into();
    let mut body = BytesMut::new();
    assert!(items.iter().all(|item| messages::push_item(&mut body, item)));
    let begin = SnapshotBegin { transfer, vote, meta: meta.clone() };
    let question = |kind| messages::message(kind, &SnapshotQuestion { transfer }, Bytes::new()).unwrap();
    let items = SnapshotItems { transfer, sequence: 0 };
    let mut next = vec![
        question(messages::SNAPSHOT_END),
        messages::message(messages::SNAPSHOT_ITEMS, &items, body.freeze()).unwrap(),
        messages::message(messages::SNAPSHOT_BEGIN, &begin, Bytes::new()).unwrap(),
    ];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let message = next.pop().unwrap_or_else(|| question(messages::SNAPSHOT_PROGRESS));
        match messages::header(&to.handle(&caller, message).await) {
            Ok(Progress::Working { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
            Ok(Progress::Installed { .. }) => return true,
            // Or a refusal: the node is dead.
            Ok(Progress::Failed { .. }) | Err(_) => return false,
        }
    }
    panic!("the install neither ends nor fails");
}

/// What the disk holds is one of the two states, with every body that it refers to. Returns which.
async fn look(disk: &SimulatedDisk, states: [&State; 2]) -> usize {
    let options = Options { segment_bytes: 1 << 20, cache_bytes: 0, seed: 9999, threading: Threading::Own };
    let log = Log::open_on(Arc::new(disk.clone()), options).unwrap();
    let (_, state) = snapshot::load(&log).unwrap().expect("the old one at least");
    for index in state.live_bodies(LogIndex(0)) {
        let length = log.body_length(index.0).unwrap_or_else(|| panic!("the body of {index:?} is not there"));
        log.read_body(index.0, 0, length).unwrap();
    }
    let which = states.iter().position(|known| known.hash() == state.hash());
    assert!(log.state().last_purged.map_or(0, |purged| purged.index) <= state.applied().0, "a log with a gap");
    which.expect("a mixture")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_that_is_killed_at_any_step_leaves_the_old_state_or_the_new_one() {
    let mut cluster = Cluster::start(1).await;
    cluster.put("kept", body(1, 20_000)).await;
    cluster.put("replaced", body(2, 20_000)).await;
    let (first, old) = take(&mut cluster).await;
    // Before the second one: the giver need not keep what is dead by then.
    let (base, members) = (SimulatedDisk::new(), cluster.addresses());
    let laggard = boot(&base, 1, &members).await.unwrap();
    assert!(offer(&laggard, &first, 1).await);
    laggard.shutdown().await;
    drop(laggard);
    cluster.put("replaced", body(3, 20_000)).await;
    cluster.put("new", body(4, 70_000)).await;
    let (second, new) = take(&mut cluster).await;
    assert_ne!(old.hash(), new.hash());
    assert_eq!(look(&base.copy(), [&old, &new]).await, 0);

    let mut seen = [0, 0];
    for operations in 0.. {
        let disk = base.copy();
        disk.halt_after(operations);
        if let Some(laggard) = boot(&disk, 2 + operations, &members).await {
            let installed = offer(&laggard, &second, 2).await;
            assert!(installed || disk.is_off(), "it was not killed, and did not install");
            laggard.shutdown().await;
        }
        let finished = !disk.is_off();
        for survival in [Survival::Nothing, Survival::Everything, Survival::Random(operations)] {
            seen[look(&disk.crash(survival), [&old, &new]).await] += 1;
        }
        if finished {
            break;
        }
        assert!(operations < 500, "the install never ends");
    }
    println!("old {} times, new {} times", seen[0], seen[1]);
    assert!(seen[0] > 10 && seen[1] > 1, "{seen:?}");
}

/// Its log holds what it has applied, but after a loss of power not the news that all of that is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_keeps_the_bodies_of_all_that_is_applied() {
    let mut cluster = Cluster::start(1).await;
    cluster.put("kept", body(1, 20_000)).await;
    cluster.put("replaced", body(2, 20_000)).await;
    let (first, old) = take(&mut cluster).await;
    let entries = cluster.replica(1).inner.log.entries(0, first.0.last.index + 1, 1 << 20, true).unwrap();
    cluster.put("replaced", body(3, 20_000)).await;
    let (second, new) = take(&mut cluster).await;

    let disk = SimulatedDisk::new();
    let options = Options { segment_bytes: 1 << 20, cache_bytes: 0, seed: 1, threading: Threading::Own };
    let log = Log::open_on(Arc::new(disk.clone()), options).unwrap();
    Store::new(log.clone(), None, Endings::default()).save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    let (done, appended) = completion();
    log.append(entries, done);
    durable(appended).await.unwrap();
    snapshot::write(&log, &first.0, &old).unwrap();
    drop(log);

    let laggard = boot(&disk, 2, &cluster.addresses()).await.unwrap();
    assert_eq!(laggard.inner.log.committed(), None);
    assert!(offer(&laggard, &second, 1).await);
    laggard.shutdown().await;
    drop(laggard);
    assert_eq!(look(&disk.copy(), [&old, &new]).await, 1);
}

/// Bytes that the files of a disk occupy.
fn used(disk: &SimulatedDisk) -> u64 {
    disk.list().unwrap().iter().filter_map(|name| disk.open(name).ok()?.allocated().ok()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_turns_out_to_be_full_refuses_a_snapshot_and_ends_nobody() {
    let mut cluster = Cluster::start(1).await;
    let (taken, _) = take(&mut cluster).await;
    let bytes: usize = taken.1.iter().map(|item| item.len() + 8).sum();
    assert!(bytes < 3000, "{bytes}");
    let disk = SimulatedDisk::new();
    disk.set_capacity(Some(3 << 20));
    let laggard = boot(&disk, 1, &cluster.addresses()).await.unwrap();
    let has_slack = |name: &String| name == "slack";
    let has_reserve = || disk.list().unwrap().iter().filter(|name| name.ends_with(".free") || has_slack(name)).count();
    until("it has made its reserve", || has_reserve() == 2).await;
    // It looks like enough for so small a snapshot, and no file can be made in it.
    disk.set_capacity(Some(used(&disk) + 4095));
    assert!(!offer(&laggard, &taken, 1).await);
    laggard.going_on().unwrap();
    assert!(disk.list().unwrap().iter().all(|name| !name.ends_with(".tmp")));
    disk.set_capacity(None);
    assert!(offer(&laggard, &taken, 2).await);
    laggard.shutdown().await;
}
