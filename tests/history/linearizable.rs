//! Is a history linearizable? The search of Wing and Gong, with Lowe's memory of configurations.
//!
//! A history is a set of calls of a sequential object, each with the time at which it began and, if its answer is known,
//! the time at which it ended. It is linearizable if every call can be given an instant between its begin and its end so
//! that the object, doing them one at a time in that order, gives the answers that were got.
//!
//! A call whose outcome is not known (a timeout) has no end: it may take effect at any time after its begin, or never.
//!
//! Cost: exponential in the number of calls that overlap, at worst. What keeps it low: check each file (register, lock)
//! by itself, since linearizability is local; and end calls soon. The search gives up after a number of configurations
//! and says so: an undecided history is no proof of anything.
//!
//! Sources: Wing and Gong, "Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for linearizability" (2016).

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// A sequential object.
pub trait Spec {
    type State: Clone + Eq + Hash + Debug;
    type Input: Debug;
    type Output: Debug;

    fn initial(&self) -> Self::State;

    /// The state after `input` was done in `state`. `None`: it cannot have been answered with `output` there. Without an
    /// output, whatever happens is right.
    fn step(&self, state: &Self::State, input: &Self::Input, output: Option<&Self::Output>) -> Option<Self::State>;
}

/// One call of a client, in any unit of time.
#[derive(Clone, Debug)]
pub struct Call<I, O> {
    /// Who called: for people.
    pub client: u64,
    pub begin: u64,
    pub input: I,
    /// When the answer came, and what it was. `None`: nobody knows.
    pub end: Option<(u64, O)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains it. What was tried that got furthest, in words.
    Violated(String),
    /// The search was given up after so many configurations.
    Undecided(usize),
}

/// Whether an order explains all calls, looking at `configurations_max` configurations at most.
pub fn check<S: Spec>(spec: &S, calls: &[Call<S::Input, S::Output>], configurations_max: usize) -> Verdict {
    let mut search = Search::new(spec, calls);
    loop {
        if search.unanswered == 0 {
            return Verdict::Linearizable;
        }
        if search.seen.len() > configurations_max {
            return Verdict::Undecided(configurations_max);
        }
        let moved = match search.events[search.at] {
            Event::Call(call) => search.try_call(call) || search.skip(),
            Event::Return(_) => search.undo(),
            Event::Edge => search.skip(),
        };
        if !moved {
            return Verdict::Violated(search.explain());
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Both ends of the ring.
    Edge,
    Call(usize),
    Return(usize),
}

/// Where the search stands: the events of the calls that have no place in the order yet are a ring, in time order.
struct Search<'a, S: Spec> {
    spec: &'a S,
    calls: &'a [Call<S::Input, S::Output>],
    events: Vec<Event>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Of each call, its two events; the second is the edge if it has no end.
    places: Vec<(usize, usize)>,
    at: usize,
    state: S::State,
    done: Box<[u64]>,
    /// Calls that have an answer and no place yet.
    unanswered: usize,
    /// Calls in their order, with the state before each.
    order: Vec<(usize, S::State)>,
    furthest: (Vec<usize>, S::State),
    seen: HashSet<(Box<[u64]>, S::State)>,
}

const EDGE: usize = 0;

impl<'a, S: Spec> Search<'a, S> {
    fn new(spec: &'a S, calls: &'a [Call<S::Input, S::Output>]) -> Search<'a, S> {
        let mut timed: Vec<(u64, bool, Event)> = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            timed.push((call.begin, false, Event::Call(number)));
            if let Some((end, _)) = &call.end {
                assert!(*end >= call.begin, "call {number} ends before it begins");
                timed.push((*end, true, Event::Return(number)));
            }
        }
        // What ends as another begins may have overlapped it.
        timed.sort_by_key(|(at, is_return, _)| (*at, *is_return));
        let events: Vec<Event> =
            [Event::Edge].into_iter().chain(timed.into_iter().map(|(_, _, event)| event)).collect();
        let mut places = vec![(EDGE, EDGE); calls.len()];
        for (place, event) in events.iter().enumerate() {
            match event {
                Event::Call(call) => places[*call].0 = place,
                Event::Return(call) => places[*call].1 = place,
                Event::Edge => {}
            }
        }
        let count = events.len();
        Search {
            spec,
            calls,
            next: (0..count).map(|place| (place + 1) % count).collect(),
            previous: (0..count).map(|place| (place + count - 1) % count).collect(),
            at: 1 % count,
            events,
            places,
            state: spec.initial(),
            done: vec![0; calls.len().div_ceil(64)].into(),
            unanswered: calls.iter().filter(|call| call.end.is_some()).count(),
            order: Vec::new(),
            furthest: (Vec::new(), spec.initial()),
            seen: HashSet::new(),
        }
    }

    /// Let this call be the next in the order, if the object can do it and nobody has been here before.
    fn try_call(&mut self, number: usize) -> bool {
        let call = &self.calls[number];
        let output = call.end.as_ref().map(|(_, output)| output);
        let Some(state) = self.spec.step(&self.state, &call.input, output) else { return false };
        // To do what nobody saw, and what changes nothing, explains nothing.
        if output.is_none() && state == self.state {
            return false;
        }
        self.done[number / 64] |= 1 << (number % 64);
        if !self.seen.insert((self.done.clone(), state.clone())) {
            self.done[number / 64] &= !(1 << (number % 64));
            return false;
        }
        self.order.push((number, std::mem::replace(&mut self.state, state)));
        self.unanswered -= usize::from(output.is_some());
        let (call_at, return_at) = self.places[number];
        self.unlink(call_at);
        if return_at != EDGE {
            self.unlink(return_at);
        }
        if self.order.len() > self.furthest.0.len() {
            self.furthest = (self.order.iter().map(|(number, _)| *number).collect(), self.state.clone());
        }
        self.at = self.next[EDGE];
        true
    }

    fn skip(&mut self) -> bool {
        self.at = self.next[self.at];
        true
    }

    /// The answer of a call is reached that has no place yet: take the last one back and go on behind it.
    fn undo(&mut self) -> bool {
        let Some((number, state)) = self.order.pop() else { return false };
        self.state = state;
        self.done[number / 64] &= !(1 << (number % 64));
        self.unanswered += usize::from(self.calls[number].end.is_some());
        let (call_at, return_at) = self.places[number];
        if return_at != EDGE {
            self.link(return_at);
        }
        self.link(call_at);
        self.at = self.next[call_at];
        true
    }

    fn unlink(&mut self, place: usize) {
        self.next[self.previous[place]] = self.next[place];
        self.previous[self.next[place]] = self.previous[place];
    }

    /// Undo the last `unlink` that is still to be undone.
    fn link(&mut self, place: usize) {
        self.next[self.previous[place]] = place;
        self.previous[self.next[place]] = place;
    }

    fn explain(&self) -> String {
        let (order, state) = &self.furthest;
        let shown = |number: &usize| shown(*number, &self.calls[*number]);
        let tail: String = order.iter().rev().take(12).rev().map(shown).collect();
        let mut left: Vec<usize> = (0..self.calls.len()).filter(|number| !order.contains(number)).collect();
        left.sort_by_key(|number| self.calls[*number].begin);
        let left: String = left.iter().take(12).map(shown).collect();
        format!(
            "no order explains {} calls; the longest try has {}, the last of them\n{tail}then the state is {state:?}, \
             and these find no place:\n{left}",
            self.calls.len(),
            order.len()
        )
    }
}

fn shown<I: Debug, O: Debug>(number: usize, call: &Call<I, O>) -> String {
    let Call { client, begin, input, end } = call;
    match end {
        Some((end, output)) => format!("  #{number} client {client}, {begin} to {end}: {input:?} -> {output:?}\n"),
        None => format!("  #{number} client {client}, from {begin}: {input:?} -> unknown\n"),
    }
}
