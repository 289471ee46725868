//! A containerd of a test's own, with an image of busybox, and the engine on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backendai_agent::backends::{self, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::{
    ContainerId, ContainerRuntime, ContainerSpec, DEFAULT_CAPABILITIES, ExecSpec, LABEL_OWNER,
    Limits, NetworkMode, OWNER, Result, Seccomp,
};
use tempfile::TempDir;

use crate::daemons::{Kind, OwnDaemon};

/// Name of the image.
pub const IMAGE: &str = "local/busybox:latest";

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
        busybox(&self.dir.path().join("busybox"), &tar);
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
        let id = format!("{0}{0}", uuid::Uuid::new_v4().simple());
        ContainerSpec {
            name: format!("kernel.test.{id}"),
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
            no_new_privileges: true,
            log_limit: 1 << 20,
        }
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

fn config(daemon: &OwnDaemon, dir: &Path) -> EngineConfig {
    EngineConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        endpoint: Some(daemon.endpoint()),
        ..EngineConfig::default()
    }
}

fn busybox(root: &Path, tar: &Path) {
    if tar.exists() {
        return;
    }
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in ["sh", "echo", "cat", "sleep", "true", "seq"] {
        symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    let mut archive = tar::Builder::new(fs::File::create(tar).expect("a file"));
    archive.follow_symlinks(false);
    archive.append_dir_all(".", root).expect("a tar");
    archive.finish().expect("a tar");
}
