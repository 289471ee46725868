//! A container's life: create, start, wait, kill, remove.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::future::FusedFuture as _;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{sleep, timeout};

use super::connect::{self, message};
use super::notes::{Made, Stage};
use super::{Docker, LABEL_ATTEMPT, create, failed, invalid, known, not_found, status};
use crate::runtime::{
    ContainerId, ContainerInfo, ContainerSpec, ContainerState, ExitStatus, Limits, Result,
    RuntimeError, check,
};

/// How often a container that is not started yet is looked at while its end is waited for.
const GLANCE: Duration = Duration::from_millis(100);
/// How often a removal that goes on elsewhere is looked at before dockerd's answer counts as an error: half a minute.
const REMOVAL_GLANCES: u32 = 300;
/// How long to wait before asking a daemon again that did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How long undoing may take: a daemon that has just failed may be gone.
const UNDO: Duration = Duration::from_secs(5);
/// Parent of the cgroups that the agent makes itself.
const CGROUPS: &str = "/backendai";

impl Docker {
    pub(super) async fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        check::request(spec)?;
        check::sources(spec)?;
        match self.make(spec).await {
            Ok(id) => Ok(id),
            Err(NotMade::Taken(error)) => Err(error),
            Err(NotMade::Failed(error)) => {
                self.undo(spec).await;
                Err(error)
            }
        }
    }

    async fn make(&self, spec: &ContainerSpec) -> Result<ContainerId, NotMade> {
        let mut spec = spec.clone();
        let parent = self.limit(&spec.id, &mut spec.limits)?;
        let body = create::body(&spec, &self.devices, parent.as_deref())?;
        let options = CreateContainerOptionsBuilder::default()
            .name(&spec.name)
            .build();
        let call = self.client.api.create_container(Some(options), body);
        let made = self
            .client
            .act(format!("creating {}", spec.name), call)
            .await;
        let made = made.map_err(|error| refused(&spec, error))?;
        if let Some(warning) = create::discarded(&made.warnings) {
            let text = format!("a limit is not applied: {warning}");
            return Err(invalid(&spec.id, &text).into());
        }
        for warning in &made.warnings {
            tracing::debug!(container = %made.id, "docker: {warning}");
        }
        let id = ContainerId(made.id);
        self.check_program(&id, &spec).await?;
        self.notes.made(&id, Made { cgroup: parent });
        Ok(id)
    }

    /// Makes the cgroup with the limits where the agent does that, and takes out of `limits` what cannot be limited.
    fn limit(&self, id: &ContainerId, limits: &mut Limits) -> Result<Option<PathBuf>> {
        let path = Path::new(CGROUPS).join(&id.0);
        let action = || format!("limiting container {id}");
        if self.own_cgroups {
            self.cgroups.create(&path).map_err(failed(action()))?;
        }
        if self.own_cgroups || !self.cgroups.is_unified() {
            let limited = self.cgroups.limit(&path, limits);
            limited.map_err(failed(action()))?;
        }
        Ok(self.own_cgroups.then_some(path))
    }

    /// Leaves nothing of a creation that failed, also where its answer was lost. Where the daemon does not answer now
    /// either, the agent's next comparison finds the container by its labels.
    async fn undo(&self, spec: &ContainerSpec) {
        match timeout(UNDO, self.remove_attempt(&spec.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("undoing container {}: {error}", spec.id),
            Err(_) => tracing::warn!("undoing container {}: docker does not answer", spec.id),
        }
    }

    pub(super) async fn start_container(&self, id: &ContainerId) -> Result<()> {
        known(id)?;
        let never_started = match self.notes.begin_start(id) {
            None => false,
            Some(Stage::Made) => true,
            Some(Stage::Starting | Stage::Killed(_)) => {
                let problem = "it is being started, or was killed before it was";
                return Err(invalid(id, problem));
            }
        };
        let started = self.start_begun(id, never_started).await;
        self.notes.end_start(id);
        started
    }

    async fn start_begun(&self, id: &ContainerId, never_started: bool) -> Result<()> {
        // dockerd would start a dead container once more, and is silent about one that runs.
        if !never_started && self.look_at(id).await?.state != ContainerState::Created {
            return Err(invalid(id, "it was started before; make a new one"));
        }
        let call = self
            .client
            .api
            .start_container(&id.0, None::<StartContainerOptions>);
        let started = self
            .client
            .act(format!("starting container {id}"), call)
            .await;
        started.map_err(|error| not_started(id, error))
    }

    /// Level-triggered: dockerd's answer only tells when to look again, also after the daemon was away.
    pub(super) async fn wait_for_end(&self, id: &ContainerId) -> Result<ExitStatus> {
        loop {
            let pause = match self.look_at(id).await {
                Ok(info) => match (info.state, info.exit) {
                    (ContainerState::Stopped, Some(exit)) => return Ok(exit),
                    (ContainerState::Running, _) => self.until_not_running(&info).await,
                    _ => GLANCE,
                },
                Err(RuntimeError::Unavailable { .. }) => RETRY,
                Err(error) => return Err(error),
            };
            sleep(pause).await;
        }
    }

    /// Waits on the daemon; gives how long to wait before looking at the container.
    async fn until_not_running(&self, info: &ContainerInfo) -> Duration {
        use bollard::errors::Error;
        let options = WaitContainerOptionsBuilder::default()
            .condition("not-running")
            .build();
        let call = self.client.api.wait_container(&info.id.0, Some(options));
        let (mut ends, mut noting) = (pin!(call), pin!(self.note_out_of_memory(info).fuse()));
        loop {
            tokio::select! {
                () = &mut noting, if !noting.is_terminated() => {}
                // The client makes an error of every exit code but 0.
                end = ends.next() => return match end {
                    Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Duration::ZERO,
                    _ => RETRY,
                },
            }
        }
    }

    /// When the first process ends, notes whether memory ran out: dockerd does not know it where containerd cannot watch
    /// the cgroup.
    async fn note_out_of_memory(&self, info: &ContainerInfo) {
        if let (Some(pid), Some(cgroup)) = (info.pid, &info.cgroup)
            && self.cgroups.oom_killed_at_end(pid, cgroup).await
        {
            self.notes.ran_out_of_memory(&info.id);
        }
    }

    pub(super) async fn send_signal(&self, id: &ContainerId, signal: i32) -> Result<()> {
        known(id)?;
        let options = KillContainerOptionsBuilder::default()
            .signal(&signal.to_string())
            .build();
        let call = self.client.api.kill_container(&id.0, Some(options));
        let action = format!("sending signal {signal} to container {id}");
        match self.client.act(action, call).await.map_err(not_found(id)) {
            Err(error) if message(&error).contains("not running") => {}
            other => return other,
        }
        if self.look_at(id).await?.state == ContainerState::Created {
            self.notes.kill_early(id, signal);
        }
        Ok(())
    }

    pub(super) async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        if known(id).is_err() {
            return Ok(());
        }
        if let Some(made) = self.notes.how_made(id) {
            self.delete(id).await?;
            return self.remove_cgroup(id, made.cgroup);
        }
        match self.raw(id).await {
            Ok(raw) => self.remove_raw(id, &raw).await,
            Err(RuntimeError::NotFound(_)) => self.remove_attempt(id).await,
            Err(error) => Err(error),
        }
    }

    /// Removes what was made for an id that the agent asked for.
    async fn remove_attempt(&self, attempt: &ContainerId) -> Result<()> {
        let label = format!("{LABEL_ATTEMPT}={attempt}");
        let action = format!("looking for container {attempt}");
        let found = self.client.containers(action, Some(("label", label)));
        let found = found.await?;
        for id in found.into_iter().filter_map(|summary| summary.id) {
            self.delete(&ContainerId(id)).await?;
        }
        self.remove_cgroup(attempt, None)
    }

    async fn remove_raw(
        &self,
        id: &ContainerId,
        raw: &bollard::models::ContainerInspectResponse,
    ) -> Result<()> {
        self.delete(id).await?;
        let info = status::info(id, raw);
        if let Some(beside) = self.adoption.as_ref().and_then(|it| it.beside(&info)) {
            self.delete_named(&beside).await?;
        }
        let parent = raw
            .host_config
            .as_ref()
            .and_then(|host| host.cgroup_parent.clone());
        self.remove_cgroup(id, parent.map(PathBuf::from))
    }

    async fn delete(&self, id: &ContainerId) -> Result<()> {
        self.delete_named(&id.0).await?;
        self.notes.forget(id);
        Ok(())
    }

    /// Ends and removes a container with its anonymous volumes; absent is done.
    async fn delete_named(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let mut glances = 0;
        loop {
            let call = self
                .client
                .api
                .remove_container(name, Some(options.clone()));
            let removed = self
                .client
                .act(format!("removing container {name}"), call)
                .await;
            match removed {
                Err(error) if connect::status(&error) == Some(404) => return Ok(()),
                // Someone else removes it: it is done when dockerd does not know it any more.
                Err(error)
                    if glances < REMOVAL_GLANCES && message(&error).contains("in progress") =>
                {
                    glances += 1;
                    sleep(GLANCE).await;
                }
                other => return other,
            }
        }
    }

    /// Removes the cgroup that was made for a container, where the agent makes them.
    fn remove_cgroup(&self, id: &ContainerId, parent: Option<PathBuf>) -> Result<()> {
        let path = parent.unwrap_or_else(|| Path::new(CGROUPS).join(&id.0));
        if !self.own_cgroups || !path.starts_with(CGROUPS) {
            return Ok(());
        }
        let removed = self.cgroups.remove(&path);
        removed.map_err(failed(format!("removing container {id}")))
    }
}

/// Why a container was not made.
enum NotMade {
    /// Another one has its name, and lives on.
    Taken(RuntimeError),
    /// Something of it may be there.
    Failed(RuntimeError),
}

impl From<RuntimeError> for NotMade {
    fn from(error: RuntimeError) -> Self {
        Self::Failed(error)
    }
}

fn refused(spec: &ContainerSpec, error: RuntimeError) -> NotMade {
    let text = message(&error);
    match connect::status(&error) {
        Some(404) => RuntimeError::ImageMissing(spec.image.clone()).into(),
        Some(409) => {
            let text = format!(
                "the name {} is taken ({text}); remove that first",
                spec.name
            );
            NotMade::Taken(invalid(&spec.id, &text))
        }
        Some(400) => invalid(&spec.id, &text).into(),
        // Some of what Linux would refuse is called an error of the daemon.
        Some(_) if text.contains("nvalid") => invalid(&spec.id, &text).into(),
        _ => error.into(),
    }
}

/// Why a container was not started.
fn not_started(id: &ContainerId, error: RuntimeError) -> RuntimeError {
    let text = message(&error);
    let ports = [
        "port is already allocated",
        "address already in use",
        "ports are not available",
    ];
    let programs = [
        "executable file not found",
        "no such file or directory",
        "permission denied",
        "is a directory",
        "exec format error",
    ];
    if connect::status(&error) == Some(404) && text.contains("No such container") {
        RuntimeError::NotFound(id.clone())
    } else if ports.iter().any(|sign| text.contains(sign)) {
        invalid(id, &format!("a port is taken: {text}"))
    } else if connect::status(&error).is_some() && programs.iter().any(|sign| text.contains(sign)) {
        invalid(id, &text)
    } else {
        error
    }
}
