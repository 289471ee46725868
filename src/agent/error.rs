//! What a call of the manager can fail with, cut by what the wire must be able to tell apart.

use super::request::{InvalidKernelId, KernelId};
use crate::runtime::RuntimeError;

/// Why the agent could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no such kernel on this node.
    #[error("no kernel {0}; it may have ended")]
    UnknownKernel(KernelId),
    /// The id cannot be a kernel's.
    #[error(transparent)]
    InvalidId(#[from] InvalidKernelId),
    /// A kernel of this id lives already.
    #[error("kernel {0} exists already; destroy it first")]
    Exists(KernelId),
    /// Not enough is free on this node.
    #[error("{device}: {requested} of {slot} asked for, {available} free")]
    InsufficientResource {
        /// `DiscretePropertyAllocMap` or `FractionAllocMap`.
        map: &'static str,
        /// Device type.
        device: String,
        /// Slot name.
        slot: String,
        /// Amount asked for, as text.
        requested: String,
        /// Amount free, as text.
        available: String,
    },
    /// A slot of a device type that this node does not have.
    #[error("no device type {0} on this node")]
    UnknownDevice(String),
    /// `cpu` or `mem` is not among the slots asked for.
    #[error("slot {0} must be given")]
    MissingSlot(&'static str),
    /// The host port pool is used up.
    #[error("{wanted} host ports wanted, {free} free; widen --container-port-range")]
    PortsExhausted {
        /// Ports wanted.
        wanted: usize,
        /// Ports free.
        free: usize,
    },
    /// An argument or a label is wrong; the wire shows it as Python's ValueError.
    #[error("{}", .0.join(": "))]
    Value(Vec<String>),
    /// An argument or a label breaks a rule; the wire shows it as Python's AssertionError.
    #[error("{0}")]
    Assertion(String),
    /// A file is not there.
    #[error("Could not found the file: {0}")]
    FileNotFound(String),
    /// A path leads out of the kernel's work folder.
    #[error("path {0:?} is outside of the kernel's work folder")]
    PathEscapes(String),
    /// Nothing is known of the kernel on disk (restart of an unknown kernel).
    #[error("no scratch folder of kernel {0}")]
    NoScratch(KernelId),
    /// A deadline passed.
    #[error("{0} took too long")]
    TimedOut(String),
    /// The engine failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The host failed: the text names what and where.
    #[error("{action}: {source}")]
    Host {
        /// What was being done, with the object's name.
        action: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The runner inside the kernel does not answer as agreed.
    #[error("runner of kernel {kernel}: {problem}")]
    Runner {
        /// The kernel.
        kernel: KernelId,
        /// What it did.
        problem: String,
    },
}
