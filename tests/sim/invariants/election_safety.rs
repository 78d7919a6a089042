//! Election safety: at most one leader in a term.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", figure 3. openraft's term is the
//! pair of term and node, so another node cannot lead in it by definition; what can is the same node after a restart, with
//! a log that has lost its unflushed tail. So: a pair is led in by one process only.

use keelfs::net::NodeId;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct ElectionSafety {
    led: BTreeMap<(u64, NodeId), u64>,
}

impl ElectionSafety {
    /// `true`: this is news.
    pub fn leads(&mut self, node: NodeId, incarnation: u64, term: u64) -> Result<bool, String> {
        match self.led.insert((term, node), incarnation) {
            None => Ok(true),
            Some(before) if before == incarnation => Ok(false),
            Some(before) => Err(format!(
                "election safety: node {node} leads in term {term} as process {incarnation}, and did as process {before}"
            )),
        }
    }

    pub fn leaders(&self) -> usize {
        self.led.len()
    }
}
