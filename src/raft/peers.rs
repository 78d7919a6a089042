//! Links to the other nodes: one for each node and purpose, made when first wanted, kept.
//!
//! Where a node is: what the membership says, else what this process was configured with, which is all that there is
//! before the first membership is known.

use super::introduce::Registrar;
use crate::net::{Identity, Link, NodeId, Purpose};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Why a vote is neither given nor asked for yet.
pub const NOT_INTRODUCED: &str = "this node has just started, and a majority has not looked at it yet";

pub struct Peers {
    own: Identity,
    configured: BTreeMap<NodeId, SocketAddr>,
    links: Mutex<BTreeMap<(NodeId, Purpose), Link>>,
    registrar: Arc<Registrar>,
    introduced: AtomicBool,
    /// When a leader's message came last.
    led: Mutex<Option<Instant>>,
}

impl Peers {
    pub fn new(own: Identity, configured: BTreeMap<NodeId, SocketAddr>, registrar: Arc<Registrar>) -> Peers {
        Peers {
            own,
            configured,
            links: Mutex::default(),
            registrar,
            introduced: AtomicBool::new(false),
            led: Mutex::default(),
        }
    }

    /// `None`: the node has no address that can be connected to.
    pub fn address(&self, node: NodeId, in_membership: &str) -> Option<SocketAddr> {
        in_membership.parse().ok().or_else(|| self.configured.get(&node).copied())
    }

    pub fn configured(&self) -> &BTreeMap<NodeId, SocketAddr> {
        &self.configured
    }

    /// The nodes of the membership that have an address, learners included. Empty: it is not known yet.
    pub fn members(&self) -> BTreeMap<NodeId, SocketAddr> {
        let members = self.registrar.members().into_iter();
        members.filter_map(|(node, at)| Some((node, self.address(node, &at.address)?))).collect()
    }

    /// Every other node of the membership, or, before that is known, every other one that was configured.
    pub fn others(&self) -> Vec<(NodeId, SocketAddr)> {
        let mut known = self.members();
        if known.is_empty() {
            known.clone_from(&self.configured);
        }
        known.into_iter().filter(|(node, _)| Some(*node) != self.own.node).collect()
    }

    pub fn link(&self, node: NodeId, address: SocketAddr, purpose: Purpose) -> Link {
        let mut links = self.links.lock();
        match links.get(&(node, purpose)) {
            Some(link) if link.address() == address => link.clone(),
            _ => {
                let link = Link::to_peer(self.own.clone(), address, node, purpose, self.registrar.clone());
                links.insert((node, purpose), link.clone());
                link
            }
        }
    }

    /// A leader's message has come: no matter whose, and whether it is still true.
    pub fn heard_leader(&self) {
        *self.led.lock() = Some(Instant::now());
    }

    /// Has one come lately?
    pub fn hears_leader(&self, lately: Duration) -> bool {
        self.led.lock().is_some_and(|at| at.elapsed() <= lately)
    }

    /// May this process vote, and ask for votes?
    pub fn is_introduced(&self) -> bool {
        self.introduced.load(Ordering::Acquire)
    }

    pub fn set_introduced(&self) {
        self.introduced.store(true, Ordering::Release);
    }
}
