//! The locks against a model that knows nothing but single bytes, and the stories that a model would not tell.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Bytes of a file in the model; the last stands for all behind it.
const BYTES: usize = 10;

type Owned = BTreeMap<Holder, LockMode>;

/// One inode, byte by byte.
#[derive(Clone, Default)]
struct ModelInode {
    bytes: [Owned; BYTES],
    waiting: Vec<LockHolder>,
    generation: u64,
}

#[derive(Default)]
struct Model {
    inodes: BTreeMap<Ino, ModelInode>,
}

fn spots(range: LockRange) -> std::ops::Range<usize> {
    (range.start as usize).min(BYTES - 1)..(range.end.min(BYTES as u64 - 1) as usize) + 1
}

fn clash(a: (Holder, LockMode), b: (Holder, LockMode)) -> bool {
    let flock = |h: Holder| matches!(h.owner, LockOwner::Flock(_));
    a.0 != b.0 && flock(a.0) == flock(b.0) && (a.1 == LockMode::Exclusive || b.1 == LockMode::Exclusive)
}

fn waiters_clash(a: &LockHolder, b: &LockHolder) -> bool {
    let shared_spot = spots(a.range).any(|spot| spots(b.range).contains(&spot));
    shared_spot && clash((Holder::of(a), a.mode), (Holder::of(b), b.mode))
}

impl ModelInode {
    fn holders_against(&self, r: &LockHolder) -> Vec<Holder> {
        let all = spots(r.range).flat_map(|spot| self.bytes[spot].iter());
        all.filter(|(h, m)| clash((**h, **m), (Holder::of(r), r.mode))).map(|(h, _)| *h).collect()
    }

    fn clear(&mut self, holder: Holder, range: LockRange) {
        spots(range).for_each(|spot| {
            self.bytes[spot].remove(&holder);
        });
    }

    fn give(&mut self, r: &LockHolder) {
        self.generation += (r.mode == LockMode::Exclusive) as u64;
        spots(r.range).for_each(|spot| {
            self.bytes[spot].insert(Holder::of(r), r.mode);
        });
    }

    fn earlier_against(&self, place: usize, r: &LockHolder) -> Vec<Holder> {
        self.waiting[..place].iter().filter(|w| waiters_clash(w, r)).map(Holder::of).collect()
    }

    fn settle(&mut self) {
        let free = |inode: &ModelInode, place: usize| {
            let w = &inode.waiting[place];
            inode.holders_against(w).is_empty() && inode.earlier_against(place, w).is_empty()
        };
        while let Some(place) = (0..self.waiting.len()).find(|place| free(self, *place)) {
            let granted = self.waiting.remove(place);
            self.give(&granted);
        }
    }
}

impl Model {
    /// All edges of the wait-for graph.
    fn edges(&self) -> Vec<(Holder, Holder)> {
        let mut edges = Vec::new();
        for inode in self.inodes.values() {
            for (place, w) in inode.waiting.iter().enumerate() {
                let blockers = inode.holders_against(w).into_iter().chain(inode.earlier_against(place, w));
                edges.extend(blockers.map(|b| (Holder::of(w), b)));
            }
        }
        edges.retain(|(a, _)| matches!(a.owner, LockOwner::Posix(_)));
        edges
    }

    fn reaches(&self, from: &[Holder], target: Holder) -> bool {
        let (edges, mut reached) = (self.edges(), from.to_vec());
        loop {
            let more = edges.iter().find(|(a, b)| reached.contains(a) && !reached.contains(b));
            let Some((_, b)) = more else { return reached.contains(&target) };
            reached.push(*b);
        }
    }

    fn lock(&mut self, ino: Ino, r: LockHolder, wait: bool) -> Outcome {
        let holder = Holder::of(&r);
        if r.mode == LockMode::Unlock {
            let inode = self.inodes.entry(ino).or_default();
            inode.clear(holder, r.range);
            inode.settle();
            return Ok(Reply::Done);
        }
        let inode = self.inodes.entry(ino).or_default().clone();
        let against = inode.holders_against(&r);
        if !against.is_empty() && !wait {
            return Err(Refusal::LockConflict);
        }
        let against = [against, inode.earlier_against(inode.waiting.len(), &r)].concat();
        let blocked = !inode.holders_against(&r).is_empty();
        if blocked && matches!(r.owner, LockOwner::Posix(_)) && self.reaches(&against, holder) {
            return Err(Refusal::Deadlock);
        }
        let inode = self.inodes.entry(ino).or_default();
        let reply = if blocked {
            if matches!(r.owner, LockOwner::Flock(_)) {
                inode.clear(holder, r.range);
            }
            if !inode.waiting.contains(&r) {
                inode.waiting.push(r);
            }
            Reply::Waiting
        } else {
            inode.give(&r);
            Reply::Locked { generation: inode.generation }
        };
        inode.settle();
        Ok(reply)
    }

    fn drop_where(&mut self, ino: Ino, held: impl Fn(Holder) -> bool, waits: impl Fn(&LockHolder) -> bool) {
        let inode = self.inodes.entry(ino).or_default();
        inode.bytes.iter_mut().for_each(|owned| owned.retain(|h, _| !held(*h)));
        inode.waiting.retain(|w| !waits(w));
        inode.settle();
    }
}

#[derive(Clone, Debug)]
enum Act {
    Lock { ino: u64, lock: LockHolder, wait: bool },
    Cancel { pick: usize },
    Release { ino: u64, holder: (u64, LockOwner) },
    End { session: u64 },
    Forget { ino: u64 },
}

fn owner() -> impl Strategy<Value = LockOwner> {
    prop_oneof![4 => (0..2u64).prop_map(LockOwner::Posix), 2 => (0..2u64).prop_map(LockOwner::Flock)]
}

fn lock() -> impl Strategy<Value = LockHolder> {
    let mode = prop_oneof![2 => Just(Shared), 3 => Just(Exclusive), 2 => Just(Unlock)];
    let end = prop_oneof![5 => 0..BYTES as u64 - 1, 1 => Just(u64::MAX)];
    (1..4u64, owner(), 0..BYTES as u64 - 1, end, mode).prop_map(|(session, owner, a, b, mode)| LockHolder {
        session: SessionId(session),
        owner,
        range: match owner {
            LockOwner::Posix(_) => LockRange { start: a.min(b), end: a.max(b) },
            LockOwner::Flock(_) => LockRange { start: 0, end: u64::MAX },
        },
        mode,
        pid: 7,
    })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        40 => (1..3u64, lock(), prop::bool::weighted(0.8)).prop_map(|(ino, lock, wait)| Act::Lock { ino, lock, wait }),
        3 => any::<usize>().prop_map(|pick| Act::Cancel { pick }),
        3 => (1..3u64, (1..4u64, owner())).prop_map(|(ino, holder)| Act::Release { ino, holder }),
        1 => (1..4u64).prop_map(|session| Act::End { session }),
        1 => (1..3u64).prop_map(|ino| Act::Forget { ino }),
    ]
}

fn step(locks: &mut Locks, model: &mut Model, act: &Act, threads: bool) {
    match act {
        Act::Lock { lock, .. }
            if !threads && model.inodes.values().any(|i| i.waiting.iter().any(|w| same(w, lock))) => {}
        Act::Lock { ino, lock, wait } => {
            assert_eq!(locks.lock(Ino(*ino), *lock, *wait), model.lock(Ino(*ino), *lock, *wait));
        }
        Act::Cancel { pick } => {
            let waits: Vec<_> = model.inodes.iter().flat_map(|(i, m)| m.waiting.iter().map(|w| (*i, *w))).collect();
            let Some((ino, w)) = waits.get(pick % waits.len().max(1)) else { return };
            assert_eq!(locks.cancel(*ino, w.session, w.owner, w.range), Ok(Reply::Done));
            model.drop_where(*ino, |_| false, |other| same(other, w) && other.range == w.range);
        }
        Act::Release { ino, holder } => {
            let holder = Holder { session: SessionId(holder.0), owner: holder.1 };
            locks.release_owner(Ino(*ino), holder.session, holder.owner);
            let flock = matches!(holder.owner, LockOwner::Flock(_));
            model.drop_where(Ino(*ino), |h| h == holder, |w| flock && Holder::of(w) == holder);
        }
        Act::End { session } => {
            locks.end_session(SessionId(*session));
            for ino in [Ino(1), Ino(2)] {
                model.drop_where(ino, |h| h.session.0 == *session, |w| w.session.0 == *session);
            }
        }
        Act::Forget { ino } => {
            locks.forget(Ino(*ino));
            model.inodes.remove(&Ino(*ino));
        }
    }
}

fn same(a: &LockHolder, b: &LockHolder) -> bool {
    Holder::of(a) == Holder::of(b)
}

fn compare(locks: &Locks, model: &Model) {
    for ino in [Ino(1), Ino(2)] {
        let expected = model.inodes.get(&ino).cloned().unwrap_or_default();
        let mut bytes: [Owned; BYTES] = Default::default();
        for held in locks.held(ino) {
            spots(held.range).for_each(|spot| {
                bytes[spot].insert(Holder::of(&held), held.mode);
            });
        }
        assert_eq!(bytes, expected.bytes, "held on {ino:?}");
        assert_eq!(locks.waiting(ino).collect::<Vec<_>>(), expected.waiting, "waiting on {ino:?}");
        assert_eq!(locks.generation(ino), expected.generation);
        for w in &expected.waiting {
            assert_eq!(locks.standing(ino, w.session, w.owner, w.range), LockStanding::Waiting);
        }
    }
}

fn copy(locks: &Locks) -> Locks {
    let mut copy = Locks::default();
    locks.export().for_each(|(ino, l)| copy.import(ino, l.clone()).unwrap());
    copy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Same replies, same holders of every byte, same queues; sound, and the same again from an export.
    #[test]
    fn agrees_with_the_byte_model(acts in prop::collection::vec(act(), 1..100), threads in any::<bool>()) {
        let (mut locks, mut model) = (Locks::default(), Model::default());
        for act in &acts {
            step(&mut locks, &mut model, act, threads);
            compare(&locks, &model);
            locks.check().unwrap();
            prop_assert_eq!(copy(&locks).hash(), locks.hash());
            // Where nobody waits twice, no circle of waiters ever arises.
            let circle = model.edges().iter().any(|(a, b)| model.reaches(&[*b], *a));
            prop_assert!(threads || !circle);
        }
        for session in 1..4 {
            locks.end_session(SessionId(session));
        }
        prop_assert!([Ino(1), Ino(2)].iter().all(|ino| locks.held(*ino).chain(locks.waiting(*ino)).count() == 0));
        [Ino(1), Ino(2)].iter().for_each(|ino| locks.forget(*ino));
        prop_assert_eq!(locks.hash(), 0);
    }
}

fn posix(session: u64, start: u64, end: u64, mode: LockMode) -> LockHolder {
    LockHolder {
        session: SessionId(session),
        owner: LockOwner::Posix(1),
        range: LockRange { start, end },
        mode,
        pid: 1,
    }
}

fn flock(session: u64, mode: LockMode) -> LockHolder {
    LockHolder { owner: LockOwner::Flock(1), ..posix(session, 3, 4, mode) }
}

use LockMode::{Exclusive, Shared, Unlock};

const FILE: Ino = Ino(7);
const WAIT: bool = true;

#[test]
fn unlocking_the_middle_leaves_two_ranges_and_locking_it_again_one() {
    let mut locks = Locks::default();
    let ranges = |locks: &Locks| locks.held(FILE).map(|l| (l.range.start, l.range.end)).collect::<Vec<_>>();
    locks.lock(FILE, posix(1, 0, u64::MAX, Exclusive), false).unwrap();
    locks.lock(FILE, posix(1, 10, 19, Unlock), false).unwrap();
    assert_eq!(ranges(&locks), [(0, 9), (20, u64::MAX)]);
    assert_eq!(
        locks.standing(FILE, SessionId(1), LockOwner::Posix(1), LockRange { start: 5, end: 25 }),
        LockStanding::Gone
    );
    locks.lock(FILE, posix(1, 10, 19, Exclusive), false).unwrap();
    assert_eq!(ranges(&locks), [(0, u64::MAX)]);
}

#[test]
fn a_flock_that_waits_to_be_exclusive_has_given_up_its_shared_mode() {
    let mut locks = Locks::default();
    locks.lock(FILE, flock(1, Shared), WAIT).unwrap();
    locks.lock(FILE, flock(2, Shared), WAIT).unwrap();
    assert_eq!(locks.lock(FILE, flock(1, Exclusive), false), Err(Refusal::LockConflict));
    assert_eq!(locks.held(FILE).count(), 2, "a refusal changes nothing");
    assert_eq!(locks.lock(FILE, flock(1, Exclusive), WAIT), Ok(Reply::Waiting));
    assert_eq!(locks.held(FILE).map(|l| l.session.0).collect::<Vec<_>>(), [2]);
    // The other one now holds it alone, and converts at once; the first waits for it.
    assert_eq!(locks.lock(FILE, flock(2, Exclusive), WAIT), Ok(Reply::Locked { generation: 1 }));
    locks.lock(FILE, flock(2, Unlock), WAIT).unwrap();
    assert_eq!(locks.held(FILE).map(|l| (l.session.0, l.mode)).collect::<Vec<_>>(), [(1, Exclusive)]);
}

#[test]
fn two_processes_that_want_each_others_file_do_not_both_wait() {
    let (mut locks, other) = (Locks::default(), Ino(8));
    locks.lock(FILE, posix(1, 0, 9, Exclusive), WAIT).unwrap();
    locks.lock(other, posix(2, 0, 9, Exclusive), WAIT).unwrap();
    assert_eq!(locks.lock(other, posix(1, 5, 5, Shared), WAIT), Ok(Reply::Waiting));
    assert_eq!(locks.lock(FILE, posix(2, 9, 9, Shared), WAIT), Err(Refusal::Deadlock));
    locks.end_session(SessionId(2));
    assert_eq!(locks.held(other).map(|l| l.session.0).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_deadlock_is_seen_past_a_waiter_that_covers_only_part_of_the_range() {
    let (mut locks, other) = (Locks::default(), Ino(8));
    locks.lock(other, posix(1, 0, 0, Exclusive), WAIT).unwrap();
    locks.lock(FILE, posix(2, 4, 4, Exclusive), WAIT).unwrap();
    locks.lock(FILE, posix(3, 5, 5, Exclusive), WAIT).unwrap();
    locks.lock(FILE, posix(4, 5, 5, Exclusive), WAIT).unwrap();
    assert_eq!(locks.lock(other, posix(2, 0, 0, Exclusive), WAIT), Ok(Reply::Waiting));
    assert_eq!(locks.lock(FILE, posix(1, 4, 5, Exclusive), WAIT), Err(Refusal::Deadlock));
}

/// Linux would let him wait, because the holder waits for nobody.
#[test]
fn nobody_queues_behind_one_that_waits_for_his_own_process() {
    let mut locks = Locks::default();
    locks.lock(FILE, posix(1, 0, 10, Exclusive), WAIT).unwrap();
    assert_eq!(locks.lock(FILE, posix(2, 0, 10, Exclusive), WAIT), Ok(Reply::Waiting));
    assert_eq!(locks.lock(FILE, posix(3, 0, 10, Exclusive), WAIT), Ok(Reply::Waiting));
    assert_eq!(locks.lock(FILE, posix(2, 0, 5, Exclusive), WAIT), Err(Refusal::Deadlock), "of another thread");
}

#[test]
fn a_waiter_does_not_overtake_an_earlier_one_that_wants_the_same_byte() {
    let mut locks = Locks::default();
    locks.lock(FILE, posix(1, 0, 0, Exclusive), WAIT).unwrap();
    locks.lock(FILE, posix(2, 9, 9, Exclusive), WAIT).unwrap();
    locks.lock(FILE, posix(3, 0, 5, Exclusive), WAIT).unwrap();
    locks.lock(FILE, posix(4, 5, 9, Exclusive), WAIT).unwrap();
    locks.end_session(SessionId(2));
    assert_eq!(locks.waiting(FILE).map(|w| w.session.0).collect::<Vec<_>>(), [3, 4]);
    locks.end_session(SessionId(1));
    assert_eq!(locks.held(FILE).map(|l| l.session.0).collect::<Vec<_>>(), [3]);
    locks.end_session(SessionId(3));
    assert_eq!(locks.held(FILE).map(|l| l.session.0).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_grant_that_makes_a_range_shared_frees_who_came_earlier() {
    let mut locks = Locks::default();
    locks.lock(FILE, posix(1, 0, 5, Exclusive), WAIT).unwrap();
    locks.lock(FILE, posix(2, 6, 9, Exclusive), WAIT).unwrap();
    assert_eq!(locks.lock(FILE, posix(3, 0, 3, Shared), WAIT), Ok(Reply::Waiting));
    assert_eq!(locks.lock(FILE, posix(1, 0, 9, Shared), WAIT), Ok(Reply::Waiting));
    locks.lock(FILE, posix(2, 6, 9, Unlock), WAIT).unwrap();
    assert_eq!(locks.waiting(FILE).count(), 0);
    assert_eq!(locks.held(FILE).map(|l| (l.session.0, l.mode)).collect::<Vec<_>>(), [(1, Shared), (3, Shared)]);
}

#[test]
fn the_token_rises_with_exclusive_grants_and_outlives_the_locks() {
    let mut locks = Locks::default();
    assert_eq!(locks.lock(FILE, flock(1, Exclusive), WAIT), Ok(Reply::Locked { generation: 1 }));
    locks.lock(FILE, flock(2, Exclusive), WAIT).unwrap();
    locks.end_session(SessionId(1));
    let token = locks.standing(FILE, SessionId(2), LockOwner::Flock(1), LockRange { start: 0, end: u64::MAX });
    assert_eq!(token, LockStanding::Held { generation: 2 });
    assert_eq!(
        locks.cancel(FILE, SessionId(2), LockOwner::Flock(1), LockRange { start: 0, end: 0 }),
        Ok(Reply::Locked { generation: 2 })
    );
    locks.release_owner(FILE, SessionId(2), LockOwner::Flock(1));
    assert_eq!(locks.generation(FILE), 2);
    assert_eq!(copy(&locks).lock(FILE, flock(3, Exclusive), false), Ok(Reply::Locked { generation: 3 }));
    locks.forget(FILE);
    assert_eq!(locks.generation(FILE), 0);
}

#[test]
fn an_inode_takes_no_more_locks_than_the_limit_and_no_reversed_range() {
    let mut locks = Locks::default();
    assert_eq!(locks.lock(FILE, posix(1, 9, 8, Shared), WAIT), Err(Refusal::Invalid));
    let limit = crate::limits::LOCKS_PER_INODE_MAX as u64;
    let crowd = (0..limit - 1).map(|n| (n * 4, n * 4 + 2)).collect::<Vec<_>>();
    let mut full = InodeLocks::default();
    crowd.iter().for_each(|(start, end)| {
        full.grant(&posix(1, *start, *end, Shared));
    });
    locks.change(FILE, |empty| *empty = full);
    assert_eq!(locks.lock(FILE, posix(2, 0, 0, Shared), WAIT), Err(Refusal::TooManyLocks));
    assert_eq!(locks.lock(FILE, posix(1, 1, 1, Unlock), WAIT), Ok(Reply::Done), "one more range fits");
    assert_eq!(locks.lock(FILE, posix(1, 5, 5, Unlock), WAIT), Err(Refusal::TooManyLocks));
    assert_eq!(locks.lock(FILE, posix(1, 4, 6, Unlock), WAIT), Ok(Reply::Done));
}
