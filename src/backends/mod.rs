//! The engines; [`open`] is the only place that knows them all.

#[cfg(feature = "youki")]
pub mod youki;

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::RuntimeKind;
use crate::image::Store;
use crate::runtime::{ContainerRuntime, ImageStore, Result};

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
    /// The same images as a store of our own, for import and removal; engines with a store of theirs have none.
    pub store: Option<Arc<Store>>,
}

/// Opens the engine of this kind.
///
/// # Errors
/// When its folders or its daemon cannot be reached.
#[cfg(feature = "youki")]
pub async fn open(kind: RuntimeKind, config: EngineConfig) -> Result<Engine> {
    match kind {
        RuntimeKind::Youki => {
            let store = Store::open(&config.state_dir)?;
            let runtime = Arc::new(youki::Youki::open(config, Arc::clone(&store) as _).await?);
            Ok(Engine {
                runtime,
                images: Arc::clone(&store) as _,
                store: Some(store),
            })
        }
    }
}
