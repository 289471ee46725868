//! An engine whose ids are noted.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backendai_agent::runtime::{
    ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ExecOutput, ExecSpec, ExitStatus,
    LogPart, Result, RuntimeInfo,
};
use tokio::sync::mpsc;

/// Notes the ids that an engine gives, and lists no others where other tests use the same daemon.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) engine: Arc<dyn ContainerRuntime>,
    pub(super) ids: Arc<Mutex<Vec<ContainerId>>>,
    pub(super) shared: bool,
}

#[async_trait]
impl ContainerRuntime for Recorder {
    async fn info(&self) -> Result<RuntimeInfo> {
        self.engine.info().await
    }
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        let id = self.engine.create(spec).await?;
        self.ids.lock().expect("lock").push(id.clone());
        Ok(id)
    }
    async fn start(&self, id: &ContainerId) -> Result<()> {
        self.engine.start(id).await
    }
    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.engine.wait(id).await
    }
    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.engine.kill(id, signal).await
    }
    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.engine.remove(id).await
    }
    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.engine.inspect(id).await
    }
    async fn list(&self) -> Result<Vec<ContainerInfo>> {
        let mut list = self.engine.list().await?;
        if self.shared {
            let ids = self.ids.lock().expect("lock");
            list.retain(|info| ids.contains(&info.id));
        }
        Ok(list)
    }
    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        self.engine.logs(id, limit).await
    }
    async fn follow(&self, id: &ContainerId, tail: usize, to: mpsc::Sender<LogPart>) -> Result<()> {
        self.engine.follow(id, tail, to).await
    }
    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        self.engine.exec(id, spec).await
    }
    async fn settle(&self) {
        self.engine.settle().await;
    }
}
