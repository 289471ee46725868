//! What is Docker's alone: a daemon that dies, freezes and comes back; its images; containers of the Python agent.

mod adopt;
#[path = "../daemons/away.rs"]
mod away;
#[path = "../busybox/mod.rs"]
mod busybox;
mod daemon;
#[path = "../daemons/mod.rs"]
mod daemons;
mod docker;
mod images;
#[path = "../daemons/node.rs"]
mod node;
mod tls;
mod user;
