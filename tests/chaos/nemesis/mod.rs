//! What is done to a cluster while clients use it.
//!
//! An episode does one fault and takes it back. It says whether the fault really happened, and fails if the cluster does
//! not come to what it must come to by itself (a leader, all nodes whole).

mod clock;
mod damage;
mod full;
mod held;
mod members;
mod network;
mod processes;
mod storage;

pub use held::main as holder;

use crate::cluster::{Cluster, NODES, libfaketime};
use crate::dice::Dice;
use crate::host;
use std::time::Duration;

pub struct Nemesis {
    pub name: &'static str,
    /// The rows of `FAULTS.md` that it is for, as `tests/faults.rs` sees.
    pub about: &'static str,
    /// The work without which a run would not show those rows.
    pub wants: &'static [&'static str],
    pub episode: fn(&mut Scene) -> Episode,
    /// Errors that clients may meet beside "not in time".
    pub errors: &'static [&'static str],
    /// Clients wait as long as by default, and meet no error at all.
    pub unnoticed: bool,
    /// Nobody need be served while it lasts.
    pub outage: bool,
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
    Nemesis { name, about, wants: &[], episode, errors: &[], unnoticed: false, outage: false, needs: Needs::Nothing }
}

const fn filtered(name: &'static str, about: &'static str, episode: fn(&mut Scene) -> Episode) -> Nemesis {
    Nemesis { needs: Needs::PacketFilter, ..plain(name, about, episode) }
}

const fn wanting(wants: &'static [&'static str], nemesis: Nemesis) -> Nemesis {
    Nemesis { wants, ..nemesis }
}

const fn outage(nemesis: Nemesis) -> Nemesis {
    Nemesis { outage: true, ..nemesis }
}

/// What a client may meet whose session has ended meanwhile.
const SESSION_ENDED: &[&str] = &["EIO", "ESTALE"];

const fn losing_a_session(nemesis: Nemesis) -> Nemesis {
    Nemesis { errors: SESSION_ENDED, ..nemesis }
}

pub const ALL: &[Nemesis] = &[
    wanting(&["expiry", "append", "names"], plain("kill-leader", "1, 29, 31, 32, 33", processes::kill_leader)),
    plain("kill-followers", "2", processes::kill_followers),
    outage(plain("kill-majority", "3, 43", processes::kill_majority)),
    outage(plain("kill-all", "4", processes::kill_all)),
    plain("pause-leader", "7", processes::pause_leader),
    plain("pause-followers", "2", processes::pause_followers),
    Nemesis { unnoticed: true, ..plain("rolling-restart", "27", processes::rolling_restart) },
    wanting(&["lock", "names"], losing_a_session(plain("pause-mount", "34, 46", processes::pause_mount))),
    filtered("cut-minority", "8", network::cut_minority),
    filtered("cut-leader", "8", network::cut_leader),
    filtered("cut-leader-minority", "8", network::cut_leader_minority),
    filtered("one-way", "9", network::one_way),
    filtered("mute-leader", "9", network::mute_leader),
    outage(filtered("ring", "10", network::ring)),
    outage(filtered("lossy", "10", network::lossy)),
    wanting(&["lock", "names"], losing_a_session(filtered("cut-holder", "34, 46", network::cut_holder))),
    plain("power-one", "6", storage::power_one),
    outage(plain("power-all", "5", storage::power_all)),
    plain("torn", "11", damage::torn),
    plain("flip", "12", damage::flip),
    plain("failing-disk", "16", storage::failing_disk),
    plain("full-leader", "17", full::leader),
    plain("full-followers", "18", full::followers),
    wanting(&["large"], Nemesis { errors: &["ENOSPC"], ..plain("full-majority", "19", full::majority) }),
    plain("slow-disk", "20", storage::slow_disk),
    Nemesis { needs: Needs::MemberVerbs, ..plain("add", "26", members::add) },
    Nemesis { needs: Needs::MemberVerbs, ..plain("replace", "26", members::replace) },
    Nemesis { needs: Needs::MemberVerbs, ..plain("remove-leader", "26", members::remove_leader) },
    wanting(&["expiry"], Nemesis { needs: Needs::Clocks, ..plain("clock", "28", clock::shift) }),
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
