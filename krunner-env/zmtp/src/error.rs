//! Why a connection ends.

use crate::SocketType;

/// What a peer did that ends its connection. None of these concerns other peers of the socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first bytes are not a ZMTP greeting: something else talks to this port.
    #[error("the peer does not speak ZMTP")]
    BadGreeting,
    /// ZMTP 1 or 2 (libzmq before 4.0).
    #[error(
        "the peer speaks ZMTP {0}, but 3.0 or later is needed: update its libzmq to 4.0 or later"
    )]
    UnsupportedVersion(u8),
    /// The peer wants PLAIN, CURVE or another security mechanism.
    #[error("the peer wants the security mechanism {0:?}, but only NULL is spoken")]
    Mechanism(String),
    /// The peer's socket type cannot be connected with ours.
    #[error("a {theirs} socket cannot be connected with our {ours} socket")]
    IncompatibleSocket {
        /// Our type.
        ours: SocketType,
        /// The type that the peer announced.
        theirs: String,
    },
    /// A frame is longer than [`Limits::frame`](crate::Limits::frame).
    #[error("a frame of {size} bytes is over the limit of {limit} bytes")]
    FrameTooLarge {
        /// The announced length in bytes.
        size: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// The frames of a message are together longer than [`Limits::message`](crate::Limits::message).
    #[error("a message is over the limit of {limit} bytes")]
    MessageTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// A message has more frames than [`Limits::frames`](crate::Limits::frames).
    #[error("a message has more than {limit} frames")]
    TooManyFrames {
        /// The limit.
        limit: usize,
    },
    /// A subscriber holds more prefixes than [`Limits::subscriptions`](crate::Limits::subscriptions).
    #[error("a subscriber has more than {limit} subscriptions")]
    TooManySubscriptions {
        /// The limit.
        limit: usize,
    },
    /// The flags byte of a frame has reserved bits set, or marks a command as multipart.
    #[error("a frame has the invalid flags {0:#04x}")]
    BadFlags(u8),
    /// A command's body is malformed.
    #[error("malformed {0} command")]
    BadCommand(&'static str),
    /// A message came before the handshake was over.
    #[error("the peer sent a message before it was ready")]
    NotReady,
    /// The peer answered the handshake with an ERROR command.
    #[error("the peer refused the connection: {0:?}")]
    Refused(String),
    /// The handshake did not end within [`Config::handshake_timeout`](crate::Config::handshake_timeout).
    #[error("the peer did not finish the handshake in time")]
    HandshakeTimeout,
}

/// Why a [`Socket`](crate::Socket) wants a connection to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// A newer peer took over; a PUSH socket serves only the newest.
    #[error("a newer peer took over")]
    Superseded,
}
