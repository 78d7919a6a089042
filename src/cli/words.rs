//! The grammar of single arguments: what stands for a node, a mount, a path in the tree, a duration, a signal.

use crate::net::NodeId;
use rustix::process::Signal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a node listens if an address names no port.
const DEFAULT_PORT: u16 = 7700;

/// `NODE=PATH`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountAt {
    pub node: NodeId,
    pub path: PathBuf,
}

impl FromStr for MountAt {
    type Err = String;
    fn from_str(text: &str) -> Result<MountAt, String> {
        let (node, path) = node_and(text, "PATH", "1=./mnt")?;
        Ok(MountAt { node, path: path.into() })
    }
}

/// `NODE=ADDRESS`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberAt {
    pub node: NodeId,
    pub address: SocketAddr,
}

impl FromStr for MemberAt {
    type Err = String;
    fn from_str(text: &str) -> Result<MemberAt, String> {
        let (node, address) = node_and(text, "ADDRESS", "1=10.0.0.1:7700")?;
        Ok(MemberAt { node, address: resolve(address)? })
    }
}

fn node_and<'t>(text: &'t str, what: &str, example: &str) -> Result<(NodeId, &'t str), String> {
    let usage = || format!("expected NODE={what}, as in {example}");
    let (node, rest) = text.split_once('=').ok_or_else(usage)?;
    let node = node.parse().ok().filter(|n| *n > 0).ok_or_else(usage)?;
    if rest.is_empty() { Err(usage()) } else { Ok((node, rest)) }
}

/// `HOST[:PORT][,…]`; hosts may be names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeList(pub Vec<SocketAddr>);

impl FromStr for NodeList {
    type Err = String;
    fn from_str(text: &str) -> Result<NodeList, String> {
        text.split(',').map(resolve).collect::<Result<_, _>>().map(NodeList)
    }
}

/// `HOST[:PORT]`
pub fn resolve(address: &str) -> Result<SocketAddr, String> {
    let found = address.to_socket_addrs().or_else(|why| (address, DEFAULT_PORT).to_socket_addrs().map_err(|_| why));
    let mut found: Vec<_> = found.map_err(|why| format!("{address:?} is not HOST:PORT: {why}"))?.collect();
    // IPv4 first: a node listens on one address, and localhost names two.
    found.sort_by_key(|address| address.is_ipv6());
    found.first().copied().ok_or_else(|| format!("{address:?} has no address"))
}

/// A path from the root of the tree: `/` or `/a/b`, without `.`, `..` and empty components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreePath(String);

impl FromStr for TreePath {
    type Err = String;
    fn from_str(text: &str) -> Result<TreePath, String> {
        let inner = text.strip_prefix('/').ok_or_else(|| format!("paths begin at the tree's root: say /{text}"))?;
        if inner.split('/').any(|part| matches!(part, "." | "..")) {
            return Err("paths in the tree cannot hold '.' or '..'".into());
        }
        let parts: Vec<_> = inner.split('/').filter(|part| !part.is_empty()).collect();
        Ok(TreePath(format!("/{}", parts.join("/"))))
    }
}

impl TreePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory and the name in it; `None` for the root.
    pub fn split(&self) -> Option<(&str, &str)> {
        let (parent, name) = self.0.rsplit_once('/')?;
        let parent = if parent.is_empty() { "/" } else { parent };
        (!name.is_empty()).then_some((parent, name))
    }
}

impl std::fmt::Display for TreePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A time to live, in nanoseconds; 0 clears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    pub ns: u64,
}

impl FromStr for Ttl {
    type Err = String;
    fn from_str(text: &str) -> Result<Ttl, String> {
        crate::fs::words::parse_duration_ns(text.as_bytes())
            .map(|ns| Ttl { ns })
            .map_err(|_| format!("{text:?} is not a duration: say 30, 30s, 5m, 2h or 7d"))
    }
}

/// Which nodes of a local cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Node(NodeId),
    Leader,
    All,
}

impl FromStr for Which {
    type Err = String;
    fn from_str(text: &str) -> Result<Which, String> {
        match text {
            "leader" => Ok(Which::Leader),
            "all" => Ok(Which::All),
            number => number.parse().map(Which::Node).map_err(|_| "expected a node's number, `leader` or `all`".into()),
        }
    }
}

/// A signal by name (with or without `SIG`) or by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalName(pub Signal);

const SIGNALS: [(&str, Signal); 11] = [
    ("KILL", Signal::KILL),
    ("TERM", Signal::TERM),
    ("STOP", Signal::STOP),
    ("CONT", Signal::CONT),
    ("INT", Signal::INT),
    ("HUP", Signal::HUP),
    ("QUIT", Signal::QUIT),
    ("ABRT", Signal::ABORT),
    ("SEGV", Signal::SEGV),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
];

impl FromStr for SignalName {
    type Err = String;
    fn from_str(text: &str) -> Result<SignalName, String> {
        let upper = text.to_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let found = SIGNALS.iter().find(|(known, signal)| *known == name || signal.as_raw().to_string() == name);
        found
            .map(|(_, signal)| SignalName(*signal))
            .ok_or_else(|| format!("unknown signal; known are {}", SIGNALS.map(|(name, _)| name).join(", ")))
    }
}

impl std::fmt::Display for SignalName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = SIGNALS.iter().find(|(_, signal)| *signal == self.0).map_or("?", |(name, _)| name);
        write!(f, "SIG{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_with_something_behind_them() {
        assert_eq!("3=./m".parse(), Ok(MountAt { node: 3, path: "./m".into() }));
        let member: MemberAt = "1=127.0.0.1:7701".parse().unwrap();
        assert_eq!((member.node, member.address), (1, "127.0.0.1:7701".parse().unwrap()));
        for bad in ["", "1", "1=", "0=./m", "x=./m", "=./m"] {
            assert!(bad.parse::<MountAt>().unwrap_err().contains("NODE=PATH"), "{bad}");
        }
    }

    #[test]
    fn addresses_are_a_list_and_may_be_names() {
        let list: NodeList = "127.0.0.1:1,[::1]:2,localhost:3".parse().unwrap();
        assert_eq!(list.0[0], "127.0.0.1:1".parse().unwrap());
        assert_eq!(list.0[1], "[::1]:2".parse().unwrap());
        assert_eq!(list.0[2].port(), 3);
        assert_eq!("127.0.0.1".parse::<NodeList>().unwrap().0, ["127.0.0.1:7700".parse().unwrap()]);
        assert!("127.0.0.1:x".parse::<NodeList>().unwrap_err().contains("HOST:PORT"));
    }

    #[test]
    fn paths_begin_at_the_root_and_stay_in_the_tree() {
        let path = |text: &str| text.parse::<TreePath>();
        assert_eq!(path("//a//b/").unwrap().as_str(), "/a/b");
        assert_eq!(path("/a/b").unwrap().split(), Some(("/a", "b")));
        assert_eq!(path("/a").unwrap().split(), Some(("/", "a")));
        assert_eq!(path("/").unwrap().split(), None);
        assert!(path("a").unwrap_err().contains("/a"));
        assert!(path("/a/../b").is_err());
    }

    #[test]
    fn signals_by_name_and_number() {
        let signal = |text: &str| text.parse::<SignalName>().map(|s| s.0);
        assert_eq!(signal("kill"), Ok(Signal::KILL));
        assert_eq!(signal("SIGSTOP"), Ok(Signal::STOP));
        assert_eq!(signal("15"), Ok(Signal::TERM));
        assert!(signal("NOPE").unwrap_err().contains("KILL, TERM"));
        assert_eq!(SignalName(Signal::STOP).to_string(), "SIGSTOP");
    }
}
