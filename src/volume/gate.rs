//! The gate of linearizable reads: one confirmation round serves every read that was waiting when it started.
//!
//! A read that arrives while a round runs must not join it: a write may have completed between the start of that round and
//! the arrival of the read, and the round's index may be older than that write. It waits for the next round.
//! (etcd #20418 is what becomes of breaking this rule.)
//!
//! Cost: under load a read waits for half a round on average before its own begins.

use super::Failure;
use crate::fs::LogIndex;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

/// Reads that may wait at one time.
const WAITING_MAX: usize = 65_536;

/// What a round came to. `NoMajority` means "not in the time of one round": those who still have time wait for the next.
type Round = Result<LogIndex, Failure>;

pub(super) struct ReadGate {
    shared: Arc<Shared>,
}

struct Shared {
    start_round: Box<dyn Fn() -> BoxFuture<'static, Round> + Send + Sync>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    running: bool,
    waiting: Vec<oneshot::Sender<Round>>,
}

impl ReadGate {
    /// `start_round` begins a round: its future must end by itself in bounded time.
    pub(super) fn new(start_round: impl Fn() -> BoxFuture<'static, Round> + Send + Sync + 'static) -> ReadGate {
        ReadGate { shared: Arc::new(Shared { start_round: Box::new(start_round), queue: Mutex::default() }) }
    }

    /// An index that every command completed before this call began is at or below.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<LogIndex, Failure> {
        loop {
            match timeout_at(deadline.into(), self.join()?).await {
                Err(_) => return Err(Failure::NoMajority),
                Ok(Ok(Err(Failure::NoMajority))) | Ok(Err(_)) => continue,
                Ok(Ok(done)) => return done,
            }
        }
    }

    /// Stand in line for the next round, starting it if none is running.
    fn join(&self) -> Result<oneshot::Receiver<Round>, Failure> {
        let (sender, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        if queue.waiting.len() >= WAITING_MAX {
            queue.waiting.retain(|waiting| !waiting.is_closed());
            if queue.waiting.len() >= WAITING_MAX {
                return Err(Failure::NoMajority);
            }
        }
        queue.waiting.push(sender);
        if !queue.running {
            queue.running = true;
            tokio::spawn(self.shared.clone().run());
        }
        Ok(receiver)
    }
}

impl Shared {
    /// Run rounds until nobody waits. A task of its own, because whoever stood first in line may go away.
    async fn run(self: Arc<Self>) {
        while let Some(batch) = self.next_batch() {
            // Had a panic its way, nobody would ever start a round again.
            let round = AssertUnwindSafe(async { (self.start_round)().await }).catch_unwind().await;
            let round = round.unwrap_or_else(|_| Err(Failure::Stopped("the confirmation of a read panicked".into())));
            for waiting in batch {
                // Whoever has gone away does not want it.
                let _ = waiting.send(round.clone());
            }
        }
    }

    /// Everyone who waits now: all of them arrived before the round that is about to start.
    fn next_batch(&self) -> Option<Vec<oneshot::Sender<Round>>> {
        let mut queue = self.queue.lock();
        queue.waiting.retain(|waiting| !waiting.is_closed());
        if queue.waiting.is_empty() {
            queue.running = false;
            return None;
        }
        Some(std::mem::take(&mut queue.waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc;

    /// A gate whose rounds are announced and end when the test says so.
    fn scripted_gate() -> (Arc<ReadGate>, mpsc::Receiver<oneshot::Sender<Round>>) {
        let (started, rounds) = mpsc::channel(8);
        let gate = ReadGate::new(move || {
            let started = started.clone();
            async move {
                let (end, ended) = oneshot::channel();
                started.send(end).await.unwrap();
                ended.await.unwrap()
            }
            .boxed()
        });
        (Arc::new(gate), rounds)
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn read(gate: &Arc<ReadGate>) -> tokio::task::JoinHandle<Round> {
        let gate = gate.clone();
        tokio::spawn(async move { gate.pass(later()).await })
    }

    async fn waiting(gate: &ReadGate, count: usize) {
        while gate.shared.queue.lock().waiting.len() != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_read_never_joins_a_round_that_runs_and_one_round_serves_all_who_waited() {
        let (gate, mut rounds) = scripted_gate();
        let first = read(&gate);
        let end_first = rounds.recv().await.unwrap();
        let late = [read(&gate), read(&gate), read(&gate)];
        waiting(&gate, late.len()).await;
        end_first.send(Ok(LogIndex(1))).unwrap();
        assert_eq!(first.await.unwrap(), Ok(LogIndex(1)));
        let end_second = rounds.recv().await.unwrap();
        end_second.send(Ok(LogIndex(2))).unwrap();
        for read in late {
            assert_eq!(read.await.unwrap(), Ok(LogIndex(2)));
        }
        assert!(rounds.try_recv().is_err(), "one round was enough for the three");
    }

    #[tokio::test]
    async fn a_failed_round_is_followed_by_another_and_a_stopped_node_ends_the_wait() {
        let (gate, mut rounds) = scripted_gate();
        let (patient, unlucky) = (read(&gate), Failure::Stopped("test".into()));
        rounds.recv().await.unwrap().send(Err(Failure::NoMajority)).unwrap();
        rounds.recv().await.unwrap().send(Ok(LogIndex(7))).unwrap();
        assert_eq!(patient.await.unwrap(), Ok(LogIndex(7)));
        let stopped = read(&gate);
        rounds.recv().await.unwrap().send(Err(unlucky.clone())).unwrap();
        assert_eq!(stopped.await.unwrap(), Err(unlucky));
    }

    #[tokio::test]
    async fn a_round_that_panics_fails_those_who_waited_for_it_and_nobody_else() {
        let (gate, mut rounds) = scripted_gate();
        let unlucky = read(&gate);
        drop(rounds.recv().await.unwrap());
        assert!(matches!(unlucky.await.unwrap(), Err(Failure::Stopped(_))));
        let next = read(&gate);
        rounds.recv().await.unwrap().send(Ok(LogIndex(3))).unwrap();
        assert_eq!(next.await.unwrap(), Ok(LogIndex(3)));
    }

    #[tokio::test]
    async fn who_goes_away_leaves_the_gate_open_for_others() {
        let (gate, mut rounds) = scripted_gate();
        let gone = read(&gate);
        let end = rounds.recv().await.unwrap();
        gone.abort();
        assert!(gone.await.is_err());
        end.send(Ok(LogIndex(1))).unwrap();
        let next = read(&gate);
        rounds.recv().await.unwrap().send(Ok(LogIndex(2))).unwrap();
        assert_eq!(next.await.unwrap(), Ok(LogIndex(2)));
    }
}
