//! The node: which kernels exist, and the one entry for every call of a manager.

mod calls;
mod error;
pub mod event;
mod recovery;
pub mod request;
mod timers;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::error::AgentError;
use self::event::EventSender;
use self::request::{NodeState, Reply, Request};
use crate::kernel::parts::{Parts, Registry};
use crate::kernel::plan::PlanSettings;
use crate::kernel::runner::link::Connect;
use crate::kernel::scratch::ScratchRoot;
use crate::kernel::stats::StatsBook;
use crate::manager::{Node, NodeStats};
use crate::resource::alloc::Allocator;
use crate::resource::device::ComputeDevice;
use crate::resource::port::PortPool;
use crate::runtime::{ContainerRuntime, ImageStore};
use crate::stats::StatsCollector;

/// How long the node's tasks may take to end after they were told to.
const GRACE: Duration = Duration::from_secs(10);

/// What a node is made of.
#[derive(Debug)]
pub struct AgentConfig {
    /// Settings of every container.
    pub plan: PlanSettings,
    /// Host that the manager is told for kernels' ports.
    pub kernel_host: String,
    /// Host under which the agent itself reaches them: 127.0.0.1 unless overridden.
    pub runner_host: String,
    /// Host ports for kernels.
    pub port_range: RangeInclusive<u16>,
    /// Folder of all scratch folders; must exist.
    pub scratch_root: PathBuf,
    /// Whether scratch folders are tmpfs.
    pub scratch_in_memory: bool,
    /// Devices to deal out.
    pub devices: Vec<Box<dyn ComputeDevice>>,
    /// Whether dead containers are kept for a look at them (`--debug-skip-container-deletion`).
    pub keep_containers: bool,
    /// Whether the engine listens on host ports itself.
    pub engine_listens: bool,
    /// The engine.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Its images.
    pub images: Arc<dyn ImageStore>,
    /// The way to runners.
    pub connect: Arc<dyn Connect>,
    /// What samples the kernels.
    pub stats: StatsCollector,
    /// Where events go.
    pub events: EventSender,
}

/// The node. Clones are the same node.
#[derive(Clone, Debug)]
pub struct Agent {
    parts: Arc<Parts>,
    known: Arc<Known>,
}

/// What is told to the manager again and again.
#[derive(Debug, Default)]
struct Known {
    images: Mutex<Vec<(String, String)>>,
}

impl Agent {
    /// Takes the node's kernels back and begins to look after them.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn start(config: AgentConfig) -> Result<Self, AgentError> {
        let agent = Self {
            parts: Arc::new(parts(config)),
            known: Arc::default(),
        };
        agent.refresh_images().await?;
        recovery::recover(&agent.parts).await?;
        agent.spawn_timers();
        Ok(agent)
    }

    /// What the node's kernels share.
    #[must_use]
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }
}

fn parts(config: AgentConfig) -> Parts {
    Parts {
        plan: config.plan,
        kernel_host: config.kernel_host,
        runner_host: config.runner_host,
        engine_listens: config.engine_listens,
        keep_containers: config.keep_containers,
        is_root: rustix::process::geteuid().is_root(),
        runtime: config.runtime,
        images: config.images,
        allocator: Allocator::new(config.devices),
        ports: PortPool::new(config.port_range),
        scratch: ScratchRoot::new(config.scratch_root, config.scratch_in_memory),
        connect: config.connect,
        events: config.events,
        registry: Registry::default(),
        stats: StatsBook::new(config.stats),
        tracker: TaskTracker::new(),
        stop: CancellationToken::new(),
    }
}

#[async_trait]
impl Node for Agent {
    async fn handle(&self, request: Request) -> Result<Reply, AgentError> {
        // The futures of all calls differ much in size: the large ones stay out of every caller's.
        Box::pin(self.call(request)).await
    }

    fn state(&self) -> NodeState {
        NodeState {
            slots: self.parts.allocator.node_slots(),
            images: self
                .known
                .images
                .lock()
                .expect("no panic while held")
                .clone(),
        }
    }

    fn stats(&self) -> NodeStats {
        let sweep = self.parts.stats.newest();
        NodeStats {
            cpu_pct: sweep.cpu_pct,
            mem_cur_bytes: sweep.mem_cur_bytes,
            kernels: sweep.kernels.into_iter().collect(),
        }
    }

    async fn shutdown(&self, destroy: bool) {
        if destroy {
            self.destroy_all("agent-termination").await;
        }
        self.parts.stop.cancel();
        self.parts.tracker.close();
        if tokio::time::timeout(GRACE, self.parts.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!("some kernels' tasks did not end in time");
        }
        self.parts.runtime.settle().await;
    }
}
