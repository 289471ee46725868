//! A dockerd of a test's own, with an image of busybox, and the engine on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backendai_agent::backends::{self, Adoption, Engine, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::{
    ContainerId, ContainerRuntime, ContainerSpec, DEFAULT_CAPABILITIES, ExecSpec, LABEL_OWNER,
    Limits, NetworkMode, OWNER, Seccomp,
};
use tempfile::TempDir;

use crate::daemons::{Kind, OwnDaemon};

/// Name of the image.
pub const IMAGE: &str = "local/busybox:latest";

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
        busybox(&self.dir.path().join("busybox"), &tar);
        let options = ImportOptions {
            labels: [("ai.backend.kernelspec".to_owned(), "1".to_owned())].into(),
            ..ImportOptions::default()
        };
        let imported = self.images.import(&tar, Some(name), &options).await;
        imported.expect("the image can be imported");
    }

    /// A container that runs a script.
    pub fn shell(&self, script: &str) -> ContainerSpec {
        let id = format!("{0}{0}", uuid::Uuid::new_v4().simple());
        ContainerSpec {
            name: format!("kernel.test.{}", uuid::Uuid::new_v4()),
            id: ContainerId(id),
            image: IMAGE.to_owned(),
            args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            env: Vec::new(),
            cwd: "/".into(),
            hostname: None,
            mounts: Vec::new(),
            devices: Vec::new(),
            limits: Limits::default(),
            network: NetworkMode::None,
            ports: Vec::new(),
            labels: [(LABEL_OWNER.to_owned(), OWNER.to_owned())].into(),
            seccomp: Seccomp::Default,
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).into(),
            no_new_privileges: false,
            log_limit: 1 << 20,
        }
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

/// A request to run a program.
pub fn exec_spec(args: &[&str]) -> ExecSpec {
    ExecSpec {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        user: (0, 0),
        time_limit: Duration::from_secs(60),
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

fn busybox(root: &Path, tar: &Path) {
    if tar.exists() {
        return;
    }
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in ["sh", "echo", "cat", "sleep", "true"] {
        symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    let mut archive = tar::Builder::new(fs::File::create(tar).expect("a file"));
    archive.follow_symlinks(false);
    archive.append_dir_all(".", root).expect("a tar");
    archive.finish().expect("a tar");
}
