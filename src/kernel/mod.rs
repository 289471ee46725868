//! One kernel, from preparing to terminated.

pub mod plan;
pub mod scratch;
