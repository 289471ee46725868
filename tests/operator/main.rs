//! The operator's commands on the engine in memory.

mod commands;
