//! The image store: what it takes in, what it refuses, and that refusing leaves nothing behind.

mod archives;
mod bearer;
mod command;
mod hostile;
mod registry;
mod rootfs;
mod support;
