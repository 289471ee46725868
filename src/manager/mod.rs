//! The manager as this agent sees it: bytes to and from the agent's requests, replies and events, one folder for each
//! generation. What a front-end needs of the node is [`Node`]; it knows nothing else of it.

pub mod helper;
pub mod identity;
pub mod router;
pub mod v1903;

use async_trait::async_trait;

use crate::agent::AgentError;
use crate::agent::request::{KernelId, NodeState, Reply, Request};
use crate::stats::KernelStats;

/// The node, as front-ends call it. Every method may be called from any task at any time.
#[async_trait]
pub trait Node: Send + Sync {
    /// Does what the manager asks. Dropping the future abandons the answer, not the kernel.
    ///
    /// # Errors
    /// Whatever the manager must be told; the front-end gives it its wire form.
    async fn handle(&self, request: Request) -> Result<Reply, AgentError>;

    /// Slots and images for the heartbeat. Must answer at once, from what is known already.
    fn state(&self) -> NodeState;

    /// The newest samples. Must answer at once, from what is known already.
    fn stats(&self) -> NodeStats;

    /// Ends the node's work: with `destroy` every kernel is destroyed and its clean-up awaited, without it they run on.
    async fn shutdown(&self, destroy: bool);
}

/// What the node uses at the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeStats {
    /// CPU time of all kernels since the previous sample, in percent of one core; may exceed 100.
    pub cpu_pct: f64,
    /// Memory of all kernels, bytes.
    pub mem_cur_bytes: u64,
    /// The last sample of every living kernel.
    pub kernels: Vec<(KernelId, KernelStats)>,
}
