//! The whole cluster, but for the kernel's mount, in one thread under a simulated clock, network and disks.
//!
//! A seed decides everything, so a run can be had again. Each seed is run by a process of its own: what libraries keep for
//! a process (counters that seed their random choices) would else carry over from run to run.
//!
//! `sim` checks that a seed replays exactly, and runs the seeds of `KEELFS_SEEDS` (`A..B`), or the first few;
//! `sim --seeds A..B` runs these; `sim --bugs`, built with the feature `seeded-bugs`, plants one bug after the other;
//! `sim --one SEED` is one run in this very process, with `KEELFS_SIM_TRACE` to see all.
//!
//! Left out: scrubbing, and mounts with what they keep for themselves. The harness of processes has these.

mod clients;
mod diary;
mod invariants;
#[path = "../history/linearizable.rs"]
mod linearizable;
mod lockers;
mod nemesis;
mod network;
mod node;
mod operator;
mod os;
#[path = "../history/register.rs"]
mod register;
mod report;
mod runner;
mod trace;
mod world;

use parking_lot::Mutex;
use std::process::ExitCode;

static PANICKED: Mutex<Option<String>> = Mutex::new(None);

/// The first panic of any task, if there was one: the runtime swallows them.
pub fn panicked() -> Option<String> {
    PANICKED.lock().clone()
}

fn note_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let first = PANICKED.lock().get_or_insert_with(|| panic.to_string()).clone();
        eprintln!("{first}");
    }));
}

/// With `RUST_LOG`, everything that is traced goes to standard error. On a thread of its own: what makes hash maps on this
/// one changes the keys, and with them the order, of all that come after.
fn talk_if_asked() {
    if std::env::var_os("RUST_LOG").is_none() {
        return;
    }
    let talk = || {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    };
    std::thread::spawn(talk).join().unwrap_or_else(|_| panic!("cannot trace"));
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--one", seed] => {
            note_panics();
            talk_if_asked();
            let outcome = world::World::new(runner::number(seed)).run();
            println!("{}", report::line(&outcome));
            ExitCode::SUCCESS
        }
        ["--bugs"] => runner::bugs(),
        ["--seeds", range] => runner::seeds(runner::range(range)),
        // What cargo passes on is for harnesses that know single tests.
        _ => runner::tests(),
    }
}
