//! What every engine must do: one list of contract tests for each engine, and what the engine without a daemon must do
//! beyond it.

mod bridge;
#[path = "../busybox/mod.rs"]
mod busybox;
mod contract;
mod crash;
#[path = "../daemons/mod.rs"]
mod daemons;
mod engine;
mod failures;
mod linux;
