//! A cluster whose nodes, mounts and verbs have keys: it works as without, and nobody else gets in.

use crate::common::{Cluster, wait_for};
use keelfs::net::{Identity, Keys, Link, Message, NetError, Purpose, Start};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a stranger comes to who says that it is node 2 of this cluster and wants to append to node 1's log.
fn pose_as_node(cluster: &Cluster, keys: Option<&Path>) -> NetError {
    let status = cluster.keelfs(&["status", "--json", "--dir", &cluster.directory().to_string_lossy()]);
    assert!(!status.stdout.is_empty(), "{}", status.stderr);
    let text = fs::read_to_string(cluster.directory().join("cluster.toml")).expect("cluster.toml");
    let id =
        text.lines().find_map(|line| line.strip_prefix("cluster = \"")?.strip_suffix('"')).expect("the cluster's id");
    let own = Identity {
        cluster: id.parse().expect("an id"),
        node: Some(2),
        start: Start::default(),
        keys: keys.map(|dir| Keys::load(dir).expect("keys")),
    };
    let address: SocketAddr = cluster.address(1).parse().expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let message = Message { kind: 1, header: Default::default(), body: Default::default() };
    let deadline = Instant::now() + Duration::from_secs(30);
    let call = async { Link::new(own, address, Some(1), Purpose::Append).call(message, deadline).await };
    runtime.block_on(call).expect_err("a stranger must be refused")
}

fn works(cluster: &Cluster, writer: u64, reader: u64, what: &str) {
    fs::write(cluster.at(writer).join("file"), what).expect("a write");
    assert_eq!(fs::read_to_string(cluster.at(reader).join("file")).expect("a read"), what);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

/// Rows 40 and 47.
#[test]
fn a_cluster_with_keys_serves_its_own_and_refuses_all_others() {
    let cluster = Cluster::start_with(3, [1, 2, 3], &["--tls"]);
    works(&cluster, 1, 2, "one");
    let large: Vec<u8> = (0..5_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    fs::write(cluster.at(2).join("large"), &large).expect("a large write");
    assert!(fs::read(cluster.at(3).join("large")).expect("a large read") == large);

    // A client's own keys open the door; none, and those of another cluster, do not.
    let (keys, node) = (cluster.directory().join("keys"), cluster.address(1));
    let foreign = cluster.outside("foreign");
    let make = |words: &[&str]| cluster.keelfs(words).expect_success();
    let path = |path: &Path| path.to_string_lossy().into_owned();
    make(&["keys", "create", &path(&foreign)]);
    make(&["keys", "client", &path(&foreign), &path(&foreign.join("client"))]);
    make(&["keys", "node", &path(&foreign), &path(&foreign.join("node"))]);
    let read = |more: &[&str]| cluster.keelfs(&[&["read", "/file", "--node", &node], more].concat());
    assert_eq!(read(&["--tls", &path(&keys.join("client"))]).expect_success().stdout, "one");
    for (more, why) in [
        (vec![], "speaks TLS only"),
        (vec!["--tls".to_string(), path(&foreign.join("client"))], "not signed by the authority"),
    ] {
        let refused = read(&more.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(
            !refused.status.is_some_and(|status| status.success()) && refused.stderr.contains(why),
            "{}",
            refused.stderr
        );
    }

    // On the peer port: without keys, with foreign keys that believe ours as well, and with those of a client of ours.
    let both = fs::read_to_string(foreign.join("ca.pem")).expect("theirs")
        + &fs::read_to_string(keys.join("authority/ca.pem")).expect("ours");
    fs::write(foreign.join("node/ca.pem"), both).expect("both");
    for (stranger, why) in [
        (None, "speaks TLS only"),
        (Some(foreign.join("node")), "keys of another cluster"),
        (Some(keys.join("client")), "its certificate is that of a client"),
    ] {
        let error = pose_as_node(&cluster, stranger.as_deref());
        assert!(matches!(error, NetError::Handshake { .. }) && error.to_string().contains(why), "{error}");
    }
    let log = fs::read_to_string(cluster.directory().join("node-1.log")).expect("the log of node 1");
    assert!(log.contains("refused a connection"), "{log}");
    works(&cluster, 3, 1, "two");

    // The leader is killed, and the others go on.
    let dead = cluster.kill_leader();
    let alive: Vec<u64> = (1..=3).filter(|node| *node != dead).collect();
    works(&cluster, alive[0], alive[1], "three");

    // A key that others can read keeps its node from starting.
    let key = keys.join(format!("node-{dead}/key.pem"));
    set_mode(&key, 0o644);
    let refused = cluster.command(["restart".into(), dead.to_string().into()]);
    assert!(!refused.status.is_some_and(|status| status.success()), "{}", refused.stdout);
    for part in ["key.pem", "0644", "chmod 600"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    set_mode(&key, 0o600);
    cluster.restart(&[dead]);
    wait_for("the killed node to have what the others have", || {
        (fs::read_to_string(cluster.at(dead).join("file")).ok()? == "three").then_some(())
    });
    cluster.expect_agreement();
}
