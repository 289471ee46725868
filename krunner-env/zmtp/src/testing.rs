//! Help for the unit tests: the other end's bytes.

use std::time::Instant;

use crate::{Config, Connection, Event, Message, PeerId, Role, Socket, SocketType};

/// What a peer of this type sends until it is ready.
pub(crate) fn hello(kind: SocketType) -> Vec<u8> {
    let mut connection = Connection::new(kind, &Config::default(), Instant::now());
    let mut bytes = connection.output().to_vec();
    connection.written(bytes.len());
    // Any greeting makes it send READY; its own will do.
    connection.receive(&bytes.clone());
    assert_eq!(connection.next_event(), Ok(None));
    bytes.extend_from_slice(connection.output());
    bytes
}

/// A new peer of this type that has finished its handshake.
pub(crate) fn join<R: Role>(socket: &mut Socket<R>, kind: SocketType) -> PeerId {
    let peer = socket.open(Instant::now());
    socket.receive(peer, &hello(kind));
    peer
}

/// Takes up to `limit` bytes that the socket writes to the peer.
pub(crate) fn take<R: Role>(socket: &mut Socket<R>, peer: PeerId, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < limit {
        let output = socket.output(peer);
        let count = output.len().min(limit - bytes.len());
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&output[..count]);
        socket.written(peer, count);
    }
    bytes
}

/// The messages that a peer of this type sees in the bytes of a whole connection.
pub(crate) fn messages(kind: SocketType, bytes: &[u8]) -> Vec<Message> {
    let mut connection = Connection::new(kind, &Config::default(), Instant::now());
    connection.receive(bytes);
    let events = std::iter::from_fn(|| connection.next_event().expect("we write valid ZMTP"));
    events
        .filter_map(|event| {
            if let Event::Message(message) = event {
                Some(message)
            } else {
                None
            }
        })
        .collect()
}
