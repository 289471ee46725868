//! The engines; [`open`] is the only place that knows them all.

#[cfg(feature = "youki")]
pub mod youki;

use std::path::PathBuf;
use std::sync::Arc;

use crate::runtime::{ContainerRuntime, ImageStore, RuntimeError};

/// The container engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// libcontainer in a small monitor process for each container; no daemon.
    #[default]
    Youki,
}

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

/// Opens an engine.
///
/// # Errors
/// When it cannot serve; the text says what it lacks.
pub async fn open(kind: RuntimeKind, config: EngineConfig) -> crate::runtime::Result<Engine> {
    match kind {
        #[cfg(feature = "youki")]
        RuntimeKind::Youki => {
            crate::sys::capability::check()
                .map_err(|error| RuntimeError::Invalid(format!("youki: {error}")))?;
            let images = crate::image::Store::open(&config.state_dir)?;
            let source: Arc<dyn youki::RootfsSource> = Arc::new(Arc::clone(&images));
            let runtime = youki::Youki::open(config, source).await?;
            Ok(Engine {
                runtime: Arc::new(runtime),
                images,
            })
        }
        #[cfg(not(feature = "youki"))]
        RuntimeKind::Youki => {
            drop(config);
            Err(absent("youki"))
        }
    }
}

#[cfg(not(feature = "youki"))]
fn absent(engine: &str) -> RuntimeError {
    RuntimeError::Invalid(format!(
        "this agent is built without the engine {engine}; build it with --features {engine}"
    ))
}
