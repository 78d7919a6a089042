//! Waiting without becoming unkillable.
//!
//! fuser answers `FUSE_INTERRUPT` with `ENOSYS`, after which the kernel tells us of no signal any more, and a process
//! whose request we hold cannot die until we answer. So each request ends by its deadline, and a wait of more than a
//! second looks into `/proc/<tid>/status` for a pending SIGKILL. (The kernel turns every fatal signal without a core
//! dump, such as Ctrl-C, into a SIGKILL of each thread.) A wait for a lock has no deadline and looks for any signal that
//! the caller does not block; only for a caller of a pid namespace that we do not see, it ends as any request does.
//!
//! A signal for a whole process goes to one of its threads. Only that one may be answered `EINTR`: the kernel takes it
//! for a reason to start the system call again, and a thread without a signal would return that reason, 512, to its
//! program. Which thread it is, nobody tells; but the main one comes first (linux/kernel/signal.c, `complete_signal`), so
//! another one is taken to be meant only if the main one blocks the signal or has ended.
//!
//! A thread that is gone is not a killed one: requests of asynchronous IO outlive their submitter.

use fuser::Errno;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

/// How long a wait goes on before the caller is looked at.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The volume keeps the deadline itself; if it does not, the request is answered this much later all the same.
const GRACE: Duration = Duration::from_secs(5);

const SIGNAL_KILL: u64 = 1 << (libc::SIGKILL - 1);

/// Run a request to its end; `EINTR` (abandoning it) when its caller is being killed, `ETIMEDOUT` when it overstays.
pub async fn bounded<T>(tid: u32, deadline: Instant, work: impl Future<Output = Result<T, Errno>>) -> Result<T, Errno> {
    match tokio::time::timeout_at((deadline + GRACE).into(), unless_killed(tid, work)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Errno::ETIMEDOUT),
    }
}

/// As [`bounded`], for waits that have no deadline of their own.
pub async fn unless_killed<T>(tid: u32, work: impl Future<Output = Result<T, Errno>>) -> Result<T, Errno> {
    let mut work = pin!(work);
    let mut look_at = tokio::time::Instant::now() + FIRST_LOOK_AFTER;
    loop {
        match tokio::time::timeout_at(look_at, &mut work).await {
            Ok(outcome) => return outcome,
            Err(_) if Pending::of(tid).is_some_and(|pending| pending.kill()) => return Err(Errno::EINTR),
            Err(_) => look_at += LOOK_EVERY,
        }
    }
}

/// Does a signal wait for this thread that would interrupt a blocking call?
pub fn interrupted(tid: u32) -> bool {
    Pending::of(tid).is_some_and(|pending| match pending.any_unblocked() && pending.process != tid {
        true => pending.not_for(Pending::of(pending.process)).any_unblocked(),
        false => pending.any_unblocked(),
    })
}

/// The signals of a thread, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    own: u64,
    shared: u64,
    blocked: u64,
    /// The number of the process, which is that of its main thread.
    process: u32,
    /// It runs no more.
    ended: bool,
}

impl Pending {
    /// `None`: the thread is unknown here (gone, of the kernel, of another pid namespace).
    fn of(tid: u32) -> Option<Pending> {
        if tid == 0 {
            return None;
        }
        Pending::parse(&std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Pending> {
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let mask = |key: &str| u64::from_str_radix(field(key)?, 16).ok();
        Some(Pending {
            own: mask("SigPnd:")?,
            shared: mask("ShdPnd:")?,
            blocked: mask("SigBlk:")?,
            process: field("Tgid:")?.parse().ok()?,
            ended: field("State:")?.starts_with(['Z', 'X']),
        })
    }

    fn kill(&self) -> bool {
        (self.own | self.shared) & SIGNAL_KILL != 0
    }

    fn any_unblocked(&self) -> bool {
        (self.own | self.shared) & !self.blocked != 0
    }

    /// Without the signals of the process that the main thread gets.
    fn not_for(self, main: Option<Pending>) -> Pending {
        let taken = main.filter(|main| !main.ended).map_or(0, |main| !main.blocked);
        Pending { shared: self.shared & !taken, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_file_is_understood() {
        let status = "Name:\tcat\nState:\tZ (zombie)\nTgid:\t71\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000002\nSigBlk:\t0000000000000002\n";
        let pending = Pending::parse(status).unwrap();
        assert!(pending.kill());
        assert!(pending.any_unblocked());
        assert!(pending.ended);
        assert_eq!(pending.process, 71);
        assert!(!Pending { own: 0, ..pending }.kill());
        assert!(!Pending { own: 0, ..pending }.any_unblocked());
        assert_eq!(Pending::parse("Name:\tcat\n"), None);
    }

    #[test]
    fn a_signal_of_the_process_is_for_its_main_thread_unless_that_blocks_it() {
        let (main, thread) = (Pending::default(), Pending { shared: 0b110, blocked: 0b100, ..Pending::default() });
        assert!(thread.any_unblocked());
        assert!(!thread.not_for(Some(main)).any_unblocked());
        assert!(Pending { own: 1, ..thread }.not_for(Some(main)).any_unblocked());
        for main in [Some(Pending { blocked: 0b10, ..main }), Some(Pending { ended: true, ..main }), None] {
            assert!(thread.not_for(main).any_unblocked());
        }
    }

    #[test]
    fn a_thread_that_is_not_there_is_not_killed() {
        assert_eq!(Pending::of(0), None);
        assert!(!interrupted(u32::MAX));
        assert!(Pending::of(std::process::id()).is_some());
    }

    /// A stopped process keeps a signal pending, as one in a FUSE call does.
    #[test]
    fn a_pending_signal_is_seen() {
        let mut child = std::process::Command::new("sh").args(["-c", "trap : USR1; kill -STOP $$"]).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        while !std::fs::read_to_string(&status).unwrap().contains("State:\tT") {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!interrupted(child.id()));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        let seen = interrupted(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen);
    }
}
