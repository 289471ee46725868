//! Images in containerd's own stores: names, documents, snapshots of their layers.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, StatSnapshotRequest, UsageRequest,
};
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListContainersRequest, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::types::{Descriptor, Mount};
use prost_types::FieldMask;
use tonic::{Code, Status};

use super::client::{Client, absent_is_done, failed};
use super::create::kept;
use super::record::Kept;
use crate::image::ImageError;
use crate::image::engine::EngineStore;
use crate::image::pull::{Described, Documents, Layer, chain};
use crate::runtime::{ContainerId, Result, RuntimeError};

/// Where images are.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) client: Arc<Client>,
    snapshotter: String,
    /// One layer is unpacked at a time, and none twice.
    pub(super) unpacking: tokio::sync::Mutex<()>,
    /// Folder for archives that are being read.
    scratch: PathBuf,
}

impl Images {
    pub fn new(client: Arc<Client>, snapshotter: &str, state: &Path) -> Self {
        Self {
            client,
            snapshotter: snapshotter.to_owned(),
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

    /// Refuses a snapshotter that the daemon does not have; one that is only away may come back.
    pub async fn check_snapshotter(&self) -> Result<()> {
        let request = StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: "backendai-agent".to_owned(),
        };
        match absent_is_done(self.client.ask(request).await) {
            Err(status) if status.code() == Code::InvalidArgument => {
                Err(RuntimeError::Invalid(format!(
                    "containerd has no snapshotter {:?}; name one by --snapshotter that `ctr plugins ls` shows as ok, or \
                     let its configuration name this one below proxy_plugins",
                    self.snapshotter
                )))
            }
            _ => Ok(()),
        }
    }

    /// The contract's error for a failed call of our snapshotter.
    pub(super) async fn away(&self, action: impl Into<String>, status: Status) -> RuntimeError {
        self.client.away(&self.snapshotter, action, status).await
    }

    /// Makes the root file system of a container, unpacking the image if nobody has; the image is called `name` then.
    pub async fn snapshot(
        &self,
        id: &ContainerId,
        image: &Described,
        name: &str,
    ) -> Result<Vec<Mount>> {
        let action = || format!("making the snapshot of container {id}");
        let stack = chain(image.diff_ids());
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
                    // Snapshotters that fetch by themselves ask for it by its name.
                    let name = name.to_owned();
                    let image = Described {
                        name,
                        ..image.clone()
                    };
                    self.unpack_stored(&image).await?;
                }
                // Of a container that was never made to the end: nobody else has this id.
                Err(status) if status.code() == Code::AlreadyExists => {
                    let removed = self.remove_snapshot(&self.snapshotter, &id.0).await;
                    removed.map_err(failed(action()))?;
                }
                Err(status) => return Err(self.away(action(), status).await),
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
impl EngineStore for Images {
    async fn names(&self) -> Result<Vec<(String, String)>> {
        let listed = self.client.ask(ListImagesRequest::default()).await;
        let images = listed.map_err(failed("listing images"))?.images.into_iter();
        Ok(images
            .map(|image| (image.name, image.target.unwrap_or_default().digest))
            .collect())
    }

    async fn unname(&self, name: &str) -> Result<()> {
        let request = DeleteImageRequest {
            name: name.to_owned(),
            // The space is free when this returns.
            sync: true,
            ..DeleteImageRequest::default()
        };
        let deleted = absent_is_done(self.client.ask(request).await);
        deleted
            .map(drop)
            .map_err(failed(format!("removing image {name}")))
    }

    async fn unpacked_size(&self, image: &Described) -> Option<u64> {
        let mut total = 0;
        for key in chain(image.diff_ids()) {
            let snapshotter = self.snapshotter.clone();
            let usage = self.client.ask(UsageRequest { snapshotter, key }).await;
            total += u64::try_from(usage.ok()?.size).unwrap_or(0);
        }
        Some(total)
    }

    async fn is_used(&self, id: &str) -> Result<bool> {
        let listed = self.client.ask(ListContainersRequest::default()).await;
        let containers = listed.map_err(failed("looking for containers"))?.containers;
        let mut records = containers.iter().filter_map(Kept::of);
        Ok(records.any(|kept| kept.image_id == id))
    }

    async fn copy(&self, layer: &Layer, file: File) -> Result<(), ImageError> {
        let copied = self.client.copy_blob(&layer.digest, file).await;
        copied.map_err(|status| match status.code() {
            Code::NotFound if self.is_remote() => ImageError::NothingToPush {
                image: layer.what.clone(),
                why: format!(
                    "the snapshotter {} had the layer by itself, and it was never fetched; pull the image with another one",
                    self.snapshotter
                ),
            },
            _ => failed(format!("reading {}", layer.what))(status).into(),
        })
    }

    fn scratch(&self) -> &Path {
        &self.scratch
    }
}
