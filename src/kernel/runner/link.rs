//! The way to a runner: two one-way sockets, as traits so that a kernel's life can be tested without any.

use std::fmt;
use std::io;

use async_trait::async_trait;
use zmtp::Message;

/// Where a runner is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Host port of the runner's command socket.
    pub ops: u16,
    /// Host port of the runner's output socket.
    pub records: u16,
}

/// Makes connections to runners.
#[async_trait]
pub trait Connect: Send + Sync + fmt::Debug {
    /// Connects, now or as soon as the runner is there; both halves reconnect by themselves.
    ///
    /// # Errors
    /// When no socket can be made at all; a runner that is not there yet is not an error.
    async fn connect(&self, endpoint: &Endpoint) -> io::Result<Link>;
}

/// Both halves of a connection.
#[derive(Debug)]
pub struct Link {
    /// Takes commands.
    pub ops: Box<dyn OpSink>,
    /// Gives output.
    pub records: Box<dyn RecordSource>,
}

/// The half that takes commands.
#[async_trait]
pub trait OpSink: Send + Sync + fmt::Debug {
    /// Queues a message, waiting for room. Cancelling it sends either all of the message or nothing.
    ///
    /// # Errors
    /// When the socket is closed.
    async fn send(&self, message: Message) -> io::Result<()>;
}

/// The half that gives output.
#[async_trait]
pub trait RecordSource: Send + Sync + fmt::Debug {
    /// The next message, or `None` when the socket is closed. Cancel-safe.
    async fn receive(&mut self) -> Option<Message>;
}
