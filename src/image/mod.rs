//! The node's image store for engines without one of their own: an OCI layout with unpacked layers.

mod admin;
mod archive;
mod bundle;
mod catalog;
mod compression;
pub(crate) mod credentials;
#[cfg(feature = "blob-store")]
pub(crate) mod engine;
mod error;
mod import;
pub(crate) mod layout;
mod mounted;
pub(crate) mod platform;
pub(crate) mod pull;
mod push;
mod reference;
mod unpack;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::image::{Descriptor, ImageConfiguration, MediaType};

pub use self::admin::{ImageAdmin, NodeImages};
pub(crate) use self::bundle::RemoteImage;
pub use self::bundle::{Bundle, BundledImage, BundledLayer};
use self::catalog::Catalog;
pub use self::error::ImageError;
pub use self::import::ImportOptions;
pub use self::platform::Platform;
pub use self::pull::PullOptions;
pub use self::push::{PushOptions, Pushed, push};
pub use self::reference::ImageRef;
pub use self::unpack::Limits;

use self::error::Result;
use self::layout::{Layout, Work};
use crate::runtime::{self, ImageInfo, ImageStore, RegistryAuth};

/// Annotation of the index that holds an image's canonical name (OCI image layout specification).
const NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of the index: the digest that the image's registry or layout knows it by.
const REPO_DIGEST: &str = "ai.backend.image.repo-digest";

/// The images of this node. Any number of tasks and processes may use one folder.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
}

/// An image, ready to be a container's root.
#[derive(Clone, Debug)]
pub struct PreparedImage {
    /// What the manager sees of it.
    pub info: ImageInfo,
    /// Its whole config.
    pub config: ImageConfiguration,
    /// Folders of its layers, topmost first, as overlayfs wants them.
    pub lowers: Vec<PathBuf>,
}

/// An image whose blobs and layers are stored, before it is in the index.
#[derive(Debug)]
pub(crate) struct Added {
    manifest: String,
    manifest_size: u64,
    repo_digest: Option<String>,
    names: Vec<String>,
}

/// One image of the index.
type Record = catalog::Entry<ImageConfiguration>;

impl Store {
    /// Opens (and makes) the store below the agent's state folder, and clears up after crashes.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the folder cannot be used.
    pub fn open(root: &Path) -> Result<Arc<Self>> {
        Self::open_with(root, Limits::default())
    }

    /// Like [`Store::open`], with other bounds for layers.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: &Path, limits: Limits) -> Result<Arc<Self>> {
        let layout = Layout::open(root, limits)?;
        if let Err(error) = layout.collect() {
            tracing::warn!(%error, "cannot clean the image store");
        }
        Ok(Arc::new(Self { layout }))
    }

    /// The image's config and layers, if it runs on this machine. Blocks on a few small files.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::WrongArchitecture`], [`ImageError::Io`].
    pub fn prepare(&self, image: &str) -> Result<PreparedImage> {
        let record = find(&self.layout, image)?;
        check_architecture(image, &record.image)?;
        let mut lowers = Vec::new();
        for diff_id in record.image.rootfs().diff_ids().iter().rev() {
            let layer = self.layout.layer(diff_id);
            lowers.push(
                layer.ok_or_else(|| ImageError::Missing(format!("{image} (layer {diff_id})")))?,
            );
        }
        Ok(PreparedImage {
            info: record.info,
            config: record.image,
            lowers,
        })
    }

    /// Every image, in the order of names. Blocks.
    ///
    /// # Errors
    /// [`ImageError::Io`] and [`ImageError::Malformed`] when the store is damaged.
    pub fn images(&self) -> Result<Vec<ImageInfo>> {
        let records = records(&self.layout)?.sorted();
        Ok(records.into_iter().map(|record| record.info).collect())
    }

    /// Imports a root file system's tar, an archive of `docker save`, or an OCI archive or folder (`-` is standard
    /// input). The name may be absent when the archive tells it. Blocks.
    ///
    /// # Errors
    /// What is wrong with the archive; the store is then as before.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
    ) -> Result<Vec<ImageInfo>> {
        let name = import::name(name)?;
        add(&self.layout, |work| {
            let layout = &self.layout;
            let into = import::IntoStore { layout, work };
            import::import(&into, path, name.as_ref(), options)
        })
    }

    /// Removes a name, and the image with its last name; or an image by its id. Blocks.
    ///
    /// `in_use` are the images (names or ids) of containers that exist. A layer that is mounted is in use as well.
    ///
    /// # Errors
    /// [`ImageError::InUse`], [`ImageError::Missing`], [`ImageError::Io`].
    pub fn remove(&self, image: &str, in_use: &[String]) -> Result<()> {
        let record = find(&self.layout, image)?;
        let (names, last) = record.removal(image);
        let used = |other: &String| {
            find(&self.layout, other).is_ok_and(|other| other.manifest == record.manifest)
        };
        let mounted =
            || Ok::<_, ImageError>(!mounted::of(&layers_alone(&self.layout, &record)?).is_empty());
        if last && (in_use.iter().any(used) || mounted()?) {
            return Err(ImageError::InUse(image.to_owned()));
        }
        let work = self.layout.work()?;
        self.layout.change_index(&work, |manifests| {
            manifests.retain(|entry| {
                let this = digest_text(entry) == record.manifest;
                !this || (!last && name_of(entry).is_none_or(|name| !names.contains(name)))
            });
            Ok(())
        })?;
        drop(work);
        self.layout.collect()?;
        Ok(())
    }

    /// Pulls an image from its registry; cheap when all of it is here. Pulls may run at the same time.
    ///
    /// # Errors
    /// [`ImageError::Unreachable`] may be tried again and resumes; the rest says what is wrong.
    pub async fn pull_with(&self, image: &str, options: &PullOptions) -> Result<ImageInfo> {
        let name = pull::pull(&self.layout, image, options).await?;
        let found = pull::blocking(&self.layout, move |layout| find(layout, &name)).await?;
        Ok(found.info)
    }
}

#[async_trait]
impl ImageStore for Store {
    async fn list(&self) -> runtime::Result<Vec<ImageInfo>> {
        let records = pull::blocking(&self.layout, records).await?.sorted();
        Ok(records.into_iter().map(|record| record.info).collect())
    }

    async fn inspect(&self, image: &str) -> runtime::Result<ImageInfo> {
        let image = image.to_owned();
        Ok(
            pull::blocking(&self.layout, move |layout| find(layout, &image))
                .await?
                .info,
        )
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> runtime::Result<ImageInfo> {
        Ok(self.pull_with(image, &PullOptions::with(auth)).await?)
    }
}

/// This machine's architecture, as images name it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Refuses an image for other machines.
pub(crate) fn check_architecture(image: &str, config: &ImageConfiguration) -> Result<()> {
    let found = format!("{}/{}", config.os(), config.architecture());
    let wanted = format!("linux/{}", architecture());
    if found == wanted {
        return Ok(());
    }
    Err(ImageError::WrongArchitecture {
        image: image.to_owned(),
        found,
        wanted,
    })
}

/// What is told of an image, by its config's digest and the config; names, manifest and size are the store's.
pub(crate) fn info_of(id: String, config: &ImageConfiguration) -> ImageInfo {
    let inner = config.config().clone().unwrap_or_default();
    let mut command = inner.entrypoint().clone().unwrap_or_default();
    command.extend(inner.cmd().clone().unwrap_or_default());
    ImageInfo {
        id,
        labels: inner
            .labels()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        env: inner.env().clone().unwrap_or_default(),
        command,
        architecture: config.architecture().to_string(),
        ..ImageInfo::default()
    }
}

/// Does work that adds images, and enters them into the index; after an error nothing of it is left.
fn add(layout: &Layout, make: impl FnOnce(&Work) -> Result<Vec<Added>>) -> Result<Vec<ImageInfo>> {
    let work = layout.work()?;
    let result = make(&work).and_then(|added| enter_all(layout, &work, &added));
    drop(work);
    if result.is_err()
        && let Err(error) = layout.collect()
    {
        tracing::warn!(%error, "cannot clean the image store");
    }
    result
}

/// Enters images into the index, and returns what is then known of them.
fn enter_all(layout: &Layout, work: &Work, added: &[Added]) -> Result<Vec<ImageInfo>> {
    layout.change_index(work, |manifests| {
        added.iter().for_each(|added| enter(manifests, added));
        Ok(())
    })?;
    let mut records = records(layout)?.sorted();
    records.retain(|record| added.iter().any(|added| added.manifest == record.manifest));
    Ok(records.into_iter().map(|record| record.info).collect())
}

/// Takes the names from other images and gives them to this one. An image that loses its last name stays without
/// one until it is removed: a container may stand on it.
fn enter(manifests: &mut Vec<Descriptor>, added: &Added) {
    for entry in manifests.iter_mut() {
        let mut annotations = entry.annotations().clone().unwrap_or_default();
        if annotations
            .get(NAME)
            .is_some_and(|name| added.names.contains(name))
        {
            annotations.remove(NAME);
            entry.set_annotations(Some(annotations));
        }
    }
    let mut known: HashSet<String> = HashSet::from([added.manifest.clone()]);
    known.extend(
        manifests
            .iter()
            .filter(|entry| name_of(entry).is_some())
            .map(digest_text),
    );
    manifests.retain(|entry| name_of(entry).is_some() || known.insert(digest_text(entry)));
    let names = match added.names.as_slice() {
        [] => vec![None],
        names => names.iter().map(Some).collect(),
    };
    for name in names {
        let digest: oci_spec::image::Digest = added.manifest.parse().expect("made by this store");
        let mut entry = Descriptor::new(MediaType::ImageManifest, added.manifest_size, digest);
        let mut annotations = std::collections::HashMap::new();
        if let Some(name) = name {
            annotations.insert(NAME.to_owned(), name.clone());
        }
        if let Some(digest) = &added.repo_digest {
            annotations.insert(REPO_DIGEST.to_owned(), digest.clone());
        }
        entry.set_annotations(Some(annotations));
        manifests.push(entry);
    }
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a String> {
    entry.annotations().as_ref()?.get(key)
}

fn digest_text(entry: &Descriptor) -> String {
    entry.digest().to_string()
}

fn name_of(entry: &Descriptor) -> Option<&String> {
    annotation(entry, NAME)
}

/// All images.
fn records(layout: &Layout) -> Result<Catalog<ImageConfiguration>> {
    let mut records = Catalog::default();
    for entry in layout.index()?.manifests() {
        let digest = entry.digest().to_string();
        let record = match records.known(&digest) {
            Some(record) => record,
            None => {
                let (info, config) = describe(layout, &digest)?;
                records.add(digest, info, config)
            }
        };
        record.info.names.extend(name_of(entry).cloned());
        if let Some(digest) = annotation(entry, REPO_DIGEST) {
            record.info.repo_digest = Some(digest.clone());
        }
    }
    Ok(records)
}

fn describe(layout: &Layout, digest: &str) -> Result<(ImageInfo, ImageConfiguration)> {
    let (manifest, config) = layout.documents(digest)?;
    let sizes = config.rootfs().diff_ids().iter();
    let info = ImageInfo {
        size: sizes.map(|diff_id| layout.layer_size(diff_id)).sum(),
        ..info_of(manifest.config().digest().to_string(), &config)
    };
    Ok((info, config))
}

/// The layers that no other image has.
fn layers_alone(layout: &Layout, record: &Record) -> Result<HashSet<String>> {
    let layers = |record: &Record| record.image.rootfs().diff_ids().clone();
    let mut alone: HashSet<String> = layers(record).into_iter().collect();
    let mut others = records(layout)?.sorted();
    others.retain(|other| other.manifest != record.manifest);
    for layer in others.iter().flat_map(layers) {
        alone.remove(&layer);
    }
    Ok(alone)
}

/// One image, by name, by config digest, or by `name@digest`.
fn find(layout: &Layout, image: &str) -> Result<Record> {
    records(layout)?.find(image)
}
