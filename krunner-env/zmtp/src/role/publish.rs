//! PUB: every message to every subscriber that keeps up.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Role, sealed::Logic};
use crate::connection::Event;
use crate::socket::{PeerId, Socket};
use crate::{Config, Message, ProtocolError, SocketType};

/// A PUB socket without I/O. A subscriber that has [`Config::send_limit`] bytes unwritten misses messages; nobody waits for it.
pub type PubSocket = Socket<Pub>;

/// The role of a PUB socket.
#[derive(Debug, Default)]
pub struct Pub {
    /// For each peer its prefixes, with how often it subscribed to each.
    subscriptions: BTreeMap<PeerId, BTreeMap<Bytes, usize>>,
}

impl Pub {
    fn wants(&self, peer: PeerId, message: &Message) -> bool {
        let topic = &message.frames()[0];
        self.subscriptions
            .get(&peer)
            .is_some_and(|all| all.keys().any(|prefix| topic.starts_with(prefix)))
    }
}

impl Role for Pub {}

impl Logic for Pub {
    const TYPE: SocketType = SocketType::Pub;

    fn event(&mut self, peer: PeerId, event: Event, config: &Config) -> Result<(), ProtocolError> {
        match event {
            Event::Subscribe(prefix) => {
                let all = self.subscriptions.entry(peer).or_default();
                *all.entry(prefix).or_default() += 1;
                let limit = config.limits.subscriptions;
                if all.len() > limit {
                    return Err(ProtocolError::TooManySubscriptions { limit });
                }
            }
            Event::Unsubscribe(prefix) => {
                if let Some(all) = self.subscriptions.get_mut(&peer)
                    && let Some(count) = all.get_mut(&prefix)
                {
                    *count -= 1;
                    if *count == 0 {
                        all.remove(&prefix);
                    }
                }
            }
            Event::Ready { .. } | Event::Message(_) => {}
        }
        Ok(())
    }

    fn lost(&mut self, peer: PeerId) {
        self.subscriptions.remove(&peer);
    }
}

impl Socket<Pub> {
    /// Sends the message to the subscribers that want it and keep up; returns to how many.
    pub fn publish(&mut self, message: &Message) -> usize {
        let (role, config, peers) = self.ready();
        let mut sent = 0;
        for (peer, connection) in peers {
            let room = connection.pending() == 0
                || connection.pending() + message.cost() <= config.send_limit;
            if room && role.wants(peer, message) {
                connection.send(message);
                sent += 1;
            }
        }
        sent
    }

    /// How many subscriptions there are, over all peers.
    pub fn subscriptions(&self) -> usize {
        self.role.subscriptions.values().map(BTreeMap::len).sum()
    }
}
