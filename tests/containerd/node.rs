//! A containerd of a test's own, with an image of busybox, and the engine on it.

use std::path::Path;
use std::sync::Arc;

use backendai_agent::backends::{self, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::{ContainerId, ContainerRuntime, ContainerSpec, Result};
use tempfile::TempDir;

use crate::busybox;
pub use crate::busybox::{IMAGE, exec_spec};
use crate::daemons::{self, Kind, OwnDaemon};

/// A node with its own containerd.
pub struct Node {
    pub daemon: OwnDaemon,
    pub runtime: Arc<dyn ContainerRuntime>,
    pub images: Arc<dyn ImageAdmin>,
    pub dir: TempDir,
}

impl Node {
    /// `None`, and the reason is said, on a machine without containerd.
    pub async fn new() -> Option<Self> {
        Self::with(|_| {}).await
    }

    /// With other settings of the engine.
    pub async fn with(change: impl FnOnce(&mut EngineConfig)) -> Option<Self> {
        let daemon = match OwnDaemon::start(Kind::Containerd, &[]) {
            Ok(daemon) => daemon,
            Err(lack) => {
                println!("skipped: {lack}");
                return None;
            }
        };
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = config(&daemon, dir.path());
        change(&mut config);
        let engine = backends::open(RuntimeKind::Containerd, config).await;
        let engine = engine.expect("the engine opens");
        let node = Self {
            daemon,
            runtime: engine.runtime,
            images: engine.images,
            dir,
        };
        node.import(IMAGE).await;
        Some(node)
    }

    /// As another agent on the same folders would open it, or fail to.
    pub async fn another(&self) -> Result<Arc<dyn ContainerRuntime>> {
        let config = config(&self.daemon, self.dir.path());
        let opened = backends::open(RuntimeKind::Containerd, config).await;
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

    /// What containerd's own client prints, in our namespace.
    pub fn ctr(&self, args: &[&str]) -> String {
        let output = std::process::Command::new("ctr")
            .args(["-n", "backendai", "-a"])
            .arg(self.daemon.socket())
            .args(args)
            .output()
            .expect("ctr comes with containerd");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {args:?}: {error}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn config(daemon: &OwnDaemon, dir: &Path) -> EngineConfig {
    EngineConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        endpoint: Some(daemon.endpoint()),
        handler: daemons::handler(),
        ..EngineConfig::default()
    }
}
