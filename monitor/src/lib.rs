//! What a monitor does while its container runs: it copies output to the log and writes how the container ended.
//!
//! A program of its own because of its memory: there is one for each container, and the agent's own program costs
//! megabytes for its relocations and libcontainer's heap alone. `build.rs` of the agent builds it static and embeds it;
//! the engine without a daemon (`src/backends/youki`) starts it in the monitor's process when the container runs.

pub mod follow;
pub mod log;
mod watch;

pub use watch::{Watch, oom_kills};
