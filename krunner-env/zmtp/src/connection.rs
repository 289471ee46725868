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
mod tests {
    use super::*;
    use crate::testing::hello;
    use bytes::BytesMut;

    fn pull() -> Connection {
        Connection::new(SocketType::Pull, &Config::default(), Instant::now())
    }

    fn ready_pull() -> Connection {
        let mut connection = pull();
        connection.receive(&hello(SocketType::Push));
        assert!(matches!(
            connection.next_event(),
            Ok(Some(Event::Ready {
                socket_type: SocketType::Push,
                ..
            }))
        ));
        let count = connection.pending();
        connection.written(count);
        connection
    }

    fn frame(command: bool, more: bool, body: &[u8]) -> Vec<u8> {
        let mut wire = BytesMut::new();
        crate::frame::put_header(&mut wire, command, more, body.len());
        wire.extend_from_slice(body);
        wire.to_vec()
    }

    fn refusal(bytes: &[u8]) -> ProtocolError {
        let mut connection = pull();
        connection.receive(bytes);
        let error = connection.next_event().expect_err("it must be refused");
        connection.receive(&hello(SocketType::Push));
        assert_eq!(
            connection.next_event(),
            Err(error.clone()),
            "the error is not forgotten"
        );
        error
    }

    #[test]
    fn something_other_than_zmtp_is_refused_at_its_first_byte() {
        assert_eq!(refusal(b"G"), ProtocolError::BadGreeting);
        assert_eq!(
            refusal(b"\xff\0\0\0\0\0\0\0\x01\x7e"),
            ProtocolError::BadGreeting
        );
    }

    #[test]
    fn an_old_version_and_another_mechanism_are_named() {
        assert_eq!(
            refusal(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"),
            ProtocolError::UnsupportedVersion(1)
        );
        let mut curve = greeting(Version::V3_1);
        curve[12..32].copy_from_slice(b"CURVE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(refusal(&curve), ProtocolError::Mechanism("CURVE".into()));
    }

    #[test]
    fn a_socket_of_another_pattern_is_refused_also_if_its_type_is_unknown() {
        for theirs in ["PUB", "PULL", "ROUTER", "X"] {
            let mut body = Vec::from(*b"\x05READY\x0bsocket-type\0\0\0");
            body.push(u8::try_from(theirs.len()).unwrap());
            body.extend_from_slice(theirs.as_bytes());
            let bytes = [&greeting(Version::V3_0)[..], &frame(true, false, &body)].concat();
            let error = ProtocolError::IncompatibleSocket {
                ours: SocketType::Pull,
                theirs: theirs.into(),
            };
            assert_eq!(refusal(&bytes), error);
        }
    }

    #[test]
    fn malformed_commands_are_refused() {
        for body in [
            &b""[..],
            b"\x09READY",
            b"\x05READY\x0bSocket-Type\0\0\0\x05PUSH",
            b"\x05READY\x01",
            b"\x05READY",
        ] {
            let bytes = [&greeting(Version::V3_0)[..], &frame(true, false, body)].concat();
            assert!(
                matches!(refusal(&bytes), ProtocolError::BadCommand(_)),
                "{body:?}"
            );
        }
    }

    #[test]
    fn a_message_before_ready_is_refused() {
        let bytes = [&greeting(Version::V3_0)[..], &frame(false, false, b"early")].concat();
        assert_eq!(refusal(&bytes), ProtocolError::NotReady);
    }

    #[test]
    fn a_peer_that_gives_up_is_quoted() {
        let bytes = [
            &greeting(Version::V3_0)[..],
            &frame(true, false, b"\x05ERROR\x04busy"),
        ]
        .concat();
        assert_eq!(refusal(&bytes), ProtocolError::Refused("busy".into()));
    }

    #[test]
    fn identity_is_told_and_other_properties_and_commands_are_ignored() {
        let mut connection = pull();
        connection.receive(&greeting(Version::V3_1));
        connection.receive(&frame(true, false, b"\x05HELLO"));
        let ready =
            b"\x05READY\x01X\0\0\0\x01y\x08Identity\0\0\0\x02id\x0bSocket-Type\0\0\0\x04PUSH";
        connection.receive(&frame(true, false, ready));
        let event = Event::Ready {
            socket_type: SocketType::Push,
            identity: Bytes::from_static(b"id"),
        };
        assert_eq!(connection.next_event(), Ok(Some(event)));
        connection.receive(&frame(true, false, b"\x05HELLOxyz"));
        assert_eq!(connection.next_event(), Ok(None));
    }

    #[test]
    fn a_ping_is_answered_with_its_context_even_inside_a_message() {
        let mut connection = ready_pull();
        connection.receive(&frame(false, true, b"a"));
        connection.receive(&frame(true, false, b"\x04PING\0\x0actx"));
        connection.receive(&frame(false, false, b"b"));
        assert_eq!(
            connection.next_event(),
            Ok(Some(Event::Message(Message::from(["a", "b"]))))
        );
        assert_eq!(connection.output(), frame(true, false, b"\x04PONGctx"));
    }

    #[test]
    fn a_handshake_must_end_by_its_deadline() {
        let start = Instant::now();
        let config = Config::default();
        let mut connection = Connection::new(SocketType::Pull, &config, start);
        let deadline = start + config.handshake_timeout;
        assert_eq!(connection.handshake_deadline(), Some(deadline));
        assert_eq!(connection.check_handshake(start), Ok(()));
        assert_eq!(
            connection.check_handshake(deadline),
            Err(ProtocolError::HandshakeTimeout)
        );
        assert_eq!(
            connection.next_event(),
            Err(ProtocolError::HandshakeTimeout)
        );
        let mut connection = ready_pull();
        assert_eq!(connection.handshake_deadline(), None);
        assert_eq!(
            connection.check_handshake(deadline + config.handshake_timeout),
            Ok(())
        );
    }

    #[test]
    fn a_message_is_limited_in_bytes_and_frames() {
        let limits = crate::Limits {
            frame: 10,
            message: 15,
            frames: 2,
            ..crate::Limits::default()
        };
        let config = Config {
            limits,
            ..Config::default()
        };
        for (frames, error) in [
            (
                vec![11],
                ProtocolError::FrameTooLarge {
                    size: 11,
                    limit: 10,
                },
            ),
            (vec![10, 6], ProtocolError::MessageTooLarge { limit: 15 }),
            (vec![1, 1, 1], ProtocolError::TooManyFrames { limit: 2 }),
        ] {
            let mut connection = Connection::new(SocketType::Pull, &config, Instant::now());
            connection.receive(&hello(SocketType::Push));
            assert!(matches!(
                connection.next_event(),
                Ok(Some(Event::Ready { .. }))
            ));
            for size in frames {
                connection.receive(&frame(false, true, &vec![0; size]));
            }
            assert_eq!(connection.next_event(), Err(error));
        }
    }

    #[test]
    fn only_a_pub_takes_messages_as_subscriptions() {
        let mut publisher = Connection::new(SocketType::Pub, &Config::default(), Instant::now());
        publisher.receive(&hello(SocketType::Sub));
        publisher.receive(&frame(false, false, b"\x01a"));
        publisher.receive(&frame(false, false, b"\x00a"));
        publisher.receive(&frame(true, false, b"\x09SUBSCRIBEb"));
        publisher.receive(&frame(true, false, b"\x06CANCELb"));
        let events: Vec<_> = std::iter::from_fn(|| publisher.next_event().unwrap())
            .skip(1)
            .collect();
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let expected = [
            Event::Subscribe(a.clone()),
            Event::Unsubscribe(a),
            Event::Subscribe(b.clone()),
            Event::Unsubscribe(b),
        ];
        assert_eq!(events, expected);
        let mut pull = ready_pull();
        pull.receive(&frame(false, false, b"\x01a"));
        assert_eq!(
            pull.next_event(),
            Ok(Some(Event::Message(Message::from(["\x01a"]))))
        );
    }
}
