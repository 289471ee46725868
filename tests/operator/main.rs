//! The operator's commands on the engine in memory, and `doctor` as a process of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

mod commands;
mod doctor;
