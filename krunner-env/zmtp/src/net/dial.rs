//! Makes and accepts connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio_util::task::TaskTracker;

use super::Shared;
use super::link::{self, End};
use crate::Role;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// How long to rest when accepting fails, which mostly means that file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Keeps the socket connected until it is closed.
pub(super) async fn keep_connected<R: Role>(shared: Arc<Shared<R>>, endpoint: String) {
    let config = &shared.config;
    let mut delay = config.reconnect_first;
    loop {
        let attempt = tokio::time::timeout(config.connect_timeout, dial(&endpoint));
        let attempt = tokio::select! {
            () = shared.cancel.cancelled() => return,
            attempt = attempt => attempt.unwrap_or_else(|late| Err(late.into())),
        };
        match attempt {
            Ok(stream) => match link::serve(&shared, stream).await {
                End::Cancelled => return,
                End::WasReady => delay = config.reconnect_first,
                End::NeverReady => {}
            },
            Err(error) => {
                shared.lock().last_error = Some(format!("cannot connect to {endpoint}: {error}"));
            }
        }
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(config.reconnect_max.max(config.reconnect_first));
    }
}

/// Accepts connections until the socket is closed; each is served by a task of its own.
pub(super) async fn accept<R: Role>(
    shared: Arc<Shared<R>>,
    listener: TcpListener,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tasks.spawn(async move {
                    // Without it, small messages only come later: no reason to refuse the peer.
                    let _slower = stream.set_nodelay(true);
                    link::serve(&shared, stream).await;
                });
            }
            Err(error) => {
                shared.lock().last_error = Some(format!("cannot accept connections: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connects to the first address of the name that answers.
async fn dial(endpoint: &str) -> io::Result<TcpStream> {
    let mut failure = None;
    for address in resolve(endpoint).await? {
        match tcp_socket(address)?.connect(address).await {
            // Without a listener, TCP can connect a local port with itself.
            Ok(stream) if stream.local_addr()? == address => {
                failure = Some(io::ErrorKind::ConnectionRefused.into())
            }
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(no_address))
}

/// Listens at the first address of the name that can be bound.
pub(super) async fn listen(endpoint: &str) -> io::Result<TcpListener> {
    let mut failure = None;
    for address in resolve(endpoint).await? {
        let socket = tcp_socket(address)?;
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(no_address))
}

/// A TCP socket that notices dead hosts; accepted streams inherit it from their listener.
fn tcp_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_keepalive(true)?;
    Ok(socket)
}

async fn resolve(endpoint: &str) -> io::Result<Vec<SocketAddr>> {
    let address = endpoint.strip_prefix("tcp://").unwrap_or(endpoint);
    let address = match address.strip_prefix("*:") {
        Some(port) => format!("0.0.0.0:{port}"),
        None => address.to_owned(),
    };
    Ok(lookup_host(address).await?.collect())
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}
