//! One connection: greeting, handshake, then messages and commands. No I/O, no clock.

use std::time::Instant;

use bytes::Bytes;

use crate::command::{self, Command};
use crate::frame::{Frame, FrameDecoder};
use crate::outgoing::Outgoing;
use crate::{Config, Message, ProtocolError, SocketType, Version};

const GREETING_LEN: usize = 64;
/// Commands are short; this also bounds what a stranger can make us keep before it is ready.
const COMMAND_MAX: usize = 64 << 10;

/// What a peer has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is over.
    Ready {
        /// The peer's socket type.
        socket_type: SocketType,
        /// The peer's identity; mostly empty.
        identity: Bytes,
    },
    /// A whole message came.
    Message(Message),
    /// A PUB's peer wants messages that start with the prefix.
    Subscribe(Bytes),
    /// A PUB's peer takes one such wish back.
    Unsubscribe(Bytes),
}

#[derive(Debug)]
enum Phase {
    Greeting,
    Handshake,
    Ready,
    Failed(ProtocolError),
}

/// The protocol state of one connection, for either end of it: received bytes go in, events and bytes to write come out.
/// [`Socket`](crate::Socket) keeps one for each peer; it is public for those who need a socket type of their own.
///
/// ```
/// use std::time::Instant;
/// use zmtp::{Config, Connection, Event, Message, SocketType};
///
/// let mut push = Connection::new(SocketType::Push, &Config::default(), Instant::now());
/// let mut pull = Connection::new(SocketType::Pull, &Config::default(), Instant::now());
/// push.send(&Message::from(["hello"]));
/// let mut received = Vec::new();
/// for _ in 0..3 {
///     for (from, to) in [(0, 1), (1, 0)] {
///         let ends = [&mut push, &mut pull];
///         let bytes = ends[from].output().to_vec();
///         ends[from].written(bytes.len());
///         ends[to].receive(&bytes);
///     }
///     while push.next_event().unwrap().is_some() {}
///     received.extend(std::iter::from_fn(|| pull.next_event().unwrap()));
/// }
/// assert_eq!(received.last(), Some(&Event::Message(Message::from(["hello"]))));
/// ```
#[derive(Debug)]
pub struct Connection {
    socket_type: SocketType,
    config: Config,
    phase: Phase,
    deadline: Instant,
    peer_version: Version,
    decoder: FrameDecoder,
    partial: Vec<Bytes>,
    partial_size: usize,
    outgoing: Outgoing,
    /// Messages sent before the handshake is over.
    early: Vec<Message>,
}

impl Connection {
    /// A connection that has just been opened, by us or by the peer.
    pub fn new(socket_type: SocketType, config: &Config, now: Instant) -> Self {
        let mut outgoing = Outgoing::default();
        outgoing.put(&greeting(config.version));
        Self {
            socket_type,
            config: config.clone(),
            phase: Phase::Greeting,
            deadline: now + config.handshake_timeout,
            peer_version: Version::V3_0,
            decoder: FrameDecoder::default(),
            partial: Vec::new(),
            partial_size: 0,
            outgoing,
            early: Vec::new(),
        }
    }

    /// Takes received bytes. They have their effect when [`next_event`](Self::next_event) is called, until it returns `None`.
    pub fn receive(&mut self, data: &[u8]) {
        self.decoder.feed(data);
    }

    /// The next thing that the peer has done, `None` if more bytes are needed.
    ///
    /// # Errors
    /// A [`ProtocolError`]: the connection must be closed. Every later call returns the same error.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        let result = self.advance();
        if let Err(error) = &result {
            self.phase = Phase::Failed(error.clone());
        }
        result
    }

    fn advance(&mut self) -> Result<Option<Event>, ProtocolError> {
        loop {
            let event = match &self.phase {
                Phase::Failed(error) => return Err(error.clone()),
                Phase::Greeting => {
                    if !self.read_greeting()? {
                        return Ok(None);
                    }
                    None
                }
                Phase::Handshake => {
                    let Some(frame) = self.decoder.next_frame(COMMAND_MAX)? else {
                        return Ok(None);
                    };
                    self.shake_hands(&frame)?
                }
                Phase::Ready => {
                    let Some(frame) = self.decoder.next_frame(self.config.limits.frame)? else {
                        return Ok(None);
                    };
                    self.take_frame(frame)?
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Checks what there is of the greeting; true when it is complete. Wrong bytes are refused as early as they show.
    fn read_greeting(&mut self) -> Result<bool, ProtocolError> {
        let bytes = self.decoder.buffered();
        if bytes.first().is_some_and(|&first| first != 0xff)
            || bytes.get(9).is_some_and(|&tenth| tenth != 0x7f)
        {
            return Err(ProtocolError::BadGreeting);
        }
        if let Some(&major) = bytes.get(10)
            && major < 3
        {
            return Err(ProtocolError::UnsupportedVersion(major));
        }
        let Some(greeting) = bytes.get(..GREETING_LEN) else {
            return Ok(false);
        };
        let mechanism = greeting[12..32]
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default();
        if mechanism != b"NULL" {
            return Err(ProtocolError::Mechanism(
                String::from_utf8_lossy(mechanism).into_owned(),
            ));
        }
        self.peer_version = if greeting[10] > 3 || greeting[11] > 0 {
            Version::V3_1
        } else {
            Version::V3_0
        };
        self.decoder.skip(GREETING_LEN);
        self.outgoing
            .put_command(&command::ready(self.socket_type, &self.config.identity));
        self.phase = Phase::Handshake;
        Ok(true)
    }

    fn shake_hands(&mut self, frame: &Frame) -> Result<Option<Event>, ProtocolError> {
        if !frame.command {
            return Err(ProtocolError::NotReady);
        }
        match Command::parse(&frame.body)? {
            Command::Ready {
                socket_type,
                identity,
            } => {
                let name = socket_type.ok_or(ProtocolError::BadCommand("READY"))?;
                let socket_type =
                    SocketType::from_name(&name).filter(|&theirs| self.socket_type.accepts(theirs));
                let socket_type = socket_type.ok_or_else(|| ProtocolError::IncompatibleSocket {
                    ours: self.socket_type,
                    theirs: String::from_utf8_lossy(&name).into_owned(),
                })?;
                self.phase = Phase::Ready;
                for message in std::mem::take(&mut self.early) {
                    self.outgoing.put_message(&message);
                }
                Ok(Some(Event::Ready {
                    socket_type,
                    identity: Bytes::copy_from_slice(&identity),
                }))
            }
            Command::Error(reason) => Err(ProtocolError::Refused(reason)),
            _ => Ok(None),
        }
    }

    /// A frame after the handshake. Commands may stand between the frames of a message.
    fn take_frame(&mut self, frame: Frame) -> Result<Option<Event>, ProtocolError> {
        if frame.command {
            if frame.body.len() > COMMAND_MAX {
                return Err(ProtocolError::FrameTooLarge {
                    size: frame.body.len() as u64,
                    limit: COMMAND_MAX,
                });
            }
            return self.take_command(&frame.body);
        }
        let limits = &self.config.limits;
        self.partial_size += frame.body.len();
        if self.partial_size > limits.message {
            return Err(ProtocolError::MessageTooLarge {
                limit: limits.message,
            });
        }
        if self.partial.len() == limits.frames {
            return Err(ProtocolError::TooManyFrames {
                limit: limits.frames,
            });
        }
        self.partial.push(frame.body);
        if frame.more {
            return Ok(None);
        }
        self.partial_size = 0;
        Ok(Some(self.complete()))
    }

    /// The event of a complete message; a PUB's peers send theirs to subscribe.
    fn complete(&mut self) -> Event {
        let mut frames = std::mem::take(&mut self.partial);
        if self.socket_type == SocketType::Pub
            && frames.len() == 1
            && frames[0].len() <= COMMAND_MAX
        {
            match frames[0].first() {
                Some(1) => return Event::Subscribe(Bytes::copy_from_slice(&frames[0][1..])),
                Some(0) => return Event::Unsubscribe(Bytes::copy_from_slice(&frames[0][1..])),
                _ => {}
            }
        }
        frames.shrink_to_fit();
        Event::Message(Message::new(frames))
    }

    fn take_command(&mut self, body: &Bytes) -> Result<Option<Event>, ProtocolError> {
        Ok(match Command::parse(body)? {
            Command::Ping(context) => {
                self.outgoing.put_command(&command::pong(&context));
                None
            }
            Command::Error(reason) => return Err(ProtocolError::Refused(reason)),
            Command::Subscribe(prefix) => Some(Event::Subscribe(Bytes::copy_from_slice(&prefix))),
            Command::Cancel(prefix) => Some(Event::Unsubscribe(Bytes::copy_from_slice(&prefix))),
            Command::Ready { .. } | Command::Unknown => None,
        })
    }

    /// Whether the handshake is over and nothing went wrong.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    /// When the peer must have finished the handshake; `None` once it has, or has failed.
    pub fn handshake_deadline(&self) -> Option<Instant> {
        matches!(self.phase, Phase::Greeting | Phase::Handshake).then_some(self.deadline)
    }

    /// Fails the connection if the handshake is not over by its deadline.
    ///
    /// # Errors
    /// [`ProtocolError::HandshakeTimeout`]: the connection must be closed.
    pub fn check_handshake(&mut self, now: Instant) -> Result<(), ProtocolError> {
        if self
            .handshake_deadline()
            .is_some_and(|deadline| now >= deadline)
        {
            self.phase = Phase::Failed(ProtocolError::HandshakeTimeout);
            return Err(ProtocolError::HandshakeTimeout);
        }
        Ok(())
    }

    /// Appends a message to the bytes to write, or keeps it until the handshake is over. Not bounded: the caller's queue is.
    pub fn send(&mut self, message: &Message) {
        if self.is_ready() {
            self.outgoing.put_message(message);
        } else {
            self.early.push(message.clone());
        }
    }

    /// Tells a PUB peer to start (or to stop) sending what begins with `prefix`, in the way of the version spoken by both.
    /// Only after the handshake; before it, this does nothing.
    pub fn subscribe(&mut self, prefix: &[u8], subscribe: bool) {
        if !self.is_ready() {
            return;
        }
        if self.config.version == Version::V3_1 && self.peer_version == Version::V3_1 {
            self.outgoing
                .put_command(&command::subscription(subscribe, prefix));
        } else {
            let body: Vec<u8> = std::iter::once(u8::from(subscribe))
                .chain(prefix.iter().copied())
                .collect();
            self.outgoing.put_message(&Message::new(vec![body.into()]));
        }
    }

    /// The bytes to write next; empty when there are none. There may be more after these are [`written`](Self::written).
    pub fn output(&mut self) -> &[u8] {
        self.outgoing.front()
    }

    /// Tells that the first `count` bytes of [`output`](Self::output) have been handed to the kernel.
    pub fn written(&mut self, count: usize) {
        self.outgoing.advance(count);
    }

    /// How many encoded bytes wait to be written.
    pub fn pending(&self) -> usize {
        self.outgoing.pending()
    }

    /// The position in the stream up to which bytes have been appended.
    pub(crate) fn appended_to(&self) -> u64 {
        self.outgoing.appended()
    }

    /// The position in the stream up to which bytes have been written.
    pub(crate) fn written_to(&self) -> u64 {
        self.outgoing.written()
    }
}

/// Our greeting: signature, version, mechanism NULL, not a server, filler.
fn greeting(version: Version) -> [u8; GREETING_LEN] {
    let mut greeting = [0; GREETING_LEN];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[11] = u8::from(version == Version::V3_1);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

#[cfg(test)]
mod tests;
