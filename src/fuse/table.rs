//! The kernel's table of mounts, `/proc/self/mountinfo` (proc(5)): what is mounted where, in this process's view.
//!
//! Reading it touches no mount, so a dead one does no harm.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of our mounts.
pub const FILE_SYSTEM_TYPE: &str = "fuse.keelfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// `major:minor`: names this mount's file system among all.
    pub device: String,
    pub path: PathBuf,
    pub fs_type: String,
    /// The words of this mount, separated by commas: `rw,nosuid,nodev,relatime`.
    pub options: String,
}

impl MountEntry {
    pub fn is_ours(&self) -> bool {
        self.fs_type == FILE_SYSTEM_TYPE
    }

    /// Does this word stand among the mount's options?
    pub fn has(&self, word: &str) -> bool {
        self.options.split(',').any(|option| option == word)
    }

    /// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw`
    fn parse(line: &[u8]) -> Option<MountEntry> {
        let mut words = line.split(|byte| *byte == b' ');
        let device = words.nth(2)?;
        let path = unescape(words.nth(1)?);
        let options = words.next()?;
        words.find(|word| *word == b"-")?;
        let fs_type = words.next()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Some(MountEntry { device: text(device), path, fs_type: text(fs_type), options: text(options) })
    }
}

/// Spaces, tabs, newlines and backslashes are written in octal: `\040`.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Every mount, the uppermost at a path last. Empty without /proc.
pub fn mounts() -> Vec<MountEntry> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(MountEntry::parse).collect()
}

/// What is mounted at exactly this path (absolute, without symlinks), if anything.
pub fn mounted_at(path: &Path) -> Option<MountEntry> {
    mounts().into_iter().rfind(|entry| entry.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_optional_fields_and_escapes() {
        let read = |line: &str| MountEntry::parse(line.as_bytes());
        let entry = |device: &str, path: &str, fs_type: &str, options: &str| {
            let [device, fs_type, options] = [device, fs_type, options].map(String::from);
            Some(MountEntry { device, path: path.into(), fs_type, options })
        };
        let with_fields = r"36 35 0:98 / /mnt/a\040b\134 rw,noatime shared:1 master:2 - fuse.keelfs n1 rw,user_id=0";
        assert_eq!(read(with_fields), entry("0:98", r"/mnt/a b\", FILE_SYSTEM_TYPE, "rw,noatime"));
        assert!(read(with_fields).is_some_and(|entry| entry.has("noatime") && !entry.has("atime")));
        assert_eq!(read("22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"), entry("8:1", "/", "ext4", "rw,relatime"));
        assert_eq!(read("36 35"), None);
        assert!(mounted_at(Path::new("/proc")).is_some_and(|entry| entry.fs_type == "proc" && !entry.is_ours()));
    }
}
