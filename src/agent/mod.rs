//! The node: which kernels exist, and the one entry for every call of a manager.

mod error;
pub mod event;
pub mod request;

pub use self::error::AgentError;
