//! What the socket types do differently.

mod publish;
mod pull;
mod push;
mod subscribe;

pub use publish::{Pub, PubSocket};
pub use pull::{Pull, PullSocket};
pub use push::{Full, Push, PushSocket};
pub use subscribe::{Sub, SubSocket};

use crate::connection::{Connection, Event};
use crate::{Config, Message, PeerId, ProtocolError, SocketType};

/// The logic of a socket type. Sealed: [`Push`], [`Pull`], [`Pub`], [`Sub`].
pub trait Role: sealed::Logic {}

/// The roles that receive messages: [`Pull`], [`Sub`].
pub trait Receives: Role {
    /// The next received message.
    fn take(&mut self) -> Option<Message>;
}

pub(crate) mod sealed {
    use super::{Config, Connection, Event, PeerId, ProtocolError, SocketType};

    /// The calls of [`Socket`](crate::Socket) into its role.
    pub trait Logic: Default + Send + std::fmt::Debug + 'static {
        /// The type that READY announces.
        const TYPE: SocketType;

        /// A peer finished its handshake; the returned one, itself or an older one, is to be closed.
        fn ready(&mut self, _peer: PeerId, _connection: &mut Connection) -> Option<PeerId> {
            None
        }

        /// A peer sent something.
        fn event(
            &mut self,
            _peer: PeerId,
            _event: Event,
            _config: &Config,
        ) -> Result<(), ProtocolError> {
            Ok(())
        }

        /// The peer has nothing to write; queued messages may be encoded.
        fn fill(&mut self, _peer: PeerId, _connection: &mut Connection, _config: &Config) {}

        /// The peer's stream is written up to this position.
        fn written(&mut self, _peer: PeerId, _position: u64) {}

        /// The peer is gone.
        fn lost(&mut self, _peer: PeerId) {}

        /// Messages that are queued or not fully written.
        fn queued(&self) -> usize {
            0
        }

        /// Received bytes that wait for the caller.
        fn buffered(&self) -> usize {
            0
        }
    }
}
