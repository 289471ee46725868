//! `remove`: takes apart whatever is there of a container, in any state, as often as asked.

use std::time::Duration;

use containerd_client::services::v1::{
    DeleteContainerRequest, DeleteTaskRequest, KillRequest, WaitRequest,
};
use tonic::Code;

use super::client::{absent_is_done, engine_error, failed, is_down};
use super::record::Kept;
use super::{Inner, NAME};
use crate::runtime::sandbox::Sandbox;
use crate::runtime::{self, BoxError, ContainerId, Result, RuntimeError, check};

/// How long the death of a killed process may take before `remove` gives up, to be repeated.
const PATIENCE: Duration = Duration::from_secs(10);
/// Number of the signal that nothing survives.
const KILL: u32 = 9;

impl Inner {
    pub(super) async fn remove(&self, id: &ContainerId) -> Result<()> {
        if !check::is_id(id) {
            return Ok(());
        }
        let folder = self.folders.of(id);
        let lock = blocking(id, move || Ok(folder.lock()?)).await?;
        if lock.is_some() || self.container_if_any(id).await?.is_some() {
            self.take_apart(id).await?;
        }
        drop(lock);
        Ok(())
    }

    /// Removes containers whose `create` was cut off with its agent.
    pub(super) async fn sweep(&self) {
        let ids = self.folders.ids().unwrap_or_else(|error| {
            tracing::warn!("looking for torn containers: {error}");
            Vec::new()
        });
        for id in ids {
            // One that cannot be looked at is left for the next time.
            if let Ok(Some(lock)) = self.folders.torn(&id) {
                if let Err(error) = self.take_apart(&id).await {
                    tracing::warn!("removing what is left of container {id}: {error}");
                }
                drop(lock);
            }
        }
    }

    /// Ends and removes everything; the caller holds the folder's lock.
    pub(super) async fn take_apart(&self, id: &ContainerId) -> Result<()> {
        let container = self.container_if_any(id).await?;
        self.kill_task(id).await?;
        let kept = container.as_ref().and_then(Kept::of);
        let cgroup = kept.map_or_else(|| self.sandbox.cgroup(id), |kept| kept.record.cgroup);
        let snapshotter = container.map(|container| container.snapshotter);
        let snapshotter = snapshotter.unwrap_or_else(|| self.images().snapshotter().to_owned());
        let engine = async {
            self.delete_task(id).await?;
            let cgroups = blocking(id, move || Sandbox::remove_room(&cgroup));
            let (records, cgroups) = tokio::join!(self.delete_records(id, &snapshotter), cgroups);
            records.and(cgroups)
        };
        // Linux takes its time for either.
        let (engine, network) = tokio::join!(engine, self.sandbox.detach(id));
        self.collector.soon(&self.background);
        engine?;
        network.map_err(|error| removing(id, error))?;
        let removed = self.folders.of(id).remove();
        removed.map_err(|error| removing(id, error.into()))
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
        match self.images().remove_snapshot(snapshotter, &id.0).await {
            // The snapshotter is not there any more: neither is the snapshot.
            Err(status) if status.code() == Code::InvalidArgument => Ok(()),
            other => other.map_err(failed(format!("removing the snapshot of container {id}"))),
        }
    }
}

fn removing(id: &ContainerId, error: BoxError) -> RuntimeError {
    engine_error(format!("removing container {id}"), error)
}

async fn blocking<T: Send + 'static>(
    id: &ContainerId,
    work: impl FnOnce() -> Result<T, BoxError> + Send + 'static,
) -> Result<T> {
    runtime::blocking(NAME, format!("removing container {id}"), work).await
}
