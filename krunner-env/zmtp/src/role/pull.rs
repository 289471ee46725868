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
