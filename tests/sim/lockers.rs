//! Lock programs: each takes locks on files that all share, keeps them for a while and gives them back, and writes down from
//! when to when it certainly held what.
//!
//! As on a mount, every try is an owner of its own, and what a try may have got without knowing it is given back until the
//! cluster has said so.

use crate::clients::{GRAIN_MS, name, put};
use crate::diary::{Diary, Tenure};
use crate::network::TICK_MS;
use crate::os::{self, Dice};
use bytes::Bytes;
use keelfs::fs::{
    Answer, Command, Credentials, Expected, ExpiryChange, Ino, LockMode, LockOwner, LockRange, LockStanding, LogIndex,
    Query, Refusal, Reply, SessionId,
};
use keelfs::limits::SESSION_TTL_NS;
use keelfs::volume::{Failure, Volume};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Each is locked in the end by two hosts at least.
pub const FILES: u64 = 3;
const WHOLE_FILE: LockRange = LockRange { start: 0, end: u64::MAX };
const RANGES: [LockRange; 4] = [
    LockRange { start: 0, end: 9 },
    LockRange { start: 5, end: 14 },
    LockRange { start: 10, end: u64::MAX },
    WHOLE_FILE,
];
/// A session lives at least so long after a sign of life, however fast the clocks of its leaders are.
const SESSION_MS_LEAST: u64 = SESSION_TTL_NS / 1_000_000 * 98 / 100 - GRAIN_MS;
/// Longer than a dead session keeps others waiting.
const PATIENCE_LAST_MS: u64 = 60_000;
const WITHIN: Duration = Duration::from_secs(4);

pub fn file_name(file: u64) -> String {
    format!("l{file}")
}

pub fn start(volume: &Volume, number: u64, diary: &Diary, dice: &Dice) {
    diary.with(|pages| pages.clients.insert(number));
    let dice = Dice::new(dice.clone().any(), number);
    let locker =
        Locker { number, volume: volume.clone(), diary: diary.clone(), dice, files: BTreeMap::new(), owners: 0 };
    tokio::spawn(locker.run());
}

struct Locker {
    number: u64,
    volume: Volume,
    diary: Diary,
    dice: Dice,
    files: BTreeMap<u64, Ino>,
    /// That have been used.
    owners: u64,
}

#[derive(Clone, Copy)]
struct Wish {
    file: u64,
    ino: Ino,
    owner: LockOwner,
    range: LockRange,
    mode: LockMode,
    wait: bool,
    /// It waits no longer than this.
    patience_ms: u64,
}

impl Wish {
    fn command(self) -> Command {
        let Wish { ino, owner, range, mode, wait, .. } = self;
        Command::Lock { ino, owner, range, mode, pid: 1, wait }
    }
}

/// A lock that is held: where it is in the diary, and the session that holds it.
struct Holding {
    tenure: usize,
    session: SessionId,
    generation: u64,
}

impl Locker {
    async fn run(mut self) {
        while !self.diary.with(|pages| pages.last_call) {
            self.pause(1000).await;
            let file = if self.dice.chance(50) { 0 } else { self.dice.below(FILES) };
            let Some(ino) = self.ino(file).await else { continue };
            let (posix, mode) = (self.dice.chance(60), self.any_mode());
            let wish = Wish {
                file,
                ino,
                owner: self.owner(posix),
                range: if posix { *self.dice.pick(&RANGES) } else { WHOLE_FILE },
                mode,
                wait: self.dice.chance(70),
                patience_ms: *self.dice.pick(&[500, 3000, 10_000]),
            };
            self.turn(wish).await;
        }
        self.last_turn(false).await;
        self.last_turn(true).await;
        self.diary.with(|pages| pages.finished.insert(self.number));
    }

    /// Once nothing is wrong any more, whoever waits gets it.
    async fn last_turn(&mut self, posix: bool) {
        let file = self.number / 10 % FILES;
        loop {
            self.pause(100).await;
            let Some(ino) = self.ino(file).await else { continue };
            let (owner, range, mode) = (self.owner(posix), WHOLE_FILE, LockMode::Exclusive);
            let wish = Wish { file, ino, owner, range, mode, wait: true, patience_ms: PATIENCE_LAST_MS };
            if self.turn(wish).await {
                return;
            }
        }
    }

    async fn pause(&mut self, ms: u64) {
        sleep(Duration::from_millis(3 * TICK_MS + self.dice.below(ms))).await;
    }

    fn any_mode(&mut self) -> LockMode {
        if self.dice.chance(60) { LockMode::Exclusive } else { LockMode::Shared }
    }

    fn owner(&mut self, posix: bool) -> LockOwner {
        self.owners += 1;
        let owner = self.number << 32 | self.owners;
        if posix { LockOwner::Posix(owner) } else { LockOwner::Flock(owner) }
    }

    async fn ino(&mut self, file: u64) -> Option<Ino> {
        if let Some(ino) = self.files.get(&file) {
            return Some(*ino);
        }
        let (text, deadline) = (file_name(file), Instant::now() + WITHIN);
        let make = put(&text, Expected::Version(LogIndex(0)), ExpiryChange::Keep, &Bytes::new());
        let made = self.volume.submit(Credentials::default(), make, Bytes::new(), deadline).await;
        if !matches!(made, Ok(_) | Err(Failure::Refused(Refusal::NameTaken))) {
            return None;
        }
        let query = Query::Lookup { parent: Ino::ROOT, name: name(&text) };
        let Ok(Answer::Attributes(attributes)) = self.volume.query(query, deadline).await else { return None };
        self.files.insert(file, attributes.ino);
        Some(attributes.ino)
    }

    async fn submit(&self, session: SessionId, command: Command) -> Result<Reply, Failure> {
        let (nobody, deadline) = (Credentials::default(), Instant::now() + WITHIN);
        self.volume.submit_within(session, nobody, command, Bytes::new(), deadline).await
    }

    fn wrong(&self, what: &str) {
        let line = format!("locker {} at {} ms: {what}", self.number, os::now_ms());
        self.diary.with(|pages| pages.seen_wrong.push(line));
    }

    /// Take a lock, keep it, give it back. `true`: it was held.
    async fn turn(&mut self, wish: Wish) -> bool {
        let Ok(session) = self.volume.session(Instant::now() + WITHIN).await else { return false };
        let Some(holding) = self.take(wish, session).await else { return false };
        let holding = match self.keep(wish, holding).await {
            Some(holding) if self.dice.chance(30) => self.convert(wish, holding).await,
            holding => holding,
        };
        if let Some(holding) = holding {
            self.release(wish, &holding).await;
        }
        true
    }

    /// `None`: it is not held, nor waited for.
    async fn take(&mut self, wish: Wish, session: SessionId) -> Option<Holding> {
        self.diary.trace.note("lock", &[self.number, wish.file, wish.mode as u64, wish.wait as u64]);
        let asked_ms = os::now_ms();
        let generation = match self.submit(session, wish.command()).await {
            Ok(Reply::Locked { generation }) => generation,
            Ok(Reply::Waiting) if wish.wait => self.wait(wish, session, asked_ms + wish.patience_ms).await?,
            Err(Failure::Refused(Refusal::LockConflict)) if !wish.wait => return None,
            Err(Failure::Refused(Refusal::Deadlock)) if wish.wait => return None,
            Err(Failure::Refused(Refusal::SessionEnded | Refusal::NoSpace) | Failure::NoMajority) => return None,
            Ok(_) | Err(Failure::Refused(_)) => {
                self.wrong("a lock was answered with what makes no sense");
                return None;
            }
            Err(_) => {
                self.give_back(wish, session).await;
                return None;
            }
        };
        let tenure = Tenure {
            file: wish.file,
            owner: wish.owner,
            range: wish.range,
            exclusive: wish.mode == LockMode::Exclusive,
            generation,
            asked_ms,
            from_ms: os::now_ms() + TICK_MS,
            until_ms: asked_ms + SESSION_MS_LEAST,
        };
        self.diary.trace.tell(|| format!("{tenure:?} in session {}", session.0));
        let tenure = self.diary.with(|pages| {
            pages.tenures.push(tenure);
            pages.tenures.len() - 1
        });
        Some(Holding { tenure, session, generation })
    }

    /// Until the lock is granted: its generation. `None`: that is over, and nothing is held.
    async fn wait(&mut self, wish: Wish, session: SessionId, until_ms: u64) -> Option<u64> {
        while os::now_ms() < until_ms {
            self.pause(150).await;
            match self.standing(wish, session).await {
                Some(LockStanding::Held { generation }) => return Some(generation),
                Some(LockStanding::Gone) => {
                    if self.is_alive(session).await == Some(true) {
                        self.wrong("a wait for a lock was forgotten");
                    }
                    return None;
                }
                Some(LockStanding::Waiting) | None => {}
            }
        }
        let Wish { ino, owner, range, .. } = wish;
        match self.submit(session, Command::CancelLock { ino, owner, range }).await {
            Ok(Reply::Locked { generation }) => Some(generation),
            Ok(_) => None,
            Err(_) => {
                self.give_back(wish, session).await;
                None
            }
        }
    }

    async fn standing(&self, wish: Wish, session: SessionId) -> Option<LockStanding> {
        let Wish { ino, owner, range, .. } = wish;
        let query = Query::LockStanding { ino, session, owner, range };
        match self.volume.query(query, Instant::now() + WITHIN).await {
            Ok(Answer::LockStanding(standing)) => Some(standing),
            _ => None,
        }
    }

    /// A sign of life. `None`: nobody knows.
    async fn is_alive(&self, session: SessionId) -> Option<bool> {
        match self.submit(session, Command::KeepAlive { closed: Vec::new() }).await {
            Ok(_) => Some(true),
            Err(Failure::Refused(Refusal::SessionEnded)) => Some(false),
            Err(_) => None,
        }
    }

    /// Keep it for a while, and see that it is still there. `None`: it ended with its session.
    async fn keep(&mut self, wish: Wish, holding: Holding) -> Option<Holding> {
        for _ in 0..self.dice.below(4) {
            self.pause(300).await;
            if self.dice.chance(40) && !self.look(wish, &holding).await {
                return None;
            }
        }
        Some(holding)
    }

    /// `false`: it ended with its session.
    async fn look(&self, wish: Wish, holding: &Holding) -> bool {
        let seen = self.standing(wish, holding.session).await;
        let begin = os::now_ms();
        match self.is_alive(holding.session).await {
            Some(true) => {
                // The session was alive all the time, and so was the lock.
                let is_held = Some(LockStanding::Held { generation: holding.generation });
                if seen.is_some() && seen != is_held {
                    self.wrong(&format!("a lock of generation {} is held no more: {seen:?}", holding.generation));
                }
                self.held_until(holding, |until| until.max(begin + SESSION_MS_LEAST));
                true
            }
            Some(false) => {
                self.diary.with(|pages| pages.sessions_lost += 1);
                false
            }
            None => true,
        }
    }

    fn held_until(&self, holding: &Holding, change: impl FnOnce(u64) -> u64) {
        self.diary.with(|pages| {
            if let Some(tenure) = pages.tenures.get_mut(holding.tenure) {
                tenure.until_ms = change(tenure.until_ms);
            }
        });
    }

    /// Make it shared, or exclusive. `None`: nothing is held any more.
    async fn convert(&mut self, wish: Wish, holding: Holding) -> Option<Holding> {
        let now = os::now_ms();
        self.held_until(&holding, |until| until.min(now));
        let converted = Wish { mode: self.any_mode(), ..wish };
        match self.take(converted, holding.session).await {
            Some(converted) => self.keep(wish, converted).await,
            None => {
                self.give_back(wish, holding.session).await;
                None
            }
        }
    }

    async fn release(&mut self, wish: Wish, holding: &Holding) {
        let begin = os::now_ms();
        self.held_until(holding, |until| until.min(begin));
        let Wish { ino, owner, .. } = wish;
        let release = match self.dice.chance(50) {
            true => Command::ReleaseOwner { ino, owner },
            false => Wish { mode: LockMode::Unlock, ..wish }.command(),
        };
        match self.submit(holding.session, release).await {
            // Its session lived up to here.
            Ok(_) => self.held_until(holding, |_| begin),
            Err(Failure::Refused(Refusal::SessionEnded)) => self.diary.with(|pages| pages.sessions_lost += 1),
            Err(_) => self.give_back(wish, holding.session).await,
        }
    }

    /// Neither wait nor hold, whatever a try has come to.
    async fn give_back(&mut self, wish: Wish, session: SessionId) {
        let Wish { ino, owner, range, .. } = wish;
        self.insist(session, Command::CancelLock { ino, owner, range }).await;
        self.insist(session, Command::ReleaseOwner { ino, owner }).await;
    }

    async fn insist(&mut self, session: SessionId, command: Command) {
        loop {
            match self.submit(session, command.clone()).await {
                Ok(_) | Err(Failure::Refused(Refusal::SessionEnded)) => return,
                Err(Failure::Refused(refusal)) if refusal != Refusal::NoSpace => {
                    return self.wrong(&format!("giving back a lock was refused: {refusal}"));
                }
                Err(_) => self.pause(200).await,
            }
        }
    }
}
