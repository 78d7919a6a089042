//! Who a mount does not trust: files that would give rights away, and users for whom it was not made. Root only: others can
//! make neither.

use super::Mounted;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

const STRANGER: u32 = 65_003;

pub fn all(mounted: &mut Mounted) {
    if !rustix::process::geteuid().is_root() {
        return println!("not root, so there are no setuid programs, devices or strangers: not looked at");
    }
    a_setuid_program_gives_no_rights_unless_asked_for(mounted);
    a_device_is_inert_unless_asked_for(mounted);
    a_mount_for_one_user_is_closed_to_others(mounted);
}

fn a_setuid_program_gives_no_rights_unless_asked_for(mounted: &mut Mounted) {
    let (inert, _) = mounted.both("whoami");
    fs::copy("/usr/bin/id", &inert).expect("a copy of id");
    fs::set_permissions(&inert, PermissionsExt::from_mode(0o4755)).expect("a mode");
    let lifted = mounted.mount_with("lifted", &["allow_suid"]);
    assert_eq!(effective_user(&inert), STRANGER.to_string());
    assert_eq!(effective_user(&lifted.path().join("whoami")), "0", "the bit itself works where it was asked for");
    lifted.unmount().expect("an unmount");
    fs::remove_file(inert).expect("an unlink");
}

fn a_device_is_inert_unless_asked_for(mounted: &mut Mounted) {
    let (inert, _) = mounted.both("zero");
    let path = CString::new(inert.as_os_str().as_bytes()).expect("a path");
    // SAFETY: mknod(2) reads the path, which ends with its NUL.
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 5)) };
    assert_eq!(made, 0, "mknod: {}", std::io::Error::last_os_error());
    let lifted = mounted.mount_with("lifted", &["allow_dev"]);
    let refused = fs::File::open(&inert).expect_err("a device on a mount with nodev");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    fs::File::open(lifted.path().join("zero")).expect("a device where it was asked for");
    lifted.unmount().expect("an unmount");
    fs::remove_file(inert).expect("an unlink");
}

fn a_mount_for_one_user_is_closed_to_others(mounted: &mut Mounted) {
    let (shared, _) = mounted.both(".");
    let closed = mounted.mount_for_its_user("closed");
    let list = |path: &Path| as_stranger(Command::new("ls").arg(path));
    assert!(list(&shared).status.success());
    let refused = list(closed.path());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("Permission denied"), "{said}");
    closed.unmount().expect("an unmount");
}

fn effective_user(program: &Path) -> String {
    let told = as_stranger(Command::new(program).arg("-u"));
    assert!(told.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&told.stderr));
    String::from_utf8_lossy(&told.stdout).trim().to_owned()
}

fn as_stranger(command: &mut Command) -> Output {
    command.uid(STRANGER).gid(STRANGER).current_dir("/").output().expect("a program")
}
