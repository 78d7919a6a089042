//! Two clusters on one machine whose mounts want the same place.

use crate::common::{Cluster, is_mounted};
use std::fs;

/// A second cluster in a directory of its own, mounted where the first one was; dropped: destroyed.
struct Neighbour<'a> {
    cluster: &'a Cluster,
    dir: String,
}

impl Neighbour<'_> {
    fn start(cluster: &Cluster) -> Neighbour<'_> {
        let port = |address: &str| address.rsplit(':').next().expect("a port").to_string();
        let dir = cluster.outside("neighbour").to_string_lossy().into_owned();
        let (base, cs733) = (port(&cluster.address(10)), (cluster.cs733(10).1).to_string());
        let mount = format!("1={}", cluster.at(1).display());
        let words = ["cluster", "start", "--nodes", "1", "--dir", &dir, "--mount", &mount];
        let ports = ["--base-port", &base, "--cs733-base-port", &cs733];
        let neighbour = Neighbour { cluster, dir: dir.clone() };
        cluster.keelfs(&[&words[..], &ports].concat()).expect_success();
        neighbour
    }
}

impl Drop for Neighbour<'_> {
    fn drop(&mut self) {
        let gone = self.cluster.keelfs(&["cluster", "destroy", "--yes", "--dir", &self.dir]);
        if !std::thread::panicking() {
            gone.expect_success();
        }
    }
}

#[test]
fn a_mount_of_another_cluster_is_neither_ended_nor_taken_for_ours() {
    let cluster = Cluster::start(1, [1]);
    let marker = cluster.at(1).join("whose");
    fs::write(&marker, "the first cluster's").expect("a write");
    cluster.command(["stop".into()]).expect_success();
    let neighbour = Neighbour::start(&cluster);
    fs::write(&marker, "the neighbour's").expect("a write");

    let started = cluster.command(["start".into()]);
    assert!(
        !started.status.is_some_and(|status| status.success()),
        "it took the neighbour's mount for its own: {}",
        started.stdout
    );
    assert!(started.stderr.contains("has not made") && started.stderr.contains("--mount"), "{}", started.stderr);
    let stopped = cluster.command(["stop".into()]).expect_success();
    assert!(stopped.stderr.contains("left alone"), "{}", stopped.stderr);
    assert_eq!(fs::read_to_string(&marker).expect("a mount that lives"), "the neighbour's");

    // At another place it comes up beside the neighbour, and knows that mount for its own.
    let elsewhere = cluster.outside("elsewhere");
    let mount = format!("1={}", elsewhere.display());
    cluster.command(["start".into(), "--mount".into(), mount.into()]).expect_success();
    assert_eq!(fs::read_to_string(elsewhere.join("whose")).expect("a read"), "the first cluster's");
    cluster.command(["stop".into()]).expect_success();
    assert!(!is_mounted(&elsewhere));
    assert_eq!(fs::read_to_string(&marker).expect("a mount that lives"), "the neighbour's");
    drop(neighbour);
    assert!(!is_mounted(cluster.at(1)));
}
