//! Waiting for a lock: in order, without deadlock, and until a signal.

use super::puppet::{Puppet, generation, held, send, waiting};
use crate::common::{Cluster, wait_for};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// By when a killed waiter has left.
const LEAVES_WITHIN: Duration = Duration::from_secs(2);
/// The kinds of exclusive locks on the whole file, without `try` or `wait`.
const EXCLUSIVE: [&str; 3] = ["flock 1 exclusive", "posix 1 exclusive 0 0", "ofd 1 exclusive 0 0"];

/// The same new file on the mounts 1, 2 and 3.
pub fn file(cluster: &Cluster, name: &str) -> [PathBuf; 3] {
    let paths = [1, 2, 3].map(|node| cluster.at(node).join(name));
    fs::write(&paths[0], "").expect("a write");
    paths
}

fn unlocked(order: &str) -> String {
    order.replace("exclusive", "unlock").replace("shared", "unlock") + " wait"
}

/// Waiters get the lock one after another as they came, on whatever mount, each with a higher fencing token.
/// Holds [L3], [L8].
pub fn waiters_are_granted_in_order(cluster: &Cluster) {
    for order in EXCLUSIVE {
        let paths = file(cluster, "in-order");
        let mut all: Vec<Puppet> = [0, 1, 2, 0, 2, 1].iter().map(|mount| Puppet::at(&paths[*mount])).collect();
        all[0].expect(&format!("{order} wait"));
        for waiter in &mut all[1..] {
            waiter.queue(&format!("{order} wait"), &paths[2]);
        }
        let mut token = generation(&paths[1]);
        while all.len() > 1 {
            let pids: Vec<u32> = all.iter().map(Puppet::pid).collect();
            assert_eq!(held(&paths[0]).iter().map(|lock| lock.pid).collect::<Vec<_>>(), pids[..1], "{order}");
            assert_eq!(waiting(&paths[0]).iter().map(|lock| lock.pid).collect::<Vec<_>>(), pids[1..], "{order}");
            all.remove(0).expect(&unlocked(order));
            all[0].granted(&paths[1]);
            let next = generation(&paths[2]);
            assert!(next > token, "{order}: token {next} after {token}");
            token = next;
        }
    }
    println!("six processes on three mounts were granted each kind of lock in order, with rising tokens");
}

/// Each holds a byte and asks for the next one's: the last to ask is told, and the others get what they wait for.
/// Holds [L4].
pub fn a_circle_of_waiters_is_refused(cluster: &Cluster) {
    for count in [2, 3] {
        let paths = file(cluster, "circle");
        let mut all: Vec<Puppet> = paths[..count].iter().map(|path| Puppet::at(path)).collect();
        for (byte, process) in all.iter_mut().enumerate() {
            process.expect(&format!("posix 1 exclusive {byte} 1 wait"));
        }
        let (last, others) = all.split_last_mut().expect("processes");
        for (byte, process) in others.iter_mut().enumerate() {
            process.queue(&format!("posix 1 exclusive {} 1 wait", byte + 1), &paths[0]);
        }
        assert_eq!(last.ask("posix 1 exclusive 0 1 wait"), Err(Errno::DEADLK), "{count} processes");
        last.expect(&format!("posix 1 unlock {} 1 wait", count - 1));
        for (byte, process) in others.iter_mut().enumerate().rev() {
            assert_eq!(process.answer(), Ok(String::new()));
            process.expect(&format!("posix 1 unlock {byte} 2 wait"));
        }
    }
    println!("circles of two and three waiters on different mounts were refused to the last");
}

/// Over two files, and through the wait to be exclusive of two that share.
pub fn other_deadlocks_are_refused(cluster: &Cluster) {
    let (one, two) = (file(cluster, "one"), file(cluster, "two"));
    let mut a = Puppet::at(&one[0]);
    let mut b = Puppet::at(&one[1]);
    a.expect(&format!("open 2 {}", two[0].display()));
    b.expect(&format!("open 2 {}", two[1].display()));
    a.expect("posix 1 exclusive 5 10 wait");
    b.expect("posix 2 shared 0 0 wait");
    a.queue("posix 2 exclusive 7 1 wait", &two[2]);
    assert_eq!(b.ask("posix 1 shared 14 1 wait"), Err(Errno::DEADLK));
    b.expect("posix 2 unlock 0 0 wait");
    assert_eq!(a.answer(), Ok(String::new()));
    a.expect("posix 2 unlock 0 0 wait");
    a.expect("posix 1 unlock 0 0 wait");

    a.expect("posix 1 shared 0 4 wait");
    b.expect("posix 1 shared 0 4 wait");
    a.queue("posix 1 exclusive 0 4 wait", &one[2]);
    assert_eq!(b.ask("posix 1 exclusive 0 4 wait"), Err(Errno::DEADLK));
    assert_eq!(held(&one[2]).len(), 2, "a refusal takes nothing away");
    b.expect("posix 1 unlock 0 0 wait");
    assert_eq!(a.answer(), Ok(String::new()));
    println!("deadlocks over two files and of two upgrades were refused");
}

/// A killed waiter leaves at once; who is behind it is granted as if it had never been.
/// Holds [L5].
pub fn a_killed_waiter_leaves_at_once(cluster: &Cluster) {
    for order in EXCLUSIVE {
        let paths = file(cluster, "left");
        let [mut holder, mut killed, mut next] = [0, 1, 2].map(|mount| Puppet::at(&paths[mount]));
        holder.expect(&format!("{order} wait"));
        killed.queue(&format!("{order} wait"), &paths[0]);
        next.queue(&format!("{order} wait"), &paths[0]);
        killed.kill_within(LEAVES_WITHIN);
        let pids = || waiting(&paths[0]).iter().map(|lock| lock.pid).collect::<Vec<_>>();
        wait_for("the killed waiter to leave the queue", || (pids() == [next.pid()]).then_some(()));
        holder.kill();
        next.granted(&paths[0]);
    }
    println!("killed waiters have left, and killed holders were followed");
}

/// A signal with a handler ends the wait, and the wait only.
/// Holds [L5].
pub fn a_signal_ends_the_wait(cluster: &Cluster) {
    for order in EXCLUSIVE {
        let paths = file(cluster, "signal");
        let [mut holder, mut waiter] = [0, 1].map(|mount| Puppet::at(&paths[mount]));
        holder.expect(&format!("{order} wait"));
        waiter.queue(&format!("{order} wait"), &paths[2]);
        waiter.signal(Signal::ALARM);
        assert_eq!(waiter.answer(), Err(Errno::INTR), "{order}");
        assert_eq!(waiting(&paths[2]), [], "{order}: the wait is over when the call is");
        holder.expect(&unlocked(order));
        waiter.expect(&format!("{order} wait"));
    }
    println!("a signal ended the wait for each kind of lock");
}

/// A signal for the process goes to one of its threads; the wait of the other goes on.
pub fn a_signal_ends_the_wait_of_one_thread(cluster: &Cluster) {
    let paths = file(cluster, "threads");
    let [mut holder, mut waiter] = [0, 1].map(|mount| Puppet::at(&paths[mount]));
    // In a forked child the thread that obeys is the main one, to which the kernel gives a signal first.
    let child = waiter.expect("fork").parse().expect("a pid");
    holder.expect("posix 1 shared 0 4 wait");
    waiter.expect("child posix 1 shared 0 4 wait");
    waiter.tell("child twice posix 1 exclusive 0 4 wait");
    wait_for("both threads to wait", || (waiting(&paths[0]).len() == 1).then_some(()));
    // Both wait for the same, so the queue shows one.
    std::thread::sleep(Duration::from_millis(500));
    send(child, Signal::ALARM);
    std::thread::sleep(Duration::from_secs(1));
    wait_for("one thread to wait", || (waiting(&paths[0]).len() == 1).then_some(()));
    holder.expect("posix 1 unlock 0 0 wait");
    let answer = waiter.answer().expect("an answer");
    assert_eq!(answer, format!("error {} and ok", Errno::INTR.raw_os_error()));
    println!("a signal ended the wait of one thread of two, and the other was granted");
}

/// Who shares and wants more waits for the others that share.
pub fn an_upgrade_waits_for_the_other_reader(cluster: &Cluster) {
    for order in EXCLUSIVE {
        let paths = file(cluster, "upgrade");
        let shared = order.replace("exclusive", "shared");
        let [mut upgrades, mut reads, mut late] = [0, 1, 2].map(|mount| Puppet::at(&paths[mount]));
        upgrades.expect(&format!("{shared} wait"));
        reads.expect(&format!("{shared} wait"));
        assert_eq!(upgrades.ask(&format!("{order} try")), Err(Errno::AGAIN), "{order}");
        assert_eq!(held(&paths[2]).len(), 2, "{order}: a refusal takes nothing away");
        upgrades.queue(&format!("{order} wait"), &paths[2]);
        reads.expect(&unlocked(order));
        upgrades.granted(&paths[2]);
        assert_eq!(late.ask(&format!("{shared} try")), Err(Errno::AGAIN), "{order}");
        late.queue(&format!("{shared} wait"), &paths[0]);
        upgrades.expect(&format!("{shared} wait"));
        late.granted(&paths[0]);
        assert_eq!(held(&paths[0]).len(), 2, "{order}: given down, and shared again");
    }
    println!("upgrades waited for the other reader, and a downgrade let others in");
}
