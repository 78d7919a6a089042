//! What happened, in one number: two runs of a seed that differ anywhere differ here.

use crate::os;
use parking_lot::Mutex;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[derive(Clone)]
pub struct Trace {
    hash: Arc<Mutex<u64>>,
    /// Every event is told as it comes.
    aloud: bool,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { hash: Arc::default(), aloud: std::env::var_os("KEELFS_SIM_TRACE").is_some() }
    }
}

impl Trace {
    pub fn note(&self, what: &str, numbers: &[u64]) {
        let mut hash = self.hash.lock();
        let mut next = xxh3_64_with_seed(what.as_bytes(), *hash ^ os::now_ms());
        for number in numbers {
            next = xxh3_64_with_seed(&number.to_le_bytes(), next);
        }
        *hash = next;
        if self.aloud {
            eprintln!("{:>7} {what} {numbers:?}", os::now_ms());
        }
    }

    /// For whoever follows the trace of one run.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.aloud {
            eprintln!("{:>7} {}", os::now_ms(), what());
        }
    }

    pub fn hash(&self) -> u64 {
        *self.hash.lock()
    }
}
