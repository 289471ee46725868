//! What is containerd's alone: a daemon that dies and freezes, its images and snapshotters, what runs containers below it.

#[path = "../busybox/mod.rs"]
mod busybox;
mod daemon;
#[path = "../daemons/mod.rs"]
mod daemons;
mod images;
mod node;
#[allow(
    clippy::unwrap_used,
    dead_code,
    reason = "shared with the tests of the store"
)]
#[path = "../image/server.rs"]
mod server;
#[allow(
    clippy::unwrap_used,
    dead_code,
    reason = "shared with the tests of the store"
)]
#[path = "../image/support.rs"]
mod support;
