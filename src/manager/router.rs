//! A ZeroMQ ROUTER: takes messages of any number of DEALER and REQ peers over TCP or a Unix socket, and gives each
//! message the way back to its sender. Front-ends know it as [`Incoming`] alone, so that another socket (CURVE) can
//! take its place.
//!
//! The `zeromq` crate's ROUTER is not used: it reserves as much memory as a peer announces for a frame, and a peer that
//! announces 2^62 bytes ends the process. Here every peer is bounded in what it may send and in what may wait for it.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zmtp::{Config, Connection, Event, Message, SocketType};

/// Bytes read at once.
const READ: usize = 64 << 10;
/// Encoded bytes that wait for the socket before further answers are encoded.
const BATCH: usize = 256 << 10;
/// Messages that wait for the server; above it nothing is read from the peers.
const WAITING: usize = 256;

/// What peers may do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one frame.
    pub frame: usize,
    /// Bytes of one message.
    pub message: usize,
    /// Connections at once; further ones are closed at once.
    pub peers: usize,
    /// Bytes of answers that may wait for one peer; a peer that lets more pile up is cut.
    pub unsent: usize,
}

/// A message and the way back to its sender.
#[derive(Debug)]
pub struct Incoming {
    /// The frames, without the peer's identity.
    pub frames: Vec<Bytes>,
    /// Takes the answer.
    pub sender: ReplySender,
}

/// The way back to a peer.
#[derive(Clone, Debug)]
pub struct ReplySender(Arc<Outbox>);

impl ReplySender {
    /// Queues an answer and returns at once. False when the peer has gone, or was cut because it does not read.
    pub fn send(&self, frames: Vec<Bytes>) -> bool {
        let message = Message::new(frames);
        let size = message.cost();
        let mut queue = self.0.lock();
        if queue.closed {
            return false;
        }
        let waiting = queue.size + queue.encoded;
        if waiting > 0 && waiting + size > self.0.limit {
            queue.closed = true;
            queue.messages.clear();
            queue.size = 0;
        } else {
            queue.size += size;
            queue.messages.push_back(message);
        }
        let open = !queue.closed;
        drop(queue);
        self.0.changed.notify_one();
        open
    }
}

/// Answers that wait for one peer.
#[derive(Debug)]
struct Outbox {
    queue: Mutex<Queue>,
    changed: Notify,
    limit: usize,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    /// Of the messages here.
    size: usize,
    /// Of those that are encoded and not written.
    encoded: usize,
    closed: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bound ROUTER. Dropping it closes every connection.
#[derive(Debug)]
pub struct Router {
    incoming: mpsc::Receiver<Incoming>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Router {
    /// Serves peers that connect to the TCP listener.
    pub fn tcp(listener: TcpListener, limits: Limits) -> Self {
        Self::start(limits, Listener::Tcp(listener))
    }

    /// Serves peers that connect to the socket file, which every user may do. A file of that name from an earlier life
    /// is replaced.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn unix(path: &Path, limits: Limits) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self::start(limits, Listener::Unix(listener)))
    }

    fn start(limits: Limits, listener: Listener) -> Self {
        let (sender, incoming) = mpsc::channel(WAITING);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let peers = Peers {
            seats: Arc::new(Semaphore::new(limits.peers)),
            limits,
            incoming: sender,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(peers.accept(listener));
        Self {
            incoming,
            stop,
            tasks,
        }
    }

    /// The next message of any peer. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Stops listening, sends what waits for at most `linger`, and closes every connection.
    pub async fn close(mut self, linger: Duration) {
        self.stop.cancel();
        self.incoming.close();
        self.tasks.close();
        // Peers that do not read are left behind; dropping the tracker's owner does not wait for them.
        let _late = tokio::time::timeout(linger, self.tasks.wait()).await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A connection of either kind.
type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Peers {
    limits: Limits,
    seats: Arc<Semaphore>,
    incoming: mpsc::Sender<Incoming>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Peers {
    async fn accept(self, listener: Listener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let Ok(seat) = self.seats.clone().try_acquire_owned() else {
                        tracing::warn!(limit = self.limits.peers, "too many connections");
                        continue;
                    };
                    self.tasks.spawn(self.clone().serve(stream, seat));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(self, stream: Stream, _seat: OwnedSemaphorePermit) {
        let config = Config {
            limits: zmtp::Limits {
                frame: self.limits.frame,
                message: self.limits.message,
                ..zmtp::Limits::default()
            },
            ..Config::default()
        };
        let outbox = Arc::new(Outbox {
            queue: Mutex::default(),
            changed: Notify::new(),
            limit: self.limits.unsent,
        });
        let mut peer = Peer {
            connection: Connection::new(SocketType::Router, &config, Instant::now()),
            received: VecDeque::new(),
            outbox: outbox.clone(),
        };
        if let Err(error) = peer.pump(stream, &self).await {
            tracing::debug!(%error, "a peer is gone");
        }
        outbox.lock().closed = true;
    }
}

/// One connection.
struct Peer {
    connection: Connection,
    received: VecDeque<Vec<Bytes>>,
    outbox: Arc<Outbox>,
}

impl Peer {
    async fn pump(&mut self, stream: Stream, peers: &Peers) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut buffer = vec![0; READ];
        loop {
            self.fill()?;
            let deadline = self.connection.handshake_deadline();
            let stopping = peers.stop.is_cancelled();
            let idle = self.received.is_empty();
            let output = self.connection.output();
            let unsent = !output.is_empty();
            if stopping && !unsent {
                return writer.shutdown().await;
            }
            tokio::select! {
                () = peers.stop.cancelled(), if !stopping => {}
                count = writer.write(output), if unsent => {
                    let count = count?;
                    if count == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    self.connection.written(count);
                }
                () = self.outbox.changed.notified() => {}
                permit = peers.incoming.reserve(), if !idle => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(frames) = self.received.pop_front() {
                        permit.send(Incoming { frames, sender: ReplySender(self.outbox.clone()) });
                    }
                }
                count = reader.read(&mut buffer), if idle && !stopping => {
                    let count = count?;
                    if count == 0 {
                        return Ok(());
                    }
                    self.receive(&buffer[..count])?;
                    self.hand_over(peers);
                }
                () = until(deadline), if deadline.is_some() => {
                    self.connection.check_handshake(Instant::now()).map_err(io::Error::other)?;
                }
            }
        }
    }

    fn receive(&mut self, data: &[u8]) -> io::Result<()> {
        self.connection.receive(data);
        while let Some(event) = self.connection.next_event().map_err(io::Error::other)? {
            if let Event::Message(message) = event {
                self.received.push_back(message.into_frames());
            }
        }
        Ok(())
    }

    /// Gives the server what it takes without waiting.
    fn hand_over(&mut self, peers: &Peers) {
        while let Ok(permit) = peers.incoming.try_reserve() {
            let Some(frames) = self.received.pop_front() else {
                return;
            };
            permit.send(Incoming {
                frames,
                sender: ReplySender(self.outbox.clone()),
            });
        }
    }

    /// Encodes answers that wait.
    fn fill(&mut self) -> io::Result<()> {
        let mut queue = self.outbox.lock();
        if queue.closed {
            return Err(io::Error::other("the peer does not read its answers"));
        }
        while self.connection.is_ready() && self.connection.pending() < BATCH {
            let Some(message) = queue.messages.pop_front() else {
                break;
            };
            queue.size -= message.cost();
            self.connection.send(&message);
        }
        queue.encoded = self.connection.pending();
        Ok(())
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
