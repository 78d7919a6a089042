//! A lock, and a file that ends with its mount, which are held while a mount is away for longer than its session lives.
//!
//! The holder is a process, so that no call that hangs stops the harness. It obeys lines: `write` writes the generation of
//! its lock through the descriptor that has it, `read` says what is there.

use super::Scene;
use crate::client::THIS_PROGRAM;
use crate::cluster::PATIENCE;
use crate::host;
use crate::workload::{self, spelled};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A session lives for 30 s after its mount was last heard of, which was some seconds before the mount went away.
const HELD_AT_LEAST: Duration = Duration::from_secs(15);

/// What is held by one mount.
pub struct Held {
    name: String,
    old: Holder,
    since: Instant,
}

/// What another mount got.
pub struct Gone {
    held: Held,
    new: Holder,
}

impl Held {
    /// Through the mount of this node.
    pub fn by(scene: &mut Scene, node: u64) -> Result<Held, String> {
        let name = format!("held-{:x}", scene.dice.next());
        let old = Holder::start(&scene.cluster.node(node).mount.join(&name))?;
        Ok(Held { name, old, since: Instant::now() })
    }

    /// It goes to the mount of another node, when the session has ended and not earlier; with it goes what was ephemeral.
    pub fn goes_to(self, scene: &mut Scene, node: u64) -> Result<Gone, String> {
        let mount = scene.cluster.node(node).mount.clone();
        let ephemeral = mount.join(ephemeral(&self.name)).display().to_string();
        let is_there = || host::try_run(&["timeout", "-k", "5", "40", "test", "-e", &ephemeral]).is_ok();
        if !is_there() {
            return Err(format!("{ephemeral} is gone, and its mount has only just been cut off"));
        }
        let mut new = Holder::start(&mount.join(&self.name))?;
        let took = self.since.elapsed();
        if took < HELD_AT_LEAST {
            return Err(format!("a lock was taken from its holder after {took:?}"));
        }
        if new.generation <= self.old.generation {
            let (old, new) = (self.old.generation, new.generation);
            return Err(format!("the lock had the generation {old} and was granted again with {new}"));
        }
        if is_there() {
            return Err(format!("{ephemeral} is there after the end of the session that it was to end with"));
        }
        new.must("write", "done")?;
        scene.note(format!("the lock of a mount that was away went to another after {:.1} s", took.as_secs_f64()));
        Ok(Gone { held: self, new })
    }
}

impl Gone {
    /// The first mount is back: what its holder writes under the lost lock is refused, and the new holder's stays.
    pub fn must_be_lost(mut self) -> Result<(), String> {
        let said = self.held.old.tell("write")?;
        if !said.starts_with("refused") {
            return Err(format!("a holder whose lock is another's wrote under it: {said}"));
        }
        let own = spelled(self.new.generation);
        self.new.must("read", &own)
    }
}

fn ephemeral(name: &str) -> String {
    format!("{name}-ephemeral")
}

struct Holder {
    process: Child,
    lines: Receiver<String>,
    generation: u64,
}

impl Holder {
    /// Waits until it has the lock.
    fn start(path: &Path) -> Result<Holder, String> {
        let mut command = Command::new(THIS_PROGRAM);
        command.arg("holder").arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|e| format!("cannot start a holder: {e}"))?;
        let (sender, lines) = channel();
        if let Some(output) = process.stdout.take() {
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
            });
        }
        let mut holder = Holder { process, lines, generation: 0 };
        let said = holder.hear()?;
        let held = said.strip_prefix("held ").and_then(|digits| digits.parse().ok());
        holder.generation = held.ok_or_else(|| format!("{} cannot be locked: {said}", path.display()))?;
        Ok(holder)
    }

    fn hear(&mut self) -> Result<String, String> {
        self.lines.recv_timeout(PATIENCE).map_err(|_| format!("the holder of a lock says nothing for {PATIENCE:?}"))
    }

    fn tell(&mut self, order: &str) -> Result<String, String> {
        let input = self.process.stdin.as_mut().ok_or("a holder without input")?;
        writeln!(input, "{order}").map_err(|e| format!("cannot tell a holder to {order}: {e}"))?;
        self.hear()
    }

    fn must(&mut self, order: &str, answer: &str) -> Result<(), String> {
        let said = self.tell(order)?;
        if said == answer { Ok(()) } else { Err(format!("the holder of a lock was told to {order} and said {said}")) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = crate::cluster::wait(&mut self.process, Duration::from_secs(10));
    }
}

/// The whole life of a holder.
pub fn main(path: &str) -> ExitCode {
    let (open, generation) = match take(path) {
        Ok(held) => held,
        Err(why) => {
            println!("refused: {why}");
            return ExitCode::FAILURE;
        }
    };
    println!("held {generation}");
    for order in io::stdin().lines().map_while(Result::ok) {
        let mut content = [0; 16];
        let answer = match order.as_str() {
            "write" => open.write_all_at(spelled(generation).as_bytes(), 0).map(|()| "done".into()),
            _ => open.read_exact_at(&mut content, 0).map(|()| String::from_utf8_lossy(&content).into_owned()),
        };
        println!("{}", answer.unwrap_or_else(|why| format!("refused: {why}")));
    }
    ExitCode::SUCCESS
}

/// The lock; and, of the first holder, the file that goes with its mount.
fn take(path: &str) -> io::Result<(File, u64)> {
    let is_first = !Path::new(path).exists();
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    flock(&open, FlockOperation::LockExclusive)?;
    if is_first {
        let beside = ephemeral(path);
        File::create_new(&beside)?;
        crate::xattr::set(Path::new(&beside), "ephemeral", "session")?;
    }
    let generation = workload::generation(&open)?;
    Ok((open, generation))
}
