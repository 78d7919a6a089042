//! How locks end: parts of a range, closes of copied descriptors, forks, exits.

use super::puppet::{Puppet, held};
use super::waits::file;
use crate::common::{Cluster, wait_for};
use rustix::io::Errno;

/// Giving back the middle leaves both ends, and taking it again makes one range of three.
pub fn the_middle_of_a_range_is_given_back(cluster: &Cluster) {
    let paths = file(cluster, "middle");
    for family in ["posix", "ofd"] {
        let [mut one, mut two] = [0, 1].map(|mount| Puppet::at(&paths[mount]));
        one.expect(&format!("{family} 1 exclusive 0 0 wait"));
        one.expect(&format!("{family} 1 unlock 40 20 wait"));
        let ranges = || held(&paths[2]).iter().map(|lock| (lock.start, lock.end)).collect::<Vec<_>>();
        assert_eq!(ranges(), [(0, 39), (60, u64::MAX)]);
        for (start, outcome) in [(39, Err(Errno::AGAIN)), (40, Ok(String::new())), (60, Err(Errno::AGAIN))] {
            assert_eq!(two.ask(&format!("{family} 1 shared {start} 1 try")), outcome, "{family}: byte {start}");
        }
        let told = two.expect(&format!("getlk posix 1 shared 50 {}", i64::MAX - 50));
        assert_eq!(told, format!("exclusive 60 0 {}", one.pid()), "{family}");
        two.expect(&format!("{family} 1 unlock 0 0 try"));
        one.expect(&format!("{family} 1 exclusive 40 20 wait"));
        assert_eq!(ranges(), [(0, u64::MAX)]);
    }
    println!("ranges were split and joined");
}

/// What a copy of a descriptor does to a lock: a close of any ends POSIX locks, the last close ends the others.
/// Holds [L2].
pub fn closes_of_copies_end_what_they_should(cluster: &Cluster) {
    let paths = file(cluster, "copies");
    for (family, range, ends_with_any) in [("posix", " 0 0", true), ("ofd", " 0 0", false), ("flock", "", false)] {
        let [mut one, mut two] = [0, 1].map(|mount| Puppet::at(&paths[mount]));
        let (take, ask) = (format!("{family} 1 exclusive{range} wait"), format!("{family} 1 exclusive{range} try"));
        one.expect(&take);
        one.expect("dup 1 2");
        one.expect("close 2");
        if ends_with_any {
            two.expect(&ask);
            continue;
        }
        assert_eq!(two.ask(&ask), Err(Errno::AGAIN), "{family}: a copy is left");
        assert_eq!(held(&paths[2]).len(), 1);
        two.queue(&take, &paths[2]);
        one.expect("close 1");
        two.granted(&paths[2]);
    }
    println!("closes of copied descriptors ended the locks that they should");
}

/// POSIX locks stay with the parent; the others are both processes', and end with the last descriptor.
pub fn a_fork_shares_all_but_posix_locks(cluster: &Cluster) {
    let paths = file(cluster, "fork");
    let [mut one, mut two] = [0, 1].map(|mount| Puppet::at(&paths[mount]));
    one.expect("posix 1 exclusive 0 0 wait");
    one.expect("fork");
    assert_eq!(one.ask("child posix 1 shared 3 1 try"), Err(Errno::AGAIN), "not the child's");
    one.expect("child close 1");
    assert_eq!(one.expect("child exit"), "ended");
    assert_eq!(two.ask("posix 1 shared 3 1 try"), Err(Errno::AGAIN), "the child's end is not the parent's");
    drop(one);

    for (family, range) in [("flock", ""), ("ofd", " 0 0")] {
        let mut one = Puppet::at(&paths[0]);
        wait_for("a free file", || held(&paths[0]).is_empty().then_some(()));
        one.expect(&format!("{family} 1 exclusive{range} wait"));
        one.expect("fork");
        one.expect(&format!("child {family} 1 exclusive{range} try"));
        one.expect("close 1");
        assert_eq!(two.ask(&format!("{family} 1 shared{range} try")), Err(Errno::AGAIN), "{family}: the child has it");
        two.queue(&format!("{family} 1 shared{range} wait"), &paths[2]);
        assert_eq!(one.expect("child exit"), "ended");
        two.granted(&paths[2]);
        two.expect(&format!("{family} 1 unlock{range} wait"));
    }
    println!("a child had its parent's flock and open file description lock, and not its POSIX lock");
}

/// A process that ends without a word gives back all three kinds.
/// Holds [L2].
pub fn an_exit_gives_back_everything(cluster: &Cluster) {
    let paths = file(cluster, "exit");
    let [mut one, mut ranges, mut whole] = [0, 1, 2].map(|mount| Puppet::at(&paths[mount]));
    one.expect("posix 1 exclusive 0 5 wait");
    one.expect("ofd 1 exclusive 5 0 wait");
    one.expect("flock 1 exclusive wait");
    ranges.queue("posix 1 exclusive 0 0 wait", &paths[0]);
    whole.queue("flock 1 shared wait", &paths[0]);
    one.exit();
    ranges.granted(&paths[0]);
    whole.granted(&paths[0]);
    println!("the end of a process gave back all that it held");
}
