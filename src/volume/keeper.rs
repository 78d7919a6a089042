//! Keeping a session: open it once, show signs of life, answer for orphans, notice its end.

use super::Shared;
use super::session::Session;
use super::{Access, Failure};
use crate::fs::{Command, Credentials, Ino, SessionId};
use crate::limits::SESSION_TTL_NS;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout_at};

/// How often the keeper looks whether orphans wait for this session. It then answers for all of them, without a pause:
/// files may go faster than one question's worth in a tick, and each holds memory and disk until it is answered for.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Time between two signs of life.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long the question for orphans may take: the sign of life waits behind it.
const ORPHANS_TIME: Duration = Duration::from_secs(2);
/// How long one sign of life may take.
const ALIVE_TIME: Duration = Duration::from_nanos(SESSION_TTL_NS / 2);

const _: () = assert!(ALIVE_EVERY.as_nanos() as u64 * 4 < SESSION_TTL_NS);

/// A volume's session, if it has one now.
#[derive(Default)]
pub(super) struct Standing {
    state: Mutex<State>,
    /// Held while a session is being opened, so that one is enough.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
enum State {
    /// Nobody has needed one.
    #[default]
    Never,
    Live(Arc<Session>),
    Ended,
    /// The volume is closed.
    Closed,
}

impl Standing {
    /// The live session, opened if need be.
    pub(super) async fn session<F: Future<Output = Result<Arc<Session>, Failure>>>(
        &self,
        deadline: Instant,
        open: impl FnOnce() -> F,
    ) -> Result<Arc<Session>, Failure> {
        if let Some(session) = self.live()? {
            return Ok(session);
        }
        let _opening = timeout_at(deadline.into(), self.opening.lock()).await.map_err(|_| Failure::NoMajority)?;
        if let Some(session) = self.live()? {
            return Ok(session);
        }
        let session = open().await?;
        tracing::info!("opened session {}", session.id.0);
        match &mut *self.state.lock() {
            State::Closed => Err(closed()),
            state => {
                *state = State::Live(session.clone());
                Ok(session)
            }
        }
    }

    fn live(&self) -> Result<Option<Arc<Session>>, Failure> {
        match &*self.state.lock() {
            State::Live(session) => Ok(Some(session.clone())),
            State::Never | State::Ended => Ok(None),
            State::Closed => Err(closed()),
        }
    }

    /// The cluster has said that this session is no more.
    pub(super) fn ended(&self, session: &Session, open_inodes: usize) {
        let mut state = self.state.lock();
        if matches!(&*state, State::Live(live) if live.id == session.id) {
            *state = State::Ended;
            tracing::error!(
                "session {} has ended because the cluster heard nothing of it in time: its locks are lost, and so is the \
                 content of unlinked files among {open_inodes} open ones; a new session is being opened",
                session.id.0
            );
        }
    }

    /// No session from now on; the one that was live.
    pub(super) fn close(&self) -> Option<Arc<Session>> {
        match std::mem::replace(&mut *self.state.lock(), State::Closed) {
            State::Live(session) => Some(session),
            _ => None,
        }
    }
}

fn closed() -> Failure {
    Failure::Stopped("the volume is closed".into())
}

/// Keep the session of this volume until the volume is closed or dropped.
pub(super) fn start(shared: &Arc<Shared>) {
    tokio::spawn(keep(Arc::downgrade(shared)));
}

async fn keep(volume: Weak<Shared>) {
    let mut last_sign = Instant::now();
    // How far we are in the list of orphans: what is open stays in it, and must not hide what comes behind.
    let mut after = Ino(0);
    loop {
        if after == Ino(0) {
            sleep(TICK).await;
        }
        let Some(shared) = volume.upgrade() else { return };
        let open_inodes = shared.opens.lock().len();
        let standing = match &*shared.standing.state.lock() {
            State::Closed => return,
            State::Never if open_inodes == 0 => continue,
            State::Never => None,
            State::Live(session) => Some(session.id),
            State::Ended => None,
        };
        let closed = match standing {
            Some(session) => shared.orphans_to_answer(session, &mut after, Instant::now() + ORPHANS_TIME).await,
            None => Vec::new(),
        };
        if standing.is_some() && closed.is_empty() && last_sign.elapsed() < ALIVE_EVERY {
            continue;
        }
        // Without a session this opens one first.
        let (now, sign) = (Instant::now(), Command::KeepAlive { closed });
        match shared.submit(None, Credentials::default(), sign, Bytes::new(), now + ALIVE_TIME).await {
            Ok(_) => last_sign = now,
            Err(failure) => {
                tracing::warn!("cannot keep the session alive, trying again: {failure}");
                after = Ino(0);
            }
        }
    }
}

impl Shared {
    /// The next orphans that wait for our answer and that we do not hold.
    async fn orphans_to_answer(&self, session: SessionId, after: &mut Ino, deadline: Instant) -> Vec<Ino> {
        let orphans = match &self.access {
            Access::Local(local) => local.orphans_of(session, *after),
            // Without an answer they are asked for again at the next tick.
            Access::Remote(client) => client.orphans_of(session, *after, deadline).await.unwrap_or_default(),
        };
        *after = orphans.last().copied().unwrap_or(Ino(0));
        if orphans.is_empty() { orphans } else { self.opens.lock().answer(orphans) }
    }
}
