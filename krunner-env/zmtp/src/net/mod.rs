//! The sockets over TCP for tokio: [`AsyncPush`], [`AsyncPull`], [`AsyncPub`], [`AsyncSub`], each connecting (with reconnection) or bound.
//!
//! ```
//! # use zmtp::Message;
//! use std::time::Duration;
//! use zmtp::net::{AsyncPull, AsyncPush, NetConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let manager = AsyncPull::bind("127.0.0.1:0", NetConfig::default()).await?;
//! let address = manager.local_addr().unwrap().to_string();
//! let agent = AsyncPush::connect(address, NetConfig::default());
//! agent.send(Message::from(["instance_started"])).await?;
//! assert_eq!(manager.recv().await, Some(Message::from(["instance_started"])));
//! assert_eq!(agent.close(Duration::from_secs(1)).await, 0);
//! # Ok(())
//! # }
//! ```

mod dial;
mod link;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Config, Full, Message, Pub, Pull, Push, Receives, Role, Socket, Sub};

/// A PUSH socket.
pub type AsyncPush = AsyncSocket<Push>;
/// A PULL socket.
pub type AsyncPull = AsyncSocket<Pull>;
/// A PUB socket.
pub type AsyncPub = AsyncSocket<Pub>;
/// A SUB socket.
pub type AsyncSub = AsyncSocket<Sub>;

/// Settings of a socket over TCP.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Limits and sizes.
    pub socket: Config,
    /// How long to wait before the first new attempt after a connection has failed or ended. Default 100 ms.
    pub reconnect_first: Duration,
    /// The wait doubles with every failure up to this. Default 2 s.
    pub reconnect_max: Duration,
    /// How long one attempt, including the name lookup, may take. Default 10 s.
    pub connect_timeout: Duration,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            socket: Config::default(),
            reconnect_first: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a message was not taken; it is given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Wait, then send again.
    #[error("the queue of the socket is full")]
    Full(Message),
    /// [`AsyncSocket::close`] was called.
    #[error("the socket is closed")]
    Closed(Message),
}

/// How a socket is doing, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Peers whose handshake is over.
    pub ready_peers: usize,
    /// Why the last connection failed or ended; `None` if none did, or since a peer is ready again.
    pub last_error: Option<String>,
}

/// A socket over TCP. Its tasks end when it is dropped, without waiting for unsent messages: see [`close`](Self::close).
pub struct AsyncSocket<R: Role> {
    shared: Arc<Shared<R>>,
    tasks: TaskTracker,
    local_addr: Option<SocketAddr>,
}

/// What the tasks of a socket and its handle share.
struct Shared<R: Role> {
    state: Mutex<State<R>>,
    /// Wakes the tasks that read and write: there is something to write, or room to read.
    io: Notify,
    /// Wakes callers: there is room, a message, a peer, or nothing left to write.
    user: Notify,
    cancel: CancellationToken,
    config: NetConfig,
}

struct State<R> {
    core: Socket<R>,
    closing: bool,
    last_error: Option<String>,
}

impl<R: Role> Shared<R> {
    fn new(config: NetConfig) -> Arc<Self> {
        let core = Socket::new(config.socket.clone());
        Arc::new(Self {
            state: Mutex::new(State {
                core,
                closing: false,
                last_error: None,
            }),
            io: Notify::new(),
            user: Notify::new(),
            cancel: CancellationToken::new(),
            config,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `poll` has an answer, and asks it again after every change. Safe to cancel.
    async fn until<T>(&self, mut poll: impl FnMut(&mut State<R>) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.user.notified());
            changed.as_mut().enable();
            let answer = poll(&mut self.lock());
            match answer {
                Some(answer) => return answer,
                None => changed.await,
            }
        }
    }
}

impl<R: Role> AsyncSocket<R> {
    /// Connects to `host:port` (a leading `tcp://` is accepted) in the background, again and again, resolving the name each time.
    /// Returns at once; the peer need not be there yet.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(endpoint: impl Into<String>, config: NetConfig) -> Self {
        let shared = Shared::new(config);
        let tasks = TaskTracker::new();
        tasks.spawn(dial::keep_connected(shared.clone(), endpoint.into()));
        Self {
            shared,
            tasks,
            local_addr: None,
        }
    }

    /// Listens at `host:port` (a leading `tcp://` and the host `*` are accepted).
    ///
    /// # Errors
    /// The address cannot be resolved or bound.
    pub async fn bind(endpoint: &str, config: NetConfig) -> io::Result<Self> {
        let listener = dial::listen(endpoint).await?;
        let local_addr = Some(listener.local_addr()?);
        let shared = Shared::new(config);
        let tasks = TaskTracker::new();
        tasks.spawn(dial::accept(shared.clone(), listener, tasks.clone()));
        Ok(Self {
            shared,
            tasks,
            local_addr,
        })
    }

    /// The address of a bound socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// How the socket is doing.
    pub fn status(&self) -> Status {
        let state = self.shared.lock();
        Status {
            ready_peers: state.core.ready_peers(),
            last_error: state.last_error.clone(),
        }
    }

    /// Waits until at least one peer is connected and ready.
    pub async fn wait_ready(&self) {
        self.shared
            .until(|state| (state.core.ready_peers() > 0).then_some(()))
            .await;
    }

    /// Waits until everything sent has been handed to the kernel.
    pub async fn wait_drained(&self) {
        self.shared
            .until(|state| state.core.is_drained().then_some(()))
            .await;
    }

    /// Takes no more messages, waits up to `linger` until all is handed to the kernel, then closes every connection and
    /// waits for the tasks. Returns how many messages were not delivered. Calls waiting in `send` or `recv` return.
    pub async fn close(&self, linger: Duration) -> usize {
        self.shared.lock().closing = true;
        self.shared.user.notify_waiters();
        let drained = tokio::time::timeout(linger, self.wait_drained()).await;
        self.shared.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        match drained {
            Ok(()) => 0,
            Err(_late) => self.shared.lock().core.queued(),
        }
    }
}

impl AsyncSocket<Push> {
    /// Sends a message; waits while the queue is full. Safe to cancel: the message is then not sent.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    pub async fn send(&self, message: Message) -> Result<(), SendError> {
        let mut message = Some(message);
        self.shared
            .until(
                |state| match state.push(message.take()?, Socket::try_push) {
                    Err(SendError::Full(back)) => {
                        message = Some(back);
                        None
                    }
                    outcome => Some(outcome),
                },
            )
            .await?;
        self.shared.io.notify_waiters();
        Ok(())
    }

    /// Queues a message if there is room; the oldest droppable messages make room first.
    ///
    /// # Errors
    /// [`SendError`], with the message.
    pub fn try_send(&self, message: Message) -> Result<(), SendError> {
        self.shared.lock().push(message, Socket::try_push)?;
        self.shared.io.notify_waiters();
        Ok(())
    }

    /// Queues a message that may be dropped again, the oldest first, when the queue is full and another is sent: a heartbeat.
    ///
    /// # Errors
    /// [`SendError`], with the message: [`SendError::Full`] if even dropping all droppable ones does not make room.
    pub fn try_send_droppable(&self, message: Message) -> Result<(), SendError> {
        self.shared
            .lock()
            .push(message, Socket::try_push_droppable)?;
        self.shared.io.notify_waiters();
        Ok(())
    }

    /// Removes the queued messages for which `keep` says no. Those that are being written stay. `keep` must not use this socket.
    pub fn retain(&self, keep: impl FnMut(&Message) -> bool) {
        self.shared.lock().core.retain(keep);
        self.shared.user.notify_waiters();
    }

    /// How many messages are queued or not fully written.
    pub fn queued(&self) -> usize {
        self.shared.lock().core.queued()
    }

    /// Their cost in bytes ([`Message::cost`]).
    pub fn queued_bytes(&self) -> usize {
        self.shared.lock().core.queued_bytes()
    }
}

impl State<Push> {
    fn push(
        &mut self,
        message: Message,
        how: fn(&mut Socket<Push>, Message) -> Result<(), Full>,
    ) -> Result<(), SendError> {
        if self.closing {
            return Err(SendError::Closed(message));
        }
        how(&mut self.core, message).map_err(|Full(message)| SendError::Full(message))
    }
}

impl<R: Receives> AsyncSocket<R> {
    /// The next message; `None` after [`close`](Self::close), once all received ones are taken. Safe to cancel.
    pub async fn recv(&self) -> Option<Message> {
        self.shared
            .until(|state| match self.take(state) {
                None => state.closing.then_some(None),
                message => Some(message),
            })
            .await
    }

    /// The next message if one is there.
    pub fn try_recv(&self) -> Option<Message> {
        self.take(&mut self.shared.lock())
    }

    fn take(&self, state: &mut State<R>) -> Option<Message> {
        let paused = state.core.is_paused();
        let message = state.core.try_recv();
        if paused && !state.core.is_paused() {
            self.shared.io.notify_waiters();
        }
        message
    }
}

impl AsyncSocket<Pub> {
    /// Sends the message to the subscribers that want it and keep up; returns to how many. After [`close`](Self::close), to none.
    pub fn publish(&self, message: &Message) -> usize {
        let mut state = self.shared.lock();
        let sent = if state.closing {
            0
        } else {
            state.core.publish(message)
        };
        self.shared.io.notify_waiters();
        sent
    }

    /// Waits until there are at least this many subscriptions, over all peers.
    pub async fn wait_subscriptions(&self, count: usize) {
        self.shared
            .until(|state| (state.core.subscriptions() >= count).then_some(()))
            .await;
    }
}

impl AsyncSocket<Sub> {
    /// Subscribes to messages whose first frame starts with `prefix`, at the present peers and all later ones.
    pub fn subscribe(&self, prefix: &[u8]) {
        self.shared.lock().core.subscribe(prefix.to_vec());
        self.shared.io.notify_waiters();
    }

    /// Takes a subscription back.
    pub fn unsubscribe(&self, prefix: &[u8]) {
        self.shared.lock().core.unsubscribe(prefix);
        self.shared.io.notify_waiters();
    }
}

impl<R: Role> Drop for AsyncSocket<R> {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl<R: Role> fmt::Debug for AsyncSocket<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncSocket")
            .field("type", &R::TYPE)
            .field("local_addr", &self.local_addr)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
