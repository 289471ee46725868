//! The image store: what it takes in, what it refuses, and that refusing leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod archives;
mod bearer;
mod bundle;
mod command;
#[path = "../daemons/mod.rs"]
mod daemons;
mod engines;
mod hostile;
mod krunner;
mod push;
mod registry;
mod rootfs;
mod server;
mod support;
