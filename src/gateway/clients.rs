//! The clients that are connected: how many, and who goes when there are too many.
//!
//! Decision: whoever has been silent longest, and for some time, makes room for a new client. Otherwise a few programs that
//! connect and say nothing would shut out all others until they are let go for their silence alone. Cost: on a crowded
//! node a client must be ready to connect again.

use crate::limits::{CS733_CONNECTIONS_MAX, CS733_SPARED_SECONDS};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const SPARED: Duration = Duration::from_secs(CS733_SPARED_SECONDS);
/// How long one that waits for nothing but bytes may take to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// Since when a connection has been waiting for its client's bytes; nothing while it works for it.
#[derive(Clone, Default)]
pub struct Silence {
    since: Arc<Mutex<Option<Instant>>>,
}

impl Silence {
    pub fn begin(&self) {
        *self.since.lock() = Some(Instant::now());
    }

    pub fn end(&self) {
        *self.since.lock() = None;
    }

    /// Longer than clients are spared; since when?
    fn since(&self, now: Instant) -> Option<Instant> {
        self.since.lock().filter(|since| now.duration_since(*since) > SPARED)
    }
}

struct Client {
    silence: Silence,
    stop: CancellationToken,
}

#[derive(Default)]
pub struct Clients {
    tasks: JoinSet<()>,
    /// Who may still be among `tasks`.
    connected: HashMap<Id, Client>,
}

impl Clients {
    /// Serve one more. `connection` is given what it has to tell us and when it has to end.
    pub fn admit<F>(&mut self, stop: &CancellationToken, connection: impl FnOnce(Silence, CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let client = Client { silence: Silence::default(), stop: stop.child_token() };
        let task = self.tasks.spawn(connection(client.silence.clone(), client.stop.clone()));
        self.connected.insert(task.id(), client);
    }

    /// Is there room for one more? If there is none, whoever has been silent longest has to go.
    pub async fn make_room(&mut self) -> bool {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget(ended);
        }
        if self.tasks.len() < CS733_CONNECTIONS_MAX {
            return true;
        }
        let Some(client) = self.longest_silent(Instant::now()) else { return false };
        client.stop.cancel();
        match timeout(PATIENCE, self.tasks.join_next_with_id()).await {
            Ok(Some(ended)) => self.forget(ended),
            _ => return false,
        }
        true
    }

    fn longest_silent(&self, now: Instant) -> Option<&Client> {
        let silent = self.connected.values().filter_map(|client| Some((client.silence.since(now)?, client)));
        silent.min_by_key(|(since, _)| *since).map(|(_, client)| client)
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|panicked| panicked.id(), |(id, ())| id);
        self.connected.remove(&id);
    }

    /// Wait until all have ended by themselves, but not longer than `patience`.
    pub async fn end(mut self, patience: Duration) {
        let ended = timeout(patience, async { while self.tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_silent_one_makes_room_and_nobody_who_works_or_has_just_spoken() {
        let (mut clients, stop) = (Clients::default(), CancellationToken::new());
        let mut told = Vec::new();
        for _ in 0..CS733_CONNECTIONS_MAX {
            assert!(clients.make_room().await);
            clients.admit(&stop, |silence, stop| {
                told.push((silence, stop.clone()));
                async move { stop.cancelled().await }
            });
        }
        let gone = || told.iter().enumerate().filter(|(_, (_, stop))| stop.is_cancelled()).map(|(n, _)| n);
        assert!(!clients.make_room().await, "all of them are being served");
        told[7].0.begin();
        tokio::time::advance(Duration::from_secs(1)).await;
        told[3].0.begin();
        assert!(!clients.make_room().await, "none has been silent for long");
        tokio::time::advance(SPARED).await;
        assert!(clients.make_room().await);
        assert_eq!(gone().collect::<Vec<_>>(), [7]);
        clients.admit(&stop, |_, stop| async move { stop.cancelled().await });
        told[3].0.end();
        tokio::time::advance(SPARED).await;
        assert!(!clients.make_room().await, "the other one works again");
        stop.cancel();
        clients.end(SPARED).await;
    }
}
