//! The operator's words → everything else.
//!
//! Each verb is one function that takes its parsed words and the [`Output`], and returns or fails with a
//! [`error::CliError`], which carries the exit code. Verbs on files speak to a running cluster through a remote
//! [`Volume`](crate::volume::Volume), as a mount would; verbs of `cluster` look after processes on this machine.
//!
//! Absent on purpose: any knowledge of Raft or of the log. What the command line knows of a node it was told by it.

mod args;
mod check;
mod cluster;
mod error;
mod files;
mod keys;
mod log;
mod member;
mod mount;
mod mounts;
mod output;
mod remote;
mod serve;
mod status;
mod trace;
mod upload;
mod words;

use args::{CommandLine, Verb};
use clap::Parser;
use error::{CliResult, Tried};
use output::Output;
use std::process::ExitCode;

/// Parse the command line, do what it says, and say how that went.
pub fn main() -> ExitCode {
    let words = std::env::args_os().collect();
    let line = CommandLine::parse_from(mount::from_mount8(words));
    let output = Output { json: line.json };
    trace::start(log_for(&line.verb));
    match run(line.verb, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit as u8)
        }
    }
}

fn run(verb: Verb, output: Output) -> CliResult {
    match verb {
        Verb::Cluster(verb) => cluster::run(verb, output),
        Verb::Init(args) => serve::init(args, output),
        Verb::Serve(args) => serve::serve(args),
        Verb::Join(args) => block_on(member::join(args, output)),
        Verb::Leave(args) => block_on(member::leave(args, output)),
        Verb::Member(verb) => member::run(verb, output),
        Verb::Mount(args) => mount::mount(args, output),
        Verb::Umount(args) => mount::umount(args, output),
        Verb::Keys(verb) => keys::run(verb, output),
        Verb::Status(args) => block_on(status::status(args, output)),
        Verb::Check(args) => block_on(check::check(args, output)),
        Verb::Log(args) => log::log(args, output),
        Verb::Read(args) => block_on(files::read(args, output)),
        Verb::Write(args) => block_on(files::write(args, output)),
        Verb::Cas(args) => block_on(files::cas(args, output)),
        Verb::Rm(args) => block_on(files::rm(args, output)),
        Verb::Stat(args) => block_on(files::stat(args, output)),
        Verb::Ttl(args) => block_on(files::ttl(args, output)),
    }
}

/// Run one verb's future to its end.
fn block_on<T>(future: impl Future<Output = CliResult<T>>) -> CliResult<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.tried(|| "cannot start the runtime".into())?;
    let result = runtime.block_on(future);
    // A thread that still waits for a terminal's input must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Log `info` where we serve, and `warn` where we only ask.
fn log_for(verb: &Verb) -> &'static str {
    match verb {
        // openraft's words are for its developers, and it warns several times a second of a peer that is down.
        Verb::Serve(_) => "info,openraft=error",
        _ => "warn",
    }
}
