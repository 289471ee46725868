//! A dockerd of a test's own, with an image of busybox, and the engine on it.

use std::path::Path;
use std::sync::Arc;

use backendai_agent::backends::{self, Adoption, Engine, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::{ContainerId, ContainerRuntime, ContainerSpec};
use tempfile::TempDir;

use crate::busybox;
pub use crate::busybox::{IMAGE, exec_spec};
use crate::daemons::{Kind, OwnDaemon};

/// A node with its own dockerd.
pub struct Node {
    pub daemon: OwnDaemon,
    pub runtime: Arc<dyn ContainerRuntime>,
    pub images: Arc<dyn ImageAdmin>,
    pub dir: TempDir,
}

impl Node {
    /// A daemon with these options; `None`, and the reason is said, on a machine without Docker.
    pub async fn new(options: &[&str]) -> Option<Self> {
        let daemon = match OwnDaemon::start(Kind::Docker, options) {
            Ok(daemon) => daemon,
            Err(lack) => {
                println!("skipped: {lack}");
                return None;
            }
        };
        let dir = tempfile::tempdir().expect("a folder");
        let engine = open(&daemon, dir.path(), None).await;
        let node = Self {
            daemon,
            runtime: engine.runtime,
            images: engine.images,
            dir,
        };
        node.import(IMAGE).await;
        Some(node)
    }

    /// The engine once more, as an agent opens it that takes over another's containers.
    pub async fn adopting(&self, agent: &str) -> Arc<dyn ContainerRuntime> {
        let adoption = Adoption {
            agent_id: agent.to_owned(),
            scratch_root: self.dir.path().join("scratch"),
        };
        open(&self.daemon, self.dir.path(), Some(adoption))
            .await
            .runtime
    }

    /// Gives the daemon busybox under a name.
    pub async fn import(&self, name: &str) {
        let tar = self.dir.path().join("busybox.tar");
        busybox::tar(&tar);
        let options = ImportOptions {
            labels: [("ai.backend.kernelspec".to_owned(), "1".to_owned())].into(),
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

    /// What a command of Docker's own prints.
    pub fn docker(&self, args: &[&str]) -> String {
        let host = self.daemon.endpoint();
        let output = std::process::Command::new("docker")
            .args(["-H", &host])
            .args(args)
            .output()
            .expect("docker is installed");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {args:?}: {error}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

async fn open(daemon: &OwnDaemon, dir: &Path, adoption: Option<Adoption>) -> Engine {
    let config = EngineConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        endpoint: Some(daemon.endpoint()),
        adoption,
        ..EngineConfig::default()
    };
    let opened = backends::open(RuntimeKind::Docker, config).await;
    opened.expect("the engine opens")
}
