//! `user.keelfs.*` through the system calls that `getfattr` and `setfattr` make.

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::path::Path;

/// `getfattr --only-values -n user.keelfs.NAME PATH`
pub fn get(path: &Path, name: &str) -> Result<String, Errno> {
    let mut value = vec![0; 65_536];
    let length = getxattr(path, format!("user.keelfs.{name}"), &mut value[..])?;
    value.truncate(length);
    Ok(String::from_utf8(value).expect("text"))
}

/// `setfattr -n user.keelfs.NAME -v VALUE PATH`
pub fn set(path: &Path, name: &str, value: &str) -> Result<(), Errno> {
    setxattr(path, format!("user.keelfs.{name}"), value.as_bytes(), XattrFlags::empty())
}

/// `setfattr -x user.keelfs.NAME PATH`
pub fn remove(path: &Path, name: &str) -> Result<(), Errno> {
    removexattr(path, format!("user.keelfs.{name}"))
}

/// `getfattr -m - PATH`: all listed names.
pub fn list(path: &Path) -> Vec<String> {
    let mut names = vec![0; 65_536];
    let length = listxattr(path, &mut names[..]).expect("a list of attributes");
    let names = String::from_utf8(names[..length].to_vec()).expect("text");
    names.split_terminator('\0').map(str::to_owned).collect()
}

pub fn version(path: &Path) -> Result<u64, Errno> {
    get(path, "version").map(|digits| digits.parse().unwrap_or_else(|_| panic!("the version {digits:?} is no number")))
}

/// Replace the content if the version is this one.
pub fn cas(path: &Path, version: u64, content: &str) -> Result<(), Errno> {
    set(path, "cas", &format!("{version}\n{content}"))
}

/// The error number of a failed call of the standard library.
pub fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("not an error of the system: {error}"))
}
