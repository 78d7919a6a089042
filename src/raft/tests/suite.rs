//! openraft's own suite over our storage.

use super::super::ending::Endings;
use super::super::machine::Machine;
use super::super::store::Store;
use super::super::types::{Entry, LogId, Types, Vote};
use crate::log::Log;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use std::io;
use tempfile::TempDir;

/// Our store, but for a liberty that the suite takes: it begins logs at entry 1, which openraft never does.
struct SuiteStore {
    log: Log,
    store: Store,
}

impl RaftLogStorage<Types> for SuiteStore {
    type LogReader = Store;

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let (Some(first), None) = (entries.first(), self.log.state().last) {
            self.log.begin_at(first.log_id.index);
        }
        self.store.append(entries, callback).await
    }

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        self.store.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Store {
        self.store.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.store.read_committed().await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.store.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.store.purge(upto).await
    }
}

struct Builder;

impl StoreBuilder<Types, SuiteStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, SuiteStore, Machine), StorageError<Types>> {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path()).unwrap();
        let machine = Machine::load(log.clone(), Endings::default()).await.unwrap();
        Ok((directory, SuiteStore { store: Store::new(log.clone(), None, Endings::default()), log }, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_own_suite() {
    Suite::test_all(Builder).await.unwrap();
}
