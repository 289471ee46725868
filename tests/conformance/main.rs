//! What every engine must do: one list of contract tests for each engine and the fake, and what engines of real
//! containers must do beyond it, looked at from Linux (mounts, namespaces, cgroups, processes), not from return values.

mod bridge;
mod contract;
mod crash;
#[path = "../daemons/mod.rs"]
mod daemons;
mod engine;
mod exec;
mod failures;
mod limits;
mod linux;
mod refused;
