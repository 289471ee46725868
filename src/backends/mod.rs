//! The engines; [`open`] and [`open_images`] are the only places that know them all.

#[cfg(feature = "containerd")]
pub mod containerd;
#[cfg(feature = "docker")]
pub mod docker;
#[cfg(feature = "youki")]
pub mod youki;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::ImageAdmin;
use crate::rootless::RootlessError;
use crate::runtime::{ContainerRuntime, Result, RuntimeError};

/// The container engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// dockerd, by its HTTP API.
    Docker,
    /// containerd, by its gRPC API, with its shims.
    Containerd,
    /// libcontainer in a small monitor process for each container; no daemon.
    #[default]
    Youki,
}

/// Where an engine is, where it keeps its things, and how it starts its helpers.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Folder for images, snapshots and logs.
    pub state_dir: PathBuf,
    /// Folder for records, sockets and monitors; emptied by a reboot.
    pub run_dir: PathBuf,
    /// Program to start as a container's monitor; this very program when absent.
    pub monitor_exe: Option<PathBuf>,
    /// Socket of an engine's daemon: a path, `unix://…` or (Docker) `tcp://host:port`; the engine's own when absent.
    pub endpoint: Option<String>,
    /// Folder of the certificates `key.pem`, `cert.pem` and `ca.pem` for a TCP endpoint (Docker); plain TCP when absent.
    pub tls: Option<PathBuf>,
    /// Which containers of the Python agent to take for ours (Docker); none when absent.
    pub adoption: Option<Adoption>,
    /// Name of the snapshotter (containerd); `overlayfs` when absent.
    pub snapshotter: Option<String>,
    /// What runs containers below the engine (containerd): `runc`, `crun`, `youki`, `runsc`, a path of such a program, or a whole shim name.
    pub handler: Option<String>,
}

/// The Python agent whose place this agent takes. Its containers carry no labels: their names and its scratch folders
/// tell them.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// Its id, which is this agent's too; empty for an operator, who does not know it.
    pub agent_id: String,
    /// The folder of all scratch folders.
    pub scratch_root: PathBuf,
}

/// An opened engine.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Its containers.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Its images.
    pub images: Arc<dyn ImageAdmin>,
    /// Whether it listens on forwarded host ports itself, so that nobody else may hold them.
    pub listens: bool,
    /// Whether users inside have other numbers on the host, in a user namespace of the engine's.
    pub maps_users: bool,
}

/// Opens an engine.
///
/// # Errors
/// When it cannot serve; the text says what it lacks.
pub async fn open(kind: RuntimeKind, config: EngineConfig) -> Result<Engine> {
    match kind {
        #[cfg(feature = "docker")]
        RuntimeKind::Docker => docker::open(config).await,
        #[cfg(feature = "containerd")]
        RuntimeKind::Containerd => containerd::open(config).await,
        #[cfg(feature = "youki")]
        RuntimeKind::Youki => youki::open(config).await,
        #[allow(unreachable_patterns, reason = "with every engine built in")]
        absent => Err(missing(absent, &config)),
    }
}

/// Brings a process with one thread to where the engine works: an ordinary user's into namespaces in which it is root.
///
/// # Errors
/// What the user lacks for that, with the remedy.
pub fn prepare(kind: RuntimeKind, run_dir: &Path) -> std::result::Result<(), RootlessError> {
    match kind {
        #[cfg(feature = "youki")]
        RuntimeKind::Youki if !rustix::process::geteuid().is_root() => {
            crate::rootless::enter(run_dir, youki::small_program)
        }
        _ => {
            let _ = run_dir;
            Ok(())
        }
    }
}

/// Opens the images of an engine alone: for that, the engine without a daemon needs no privileges.
///
/// # Errors
/// When they cannot be read.
pub async fn open_images(kind: RuntimeKind, config: EngineConfig) -> Result<Arc<dyn ImageAdmin>> {
    match kind {
        #[cfg(feature = "docker")]
        RuntimeKind::Docker => docker::open_images(config).await,
        #[cfg(feature = "containerd")]
        RuntimeKind::Containerd => containerd::open_images(config).await,
        #[cfg(feature = "youki")]
        RuntimeKind::Youki => youki::open_images(config).await,
        #[allow(unreachable_patterns, reason = "with every engine built in")]
        absent => Err(missing(absent, &config)),
    }
}

/// The error of an engine that this build lacks.
#[allow(dead_code, reason = "with every engine built in")]
fn missing(kind: RuntimeKind, _: &EngineConfig) -> RuntimeError {
    let engine = format!("{kind:?}").to_lowercase();
    RuntimeError::Invalid(format!(
        "this agent is built without the engine {engine}; build it with --features {engine}"
    ))
}
