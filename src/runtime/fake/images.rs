//! The images of the engine in memory.

use async_trait::async_trait;

use super::{FakeRuntime, Verb};
use crate::runtime::{ImageInfo, ImageStore, RegistryAuth, Result, RuntimeError};

pub(super) fn is_called(image: &ImageInfo, name: &str) -> bool {
    image.id == name || image.names.iter().any(|it| it == name)
}

#[async_trait]
impl ImageStore for FakeRuntime {
    async fn list(&self) -> Result<Vec<ImageInfo>> {
        self.injected(Verb::ImageList).await?;
        let mut images = self.state().images.clone();
        images.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(images)
    }

    async fn inspect(&self, image: &str) -> Result<ImageInfo> {
        self.injected(Verb::ImageInspect).await?;
        let state = self.state();
        let found = state.images.iter().find(|it| is_called(it, image));
        found
            .cloned()
            .ok_or_else(|| RuntimeError::ImageMissing(image.to_owned()))
    }

    async fn pull(&self, image: &str, _auth: Option<&RegistryAuth>) -> Result<ImageInfo> {
        self.injected(Verb::Pull).await?;
        let mut state = self.state();
        let found = state.registry.iter().find(|it| is_called(it, image));
        let found = found
            .cloned()
            .ok_or_else(|| RuntimeError::ImageMissing(image.to_owned()))?;
        state.images.push(found.clone());
        Ok(found)
    }
}
