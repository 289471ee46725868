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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CloseReason;
    use crate::testing::{join, messages, take};
    use std::time::Instant;

    const ALL: usize = usize::MAX;

    fn push_with(send_limit: usize) -> PushSocket {
        PushSocket::new(Config {
            send_limit,
            ..Config::default()
        })
    }

    fn record(number: usize) -> Message {
        Message::from([number.to_string(), "x".repeat(100)])
    }

    #[test]
    fn a_full_queue_gives_the_message_back_until_something_is_written() {
        let mut push = push_with(3 * record(0).cost());
        for number in 0..3 {
            push.try_push(record(number)).unwrap();
        }
        assert_eq!(push.try_push(record(3)), Err(Full(record(3))));
        let peer = join(&mut push, SocketType::Pull);
        let bytes = take(&mut push, peer, ALL);
        assert!(push.is_drained());
        assert_eq!(push.queued_bytes(), 0);
        push.try_push(record(3)).unwrap();
        let bytes = [bytes, take(&mut push, peer, ALL)].concat();
        assert_eq!(messages(SocketType::Pull, &bytes), [0, 1, 2, 3].map(record));
    }

    #[test]
    fn a_message_larger_than_the_queue_passes_when_it_is_alone() {
        let mut push = push_with(10);
        push.try_push(record(0)).unwrap();
        assert!(push.try_push(record(1)).is_err());
        assert!(!push.has_room(1));
    }

    #[test]
    fn the_oldest_droppable_messages_make_room() {
        let mut push = push_with(3 * record(0).cost());
        push.try_push(record(0)).unwrap();
        push.try_push_droppable(record(1)).unwrap();
        push.try_push_droppable(record(2)).unwrap();
        push.try_push_droppable(record(3)).unwrap();
        push.try_push(record(4)).unwrap();
        push.try_push(record(5)).unwrap();
        assert!(
            push.try_push(record(6)).is_err(),
            "what is left must not be dropped"
        );
        let peer = join(&mut push, SocketType::Pull);
        let bytes = take(&mut push, peer, ALL);
        assert_eq!(messages(SocketType::Pull, &bytes), [0, 4, 5].map(record));
    }

    #[test]
    fn queued_messages_can_be_removed_by_a_predicate() {
        let mut push = push_with(1 << 20);
        for number in 0..4 {
            push.try_push_droppable(record(number)).unwrap();
        }
        push.retain(|message| message != &record(1));
        assert_eq!(push.queued(), 3);
        assert_eq!(push.queued_bytes(), 3 * record(0).cost());
        let peer = join(&mut push, SocketType::Pull);
        let bytes = take(&mut push, peer, ALL);
        assert_eq!(messages(SocketType::Pull, &bytes), [0, 2, 3].map(record));
    }

    #[test]
    fn a_partly_written_message_goes_whole_to_the_next_peer() {
        let mut push = push_with(1 << 20);
        let first = join(&mut push, SocketType::Pull);
        let hello = take(&mut push, first, ALL).len();
        for number in 0..3 {
            push.try_push(record(number)).unwrap();
        }
        take(&mut push, first, 105 + 50);
        assert_eq!(push.queued(), 2, "one is written, one in part");
        push.closed(first);
        let second = join(&mut push, SocketType::Pull);
        let bytes = take(&mut push, second, ALL);
        assert!(bytes.len() > hello);
        assert_eq!(messages(SocketType::Pull, &bytes), [1, 2].map(record));
    }

    #[test]
    fn what_a_dead_peer_did_not_take_is_queued_at_once_and_can_still_be_removed() {
        let mut push = push_with(3 * record(0).cost());
        let first = join(&mut push, SocketType::Pull);
        take(&mut push, first, ALL);
        for number in 0..3 {
            push.try_push_droppable(record(number)).unwrap();
        }
        assert!(!push.output(first).is_empty());
        assert!(
            push.try_push(record(3)).is_err(),
            "what is being written must not be dropped"
        );
        push.closed(first);
        push.try_push(record(3)).unwrap();
        push.retain(|message| message != &record(1));
        let second = join(&mut push, SocketType::Pull);
        assert_eq!(
            messages(SocketType::Pull, &take(&mut push, second, ALL)),
            [2, 3].map(record)
        );
    }

    #[test]
    fn the_newest_peer_replaces_the_older_one() {
        let mut push = push_with(1 << 20);
        let older = join(&mut push, SocketType::Pull);
        assert_eq!(push.next_closed(), None);
        let newer = join(&mut push, SocketType::Pull);
        assert_eq!(push.next_closed(), Some((older, CloseReason::Superseded)));
        push.try_push(record(0)).unwrap();
        assert!(push.output(older).is_empty());
        assert_eq!(
            messages(SocketType::Pull, &take(&mut push, newer, ALL)),
            [record(0)]
        );
    }

    #[test]
    fn a_connection_that_is_slow_to_shake_hands_does_not_replace_a_newer_one() {
        let mut push = push_with(1 << 20);
        let older = push.open(Instant::now());
        let newer = join(&mut push, SocketType::Pull);
        push.receive(older, &crate::testing::hello(SocketType::Pull));
        assert_eq!(push.next_closed(), Some((older, CloseReason::Superseded)));
        assert!(push.is_ready(newer));
    }

    #[test]
    fn a_peer_that_breaks_the_protocol_is_given_up_and_the_served_one_stays() {
        let mut push = push_with(1 << 20);
        let served = join(&mut push, SocketType::Pull);
        let stranger = push.open(Instant::now());
        push.receive(stranger, b"GET /");
        assert_eq!(
            push.next_closed(),
            Some((stranger, crate::ProtocolError::BadGreeting.into()))
        );
        assert!(!push.is_open(stranger));
        let late = push.open(Instant::now());
        push.expire(push.next_deadline().expect("a handshake is under way"));
        assert_eq!(
            push.next_closed(),
            Some((late, crate::ProtocolError::HandshakeTimeout.into()))
        );
        assert_eq!(push.next_deadline(), None);
        assert!(push.is_ready(served));
    }

    #[test]
    fn one_write_batches_up_to_the_limit() {
        let mut push = push_with(1 << 20);
        let peer = join(&mut push, SocketType::Pull);
        take(&mut push, peer, ALL);
        for number in 0..4000 {
            push.try_push(record(number)).unwrap();
        }
        let batch = push.output(peer).len();
        assert!(batch > 200 << 10 && batch < 300 << 10, "{batch}");
    }
}
