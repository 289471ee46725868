//! What operators do with an engine's images, beyond what kernels need of them.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::error::Result;
use super::{Bundle, ImageError, ImportOptions, PullOptions, Store};
use crate::runtime::{ImageInfo, ImageStore, RegistryAuth};

/// The images of an engine, whatever keeps them.
#[async_trait]
pub trait ImageAdmin: ImageStore {
    /// Imports a root file system's tar, an archive of `docker save`, or an OCI archive or folder (`-` is standard
    /// input). The name may be absent when the archive tells it. After an error the images are as before.
    async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
    ) -> Result<Vec<ImageInfo>>;

    /// Pulls an image from its registry as [`ImageStore::pull`] does, with all that an operator may choose.
    async fn pull_with(&self, image: &str, options: &PullOptions) -> Result<ImageInfo>;

    /// Gives an image as a bundle below `scratch`, to be handed on, where the engine still has what it was made of. A
    /// layout's digests stay; Docker's are those of its archive.
    async fn export(&self, image: &str, scratch: &Path) -> Result<Bundle> {
        let _ = scratch;
        let image = image.to_owned();
        self.inspect(&image).await?;
        let why = "its layers are unpacked and their archives not kept; push the archive or OCI folder that it was made of".to_owned();
        Err(ImageError::NothingToPush { image, why })
    }

    /// Removes a name, and the image with its last name; or an image by its id. An image that a container stands on
    /// is refused with [`ImageError::InUse`].
    async fn remove(&self, image: &str) -> Result<()>;
}

/// The node's own store, for engines without one.
#[derive(Clone, Debug)]
pub struct NodeImages(pub Arc<Store>);

impl NodeImages {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .expect("work on images does not panic and is not aborted")
    }
}

#[async_trait]
impl ImageStore for NodeImages {
    async fn list(&self) -> crate::runtime::Result<Vec<ImageInfo>> {
        self.0.list().await
    }

    async fn inspect(&self, image: &str) -> crate::runtime::Result<ImageInfo> {
        self.0.inspect(image).await
    }

    async fn pull(
        &self,
        image: &str,
        auth: Option<&RegistryAuth>,
    ) -> crate::runtime::Result<ImageInfo> {
        self.0.pull(image, auth).await
    }
}

#[async_trait]
impl ImageAdmin for NodeImages {
    async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let (path, name, options) = (path.to_owned(), name.map(str::to_owned), options.clone());
        self.blocking(move |store| store.import(&path, name.as_deref(), &options))
            .await
    }

    async fn pull_with(&self, image: &str, options: &PullOptions) -> Result<ImageInfo> {
        self.0.pull_with(image, options).await
    }

    async fn remove(&self, image: &str) -> Result<()> {
        let image = image.to_owned();
        // Layers that are mounted tell of the containers.
        self.blocking(move |store| store.remove(&image, &[])).await
    }
}
