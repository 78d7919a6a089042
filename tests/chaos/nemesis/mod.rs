//! What is done to a cluster while clients use it.
//!
//! An episode does one fault and takes it back. It says whether the fault really happened, and fails if the cluster does
//! not come to what it must come to by itself (a leader, all nodes whole).

mod clock;
mod members;
mod network;
mod processes;
mod storage;

use crate::cluster::{Cluster, NODES, libfaketime};
use crate::dice::Dice;
use crate::host;
use std::time::Duration;

pub struct Nemesis {
    pub name: &'static str,
    /// The rows of the acceptance table that it is for.
    pub about: &'static str,
    pub episode: fn(&mut Scene) -> Episode,
    /// Errors that clients may meet beside "not in time".
    pub errors: &'static [&'static str],
    /// Clients wait as long as by default, and meet no error at all.
    pub unnoticed: bool,
    pub needs: Needs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    PacketFilter,
    Clocks,
    /// The verbs that change the membership.
    MemberVerbs,
}

/// True: the fault happened.
pub type Episode = Result<bool, String>;

/// What an episode works on.
pub struct Scene<'a> {
    pub cluster: &'a mut Cluster,
    pub dice: &'a mut Dice,
    /// For whoever reads the results.
    pub notes: &'a mut Vec<String>,
}

impl Scene<'_> {
    pub fn hold(&mut self, low_ms: u64, high_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.between(low_ms, high_ms)));
    }

    /// The same, or, as often as not where that is no long time, until calls have given up.
    pub fn hold_perhaps_until_calls_fail(&mut self, low_ms: u64, high_ms: u64) {
        let timeout_ms = self.cluster.setup.timeout_s * 1000;
        match timeout_ms <= 10_000 && self.dice.percent(50) {
            true => self.hold(timeout_ms + 1000, timeout_ms + 3000),
            false => self.hold(low_ms, high_ms),
        }
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub fn any_node(&mut self) -> u64 {
        self.dice.between(1, NODES)
    }

    /// So many nodes at random, but not these.
    pub fn nodes_but(&mut self, but: &[u64], count: usize) -> Vec<u64> {
        let others: Vec<u64> = (1..=NODES).filter(|node| !but.contains(node)).collect();
        self.dice.some(&others, count)
    }
}

const fn plain(name: &'static str, about: &'static str, episode: fn(&mut Scene) -> Episode) -> Nemesis {
    Nemesis { name, about, episode, errors: &[], unnoticed: false, needs: Needs::Nothing }
}

const fn filtered(name: &'static str, about: &'static str, episode: fn(&mut Scene) -> Episode) -> Nemesis {
    Nemesis { needs: Needs::PacketFilter, ..plain(name, about, episode) }
}

/// What a client may meet whose session has ended meanwhile.
const SESSION_ENDED: &[&str] = &["EIO", "ESTALE"];

pub const ALL: &[Nemesis] = &[
    plain("kill-leader", "1, 29, 31, 32, 33", processes::kill_leader),
    plain("kill-followers", "2", processes::kill_followers),
    plain("kill-majority", "3, 43", processes::kill_majority),
    plain("kill-all", "4", processes::kill_all),
    plain("pause-leader", "7, 30", processes::pause_leader),
    Nemesis { unnoticed: true, ..plain("rolling-restart", "27", processes::rolling_restart) },
    Nemesis { errors: SESSION_ENDED, ..plain("pause-mount", "34, 46", processes::pause_mount) },
    filtered("cut-minority", "8", network::cut_minority),
    filtered("cut-leader", "8", network::cut_leader),
    filtered("cut-leader-minority", "8", network::cut_leader_minority),
    filtered("one-way", "9", network::one_way),
    filtered("ring", "10", network::ring),
    filtered("lossy", "10", network::lossy),
    Nemesis { errors: SESSION_ENDED, ..filtered("cut-holder", "34, 46", network::cut_holder) },
    plain("power-one", "6", storage::power_one),
    plain("power-all", "5", storage::power_all),
    plain("torn", "11", storage::torn),
    plain("flip", "12, 14", storage::flip),
    plain("failing-disk", "16", storage::failing_disk),
    plain("full-leader", "17", storage::full_leader),
    plain("full-followers", "18", storage::full_followers),
    plain("slow-disk", "20", storage::slow_disk),
    Nemesis { needs: Needs::MemberVerbs, ..plain("replace", "26", members::replace) },
    Nemesis { needs: Needs::MemberVerbs, ..plain("remove-leader", "26", members::remove_leader) },
    Nemesis { needs: Needs::Clocks, ..plain("clock", "28", clock::shift) },
];

pub fn named(name: &str) -> Option<&'static Nemesis> {
    ALL.iter().find(|nemesis| nemesis.name == name)
}

impl Nemesis {
    /// Why it cannot be done on this machine, to this program.
    pub fn lacks(&self, binary: &str) -> Option<&'static str> {
        match self.needs {
            Needs::MemberVerbs if host::try_run(&[binary, "member", "--help"]).is_err() => {
                Some("the program has no verb `member`")
            }
            Needs::PacketFilter if !host::has("nft") => Some("nft is missing (Debian package nftables)"),
            Needs::Clocks if libfaketime().is_none() => Some("libfaketime is missing (Debian package faketime)"),
            _ => None,
        }
    }
}
