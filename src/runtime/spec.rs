//! What the agent asks an engine to create: a container, free of any engine's own words.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::ContainerId;

/// Label that carries the kernel's id.
pub const LABEL_KERNEL_ID: &str = "ai.backend.kernel-id";
/// Label that carries the id of the agent that made the container.
pub const LABEL_AGENT_ID: &str = "ai.backend.agent-id";
/// Label whose value [`OWNER`] marks a container as ours.
pub const LABEL_OWNER: &str = "ai.backend.owner";
/// Value of [`LABEL_OWNER`].
pub const OWNER: &str = "backendai-agent";

/// Capabilities of a kernel's first process: the well-known default set of container engines. The runner gives all of
/// them up when it becomes the user.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Labels of a container or an image.
pub type LabelMap = BTreeMap<String, String>;

/// Everything an engine needs to make one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    /// Id to use where the engine takes ours (64 hex digits).
    pub id: ContainerId,
    /// Name to show, such as `kernel.python.<kernel id>`; unique on the node.
    pub name: String,
    /// Canonical reference or config digest of an image in the engine's [`super::ImageStore`].
    pub image: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, in order; the image's own environment comes first unless a name repeats.
    pub env: Vec<(String, String)>,
    /// Working directory inside; made when it is missing.
    pub cwd: PathBuf,
    /// Host name inside; the first twelve characters of the engine's id when absent.
    pub hostname: Option<String>,
    /// Mounts, in order; parents before children. The standard ones (/proc, /dev, /sys …) are added by the engine.
    pub mounts: Vec<Mount>,
    /// Device nodes beyond the standard ones.
    pub devices: Vec<DeviceNode>,
    /// Resource limits.
    pub limits: Limits,
    /// How the container reaches the network.
    pub network: NetworkMode,
    /// Ports forwarded from the host; only with [`NetworkMode::Bridge`].
    pub ports: Vec<PortBinding>,
    /// Labels kept with the container.
    pub labels: LabelMap,
    /// System-call filter.
    pub seccomp: Seccomp,
    /// Capabilities of the first process (`CAP_CHOWN`, …); all others are dropped from the bounding set too.
    pub capabilities: Vec<String>,
    /// Whether programs may gain privileges by exec (set-uid).
    pub no_new_privileges: bool,
    /// Largest size of the kept log in bytes, over all rotations.
    pub log_limit: u64,
}

impl ContainerSpec {
    /// The host name inside, for engines that take our id.
    #[must_use]
    pub fn hostname(&self) -> &str {
        let short = self.id.0.get(..12).unwrap_or(&self.id.0);
        self.hostname.as_deref().unwrap_or(short)
    }
}

/// One mount inside the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Absolute path inside the container; made when it is missing.
    pub target: PathBuf,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A file or folder of the host, with all that is mounted below it.
    Bind(PathBuf),
    /// A new tmpfs of at most this many bytes.
    Tmpfs(u64),
}

/// A device node to be made inside the container and allowed by its device rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Path inside the container.
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits of the node.
    pub mode: u32,
    /// Access allowed: a subset of `rwm`.
    pub access: String,
}

/// Resource limits; absent means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time per period in microseconds.
    pub cpu_quota_us: Option<i64>,
    /// Period of `cpu_quota_us`; 100 000 when absent.
    pub cpu_period_us: Option<u64>,
    /// CPUs it may run on, in cpuset list form (`0,2-3`).
    pub cpuset: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
    /// Swap in bytes beyond memory; `Some(0)` forbids swapping.
    pub swap_bytes: Option<i64>,
    /// Processes and threads.
    pub pids: Option<i64>,
    /// Size of /dev/shm in bytes; 64 MiB when absent.
    pub shm_bytes: Option<u64>,
}

/// How a container reaches the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// Its own network namespace on the agent's bridge, with address translation to the outside.
    Bridge,
    /// Its own network namespace with nothing but the loopback interface.
    None,
    /// The host's network namespace.
    Host,
}

/// One TCP port of the host that is forwarded into the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortBinding {
    /// Port on all addresses of the host, 127.0.0.1 included.
    pub host: u16,
    /// Port inside the container.
    pub container: u16,
}

/// System-call filter of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The default profile: what ordinary programs need.
    Default,
    /// No filter (19.03 with `--sandbox-type jail`, which brings its own).
    Unconfined,
}

/// A program to run in a living container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// User and group id inside.
    pub user: (u32, u32),
    /// When the program is killed and the call fails.
    pub time_limit: Duration,
}
