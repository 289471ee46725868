//! What every kernel of this node uses: engine, pools, folders and the way events take.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::KernelHandle;
use super::plan::PlanSettings;
use super::runner::link::Connect;
use super::scratch::ScratchRoot;
use crate::agent::AgentError;
use crate::agent::event::{Event, EventSender};
use crate::agent::request::KernelId;
use crate::resource::alloc::Allocator;
use crate::resource::port::PortPool;
use crate::runtime::{ContainerRuntime, ImageStore, Result, RuntimeError};

/// How long one call to the engine may take, other than creating, starting and pulling.
pub const ENGINE_LIMIT: Duration = Duration::from_secs(30);

/// What the kernels of a node share.
#[derive(Debug)]
pub struct Parts {
    /// Settings of the plan.
    pub plan: PlanSettings,
    /// Host that the manager is told for a kernel's ports.
    pub kernel_host: String,
    /// Host under which the agent itself reaches them.
    pub runner_host: String,
    /// Whether the engine listens on the host ports itself, so that they must not be held.
    pub engine_listens: bool,
    /// Whether dead containers are kept for a look at them.
    pub keep_containers: bool,
    /// Whether the agent may give files to another user.
    pub is_root: bool,
    /// The engine.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Its images.
    pub images: Arc<dyn ImageStore>,
    /// Devices.
    pub allocator: Allocator,
    /// Host ports.
    pub ports: PortPool,
    /// Folders.
    pub scratch: ScratchRoot,
    /// The way to runners.
    pub connect: Arc<dyn Connect>,
    /// Where events go.
    pub events: EventSender,
    /// The kernels.
    pub registry: Registry,
    /// Their last statistics.
    pub stats: super::stats::StatsBook,
    /// Every task of the node.
    pub tracker: TaskTracker,
    /// Cancelled when the agent ends; containers live on.
    pub stop: CancellationToken,
}

impl Parts {
    /// Tells the manager something.
    pub fn emit(&self, event: Event) {
        // The receiver is gone only when the agent is being ended.
        let _ = self.events.send(event);
    }

    /// Limits a call to the engine that may simply be repeated.
    ///
    /// # Errors
    /// The call's own, and [`RuntimeError::Unavailable`] when it takes too long.
    pub async fn within<T>(
        &self,
        call: impl Future<Output = Result<T>> + Send,
        action: &str,
    ) -> Result<T> {
        tokio::time::timeout(ENGINE_LIMIT, call)
            .await
            .unwrap_or_else(|_| {
                Err(RuntimeError::Unavailable {
                    engine: "container engine",
                    source: format!("{action} took more than {} s", ENGINE_LIMIT.as_secs()).into(),
                })
            })
    }
}

/// Which kernels exist.
#[derive(Default)]
pub struct Registry(Mutex<HashMap<KernelId, KernelHandle>>);

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.ids()).finish()
    }
}

impl Registry {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<KernelId, KernelHandle>) -> T) -> T {
        act(&mut self.0.lock().expect("no panic while held"))
    }

    /// The kernel of this id.
    #[must_use]
    pub fn get(&self, kernel: &KernelId) -> Option<KernelHandle> {
        self.with(|all| all.get(kernel).cloned())
    }

    /// Adds a kernel.
    ///
    /// # Errors
    /// [`AgentError::Exists`] when the id is taken.
    pub fn add(&self, kernel: &KernelHandle) -> Result<(), AgentError> {
        self.with(|all| {
            if all.contains_key(kernel.id()) {
                return Err(AgentError::Exists(kernel.id().clone()));
            }
            all.insert(kernel.id().clone(), kernel.clone());
            Ok(())
        })
    }

    /// Forgets a kernel.
    pub fn forget(&self, kernel: &KernelId) {
        self.with(|all| all.remove(kernel));
    }

    /// Every kernel's id, in no order.
    #[must_use]
    pub fn ids(&self) -> Vec<KernelId> {
        self.with(|all| all.keys().cloned().collect())
    }

    /// Every kernel, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<KernelHandle> {
        self.with(|all| all.values().cloned().collect())
    }
}
