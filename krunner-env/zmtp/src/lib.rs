//! ZMTP 3.0 and 3.1 with the NULL mechanism, without I/O: the sockets PUSH, PULL, PUB and SUB as ZeroMQ's libzmq understands them.
//!
//! In reading order:
//!
//! * [`FrameDecoder`] cuts bytes into frames;
//! * [`Connection`] speaks with one peer: greeting, handshake, PING, messages;
//! * [`Socket`] joins the connections of one socket by the rules of its type: [`PushSocket`], [`PullSocket`], [`PubSocket`], [`SubSocket`].
//!
//! With the feature `tokio`, [`net`] has these sockets over TCP, connecting with reconnection or bound.
//!
//! Queues are bounded in bytes, and a producer learns when they are full. A record that was not handed to the kernel to its last
//! byte when its peer died is sent again, whole and in order, to the next one. What sat in the dead peer's socket buffer is lost, as with libzmq.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod command;
mod config;
mod connection;
mod error;
mod frame;
mod message;
#[cfg(feature = "tokio")]
pub mod net;
mod outgoing;
mod role;
mod socket;
#[cfg(test)]
mod testing;

pub use config::{Config, Limits, Version};
pub use connection::{Connection, Event};
pub use error::{CloseReason, ProtocolError};
pub use frame::{Frame, FrameDecoder};
pub use message::{Message, SocketType};
pub use role::{
    Full, Pub, PubSocket, Pull, PullSocket, Push, PushSocket, Receives, Role, Sub, SubSocket,
};
pub use socket::{PeerId, Socket};
