//! What is asked of a container between `create` and `remove`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::{
    Container, GetContainerRequest, GetRequest, KillRequest, ListContainersRequest,
    ListTasksRequest, StartRequest, WaitRequest,
};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use tokio::time::{Instant, sleep};

use super::client::{absent_is_done, failed, is_down};
use super::record::{Kept, info};
use super::{Inner, LOGS, NAME};
use crate::runtime::log;
use crate::runtime::record::Record;
use crate::runtime::{
    ContainerId, ContainerInfo, ExitStatus, LABEL_OWNER, OWNER, Result, RuntimeError, blocking,
    check,
};

/// How often a wait asks whether the daemon is still there.
const WATCH: Duration = Duration::from_secs(10);
/// How long a wait bears with a daemon that is away, as in a restart.
const AWAY: Duration = Duration::from_secs(30);
/// Pause before a wait looks again.
const PAUSE: Duration = Duration::from_millis(200);

impl Inner {
    /// A container of ours with its record.
    pub(super) async fn container(&self, id: &ContainerId) -> Result<(Container, Record)> {
        let unknown = || RuntimeError::NotFound(id.clone());
        let container = self.container_if_any(id).await?.ok_or_else(unknown)?;
        let kept = Kept::of(&container).ok_or_else(unknown)?;
        Ok((container, kept.record))
    }

    pub(super) async fn container_if_any(&self, id: &ContainerId) -> Result<Option<Container>> {
        if !check::is_id(id) {
            return Ok(None);
        }
        let request = GetContainerRequest { id: id.0.clone() };
        let answer = self.client.ask(request).await;
        let found =
            absent_is_done(answer).map_err(failed(format!("looking for container {id}")))?;
        Ok(found.and_then(|found| found.container))
    }

    /// The container's task: it has one from `create` until `remove`, unless the machine or the shim went down.
    pub(super) async fn task(&self, id: &ContainerId) -> Result<Option<Process>> {
        let request = GetRequest {
            container_id: id.0.clone(),
            ..GetRequest::default()
        };
        let answer = self.client.ask(request).await;
        let found = absent_is_done(answer).map_err(failed(format!("looking at container {id}")))?;
        Ok(found.and_then(|found| found.process))
    }

    pub(super) async fn start(&self, id: &ContainerId) -> Result<()> {
        if !check::is_id(id) {
            return Err(RuntimeError::NotFound(id.clone()));
        }
        let request = StartRequest {
            container_id: id.0.clone(),
            ..StartRequest::default()
        };
        let answer = self.client.ask(request).await;
        let status = match answer {
            Ok(_) => return Ok(()),
            Err(status) if is_down(&status) => return Err(failed("starting")(status)),
            Err(status) => status,
        };
        self.container(id).await?;
        match self.task(id).await? {
            Some(task) if task.status() == TaskStatus::Created => {
                Err(failed(format!("starting container {id}"))(status))
            }
            _ => Err(RuntimeError::Invalid(format!(
                "container {id} was started before"
            ))),
        }
    }

    pub(super) async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        let (container, _) = self.container(id).await?;
        let number = check::signal(signal)?;
        let request = KillRequest {
            container_id: container.id,
            signal: number.as_raw().cast_unsigned(),
            ..KillRequest::default()
        };
        let answer = self.client.ask(request).await;
        let Err(status) = absent_is_done(answer) else {
            return Ok(());
        };
        // Runtimes have many words for a process that has ended.
        if !is_down(&status) && self.inspect(id).await?.pid.is_none() {
            return Ok(());
        }
        Err(failed(format!("signalling container {id}"))(status))
    }

    /// Looks again after whatever ends a call but not the container: a daemon that restarts, a shim that died.
    pub(super) async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        let mut failing: Option<Instant> = None;
        loop {
            let began = Instant::now();
            match self.wait_once(id).await {
                Ok(Some(exit)) => return Ok(exit),
                // It is being made.
                Ok(None) => failing = None,
                Err(RuntimeError::NotFound(id)) => return Err(RuntimeError::NotFound(id)),
                Err(error) => {
                    let since = *failing.get_or_insert_with(Instant::now);
                    if began.elapsed() > AWAY {
                        failing = Some(Instant::now());
                    } else if since.elapsed() > AWAY {
                        return Err(error);
                    }
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn wait_once(&self, id: &ContainerId) -> Result<Option<ExitStatus>> {
        let (_, record) = self.container(id).await?;
        let folder = self.folders.of(id);
        if let Ok(Some(exit)) = folder.exit() {
            return Ok(Some(exit));
        }
        if self.folders.is_being_made(id) {
            return Ok(None);
        }
        let request = WaitRequest {
            container_id: id.0.clone(),
            ..WaitRequest::default()
        };
        let ended = absent_is_done(self.client.ask_watching(WATCH, request).await);
        let ended = ended.map_err(failed(format!("waiting for container {id}")))?;
        if ended.is_none() {
            // Removed, or its task went down with the machine or its shim.
            self.container(id).await?;
        }
        let exit = record.ended(ended.map(|ended| code(ended.exit_status)));
        log::complete(&folder.file(LOGS)).await;
        // A container that is being removed has no folder any more.
        let kept = tokio::task::spawn_blocking(move || folder.set_exit(exit)).await;
        if let Ok(Err(error)) = kept
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("keeping how container {id} ended: {error}");
        }
        Ok(Some(exit))
    }

    pub(super) async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        let (_, record) = self.container(id).await?;
        let task = self.task(id).await?;
        let exit = self.exit(id, &record, task.as_ref());
        Ok(info(record, id.clone(), task.as_ref(), exit))
    }

    /// How a container ended, if it has.
    fn exit(
        &self,
        id: &ContainerId,
        record: &Record,
        task: Option<&Process>,
    ) -> Option<ExitStatus> {
        if let Ok(Some(exit)) = self.folders.of(id).exit() {
            return Some(exit);
        }
        match task {
            None => Some(record.ended(None)),
            Some(task) if task.status() == TaskStatus::Stopped => {
                Some(record.ended(Some(code(task.exit_status))))
            }
            Some(_) => None,
        }
    }

    pub(super) async fn list(&self) -> Result<Vec<ContainerInfo>> {
        self.sweep().await;
        let filters = vec![format!("labels.{LABEL_OWNER:?}=={OWNER:?}")];
        let containers = self.client.ask(ListContainersRequest { filters }).await;
        // After the containers: one whose task comes between the two is seen with it.
        let tasks = self.client.ask(ListTasksRequest::default()).await;
        let failed = || failed("listing containers");
        let tasks = tasks.map_err(failed())?.tasks.into_iter();
        let tasks: HashMap<String, Process> = tasks
            .map(|task| (task.container_id.clone(), task))
            .collect();
        let mut all = Vec::new();
        for container in containers.map_err(failed())?.containers {
            if let Some(kept) = Kept::of(&container) {
                let id = ContainerId(container.id);
                all.extend(self.listed(id, kept.record, &tasks).await?);
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// `None` for a container that is being made, or has gone meanwhile.
    async fn listed(
        &self,
        id: ContainerId,
        record: Record,
        tasks: &HashMap<String, Process>,
    ) -> Result<Option<ContainerInfo>> {
        if self.folders.is_being_made(&id) {
            return Ok(None);
        }
        let mut task = tasks.get(&id.0).cloned();
        if task.is_none() {
            // The list leaves out tasks whose shim was slow: nobody may take those for dead.
            task = self.task(&id).await?;
            if task.is_none() && self.container_if_any(&id).await?.is_none() {
                return Ok(None);
            }
        }
        let exit = self.exit(&id, &record, task.as_ref());
        Ok(Some(info(record, id, task.as_ref(), exit)))
    }

    pub(super) async fn log_folder(&self, id: &ContainerId) -> Result<PathBuf> {
        self.container(id).await?;
        Ok(self.folders.of(id).file(LOGS))
    }

    pub(super) async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        let logs = self.log_folder(id).await?;
        let action = format!("reading the log of container {id}");
        let read = move || Ok(backendai_monitor::log::tail(&logs, limit)?);
        blocking(NAME, action, read).await
    }
}

/// A code as the contract has it.
fn code(code: u32) -> i32 {
    i32::try_from(code).unwrap_or(255)
}
