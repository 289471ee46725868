//! A bound ZeroMQ socket in the event loop: a TCP listener, its connections, and the protocol of the `zmtp` crate.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use zmtp::{Config, PeerId, Role, Socket};

use crate::sys::epoll::{Epoll, Interest};
use crate::sys::fd;
use crate::token::Token;

/// More connections than agents could ever make; further ones are closed.
const MOST_PEERS: usize = 64;

/// The socket and its connections.
#[derive(Debug)]
pub(crate) struct Link<R: Role> {
    /// The protocol: queue here, receive here.
    pub(crate) socket: Socket<R>,
    listener: TcpListener,
    peers: BTreeMap<u32, Peer>,
    opened: u32,
    token: fn(u32) -> Token,
}

#[derive(Debug)]
struct Peer {
    id: PeerId,
    stream: TcpStream,
    interest: Interest,
}

impl<R: Role> Link<R> {
    /// Binds and listens; the connections get tokens made by `token`.
    pub(crate) fn bind(
        address: Ipv4Addr,
        port: u16,
        config: Config,
        token: fn(u32) -> Token,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from((address, port)))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: Socket::new(config),
            listener,
            peers: BTreeMap::new(),
            opened: 0,
            token,
        })
    }

    /// Watches the listener.
    pub(crate) fn watch(&self, epoll: &Epoll, token: Token) -> io::Result<()> {
        epoll.add(self.listener.as_fd(), token.into(), Interest::READ)
    }

    /// The bound port.
    pub(crate) fn port(&self) -> io::Result<u16> {
        self.listener.local_addr().map(|address| address.port())
    }

    /// Takes the connections that wait.
    pub(crate) fn accept(&mut self, epoll: &Epoll) {
        while let Ok((stream, _)) = self.listener.accept() {
            let key = self.opened;
            let ready = stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true));
            let full = self.peers.len() >= MOST_PEERS;
            if full
                || ready
                    .and_then(|()| {
                        epoll.add(stream.as_fd(), (self.token)(key).into(), Interest::READ)
                    })
                    .is_err()
            {
                continue;
            }
            self.opened = self.opened.wrapping_add(1);
            let id = self.socket.open(Instant::now());
            self.peers.insert(
                key,
                Peer {
                    id,
                    stream,
                    interest: Interest::READ,
                },
            );
        }
    }

    /// Reads from a connection on which something happened.
    pub(crate) fn read(&mut self, key: u32, buffer: &mut [u8]) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        if !self.socket.wants_read(peer.id) {
            return;
        }
        match fd::read(peer.stream.as_fd(), buffer) {
            Ok(Some(0)) | Err(_) => {
                self.socket.closed(peer.id);
                self.peers.remove(&key);
            }
            Ok(Some(count)) => self.socket.receive(peer.id, &buffer[..count]),
            Ok(None) => {}
        }
    }

    /// Writes what can be written, closes what the socket has given up, and asks epoll for what is wanted next.
    pub(crate) fn pump(&mut self, epoll: &Epoll) {
        if self
            .socket
            .next_deadline()
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            self.socket.expire(Instant::now());
        }
        let keys: Vec<u32> = self.peers.keys().copied().collect();
        for key in keys {
            self.pump_peer(key, epoll);
        }
        while let Some((gone, _reason)) = self.socket.next_closed() {
            self.peers.retain(|_, peer| peer.id != gone);
        }
    }

    fn pump_peer(&mut self, key: u32, epoll: &Epoll) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let mut blocked = false;
        let written = loop {
            let output = self.socket.output(peer.id);
            if output.is_empty() {
                break Ok(());
            }
            match fd::write(peer.stream.as_fd(), output) {
                Ok(Some(count)) => self.socket.written(peer.id, count),
                Ok(None) => {
                    blocked = true;
                    break Ok(());
                }
                Err(error) => break Err(error),
            }
        };
        let interest = Interest {
            read: self.socket.wants_read(peer.id),
            write: blocked,
        };
        let changed = interest != peer.interest;
        peer.interest = interest;
        let watched = if changed {
            epoll.modify(peer.stream.as_fd(), (self.token)(key).into(), interest)
        } else {
            Ok(())
        };
        if written.and(watched).is_err() {
            self.socket.closed(peer.id);
            self.peers.remove(&key);
        }
    }

    /// How long the loop may sleep for this socket.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.socket
            .next_deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
