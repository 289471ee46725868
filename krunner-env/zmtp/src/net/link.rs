//! Moves bytes between one TCP stream and the socket until either ends.

use std::io;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Shared;
use crate::{PeerId, Role};

/// Bytes read at once.
const READ: usize = 64 << 10;
/// Bytes written before other tasks get their turn.
const TURN: usize = 1 << 20;

/// How a connection went.
pub(super) enum End {
    /// The socket is being closed.
    Cancelled,
    /// The handshake was over before it ended.
    WasReady,
    /// It ended in the handshake.
    NeverReady,
}

/// The connection's place in the socket; gives it back however the task ends.
struct Seat<'a, R: Role> {
    shared: &'a Shared<R>,
    peer: PeerId,
}

impl<R: Role> Drop for Seat<'_, R> {
    fn drop(&mut self) {
        self.shared.lock().core.closed(self.peer);
        // A PUSH has its unsent messages back, for another connection to write.
        self.shared.io.notify_waiters();
        self.shared.user.notify_waiters();
    }
}

/// What the stream is to be watched for.
struct Wish {
    read: bool,
    write: bool,
    again: bool,
    deadline: Option<Instant>,
}

/// Serves the stream until it ends.
pub(super) async fn serve<R: Role>(shared: &Shared<R>, mut stream: TcpStream) -> End {
    let seat = Seat {
        shared,
        peer: shared.lock().core.open(Instant::now()),
    };
    let mut was_ready = false;
    let error = match seat.pump(&stream, &mut was_ready).await {
        Ok(true) => {
            // FIN behind the last byte; failing means that the peer is gone, which is just as well.
            let _gone = stream.shutdown().await;
            return End::Cancelled;
        }
        Ok(false) => None,
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = error {
        shared.lock().last_error = Some(error);
    }
    if was_ready {
        End::WasReady
    } else {
        End::NeverReady
    }
}

impl<R: Role> Seat<'_, R> {
    /// Reads and writes; true when cancelled, false when the socket gave the connection up (and said why).
    async fn pump(&self, stream: &TcpStream, was_ready: &mut bool) -> io::Result<bool> {
        let mut buffer = vec![0; READ];
        loop {
            let mut changed = std::pin::pin!(self.shared.io.notified());
            changed.as_mut().enable();
            // Reading first shows the peer's end before more is written to it, where it would be lost.
            self.read(stream, &mut buffer)?;
            let Some(wish) = self.write(stream, was_ready)? else {
                return Ok(false);
            };
            if wish.again {
                tokio::task::yield_now().await;
            }
            tokio::select! {
                () = self.shared.cancel.cancelled() => return Ok(true),
                () = changed => {}
                () = std::future::ready(()), if wish.again => {}
                ready = stream.readable(), if wish.read => ready?,
                ready = stream.writable(), if wish.write => ready?,
                () = sleep_until(wish.deadline), if wish.deadline.is_some() => self.expire(),
            }
        }
    }

    /// Writes what the kernel takes; `None` if the socket has given the connection up.
    fn write(&self, stream: &TcpStream, was_ready: &mut bool) -> io::Result<Option<Wish>> {
        let mut state = self.shared.lock();
        if !state.core.is_open(self.peer) {
            return Ok(None);
        }
        if !*was_ready && state.core.is_ready(self.peer) {
            *was_ready = true;
            state.last_error = None;
        }
        let mut wish = Wish {
            read: state.core.wants_read(self.peer),
            write: false,
            again: false,
            deadline: None,
        };
        let mut total = 0;
        loop {
            let output = state.core.output(self.peer);
            if output.is_empty() {
                break;
            }
            match stream.try_write(output) {
                Ok(count) => {
                    state.core.written(self.peer, count);
                    total += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wish.write = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if total >= TURN {
                wish.again = true;
                break;
            }
        }
        wish.deadline = state.core.next_deadline();
        drop(state);
        if total > 0 {
            self.shared.user.notify_waiters();
        }
        Ok(Some(wish))
    }

    /// Reads once, if the socket wants it and the kernel has something.
    fn read(&self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<()> {
        if !self.shared.lock().core.wants_read(self.peer) {
            return Ok(());
        }
        let count = match stream.try_read(buffer) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection",
                ));
            }
            Ok(count) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.shared.lock().core.receive(self.peer, &buffer[..count]);
        self.settle();
        Ok(())
    }

    fn expire(&self) {
        self.shared.lock().core.expire(Instant::now());
        self.settle();
    }

    /// Makes known what a change of the socket's state brought.
    fn settle(&self) {
        let mut state = self.shared.lock();
        let mut others = false;
        while let Some((peer, reason)) = state.core.next_closed() {
            others |= peer != self.peer;
            state.last_error = Some(reason.to_string());
        }
        drop(state);
        if others {
            self.shared.io.notify_waiters();
        }
        self.shared.user.notify_waiters();
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
