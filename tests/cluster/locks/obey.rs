//! The far side of a [`Puppet`](super::puppet::Puppet): a process that opens, locks and closes as it is told.
//!
//! An order is a line of words, and so is its answer: `ok` with what was asked for, or `error` with the number. Both go
//! over the socket that is the process's standard input, so that nothing which the test harness prints gets between.
//!
//! The process handles SIGALRM, without restarting what it interrupts, and takes it in the thread that obeys: whoever
//! started it has blocked the signal in all others.

use crate::common::xattr::errno;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_short};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

/// Set for the process that is to obey.
pub const ENTRY: &str = "KEELFS_TEST_PUPPET";

type Answer = Result<String, Errno>;

#[test]
#[ignore = "a process that other tests start, not a test"]
fn obey() {
    if std::env::var_os(ENTRY).is_none() {
        return;
    }
    handle_alarms();
    // SAFETY: standard input is a socket that the starter made for this, and nobody else here uses it.
    let orders = BufReader::new(unsafe { UnixStream::from_raw_fd(0) });
    Obeying { orders, files: BTreeMap::new(), child: None }.obey();
}

struct Obeying {
    orders: BufReader<UnixStream>,
    files: BTreeMap<u32, File>,
    child: Option<BufReader<UnixStream>>,
}

impl Obeying {
    /// Until nobody gives orders any more.
    fn obey(&mut self) -> ! {
        loop {
            let mut order = String::new();
            if !self.orders.read_line(&mut order).is_ok_and(|bytes| bytes > 0) {
                exit();
            }
            let order = order.trim_end();
            match order.strip_prefix("child ") {
                Some(order) => self.pass_on(order),
                None => {
                    let answer = self.execute(&order.split(' ').collect::<Vec<_>>());
                    self.say(&line(answer));
                }
            }
        }
    }

    fn say(&mut self, line: &str) {
        if writeln!(self.orders.get_mut(), "{line}").is_err() {
            exit();
        }
    }

    fn pass_on(&mut self, order: &str) {
        let child = self.child.as_mut().expect("a child");
        writeln!(child.get_mut(), "{order}").expect("an order for the child");
        let mut answer = String::new();
        child.read_line(&mut answer).expect("the child's answer");
        self.say(if answer.is_empty() { "ok ended" } else { answer.trim_end() });
    }

    fn execute(&mut self, order: &[&str]) -> Answer {
        match order {
            ["open", slot, path] => {
                let opened = OpenOptions::new().read(true).write(true).open(path);
                self.files.insert(number(slot), opened.map_err(errno)?);
            }
            ["dup", from, to] => {
                let copy = self.file(from).try_clone().map_err(errno)?;
                self.files.insert(number(to), copy);
            }
            ["close", slot] => drop(self.files.remove(&number(slot)).expect("an open slot")),
            ["getlk", family, slot, mode, start, length] => {
                return self.getlk(family, slot, range(mode, start, length));
            }
            ["fork"] => return self.fork(),
            ["count", slot] => return self.count(slot),
            ["twice", order @ ..] => return Ok(self.twice(order)),
            ["exit"] => exit(),
            order => self.lock(order)?,
        }
        Ok(String::new())
    }

    fn file(&self, slot: &str) -> &File {
        &self.files[&number(slot)]
    }

    fn lock(&self, order: &[&str]) -> Result<(), Errno> {
        let outcome = match *order {
            ["flock", slot, mode, how] => {
                let how = if how == "wait" { 0 } else { libc::LOCK_NB };
                // SAFETY: a system call on an open descriptor.
                unsafe { libc::flock(self.file(slot).as_raw_fd(), flock_mode(mode) | how) }
            }
            [family, slot, mode, start, length, how] => {
                let command = match (family, how) {
                    ("posix", "wait") => libc::F_SETLKW,
                    ("posix", "try") => libc::F_SETLK,
                    ("ofd", "wait") => libc::F_OFD_SETLKW,
                    ("ofd", "try") => libc::F_OFD_SETLK,
                    _ => panic!("no lock is called {family} and asked for by {how}"),
                };
                fcntl(self.file(slot), command, &mut range(mode, start, length))
            }
            _ => panic!("no order: {order:?}"),
        };
        match outcome {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    }

    /// The same order in two threads of this process at once.
    fn twice(&self, order: &[&str]) -> String {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| line(self.lock(order).map(|()| String::new())));
            let own = line(self.lock(order).map(|()| String::new()));
            format!("{own} and {}", other.join().expect("the other thread"))
        })
    }

    fn getlk(&self, family: &str, slot: &str, mut asked: libc::flock) -> Answer {
        let command = if family == "posix" { libc::F_GETLK } else { libc::F_OFD_GETLK };
        if fcntl(self.file(slot), command, &mut asked) != 0 {
            return Err(last_error());
        }
        let mode = match c_int::from(asked.l_type) {
            libc::F_UNLCK => return Ok("free".to_owned()),
            libc::F_RDLCK => "shared",
            _ => "exclusive",
        };
        Ok(format!("{mode} {} {} {}", asked.l_start, asked.l_len, asked.l_pid))
    }

    /// A child that shares the open files, and obeys what begins with `child`; the answer is its process id.
    fn fork(&mut self) -> Answer {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        // SAFETY: the other thread of this process only waits for this one.
        match unsafe { libc::fork() } {
            -1 => Err(last_error()),
            0 => {
                // The parent's sockets are closed here, so that their end can be seen.
                drop((ours, self.child.take(), std::mem::replace(&mut self.orders, BufReader::new(theirs))));
                self.obey()
            }
            pid => {
                self.child = Some(BufReader::new(ours));
                Ok(pid.to_string())
            }
        }
    }

    /// Add one to the number in the file, under a flock; says `have`, `done` with fencing token and number, and `ok`.
    fn count(&mut self, slot: &str) -> Answer {
        self.lock(&["flock", slot, "exclusive", "wait"])?;
        self.say("have");
        let file = self.file(slot);
        let mut digits = [0; DIGITS];
        file.read_exact_at(&mut digits, 0).map_err(errno)?;
        let number: u64 = std::str::from_utf8(&digits).expect("digits").parse().expect("a number");
        let mut token = [0; 32];
        let length = rustix::fs::fgetxattr(file, "user.keelfs.lock-gen", &mut token[..])?;
        let token = String::from_utf8_lossy(&token[..length]).into_owned();
        let next = number + 1;
        file.write_all_at(format!("{next:0DIGITS$}").as_bytes(), 0).map_err(errno)?;
        self.say(&format!("done {token} {next}"));
        self.lock(&["flock", slot, "unlock", "wait"])?;
        Ok(String::new())
    }
}

/// Of the number that is counted up.
pub const DIGITS: usize = 8;

fn line(answer: Answer) -> String {
    match answer {
        Ok(words) => format!("ok {words}").trim_end().to_owned(),
        Err(error) => format!("error {}", error.raw_os_error()),
    }
}

fn number(word: &str) -> u32 {
    word.parse().expect("a number")
}

fn flock_mode(mode: &str) -> c_int {
    match mode {
        "shared" => libc::LOCK_SH,
        "exclusive" => libc::LOCK_EX,
        _ => libc::LOCK_UN,
    }
}

fn range(mode: &str, start: &str, length: &str) -> libc::flock {
    let kind = match mode {
        "shared" => libc::F_RDLCK,
        "exclusive" => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    };
    libc::flock {
        l_type: kind as c_short,
        l_whence: libc::SEEK_SET as c_short,
        l_start: start.parse().expect("a start"),
        l_len: length.parse().expect("a length"),
        // Open file description locks demand it.
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: c_int, range: &mut libc::flock) -> c_int {
    // SAFETY: a system call on an open descriptor, with the argument that these commands take.
    unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(range)) }
}

fn last_error() -> Errno {
    errno(std::io::Error::last_os_error())
}

/// The end without any of what a program may do before it.
fn exit() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

extern "C" fn ignore(_: c_int) {}

fn handle_alarms() {
    // SAFETY: the handler does nothing; all structures are plain numbers, and set before they are used.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &alarm_only(), std::ptr::null_mut());
    }
}

/// The set of SIGALRM alone.
pub fn alarm_only() -> libc::sigset_t {
    // SAFETY: plain numbers, set before they are used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGALRM);
        set
    }
}
