//! One kernel, from preparing to terminated. One task owns it ([`task`]); others hold a [`KernelHandle`] and ask.

mod create;
pub mod execute;
pub mod files;
pub mod live;
pub mod mark;
pub mod parts;
pub mod plan;
pub mod ports;
pub mod runner;
pub mod scratch;
pub mod spec;
pub mod stats;
mod task;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::live::{Container, Held, LastUsed, Live};
use self::parts::Parts;
use self::task::{Command, Ended, Owner, Phase};
use crate::agent::AgentError;
use crate::agent::request::{KernelConfig, KernelId, Reply};
use crate::runtime::ContainerId;

/// How long a creation may take: a large image may have to be pulled first.
const CREATE_LIMIT: Duration = Duration::from_secs(3600);
/// How long a restart may take.
const RESTART_LIMIT: Duration = Duration::from_secs(300);
/// How long a destruction may take before the call gives up waiting; it goes on behind it.
const DESTROY_LIMIT: Duration = Duration::from_secs(180);

/// A kernel, for those who do not own it. Clones are the same kernel.
#[derive(Clone, Debug)]
pub struct KernelHandle {
    id: KernelId,
    commands: mpsc::Sender<Command>,
    phase: Arc<watch::Sender<Phase>>,
    abort: CancellationToken,
    used: Arc<LastUsed>,
}

impl KernelHandle {
    /// Creates a kernel and waits until its container runs.
    ///
    /// # Errors
    /// Whatever failed; nothing is left then.
    pub async fn create(
        parts: &Arc<Parts>,
        id: KernelId,
        config: Box<KernelConfig>,
    ) -> Result<Reply, AgentError> {
        let (handle, owner) = Self::new(parts, id);
        parts.registry.add(&handle)?;
        let (reply, answer) = oneshot::channel();
        parts.tracker.spawn(owner.create(config, reply));
        match tokio::time::timeout(CREATE_LIMIT, answer).await {
            Ok(answer) => answer.unwrap_or(Ok(Reply::Cancelled)),
            Err(_) => {
                handle.abort("creation took too long").await;
                Err(AgentError::TimedOut(format!(
                    "creation of kernel {}",
                    handle.id
                )))
            }
        }
    }

    /// Takes back a kernel that has its container already.
    ///
    /// # Errors
    /// [`AgentError::Exists`].
    pub fn adopt(
        parts: &Arc<Parts>,
        id: KernelId,
        held: Held,
        container: Container,
    ) -> Result<(), AgentError> {
        let (handle, owner) = Self::new(parts, id);
        parts.registry.add(&handle)?;
        owner.show(&container);
        parts.tracker.spawn(owner.own(held, container));
        Ok(())
    }

    fn new(parts: &Arc<Parts>, id: KernelId) -> (Self, Owner) {
        let (commands, inbox) = mpsc::channel(16);
        let phase = Arc::new(watch::Sender::new(Phase::Pending));
        let (abort, used) = (CancellationToken::new(), Arc::new(LastUsed::now()));
        let owner = Owner {
            kernel: id.clone(),
            parts: Arc::clone(parts),
            inbox,
            phase: Arc::clone(&phase),
            abort: abort.clone(),
            used: Arc::clone(&used),
        };
        let handle = Self {
            id,
            commands,
            phase,
            abort,
            used,
        };
        (handle, owner)
    }

    /// The kernel's id.
    #[must_use]
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// It is used now.
    pub fn touch(&self) {
        self.used.touch();
    }

    /// The running container, where there is one at this moment.
    #[must_use]
    pub fn running(&self) -> Option<Arc<Live>> {
        match &*self.phase.borrow() {
            Phase::Running(live) => Some(Arc::clone(live)),
            Phase::Pending | Phase::Over => None,
        }
    }

    /// The container, as soon as there is one: calls wait while the kernel is created or restarted.
    ///
    /// # Errors
    /// [`AgentError::UnknownKernel`] when it is over.
    pub async fn live(&self) -> Result<Arc<Live>, AgentError> {
        let mut phase = self.phase.subscribe();
        let settled = phase.wait_for(|phase| !matches!(phase, Phase::Pending));
        match settled.await.as_deref() {
            Ok(Phase::Running(live)) => Ok(Arc::clone(live)),
            _ => Err(AgentError::UnknownKernel(self.id.clone())),
        }
    }

    /// Does something with the container, unless it ends meanwhile: then the answer is [`Reply::Cancelled`].
    ///
    /// # Errors
    /// Those of `act`, and [`AgentError::UnknownKernel`].
    pub async fn with_live<F>(&self, act: impl FnOnce(Arc<Live>) -> F) -> Result<Reply, AgentError>
    where
        F: Future<Output = Result<Reply, AgentError>>,
    {
        let live = self.live().await?;
        let token = live.token.clone();
        let done = token.run_until_cancelled(act(live)).await;
        done.unwrap_or(Ok(Reply::Cancelled))
    }

    /// Ends the kernel and waits until nothing is left of it; gives its last statistics.
    ///
    /// # Errors
    /// [`crate::runtime::RuntimeError::Unavailable`] while the engine does not answer, and [`AgentError::TimedOut`]; the kernel is still
    /// being ended then.
    pub async fn destroy(&self, reason: &str) -> Ended {
        let (reply, answer) = oneshot::channel();
        self.abort.cancel();
        let reason = reason.to_owned();
        let asked = async {
            let command = Command::Destroy { reason, reply };
            // When nobody takes it the kernel has ended by itself.
            if self.commands.send(command).await.is_err() {
                return Ok(None);
            }
            answer.await.unwrap_or(Ok(None))
        };
        tokio::time::timeout(DESTROY_LIMIT, asked)
            .await
            .unwrap_or_else(|_| {
                Err(AgentError::TimedOut(format!(
                    "destruction of kernel {}",
                    self.id
                )))
            })
    }

    /// Makes the kernel's container anew.
    ///
    /// # Errors
    /// Whatever failed; the kernel is over then.
    pub async fn restart(&self, config: Box<KernelConfig>) -> Result<Reply, AgentError> {
        let (reply, answer) = oneshot::channel();
        // Calls that come from now on wait for the new container.
        self.phase.send_if_modified(|phase| {
            let runs = matches!(phase, Phase::Running(_));
            if runs {
                *phase = Phase::Pending;
            }
            runs
        });
        let asked = async {
            let command = Command::Restart { config, reply };
            if self.commands.send(command).await.is_err() {
                return Err(AgentError::UnknownKernel(self.id.clone()));
            }
            answer.await.unwrap_or(Ok(Reply::Cancelled))
        };
        match tokio::time::timeout(RESTART_LIMIT, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(AgentError::TimedOut(format!(
                "restart of kernel {}",
                self.id
            ))),
        }
    }

    /// Tells the kernel that the engine no longer has this container, or has it only dead. Without effect when the
    /// kernel stands on another one by now.
    pub async fn container_gone(&self, container: ContainerId) {
        // When nobody takes it the kernel has ended by itself.
        let _ = self.commands.send(Command::Gone(container)).await;
    }

    /// Asks for the end without waiting for it.
    async fn abort(&self, reason: &str) {
        let (reply, _) = oneshot::channel();
        self.abort.cancel();
        let reason = reason.to_owned();
        // When nobody takes it the kernel has ended by itself.
        let _ = self.commands.send(Command::Destroy { reason, reply }).await;
    }
}
