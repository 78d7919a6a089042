//! What clients did and were told: JSON lines, one when a call begins and one when it ends.
//!
//! Times are of CLOCK_MONOTONIC, which all processes of this machine share. A call whose end is missing, or says
//! *unknown*, may have taken effect at any time after its begin, or never.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nanoseconds of CLOCK_MONOTONIC.
pub type Nanos = u64;

pub fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    assert_eq!(done, 0, "there is a monotonic clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as Nanos
}

/// What a client asked of the file system: one system call that matters, or a few of which one does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    // registers: a file of 16 bytes, replaced by one write
    Read {
        file: String,
    },
    Write {
        file: String,
        value: u64,
    },
    Cas {
        file: String,
        expected: u64,
        value: u64,
    },
    // appends
    Append {
        file: String,
        record: String,
    },
    ReadAll {
        file: String,
    },
    // exclusive creates
    Create {
        directory: String,
        name: String,
    },
    List {
        directory: String,
    },
    // tokens
    Move {
        token: u64,
        from: u64,
        to: u64,
    },
    Look {
        token: u64,
        place: u64,
    },
    // locks
    Lock {
        file: String,
    },
    Guarded {
        file: String,
        generation: u64,
    },
    // expiry
    Expire {
        file: String,
        ttl_s: u64,
    },
    /// To end at a time of the wall clock, which is `due` here.
    ExpireAt {
        file: String,
        unix_s: u64,
        due: Nanos,
    },
    IsThere {
        file: String,
    },
    /// Something whose only wrong answer is one that cannot be.
    Do {
        what: String,
    },
    /// Keep these bytes for the end: a file with a pattern.
    Store {
        file: String,
        bytes: u64,
        seed: u64,
    },
    Remove {
        file: String,
    },
}

/// What a call that was answered came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    /// A register's value, and its version if it was the same before and after.
    Value(u64, Option<u64>),
    /// What was demanded was not so: the version, the name's absence, the lock.
    Refused,
    /// A content: its length, and the CRC32C of it.
    Bytes(u64, u32),
    Names(Vec<String>),
    Present,
    Absent,
    /// The lock's generation, and the last one that its file held then.
    Locked(u64, u64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Ok(Answer),
    /// Certainly without effect; the name of the error.
    Failed(String),
    /// Perhaps with effect.
    Unknown(String),
}

#[derive(Serialize, Deserialize)]
enum Line {
    Begin {
        op: u64,
        client: u64,
        workload: String,
        at: Nanos,
        call: Call,
    },
    End {
        op: u64,
        at: Nanos,
        outcome: Outcome,
    },
    /// A client saw by itself what must not be.
    Violation {
        client: u64,
        what: String,
    },
    /// How a directory must look at the end: one of these.
    Expect {
        directory: String,
        one_of: Vec<BTreeMap<String, String>>,
    },
}

/// One call of a history.
#[derive(Clone, Debug)]
pub struct Op {
    pub client: u64,
    pub workload: String,
    pub call: Call,
    pub begin: Nanos,
    /// `None`: nobody knows when, or whether, it took effect.
    pub end: Option<Nanos>,
    pub outcome: Outcome,
}

impl Op {
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Failed(_) | Outcome::Unknown(_) => None,
        }
    }

    pub fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }

    /// When it had ended; never, if nobody knows.
    pub fn ended(&self) -> Nanos {
        self.end.unwrap_or(Nanos::MAX)
    }
}

/// All that the clients of a run wrote down.
#[derive(Default)]
pub struct History {
    pub ops: Vec<Op>,
    pub violations: Vec<String>,
    pub expected: Vec<(String, Vec<BTreeMap<String, String>>)>,
}

impl History {
    pub fn load(paths: &[impl AsRef<Path>]) -> io::Result<History> {
        let mut history = History::default();
        for path in paths {
            history.add(&std::fs::read_to_string(path)?)?;
        }
        history.ops.sort_by_key(|op| op.begin);
        Ok(history)
    }

    fn add(&mut self, text: &str) -> io::Result<()> {
        let mut open: BTreeMap<u64, Op> = BTreeMap::new();
        for line in text.lines() {
            match serde_json::from_str(line)? {
                Line::Begin { op, client, workload, at, call } => {
                    let outcome = Outcome::Unknown("no end".into());
                    open.insert(op, Op { client, workload, call, begin: at, end: None, outcome });
                }
                Line::End { op, at, outcome } => {
                    let mut op = open.remove(&op).ok_or_else(|| io::Error::other("an end without a begin"))?;
                    op.end = (!matches!(outcome, Outcome::Unknown(_))).then_some(at);
                    op.outcome = outcome;
                    self.ops.push(op);
                }
                Line::Violation { client, what } => self.violations.push(format!("client {client}: {what}")),
                Line::Expect { directory, one_of } => self.expected.push((directory, one_of)),
            }
        }
        self.ops.extend(open.into_values());
        Ok(())
    }

    pub fn of<'a>(&'a self, workload: &'a str) -> impl Iterator<Item = &'a Op> {
        self.ops.iter().filter(move |op| op.workload == workload)
    }
}

/// Writes a history. Each line is one write, so a client that is killed loses nothing.
pub struct Recorder {
    file: Mutex<File>,
    next: AtomicU64,
    /// The longest that a call took.
    pub slowest: AtomicU64,
}

impl Recorder {
    pub fn new(path: &Path) -> io::Result<Recorder> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Recorder { file: Mutex::new(file), next: AtomicU64::new(1), slowest: AtomicU64::new(0) })
    }

    fn write(&self, line: &Line) {
        let text = serde_json::to_string(line).expect("a line of JSON") + "\n";
        self.file.lock().expect("the history").write_all(text.as_bytes()).expect("a line of the history");
    }

    /// Do it, and write down what was asked and what came of it.
    pub fn call(&self, client: u64, workload: &str, call: Call, act: impl FnOnce() -> io::Result<Answer>) -> Outcome {
        let op = self.next.fetch_add(1, Ordering::Relaxed);
        let begin = now();
        self.write(&Line::Begin { op, client, workload: workload.into(), at: begin, call });
        let result = act();
        let at = now();
        let outcome = match result {
            Ok(answer) => Outcome::Ok(answer),
            Err(error) => outcome_of(&error),
        };
        self.slowest.fetch_max(at - begin, Ordering::Relaxed);
        self.write(&Line::End { op, at, outcome: outcome.clone() });
        outcome
    }

    pub fn violation(&self, client: u64, what: impl Into<String>) {
        self.write(&Line::Violation { client, what: what.into() });
    }

    pub fn expect(&self, directory: &str, one_of: Vec<BTreeMap<String, String>>) {
        self.write(&Line::Expect { directory: directory.into(), one_of });
    }
}

/// EROFS and ENOSPC are only said when nothing was done. Everything else may have been done.
fn outcome_of(error: &io::Error) -> Outcome {
    let name = error_name(error);
    match Errno::from_io_error(error) {
        Some(Errno::ROFS | Errno::NOSPC) => Outcome::Failed(name),
        _ => Outcome::Unknown(name),
    }
}

pub fn error_name(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::ROFS) => "EROFS".into(),
        Some(Errno::NOSPC) => "ENOSPC".into(),
        Some(Errno::TIMEDOUT) => "ETIMEDOUT".into(),
        Some(Errno::IO) => "EIO".into(),
        Some(Errno::NOTCONN) => "ENOTCONN".into(),
        Some(Errno::EXIST) => "EEXIST".into(),
        Some(Errno::NOENT) => "ENOENT".into(),
        Some(Errno::STALE) => "ESTALE".into(),
        Some(Errno::INTR) => "EINTR".into(),
        Some(Errno::BUSY) => "EBUSY".into(),
        _ => error.to_string(),
    }
}
