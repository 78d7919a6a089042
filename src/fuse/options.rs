//! How a mount behaves: the words of `-o`.

use crate::fs::words;
use crate::limits::BODY_BYTES_MAX;
use crate::volume::Freshness;
use std::time::Duration;

/// Least and greatest time that an operation may be told to wait.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Least bytes of one write request: a page.
const WRITE_BYTES_MIN: u32 = 4096;

/// How a mount behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What the first column of `df` shows.
    pub source: String,
    /// Other users than the mounting one may use it; `/etc/fuse.conf` must allow that to a user who is not root.
    pub allow_other: bool,
    pub read_only: bool,
    /// Device nodes may be opened. Root alone can ask for this and the next; both are off unless asked for, since any
    /// node's root writes this tree. (mount(8) keeps the words `dev` and `suid` for itself: they never arrive here.)
    pub devices: bool,
    /// Setuid and setgid bits and file capabilities count when a program is started.
    pub setuid: bool,
    /// Programs may be started.
    pub execute: bool,
    /// How long an operation may wait for the cluster.
    pub timeout: Duration,
    /// What reads may return: [`Freshness::Nearest`] is fast, works without a majority, and may be stale.
    pub freshness: Freshness,
    /// Bytes of one write request, at most; larger writes are split.
    pub write_bytes_max: u32,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            source: "keelfs".to_owned(),
            allow_other: false,
            read_only: false,
            devices: false,
            setuid: false,
            execute: true,
            timeout: Duration::from_secs(30),
            freshness: Freshness::Linearizable,
            write_bytes_max: BODY_BYTES_MAX as u32,
        }
    }
}

/// A word of `-o` that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown mount option '{word}': known are ro, allow_other, allow_dev, allow_suid, noexec, timeout=1s..1h, \
     consistency=strict|local, max_write=4096..1048576"
)]
pub struct UnknownOption {
    pub word: String,
}

impl MountOptions {
    /// Take in one word: `ro`, `allow_other`, `allow_dev`, `allow_suid`, `noexec`, `timeout=30s`, `consistency=local`, `max_write=131072`.
    pub fn set(&mut self, word: &str) -> Result<(), UnknownOption> {
        self.try_set(word).ok_or_else(|| UnknownOption { word: word.to_owned() })
    }

    fn try_set(&mut self, word: &str) -> Option<()> {
        match word.split_once('=') {
            None if word == "ro" => self.read_only = true,
            None if word == "rw" => self.read_only = false,
            None if word == "allow_other" => self.allow_other = true,
            None if word == "allow_dev" => self.devices = true,
            None if word == "allow_suid" => self.setuid = true,
            None if word == "nodev" => self.devices = false,
            None if word == "nosuid" => self.setuid = false,
            None if word == "exec" || word == "noexec" => self.execute = word == "exec",
            Some(("timeout", value)) => self.timeout = timeout(value)?,
            Some(("consistency", "strict")) => self.freshness = Freshness::Linearizable,
            Some(("consistency", "local")) => self.freshness = Freshness::Nearest,
            Some(("max_write", value)) => self.write_bytes_max = write_bytes(value)?,
            _ => return None,
        }
        Some(())
    }
}

fn timeout(value: &str) -> Option<Duration> {
    let time = Duration::from_nanos(words::parse_duration_ns(value.as_bytes()).ok()?);
    (TIMEOUT_MIN..=TIMEOUT_MAX).contains(&time).then_some(time)
}

fn write_bytes(value: &str) -> Option<u32> {
    let bytes = value.parse().ok()?;
    (WRITE_BYTES_MIN..=BODY_BYTES_MAX as u32).contains(&bytes).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_in_or_named() {
        let mut options = MountOptions::default();
        for word in [
            "ro",
            "allow_other",
            "allow_dev",
            "allow_suid",
            "noexec",
            "timeout=5m",
            "consistency=local",
            "max_write=65536",
        ] {
            options.set(word).unwrap();
        }
        let expected = MountOptions {
            allow_other: true,
            read_only: true,
            devices: true,
            setuid: true,
            execute: false,
            timeout: Duration::from_secs(300),
            freshness: Freshness::Nearest,
            write_bytes_max: 65536,
            ..MountOptions::default()
        };
        assert_eq!(options, expected);
        for word in ["", "rw=1", "timeout=0", "timeout=2d", "timeout", "consistency=maybe", "max_write=1", "ro=1"] {
            assert_eq!(options.set(word), Err(UnknownOption { word: word.to_owned() }), "{word}");
        }
        assert_eq!(options, expected);
    }
}
