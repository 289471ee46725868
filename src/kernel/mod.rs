//! One kernel, from preparing to terminated.

pub mod files;
pub mod plan;
pub mod runner;
pub mod scratch;
