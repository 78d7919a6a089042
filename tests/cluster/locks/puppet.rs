//! Processes that lock as a test tells them: each is a POSIX lock owner of its own, on whatever mount it opens files.

use super::obey::{ENTRY, alarm_only};
use crate::common::process::wait;
use crate::common::{PATIENCE, wait_for, xattr};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// For a killed process to be gone.
const DEATH: Duration = Duration::from_secs(30);

/// One such process; dropped: killed.
pub struct Puppet {
    process: Child,
    line: BufReader<UnixStream>,
}

impl Puppet {
    pub fn start() -> Puppet {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "locks::obey::obey", "--ignored"]).env(ENTRY, "yes");
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let block_alarms = || {
            // SAFETY: the set is initialized, and the call may be made between fork and exec.
            match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &alarm_only(), std::ptr::null_mut()) } {
                0 => Ok(()),
                error => Err(std::io::Error::from_raw_os_error(error)),
            }
        };
        // SAFETY: it makes a system call and nothing else.
        unsafe { command.pre_exec(block_alarms) };
        let process = command.spawn().expect("a process of this program");
        ours.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        Puppet { process, line: BufReader::new(ours) }
    }

    /// With a file open in slot 1.
    pub fn at(path: &Path) -> Puppet {
        let mut puppet = Puppet::start();
        puppet.expect(&format!("open 1 {}", path.display()));
        puppet
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Give an order without waiting for the answer.
    pub fn tell(&mut self, order: &str) {
        // Whether it still lives to take it, the answer tells.
        let _ = writeln!(self.line.get_mut(), "{order}");
    }

    /// A line that it says; `None`: it has ended.
    pub fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.line.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("process {} says nothing: {error}", self.pid()),
        }
    }

    /// The answer to an order given before.
    pub fn answer(&mut self) -> Result<String, Errno> {
        let line = self.hear().expect("an answer, not its end");
        match line.split_once(' ') {
            Some(("error", number)) => Err(Errno::from_raw_os_error(number.parse().expect("a number"))),
            Some(("ok", words)) => Ok(words.to_owned()),
            None if line == "ok" => Ok(String::new()),
            _ => panic!("not an answer: {line:?}"),
        }
    }

    pub fn ask(&mut self, order: &str) -> Result<String, Errno> {
        self.tell(order);
        self.answer()
    }

    /// Give an order that must succeed.
    pub fn expect(&mut self, order: &str) -> String {
        self.ask(order).unwrap_or_else(|error| panic!("{order}: {error}"))
    }

    /// Give an order that must wait for a lock; returns when the cluster has it in the queue.
    pub fn queue(&mut self, order: &str, path: &Path) {
        let before = waiting(path).len();
        self.tell(order);
        wait_for(&format!("a waiter more: {order}"), || (waiting(path).len() == before + 1).then_some(()));
    }

    /// The answer that should be there by now: the lock has been granted, as the cluster says.
    pub fn granted(&mut self, path: &Path) {
        wait_for("the grant", || held(path).iter().any(|lock| lock.pid == self.pid()).then_some(()));
        assert_eq!(self.answer(), Ok(String::new()));
    }

    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// SIGKILL; panics unless the process is gone within this time.
    pub fn kill_within(mut self, limit: Duration) {
        self.signal(Signal::KILL);
        let ended = wait(&mut self.process, limit);
        assert!(ended.is_some(), "the killed process {} still there after {limit:?}", self.pid());
    }

    pub fn kill(self) {
        self.kill_within(DEATH);
    }

    /// It ends by itself, without having given anything back.
    pub fn exit(mut self) {
        self.tell("exit");
        assert!(wait(&mut self.process, PATIENCE).is_some_and(|status| status.success()));
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = wait(&mut self.process, DEATH);
    }
}

pub fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).expect("a process id"), signal).expect("a signal");
}

/// A line of `user.keelfs.locks`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lock {
    pub pid: u32,
    pub family: String,
    pub mode: String,
    pub start: u64,
    /// `u64::MAX`: no end.
    pub end: u64,
}

/// Who holds, by start.
pub fn held(path: &Path) -> Vec<Lock> {
    standing(path, "held")
}

/// Who waits, in order.
pub fn waiting(path: &Path) -> Vec<Lock> {
    standing(path, "waiting")
}

fn standing(path: &Path, state: &str) -> Vec<Lock> {
    let lines = xattr::get(path, "locks").expect("the locks");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line["state"] == state).map(|line| Lock::from(&line)).collect()
}

impl From<&Value> for Lock {
    fn from(line: &Value) -> Lock {
        let number = |key: &str| line[key].as_u64();
        let word = |key: &str| line[key].as_str().expect("a word").to_owned();
        Lock {
            pid: number("pid").expect("a pid") as u32,
            family: word("family"),
            mode: word("mode"),
            start: number("start").expect("a start"),
            end: number("end").unwrap_or(u64::MAX),
        }
    }
}

/// The fencing token.
pub fn generation(path: &Path) -> u64 {
    xattr::get(path, "lock-gen").expect("a token").parse().expect("a number")
}

/// Small numbers that look random, and are the same again for the same seed.
pub struct Chance(pub u64);

impl Chance {
    /// A seed that the environment may set; printed, so that a failure can be had again.
    pub fn new(variable: &str) -> Chance {
        let clock = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as usize;
        let seed = crate::common::rounds(variable, clock % 1_000_000);
        println!("{variable}={seed}");
        Chance(seed as u64)
    }

    /// Below `limit`. (Steele, Lea, Flood: SplitMix64.)
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
