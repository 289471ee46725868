//! The image store: what it takes in, what it refuses, and that refusing leaves nothing behind.

mod hostile;
mod rootfs;
mod support;
