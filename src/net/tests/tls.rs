//! Links with keys: who gets in, who does not, and what each of them is told.

use super::*;
use crate::net::keys::{create_authority, issue};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Two clusters' authorities, and keys of each.
struct Drawer {
    root: tempfile::TempDir,
}

impl Drawer {
    fn new() -> Drawer {
        let root = tempfile::tempdir().unwrap();
        for cluster in ["ours", "theirs"] {
            let authority = root.path().join(cluster);
            create_authority(&authority).unwrap();
            issue(&authority, &authority.join("node"), Role::Node).unwrap();
            issue(&authority, &authority.join("client"), Role::Client).unwrap();
        }
        Drawer { root }
    }

    fn at(&self, which: &str) -> PathBuf {
        self.root.path().join(which)
    }

    fn keys(&self, which: &str) -> Keys {
        Keys::load(&self.at(which)).unwrap()
    }

    /// Have the holders of these keys believe the other authority as well as their own.
    fn believe(&self, which: &str, also: &str) {
        let own = self.at(which).join("ca.pem");
        let both = fs::read_to_string(&own).unwrap() + &fs::read_to_string(self.at(also).join("ca.pem")).unwrap();
        fs::write(own, both).unwrap();
    }
}

fn with(keys: Option<Keys>, node: Option<NodeId>) -> Identity {
    Identity { keys, ..identity(node, 1) }
}

async fn server_with(keys: Option<Keys>) -> (SocketAddr, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    tokio::spawn(Server::run(listener, with(keys, Some(1)), Arc::new(Echo), stop.clone()));
    (address, stop.drop_guard())
}

async fn try_with(own: Identity, address: SocketAddr, purpose: Purpose) -> Result<Message, NetError> {
    Link::new(own, address, Some(1), purpose).call(message(1, b"head", ""), soon()).await
}

fn expect_refused(result: Result<Message, NetError>, why: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, NetError::Handshake { .. }) && error.to_string().contains(why), "{error}");
}

#[tokio::test]
async fn nodes_and_clients_with_keys_talk_and_nothing_goes_over_the_wire_as_it_is() {
    let drawer = Drawer::new();
    let (address, _server) = server_with(Some(drawer.keys("ours/node"))).await;
    // What passes between them is seen by a listener in the middle.
    let middle = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = middle.local_addr().unwrap();
    let seen = tokio::spawn(async move {
        let (mut near, mut far) = (middle.accept().await.unwrap().0, TcpStream::connect(address).await.unwrap());
        let (mut seen, mut bytes) = (Vec::new(), vec![0; 64 << 10]);
        let (mut answers, mut requests) = far.split();
        let (mut from, mut to) = near.split();
        let back = tokio::io::copy(&mut answers, &mut to);
        let forth = async {
            while let Ok(count @ 1..) = from.read(&mut bytes).await {
                seen.extend_from_slice(&bytes[..count]);
                requests.write_all(&bytes[..count]).await.unwrap();
            }
            requests.shutdown().await
        };
        let _ = tokio::join!(back, forth);
        seen
    });
    let secret = Bytes::from(b"what nobody else shall read ".repeat(100_000));
    let peer = Link::new(with(Some(drawer.keys("ours/node")), Some(2)), through, Some(1), Purpose::Append);
    let slow = peer.start(message(9, &[200], ""), soon()).await.unwrap();
    let sent = message(1, b"head", secret.clone());
    assert_eq!(peer.call(sent.clone(), soon()).await.unwrap(), sent);
    assert_eq!(slow.await.unwrap().kind, 9);
    drop(peer);
    let seen = seen.await.unwrap();
    assert!(seen.len() > secret.len());
    for plain in [&b"what nobody"[..], b"head", b"kf"] {
        // Two bytes come about by chance.
        let shown = seen.windows(plain.len()).position(|window| window == plain);
        assert!(shown.is_none() || plain == b"kf" && shown != Some(0), "{plain:?} at {shown:?}");
    }
    let client = Link::new(with(Some(drawer.keys("ours/client")), None), address, None, Purpose::Client);
    let sent = message(1, b"head", secret.slice(..1 << 20));
    assert_eq!(client.call(sent.clone(), soon()).await.unwrap(), sent);
}

#[tokio::test]
async fn keys_of_another_cluster_are_refused_on_both_sides_and_the_server_goes_on() {
    let drawer = Drawer::new();
    let (address, _server) = server_with(Some(drawer.keys("ours/node"))).await;
    for (which, node, purpose) in [("theirs/node", Some(2), Purpose::Append), ("theirs/client", None, Purpose::Client)]
    {
        // It does not believe us …
        let foreign = || with(Some(drawer.keys(which)), node);
        expect_refused(try_with(foreign(), address, purpose).await, "not signed by the authority in ca.pem");
        // … and if it does, we do not believe it.
        drawer.believe(which, "ours");
        expect_refused(try_with(foreign(), address, purpose).await, "we have keys of another cluster");
    }
    try_with(with(Some(drawer.keys("ours/node")), Some(2)), address, Purpose::Append).await.unwrap();
}

#[tokio::test]
async fn a_client_can_be_no_node_whether_it_calls_or_is_called() {
    let drawer = Drawer::new();
    let (address, _server) = server_with(Some(drawer.keys("ours/node"))).await;
    let client = || Some(drawer.keys("ours/client"));
    for purpose in [Purpose::Pulse, Purpose::Append, Purpose::Snapshot, Purpose::Client] {
        expect_refused(
            try_with(with(client(), Some(2)), address, purpose).await,
            "its certificate is that of a client",
        );
    }
    expect_refused(try_with(with(client(), None), address, Purpose::Append).await, "clients may only");
    try_with(with(client(), None), address, Purpose::Client).await.unwrap();
    let (posing, _server) = server_with(client()).await;
    expect_refused(
        try_with(with(client(), None), posing, Purpose::Client).await,
        "the certificate is that of a client",
    );
}

#[tokio::test]
async fn with_and_without_keys_are_told_apart_in_words() {
    let drawer = Drawer::new();
    let keys = || Some(drawer.keys("ours/node"));
    let ((encrypted, _one), (plain, _other)) = (server_with(keys()).await, server_with(None).await);
    expect_refused(try_with(with(None, Some(2)), encrypted, Purpose::Append).await, "speaks TLS only");
    expect_refused(try_with(with(keys(), Some(2)), plain, Purpose::Append).await, "does not speak TLS");
    assert!(poke(plain, b"\x16\x03\x01\x02\0\x01 what a client of TLS may say first ").await.ends_with(b"(--tls DIR)"));
    assert!(!poke(encrypted, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.starts_with(b"kf"));
    try_with(with(keys(), Some(2)), encrypted, Purpose::Append).await.unwrap();
    try_with(with(None, Some(2)), plain, Purpose::Append).await.unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn keys_that_others_could_have_read_or_that_do_not_fit_are_refused() {
    let drawer = Drawer::new();
    let refused = |which: &str, why: &[&str]| {
        let error = Keys::load(&drawer.at(which)).unwrap_err().to_string();
        assert!(why.iter().all(|part| error.contains(part)), "{error}");
    };
    let (node, key) = (drawer.at("ours/node"), drawer.at("ours/node/key.pem"));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "as it is made");
    assert_eq!(fs::metadata(&node).unwrap().permissions().mode() & 0o777, 0o700, "as it is made");
    for mode in [0o640, 0o604, 0o620, 0o666] {
        set_mode(&key, mode);
        refused("ours/node", &[&key.display().to_string(), &format!("{mode:04o}"), "chmod 600"]);
    }
    set_mode(&key, 0o400);
    assert_eq!(drawer.keys("ours/node").role(), Role::Node);
    set_mode(&drawer.at("ours/ca-key.pem"), 0o644);
    let error = issue(&drawer.at("ours"), &drawer.at("new"), Role::Node).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem") && error.contains("chmod 600"), "{error}");
    // Nothing is overwritten, and keys of two makings do not fit.
    let error = issue(&drawer.at("theirs"), &node, Role::Node).unwrap_err().to_string();
    assert!(error.contains("is there already"), "{error}");
    fs::copy(drawer.at("theirs/node/cert.pem"), node.join("cert.pem")).unwrap();
    refused("ours/node", &["not signed by the authority in ca.pem"]);
    fs::copy(drawer.at("ours/client/cert.pem"), node.join("cert.pem")).unwrap();
    refused("ours/node", &["cert.pem and key.pem do not go together"]);
    fs::write(node.join("cert.pem"), "nothing").unwrap();
    refused("ours/node", &["cert.pem holds no certificate"]);
    fs::remove_file(node.join("ca.pem")).unwrap();
    refused("ours/node", &["cannot read", "ca.pem"]);
    fs::copy(drawer.at("theirs/ca.pem"), drawer.at("ours/ca.pem")).unwrap();
    set_mode(&drawer.at("ours/ca-key.pem"), 0o600);
    let error = issue(&drawer.at("ours"), &drawer.at("new"), Role::Node).unwrap_err().to_string();
    assert!(error.contains("not signed by the authority"), "{error}");
    assert!(!drawer.at("new").exists());
}
