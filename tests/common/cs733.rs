//! A client of the cs733 text protocol that takes nothing but what the protocol allows.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// No answer takes longer than the gateway's own deadlines together.
const SILENCE: Duration = Duration::from_secs(60);

pub struct Client {
    pub reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: impl ToSocketAddrs) -> Client {
        let socket = TcpStream::connect(address).expect("a connection");
        socket.set_read_timeout(Some(SILENCE)).expect("a deadline");
        socket.set_nodelay(true).expect("no delay");
        Client { reader: BufReader::new(socket) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).expect("a request is taken");
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer");
        line
    }

    pub fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.line()
    }

    /// `OK VERSION` → VERSION
    pub fn write(&mut self, request: &str) -> u64 {
        let line = self.ask(request);
        let version = line.strip_prefix("OK ").and_then(|rest| rest.strip_suffix("\r\n"));
        version.unwrap_or_else(|| panic!("{request:?}: {line:?}")).parse().expect("a version")
    }

    /// Version, seconds left, content.
    pub fn read(&mut self, name: &str) -> (u64, u64, Vec<u8>) {
        self.send(format!("read {name}\r\n"));
        self.contents()
    }

    pub fn contents(&mut self) -> (u64, u64, Vec<u8>) {
        let line = self.line();
        let words: Vec<&str> = line.strip_suffix("\r\n").expect("a whole line").split(' ').collect();
        let ["CONTENTS", version, bytes, seconds] = words[..] else { panic!("not contents: {line:?}") };
        let mut content = vec![0; bytes.parse::<usize>().expect("a length") + 2];
        self.reader.read_exact(&mut content).expect("the content");
        assert_eq!(content.split_off(content.len() - 2), b"\r\n");
        (version.parse().expect("a version"), seconds.parse().expect("seconds"), content)
    }

    pub fn expect_closed(mut self) {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).expect("an orderly end, not a reset");
        assert!(rest.is_empty(), "after the end: {}", rest.escape_ascii());
    }

    /// Is there a file of this name?
    pub fn finds(&mut self, name: &str) -> bool {
        self.send(format!("read {name}\r\n"));
        if self.reader.fill_buf().expect("an answer").starts_with(b"ERR") {
            assert_eq!(self.line(), "ERR_FILE_NOT_FOUND\r\n");
            return false;
        }
        self.contents();
        true
    }
}
