//! The nouns: numbers with types, names, times, attributes.

use crate::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::sync::Arc;

/// Number of an inode. Given out in order, never reused, so no generation is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory (`FUSE_ROOT_ID`).
    pub const ROOT: Ino = Ino(1);
}

/// Position of an entry in the Raft log; also the version that the entry gives to what it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogIndex(pub u64);

/// A session's number: the index of the entry that opened it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Position of a request within its session, from 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sequence(pub u64);

/// Steady cluster time in nanoseconds: only ever compared with itself. Stands still while there is no leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterTime(pub u64);

/// A wall-clock time as `struct timespec`: seconds since 1970 (negative before) and nanoseconds below 10⁹.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanos: u32,
}

/// What the log knows of an entry beside its command. The leader stamps the times when it proposes; apply clamps both so
/// that cluster time never falls and wall time strictly rises from entry to entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub index: LogIndex,
    pub cluster: ClusterTime,
    pub wall: Timestamp,
}

/// A name in a directory: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`. Not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

/// Why some bytes are not a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("a name cannot be empty")]
    Empty,
    #[error("a name cannot be longer than {NAME_BYTES_MAX} bytes")]
    TooLong,
    #[error("a name cannot hold '/' or NUL")]
    BadByte,
    #[error("'.' and '..' are not names")]
    Dots,
}

impl Name {
    pub fn new(bytes: &[u8]) -> Result<Name, BadName> {
        match bytes {
            [] => Err(BadName::Empty),
            _ if bytes.len() > NAME_BYTES_MAX => Err(BadName::TooLong),
            b"." | b".." => Err(BadName::Dots),
            _ if bytes.iter().any(|b| matches!(b, b'/' | 0)) => Err(BadName::BadByte),
            _ => Ok(Name(bytes.into())),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = BadName;
    fn try_from(bytes: Vec<u8>) -> Result<Name, BadName> {
        Name::new(&bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Vec<u8> {
        name.0.to_vec()
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let bytes = bytes::Bytes::deserialize(deserializer)?;
        Name::new(&bytes).map_err(D::Error::custom)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Who asks, as the kernel of the asking node tells it. Access checks are that kernel's (`default_permissions`); apply
/// uses this for the owner of what is made and for clearing setuid and setgid bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
}

/// What an inode is (`S_IFMT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat(2)` shows, and the two indexes that keelfs adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub ino: Ino,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Bytes; of a symlink its target's length; of a directory a figure that grows with its entries.
    pub size: u64,
    /// Bytes that are really stored: holes do not count.
    pub allocated: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    /// Index of the last change of the content (directory: of its entries), or of the rename that put the inode in
    /// place of another.
    pub version: LogIndex,
    /// Index of the last change of anything.
    pub change: LogIndex,
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn a_name_is_what_the_kernel_would_allow() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
            assert!(Name::new(bad).is_err(), "{}", bad.escape_ascii());
            let bytes = crate::codec::encode("name", &bad.to_vec()).ok();
            assert!(crate::codec::decode::<Name>("name", &bytes.unwrap_or_default()).is_err());
        }
        for good in [&b"..."[..], b" ", b"\xff\n", &[b'a'; 255]] {
            let name = Name::new(good).ok();
            let bytes = crate::codec::encode("name", &name).unwrap_or_default();
            assert_eq!(crate::codec::decode("name", &bytes), Ok(name));
        }
    }
}
