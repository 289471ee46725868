//! What a socket can be told: limits, sizes and times.

use std::time::Duration;

use bytes::Bytes;

/// What a peer may send before its connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in one frame. Default 64 MiB.
    pub frame: usize,
    /// Bytes in one message, all frames together. Default 128 MiB.
    pub message: usize,
    /// Frames in one message. Default 1024.
    pub frames: usize,
    /// Prefixes of one subscriber. Default 1024.
    pub subscriptions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame: 64 << 20,
            message: 128 << 20,
            frames: 1024,
            subscriptions: 1024,
        }
    }
}

/// The minor version of ZMTP 3 that we announce. Peers of either version are understood, whatever we announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// ZMTP 3.0: subscriptions come as messages, no PING.
    V3_0,
    /// ZMTP 3.1: subscriptions come as commands, PING may come.
    #[default]
    V3_1,
}

/// Settings of a socket.
///
/// ```
/// use zmtp::Config;
/// let config = Config { send_limit: 1 << 20, ..Config::default() };
/// assert_eq!(config.batch, 256 << 10);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What a peer may send.
    pub limits: Limits,
    /// The `Identity` property of our READY; empty: none is sent.
    pub identity: Bytes,
    /// The version that we announce.
    pub version: Version,
    /// How long a peer may take from the open connection to its READY. Default 10 s.
    pub handshake_timeout: Duration,
    /// Bytes that wait to be sent: for PUSH in the one queue of the socket, for PUB for each subscriber. Default 16 MiB.
    /// A message that is larger than this is taken only by an empty queue.
    pub send_limit: usize,
    /// Received bytes that wait for the caller; above it [`Socket::wants_read`](crate::Socket::wants_read) says no. Default 1 MiB.
    pub receive_limit: usize,
    /// Bytes that are encoded at once for one write. Default 256 KiB.
    pub batch: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            identity: Bytes::new(),
            version: Version::default(),
            handshake_timeout: Duration::from_secs(10),
            send_limit: 16 << 20,
            receive_limit: 1 << 20,
            batch: 256 << 10,
        }
    }
}
