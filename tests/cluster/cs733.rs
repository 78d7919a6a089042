//! The text protocol over TCP, against three nodes and beside their mounts.

use crate::common::{Cluster, wait_for, xattr};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// No answer takes longer than the gateway's own deadlines together.
const SILENCE: Duration = Duration::from_secs(60);

struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    fn of(cluster: &Cluster, node: u64) -> Client {
        let socket = TcpStream::connect(cluster.cs733(node)).expect("a connection");
        socket.set_read_timeout(Some(SILENCE)).expect("a deadline");
        socket.set_nodelay(true).expect("no delay");
        Client { reader: BufReader::new(socket) }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).expect("a request is taken");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer");
        line
    }

    fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.line()
    }

    /// `OK VERSION` → VERSION
    fn write(&mut self, request: &str) -> u64 {
        let line = self.ask(request);
        let version = line.strip_prefix("OK ").and_then(|rest| rest.strip_suffix("\r\n"));
        version.unwrap_or_else(|| panic!("{request:?}: {line:?}")).parse().expect("a version")
    }

    /// Version, seconds left, content.
    fn read(&mut self, name: &str) -> (u64, u64, Vec<u8>) {
        self.send(format!("read {name}\r\n"));
        self.contents()
    }

    fn contents(&mut self) -> (u64, u64, Vec<u8>) {
        let line = self.line();
        let words: Vec<&str> = line.strip_suffix("\r\n").expect("a whole line").split(' ').collect();
        let ["CONTENTS", version, bytes, seconds] = words[..] else { panic!("not contents: {line:?}") };
        let mut content = vec![0; bytes.parse::<usize>().expect("a length") + 2];
        self.reader.read_exact(&mut content).expect("the content");
        assert_eq!(content.split_off(content.len() - 2), b"\r\n");
        (version.parse().expect("a version"), seconds.parse().expect("seconds"), content)
    }

    fn expect_closed(mut self) {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).expect("an orderly end, not a reset");
        assert!(rest.is_empty(), "after the end: {}", rest.escape_ascii());
    }
}

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

fn every_verb(cluster: &Cluster) {
    let [mut one, mut two, mut three] = [1, 2, 3].map(|node| Client::of(cluster, node));
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
    let mut client = Client::of(cluster, 1);
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
    let mut client = Client::of(cluster, 2);
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
    let mut client = Client::of(cluster, 1);
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
        let mut client = Client::of(cluster, 1);
        client.send(fatal);
        client.send("delete m\r\n");
        assert_eq!(client.line(), "ERR_CMD_ERR\r\n", "{fatal:?}");
        client.expect_closed();
    }
    assert_eq!(client.read("m").2, b"x", "nothing behind a fault was carried out, and others are not disturbed");
    println!("malformed requests: refused, closed where the end is unknown, nobody else hurt");
}

fn expiry(cluster: &Cluster) {
    let mut client = Client::of(cluster, 3);
    client.write("write e 1 100\r\nx\r\n");
    let (_, seconds, _) = client.read("e");
    assert!((40..=100).contains(&seconds), "{seconds} s left");
    assert!(xattr::get(&cluster.at(1).join("e"), "ttl").is_ok());
    client.write("write e 1\r\ny\r\n");
    assert_eq!(client.read("e").1, 0, "a write cancels the expiry");
    client.write("write e 1 1\r\nz\r\n");
    wait_for("the end of a file with a second to live", || (client.ask_exists("e") == Some(false)).then_some(()));
    assert!(!cluster.at(2).join("e").exists());
}

impl Client {
    fn ask_exists(&mut self, name: &str) -> Option<bool> {
        self.send(format!("read {name}\r\n"));
        if self.reader.fill_buf().expect("an answer").starts_with(b"ERR") {
            return (self.line() == "ERR_FILE_NOT_FOUND\r\n").then_some(false);
        }
        self.contents();
        Some(true)
    }
}

/// Ten clients on three nodes create the same file at the same time: one wins.
fn rivals(cluster: &Cluster) {
    let answers: Vec<String> = std::thread::scope(|scope| {
        let rivals: Vec<_> = (0..10u64)
            .map(|rival| {
                let mut client = Client::of(cluster, rival % 3 + 1);
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
    let mut client = Client::of(cluster, survivor);
    let before = client.write("write kept 1\r\n1\r\n");
    cluster.kill(&[leader]);
    let after = client.write("write kept 1\r\n2\r\n");
    assert!(after > before);
    assert_eq!(client.read("kept"), (after, 0, b"2".to_vec()));
    cluster.restart(&[leader]);
    assert_eq!(Client::of(cluster, leader).read("kept"), (after, 0, b"2".to_vec()));
    println!("the leader died between two requests of a client of another node");
}
