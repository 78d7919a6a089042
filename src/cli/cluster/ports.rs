//! Is a TCP port free, and if not, who holds it?

use crate::cli::error::{CliError, CliResult};
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// A process that was killed listens until the last of its threads has ended, which may have to wait for a disk; /proc
/// does not show what it holds any more.
const ENDING_TIME: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Refuses with the taken address and, where /proc tells, its holder. Waits a little for a holder that is not to be seen.
pub fn must_be_free(address: SocketAddr, option: &str) -> CliResult {
    let until = Instant::now() + ENDING_TIME;
    loop {
        let taken = match TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            Err(why) if why.kind() == ErrorKind::AddrInUse => holder(address.port()),
            Err(why) => return Err(CliError::failed(format!("cannot listen on {address}: {why}"))),
        };
        if taken.is_some() || Instant::now() >= until {
            let by = taken.map(|who| format!(" by {who}")).unwrap_or_default();
            let message = format!("{address} is taken{by}: stop that, or choose other ports with {option}");
            return Err(CliError::failed(message));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The process that listens on the port: `NAME (pid PID)`. Others' processes show only to root.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening_inode(table, port))?;
    let wanted = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| holds(*pid, &wanted))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (pid {pid})", name.trim()))
}

fn holds(pid: u32, socket: &str) -> bool {
    let Ok(handles) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    handles.flatten().any(|handle| fs::read_link(handle.path()).is_ok_and(|target| target.as_os_str() == socket))
}

/// The inode of the socket that listens on `port` (state 0A), from a table as proc_pid_net(5) shows it.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let local = u16::from_str_radix(words.get(1)?.rsplit(':').next()?, 16).ok()?;
        (local == port && *words.get(3)? == "0A").then(|| words.get(9)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_its_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let said = must_be_free(taken.local_addr().unwrap(), "--base-port").unwrap_err().message;
        assert!(said.contains(&format!("pid {}", std::process::id())), "{said}");
        assert!(said.contains("--base-port"), "{said}");
        let address = taken.local_addr().unwrap();
        drop(taken);
        must_be_free(address, "--base-port").unwrap();
    }
}
