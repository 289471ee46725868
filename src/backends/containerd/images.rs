//! Images in containerd's own stores: names, documents, snapshots of their layers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, UsageRequest};
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListContainersRequest, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::types::{Descriptor, Mount};
use prost_types::FieldMask;
use tonic::Code;

use super::client::{Client, absent_is_done, failed};
use super::create::kept;
use super::record::Kept;
use crate::image::pull::{self, Described, Documents, chain};
use crate::image::{
    self, Bundle, Catalog, ImageAdmin, ImageError, ImportOptions, Platform, PullOptions,
    check_architecture,
};
use crate::runtime::{ContainerId, ImageInfo, ImageStore, RegistryAuth, Result};

/// What is known of an image by its digest; none of it ever changes.
#[derive(Debug)]
pub(super) struct Known {
    pub described: Described,
    /// Without names.
    pub info: ImageInfo,
    /// Bytes of the unpacked layers, once they are.
    size: OnceLock<u64>,
}

/// The images.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) client: Arc<Client>,
    snapshotter: String,
    known: Mutex<HashMap<String, Arc<Known>>>,
    /// One layer is unpacked at a time, and none twice.
    pub(super) unpacking: tokio::sync::Mutex<()>,
    /// Folder for archives that are being read.
    pub(super) scratch: PathBuf,
}

impl Images {
    pub fn new(client: Arc<Client>, snapshotter: &str, state: &Path) -> Self {
        Self {
            client,
            snapshotter: snapshotter.to_owned(),
            known: Mutex::default(),
            unpacking: tokio::sync::Mutex::default(),
            scratch: state.join("import"),
        }
    }

    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    /// An image that a container can be made of.
    pub async fn runnable(&self, image: &str) -> Result<Arc<Known>> {
        let (known, _) = self.find(image).await?;
        check_architecture(image, &known.described.config)?;
        Ok(known)
    }

    /// One image, by name, by config digest, or by `name@digest`.
    async fn find(&self, image: &str) -> Result<(Arc<Known>, ImageInfo)> {
        let found = self.all().await?.find(image)?;
        Ok((found.image, found.info))
    }

    /// Every image with all its names.
    async fn all(&self) -> Result<Catalog<Arc<Known>>> {
        let listed = self.client.ask(ListImagesRequest::default()).await;
        let mut all = Catalog::default();
        for image in listed.map_err(failed("listing images"))?.images {
            let target = image.target.unwrap_or_default().digest;
            let Some(known) = self.known(&target).await? else {
                tracing::debug!(image.name, "not for this machine, or not here as a whole");
                continue;
            };
            let manifest = &known.described.manifest_digest;
            let entry = match all.known(manifest) {
                Some(entry) => entry,
                None => {
                    let info = ImageInfo {
                        repo_digest: Some(target),
                        size: self.size(&known).await,
                        ..known.info.clone()
                    };
                    all.add(manifest.clone(), info, known)
                }
            };
            entry.info.names.push(image.name);
        }
        Ok(all)
    }

    /// Reads an image's documents, once.
    async fn known(&self, target: &str) -> Result<Option<Arc<Known>>> {
        let all = || self.known.lock().expect("no panic while held");
        if let Some(known) = all().get(target) {
            return Ok(Some(Arc::clone(known)));
        }
        let read = async {
            let top = self.document(target).await?;
            Described::read(target, top, &Platform::default(), self).await
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
            info: image::info_of(described.id(), &described.config),
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
        let mut total = 0;
        for key in chain(known.described.diff_ids()) {
            let snapshotter = self.snapshotter.clone();
            let Ok(usage) = self.client.ask(UsageRequest { snapshotter, key }).await else {
                let layers = known.described.manifest.layers().iter();
                return layers.map(|layer| layer.size()).sum();
            };
            total += u64::try_from(usage.size).unwrap_or(0);
        }
        *known.size.get_or_init(|| total)
    }

    /// Makes the root file system of a container, unpacking the image if nobody has.
    pub async fn snapshot(&self, id: &ContainerId, image: &Known) -> Result<Vec<Mount>> {
        let action = || format!("making the snapshot of container {id}");
        let stack = chain(image.described.diff_ids());
        for _ in 0..2 {
            let request = PrepareSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                key: id.0.clone(),
                parent: stack.last().cloned().unwrap_or_default(),
                labels: kept(),
            };
            match self.client.ask(request).await {
                Ok(made) => return Ok(made.mounts),
                Err(status) if status.code() == Code::NotFound => {
                    self.unpack_stored(&image.described).await?;
                }
                // Of a container that was never made to the end: nobody else has this id.
                Err(status) if status.code() == Code::AlreadyExists => {
                    let removed = self.remove_snapshot(&self.snapshotter, &id.0).await;
                    removed.map_err(failed(action()))?;
                }
                Err(status) => return Err(failed(action())(status)),
            }
        }
        let text = "the image's layers are gone again; something else removes them";
        Err(super::engine_error(action(), text.into()))
    }

    /// Gives an image its name; another one that had it loses it.
    pub(super) async fn enter(&self, name: &str, target: Descriptor) -> Result<()> {
        let image = Some(Image {
            name: name.to_owned(),
            target: Some(target),
            ..Image::default()
        });
        let request = CreateImageRequest {
            image: image.clone(),
            ..CreateImageRequest::default()
        };
        let done = match self.client.ask(request).await {
            Err(status) if status.code() == Code::AlreadyExists => {
                let paths = vec!["target".to_owned()];
                let request = UpdateImageRequest {
                    image,
                    update_mask: Some(FieldMask { paths }),
                    ..UpdateImageRequest::default()
                };
                self.client.ask(request).await.map(drop)
            }
            other => other.map(drop),
        };
        done.map_err(failed(format!("naming image {name}")))
    }

    async fn is_used(&self, image: &ImageInfo) -> Result<bool> {
        let listed = self.client.ask(ListContainersRequest::default()).await;
        let containers = listed.map_err(failed("looking for containers"))?.containers;
        let mut records = containers.iter().filter_map(Kept::of);
        Ok(records.any(|record| record.image_id == image.id))
    }
}

#[async_trait]
impl Documents for Images {
    async fn document(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let read = self.client.document(digest).await;
        let read = read.map_err(failed(format!("reading blob {digest}")))?;
        read.ok_or_else(|| ImageError::Missing(format!("of blob {digest}")))
    }
}

#[async_trait]
impl ImageStore for Images {
    async fn list(&self) -> Result<Vec<ImageInfo>> {
        let all = self.all().await?.sorted().into_iter();
        Ok(all.map(|entry| entry.info).collect())
    }

    async fn inspect(&self, image: &str) -> Result<ImageInfo> {
        Ok(self.find(image).await?.1)
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<ImageInfo> {
        let options = PullOptions {
            auth: auth.cloned(),
            ..PullOptions::default()
        };
        Ok(self.pull_with(image, &options).await?)
    }
}

#[async_trait]
impl ImageAdmin for Images {
    async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let ids = image::import(self, path, name, options, &self.scratch).await?;
        let mut infos = Vec::new();
        for id in ids {
            infos.push(self.inspect(&id).await?);
        }
        Ok(infos)
    }

    async fn pull_with(&self, image: &str, options: &PullOptions) -> Result<ImageInfo, ImageError> {
        let name = pull::pull(self, image, options).await?;
        Ok(self.inspect(&name).await?)
    }

    async fn export(&self, image: &str, scratch: &Path) -> Result<Bundle, ImageError> {
        let (known, info) = self.find(image).await?;
        let name = info.names.first().unwrap_or(&info.id).clone();
        let mut assembly = image::Assembly::begin(scratch).await?;
        for layer in known.described.layers() {
            let what = format!("blob {} of {name}", layer.digest);
            let copied = self.client.copy_blob(&layer.digest, assembly.file(&what)?);
            copied.await.map_err(failed(format!("reading {what}")))?;
        }
        let found = Described {
            // One platform of an index is handed on as an image of its own.
            top_digest: known.described.manifest_digest.clone(),
            ..known.described.clone()
        };
        assembly.finish(name, found).await
    }

    async fn remove(&self, image: &str) -> Result<(), ImageError> {
        let found = self.all().await?.find(image)?;
        let (names, last) = found.removal(image);
        if last && self.is_used(&found.info).await? {
            return Err(ImageError::InUse(image.to_owned()));
        }
        for name in names {
            let request = DeleteImageRequest {
                name,
                // The space is free when this returns.
                sync: true,
                ..DeleteImageRequest::default()
            };
            let deleted = absent_is_done(self.client.ask(request).await);
            deleted.map_err(failed(format!("removing image {image}")))?;
        }
        Ok(())
    }
}
