//! Why a replica ends by itself, told once and first.
//!
//! openraft passes errors on as text. What the operator is to be told, and the exit code, come from the error itself, so
//! whoever meets a storage error on its way into openraft tells it here.

use crate::log::StorageError;
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// Why a replica has ended.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The disk failed, or what is on it is damaged and no good copy could be had.
    Storage(Arc<StorageError>),
    /// Its state is not the one that a majority has.
    Diverged(String),
    /// Raft itself: a panic, a rule that was broken, an entry that cannot be decoded.
    Raft(String),
}

impl Ending {
    /// As an error that keeps the storage error in its chain.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Ending::Storage(error) => error.again().into(),
            other => anyhow::anyhow!("{other}"),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Storage(error) => error.fmt(f),
            Ending::Diverged(why) | Ending::Raft(why) => f.write_str(why),
        }
    }
}

/// Where an ending is told; the first one counts.
#[derive(Clone, Default)]
pub struct Endings {
    sender: watch::Sender<Option<Ending>>,
}

impl Endings {
    pub fn tell(&self, ending: Ending) {
        self.sender.send_if_modified(|before| before.is_none() && before.replace(ending).is_none());
    }

    /// Pass a result on; if it is a storage error, everything ends with it.
    pub fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Some(error) = result.as_ref().err().and_then(storage_error) {
            self.tell(Ending::Storage(Arc::new(error.again())));
        }
        result
    }

    pub fn first(&self) -> Option<Ending> {
        self.sender.borrow().clone()
    }

    pub fn is_told(&self) -> bool {
        self.sender.borrow().is_some()
    }

    pub async fn wait(&self) -> Ending {
        let mut told = self.sender.subscribe();
        match told.wait_for(Option::is_some).await.map(|ending| ending.clone()) {
            Ok(Some(ending)) => ending,
            _ => std::future::pending().await,
        }
    }
}

/// The storage error that this was made of.
pub fn storage_error(error: &io::Error) -> Option<&StorageError> {
    error.get_ref()?.downcast_ref()
}
