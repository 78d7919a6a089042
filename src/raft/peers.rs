//! Links to the other nodes: one for each node and purpose, made when first wanted, kept.
//!
//! Where a node is: what this process was configured with, else what the membership says. An operator who moves a node to
//! another address can so start the others with the new one before the membership knows it.

use crate::net::{Identity, Link, NodeId, Purpose};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;

pub struct Peers {
    own: Identity,
    configured: BTreeMap<NodeId, SocketAddr>,
    links: Mutex<BTreeMap<(NodeId, Purpose), Link>>,
}

impl Peers {
    pub fn new(own: Identity, configured: BTreeMap<NodeId, SocketAddr>) -> Peers {
        Peers { own, configured, links: Mutex::default() }
    }

    /// `None`: the node has no address that can be connected to.
    pub fn address(&self, node: NodeId, in_membership: &str) -> Option<SocketAddr> {
        self.configured.get(&node).copied().or_else(|| in_membership.parse().ok())
    }

    /// Every other node that this process was told of or has talked to.
    pub fn others(&self) -> Vec<(NodeId, SocketAddr)> {
        let linked: Vec<_> = self.links.lock().iter().map(|((node, _), link)| (*node, link.address())).collect();
        let known: BTreeMap<NodeId, SocketAddr> =
            linked.into_iter().chain(self.configured.iter().map(|(node, at)| (*node, *at))).collect();
        known.into_iter().filter(|(node, _)| Some(*node) != self.own.node).collect()
    }

    pub fn link(&self, node: NodeId, address: SocketAddr, purpose: Purpose) -> Link {
        let mut links = self.links.lock();
        match links.get(&(node, purpose)) {
            Some(link) if link.address() == address => link.clone(),
            _ => {
                let link = Link::new(self.own.clone(), address, Some(node), purpose);
                links.insert((node, purpose), link.clone());
                link
            }
        }
    }
}
