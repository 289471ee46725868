//! What a container engine must do for the agent: the contract, and what engines without a daemon share.
//!
//! The contract holds for every engine and is the list of conformance tests: every call may be made from any task at
//! any time; after [`RuntimeError::Unavailable`] `wait`, `kill`, `remove`, `inspect` and `list` may simply be repeated,
//! `create` only after a `list`; `create` undoes itself on failure; ids are the engine's own (some take ours) and
//! nobody above changes them; a limit that an engine cannot apply is an error, not a warning.

mod background;
pub mod cgroup;
pub mod check;
mod error;
pub mod fake;
pub mod folder;
pub mod kept;
pub mod log;
#[cfg(feature = "monitor")]
pub mod monitor;
pub mod names;
pub mod network;
pub mod oci;
pub mod output;
pub mod record;
pub mod sandbox;
pub mod seccomp;
mod spec;
mod status;
pub mod watch;

use std::fmt;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use self::background::settled;
pub use self::error::{BoxError, RuntimeError, blocking, chain};
pub use self::log::LogPart;
pub use self::spec::{
    ContainerSpec, DEFAULT_CAPABILITIES, DeviceNode, ExecSpec, LABEL_AGENT_ID, LABEL_KERNEL_ID,
    LABEL_OWNER, LabelMap, Limits, Mount, MountKind, NetworkMode, OWNER, PortBinding, Seccomp,
};
pub use self::status::{
    ContainerInfo, ContainerState, ExecOutput, ExitStatus, ImageInfo, RuntimeInfo,
};

/// Result of a call to an engine.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// The engine's name for a container; 64 hex digits where the agent chooses it (the manager's column is that wide).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(pub String);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Process id on the host.
pub type Pid = i32;

/// Runs containers on this node, whatever the engine behind it.
#[async_trait]
pub trait ContainerRuntime: Send + Sync + fmt::Debug {
    /// Name and version of the engine, or why it cannot serve.
    async fn info(&self) -> Result<RuntimeInfo>;

    /// Prepares everything but runs nothing: snapshot, mounts, devices, limits, network, ports.
    ///
    /// A request that is wrong fails with [`RuntimeError::Invalid`], which names the part; where only running it shows
    /// that it is wrong (a program that is not there, a port that is taken), some engines say so here and others in
    /// [`Self::start`]. A second `create` with the id or the name of a container that is there is wrong. An image that is
    /// not there is [`RuntimeError::ImageMissing`]. A limit that cannot be applied is an error. After any failure
    /// nothing is left.
    ///
    /// Inside, the program has namespaces of its own, the image's files with changes that no other container sees, the
    /// working folder (made where it is missing), the environment of the image overridden by the request's, standard
    /// input without content, the ordinary devices and those asked for. No file, variable or mount of the agent comes
    /// in. The engine's own init may be number 1 above the program.
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId>;

    /// Runs the container's program; its ports are forwarded from the host by then, and [`Self::inspect`] tells its first
    /// process for as long as that lives. Only a container that was never started and has not ended can be started:
    /// anything else is [`RuntimeError::Invalid`]. After a failure the container is still there, to be removed.
    async fn start(&self, id: &ContainerId) -> Result<()>;

    /// Waits for the end; returns at once, and as often as asked, when it is over already; may be asked before `start`
    /// and by many at once. Ends when the container is removed, with its status or [`RuntimeError::NotFound`].
    /// Cancel-safe. Whatever ended while no agent was there is told too.
    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus>;

    /// Sends a signal (its Linux number) to the container's first process; a dead container is not an error. What the
    /// process makes of it is its own affair; when it ends, all others of the container end with it. A number that is
    /// no signal is [`RuntimeError::Invalid`].
    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()>;

    /// Ends it if need be, and leaves no trace: snapshot, namespaces, cgroups, ports, logs, name and id are free again.
    /// Absent is done; many may ask at once. Also takes the id that `create` was asked to use, by which a container is
    /// found whose `create` was not answered.
    async fn remove(&self, id: &ContainerId) -> Result<()>;

    /// State, labels, pid, cgroup, address and ports of one container. It says the same to every agent.
    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo>;

    /// All containers that carry our label, dead or alive, also those of an earlier agent. Disturbs no `create` that
    /// goes on meanwhile.
    async fn list(&self) -> Result<Vec<ContainerInfo>>;

    /// The last `limit` bytes of standard output and error, in order of arrival, while the container runs and after,
    /// and across agents. At most `log_limit` bytes are kept, always the newest; an engine may keep less. Each stream
    /// is in its own order; how the two are mixed is exact only where the engine reads both from one pipe. Text is kept
    /// byte for byte; bytes that are no UTF-8 may come as U+FFFD where the engine's own log is text.
    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>>;

    /// Sends the last `tail` bytes of the log, be it none, as the first part, then what is written until the container
    /// ends or is removed, or `to` is closed. Cancel-safe. Nothing is lost or doubled; where an engine lets go of a log
    /// before it is read there is a [`LogPart::Gap`]. An engine that can tell where it is in a log overrides this.
    async fn follow(&self, id: &ContainerId, tail: usize, to: mpsc::Sender<LogPart>) -> Result<()> {
        log::poll(self, id, tail, to).await
    }

    /// Runs a program in the container and collects its output, within `spec.time_limit`; then it is killed and the
    /// call fails. The program shares the container's namespaces, cgroups, environment and restrictions; another user
    /// than root has no capabilities. What it leaves running does not hold the answer. A program or folder that is not
    /// there, and a container that does not run, are [`RuntimeError::Invalid`]. A call that is dropped ends its program, if
    /// need be after the drop ([`Self::settle`]).
    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput>;

    /// Waits, not for ever, until what goes on after its callers were answered is over: to be called before the process
    /// ends. An engine where nothing does so has nothing to do here.
    async fn settle(&self) {}
}

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Images that this node's containers can be made of. Names are canonical references, `registry/name:tag`.
#[async_trait]
pub trait ImageStore: Send + Sync + fmt::Debug {
    /// Every image, in the order of names.
    async fn list(&self) -> Result<Vec<ImageInfo>>;

    /// One image, by canonical reference, by config digest (`sha256:…`), or by `name@sha256:…`.
    async fn inspect(&self, image: &str) -> Result<ImageInfo>;

    /// Fetches an image from its registry, checks every digest and returns it. Repeating it is cheap.
    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<ImageInfo>;
}
