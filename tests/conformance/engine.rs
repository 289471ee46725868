//! An engine on folders of its own, with a root of busybox, that must leave nothing behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backendai_agent::backends::EngineConfig;
use backendai_agent::backends::youki::{Rootfs, RootfsSource, Youki};
use backendai_agent::runtime::oci::DEFAULT_CAPABILITIES;
use backendai_agent::runtime::{
    ContainerId, ContainerSpec, LABEL_OWNER, Limits, NetworkMode, OWNER, Result, RuntimeError,
    Seccomp,
};
use tempfile::TempDir;

/// An engine under test.
pub struct TestEngine {
    pub runtime: Arc<Youki>,
    dir: TempDir,
}

#[derive(Debug)]
struct Busybox(PathBuf);

#[async_trait]
impl RootfsSource for Busybox {
    async fn prepare(&self, image: &str) -> Result<Rootfs> {
        if image != "busybox" {
            return Err(RuntimeError::ImageMissing(image.to_owned()));
        }
        Ok(Rootfs {
            name: image.to_owned(),
            lowers: vec![self.0.clone()],
            env: vec!["FROM_IMAGE=yes".to_owned()],
        })
    }
}

fn make_root(root: &Path) {
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(folder)).expect("folder");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let list = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .expect("busybox runs");
    for name in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("link");
    }
}

impl TestEngine {
    pub async fn youki() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        make_root(&dir.path().join("busybox"));
        let runtime = Arc::new(Self::open(dir.path()).await);
        Self { runtime, dir }
    }

    async fn open(dir: &Path) -> Youki {
        let config = EngineConfig {
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            monitor_exe: Some(env!("CARGO_BIN_EXE_backendai-agent").into()),
        };
        Youki::open(config, Arc::new(Busybox(dir.join("busybox"))))
            .await
            .expect("open")
    }

    /// A container that runs a script.
    pub fn shell(&self, script: &str) -> ContainerSpec {
        let id = format!("{0}{0}", uuid::Uuid::new_v4().simple());
        ContainerSpec {
            name: format!("kernel.test.{id}"),
            id: ContainerId(id),
            image: "busybox".to_owned(),
            args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            env: Vec::new(),
            cwd: "/".into(),
            hostname: "inside".to_owned(),
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

    /// Checks that nothing is left.
    pub async fn close(self) {
        for folder in ["run/containers", "state/containers"] {
            let left = std::fs::read_dir(self.dir.path().join(folder))
                .expect("list")
                .count();
            assert_eq!(left, 0, "{folder}");
        }
    }
}
