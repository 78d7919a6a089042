//! The text protocol over TCP, against three nodes and beside their mounts.

use crate::common::cs733::Client;
use crate::common::{Cluster, wait_for, xattr};
use std::fs;
use std::io::Write;

#[test]
fn the_text_protocol_on_any_node() {
    let cluster = Cluster::start(3, 1..=3);
    every_verb(&cluster);
    the_same_files_as_on_the_mounts(&cluster);
    pieces_and_pipelines(&cluster);
    malformed(&cluster);
    expiry(&cluster);
    rivals(&cluster);
    the_leader_dies(&cluster);
    cluster.expect_agreement();
}

fn connect(cluster: &Cluster, node: u64) -> Client {
    Client::connect(cluster.cs733(node))
}

fn every_verb(cluster: &Cluster) {
    let [mut one, mut two, mut three] = [1, 2, 3].map(|node| connect(cluster, node));
    assert_eq!(one.ask("read f\r\n"), "ERR_FILE_NOT_FOUND\r\n");
    let first = one.write("write f 3\r\nabc\r\n");
    assert_eq!(two.read("f"), (first, 0, b"abc".to_vec()), "written on one node, read on another");
    assert_eq!(three.ask(&format!("cas f {} 1\r\nx\r\n", first + 1000)), format!("ERR_VERSION {first}\r\n"));
    let second = three.write(&format!("cas f {first} 4\r\n\r\nx\n\r\n"));
    assert!(second > first);
    assert_eq!(one.read("f"), (second, 0, b"\r\nx\n".to_vec()));
    assert_eq!(two.ask("cas f 0 1\r\nx\r\n"), format!("ERR_VERSION {second}\r\n"), "version 0: must not exist");
    assert_eq!(two.ask("cas g 9 1\r\nx\r\n"), "ERR_FILE_NOT_FOUND\r\n");
    let created = two.write("cas g 0 0\r\n\r\n");
    assert_eq!(one.read("g"), (created, 0, vec![]));
    assert_eq!(three.ask("delete f\r\n"), "OK\r\n");
    assert_eq!(one.ask("delete f\r\n"), "ERR_FILE_NOT_FOUND\r\n");
    println!("read, write, cas and delete on three nodes");
}

fn the_same_files_as_on_the_mounts(cluster: &Cluster) {
    let mut client = connect(cluster, 1);
    let written = client.write("write shared 5\r\nhello\r\n");
    let path = cluster.at(2).join("shared");
    assert_eq!(fs::read(&path).expect("a read"), b"hello");
    assert_eq!(xattr::version(&path), Ok(written));
    fs::write(&path, "from a mount").expect("a write");
    let version = xattr::version(&path).expect("a version");
    assert_eq!(client.read("shared"), (version, 0, b"from a mount".to_vec()));

    let large: Vec<u8> = (0..3_500_000u32).map(|at| (at * 7 >> 4) as u8).collect();
    fs::write(cluster.at(3).join("large"), &large).expect("a write");
    assert!(client.read("large").2 == large, "a file larger than one answer's piece");
    fs::create_dir(cluster.at(3).join("directory")).expect("a directory");
    assert_eq!(client.ask("read directory\r\n"), "ERR_FILE_NOT_FOUND\r\n");
    assert_eq!(client.ask("delete directory\r\n"), "ERR_FILE_NOT_FOUND\r\n");
    assert_eq!(client.ask("write directory 1\r\nx\r\n"), "ERR_INTERNAL\r\n");
    assert!(cluster.at(1).join("directory").is_dir());
    println!("the same files and versions as on the mounts");
}

fn pieces_and_pipelines(cluster: &Cluster) {
    let mut client = connect(cluster, 2);
    for byte in b"write slow 7\r\na\r\nb\r\nc\r\nread slow\r\n" {
        client.send([*byte]);
    }
    assert!(client.line().starts_with("OK "));
    assert_eq!(client.contents().2, b"a\r\nb\r\nc");

    // 10 MB of requests in one go; the answers are taken only when all has been sent
    let content = vec![b'p'; 1 << 20];
    let mut other = client.reader.get_ref().try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || {
        for number in 0..10 {
            other.write_all(format!("write p{number} {}\r\n", content.len()).as_bytes()).expect("a head");
            other.write_all(&content).and_then(|()| other.write_all(b"\r\n")).expect("a content");
            other
                .write_all(format!("read p{number}\r\ndelete p{number}\r\nread p{number}\r\n").as_bytes())
                .expect("more");
        }
    });
    for _ in 0..10 {
        assert!(client.line().starts_with("OK "));
        assert_eq!(client.contents().2.len(), 1 << 20);
        assert_eq!(client.line(), "OK\r\n");
        assert_eq!(client.line(), "ERR_FILE_NOT_FOUND\r\n");
    }
    sender.join().expect("all was sent");
    println!("one byte at a time, and 10 MB pipelined: answers in order");
}

fn malformed(cluster: &Cluster) {
    let mut client = connect(cluster, 1);
    client.send("read\r\nread a b\r\nread a/b\r\nwrite a/b 3\r\nabc\r\nwrite m 3 -1\r\nabc\r\ncas m x 1\r\nx\r\nwrite m 1\r\nx\r\n");
    for _ in 0..6 {
        assert_eq!(client.line(), "ERR_CMD_ERR\r\n");
    }
    assert!(client.line().starts_with("OK "), "the connection goes on behind a fault whose end is known");

    let long = format!("read {}\r\n", "n".repeat(600));
    for fatal in [
        "fetch f\r\n",
        "write m\r\n",
        "write m -1\r\n",
        "write m 99999999999999999999999\r\n",
        "write m 2000000\r\n",
        "write m 3\r\nabcdelete m\r\n",
        &long,
        "\0\x01\x02\n",
    ] {
        let mut client = connect(cluster, 1);
        client.send(fatal);
        client.send("delete m\r\n");
        assert_eq!(client.line(), "ERR_CMD_ERR\r\n", "{fatal:?}");
        client.expect_closed();
    }
    assert_eq!(client.read("m").2, b"x", "nothing behind a fault was carried out, and others are not disturbed");
    println!("malformed requests: refused, closed where the end is unknown, nobody else hurt");
}

fn expiry(cluster: &Cluster) {
    let mut client = connect(cluster, 3);
    client.write("write e 1 100\r\nx\r\n");
    let (_, seconds, _) = client.read("e");
    assert!((40..=100).contains(&seconds), "{seconds} s left");
    assert!(xattr::get(&cluster.at(1).join("e"), "ttl").is_ok());
    client.write("write e 1\r\ny\r\n");
    assert_eq!(client.read("e").1, 0, "a write cancels the expiry");
    client.write("write e 1 1\r\nz\r\n");
    wait_for("the end of a file with a second to live", || (!client.finds("e")).then_some(()));
    assert!(!cluster.at(2).join("e").exists());
}

/// Ten clients on three nodes create the same file at the same time: one wins.
fn rivals(cluster: &Cluster) {
    let answers: Vec<String> = std::thread::scope(|scope| {
        let rivals: Vec<_> = (0..10u64)
            .map(|rival| {
                let mut client = connect(cluster, rival % 3 + 1);
                scope.spawn(move || client.ask(&format!("cas contested 0 1\r\n{rival}\r\n")))
            })
            .collect();
        rivals.into_iter().map(|rival| rival.join().expect("an answer")).collect()
    });
    assert_eq!(answers.iter().filter(|line| line.starts_with("OK ")).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|line| line.starts_with("ERR_VERSION ")).count(), 9, "{answers:?}");
}

/// Clients of the other nodes notice nothing but a delay.
fn the_leader_dies(cluster: &Cluster) {
    let leader = cluster.wait_for_leader(None);
    let survivor = leader % 3 + 1;
    let mut client = connect(cluster, survivor);
    let before = client.write("write kept 1\r\n1\r\n");
    cluster.kill(&[leader]);
    let after = client.write("write kept 1\r\n2\r\n");
    assert!(after > before);
    assert_eq!(client.read("kept"), (after, 0, b"2".to_vec()));
    cluster.restart(&[leader]);
    assert_eq!(connect(cluster, leader).read("kept"), (after, 0, b"2".to_vec()));
    println!("the leader died between two requests of a client of another node");
}
