//! Commands that end: each has a limit, after which its whole process group is killed.

use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub struct Finished {
    pub what: String,
    /// `None`: it did not end in time and was killed.
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn expect_success(self) -> Finished {
        let ended = match self.status {
            Some(status) if status.success() => return self,
            Some(status) => status.to_string(),
            None => "did not end in time and was killed".to_owned(),
        };
        panic!("{}\n{ended}\nstdout: {}\nstderr: {}", self.what, self.stdout, self.stderr);
    }
}

/// Run to the end or to the limit. Output goes through files, so that children that live on do not hold us up.
pub fn run(command: &mut Command, input: Option<&str>, limit: Duration) -> Finished {
    let what = format!("{command:?}");
    let (mut stdout, mut stderr) = (file(), file());
    command.stdin(input.map_or_else(Stdio::null, |text| with(text).into()));
    command.stdout(handle(&stdout)).stderr(handle(&stderr)).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {what}: {e}"));
    let status = wait(&mut child, limit);
    if status.is_none() {
        kill_group(&mut child);
    }
    Finished { what, status, stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

/// Run a shell script, line by line shown if it fails; every command in it must succeed.
pub fn shell(script: &str, variables: &[(&str, &std::path::Path)], limit: Duration) -> Finished {
    let mut command = Command::new("sh");
    command.args(["-eux", "-c", script]);
    for (name, value) in variables {
        command.env(name, value);
    }
    run(&mut command, None, limit)
}

/// The exit status, or `None` if the process still runs at the limit.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if let Some(status) = child.try_wait().expect("the child's status") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Kill a child that leads a process group, with all its children.
pub fn kill_group(child: &mut Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = wait(child, Duration::from_secs(10));
}

fn file() -> File {
    tempfile::tempfile().expect("a temporary file")
}

fn handle(file: &File) -> Stdio {
    file.try_clone().expect("a second handle").into()
}

fn with(text: &str) -> File {
    let mut input = file();
    input.write_all(text.as_bytes()).expect("the input");
    input.rewind().expect("the start of the input");
    input
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes).map(drop)).expect("the output");
    String::from_utf8_lossy(&bytes).into_owned()
}
