//! How a mount behaves: the words of `-o`, as people, fstab and mount(8) write them.
//!
//! Every word is taken in, passed over or refused. Passed over is what steers mount(8) or the boot, and what asks for
//! something that is so anyway; refused, with the reason, is what asks for something that this mount does not do.

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

/// Words that are passed over.
const PASSED_OVER: [&str; 41] = [
    // mount(8)'s own, and the boot's
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "remount",
    "silent",
    "loud",
    // the kernel checks permissions here
    "default_permissions",
    // what it would cover is refused all the same
    "nonempty",
    // every change is on disks when it returns
    "sync",
    "async",
    "dirsync",
    // access times change when they are set (`noatime`), others at once
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    // locks are advisory
    "nomand",
    // Of the two pairs only the restriction counts: see `allow_dev` and `allow_suid`.
    "dev",
    "suid",
    // of the kernel's table, which mount(8) repeats for a remount
    "fd",
    "rootmode",
    "user_id",
    "group_id",
    "subtype",
    "blksize",
];
/// What words begin with that are passed over: notes for other programs, and for people.
const NOTES: [&str; 4] = ["x-", "X-", "comment=", "user="];

const NO_CACHE: &str = "nothing is cached, so that every mount sees what others have written; consistency=local makes \
                        reads faster, and stale at times";
const OWN_MODES: &str = "owners and modes are those of the tree";
/// Words that are refused, and why.
const REFUSED: [(&str, &str); 14] = [
    ("strictatime", "access times change only when they are set, as with noatime"),
    ("mand", "locks are advisory"),
    ("allow_root", "use allow_other"),
    ("max_read", "reads are as large as programs ask for; there is max_write=4096..1048576 for writes"),
    ("auto_unmount", "a mount whose process was killed is removed when it is mounted again"),
    ("kernel_cache", NO_CACHE),
    ("auto_cache", NO_CACHE),
    ("writeback_cache", NO_CACHE),
    ("attr_timeout", NO_CACHE),
    ("entry_timeout", NO_CACHE),
    ("negative_timeout", NO_CACHE),
    ("uid", OWN_MODES),
    ("gid", OWN_MODES),
    ("umask", OWN_MODES),
];

/// A word of `-o` that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    #[error(
        "cannot use mount option '{word}': known are ro, allow_other, allow_dev, allow_suid, noexec, \
         timeout=1s..1h, consistency=strict|local, max_write=4096..1048576"
    )]
    Unknown { word: String },
    #[error("mount option '{word}' is not offered: {why}; leave it out")]
    Refused { word: String, why: &'static str },
}

impl MountOptions {
    /// Take in all words: `ro`, `allow_other`, `allow_dev`, `allow_suid`, `noexec`, `timeout=30s`, `consistency=local`,
    /// `max_write=131072`, and what is passed over. Whatever the order in which mount(8) hands them over, `nosuid` and
    /// `nodev` have the last word.
    pub fn take(&mut self, words: &[impl AsRef<str>]) -> Result<(), BadOption> {
        let mut words: Vec<&str> = words.iter().map(AsRef::as_ref).filter(|word| !is_passed_over(word)).collect();
        words.sort_by_key(|word| !word.starts_with("allow_"));
        words.into_iter().try_for_each(|word| self.set(word))
    }

    fn set(&mut self, word: &str) -> Result<(), BadOption> {
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == key(word)) {
            return Err(BadOption::Refused { word: word.to_owned(), why });
        }
        self.try_set(word).ok_or_else(|| BadOption::Unknown { word: word.to_owned() })
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

fn is_passed_over(word: &str) -> bool {
    word.is_empty() || PASSED_OVER.contains(&key(word)) || NOTES.iter().any(|note| word.starts_with(note))
}

fn key(word: &str) -> &str {
    word.split_once('=').map_or(word, |(key, _)| key)
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

    fn taken(words: &str) -> Result<MountOptions, BadOption> {
        let mut options = MountOptions::default();
        options.take(&words.split(',').collect::<Vec<_>>())?;
        Ok(options)
    }

    #[test]
    fn words_are_taken_in() {
        let words = "ro,allow_other,allow_dev,allow_suid,noexec,timeout=5m,consistency=local,max_write=65536";
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
        assert_eq!(taken(words), Ok(expected));
        let restricted = taken("nosuid,nodev,allow_suid,allow_dev").unwrap();
        assert!(!restricted.setuid && !restricted.devices);
    }

    #[test]
    fn words_of_fstab_are_passed_over() {
        let words = "rw,dev,suid,exec,auto,nouser,async,_netdev,nofail,users,noauto,user=me,group,sync,dirsync,noatime,\
                     nodiratime,relatime,lazytime,x-systemd.automount,x-gvfs-show,comment=a note,nomand,defaults";
        assert_eq!(taken(words), Ok(MountOptions::default()));
    }

    #[test]
    fn other_words_are_refused_by_name() {
        for word in ["alow_other", "rw=1", "timeout=0", "timeout=2d", "timeout", "consistency=maybe", "max_write=1"] {
            assert_eq!(taken(word), Err(BadOption::Unknown { word: word.to_owned() }), "{word}");
        }
        for (word, why) in
            [("strictatime", "access times"), ("max_read=4096", "max_write"), ("attr_timeout=1", "cached")]
        {
            let refused = taken(&format!("allow_other,{word}")).unwrap_err().to_string();
            assert!(refused.contains(word) && refused.contains(why), "{refused}");
        }
    }
}
