//! Images in containerd's own stores: names, documents, snapshots of their layers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, UsageRequest,
};
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListContainersRequest, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::types::{Descriptor, Mount};
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use prost_types::FieldMask;
use sha2::{Digest, Sha256};
use tonic::Code;

use super::client::{Client, QUICK, SLOW, absent_is_done, failed};
use super::create::kept;
use super::record::Record;
use crate::image::layout::{parse_config, parse_manifest};
use crate::image::platform::choose;
use crate::image::pull::Described;
use crate::image::{
    self, Bundle, ImageAdmin, ImageError, ImportOptions, Platform, PullOptions, check_architecture,
};
use crate::runtime::{ContainerId, ImageInfo, ImageStore, RegistryAuth, Result};

/// What is known of an image by its digest; none of it ever changes.
#[derive(Debug)]
pub(super) struct Known {
    /// Digest of the manifest for this machine.
    pub manifest_digest: String,
    pub manifest: ImageManifest,
    pub config: ImageConfiguration,
    /// Without names.
    pub info: ImageInfo,
    /// Names of the snapshots of its layers, lowest first.
    pub chain: Vec<String>,
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
        check_architecture(image, &known.config)?;
        Ok(known)
    }

    /// One image, by name, by config digest, or by `name@digest`.
    pub async fn find(&self, image: &str) -> Result<(Arc<Known>, ImageInfo)> {
        let mut all = self.all().await?;
        let infos = all
            .iter()
            .map(|(known, info)| (known.manifest_digest.as_str(), info));
        let index = image::position(&infos.collect::<Vec<_>>(), image)?;
        Ok(all.swap_remove(index))
    }

    /// Every image with all its names, in the order of names.
    async fn all(&self) -> Result<Vec<(Arc<Known>, ImageInfo)>> {
        let request = self.client.request(ListImagesRequest::default());
        let listed = self
            .client
            .call(QUICK, self.client.images().list(request))
            .await;
        let mut all: Vec<(Arc<Known>, ImageInfo)> = Vec::new();
        for image in listed.map_err(failed("listing images"))?.images {
            let target = image.target.unwrap_or_default().digest;
            let Some(known) = self.known(&target).await? else {
                tracing::debug!(image.name, "not for this machine, or not here as a whole");
                continue;
            };
            let same =
                |(other, _): &(Arc<Known>, _)| other.manifest_digest == known.manifest_digest;
            if let Some(index) = all.iter().position(same) {
                all[index].1.names.push(image.name);
                continue;
            }
            let info = ImageInfo {
                names: vec![image.name],
                repo_digest: Some(target),
                size: self.size(&known).await,
                ..known.info.clone()
            };
            all.push((known, info));
        }
        for (_, info) in &mut all {
            info.names.sort();
        }
        all.sort_by(|(_, a), (_, b)| (&a.names, &a.id).cmp(&(&b.names, &b.id)));
        Ok(all)
    }

    /// Reads an image's documents, once.
    async fn known(&self, target: &str) -> Result<Option<Arc<Known>>> {
        let remembered = self
            .known
            .lock()
            .expect("no panic while held")
            .get(target)
            .cloned();
        if remembered.is_some() {
            return Ok(remembered);
        }
        let known = match self.read(target).await {
            Ok(known) => known.map(Arc::new),
            Err(ImageError::Engine(error)) => return Err(error),
            // Somebody else's, and none that we could run.
            Err(error) => {
                tracing::debug!(target, "cannot read the image: {error}");
                None
            }
        };
        if let Some(known) = &known {
            let mut all = self.known.lock().expect("no panic while held");
            all.insert(target.to_owned(), Arc::clone(known));
        }
        Ok(known)
    }

    async fn read(&self, target: &str) -> Result<Option<Known>, ImageError> {
        let Some(top) = self.document(target).await? else {
            return Ok(None);
        };
        let (manifest_digest, bytes) = match serde_json::from_slice::<ImageIndex>(&top) {
            Ok(index) => {
                let entry = choose(target, index.manifests(), &Platform::default())?;
                let digest = entry.digest().to_string();
                let Some(bytes) = self.document(&digest).await? else {
                    return Ok(None);
                };
                (digest, bytes)
            }
            Err(_) => (target.to_owned(), top),
        };
        let manifest = parse_manifest(&manifest_digest, &bytes)?;
        let id = manifest.config().digest().to_string();
        let Some(bytes) = self.document(&id).await? else {
            return Ok(None);
        };
        let config = parse_config(&id, &bytes)?;
        Ok(Some(Known {
            manifest_digest,
            chain: chain(config.rootfs().diff_ids()),
            info: image::info_of(id, &config),
            manifest,
            config,
            size: OnceLock::new(),
        }))
    }

    async fn document(&self, digest: &str) -> Result<Option<Vec<u8>>> {
        let read = self.client.document(digest).await;
        read.map_err(failed(format!("reading blob {digest}")))
    }

    /// A document of an image that must be there.
    async fn present(&self, image: &str, digest: &str) -> Result<Vec<u8>, ImageError> {
        let found = self.document(digest).await?;
        found.ok_or_else(|| ImageError::Missing(format!("{image} (blob {digest})")))
    }

    /// Bytes of the unpacked layers, or of the packed ones as long as they are not unpacked.
    async fn size(&self, known: &Known) -> u64 {
        if let Some(size) = known.size.get() {
            return *size;
        }
        let mut total = 0;
        for key in &known.chain {
            let request = self.client.request(UsageRequest {
                snapshotter: self.snapshotter.clone(),
                key: key.clone(),
            });
            let usage = self
                .client
                .call(QUICK, self.client.snapshots().usage(request))
                .await;
            let Ok(usage) = usage else {
                return known
                    .manifest
                    .layers()
                    .iter()
                    .map(|layer| layer.size())
                    .sum();
            };
            total += u64::try_from(usage.size).unwrap_or(0);
        }
        *known.size.get_or_init(|| total)
    }

    /// Makes the root file system of a container, unpacking the image if nobody has.
    pub async fn snapshot(&self, id: &ContainerId, image: &Known) -> Result<Vec<Mount>> {
        let action = || format!("making the snapshot of container {id}");
        for _ in 0..2 {
            let request = self.client.request(PrepareSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                key: id.0.clone(),
                parent: image.chain.last().cloned().unwrap_or_default(),
                labels: kept(),
            });
            let made = self
                .client
                .call(SLOW, self.client.snapshots().prepare(request))
                .await;
            match made {
                Ok(made) => return Ok(made.mounts),
                Err(status) if status.code() == Code::NotFound => {
                    self.unpack_stored(image).await?;
                }
                // Of a container that was never made to the end: nobody else has this id.
                Err(status) if status.code() == Code::AlreadyExists => {
                    let request = self.client.request(RemoveSnapshotRequest {
                        snapshotter: self.snapshotter.clone(),
                        key: id.0.clone(),
                    });
                    let mut client = self.client.snapshots();
                    let removed = self.client.call(SLOW, client.remove(request)).await;
                    absent_is_done(removed).map_err(failed(action()))?;
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
        let request = self.client.request(CreateImageRequest {
            image: image.clone(),
            ..CreateImageRequest::default()
        });
        let made = self
            .client
            .call(QUICK, self.client.images().create(request))
            .await;
        let done = match made {
            Err(status) if status.code() == Code::AlreadyExists => {
                let request = self.client.request(UpdateImageRequest {
                    image,
                    update_mask: Some(FieldMask {
                        paths: vec!["target".to_owned()],
                    }),
                    ..UpdateImageRequest::default()
                });
                let mut client = self.client.images();
                let updated = self.client.call(QUICK, client.update(request)).await;
                updated.map(drop)
            }
            other => other.map(drop),
        };
        done.map_err(failed(format!("naming image {name}")))
    }

    async fn is_used(&self, image: &ImageInfo) -> Result<bool> {
        let request = self.client.request(ListContainersRequest::default());
        let listed = self
            .client
            .call(QUICK, self.client.containers().list(request))
            .await;
        let containers = listed.map_err(failed("looking for containers"))?.containers;
        let mut records = containers.iter().filter_map(Record::of);
        Ok(records.any(|record| record.image_id == image.id))
    }
}

/// Names of the snapshots of layers, as every user of containerd computes them (OCI image specification, ChainID).
pub(super) fn chain(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => {
                let digest = Sha256::digest(format!("{parent} {diff_id}"));
                format!("sha256:{}", hex::encode(digest))
            }
        };
        chain.push(id);
    }
    chain
}

#[async_trait]
impl ImageStore for Images {
    async fn list(&self) -> Result<Vec<ImageInfo>> {
        let all = self.all().await?;
        Ok(all.into_iter().map(|(_, info)| info).collect())
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
        self.import_archive(path, name, options).await
    }

    async fn pull_with(&self, image: &str, options: &PullOptions) -> Result<ImageInfo, ImageError> {
        self.pull_image(image, options).await
    }

    async fn export(&self, image: &str, scratch: &Path) -> Result<Bundle, ImageError> {
        let (known, info) = self.find(image).await?;
        let name = info.names.first().unwrap_or(&info.id).clone();
        let found = Described {
            top: Vec::new(),
            top_digest: known.manifest_digest.clone(),
            manifest_bytes: self.present(image, &known.manifest_digest).await?,
            manifest: known.manifest.clone(),
            config_bytes: self.present(image, &info.id).await?,
            config: known.config.clone(),
        };
        let mut assembly = image::Assembly::begin(scratch).await?;
        for layer in known.manifest.layers() {
            let digest = layer.digest().to_string();
            let what = format!("blob {digest} of {name}");
            let copied = self.client.copy_blob(&digest, assembly.file(&what)?).await;
            copied.map_err(failed(format!("reading {what}")))?;
        }
        assembly.finish(name, found).await
    }

    async fn remove(&self, image: &str) -> Result<(), ImageError> {
        let (_, info) = self.find(image).await?;
        let name = image::named(&info.names, image);
        let last = name.is_none() || info.names.len() < 2;
        if last && self.is_used(&info).await? {
            return Err(ImageError::InUse(image.to_owned()));
        }
        for name in name.map_or(info.names, |name| vec![name]) {
            let request = self.client.request(DeleteImageRequest {
                name,
                // The space is free when this returns.
                sync: true,
                ..DeleteImageRequest::default()
            });
            let deleted = self
                .client
                .call(SLOW, self.client.images().delete(request))
                .await;
            absent_is_done(deleted).map_err(failed(format!("removing image {image}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_named_as_the_specification_says() {
        assert!(chain(&[]).is_empty());
        let ids = ["sha256:a", "sha256:b"].map(str::to_owned);
        let second = hex::encode(Sha256::digest("sha256:a sha256:b"));
        assert_eq!(
            chain(&ids),
            ["sha256:a".to_owned(), format!("sha256:{second}")]
        );
    }
}
