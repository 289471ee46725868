//! One kernel, from preparing to terminated.

pub mod files;
pub mod runner;
