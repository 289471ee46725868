//! A node of a test's own: an engine's daemon, an image of busybox, and the engine on them. What only one engine has is
//! added where its tests are.
#![allow(dead_code, reason = "each test program uses a part")]

use std::process::Command;
use std::sync::Arc;

use backendai_agent::backends::{self, Engine, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::{ContainerId, ContainerRuntime, ContainerSpec, Result};
use tempfile::TempDir;

use crate::busybox;
pub use crate::busybox::{IMAGE, exec_spec};
use crate::daemons::{self, Kind, OwnDaemon};

/// A node with its own daemon.
pub struct Node {
    pub daemon: OwnDaemon,
    pub runtime: Arc<dyn ContainerRuntime>,
    pub images: Arc<dyn ImageAdmin>,
    pub dir: TempDir,
    kind: RuntimeKind,
}

impl Node {
    /// With these options of the daemon, and other settings of the engine; `None`, and the reason is said, on a machine
    /// without it.
    pub async fn start(
        kind: Kind,
        options: &[&str],
        change: impl FnOnce(&mut EngineConfig),
    ) -> Option<Self> {
        let daemon = match OwnDaemon::start(kind, options) {
            Ok(daemon) => daemon,
            Err(lack) => {
                println!("skipped: {lack}");
                return None;
            }
        };
        let kind = match kind {
            Kind::Docker => RuntimeKind::Docker,
            Kind::Containerd => RuntimeKind::Containerd,
        };
        let dir = tempfile::tempdir().expect("a folder");
        let engine = open(kind, &daemon, &dir, change).await;
        let engine = engine.expect("the engine opens");
        let node = Self {
            daemon,
            runtime: engine.runtime,
            images: engine.images,
            dir,
            kind,
        };
        node.import(IMAGE).await;
        Some(node)
    }

    /// As another agent on the same folders opens it, with other settings, or fails to.
    pub async fn another(
        &self,
        change: impl FnOnce(&mut EngineConfig),
    ) -> Result<Arc<dyn ContainerRuntime>> {
        let opened = open(self.kind, &self.daemon, &self.dir, change).await;
        opened.map(|engine| engine.runtime)
    }

    /// Gives the daemon busybox under a name.
    pub async fn import(&self, name: &str) {
        let tar = self.dir.path().join("busybox.tar");
        busybox::tar(&tar);
        let options = ImportOptions {
            labels: [("ai.backend.kernelspec".to_owned(), "1".to_owned())].into(),
            env: vec!["A=b".to_owned()],
            command: vec!["sh".to_owned(), "-i".to_owned()],
            ..ImportOptions::default()
        };
        let imported = self.images.import(&tar, Some(name), &options).await;
        imported.expect("the image can be imported");
    }

    /// A container that runs a script.
    pub fn shell(&self, script: &str) -> ContainerSpec {
        busybox::shell(script)
    }

    /// Makes and starts a container.
    pub async fn launch(&self, spec: &ContainerSpec) -> ContainerId {
        let id = self.runtime.create(spec).await.expect("create");
        self.runtime.start(&id).await.expect("start");
        id
    }

    /// What a script prints, run to its end.
    pub async fn output(&self, spec: &ContainerSpec) -> String {
        let id = self.launch(spec).await;
        self.runtime.wait(&id).await.expect("wait");
        let log = self.runtime.logs(&id, 1 << 20).await.expect("logs");
        self.runtime.remove(&id).await.expect("remove");
        String::from_utf8(log).expect("text")
    }
}

async fn open(
    kind: RuntimeKind,
    daemon: &OwnDaemon,
    dir: &TempDir,
    change: impl FnOnce(&mut EngineConfig),
) -> Result<Engine> {
    let mut config = EngineConfig {
        state_dir: dir.path().join("state"),
        run_dir: dir.path().join("run"),
        endpoint: Some(daemon.endpoint()),
        handler: daemons::handler(),
        ..EngineConfig::default()
    };
    change(&mut config);
    backends::open(kind, config).await
}

/// What an engine's own client prints.
pub fn printed(mut client: Command) -> String {
    let output = client.output().expect("it comes with the engine");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{client:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
