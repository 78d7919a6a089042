//! The command line as scripts meet it: what it prints where, and with which code it ends. No cluster runs here.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn keelfs(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelfs"));
    command.args(words).current_dir(dir).env_remove("KEELFS_NODES").env_remove("KEELFS_TLS").env_remove("KEELFS_LOG");
    command.output().expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("plain text")
}

/// Ends with this code, says nothing on standard output, and says all of these on standard error.
#[track_caller]
fn refused(output: &Output, code: i32, says: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
    for part in says {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
}

#[test]
fn every_verb_shows_an_example() {
    let here = std::env::temp_dir();
    let verbs = ["init", "serve", "mount", "umount", "status", "check", "read", "write", "cas", "rm", "stat", "ttl"];
    let of_cluster = ["start", "status", "kill", "restart", "stop", "destroy"];
    let of_keys = ["create", "node", "client"].map(|verb| vec!["keys", verb]);
    let all =
        verbs.map(|verb| vec![verb]).into_iter().chain(of_cluster.map(|verb| vec!["cluster", verb])).chain(of_keys);
    for mut words in all {
        words.push("--help");
        let help = keelfs(&here, &words);
        let text = String::from_utf8(help.stdout).unwrap();
        assert!(help.status.success() && text.contains("Example"), "{words:?}: {text}");
        assert!(text.contains(&format!("keelfs {}", words[..words.len() - 1].join(" "))), "{words:?}: {text}");
        assert!(text.contains("--json"), "{words:?}: {text}");
    }
}

#[test]
fn words_that_make_no_sense_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |words: &[&str], says: &[&str]| refused(&keelfs(dir.path(), words), 2, says);
    refuse(&["frobnicate"], &["frobnicate"]);
    refuse(&["read", "greeting"], &["say /greeting"]);
    refuse(&["read", "/greeting"], &["which cluster?", "--node", "--dir"]);
    refuse(&["ttl", "/greeting", "1e9y"], &["30s"]);
    refuse(&["cluster", "start", "--nodes", "9"], &["--nodes"]);
    refuse(&["cluster", "start", "--nodes", "3", "--mount", "4=./a"], &["there is no node 4"]);
    refuse(&["cluster", "kill", "leader", "--signal", "FOO"], &["KILL, TERM"]);
    refuse(&["status", "--node", "127.0.0.1:1", "--dir", "x"], &["--dir"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a refused start leaves nothing behind");
}

#[test]
fn nobody_there_is_exit_5_and_says_which_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    // A port that was just given back refuses connections.
    drop(silent);
    for verb in [&["status"][..], &["check"]] {
        let words = [verb, &["--node", &address, "--timeout", "300ms"]].concat();
        refused(&keelfs(dir.path(), &words), 5, &[&address]);
    }
    let read = keelfs(dir.path(), &["read", "/x", "--node", &address, "--timeout", "300ms"]);
    refused(&read, 5, &["cannot read /x", "not sent"]);
}

#[test]
fn a_missing_cluster_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    for verb in [&["status"][..], &["stop"], &["kill", "1"], &["restart", "all"], &["destroy", "--yes"]] {
        let words = [&["cluster"], verb].concat();
        refused(&keelfs(dir.path(), &words), 1, &["no cluster in ./cluster", "keelfs cluster start"]);
    }
}

#[test]
fn errors_are_json_when_json_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let output = keelfs(dir.path(), &["cluster", "status", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["exit"], 1);
    assert!(error["error"].as_str().unwrap().starts_with("no cluster in"), "{error}");
}

#[test]
fn a_data_directory_is_initialised_once() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = "6f1c0fd0-6a3b-4c46-9f3c-0123456789ab";
    let init = ["init", "--data", "n1", "--cluster", cluster, "--node", "1", "--member", "1=127.0.0.1:7701"];
    let done = keelfs(dir.path(), &init);
    assert!(done.status.success() && String::from_utf8_lossy(&done.stdout).contains("keelfs serve --data n1"));
    refused(&keelfs(dir.path(), &init), 1, &["it holds node 1", cluster]);
    refused(&keelfs(dir.path(), &["serve", "--data", "elsewhere"]), 1, &["keelfs init"]);
}

#[test]
fn a_taken_port_stops_a_start_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let base = (port - 1).to_string();
    let cs733 = (if port > 40_000 { port - 1000 } else { port + 1000 }).to_string();
    let words = ["cluster", "start", "--nodes", "1", "--no-mount", "--base-port", &base, "--cs733-base-port", &cs733];
    let holder = format!("pid {}", std::process::id());
    refused(&keelfs(dir.path(), &words), 1, &[&format!("127.0.0.1:{port} is taken"), &holder, "--base-port"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    refused(&keelfs(dir.path(), &["umount", "/proc"]), 1, &["left alone"]);
    refused(&keelfs(dir.path(), &["umount", "."]), 1, &["is not mounted"]);
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    refused(&keelfs(dir.path(), &["cluster", "start", "--dir", "."]), 1, &["holds other things"]);
    refused(&keelfs(dir.path(), &["cluster", "destroy", "--yes", "--dir", "."]), 1, &["no cluster in ."]);
    assert_eq!(std::fs::read_to_string(dir.path().join("mine")).unwrap(), "precious");
}

#[test]
fn keys_are_made_where_nobody_else_can_read_them_and_used_by_directory() {
    let dir = tempfile::tempdir().unwrap();
    let made = |words: &[&str]| {
        let done = keelfs(dir.path(), words);
        assert!(done.status.success(), "{}", stderr(&done));
        String::from_utf8(done.stdout).unwrap()
    };
    assert!(made(&["keys", "create", "authority"]).contains("keelfs keys node authority"));
    assert!(made(&["keys", "node", "authority", "n1"]).contains("ten years"));
    assert!(made(&["keys", "client", "authority", "laptop"]).contains("keelfs mount --tls laptop"));
    refused(&keelfs(dir.path(), &["keys", "create", "authority"]), 1, &["ca-key.pem is there already"]);
    refused(&keelfs(dir.path(), &["keys", "node", "laptop", "n2"]), 1, &["cannot read laptop/ca-key.pem"]);

    let cluster = "6f1c0fd0-6a3b-4c46-9f3c-0123456789ab";
    // No address of this machine: if the keys were taken, it would end all the same.
    let init = ["init", "--data", "d1", "--cluster", cluster, "--node", "1", "--member", "1=192.0.2.1:1"];
    assert!(keelfs(dir.path(), &init).status.success());
    let serve = |keys: &str| keelfs(dir.path(), &["serve", "--data", "d1", "--tls", keys]);
    refused(&serve("laptop"), 1, &["keys of a client", "keelfs keys node"]);
    refused(&serve("nowhere"), 1, &["cannot read nowhere/ca.pem"]);
    for key in ["n1/key.pem", "laptop/key.pem", "authority/ca-key.pem"] {
        std::fs::set_permissions(dir.path().join(key), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    refused(&serve("n1"), 1, &["n1/key.pem", "0644", "chmod 600 n1/key.pem"]);
    refused(&keelfs(dir.path(), &["keys", "node", "authority", "n2"]), 1, &["chmod 600 authority/ca-key.pem"]);
    std::fs::create_dir(dir.path().join("m")).unwrap();
    for words in [&["status", "--node", "127.0.0.1:1"][..], &["mount", "127.0.0.1:1", "m"]] {
        refused(&keelfs(dir.path(), &[words, &["--tls", "laptop"]].concat()), 1, &["chmod 600", "laptop/key.pem"]);
    }
    let open = ["serve", "--data", "d1", "--listen", "0.0.0.0:1"];
    refused(&keelfs(dir.path(), &open), 1, &["--tls", "--insecure-no-tls"]);
}

/// Words of a command line are seen by everybody on the machine.
#[test]
fn no_option_takes_a_secret() {
    let here = std::env::temp_dir();
    let of =
        |group: &'static str, verbs: &[&'static str]| verbs.iter().map(|verb| vec![group, verb]).collect::<Vec<_>>();
    let alone = [
        "init", "serve", "join", "leave", "mount", "umount", "status", "check", "log", "read", "write", "cas", "rm",
        "stat", "ttl",
    ];
    let mut all: Vec<Vec<&str>> = alone.iter().map(|verb| vec![*verb]).collect();
    all.extend(of("cluster", &["start", "status", "kill", "restart", "stop", "destroy"]));
    all.extend(of("member", &["list", "add", "remove", "promote", "replace"]));
    all.extend(of("keys", &["create", "node", "client"]));
    for mut words in all {
        words.push("--help");
        let text = String::from_utf8(keelfs(&here, &words).stdout).unwrap();
        let options = text.lines().map(str::trim).filter(|line| line.starts_with('-'));
        for option in options {
            let said = option.to_lowercase();
            let of_secret = ["key", "secret", "pass", "token", "credential", "pem", "cert"]
                .iter()
                .find(|word| said.contains(**word));
            assert!(of_secret.is_none() || option.starts_with("--tls"), "{words:?}: {option}");
        }
    }
}
