//! `user.keelfs.*` as the table of attributes has it: compare-and-swap, replace-if, expiry, with their error numbers.

use crate::common::xattr::{self, cas, errno, version};
use crate::common::{Cluster, wait_for};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

#[test]
fn compare_and_swap_and_replace_if() {
    let cluster = Cluster::start(5, [1, 2, 3]);
    versions(&cluster);
    swaps(&cluster);
    conditional_renames(&cluster);
    lifetimes(&cluster);
    hidden_and_malformed(&cluster);
    an_open_file_that_expires_is_one_without_a_name(&cluster);
    cluster.expect_agreement();
}

fn versions(cluster: &Cluster) {
    let (here, there) = (cluster.at(1).join("f"), cluster.at(2).join("f"));
    fs::write(&here, "one").expect("a write");
    let first = version(&here).expect("a version");
    assert_eq!(version(&there), Ok(first), "the same on every mount");
    fs::set_permissions(&here, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a chmod");
    assert_eq!(version(&there), Ok(first), "chmod changes no content");
    let changed: u64 = xattr::get(&there, "change").expect("an index").parse().expect("a number");
    assert!(changed > first);
    fs::write(&here, "two").expect("a write");
    assert!(version(&there).expect("a version") > changed, "versions are global and rise");
}

fn swaps(cluster: &Cluster) {
    let (here, there) = (cluster.at(1).join("f"), cluster.at(2).join("f"));
    let current = version(&here).expect("a version");
    assert_eq!(cas(&there, current, "three"), Ok(()));
    assert_eq!(fs::read_to_string(&here).expect("a read"), "three");
    assert!(version(&here).expect("a version") > current);
    assert_eq!(cas(&here, current, "late"), Err(Errno::BUSY));
    assert_eq!(cas(&here, 0, "new"), Err(Errno::EXIST));
    assert_eq!(cas(&cluster.at(1).join("missing"), 5, "x"), Err(Errno::NOENT));
    for malformed in ["", "x\ny", "-1\ny", "7", "7 ttl=\nx", "7 tll=5\nx", "99999999999999999999\nx"] {
        assert_eq!(xattr::set(&here, "cas", malformed), Err(Errno::INVAL), "{malformed:?}");
    }
    assert_eq!(fs::read_to_string(&there).expect("a read"), "three", "what was refused changed nothing");

    let current = version(&here).expect("a version");
    let whole = "x".repeat(60_000);
    assert_eq!(xattr::set(&here, "cas", &format!("{current} ttl=1h\n{whole}")), Ok(()));
    assert_eq!(fs::read_to_string(&there).expect("a read"), whole);
    assert!(seconds(&there, "ttl") > 3500);
    println!("cas: one winner, EBUSY, EEXIST, ENOENT, EINVAL");
}

fn conditional_renames(cluster: &Cluster) {
    let (here, there) = (cluster.at(1), cluster.at(2));
    let (new, target) = (here.join(".new"), here.join("target"));
    let move_if = |expected: u64, content: &str| {
        fs::write(&new, content).expect("a write");
        xattr::set(&new, "replace-if", &expected.to_string()).expect("replace-if");
        fs::rename(&new, &target).map_err(errno)
    };
    assert_eq!(move_if(9, "x"), Err(Errno::NOENT), "expected more than 0, missing");
    assert_eq!(move_if(0, "one"), Ok(()), "expected 0, missing");
    assert_eq!(xattr::get(&target, "replace-if"), Err(Errno::NODATA), "consumed");
    assert_eq!(move_if(0, "x"), Err(Errno::EXIST), "expected 0, exists");

    let seen = version(&target).expect("a version");
    assert_eq!(move_if(seen, "two"), Ok(()));
    assert_eq!(fs::read_to_string(there.join("target")).expect("a read"), "two");
    assert!(version(&there.join("target")).expect("a version") > seen, "the version at a path never goes back");
    assert_eq!(move_if(seen, "late"), Err(Errno::BUSY));
    assert_eq!(fs::read_to_string(there.join("target")).expect("a read"), "two");
    assert_eq!(xattr::remove(&new, "replace-if"), Ok(()));
    fs::rename(&new, &target).expect("a rename without a condition");
    println!("replace-if: consumed by success, EBUSY, EEXIST, ENOENT");
}

fn lifetimes(cluster: &Cluster) {
    let (here, there) = (cluster.at(1).join("lease"), cluster.at(2).join("lease"));
    fs::write(&here, "x").expect("a write");
    assert_eq!(xattr::get(&there, "ttl"), Err(Errno::NODATA));
    let before = version(&here).expect("a version");
    for (duration, most) in [("100", 100), ("90s", 90), ("5m", 300), ("2h", 7200), ("7d", 604_800)] {
        xattr::set(&here, "ttl", duration).expect("a lifetime");
        let left = seconds(&there, "ttl");
        assert!((most - 60..=most).contains(&left), "{duration}: {left} s left");
    }
    let ends = seconds(&there, "expires");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
    assert!((now + 604_700..=now + 604_801).contains(&ends), "expires {ends}, now {now}");
    assert_eq!(version(&here), Ok(before), "renewing changes no content");

    fs::write(&here, "rewritten").expect("a write");
    assert!(seconds(&there, "ttl") > 604_000, "a plain write keeps the expiry");
    xattr::set(&here, "ttl", "0").expect("a lifetime");
    assert_eq!(xattr::get(&there, "ttl"), Err(Errno::NODATA));
    xattr::set(&here, "expires", &(now + 1000).to_string()).expect("a deadline");
    assert!((900..=1001).contains(&seconds(&there, "ttl")));
    xattr::set(&here, "expires", "2099-01-01T00:00:00Z").expect("a deadline");
    assert!((4_070_908_799..=4_070_908_801).contains(&seconds(&there, "expires")));
    xattr::remove(&here, "expires").expect("a removal");
    assert_eq!(xattr::get(&there, "ttl"), Err(Errno::NODATA));

    let directory = cluster.at(1).join("spool");
    fs::create_dir(&directory).expect("a directory");
    xattr::set(&directory, "default-ttl", "1h").expect("a default lifetime");
    fs::write(cluster.at(2).join("spool/job"), "x").expect("a write");
    assert!((3500..=3600).contains(&seconds(&directory.join("job"), "ttl")));
    println!("ttl, expires and default-ttl read back on another mount");
}

fn hidden_and_malformed(cluster: &Cluster) {
    let path = cluster.at(3).join("lease");
    xattr::set(&path, "ttl", "1h").expect("a lifetime");
    rustix::fs::setxattr(&path, "user.mine", b"1", rustix::fs::XattrFlags::empty())
        .expect("an attribute of the user's");
    assert_eq!(xattr::list(&path), ["user.mine"], "virtual attributes are not listed");
    for malformed in ["-1", "1e9y", "", "5x", "99999999999999999999"] {
        assert_eq!(xattr::set(&path, "ttl", malformed), Err(Errno::INVAL), "{malformed:?}");
    }
    for name in ["version", "change", "owner", "info"] {
        assert_eq!(xattr::set(&path, name, "1"), Err(Errno::PERM), "{name} is read-only");
        assert_eq!(xattr::remove(&path, name), Err(Errno::PERM), "{name} is read-only");
    }
    assert_eq!(xattr::set(&path, "nonsense", "1"), Err(Errno::INVAL));
    assert_eq!(xattr::get(&path, "cas"), Err(Errno::NODATA));
    let told: serde_json::Value = serde_json::from_str(&xattr::get(&path, "info").expect("a report")).expect("JSON");
    assert_eq!(told["version"].as_u64(), version(&path).ok(), "{told}");
}

/// Holds [E2].
fn an_open_file_that_expires_is_one_without_a_name(cluster: &Cluster) {
    let [here, there] = [1, 2].map(|node| cluster.at(node).join("ending"));
    fs::write(&here, "before").expect("a write");
    let [one, other] =
        [&here, &there].map(|path| fs::OpenOptions::new().read(true).write(true).open(path).expect("an open"));
    xattr::set(&there, "ttl", "1").expect("a lifetime");
    wait_for("the end of the file", || (!here.exists()).then_some(()));
    assert!(!there.exists(), "gone here, and there it has its name");
    fs::write(&there, "another file of that name").expect("a write");
    one.write_all_at(b"behind", 6).expect("a write through a descriptor");
    assert_eq!(read_all(&other), b"beforebehind");
    other.set_len(3).expect("a truncation through a descriptor");
    assert_eq!(read_all(&one), b"bef");
    assert_eq!(one.metadata().expect("its attributes").nlink(), 0);
    drop(one);
    assert_eq!(read_all(&other), b"bef", "after a close there");
    println!("a file that expired while it was open behaved like an unlinked one");
}

fn read_all(file: &fs::File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("its attributes").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("a read through a descriptor");
    bytes
}

fn seconds(path: &Path, name: &str) -> u64 {
    let text = xattr::get(path, name).unwrap_or_else(|e| panic!("{name} of {}: {e}", path.display()));
    text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number of seconds"))
}

const LIFETIME: Duration = Duration::from_secs(8);

/// A file ends at or after its deadline, everywhere at once and for ever, also when the leader dies just before; one that
/// was renewed survives; an open one stays readable.
/// Holds [E1].
#[test]
fn a_file_expires_never_early_and_never_again_across_a_leader_change() {
    let cluster = Cluster::start(5, 1..=5);
    for name in ["ending", "renewed", "written"] {
        fs::write(cluster.at(1).join(name), name).expect("a write");
    }
    let earliest = Instant::now() + LIFETIME;
    for name in ["ending", "renewed", "written"] {
        xattr::set(&cluster.at(2).join(name), "ttl", &LIFETIME.as_secs().to_string()).expect("a lifetime");
    }
    let open = fs::File::open(cluster.at(1).join("ending")).expect("an open");
    while Instant::now() < earliest - Duration::from_secs(3) {
        for node in 1..=5 {
            assert!(exists(&cluster.at(node).join("ending"), earliest), "gone before its deadline");
        }
    }
    xattr::set(&cluster.at(3).join("renewed"), "ttl", "1h").expect("a renewal");
    fs::write(cluster.at(3).join("written"), "a write does not renew").expect("a write");
    let killed = cluster.kill_leader();
    let alive: Vec<u64> = (1..=5).filter(|node| *node != killed).collect();
    let watched = cluster.at(alive[0]).join("ending");
    wait_for("the end of the file", || (!exists(&watched, earliest)).then_some(()));
    assert!(Instant::now() >= earliest, "gone before its deadline");

    for node in &alive {
        assert!(!cluster.at(*node).join("ending").exists(), "gone on node {}, there on node {node}", alive[0]);
    }
    if killed != 1 {
        let mut content = [0; 6];
        std::os::unix::fs::FileExt::read_exact_at(&open, &mut content, 0)
            .expect("an open file that expired is readable");
        assert_eq!(&content, b"ending");
    }
    wait_for("the end of the file that was only written", || {
        (!cluster.at(alive[1]).join("written").exists()).then_some(())
    });
    cluster.restart(&[killed]);
    for node in 1..=5 {
        assert!(!cluster.at(node).join("ending").exists(), "came back on node {node}");
        assert!(cluster.at(node).join("renewed").exists(), "renewed, and gone on node {node}");
    }
    println!("expired once for all, with node {killed} killed before the deadline");
    cluster.expect_agreement();
}

/// A leader is frozen while a file's end is near; the file is renewed under the next one. Whatever the old one had in
/// mind when it wakes, the file survives.
#[test]
fn a_renewal_wins_over_the_removal_that_an_old_leader_had_pending() {
    let cluster = Cluster::start(5, 1..=5);
    let old = cluster.wait_for_leader(None);
    let path = cluster.at(old % 5 + 1).join("lease");
    fs::write(&path, "x").expect("a write");
    xattr::set(&path, "ttl", "6").expect("a lifetime");
    cluster.signal(old, "STOP");
    xattr::set(&path, "ttl", "1h").expect("a renewal under the next leader");
    std::thread::sleep(Duration::from_secs(8));
    cluster.signal(old, "CONT");
    cluster.expect_agreement();
    for node in 1..=5 {
        assert!(cluster.at(node).join("lease").exists(), "renewed, and gone on node {node}");
    }
    println!("a renewal survived node {old}, which slept through it");
}

/// Errors other than "no such file" say nothing about the file (there may be no leader just now).
fn exists(path: &Path, earliest: Instant) -> bool {
    match fs::metadata(path) {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(Instant::now() >= earliest, "{} is gone before its deadline", path.display());
            false
        }
        Err(_) => true,
    }
}
