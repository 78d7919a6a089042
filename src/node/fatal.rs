//! What ends a node from within: its disk, its Raft, the end of a task that it cannot do without.
//!
//! The first reason wins. After a failed write nothing more may be acknowledged, and the process is to be gone within a
//! second, even if something in it hangs: a thread of its own sees to that.

use super::exit::{Exit, NodeError};
use super::fence;
use crate::log::Log;
use crate::raft::{Ending, Replica};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a dying node may take to unmount and to say why.
const LAST_WORDS: Duration = Duration::from_millis(800);

/// How long the log's reason may come after Raft's.
const LOG_FIRST: Duration = Duration::from_millis(50);

/// The reason why this node must end, once there is one.
#[derive(Clone)]
pub(super) struct Fatal {
    reason: watch::Sender<Option<NodeError>>,
}

impl Fatal {
    pub(super) fn new() -> Fatal {
        Fatal { reason: watch::Sender::new(None) }
    }

    /// Learn of failed writes, as soon as the log is open.
    pub(super) fn watch_log(&self, log: &Log) {
        let fatal = self.clone();
        log.on_failure(Box::new(move |error| fatal.report(NodeError::from(&*error))));
    }

    /// Learn of the end of Raft.
    pub(super) fn watch_replica(&self, replica: Replica, data: PathBuf) {
        let fatal = self.clone();
        tokio::spawn(async move {
            let ending = replica.failed().await;
            // A failed log takes Raft down with it: then the log's reason is the true one, and it is on its way.
            tokio::time::sleep(LOG_FIRST).await;
            fatal.report(match ending {
                Ending::Storage(error) => NodeError::from(&*error),
                Ending::Diverged(why) => {
                    fence::mark(&data, &why);
                    NodeError::new(Exit::Damaged, fence::barred(&data, &why))
                }
                Ending::Raft(why) => NodeError::failed(format!("raft has ended: {why}")),
            });
        });
    }

    /// Run this to its end; if that comes before `stop` is cancelled, or by a panic, the node must end.
    pub(super) async fn unless_stopped(self, what: &str, stop: CancellationToken, task: impl Future<Output = ()>) {
        let panicked = AssertUnwindSafe(task).catch_unwind().await.is_err();
        if !stop.is_cancelled() {
            let how = if panicked { "panicked" } else { "ended by itself" };
            self.report(NodeError::failed(format!("{what} has {how}")));
        }
    }

    pub(super) fn report(&self, error: NodeError) {
        self.reason.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert(error);
            first
        });
    }

    /// Wait for a reason.
    pub(super) async fn reason(&self) -> NodeError {
        let mut reason = self.reason.subscribe();
        let reason = reason.wait_for(Option::is_some).await.map(|reason| reason.clone());
        match reason {
            Ok(Some(error)) => error,
            _ => std::future::pending().await,
        }
    }
}

/// End the process in a moment, whatever else it is doing.
pub(super) fn end_soon(exit: Exit) {
    std::thread::spawn(move || {
        std::thread::sleep(LAST_WORDS);
        std::process::exit(exit as i32);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_is_the_one_that_is_told() {
        let fatal = Fatal::new();
        fatal.report(NodeError::new(Exit::Damaged, "rot"));
        fatal.report(NodeError::new(Exit::StorageFailed, "raft has ended"));
        assert_eq!(fatal.reason().await.exit, Exit::Damaged);
    }

    #[tokio::test]
    async fn a_task_that_ends_before_it_is_stopped_ends_the_node() {
        let run = async |stop: CancellationToken, task: futures_util::future::BoxFuture<'static, ()>| {
            let fatal = Fatal::new();
            tokio::spawn(fatal.clone().unless_stopped("upkeep", stop, task)).await.ok();
            fatal.reason.borrow().clone().map(|error| error.message)
        };
        let stopped = CancellationToken::new();
        stopped.cancel();
        let panics = || async { panic!("as planned") }.boxed();
        assert_eq!(run(CancellationToken::new(), panics()).await.as_deref(), Some("upkeep has panicked"));
        let ends = run(CancellationToken::new(), async {}.boxed()).await;
        assert_eq!(ends.as_deref(), Some("upkeep has ended by itself"));
        assert_eq!(run(stopped, async {}.boxed()).await, None);
    }
}
