//! PULL: one inbox for the messages of all peers.

use std::collections::VecDeque;

use super::{Receives, Role, sealed::Logic};
use crate::connection::Event;
use crate::socket::{PeerId, Socket};
use crate::{Config, Message, ProtocolError, SocketType};

/// A PULL socket without I/O. It takes messages from any number of peers, in the order of their arrival.
pub type PullSocket = Socket<Pull>;

/// Received messages that wait for the caller.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Inbox {
    pub(super) fn put(&mut self, message: Message) {
        self.bytes += message.cost();
        self.messages.push_back(message);
    }

    pub(super) fn take(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.cost();
        Some(message)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The role of a PULL socket.
#[derive(Debug, Default)]
pub struct Pull {
    inbox: Inbox,
}

impl Role for Pull {}

impl Logic for Pull {
    const TYPE: SocketType = SocketType::Pull;

    fn event(
        &mut self,
        _peer: PeerId,
        event: Event,
        _config: &Config,
    ) -> Result<(), ProtocolError> {
        if let Event::Message(message) = event {
            self.inbox.put(message);
        }
        Ok(())
    }

    fn buffered(&self) -> usize {
        self.inbox.bytes()
    }
}

impl Receives for Pull {
    fn take(&mut self) -> Option<Message> {
        self.inbox.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PushSocket;
    use crate::testing::{join, take};

    #[test]
    fn reading_rests_while_unread_messages_fill_the_inbox() {
        let mut pull = PullSocket::new(Config {
            receive_limit: 1000,
            ..Config::default()
        });
        let mut push = PushSocket::new(Config::default());
        let to_pull = join(&mut push, SocketType::Pull);
        let mut bytes = take(&mut push, to_pull, usize::MAX);
        let peer = pull.open(std::time::Instant::now());
        pull.receive(peer, &bytes);
        let message = Message::from(["x".repeat(300)]);
        let mut sent = 0;
        while pull.wants_read(peer) {
            push.try_push(message.clone()).unwrap();
            bytes = take(&mut push, to_pull, usize::MAX);
            pull.receive(peer, &bytes);
            sent += 1;
        }
        assert_eq!(sent, 3);
        assert_eq!(pull.try_recv(), Some(message));
        assert!(pull.wants_read(peer));
    }

    #[test]
    fn messages_of_several_peers_come_in_the_order_of_their_arrival() {
        let mut pull = PullSocket::new(Config::default());
        let peers = [
            join(&mut pull, SocketType::Push),
            join(&mut pull, SocketType::Push),
        ];
        pull.receive(peers[1], b"\0\x01b");
        pull.receive(peers[0], b"\0\x01a");
        assert_eq!(pull.ready_peers(), 2);
        assert_eq!(
            [pull.try_recv(), pull.try_recv()],
            [Some(Message::from(["b"])), Some(Message::from(["a"]))]
        );
        assert_eq!(pull.try_recv(), None);
    }
}
