//! `remove`: takes apart whatever is there of a container, in any state, as often as asked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteContainerRequest, DeleteTaskRequest, KillRequest, WaitRequest,
};
use tonic::Code;

use super::Inner;
use super::client::{absent_is_done, engine_error, failed, is_down};
use super::record::Record;
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::{BoxError, ContainerId, Result, check};

/// How long the death of a killed process may take before `remove` gives up, to be repeated.
const PATIENCE: Duration = Duration::from_secs(10);
/// Number of the signal that nothing survives.
const KILL: u32 = 9;

impl Inner {
    pub(super) async fn remove(&self, id: &ContainerId) -> Result<()> {
        if !check::is_id(id) {
            return Ok(());
        }
        let failed = |error| engine_error(format!("removing container {id}"), error);
        let folder = self.folders.of(id).open();
        let folder = folder.map_err(|error| failed(error.into()))?;
        let lock = match folder {
            Some(folder) => Some(locked(folder).await.map_err(failed)?),
            None => None,
        };
        if lock.is_some() || self.container_if_any(id).await?.is_some() {
            self.take_apart(id).await?;
        }
        drop(lock);
        Ok(())
    }

    /// Removes containers whose `create` was cut off with its agent.
    pub(super) async fn sweep(&self) {
        let torn = match self.folders.torn() {
            Ok(torn) => torn,
            Err(error) => return tracing::warn!("looking for torn containers: {error}"),
        };
        for (id, lock) in torn {
            if let Err(error) = self.take_apart(&id).await {
                tracing::warn!("removing what is left of container {id}: {error}");
            }
            drop(lock);
        }
    }

    /// Ends and removes everything; the caller holds the folder's lock.
    pub(super) async fn take_apart(&self, id: &ContainerId) -> Result<()> {
        let container = self.container_if_any(id).await?;
        self.kill_task(id).await?;
        let record = container.as_ref().and_then(Record::of);
        let cgroup = record.map_or_else(|| Path::new("/backendai").join(&id.0), |it| it.cgroup);
        let snapshotter = container.map(|container| container.snapshotter);
        let snapshotter = snapshotter.unwrap_or_else(|| self.images.snapshotter().to_owned());
        let failed = |error| engine_error(format!("removing container {id}"), error);
        let engine = async {
            self.delete_task(id).await?;
            let (records, cgroups) = tokio::join!(
                self.delete_records(id, &snapshotter),
                remove_cgroups(cgroup)
            );
            records?;
            cgroups.map_err(failed)
        };
        // Linux takes its time for either.
        let (engine, network) = tokio::join!(engine, self.network.detach(&id.0));
        engine?;
        network.map_err(|error| failed(error.into()))?;
        let removed = self.folders.of(id).remove();
        removed.map_err(|error| failed(error.into()))
    }

    /// Kills the first process, and with it all others.
    async fn kill_task(&self, id: &ContainerId) -> Result<()> {
        let kill = KillRequest {
            container_id: id.0.clone(),
            signal: KILL,
            ..KillRequest::default()
        };
        match absent_is_done(self.client.ask(kill).await) {
            Err(status) if is_down(&status) => {
                Err(failed(format!("ending container {id}"))(status))
            }
            // Runtimes have many words for a process that has ended.
            Err(status) => {
                tracing::debug!("killing container {id}: {}", status.message());
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Removes the task with its mounts once its processes are gone.
    async fn delete_task(&self, id: &ContainerId) -> Result<()> {
        let wait = WaitRequest {
            container_id: id.0.clone(),
            ..WaitRequest::default()
        };
        let delete = DeleteTaskRequest {
            container_id: id.0.clone(),
        };
        let deleted = async {
            absent_is_done(self.client.ask_within(PATIENCE, wait).await)?;
            absent_is_done(self.client.ask(delete).await)
        };
        let deleted = deleted.await.map(drop);
        deleted.map_err(failed(format!("ending container {id}")))
    }

    async fn delete_records(&self, id: &ContainerId, snapshotter: &str) -> Result<()> {
        let request = DeleteContainerRequest { id: id.0.clone() };
        let deleted = absent_is_done(self.client.ask(request).await);
        deleted.map_err(failed(format!("removing container {id}")))?;
        match self.images.remove_snapshot(snapshotter, &id.0).await {
            // The snapshotter is not there any more: neither is the snapshot.
            Err(status) if status.code() == Code::InvalidArgument => Ok(()),
            other => other.map_err(failed(format!("removing the snapshot of container {id}"))),
        }
    }
}

/// Waits for a `create` or `remove` of the same container to be over.
async fn locked(folder: File) -> Result<File, BoxError> {
    let lock = move || folder.lock().map(|()| folder);
    Ok(tokio::task::spawn_blocking(lock).await??)
}

async fn remove_cgroups(path: PathBuf) -> Result<(), BoxError> {
    let remove = move || Hierarchies::read()?.remove(&path);
    Ok(tokio::task::spawn_blocking(remove).await??)
}
