//! Pull.
use super::{ImageError, Platform, Store};
use crate::runtime::{ImageInfo, RegistryAuth};

/// Options.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Auth.
    pub auth: Option<RegistryAuth>,
    /// HTTP.
    pub plain_http: bool,
    /// Platform.
    pub platform: Option<Platform>,
}
/// Progress.
#[derive(Clone, Debug, Default)]
pub struct PullProgress {}

impl Store {
    /// Pulls.
    /// # Errors
    /// All.
    pub async fn pull_with(
        &self,
        image: &str,
        _options: PullOptions,
    ) -> Result<ImageInfo, ImageError> {
        Err(ImageError::InvalidRequest(image.to_owned()))
    }
}
