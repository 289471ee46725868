//! The RPC server: every call is a task of its own and answers go out as they come; only what needs no node is
//! answered inline.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rmpv::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call::{self, Decoded};
use super::frame::{self, BadCall};
use super::reply::{self, Shape};
use super::wire_error::WireError;
use crate::agent::request::Request;
use crate::manager::Node;
use crate::manager::router::{Incoming, Limits, ReplySender, Router};
use crate::metrics::RpcCounts;

/// What the manager may send. A message of 64 MiB passes with its frames' headers.
pub const LIMITS: Limits = Limits {
    frame: 80 << 20,
    message: 96 << 20,
    peers: 256,
    unsent: 256 << 20,
};
/// Calls at once. Further ones are refused: some calls wait without limit, so waiting for them could be for ever.
const CALLS: usize = 4096;
/// KiB of arguments of all calls at once.
const ARGUMENTS_KIB: usize = 512 << 10;
/// How long answers are still sent at the end (19.03: 200 ms).
const LINGER: Duration = Duration::from_millis(200);

/// Answers the manager's calls.
#[derive(Clone)]
pub struct Server {
    node: Arc<dyn Node>,
    counts: Arc<RpcCounts>,
    prefix: [u8; 4],
    calls: Arc<Semaphore>,
    arguments: Arc<Semaphore>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// Held while a call is worked on.
type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Server {
    /// A server for the node's calls; `counts` learns of each.
    pub fn new(node: Arc<dyn Node>, counts: Arc<RpcCounts>) -> Self {
        let [a, b, ..] = std::process::id().to_ne_bytes();
        let [c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
        Self {
            node,
            counts,
            prefix: [a, b, c, d],
            calls: Arc::new(Semaphore::new(CALLS)),
            arguments: Arc::new(Semaphore::new(ARGUMENTS_KIB)),
        }
    }

    /// Serves until `stop`; then running calls are dropped without an answer.
    pub async fn run(self, mut router: Router, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let incoming = tokio::select! {
                () = stop.cancelled() => break,
                incoming = router.recv() => incoming,
            };
            let Some(incoming) = incoming else { break };
            if let Err(error) = self.take(incoming, &tasks, &stop) {
                self.counts.undecodable();
                tracing::error!(%error, "cannot unpack a message");
            }
        }
        tasks.close();
        tasks.wait().await;
        router.close(LINGER).await;
    }

    fn take(
        &self,
        incoming: Incoming,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), BadCall> {
        let size: usize = incoming.frames.iter().map(Bytes::len).sum();
        let call = frame::Call::parse(incoming.frames)?;
        let decoded = call::decode(&call)?;
        let reply = ReplyTo {
            leading: call.leading,
            id: call.id,
            prefix: self.prefix,
            sender: incoming.sender,
        };
        match decoded {
            Decoded::Answer(answer) => {
                self.counts.answered(&call.method, answer.is_err());
                reply.send(&answer);
            }
            Decoded::Ask(request, shape) => match self.room(size) {
                Some(room) => {
                    let ask = self.clone().ask(request, shape, call.method, reply, room);
                    let stop = stop.clone();
                    tasks.spawn(async move { stop.run_until_cancelled(ask).await });
                }
                None => {
                    self.counts.answered(&call.method, true);
                    let text = "the agent has too many calls to work on; try again later";
                    reply.send(&Err(WireError::one("builtins.RuntimeError", text)));
                }
            },
        }
        Ok(())
    }

    fn room(&self, size: usize) -> Option<Room> {
        let kib = u32::try_from(size / 1024 + 1).ok()?;
        let call = self.calls.clone().try_acquire_owned().ok()?;
        let arguments = self.arguments.clone().try_acquire_many_owned(kib).ok()?;
        Some((call, arguments))
    }

    async fn ask(self, request: Request, shape: Shape, method: String, reply: ReplyTo, room: Room) {
        let in_execute = matches!(request, Request::Execute(_));
        let answer = match self.node.handle(request).await {
            Ok(answer) => reply::encode(answer, shape).ok_or_else(WireError::cancelled),
            Err(error) => {
                tracing::warn!(method, %error, "a call failed");
                Err(WireError::from_agent(&error, in_execute))
            }
        };
        self.counts.answered(&method, answer.is_err());
        reply.send(&answer);
        drop(room);
    }
}

/// Where an answer goes.
struct ReplyTo {
    leading: Vec<Bytes>,
    id: u32,
    prefix: [u8; 4],
    sender: ReplySender,
}

impl ReplyTo {
    fn send(self, answer: &Result<Value, WireError>) {
        let (failed, value) = match answer {
            Ok(value) => (false, value),
            Err(error) => (true, &error.to_value()),
        };
        let mut body = Vec::new();
        rmpv::encode::write_value(&mut body, value).expect("a Vec takes all");
        let mut frames = self.leading;
        frames.push(frame::answer_header(self.prefix, self.id, now(), failed));
        frames.push(body.into());
        if !self.sender.send(frames) {
            tracing::debug!(id = self.id, "the caller has gone; its answer is dropped");
        }
    }
}

/// Unix time in seconds.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
