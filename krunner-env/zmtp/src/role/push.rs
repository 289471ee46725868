//! PUSH: one queue, bounded in bytes, for the newest peer.

use std::collections::VecDeque;

use super::{Role, sealed::Logic};
use crate::connection::Connection;
use crate::socket::{PeerId, Socket};
use crate::{Config, Message, SocketType};

/// A PUSH socket without I/O. Without a peer messages wait; of several peers only the newest is served, the others are closed.
pub type PushSocket = Socket<Push>;

/// The queue has no room; the message is given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: wait until messages are written")]
pub struct Full(pub Message);

#[derive(Debug)]
struct Entry {
    message: Message,
    cost: usize,
    droppable: bool,
}

/// The role of a PUSH socket.
#[derive(Debug, Default)]
pub struct Push {
    queue: VecDeque<Entry>,
    /// Encoded for the active peer, with the position of their end in its stream.
    in_flight: VecDeque<(u64, Entry)>,
    active: Option<PeerId>,
    /// Cost of everything in `queue` and `in_flight`.
    bytes: usize,
    /// How many entries of `queue` are droppable.
    droppable: usize,
}

impl Push {
    /// Puts what was not fully written back to the front, in order.
    fn requeue(&mut self) {
        for (_, entry) in self.in_flight.drain(..).rev() {
            self.droppable += usize::from(entry.droppable);
            self.queue.push_front(entry);
        }
    }

    /// Removes droppable messages, the oldest first, until it has freed `bytes`.
    fn evict(&mut self, mut bytes: usize) {
        let mut index = 0;
        while bytes > 0 && self.droppable > 0 && index < self.queue.len() {
            if self.queue[index].droppable {
                let entry = self
                    .queue
                    .remove(index)
                    .expect("the index is below the length");
                self.droppable -= 1;
                self.bytes -= entry.cost;
                bytes = bytes.saturating_sub(entry.cost);
            } else {
                index += 1;
            }
        }
    }

    fn push(&mut self, message: Message, droppable: bool, limit: usize) -> Result<(), Full> {
        let cost = message.cost();
        let excess = (self.bytes + cost).saturating_sub(limit);
        if excess > 0 {
            self.evict(excess);
        }
        if self.bytes > 0 && self.bytes + cost > limit {
            return Err(Full(message));
        }
        self.bytes += cost;
        self.droppable += usize::from(droppable);
        self.queue.push_back(Entry {
            message,
            cost,
            droppable,
        });
        Ok(())
    }
}

impl Role for Push {}

impl Logic for Push {
    const TYPE: SocketType = SocketType::Push;

    fn ready(&mut self, peer: PeerId, _connection: &mut Connection) -> Option<PeerId> {
        // Connections count from the moment they were opened: one that was slow to shake hands does not replace a newer one.
        if self.active.is_some_and(|active| active > peer) {
            return Some(peer);
        }
        self.requeue();
        self.active.replace(peer)
    }

    fn fill(&mut self, peer: PeerId, connection: &mut Connection, config: &Config) {
        if self.active != Some(peer) {
            return;
        }
        while let Some(next) = self.queue.front() {
            let batched = connection.pending();
            if batched > 0 && batched + next.message.size() > config.batch {
                return;
            }
            connection.send(&next.message);
            let entry = self.queue.pop_front().expect("it was just looked at");
            self.droppable -= usize::from(entry.droppable);
            self.in_flight.push_back((connection.appended_to(), entry));
        }
    }

    fn written(&mut self, peer: PeerId, position: u64) {
        if self.active != Some(peer) {
            return;
        }
        while self
            .in_flight
            .front()
            .is_some_and(|(end, _)| *end <= position)
        {
            if let Some((_, entry)) = self.in_flight.pop_front() {
                self.bytes -= entry.cost;
            }
        }
    }

    fn lost(&mut self, peer: PeerId) {
        if self.active == Some(peer) {
            self.active = None;
            self.requeue();
        }
    }

    fn queued(&self) -> usize {
        self.queue.len() + self.in_flight.len()
    }
}

impl Socket<Push> {
    /// Queues a message. If there is no room, the oldest droppable messages make room first.
    ///
    /// # Errors
    /// [`Full`]: wait until [`written`](Self::written) has made room, and try again.
    pub fn try_push(&mut self, message: Message) -> Result<(), Full> {
        self.role.push(message, false, self.config().send_limit)
    }

    /// Queues a message that may be dropped again, the oldest first, when the queue is full and another is pushed.
    ///
    /// # Errors
    /// [`Full`] if even dropping all droppable ones does not make room.
    pub fn try_push_droppable(&mut self, message: Message) -> Result<(), Full> {
        self.role.push(message, true, self.config().send_limit)
    }

    /// Whether a message of this cost ([`Message::cost`]) would be taken now without dropping others.
    pub fn has_room(&self, cost: usize) -> bool {
        self.role.bytes == 0 || self.role.bytes + cost <= self.config().send_limit
    }

    /// Removes the queued messages for which `keep` says no. Those that are being written stay.
    pub fn retain(&mut self, mut keep: impl FnMut(&Message) -> bool) {
        let role = &mut self.role;
        role.queue.retain(|entry| {
            let kept = keep(&entry.message);
            if !kept {
                role.bytes -= entry.cost;
                role.droppable -= usize::from(entry.droppable);
            }
            kept
        });
    }

    /// Their cost in bytes ([`Message::cost`]).
    pub fn queued_bytes(&self) -> usize {
        self.role.bytes
    }
}
