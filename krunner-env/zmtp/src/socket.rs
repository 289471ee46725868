//! A socket: the connections of all its peers, and the logic of its type (its role).

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::connection::{Connection, Event};
use crate::role::{Receives, Role};
use crate::{CloseReason, Config, Message, ProtocolError};

/// Names a connection of a socket; never reused within the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u64);

/// A ZeroMQ socket without I/O: [`PushSocket`](crate::PushSocket), [`PullSocket`](crate::PullSocket),
/// [`PubSocket`](crate::PubSocket) or [`SubSocket`](crate::SubSocket).
///
/// The caller owns listeners, streams and the clock, and does this (the same whether it accepts or connects):
///
/// 1. a connection is there → [`open`](Self::open) gives its [`PeerId`];
/// 2. bytes came → [`receive`](Self::receive). Do not read from a peer while [`wants_read`](Self::wants_read) is false;
/// 3. after every call, for every peer: write [`output`](Self::output) while it is not empty, report with
///    [`written`](Self::written); on "would block" wait for writability;
/// 4. after every call: [`next_closed`](Self::next_closed) until `None`; drop these connections;
/// 5. end of file or an I/O error → [`closed`](Self::closed). Read always, so that a peer's end is noticed while nothing is sent;
/// 6. at [`next_deadline`](Self::next_deadline) → [`expire`](Self::expire).
///
/// Calls with the id of a connection that is gone do nothing.
///
/// ```
/// use std::time::Instant;
/// use zmtp::{Config, Message, PullSocket, PushSocket};
///
/// let now = Instant::now();
/// let (mut push, mut pull) = (PushSocket::new(Config::default()), PullSocket::new(Config::default()));
/// push.try_push(Message::from(["finished", "{}"])).unwrap();
/// let (to_pull, to_push) = (push.open(now), pull.open(now));
/// while !push.is_drained() {
///     let bytes = push.output(to_pull).to_vec();
///     push.written(to_pull, bytes.len());
///     pull.receive(to_push, &bytes);
///     let bytes = pull.output(to_push).to_vec();
///     pull.written(to_push, bytes.len());
///     push.receive(to_pull, &bytes);
/// }
/// assert_eq!(pull.try_recv(), Some(Message::from(["finished", "{}"])));
/// ```
#[derive(Debug)]
pub struct Socket<R> {
    config: Config,
    pub(crate) role: R,
    peers: BTreeMap<PeerId, Connection>,
    opened: u64,
    gone: VecDeque<(PeerId, CloseReason)>,
}

impl<R: Role> Socket<R> {
    /// A socket without peers.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            role: R::default(),
            peers: BTreeMap::new(),
            opened: 0,
            gone: VecDeque::new(),
        }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A connection was accepted or made. Its handshake has from `now` to [`Config::handshake_timeout`] later.
    pub fn open(&mut self, now: Instant) -> PeerId {
        let id = PeerId(self.opened);
        self.opened += 1;
        self.peers
            .insert(id, Connection::new(R::TYPE, &self.config, now));
        id
    }

    /// Bytes came from the peer. All of them are worked off at once: messages wait in the socket, and a peer that breaks
    /// the protocol appears in [`next_closed`](Self::next_closed).
    pub fn receive(&mut self, peer: PeerId, data: &[u8]) {
        let Some(connection) = self.peers.get_mut(&peer) else {
            return;
        };
        connection.receive(data);
        loop {
            let Some(connection) = self.peers.get_mut(&peer) else {
                return;
            };
            let outcome = match connection.next_event() {
                Ok(None) => return,
                Ok(Some(Event::Ready { .. })) => Ok(self.role.ready(peer, connection)),
                Ok(Some(event)) => self.role.event(peer, event, &self.config).map(|()| None),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(superseded)) => self.drop_peer(superseded, CloseReason::Superseded),
                Err(error) => self.drop_peer(peer, error.into()),
            }
        }
    }

    /// The bytes to write to the peer next; empty when there are none. Queued messages are encoded here, up to
    /// [`Config::batch`] at once, and stay the socket's until they are [`written`](Self::written) to their last byte.
    pub fn output(&mut self, peer: PeerId) -> &[u8] {
        let Some(connection) = self.peers.get_mut(&peer) else {
            return &[];
        };
        if connection.pending() == 0 && connection.is_ready() {
            self.role.fill(peer, connection, &self.config);
        }
        connection.output()
    }

    /// The first `count` bytes of [`output`](Self::output) have been handed to the kernel.
    pub fn written(&mut self, peer: PeerId, count: usize) {
        let Some(connection) = self.peers.get_mut(&peer) else {
            return;
        };
        connection.written(count);
        self.role.written(peer, connection.written_to());
    }

    /// Whether bytes from the peer are wanted now: false while a PULL or SUB holds [`Config::receive_limit`] unread bytes.
    pub fn wants_read(&self, peer: PeerId) -> bool {
        self.is_open(peer) && !self.is_paused()
    }

    /// The connection has ended (end of file, I/O error). What a PUSH had not fully written to it goes back to the front of the queue, in order.
    pub fn closed(&mut self, peer: PeerId) {
        if self.peers.remove(&peer).is_some() {
            self.role.lost(peer);
        }
    }

    /// The next connection that the socket has given up and the caller must close. It is already gone for the socket.
    pub fn next_closed(&mut self) -> Option<(PeerId, CloseReason)> {
        self.gone.pop_front()
    }

    /// When [`expire`](Self::expire) must be called; `None` while no handshake is under way.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.peers
            .values()
            .filter_map(Connection::handshake_deadline)
            .min()
    }

    /// Gives up connections whose handshake has not ended in time.
    pub fn expire(&mut self, now: Instant) {
        let late = |connection: &mut Connection| connection.check_handshake(now).is_err();
        let late: Vec<PeerId> = self
            .peers
            .iter_mut()
            .filter_map(|(id, conn)| late(conn).then_some(*id))
            .collect();
        for peer in late {
            self.drop_peer(peer, ProtocolError::HandshakeTimeout.into());
        }
    }

    /// Whether everything sent has been handed to the kernel. A PUSH with queued messages and no peer is not drained.
    pub fn is_drained(&self) -> bool {
        let unwritten = |connection: &Connection| connection.is_ready() && connection.pending() > 0;
        self.role.queued() == 0 && !self.peers.values().any(unwritten)
    }

    /// How many messages of a PUSH are queued or not fully written; 0 for other types.
    pub fn queued(&self) -> usize {
        self.role.queued()
    }

    /// How many peers have finished the handshake.
    pub fn ready_peers(&self) -> usize {
        self.peers
            .values()
            .filter(|connection| connection.is_ready())
            .count()
    }

    /// Whether the peer's handshake is over.
    pub fn is_ready(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(Connection::is_ready)
    }

    /// Whether the connection is open, its handshake over or not.
    pub fn is_open(&self, peer: PeerId) -> bool {
        self.peers.contains_key(&peer)
    }

    /// Whether reading rests until the caller has taken messages.
    pub fn is_paused(&self) -> bool {
        self.role.buffered() >= self.config.receive_limit.max(1)
    }

    /// The ids of all open connections.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.peers.keys().copied()
    }

    /// The connections that have finished the handshake.
    pub(crate) fn ready(
        &mut self,
    ) -> (
        &mut R,
        &Config,
        impl Iterator<Item = (PeerId, &mut Connection)>,
    ) {
        let ready = self
            .peers
            .iter_mut()
            .filter(|(_, conn)| conn.is_ready())
            .map(|(id, conn)| (*id, conn));
        (&mut self.role, &self.config, ready)
    }

    fn drop_peer(&mut self, peer: PeerId, reason: CloseReason) {
        if self.peers.remove(&peer).is_some() {
            self.role.lost(peer);
            self.gone.push_back((peer, reason));
        }
    }
}

impl<R: Receives> Socket<R> {
    /// The next received message. Reading may go on after it: see [`wants_read`](Self::wants_read).
    pub fn try_recv(&mut self) -> Option<Message> {
        self.role.take()
    }
}
