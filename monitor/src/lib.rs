//! What a monitor does while its container runs: it copies output to the log and writes how the container ended.
//!
//! A program of its own because of its memory: there is one for each container, and the agent's own program costs
//! megabytes for its relocations and libcontainer's heap alone. `build.rs` of the agent builds it static and embeds it;
//! the engine without a daemon (`src/backends/youki`) starts it in the monitor's process when the container runs. Under
//! containerd a shim is the container's parent: there the same program only collects the log, and stands before runc. For
//! an ordinary user's agent it also holds the namespaces and listens on containers' host ports.

mod collect;
pub mod follow;
mod forward;
pub mod handler;
mod hold;
pub mod log;
mod watch;

pub use collect::{Collect, is_complete};
pub use forward::Forward;
pub use hold::{Hold, begin_of, end};
pub use watch::{Watch, oom_kills};
