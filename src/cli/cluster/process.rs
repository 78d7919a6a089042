//! The processes of a cluster, its nodes and its mounts: started in sessions of their own, found again through /proc.
//!
//! Decision: a pid file is written for people but never believed, because the number in it may long belong to another
//! process. A node's process is whichever runs `keelfs serve --data` on exactly that directory, a mount's whichever runs
//! `keelfs mount` of this cluster at exactly that path, under whatever name our program goes; and a signal goes through a
//! pidfd that was opened before that was verified, so it cannot reach a process that took the number over meanwhile.
//!
//! A path is a name, and a process in another mount namespace (a container) may mean something else by the same name. So
//! data directories are compared by what they are, and names only with processes that see the same mounts as we do.

use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::keys::KEYS_VARIABLE;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, fstat, openat, openat2, stat, statx};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often we look whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a process is there for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Serving the node whose data directory (absolute) this is.
    Node(PathBuf),
    /// Serving the mount of this cluster at this path (absolute).
    Mount { path: PathBuf, cluster: Uuid },
}

/// A running `keelfs` process of a cluster, held by a pidfd.
#[derive(Debug)]
pub struct Server {
    pub pid: u32,
    handle: OwnedFd,
    duty: Duty,
}

impl Server {
    /// The process that does this duty, if one does.
    pub fn find(duty: &Duty) -> Option<Server> {
        let pids =
            fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.into_iter().find_map(|pid| Server::open(pid, duty))
    }

    fn open(pid: u32, duty: &Duty) -> Option<Server> {
        if !serves(pid, duty) {
            return None;
        }
        let handle = pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()?;
        serves(pid, duty).then(|| Server { pid, handle, duty: duty.clone() })
    }

    pub fn signal(&self, signal: Signal) -> CliResult {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(why) => Err(why).tried(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// Wait until the process has ended; `false` if the deadline passed first.
    pub fn wait_gone(&self, deadline: Instant) -> bool {
        while self.runs() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }

    /// A zombie has no command line any more, so it counts as ended.
    fn runs(&self) -> bool {
        serves(self.pid, &self.duty)
    }
}

/// Does process `pid` do this duty?
fn serves(pid: u32, duty: &Duty) -> bool {
    // Before its words are read: the kernel lets us wait for them while the process maps or unmaps memory, and what does
    // that with a file of a mount that hangs does it for ever.
    if !is_named_keelfs(pid) && !runs_program(pid, Path::new("/proc/self/exe")) {
        return false;
    }
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
    match (duty_of(&words), duty) {
        (Some(Duty::Node(named)), Duty::Node(data)) => is_same_directory(pid, &named, data),
        // Never looked at on the disk: a dead mount does not answer. `keelfs cluster` gives the path absolute.
        (Some(named @ Duty::Mount { .. }), wanted @ Duty::Mount { .. }) => named == *wanted && sees_our_mounts(pid),
        _ => false,
    }
}

/// Is what this process calls `named` what we call `data`? Either may be a link to another disk.
fn is_same_directory(pid: u32, named: &Path, data: &Path) -> bool {
    let found = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    match (seen_by(pid, named).map(found), stat(data).map(found)) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        // Gone, or not for us to look at: nothing but the names is left to compare.
        _ => {
            let named = match named.is_relative() {
                true => fs::read_link(format!("/proc/{pid}/cwd")).map(|cwd| cwd.join(named)),
                false => Ok(named.to_owned()),
            };
            let plain = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
            named.is_ok_and(|named| sees_our_mounts(pid) && plain(&named) == plain(data))
        }
    }
}

/// What is at this path for the process: from its own root, or from its working directory.
fn seen_by(pid: u32, path: &Path) -> rustix::io::Result<rustix::fs::Stat> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if path.is_relative() {
        return stat(Path::new(&format!("/proc/{pid}/cwd")).join(path));
    }
    let root = openat(CWD, format!("/proc/{pid}/root"), flags | OFlags::DIRECTORY, Mode::empty())?;
    // Absolute links on the way lead to the process's root again, not to ours.
    fstat(openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
}

/// Are the mounts that the process sees the ones that we see? Taken for granted of another user's process, which nobody
/// but root could harm, and root can look.
fn sees_our_mounts(pid: u32) -> bool {
    let theirs = match fs::read_link(format!("/proc/{pid}/ns/mnt")) {
        Err(why) if why.kind() == std::io::ErrorKind::PermissionDenied => return true,
        theirs => theirs.ok(),
    };
    theirs.is_some() && theirs == fs::read_link("/proc/self/ns/mnt").ok()
}

/// Does the process go by our program's name, perhaps in another version? Of a name the kernel keeps 15 bytes.
fn is_named_keelfs(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(b"keelfs"))
}

/// Is this file what the process runs, by whatever name? Only what the kernel knows is asked for: of a program on a mount
/// that hangs it would wait for the rest.
fn runs_program(pid: u32, file: &Path) -> bool {
    let found = |path: &Path| {
        let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
        Some((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
    };
    found(file).is_some_and(|file| found(Path::new(&format!("/proc/{pid}/exe"))) == Some(file))
}

/// What `keelfs serve --data DIR` and `keelfs mount --own-session NODES DIR --cluster UUID` are there for, as their words
/// name it. A mount that does not say of which cluster it is was not made by `keelfs cluster`.
fn duty_of(words: &[&[u8]]) -> Option<Duty> {
    let path = |word: &[u8]| PathBuf::from(OsStr::from_bytes(word));
    match (*words.get(1)?, *words.get(2)?) {
        (b"serve", _) => {
            let at = words.iter().position(|w| *w == b"--data" || w.starts_with(b"--data="))?;
            let data = words.get(at)?.strip_prefix(b"--data=").or_else(|| words.get(at + 1).copied())?;
            Some(Duty::Node(path(data)))
        }
        (b"mount", b"--own-session") => {
            let at = words.iter().position(|w| *w == b"--cluster")?;
            let cluster = std::str::from_utf8(words.get(at + 1)?).ok()?.parse().ok()?;
            Some(Duty::Mount { path: path(words.get(4)?), cluster })
        }
        _ => None,
    }
}

/// What to start: a `keelfs` verb with its words, and where its output goes.
pub struct Detached<'a> {
    pub words: Vec<&'a OsStr>,
    pub log: &'a Path,
}

impl Detached<'_> {
    /// Start this program anew, detached from our terminal: the child makes a session of its own.
    pub fn start(&self) -> CliResult<Child> {
        let what = || "cannot start a keelfs process".to_string();
        let program = std::env::current_exe().tried(what)?;
        let open = || OpenOptions::new().create(true).append(true).open(self.log);
        let log = open().tried(|| format!("cannot write {}", self.log.display()))?;
        let both = log.try_clone().tried(what)?;
        Command::new(program)
            .args(&self.words)
            // Its words say which keys are its own.
            .env_remove(KEYS_VARIABLE)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(both)
            .spawn()
            .tried(what)
    }
}

/// Leave the terminal's session, so that its end and its Ctrl-C do not reach us.
pub fn leave_session() -> CliResult {
    match rustix::process::setsid() {
        // EPERM: we lead a session already.
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(why) => Err(why).tried(|| "cannot leave the terminal's session".into()),
    }
}

/// The last lines of a log from byte `from` on, indented, for an error message.
pub fn last_lines(log: &Path, from: u64, lines: usize) -> String {
    let Ok(bytes) = fs::read(log) else { return String::new() };
    let fresh = bytes.get(from as usize..).unwrap_or(&bytes);
    let text = String::from_utf8_lossy(fresh);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("\n    {line}")).collect()
}

/// Ask these to end, wait, and kill those that do not. Returns the pids that had to be killed.
pub fn end(servers: &[Server], patience: Duration) -> CliResult<Vec<u32>> {
    for server in servers {
        server.signal(Signal::TERM)?;
        // A stopped process would not see its TERM.
        server.signal(Signal::CONT)?;
    }
    let deadline = Instant::now() + patience;
    let mut killed = Vec::new();
    for server in servers.iter().filter(|s| !s.wait_gone(deadline)) {
        server.signal(Signal::KILL)?;
        killed.push(server.pid);
        if !server.wait_gone(Instant::now() + Duration::from_secs(5)) {
            return Err(CliError::failed(format!("process {} does not end, not even by SIGKILL", server.pid)));
        }
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serve_on_that_directory_and_mount_at_that_path_count() {
        let duty = |line: &'static str| duty_of(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        let node = Some(Duty::Node("/d/node-1".into()));
        assert_eq!(duty("/usr/bin/keelfs serve --data /d/node-1 --mount /m"), node);
        assert_eq!(duty("keelfs serve --own-session --data=/d/node-1"), node);
        let mount =
            "keelfs mount --own-session 127.0.0.1:1,127.0.0.1:2 /m --cluster 00000000-0000-0000-0000-000000000007";
        assert_eq!(duty(mount), Some(Duty::Mount { path: "/m".into(), cluster: Uuid::from_u128(7) }));
        assert_eq!(duty("keelfs mount --own-session 127.0.0.1:1 /m --source keelfs"), None, "of whichever cluster");
        assert_eq!(duty("keelfs mount 127.0.0.1:1 /m"), None);
        assert_eq!(duty("keelfs serve"), None);
    }

    #[test]
    fn our_program_is_known_by_its_name_or_by_its_file() {
        let (sleep, tmp) = (Path::new("/usr/bin/sleep"), tempfile::tempdir().unwrap());
        let known = |name: &str| {
            let program = tmp.path().join(name);
            std::os::unix::fs::symlink(sleep, &program).unwrap();
            let mut other = Command::new(&program).arg("60").spawn().unwrap();
            let pid = other.id();
            // `spawn` returns when the child has left our memory, which is before execve(2) has given it its name.
            while fs::read(format!("/proc/{pid}/cmdline")).unwrap().is_empty() {
                std::thread::yield_now();
            }
            let found =
                (is_named_keelfs(pid), runs_program(pid, sleep), runs_program(pid, Path::new("/proc/self/exe")));
            other.kill().unwrap();
            other.wait().unwrap();
            found
        };
        assert_eq!(known("keelfs-2"), (true, true, false));
        assert_eq!(known("not-keelfs"), (false, true, false));
        assert!(runs_program(std::process::id(), Path::new("/proc/self/exe")));
    }

    #[test]
    fn a_strange_process_with_a_recycled_pid_is_not_ours() {
        let tmp = tempfile::tempdir().unwrap();
        let mount = Duty::Mount { path: tmp.path().into(), cluster: Uuid::nil() };
        for duty in [Duty::Node(tmp.path().into()), mount] {
            assert!(Server::open(std::process::id(), &duty).is_none());
            assert!(Server::find(&duty).is_none());
        }
    }

    #[test]
    fn the_end_of_a_log_is_quoted() {
        let tmp = tempfile::tempdir().unwrap();
        let log = tmp.path().join("log");
        fs::write(&log, "old\none\ntwo\nthree\n").unwrap();
        assert_eq!(last_lines(&log, 4, 2), "\n    two\n    three");
        assert_eq!(last_lines(&tmp.path().join("none"), 0, 2), "");
    }
}
