//! The images of an engine that keeps blobs by their digests and names beside them: which there are, and what operators
//! do with them. What differs between such engines is an [`EngineStore`].

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;

use super::bundle::{self, Assembly, Bundle};
use super::catalog::Catalog;
use super::error::{ImageError, Result};
use super::pull::{self, BlobStore, Described, Documents, Layer};
use super::{ImageAdmin, ImportOptions, Platform, PullOptions, check_architecture, info_of};
use crate::runtime::{self, ImageInfo, ImageStore, RegistryAuth};

/// What such an engine must be able to do, beyond taking in blobs.
#[async_trait]
pub(crate) trait EngineStore: BlobStore + Documents + Send + fmt::Debug + 'static {
    /// Every name, with the digest of the manifest or index that it stands for.
    async fn names(&self) -> runtime::Result<Vec<(String, String)>>;

    /// Takes a name away. What nothing else refers to is gone when this returns.
    async fn unname(&self, name: &str) -> runtime::Result<()>;

    /// Bytes of the unpacked layers; absent as long as they are not unpacked.
    async fn unpacked_size(&self, image: &Described) -> Option<u64>;

    /// Whether a container stands on the image with this id.
    async fn is_used(&self, id: &str) -> runtime::Result<bool>;

    /// Writes a layer's blob into a file.
    async fn copy(&self, layer: &Layer, file: File) -> Result<()>;

    /// Folder for archives that are being read.
    fn scratch(&self) -> &Path;
}

/// What is known of an image by its digest; none of it ever changes.
#[derive(Debug)]
pub(crate) struct Known {
    /// Its documents.
    pub(crate) described: Described,
    /// What is told of it, without names and size.
    pub(crate) info: ImageInfo,
    /// Bytes of the unpacked layers, once they are.
    size: OnceLock<u64>,
}

/// The images.
#[derive(Debug)]
pub(crate) struct EngineImages<S> {
    store: S,
    known: Mutex<HashMap<String, Arc<Known>>>,
}

impl<S: EngineStore> EngineImages<S> {
    /// The images of a store.
    pub(crate) fn new(store: S) -> Self {
        Self {
            store,
            known: Mutex::default(),
        }
    }

    /// Where they are.
    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    /// An image that a container can be made of.
    pub(crate) async fn runnable(&self, image: &str) -> runtime::Result<Arc<Known>> {
        let found = self.all().await?.find(image)?;
        check_architecture(image, &found.image.described.config)?;
        Ok(found.image)
    }

    /// Every image with all its names.
    async fn all(&self) -> runtime::Result<Catalog<Arc<Known>>> {
        let mut all = Catalog::default();
        for (name, target) in self.store.names().await? {
            let Some(known) = self.known(&target).await? else {
                tracing::debug!(name, "not for this machine, or not here as a whole");
                continue;
            };
            let manifest = known.described.manifest_digest.clone();
            let entry = match all.known(&manifest) {
                Some(entry) => entry,
                None => {
                    let info = ImageInfo {
                        repo_digest: Some(target),
                        size: self.size(&known).await,
                        ..known.info.clone()
                    };
                    all.add(manifest, info, known)
                }
            };
            entry.info.names.push(name);
        }
        Ok(all)
    }

    /// Reads an image's documents, once.
    async fn known(&self, target: &str) -> runtime::Result<Option<Arc<Known>>> {
        let all = || self.known.lock().expect("no panic while held");
        if let Some(known) = all().get(target) {
            return Ok(Some(Arc::clone(known)));
        }
        let read = async {
            let top = self.store.document(target).await?;
            Described::read(target, top, &Platform::default(), &self.store).await
        };
        let described = match read.await {
            Ok(described) => described,
            Err(ImageError::Engine(error)) => return Err(error),
            // Somebody else's, and none that we could run.
            Err(error) => {
                tracing::debug!(target, "cannot read the image: {error}");
                return Ok(None);
            }
        };
        let known = Arc::new(Known {
            info: info_of(described.id(), &described.config),
            described,
            size: OnceLock::new(),
        });
        all().insert(target.to_owned(), Arc::clone(&known));
        Ok(Some(known))
    }

    /// Bytes of the unpacked layers, or of the packed ones as long as they are not unpacked.
    async fn size(&self, known: &Known) -> u64 {
        if let Some(size) = known.size.get() {
            return *size;
        }
        match self.store.unpacked_size(&known.described).await {
            Some(size) => *known.size.get_or_init(|| size),
            None => known.described.layers().iter().map(Layer::size).sum(),
        }
    }
}

#[async_trait]
impl<S: EngineStore> ImageStore for EngineImages<S> {
    async fn list(&self) -> runtime::Result<Vec<ImageInfo>> {
        let all = self.all().await?.sorted().into_iter();
        Ok(all.map(|entry| entry.info).collect())
    }

    async fn inspect(&self, image: &str) -> runtime::Result<ImageInfo> {
        Ok(self.all().await?.find(image)?.info)
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> runtime::Result<ImageInfo> {
        Ok(self.pull_with(image, &PullOptions::with(auth)).await?)
    }
}

#[async_trait]
impl<S: EngineStore> ImageAdmin for EngineImages<S> {
    async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
    ) -> Result<Vec<ImageInfo>> {
        let scratch = self.store.scratch();
        let ids = bundle::import(&self.store, path, name, options, scratch).await?;
        let mut infos = Vec::new();
        for id in ids {
            infos.push(self.inspect(&id).await?);
        }
        Ok(infos)
    }

    async fn pull_with(&self, image: &str, options: &PullOptions) -> Result<ImageInfo> {
        let name = pull::pull(&self.store, image, options).await?;
        Ok(self.inspect(&name).await?)
    }

    async fn export(&self, image: &str, scratch: &Path) -> Result<Bundle> {
        let found = self.all().await?.find(image)?;
        let (described, info) = (&found.image.described, found.info);
        let name = info.names.first().unwrap_or(&info.id).clone();
        let mut assembly = Assembly::begin(scratch).await?;
        for mut layer in described.layers() {
            layer.what = format!("blob {} of {name}", layer.digest);
            let file = assembly.file(&layer.what)?;
            self.store.copy(&layer, file).await?;
        }
        let handed_on = Described {
            // One platform of an index is handed on as an image of its own.
            top_digest: described.manifest_digest.clone(),
            ..described.clone()
        };
        assembly.finish(name, handed_on).await
    }

    async fn remove(&self, image: &str) -> Result<()> {
        let found = self.all().await?.find(image)?;
        let (names, last) = found.removal(image);
        if last && self.store.is_used(&found.info.id).await? {
            return Err(ImageError::InUse(image.to_owned()));
        }
        for name in names {
            self.store.unname(&name).await?;
        }
        Ok(())
    }
}
