//! The 19.03 generation of managers: RPC over ZeroMQ with msgpack, events over a PUSH socket, statistics in Redis.
//! An unmodified 19.03.3 manager does not notice that another agent answers.

pub mod arguments;
pub mod call;
pub mod event;
pub mod frame;
pub mod heartbeat;
pub mod kernel_config;
pub mod python;
pub mod redis;
pub mod reply;
pub mod server;
pub mod wire_error;
