//! The locks of one inode: who holds which bytes, who waits, in which order.

use super::super::command::{LockMode, LockOwner, LockRange};
use super::super::query::LockHolder;
use super::super::state::Broken;
use super::super::types::SessionId;
use crate::limits::LOCKS_PER_INODE_MAX;
use serde::{Deserialize, Serialize};

/// What a waiter counts for against [`LOCKS_PER_INODE_MAX`]: its grant may cut one held range into three.
const WAITER_WEIGHT: usize = 2;

/// Who locks: one owner of one session. Two owners of one session conflict like strangers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub session: SessionId,
    pub owner: LockOwner,
}

impl Holder {
    pub fn of(lock: &LockHolder) -> Holder {
        Holder { session: lock.session, owner: lock.owner }
    }
}

/// A lock that is held, with the fencing token that its grant gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub lock: LockHolder,
    pub generation: u64,
}

/// The locks of one inode.
///
/// L1  Every range starts at or before its end, `Unlock` is not held or waited for, a flock covers the whole file.
/// L2  Held locks are in order of (start, session, owner); ranges of one owner neither overlap nor, in one mode, touch.
/// L3  Held locks of different owners do not conflict.
/// L4  Every waiter is blocked by a held lock or by an earlier waiter.
/// L5  No held lock has a generation above the inode's.
/// L6  Held and waiting together stay within [`LOCKS_PER_INODE_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeLocks {
    held: Vec<Held>,
    /// In the order of their requests.
    waiting: Vec<LockHolder>,
    /// Exclusive grants so far.
    generation: u64,
}

impl InodeLocks {
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn held(&self) -> &[Held] {
        &self.held
    }

    pub fn waiting(&self) -> &[LockHolder] {
        &self.waiting
    }

    /// The held lock with the lowest start that keeps this request from being granted.
    pub fn conflict(&self, request: &LockHolder) -> Option<&Held> {
        self.held.iter().find(|held| conflicts(&held.lock, request))
    }

    /// May one more request be granted or queued?
    pub fn has_room(&self) -> bool {
        self.weight().saturating_add(WAITER_WEIGHT) <= LOCKS_PER_INODE_MAX
    }

    /// Would giving this range back leave more ranges than may be held?
    pub fn cannot_split(&self, request: &LockHolder) -> bool {
        let inside = |held: &&Held| {
            let LockRange { start, end } = held.lock.range;
            same_owner(&held.lock, request) && start < request.range.start && request.range.end < end
        };
        self.weight() >= LOCKS_PER_INODE_MAX && self.held.iter().any(|held| inside(&held))
    }

    /// Give the lock, in place of whatever its owner held of the range, and then to whom that helps. Returns the
    /// grant's generation.
    pub fn grant(&mut self, request: &LockHolder) -> u64 {
        let generation = self.hold(request);
        self.grant_waiters();
        generation
    }

    /// Add to the end of the queue. A flock is given up before its owner waits for another mode of it.
    pub fn queue(&mut self, request: &LockHolder) {
        if matches!(request.owner, LockOwner::Flock(_)) {
            self.cut(request);
        }
        if !self.waiting.contains(request) {
            self.waiting.push(*request);
        }
        self.grant_waiters();
    }

    /// Give back the range of this request, whatever its mode.
    pub fn unlock(&mut self, request: &LockHolder) {
        self.cut(request);
        self.grant_waiters();
    }

    /// Stop every wait of this owner for exactly this range.
    pub fn cancel(&mut self, holder: Holder, range: LockRange) {
        self.waiting.retain(|w| Holder::of(w) != holder || w.range != range);
        self.grant_waiters();
    }

    /// Give back all that an owner holds. The waits of a flock go with it: its last descriptor is closed. Those of a
    /// POSIX owner stay, because another thread of the process may be waiting through another descriptor.
    pub fn release(&mut self, holder: Holder) {
        self.held.retain(|held| Holder::of(&held.lock) != holder);
        if matches!(holder.owner, LockOwner::Flock(_)) {
            self.waiting.retain(|w| Holder::of(w) != holder);
        }
        self.grant_waiters();
    }

    /// Drop what a session holds and waits for.
    pub fn end_session(&mut self, session: SessionId) {
        self.held.retain(|held| held.lock.session != session);
        self.waiting.retain(|w| w.session != session);
        self.grant_waiters();
    }

    /// Does this owner wait for exactly this range?
    pub fn waits(&self, holder: Holder, range: LockRange) -> bool {
        self.waiting.iter().any(|w| Holder::of(w) == holder && w.range == range)
    }

    /// The newest generation of the owner's locks that cover the range, if they cover all of it.
    pub fn covered(&self, holder: Holder, range: LockRange) -> Option<u64> {
        let mut next = range.start;
        let mut newest = 0;
        for held in self.held.iter().filter(|h| Holder::of(&h.lock) == holder && h.lock.range.end >= range.start) {
            if held.lock.range.start > next {
                return None;
            }
            newest = newest.max(held.generation);
            match held.lock.range.end.checked_add(1) {
                Some(after) if after <= range.end => next = after,
                _ => return Some(newest),
            }
        }
        None
    }

    /// Whom this request would wait for at the end of the queue.
    pub fn blockers(&self, request: &LockHolder) -> Vec<Holder> {
        self.blockers_at(self.waiting.len(), request)
    }

    /// Whom this owner waits for here, over all its waits.
    pub fn blockers_of(&self, holder: Holder) -> impl Iterator<Item = Holder> + '_ {
        let own = self.waiting.iter().enumerate().filter(move |(_, w)| Holder::of(w) == holder);
        own.flat_map(|(place, w)| self.blockers_at(place, w))
    }

    /// Earlier waiters and holders that conflict with a request at this place of the queue. The search ends at a waiter
    /// that covers the request exclusively: whoever else blocks the request blocks that waiter, or is its owner.
    fn blockers_at(&self, place: usize, request: &LockHolder) -> Vec<Holder> {
        let mut found = Vec::new();
        for earlier in self.waiting.iter().take(place).rev().filter(|w| conflicts(w, request)) {
            found.push(Holder::of(earlier));
            if earlier.mode == LockMode::Exclusive && contains(earlier.range, request.range) {
                return found;
            }
        }
        found.extend(self.held.iter().filter(|h| conflicts(&h.lock, request)).map(|h| Holder::of(&h.lock)));
        found
    }

    fn weight(&self) -> usize {
        self.held.len().saturating_add(self.waiting.len().saturating_mul(WAITER_WEIGHT))
    }

    /// Grant in order whatever is not blocked. A grant that makes an exclusive range of its owner's shared may free earlier
    /// waiters: then the search goes back to the first of them. Whatever else a grant changes can only block more.
    fn grant_waiters(&mut self) {
        let mut place = 0;
        while let Some(waiter) = self.waiting.get(place).copied() {
            if self.is_blocked(place, &waiter) {
                place = place.saturating_add(1);
                continue;
            }
            self.waiting.remove(place);
            if self.weakens(&waiter) {
                let was = LockHolder { mode: LockMode::Exclusive, ..waiter };
                let freed = |earlier: &LockHolder| earlier.mode == LockMode::Shared && conflicts(earlier, &was);
                place = self.waiting.iter().take(place).position(freed).unwrap_or(place);
            }
            self.hold(&waiter);
        }
    }

    /// Would its grant make an exclusive range shared?
    fn weakens(&self, request: &LockHolder) -> bool {
        let older = |h: &&Held| same_owner(&h.lock, request) && overlap(h.lock.range, request.range);
        request.mode == LockMode::Shared && self.held.iter().filter(older).any(|h| h.lock.mode == LockMode::Exclusive)
    }

    fn is_blocked(&self, place: usize, waiter: &LockHolder) -> bool {
        self.conflict(waiter).is_some() || self.waiting.iter().take(place).any(|earlier| conflicts(earlier, waiter))
    }

    /// Make the request held: its owner's other ranges give way, and those of its mode that touch it become one with it.
    fn hold(&mut self, request: &LockHolder) -> u64 {
        if request.mode == LockMode::Exclusive {
            self.generation = self.generation.saturating_add(1);
        }
        self.cut(request);
        let mut whole = *request;
        self.held.retain(|held| {
            let joins = same_owner(&held.lock, request)
                && held.lock.mode == request.mode
                && touch(held.lock.range, request.range);
            if joins {
                whole.range = hull(whole.range, held.lock.range);
            }
            !joins
        });
        self.insert(Held { lock: whole, generation: self.generation });
        self.generation
    }

    /// Remove the request's range from what its owner holds.
    fn cut(&mut self, request: &LockHolder) {
        let (own, others): (Vec<Held>, Vec<Held>) =
            self.held.iter().partition(|h| same_owner(&h.lock, request) && overlap(h.lock.range, request.range));
        if own.is_empty() {
            return;
        }
        self.held = others;
        for held in own {
            for range in remainder(held.lock.range, request.range).into_iter().flatten() {
                self.insert(Held { lock: LockHolder { range, ..held.lock }, ..held });
            }
        }
    }

    fn insert(&mut self, held: Held) {
        let place = self.held.partition_point(|other| order(&other.lock) < order(&held.lock));
        self.held.insert(place, held);
    }

    /// L1 to L6.
    pub fn check(&self) -> Result<(), Broken> {
        let locks = || self.held.iter().map(|h| &h.lock).chain(&self.waiting);
        let pairs = |test: fn(&LockHolder, &LockHolder) -> bool| {
            let behind = |i: usize| self.held.iter().skip(i.saturating_add(1));
            self.held.iter().enumerate().any(|(i, a)| behind(i).any(|b| test(&a.lock, &b.lock)))
        };
        let in_order = self.held.windows(2).all(|w| matches!(w, [a, b] if order(&a.lock) < order(&b.lock)));
        hold_true("L1", locks().all(is_sound), "a lock has no range or no mode")?;
        hold_true("L2", in_order, "held locks are out of order")?;
        hold_true("L2", !pairs(should_be_one), "ranges of one owner overlap or touch")?;
        hold_true("L3", !pairs(conflicts), "two held locks conflict")?;
        let blocked = self.waiting.iter().enumerate().all(|(place, w)| self.is_blocked(place, w));
        hold_true("L4", blocked, "a waiter waits for nobody")?;
        hold_true("L5", self.held.iter().all(|h| h.generation <= self.generation), "a generation from the future")?;
        hold_true("L6", self.weight() <= LOCKS_PER_INODE_MAX, "too many locks")
    }
}

/// Would one of these keep the other from being held? (Different owners of one family, common bytes, one exclusive.)
pub fn conflicts(a: &LockHolder, b: &LockHolder) -> bool {
    let exclusive = a.mode == LockMode::Exclusive || b.mode == LockMode::Exclusive;
    exclusive && same_family(a.owner, b.owner) && !same_owner(a, b) && overlap(a.range, b.range)
}

/// Can this be held or waited for at all?
pub fn is_sound(lock: &LockHolder) -> bool {
    let whole = LockRange { start: 0, end: u64::MAX };
    let fits = matches!(lock.owner, LockOwner::Posix(_)) || lock.range == whole;
    lock.range.start <= lock.range.end && lock.mode != LockMode::Unlock && fits
}

fn should_be_one(a: &LockHolder, b: &LockHolder) -> bool {
    same_owner(a, b) && (overlap(a.range, b.range) || a.mode == b.mode && touch(a.range, b.range))
}

fn same_owner(a: &LockHolder, b: &LockHolder) -> bool {
    Holder::of(a) == Holder::of(b)
}

fn same_family(a: LockOwner, b: LockOwner) -> bool {
    matches!((a, b), (LockOwner::Posix(_), LockOwner::Posix(_)) | (LockOwner::Flock(_), LockOwner::Flock(_)))
}

fn overlap(a: LockRange, b: LockRange) -> bool {
    a.start <= b.end && b.start <= a.end
}

/// Do they overlap or meet end to end?
fn touch(a: LockRange, b: LockRange) -> bool {
    a.start <= b.end.saturating_add(1) && b.start <= a.end.saturating_add(1)
}

fn contains(outer: LockRange, inner: LockRange) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn hull(a: LockRange, b: LockRange) -> LockRange {
    LockRange { start: a.start.min(b.start), end: a.end.max(b.end) }
}

/// What is left of a range, before and behind the removed one, which overlaps it.
fn remainder(range: LockRange, removed: LockRange) -> [Option<LockRange>; 2] {
    let before = removed.start.checked_sub(1).filter(|end| range.start <= *end);
    let behind = removed.end.checked_add(1).filter(|start| *start <= range.end);
    [before.map(|end| LockRange { start: range.start, end }), behind.map(|start| LockRange { start, end: range.end })]
}

fn order(lock: &LockHolder) -> (u64, Holder) {
    (lock.range.start, Holder::of(lock))
}

fn hold_true(number: &'static str, holds: bool, what: &str) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { number, what: what.to_owned() }) }
}
