//! One peer's pipelined AppendEntries on their way into Raft, in order.
//!
//! A leader sends the next request before the last is answered. If two of them overtook each other here, the later one
//! would be answered with a conflict at a place that the leader then learns to match: to openraft, a follower that has lost
//! its log. So they pass through one queue into `Raft::stream_append`, which keeps their order.
//!
//! A conflict or a higher vote ends a session; what was queued behind it is refused, since the leader gives it up as well.

use super::Machine;
use super::messages::{self, AppendAnswer};
use super::types::Types;
use crate::net::Message;
use futures_util::{StreamExt, stream};
use openraft::Raft;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use std::collections::VecDeque;
use std::pin::pin;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait to be handed to Raft. A peer keeps far fewer in flight.
const QUEUED_MAX: usize = 256;
/// Requests that Raft works on; as many as `Raft::stream_append` takes.
const PIPELINED_MAX: usize = 64;

struct Queued {
    request: AppendEntriesRequest<Types>,
    reply: oneshot::Sender<Message>,
}

/// The way of one peer's requests into Raft. Ends when it is dropped.
pub struct Lane {
    queue: mpsc::Sender<Queued>,
}

impl Lane {
    pub fn new(raft: Raft<Types, Machine>) -> Lane {
        let (queue, queued) = mpsc::channel(QUEUED_MAX);
        tokio::spawn(run(raft, queued));
        Lane { queue }
    }

    /// Take the place behind the last request now; the answer comes later.
    pub fn submit(&self, request: AppendEntriesRequest<Types>) -> impl Future<Output = Message> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let queued = self.queue.try_send(Queued { request, reply });
        async move {
            match queued {
                Ok(()) => answer.await.unwrap_or_else(|_| Message::refused("an entry before these was not accepted")),
                Err(e) => Message::refused(e.to_string()),
            }
        }
    }
}

async fn run(raft: Raft<Types, Machine>, mut queue: mpsc::Receiver<Queued>) {
    while let Some(first) = queue.recv().await {
        session(&raft, first, &mut queue).await;
    }
}

/// Feed Raft and pass its answers on, until one of them ends the session.
async fn session(raft: &Raft<Types, Machine>, first: Queued, queue: &mut mpsc::Receiver<Queued>) {
    let (feed, mut fed) = mpsc::channel(PIPELINED_MAX);
    let mut answers = pin!(raft.stream_append(stream::poll_fn(move |context| fed.poll_recv(context))));
    let mut replies = VecDeque::new();
    let mut next = Some(first);
    loop {
        if let Some(Queued { request, reply }) = next.take() {
            replies.push_back(reply);
            if feed.send(request).await.is_err() {
                return;
            }
        }
        tokio::select! {
            queued = queue.recv(), if replies.len() < PIPELINED_MAX => match queued {
                Some(queued) => next = Some(queued),
                None => return,
            },
            answer = answers.next(), if !replies.is_empty() => {
                let Some(answer) = answer else { return };
                let goes_on = matches!(answer, Ok(Ok(_)));
                let message = answer.map_or_else(
                    |fatal| Message::refused(fatal.to_string()),
                    |result| messages::appended(AppendAnswer::from(AppendEntriesResponse::from(result))),
                );
                // The peer may have gone.
                let _ = replies.pop_front().map(|reply: oneshot::Sender<Message>| reply.send(message));
                if !goes_on {
                    return;
                }
            }
        }
    }
}
