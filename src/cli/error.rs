//! What the command line says when it cannot do what was asked: one sentence for people, one number for scripts.

use crate::fs::Refusal;
use crate::node::exit::{Exit, NodeError};
use crate::volume::Failure;
use std::fmt;

/// A verb that failed. The message says what was tried, on what, why it failed and what to do next: lower case, no full
/// stop, no Rust types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    pub exit: Exit,
    pub message: String,
}

/// What a verb comes to.
pub type CliResult<T = ()> = Result<T, CliError>;

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl CliError {
    pub fn new(exit: Exit, message: impl Into<String>) -> CliError {
        CliError { exit, message: message.into() }
    }

    /// Exit 1.
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Failed, message)
    }

    /// Exit 2: the words of the command line do not make sense together.
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Usage, message)
    }

    /// A call on `path` that the cluster refused or could not decide.
    pub fn call(tried: &str, path: &str, failure: &Failure) -> CliError {
        let (exit, next) = match failure {
            Failure::Refused(refusal) => (exit_of(refusal), ""),
            Failure::NoMajority => (Exit::NoMajority, "; not sent. See `keelfs status`, then try again"),
            Failure::Unknown => (Exit::NoMajority, "; outcome unknown. Look with `keelfs stat` before you try again"),
            Failure::Damaged(_) => (Exit::Damaged, ""),
            Failure::Stopped(_) => (Exit::Failed, ""),
        };
        CliError::new(exit, format!("cannot {tried} {path}: {failure}{next}"))
    }
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> CliError {
        CliError::new(error.exit, error.message)
    }
}

fn exit_of(refusal: &Refusal) -> Exit {
    match refusal {
        Refusal::NoSuchName | Refusal::NoSuchInode | Refusal::NoSuchXattr => Exit::NotFound,
        Refusal::VersionMismatch { .. } => Exit::VersionMismatch,
        Refusal::LockConflict | Refusal::Deadlock => Exit::LockBusy,
        _ => Exit::Failed,
    }
}

/// Turns an IO error into one that says what was tried on which thing.
pub trait Tried<T> {
    fn tried(self, what: impl FnOnce() -> String) -> CliResult<T>;
}

impl<T, E: fmt::Display> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> CliResult<T> {
        self.map_err(|why| CliError::failed(format!("{}: {}", what(), plain(&why))))
    }
}

/// An error as people read it: without the number that `std::io::Error` appends.
pub fn plain(why: &impl fmt::Display) -> String {
    let text = why.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.chars().take(1).flat_map(char::to_lowercase).chain(text.chars().skip(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::LogIndex;

    #[test]
    fn a_failure_says_whether_anything_was_sent() {
        let not_sent = CliError::call("write", "/a", &Failure::NoMajority);
        let unknown = CliError::call("write", "/a", &Failure::Unknown);
        assert_eq!((not_sent.exit, unknown.exit), (Exit::NoMajority, Exit::NoMajority));
        assert!(not_sent.message.contains("not sent"), "{not_sent}");
        assert!(unknown.message.contains("unknown"), "{unknown}");
    }

    #[test]
    fn refusals_have_the_exit_codes_that_scripts_test_for() {
        let exit = |refusal: Refusal| CliError::call("cas", "/a", &Failure::Refused(refusal)).exit;
        assert_eq!(exit(Refusal::VersionMismatch { current: LogIndex(7) }), Exit::VersionMismatch);
        assert_eq!(exit(Refusal::NoSuchName), Exit::NotFound);
        assert_eq!(exit(Refusal::LockConflict), Exit::LockBusy);
        assert_eq!(exit(Refusal::NotEmpty), Exit::Failed);
    }

    #[test]
    fn an_io_error_is_said_in_plain_words() {
        let said = std::fs::read("/no/such/file").tried(|| "cannot read /no/such/file".into()).unwrap_err();
        assert_eq!(said.message, "cannot read /no/such/file: no such file or directory");
    }
}
