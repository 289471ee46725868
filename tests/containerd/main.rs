//! What is containerd's alone: a daemon that dies and freezes, its images and snapshotters, what runs containers below it.

#[path = "../daemons/away.rs"]
mod away;
#[path = "../busybox/mod.rs"]
mod busybox;
mod containerd;
mod daemon;
#[path = "../daemons/mod.rs"]
mod daemons;
mod images;
#[path = "../daemons/node.rs"]
mod node;
mod remote_images;
#[allow(
    clippy::unwrap_used,
    dead_code,
    reason = "shared with the tests of the store"
)]
#[path = "../image/server.rs"]
mod server;
mod snapshotter;
#[allow(
    clippy::unwrap_used,
    dead_code,
    reason = "shared with the tests of the store"
)]
#[path = "../image/support.rs"]
mod support;
