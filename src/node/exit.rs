//! What a process of keelfs says with its exit code, and the error that carries one.

use crate::log::StorageError;
use std::fmt;

/// Exit codes, for scripts and supervisors. 73 to 75 are not cured by a restart alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// The version is another one than was demanded.
    VersionMismatch = 3,
    NotFound = 4,
    /// No majority, or no answer in time.
    NoMajority = 5,
    LockBusy = 6,
    /// Another process uses the data directory.
    InUse = 73,
    /// The disk failed.
    StorageFailed = 74,
    /// Acknowledged data is damaged, or replicas diverged.
    Damaged = 75,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> std::process::ExitCode {
        std::process::ExitCode::from(exit as u8)
    }
}

/// Why a node did not start or could not go on: one sentence for people, one code for the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeError {
    pub exit: Exit,
    pub message: String,
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NodeError {}

impl NodeError {
    pub fn new(exit: Exit, message: impl Into<String>) -> NodeError {
        NodeError { exit, message: message.into() }
    }

    /// Exit 1.
    pub fn failed(message: impl Into<String>) -> NodeError {
        NodeError::new(Exit::Failed, message)
    }
}

impl From<&StorageError> for NodeError {
    fn from(error: &StorageError) -> NodeError {
        let exit = match error {
            StorageError::Io { .. } => Exit::StorageFailed,
            StorageError::Damaged { .. } | StorageError::NoBody { .. } => Exit::Damaged,
            StorageError::Format { .. } => Exit::Failed,
            StorageError::InUse { .. } => Exit::InUse,
        };
        NodeError::new(exit, format!("{error}{}", advice(error)))
    }
}

/// What to do about it, where the error itself does not say so.
fn advice(error: &StorageError) -> &'static str {
    match error {
        StorageError::Io { .. } if error.is_full() => {
            "; the disk is full, and so is what was kept in reserve. Nothing that was acknowledged is lost: make room on that \
             file system, then start the node again"
        }
        StorageError::Io { .. } => {
            "; what was being written was not acknowledged, all else is kept. Look at the disk (dmesg, smartctl): if it is \
             sound start the node again, else replace the node with a new one"
        }
        StorageError::InUse { .. } => "; stop that process, or name another data directory",
        StorageError::Format { .. } => "; start it with a build that reads this format",
        StorageError::Damaged { .. } | StorageError::NoBody { .. } => {
            ". This node must not go on with it: replace it by a new one (keelfs member replace), which fetches its data from \
             the others; keep the directory until that has worked"
        }
    }
}

impl From<StorageError> for NodeError {
    fn from(error: StorageError) -> NodeError {
        NodeError::from(&error)
    }
}
