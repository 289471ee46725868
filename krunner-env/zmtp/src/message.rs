//! Messages and socket types.

use std::fmt;

use bytes::Bytes;

/// A message: one or more frames.
///
/// ```
/// use zmtp::Message;
/// let message = Message::from(["stdout", "hello\n"]);
/// assert_eq!(message.frames().len(), 2);
/// assert_eq!(message.size(), 12);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Vec<Bytes>);

impl Message {
    /// A message of these frames. An empty list becomes one empty frame, because ZMTP has no message without frames.
    pub fn new(mut frames: Vec<Bytes>) -> Self {
        if frames.is_empty() {
            frames.push(Bytes::new());
        }
        Self(frames)
    }

    /// The frames; at least one.
    pub fn frames(&self) -> &[Bytes] {
        &self.0
    }

    /// The frames, without copying them; at least one.
    pub fn into_frames(self) -> Vec<Bytes> {
        self.0
    }

    /// The sum of the frames' lengths in bytes.
    pub fn size(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// What the message counts in a queue bounded in bytes: its size and an allowance for the bookkeeping,
    /// so that a queue of empty messages is bounded too.
    pub fn cost(&self) -> usize {
        const PER_MESSAGE: usize = 64;
        const PER_FRAME: usize = 32;
        self.size() + PER_MESSAGE + PER_FRAME * self.0.len()
    }
}

impl From<Vec<Bytes>> for Message {
    fn from(frames: Vec<Bytes>) -> Self {
        Self::new(frames)
    }
}

impl<B: Into<Bytes>, const N: usize> From<[B; N]> for Message {
    fn from(frames: [B; N]) -> Self {
        frames.into_iter().collect()
    }
}

impl<B: Into<Bytes>> FromIterator<B> for Message {
    fn from_iter<I: IntoIterator<Item = B>>(frames: I) -> Self {
        Self::new(frames.into_iter().map(Into::into).collect())
    }
}

/// The ZeroMQ socket types, as READY names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketType {
    /// Sends to one PULL peer.
    Push,
    /// Receives from PUSH peers.
    Pull,
    /// Sends to subscribers.
    Pub,
    /// Receives what it subscribed to.
    Sub,
    /// PUB that shows subscriptions; only as a peer.
    XPub,
    /// SUB that sends subscriptions as messages; only as a peer.
    XSub,
    /// Answers whom it is told to; for owners of a [`Connection`](crate::Connection).
    Router,
    /// Asks a ROUTER; only as a peer.
    Dealer,
    /// Asks and waits for the answer; only as a peer.
    Req,
}

impl SocketType {
    const ALL: [Self; 9] = [
        Self::Push,
        Self::Pull,
        Self::Pub,
        Self::Sub,
        Self::XPub,
        Self::XSub,
        Self::Router,
        Self::Dealer,
        Self::Req,
    ];

    /// The name in READY's `Socket-Type` property.
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "PUSH",
            Self::Pull => "PULL",
            Self::Pub => "PUB",
            Self::Sub => "SUB",
            Self::XPub => "XPUB",
            Self::XSub => "XSUB",
            Self::Router => "ROUTER",
            Self::Dealer => "DEALER",
            Self::Req => "REQ",
        }
    }

    /// The type with this name, if it is one that this crate can talk to.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name().as_bytes() == name)
    }

    /// Whether sockets of the two types may be connected (RFC 28, 29).
    pub fn accepts(self, peer: Self) -> bool {
        match self {
            Self::Push => peer == Self::Pull,
            Self::Pull => peer == Self::Push,
            Self::Pub | Self::XPub => matches!(peer, Self::Sub | Self::XSub),
            Self::Sub | Self::XSub => matches!(peer, Self::Pub | Self::XPub),
            Self::Router => matches!(peer, Self::Dealer | Self::Req | Self::Router),
            Self::Dealer | Self::Req => peer == Self::Router,
        }
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
