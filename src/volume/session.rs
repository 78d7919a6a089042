//! A session as its client keeps it: which sequence numbers are out, and from where on.
//!
//! `first_outstanding` is the lowest number that has neither been answered nor given up. It travels with every request and
//! lets the cluster forget the replies below it. A number is given up when its caller stops waiting: from then on a late
//! copy of the request is refused (`GivenUp`) instead of being executed behind the caller's back, as soon as the numbers
//! below it are done too. A command that would be undone by an older one executed after it waits for that moment
//! ([`Session::pass_doubts`]).
//!
//! The distance from `first_outstanding` to the newest number is bounded, not only how many are out: the cluster keeps the
//! replies of everything in between.

use crate::fs::{Command, Credentials, Request, Sequence, SessionId};
use crate::limits::SESSION_OUTSTANDING_MAX;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;
use tokio::time::timeout_at;

/// Numbers from the first outstanding to the newest one, at most.
const WINDOW_MAX: u64 = SESSION_OUTSTANDING_MAX as u64 / 2;

/// The sequence numbers of one session: a sliding set.
#[derive(Debug)]
struct Window {
    next: u64,
    outstanding: BTreeSet<u64>,
    /// The highest number that was given up; 0: none was.
    doubtful: u64,
}

impl Window {
    fn new() -> Window {
        Window { next: 1, outstanding: BTreeSet::new(), doubtful: 0 }
    }

    fn first_outstanding(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }

    /// The next number, unless the window is full.
    fn begin(&mut self) -> Option<u64> {
        if self.next - self.first_outstanding() >= WINDOW_MAX {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.outstanding.insert(sequence);
        Some(sequence)
    }

    fn finish(&mut self, sequence: u64, answered: bool) {
        self.outstanding.remove(&sequence);
        if !answered {
            self.doubtful = self.doubtful.max(sequence);
        }
    }
}

/// A session that the cluster has opened for us.
pub(super) struct Session {
    pub(super) id: SessionId,
    window: Mutex<Window>,
    slid: Notify,
}

impl Session {
    pub(super) fn new(id: SessionId) -> Arc<Session> {
        Arc::new(Session { id, window: Mutex::new(Window::new()), slid: Notify::new() })
    }

    /// Take a sequence number, waiting until the window has room. `None`: not in time.
    pub(super) async fn begin(self: &Arc<Session>, deadline: Instant) -> Option<Ticket> {
        loop {
            let slid = self.slid.notified();
            if let Some(ticket) = self.try_begin() {
                return Some(ticket);
            }
            timeout_at(deadline.into(), slid).await.ok()?;
        }
    }

    fn try_begin(self: &Arc<Session>) -> Option<Ticket> {
        let mut window = self.window.lock();
        let sequence = window.begin()?;
        let first_outstanding = Sequence(window.first_outstanding());
        Some(Ticket { session: self.clone(), sequence: Sequence(sequence), first_outstanding, answered: false })
    }

    /// Wait until whatever has been given up so far can be executed no more, once a later command has been. `None`: not in
    /// time.
    pub(super) async fn pass_doubts(&self, deadline: Instant) -> Option<()> {
        let doubtful = self.window.lock().doubtful;
        loop {
            let slid = self.slid.notified();
            if self.window.lock().first_outstanding() > doubtful {
                return Some(());
            }
            timeout_at(deadline.into(), slid).await.ok()?;
        }
    }
}

/// One sequence number in use. Dropping it gives it up, unless it was answered.
pub(super) struct Ticket {
    session: Arc<Session>,
    sequence: Sequence,
    first_outstanding: Sequence,
    answered: bool,
}

impl Ticket {
    /// The request was executed, or never will be.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }

    pub(super) fn request(&self, credentials: Credentials, command: Command) -> Request {
        let Ticket { session, sequence, first_outstanding, .. } = self;
        Request {
            session: session.id,
            sequence: *sequence,
            first_outstanding: *first_outstanding,
            credentials,
            command,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.window.lock().finish(self.sequence.0, self.answered);
        self.session.slid.notify_waiters();
    }
}

/// A request outside any session: what opens one, and what a leader proposes by itself.
pub fn sessionless(command: Command) -> Request {
    Request {
        session: SessionId(0),
        sequence: Sequence(0),
        first_outstanding: Sequence(0),
        credentials: Credentials::default(),
        command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        /// `None` takes a number, `Some(i)` finishes the i-th of those that are out.
        #[test]
        fn the_first_outstanding_is_exact_never_falls_and_bounds_what_is_out(
            steps in proptest::collection::vec(proptest::option::weighted(0.45, any::<prop::sample::Index>()), 1..6000)
        ) {
            let (mut window, mut out, mut before) = (Window::new(), Vec::<u64>::new(), 0);
            for step in steps {
                match step {
                    None => match window.begin() {
                        Some(sequence) => {
                            prop_assert!(!out.contains(&sequence));
                            out.push(sequence);
                        }
                        None => prop_assert_eq!(window.next - window.first_outstanding(), WINDOW_MAX),
                    },
                    Some(index) if !out.is_empty() => {
                        let sequence = out.swap_remove(index.index(out.len()));
                        window.finish(sequence, true);
                    }
                    Some(_) => {}
                }
                let first = window.first_outstanding();
                prop_assert_eq!(first, out.iter().copied().min().unwrap_or(window.next));
                prop_assert!(first >= before && window.next - first <= WINDOW_MAX);
                before = first;
            }
        }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_full_window_waits_for_its_oldest_number_and_a_dropped_ticket_gives_it_up() {
        let session = Session::new(SessionId(9));
        let oldest = session.begin(later()).await.unwrap();
        let mut rest = Vec::new();
        while let Some(ticket) = session.try_begin() {
            rest.push(ticket);
        }
        assert_eq!(rest.len() as u64 + 1, WINDOW_MAX);
        rest.clear();
        assert!(session.try_begin().is_none(), "the oldest still holds the window");
        assert!(session.begin(Instant::now()).await.is_none());
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.begin(later()).await }
        });
        tokio::task::yield_now().await;
        drop(oldest);
        let ticket = waiting.await.unwrap().unwrap();
        let request = ticket.request(Credentials::default(), Command::Tick);
        assert_eq!((request.sequence.0, request.first_outstanding.0), (WINDOW_MAX + 1, WINDOW_MAX + 1));
    }

    #[tokio::test]
    async fn what_is_given_up_is_passed_once_the_numbers_below_it_are_done() {
        let session = Session::new(SessionId(9));
        let mut tickets = Vec::new();
        for _ in 0..4 {
            tickets.push(session.begin(later()).await.unwrap());
        }
        tickets.remove(2).answered();
        assert!(session.pass_doubts(Instant::now()).await.is_some(), "no doubt, whatever is out");
        drop(tickets.remove(1));
        assert!(session.pass_doubts(Instant::now()).await.is_none(), "a lower number is out");
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.pass_doubts(later()).await }
        });
        tokio::task::yield_now().await;
        tickets.remove(0).answered();
        assert!(waiting.await.unwrap().is_some(), "the number above does not matter");
    }
}
