//! What an engine tells about itself, its containers and its images.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::{ContainerId, LABEL_OWNER, LabelMap, OWNER, Pid, PortBinding};

/// An engine's name and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// `docker`, `containerd` or `youki`.
    pub name: &'static str,
    /// The engine's own version text.
    pub version: String,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, its process not yet running.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Stopped,
}

/// What is known of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerInfo {
    /// The engine's id.
    pub id: ContainerId,
    /// The name it was made with.
    pub name: String,
    /// Canonical reference of its image.
    pub image: String,
    /// State.
    pub state: ContainerState,
    /// Its labels.
    pub labels: LabelMap,
    /// Its first process on the host, while it lives.
    pub pid: Option<Pid>,
    /// Its cgroup, as a path below the root of every hierarchy (`/backendai/<id>`).
    pub cgroup: Option<PathBuf>,
    /// Its address on the agent's bridge.
    pub address: Option<Ipv4Addr>,
    /// Its forwarded ports.
    pub ports: Vec<PortBinding>,
    /// How it ended, once it has.
    pub exit: Option<ExitStatus>,
}

impl ContainerInfo {
    /// Whether it carries our label.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.labels.get(LABEL_OWNER).is_some_and(|it| it == OWNER)
    }
}

/// How a container ended; also as JSON, in files that monitors write (`monitor/src/watch.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// Whether the kernel's out-of-memory killer took any process of the container while it ran, the first or another.
    pub oom_killed: bool,
}

/// What a finished `exec` gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// Standard output, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
}

/// One image of an engine's store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// Canonical references, `registry/name:tag`.
    pub names: Vec<String>,
    /// Config digest, `sha256:…`: the id the manager knows.
    pub id: String,
    /// Manifest digest, where the image came from a registry or a layout.
    pub repo_digest: Option<String>,
    /// Labels of its config.
    pub labels: LabelMap,
    /// Environment of its config, `K=V`.
    pub env: Vec<String>,
    /// Entry point and command of its config.
    pub command: Vec<String>,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// Bytes of its unpacked layers (estimate).
    pub size: u64,
}
