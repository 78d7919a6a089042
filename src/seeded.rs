//! Deliberate bugs, to show that the tests would find them: each is a mistake that a store of this kind has had.
//!
//! Without the feature `seeded-bugs`, which only tests turn on, none of this is compiled in: [`planted`] is `false` and
//! known to the compiler. With it, a process has the one bug that `KEELFS_BUG` names from its start to its end, so that
//! even `fs` stays a function of its arguments. `scripts/sim --bugs` runs the simulation with each.

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A request that comes again is executed again.
    NoDedup,
    /// A linearizable read is answered from the state at hand, without the leader's word.
    LocalRead,
    /// The log says that a batch is durable, and has not synced it.
    AcknowledgeBeforeSync,
    /// The same, only for votes.
    VoteNotSynced,
    /// Cluster time is the wall clock of whoever leads.
    WallClockExpiry,
    /// What a leader found expired goes, though it was renewed meanwhile.
    ExpiryWithoutRecheck,
    /// A directory is listed in another order than that of its cookies.
    UnorderedReaddir,
    /// A leader that restarts goes on in its term.
    RestoredLeader,
    /// The version is judged when a change is proposed, not when it is applied.
    CasNotAtomic,
    /// A name is removed whatever it has come to mean.
    UnlinkWithoutCheck,
    /// Damage in acknowledged records is taken for a torn write, and cut.
    TruncatedRot,
}

impl Bug {
    pub const ALL: [Bug; 11] = [
        Bug::NoDedup,
        Bug::LocalRead,
        Bug::AcknowledgeBeforeSync,
        Bug::VoteNotSynced,
        Bug::WallClockExpiry,
        Bug::ExpiryWithoutRecheck,
        Bug::UnorderedReaddir,
        Bug::RestoredLeader,
        Bug::CasNotAtomic,
        Bug::UnlinkWithoutCheck,
        Bug::TruncatedRot,
    ];
}

/// Whether this process has this bug.
#[cfg(not(feature = "seeded-bugs"))]
pub const fn planted(_: Bug) -> bool {
    false
}

/// Whether this process has this bug.
#[cfg(feature = "seeded-bugs")]
pub fn planted(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("KEELFS_BUG").ok()?;
        Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    });
    *chosen == Some(bug)
}
