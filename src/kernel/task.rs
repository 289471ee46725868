//! The task that owns one kernel: it waits for a command, the container's end, idleness or the agent's end, and there
//! is one way out, whoever asked.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::create::{Making, NotCreated};
use super::live::{Container, Held, LastUsed, Live};
use super::parts::Parts;
use crate::agent::AgentError;
use crate::agent::event::Event;
use crate::agent::request::{Created, KernelConfig, KernelId, Reply};
use crate::runtime::{ContainerId, RuntimeError};
use crate::stats::KernelStats;

/// SIGKILL.
const KILL: i32 = 9;
/// How long a killed container may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How often removing a container is tried before those who wait are told that it failed.
const REMOVE_TRIES: u32 = 3;
/// When no further try is begun.
const REMOVE_LIMIT: Duration = Duration::from_secs(45);
/// How long to wait before asking an engine again that did not answer, at first.
const RETRY: Duration = Duration::from_secs(1);
/// The longest wait before asking again.
const LONGEST_RETRY: Duration = Duration::from_secs(8);

/// How a destruction ended, for those who asked for it: with the kernel's last statistics.
pub type Ended = Result<Option<KernelStats>, AgentError>;

/// What others ask of the owner.
#[derive(Debug)]
pub enum Command {
    /// End the kernel.
    Destroy {
        /// Why.
        reason: String,
        /// Gets its last statistics, or why it is not ended yet.
        reply: oneshot::Sender<Ended>,
    },
    /// Make its container anew.
    Restart {
        /// Image and environment.
        config: Box<KernelConfig>,
        /// Gets the new container.
        reply: oneshot::Sender<Result<Reply, AgentError>>,
    },
    /// Look after a container that the engine no longer has, or has only dead.
    Gone(ContainerId),
}

/// Where a kernel is in its life, as calls see it.
#[derive(Clone, Debug)]
pub enum Phase {
    /// It has no container yet, or none at the moment: wait.
    Pending,
    /// Its container runs.
    Running(Arc<Live>),
    /// It is over.
    Over,
}

/// A kernel's owner.
#[derive(Debug)]
pub struct Owner {
    /// The kernel.
    pub kernel: KernelId,
    /// The node.
    pub parts: Arc<Parts>,
    /// Commands.
    pub inbox: mpsc::Receiver<Command>,
    /// Tells calls where it is.
    pub phase: Arc<watch::Sender<Phase>>,
    /// Cancelled together with a `Destroy` command, to cut a creation short.
    pub abort: CancellationToken,
    /// When it was last used.
    pub used: Arc<LastUsed>,
}

/// Why the owner stops serving a container.
enum Cause {
    /// The agent ends.
    Stop,
    /// The kernel ends; those who asked are answered at the end.
    End(String, Vec<oneshot::Sender<Ended>>),
    /// The container is replaced.
    Restart(
        Box<KernelConfig>,
        oneshot::Sender<Result<Reply, AgentError>>,
    ),
}

impl Owner {
    /// Creates the kernel, answers, and owns it to its end.
    pub async fn create(
        mut self,
        config: Box<KernelConfig>,
        reply: oneshot::Sender<Result<Reply, AgentError>>,
    ) {
        match self.making(&config).kernel().await {
            Ok((held, container)) => {
                let created = container.live.created(&self.parts, &held.resource);
                // A caller that gave up meanwhile has cancelled `abort` or will destroy the kernel.
                let _ = reply.send(Ok(Reply::Created(Box::new(created))));
                self.own(held, container).await;
            }
            Err(error) => {
                answer(self.close().await, None, &self.kernel);
                let _ = reply.send(match error {
                    NotCreated::Failed(error) => Err(error),
                    NotCreated::Aborted => Ok(Reply::Cancelled),
                });
            }
        }
    }

    /// Owns a kernel that has its container, to its end.
    pub async fn own(mut self, mut held: Held, mut container: Container) {
        loop {
            self.used.touch();
            self.show(&container);
            match self.serve(&held, &container.live).await {
                Cause::Stop => return,
                Cause::End(reason, waiting) => {
                    return self.end(reason, waiting, held, Some(container)).await;
                }
                Cause::Restart(config, reply) => {
                    match self.restart(&config, &mut held, container).await {
                        Ok((next, created)) => {
                            let _ = reply.send(Ok(Reply::Created(Box::new(created))));
                            container = next;
                        }
                        Err((error, old)) => {
                            let reason = "restarting".to_owned();
                            let away = old.is_some();
                            let end = self.end(reason, Vec::new(), held, old);
                            if away {
                                // That takes as long as the engine is away.
                                let _ = reply.send(error);
                                return end.await;
                            }
                            end.await;
                            let _ = reply.send(error);
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Lets calls use a container.
    pub fn show(&self, container: &Container) {
        let live = Arc::clone(&container.live);
        self.phase.send_replace(Phase::Running(live));
    }

    fn making<'a>(&'a self, config: &'a KernelConfig) -> Making<'a> {
        Making {
            parts: &self.parts,
            kernel: &self.kernel,
            config,
            abort: &self.abort,
        }
    }

    /// Waits for whatever ends this container's time.
    async fn serve(&mut self, held: &Held, live: &Live) -> Cause {
        let mut ended = pin!(ended(&self.parts, &live.container));
        let mut idle = pin!(idle(&self.used, held.resource.idle_timeout));
        let itself = || Cause::End("self-terminated".to_owned(), Vec::new());
        loop {
            tokio::select! {
                () = self.parts.stop.cancelled() => return Cause::Stop,
                () = &mut ended => return itself(),
                () = &mut idle => return Cause::End("idle-timeout".to_owned(), Vec::new()),
                Some(command) = self.inbox.recv() => match command {
                    Command::Destroy { reason, reply } => return Cause::End(reason, vec![reply]),
                    Command::Restart { config, reply } => return Cause::Restart(config, reply),
                    Command::Gone(container) if container == live.container => return itself(),
                    // An earlier container of this kernel.
                    Command::Gone(_) => {}
                },
            }
        }
    }

    /// Replaces the container. The manager is told nothing of the old one's end: it ignores that while it restarts a
    /// session, and coming late it would end the new one.
    async fn restart(
        &self,
        config: &KernelConfig,
        held: &mut Held,
        old: Container,
    ) -> Result<(Container, Created), (Result<Reply, AgentError>, Option<Container>)> {
        self.phase.send_replace(Phase::Pending);
        old.live.token.cancel();
        if let Err(error) = self.remove(&old.live.container).await {
            return Err((Err(error.into()), Some(old)));
        }
        // The old ports are given back last, so that the new ones are others wherever the pool has others.
        let config = with_held(config, held);
        let mut made = self.making(&config).again(held).await;
        if matches!(
            made,
            Err(NotCreated::Failed(AgentError::PortsExhausted { .. }))
        ) {
            drop(old);
            made = self.making(&config).again(held).await;
        }
        match made {
            Ok(container) => {
                let created = container.live.created(&self.parts, &held.resource);
                Ok((container, created))
            }
            Err(NotCreated::Failed(error)) => Err((Err(error), None)),
            Err(NotCreated::Aborted) => Err((Ok(Reply::Cancelled), None)),
        }
    }

    /// Gives back everything, reports the end and answers those who wait for it.
    async fn end(
        mut self,
        reason: String,
        mut waiting: Vec<oneshot::Sender<Ended>>,
        held: Held,
        container: Option<Container>,
    ) {
        self.phase.send_replace(Phase::Over);
        if let Some(container) = container {
            container.live.token.cancel();
            let dead = self.kill(&container.live.container).await;
            self.parts.stats.last(&container.live).await;
            let removed = self.remove_at_last(&container.live.container, &mut waiting);
            let emptied = async {
                // Nobody writes there any more. What tells whose container it is stays until that is gone.
                if dead {
                    held.scratch.empty_work().await;
                }
            };
            let (removed, ()) = tokio::join!(removed, emptied);
            if !removed {
                return;
            }
        }
        let stats = self.parts.stats.take(self.kernel.clone()).await;
        if let Err(error) = held.scratch.remove().await {
            tracing::error!(kernel = %self.kernel, "{error}");
        }
        drop(held.allocation);
        let late = self.close().await;
        self.parts.emit(Event::KernelTerminated {
            kernel: self.kernel.clone(),
            reason,
            stats,
        });
        for reply in waiting {
            let _ = reply.send(Ok(stats));
        }
        answer(late, stats, &self.kernel);
    }

    /// Removes the container, however long its engine is away: what the kernel holds is in use until then. Those who
    /// wait are told when it takes long. `false`: the agent ends, and the next one will find the container.
    async fn remove_at_last(
        &mut self,
        container: &ContainerId,
        waiting: &mut Vec<oneshot::Sender<Ended>>,
    ) -> bool {
        loop {
            match self.remove(container).await {
                Err(error @ RuntimeError::Unavailable { .. }) => {
                    self.tell(&error, waiting);
                }
                // What is left is found by the next reconciliation.
                Ok(()) | Err(_) => return true,
            }
            let stopped = self.parts.stop.cancelled();
            if tokio::time::timeout(LONGEST_RETRY, stopped).await.is_ok() {
                return false;
            }
        }
    }

    /// Tells all who asked for the end that it has to wait for the engine.
    fn tell(&mut self, error: &RuntimeError, waiting: &mut Vec<oneshot::Sender<Ended>>) {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Destroy { reply, .. } => waiting.push(reply),
                other => answer(vec![other], None, &self.kernel),
            }
        }
        let cause = std::error::Error::source(error).map(ToString::to_string);
        for reply in waiting.drain(..) {
            let (kernel, cause) = (&self.kernel, cause.clone().unwrap_or_default());
            let error = RuntimeError::Unavailable {
                engine: "container engine",
                source: format!("{error} ({cause}); kernel {kernel} ends when it answers").into(),
            };
            let _ = reply.send(Err(error.into()));
        }
    }

    /// Takes the kernel out of the registry; gives the commands that came too late.
    async fn close(&mut self) -> Vec<Command> {
        self.phase.send_replace(Phase::Over);
        self.parts.registry.forget(&self.kernel);
        self.inbox.close();
        let mut late = Vec::new();
        while let Some(command) = self.inbox.recv().await {
            late.push(command);
        }
        late
    }

    /// Kills the container and waits until it is dead, so that its last statistics are complete. `false`: it may live.
    async fn kill(&self, container: &ContainerId) -> bool {
        let killed = self.parts.runtime.kill(container, KILL);
        match self.parts.within(killed, "kill").await {
            Ok(()) => {
                let dead = tokio::time::timeout(END_LIMIT, ended(&self.parts, container)).await;
                if dead.is_err() {
                    tracing::warn!(kernel = %self.kernel, %container, "survives SIGKILL for 10 s");
                }
                dead.is_ok()
            }
            Err(RuntimeError::NotFound(_)) => true,
            Err(error) => {
                tracing::warn!(kernel = %self.kernel, %container, "{error}");
                false
            }
        }
    }

    /// Removes the container; tries a few times.
    async fn remove(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        if self.parts.keep_containers {
            self.kill(container).await;
            return Ok(());
        }
        let begin = Instant::now();
        for attempt in 1.. {
            let removed = self.parts.runtime.remove(container);
            match self.parts.within(removed, "removal").await {
                Ok(()) | Err(RuntimeError::NotFound(_)) => break,
                Err(error) => {
                    tracing::warn!(kernel = %self.kernel, %container, attempt, "{error}");
                    if attempt == REMOVE_TRIES || begin.elapsed() > REMOVE_LIMIT {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }
}

/// Answers commands that came when the kernel was over. Those who asked may have given up.
fn answer(commands: Vec<Command>, stats: Option<KernelStats>, kernel: &KernelId) {
    for command in commands {
        match command {
            Command::Destroy { reply, .. } => {
                let _ = reply.send(Ok(stats));
            }
            Command::Restart { reply, .. } => {
                let _ = reply.send(Err(AgentError::UnknownKernel(kernel.clone())));
            }
            Command::Gone(_) => {}
        }
    }
}

/// A restart's request, completed by what the kernel keeps.
fn with_held(config: &KernelConfig, held: &Held) -> KernelConfig {
    KernelConfig {
        slots: held.resource.slots.clone(),
        idle_timeout: held.resource.idle_timeout,
        ..config.clone()
    }
}

/// Waits until the container is over, however often the engine has to be asked.
async fn ended(parts: &Parts, container: &ContainerId) {
    let mut pause = RETRY;
    loop {
        match parts.runtime.wait(container).await {
            Ok(_) | Err(RuntimeError::NotFound(_)) => return,
            Err(error) => {
                tracing::warn!(%container, "cannot wait for its end: {error}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_RETRY);
            }
        }
    }
}

/// Waits until the kernel has not been used for so many seconds; 0 is never.
async fn idle(used: &LastUsed, seconds: u64) {
    if seconds == 0 {
        return std::future::pending().await;
    }
    let limit = Duration::from_secs(seconds);
    loop {
        match used.get().checked_add(limit) {
            None => return std::future::pending().await,
            Some(due) if due <= Instant::now() => return,
            Some(due) => tokio::time::sleep_until(due).await,
        }
    }
}
