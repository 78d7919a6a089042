//! A client: a process of its own on one mount, with a thread for each workload, so that no call that hangs can stop the
//! harness. It works until its standard input ends.

use crate::dice::Dice;
use crate::history::{Answer, Call, Nanos, Outcome, Recorder, now};
use crate::workload::{EPOCHS, Workload};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Also after a new build has taken its place.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// What a client is told, as JSON on its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// The same directory on all mounts.
    pub mounts: Vec<PathBuf>,
    /// Which of them is its own.
    pub own: usize,
    pub workloads: Vec<String>,
    pub seed: u64,
    pub history: PathBuf,
    pub started: Nanos,
    /// Until this file is there, the nodes' clocks may be wrong.
    pub clocks_are_right: Option<PathBuf>,
    /// Pauses are so many times as long.
    pub ease: u64,
}

/// The wall clocks of the nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clocks {
    Right,
    Wrong,
    RightAgain,
}

/// One thread of a client: one process of the history.
pub struct Player<'a> {
    pub client: u64,
    pub dice: Dice,
    workload: &'static str,
    orders: &'a Orders,
    recorder: &'a Recorder,
    stop: &'a AtomicBool,
    counter: u64,
}

impl Player<'_> {
    pub fn own(&self) -> &Path {
        &self.orders.mounts[self.orders.own]
    }

    /// A mount at random, perhaps the own one.
    pub fn any(&mut self) -> PathBuf {
        self.dice.of(&self.orders.mounts).clone()
    }

    pub fn running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Wait so many milliseconds.
    pub fn pause(&mut self, low: u64, high: u64) {
        let mut left = self.dice.between(low, high) * self.orders.ease;
        while left > 0 && self.running() {
            let now = left.min(100);
            std::thread::sleep(Duration::from_millis(now));
            left -= now;
        }
    }

    /// Whether what a node's wall clock says can be counted on, and whether it could not be before.
    pub fn clocks(&self) -> Clocks {
        match &self.orders.clocks_are_right {
            None => Clocks::Right,
            Some(file) if file.exists() => Clocks::RightAgain,
            Some(_) => Clocks::Wrong,
        }
    }

    /// Since the run began.
    pub fn seconds(&self) -> u64 {
        (now() - self.orders.started) / 1_000_000_000
    }

    /// Which files to use now, if each is to be used for so many seconds.
    pub fn epoch(&self, seconds: u64) -> u64 {
        self.seconds() / seconds % EPOCHS
    }

    /// A number that no other call of this run has.
    pub fn unique(&mut self) -> u64 {
        self.counter += 1;
        self.client << 32 | self.counter
    }

    pub fn call(&self, call: Call, act: impl FnOnce() -> io::Result<Answer>) -> Outcome {
        self.recorder.call(self.client, self.workload, call, act)
    }

    /// A file that was opened for a call; that it could not be is in the history.
    pub fn opened(&self, file: &str, result: io::Result<File>) -> Option<File> {
        match result {
            Ok(open) => Some(open),
            Err(error) => {
                self.call(Call::Do { what: format!("open {file}") }, || Err(error));
                None
            }
        }
    }

    pub fn violation(&self, what: impl Into<String>) {
        self.recorder.violation(self.client, what);
    }

    pub fn expect(&self, directory: &str, one_of: Vec<std::collections::BTreeMap<String, String>>) {
        self.recorder.expect(directory, one_of);
    }
}

/// The whole life of a client process.
pub fn main(orders: &str) -> std::process::ExitCode {
    let orders: Orders = serde_json::from_str(orders).expect("orders in JSON");
    let recorder = Recorder::new(&orders.history).expect("a history");
    let stop = AtomicBool::new(false);
    let all = crate::workload::ALL.iter().enumerate();
    let chosen: Vec<(usize, &Workload)> =
        all.filter(|(_, workload)| orders.workloads.iter().any(|name| name == workload.name)).collect();
    std::thread::scope(|scope| {
        for (number, workload) in chosen {
            let client = (orders.own as u64 + 1) * 100 + number as u64;
            let (orders, recorder, stop) = (&orders, &recorder, &stop);
            scope.spawn(move || {
                let dice = Dice::new(orders.seed ^ client.wrapping_mul(0x1234_5678_9abc_def1));
                let workload_name = workload.name;
                let mut player = Player { client, dice, workload: workload_name, orders, recorder, stop, counter: 0 };
                (workload.play)(&mut player);
            });
        }
        let _ = io::stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
    });
    std::process::ExitCode::SUCCESS
}
