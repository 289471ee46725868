//! The life of kernels on the engine in memory: creation, execution, end, and the agent's restart, mostly in paused
//! time.

mod create;
mod files;
mod life;
mod node;
mod run;
