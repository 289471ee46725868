//! The engine containerd.

use std::sync::Arc;

use super::{Engine, EngineConfig};
use crate::image::ImageAdmin;
use crate::runtime::{Result, RuntimeError};

/// Opens the engine.
///
/// # Errors
/// When the daemon does not answer.
pub async fn open(_config: EngineConfig) -> Result<Engine> {
    Err(RuntimeError::Invalid(
        "containerd: not built yet".to_owned(),
    ))
}

/// Opens its images.
///
/// # Errors
/// When the daemon does not answer.
pub async fn open_images(_config: EngineConfig) -> Result<Arc<dyn ImageAdmin>> {
    Err(RuntimeError::Invalid(
        "containerd: not built yet".to_owned(),
    ))
}
