//! The engines; [`open`] is the only place that knows them all.

#[cfg(feature = "youki")]
pub mod youki;

use std::path::PathBuf;
use std::sync::Arc;

use crate::runtime::{ContainerRuntime, ImageStore};

/// Where an engine keeps its things and how it starts its helpers.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Folder for images, snapshots and logs.
    pub state_dir: PathBuf,
    /// Folder for records, sockets and monitors; emptied by a reboot.
    pub run_dir: PathBuf,
    /// Program to start as a container's monitor; this very program when absent.
    pub monitor_exe: Option<PathBuf>,
}

/// An opened engine.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Its containers.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Its images.
    pub images: Arc<dyn ImageStore>,
}
