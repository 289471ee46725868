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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{join, messages, take};
    use crate::{CloseReason, Limits};

    #[test]
    fn a_prefix_subscribed_twice_must_be_cancelled_twice() {
        let mut publisher = PubSocket::new(Config::default());
        let peer = join(&mut publisher, SocketType::Sub);
        publisher.receive(peer, b"\0\x02\x01a\0\x02\x01a\0\x02\x00a");
        assert_eq!(publisher.publish(&Message::from(["abc"])), 1);
        publisher.receive(peer, b"\0\x02\x00a");
        assert_eq!(publisher.publish(&Message::from(["abc"])), 0);
        assert_eq!(publisher.subscriptions(), 0);
    }

    #[test]
    fn a_subscriber_that_does_not_read_misses_messages() {
        let message = Message::from(["x".repeat(1000)]);
        let mut publisher = PubSocket::new(Config {
            send_limit: 3000,
            ..Config::default()
        });
        let peer = join(&mut publisher, SocketType::Sub);
        publisher.receive(peer, b"\0\x01\x01");
        let hello = take(&mut publisher, peer, usize::MAX);
        assert_eq!([0; 4].map(|_| publisher.publish(&message)), [1, 1, 0, 0]);
        assert!(!publisher.is_drained());
        let bytes = [hello, take(&mut publisher, peer, usize::MAX)].concat();
        assert_eq!(messages(SocketType::Sub, &bytes).len(), 2);
        assert_eq!(publisher.publish(&message), 1);
    }

    #[test]
    fn a_subscriber_with_too_many_prefixes_is_given_up() {
        let limits = Limits {
            subscriptions: 2,
            ..Limits::default()
        };
        let mut publisher = PubSocket::new(Config {
            limits,
            ..Config::default()
        });
        let peer = join(&mut publisher, SocketType::Sub);
        publisher.receive(peer, b"\0\x02\x01a\0\x02\x01b\0\x02\x01c");
        let reason = CloseReason::Protocol(ProtocolError::TooManySubscriptions { limit: 2 });
        assert_eq!(publisher.next_closed(), Some((peer, reason)));
        assert_eq!(publisher.subscriptions(), 0);
    }
}
