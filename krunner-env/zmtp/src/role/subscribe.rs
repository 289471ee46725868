//! SUB: subscriptions for all peers, one inbox for what matches.

use bytes::Bytes;

use super::pull::Inbox;
use super::{Receives, Role, sealed::Logic};
use crate::connection::{Connection, Event};
use crate::socket::{PeerId, Socket};
use crate::{Config, Message, ProtocolError, SocketType};

/// A SUB socket without I/O. It receives the messages whose first frame starts with one of its prefixes; without a subscription, none.
pub type SubSocket = Socket<Sub>;

/// The role of a SUB socket.
#[derive(Debug, Default)]
pub struct Sub {
    prefixes: Vec<Bytes>,
    inbox: Inbox,
}

impl Role for Sub {}

impl Logic for Sub {
    const TYPE: SocketType = SocketType::Sub;

    fn ready(&mut self, _peer: PeerId, connection: &mut Connection) -> Option<PeerId> {
        for prefix in &self.prefixes {
            connection.subscribe(prefix, true);
        }
        None
    }

    fn event(
        &mut self,
        _peer: PeerId,
        event: Event,
        _config: &Config,
    ) -> Result<(), ProtocolError> {
        if let Event::Message(message) = event
            && self
                .prefixes
                .iter()
                .any(|prefix| message.frames()[0].starts_with(prefix))
        {
            self.inbox.put(message);
        }
        Ok(())
    }

    fn buffered(&self) -> usize {
        self.inbox.bytes()
    }
}

impl Receives for Sub {
    fn take(&mut self) -> Option<Message> {
        self.inbox.take()
    }
}

impl Socket<Sub> {
    /// Subscribes to messages whose first frame starts with `prefix`; the empty prefix means all.
    /// A second subscription to the same prefix does nothing.
    pub fn subscribe(&mut self, prefix: impl Into<Bytes>) {
        let prefix = prefix.into();
        let (role, _, peers) = self.ready();
        if !role.prefixes.contains(&prefix) {
            peers.for_each(|(_, connection)| connection.subscribe(&prefix, true));
            role.prefixes.push(prefix);
        }
    }

    /// Takes a subscription back. An unknown prefix is ignored.
    pub fn unsubscribe(&mut self, prefix: &[u8]) {
        let (role, _, peers) = self.ready();
        if let Some(index) = role.prefixes.iter().position(|known| known == prefix) {
            peers.for_each(|(_, connection)| connection.subscribe(prefix, false));
            role.prefixes.swap_remove(index);
        }
    }
}
