//! The store: opening it, looking things up, and preparing an image for a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::image::{ImageConfiguration, ImageManifest};

use super::blob::Blobs;
use super::index::{Entry, Index};
use super::layer::{self, Layers};
use super::lock::{FileLock, LockMode};
use super::manifest::{Image, json};
use super::{Digest, ImageError, ImageRef, Platform, UnpackLimits};
use crate::runtime::{self, ImageInfo, ImageStore, RegistryAuth};

/// The images of this node. Clones of the `Arc` and other processes may use the same folders.
#[derive(Debug)]
pub struct Store {
    pub(super) folders: Folders,
    /// Ends pulls that nobody waits for any more.
    pub(super) limits: UnpackLimits,
}

/// The folders, for work on a blocking thread.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    pub(super) blobs: Blobs,
    pub(super) index: Index,
    pub(super) layers: Layers,
    images: PathBuf,
}

/// An image that a container can be made of. Its layers stay while this lives; after that, while the image is in the
/// list of those in use that [`Store::remove`] is given.
#[derive(Debug)]
pub struct PreparedImage {
    /// What the image tells.
    pub info: ImageInfo,
    /// Its config: entry point, environment, user, working folder.
    pub config: ImageConfiguration,
    /// Folders to mount as overlay lowers, topmost first, each once.
    pub lowers: Vec<PathBuf>,
    _held: Vec<FileLock>,
}

impl Store {
    /// Opens the store in the state folder, making it if need be, and clears away what dead processes left.
    ///
    /// # Errors
    /// [`ImageError::Io`] where the folders cannot be made.
    pub fn open(root: &Path) -> Result<Arc<Self>, ImageError> {
        Self::open_with(root, UnpackLimits::default())
    }

    /// Likewise, with other bounds for a layer.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: &Path, limits: UnpackLimits) -> Result<Arc<Self>, ImageError> {
        let folders = Folders::create(root)?;
        folders.clean_up()?;
        Ok(Arc::new(Self { folders, limits }))
    }

    /// Makes an image ready to be mounted: finds it, checks its architecture, unpacks the layers that are not.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::WrongArchitecture`], and whatever a bad layer is refused with.
    pub async fn prepare(&self, image: &str) -> Result<PreparedImage, ImageError> {
        let (folders, limits, image) = (self.folders.clone(), self.limits, image.to_owned());
        blocking(move || folders.prepare(&image, limits)).await
    }

    /// Every image, in the order of names.
    ///
    /// # Errors
    /// [`ImageError::Io`] and [`ImageError::Malformed`] where the store cannot be read.
    pub async fn images(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let folders = self.folders.clone();
        blocking(move || folders.list()).await
    }

    /// One image, by reference, config digest or `name@digest`.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::InvalidReference`].
    pub async fn image(&self, image: &str) -> Result<ImageInfo, ImageError> {
        let (folders, image) = (self.folders.clone(), image.to_owned());
        blocking(move || Ok(folders.find(&image)?.1)).await
    }
}

#[async_trait]
impl ImageStore for Store {
    async fn list(&self) -> runtime::Result<Vec<ImageInfo>> {
        Ok(self.images().await?)
    }

    async fn inspect(&self, image: &str) -> runtime::Result<ImageInfo> {
        Ok(self.image(image).await?)
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> runtime::Result<ImageInfo> {
        let options = super::PullOptions {
            auth: auth.cloned(),
            ..Default::default()
        };
        Ok(self.pull_with(image, options).await?)
    }
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(ImageError::Io {
            action: "finish work on the image store".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}

impl Folders {
    fn create(root: &Path) -> Result<Self, ImageError> {
        let images = root.join("images");
        let folders = Self {
            blobs: Blobs::new(&images),
            index: Index::new(&images),
            layers: Layers::new(&root.join("layers")),
            images,
        };
        layer::private_dir(&folders.images)?;
        layer::private_dir(folders.blobs.dir())?;
        layer::private_dir(folders.blobs.tmp())?;
        folders.layers.create()?;
        let mark = folders.images.join("oci-layout");
        if !mark.exists() {
            let temp = folders.blobs.temp();
            fs::write(temp.path(), r#"{"imageLayoutVersion":"1.0.0"}"#)
                .and_then(|()| fs::rename(temp.path(), &mark))
                .map_err(|e| ImageError::io("write", &mark, e))?;
        }
        Ok(folders)
    }

    /// Keeps the store's contents from being collected while something is made of them.
    pub(super) fn work(&self) -> Result<FileLock, ImageError> {
        FileLock::shared(&self.work_lock())
    }

    /// The lock of whoever deletes; `None` while others work.
    pub(super) fn alone(&self) -> Result<Option<FileLock>, ImageError> {
        FileLock::take(&self.work_lock(), LockMode::TryExclusive)
    }

    fn work_lock(&self) -> PathBuf {
        self.images.join("lock")
    }

    fn clean_up(&self) -> Result<(), ImageError> {
        let Some(_alone) = self.alone()? else {
            return Ok(());
        };
        layer::sweep(self.blobs.tmp())?;
        layer::sweep(self.layers.tmp())
    }

    /// Reads the documents of a manifest.
    pub(super) fn load(&self, manifest: &Digest) -> Result<Image, ImageError> {
        let bytes = self.blobs.document(manifest)?;
        let document: ImageManifest = json(&bytes, &format!("manifest {manifest}"))?;
        let config =
            super::manifest::digest_of(document.config(), &format!("manifest {manifest}"))?;
        let bytes = self.blobs.document(&config)?;
        let config: ImageConfiguration = json(&bytes, &format!("config {config}"))?;
        Image::new(manifest.clone(), &document, config)
    }

    fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let _work = self.work()?;
        let mut images: Vec<(Digest, ImageInfo)> = Vec::new();
        for entry in self.index.read()? {
            if let Some((_, info)) = images
                .iter_mut()
                .find(|(digest, _)| *digest == entry.manifest)
            {
                info.names.push(entry.name);
                continue;
            }
            let image = self.load(&entry.manifest)?;
            let info = image.info(vec![entry.name], self.size(&image));
            images.push((entry.manifest, info));
        }
        Ok(images.into_iter().map(|(_, info)| info).collect())
    }

    /// Finds an image by any of its names.
    pub(super) fn find(&self, image: &str) -> Result<(Image, ImageInfo), ImageError> {
        let entries = self.index.read()?;
        let manifest = self
            .matching(&entries, image)?
            .ok_or_else(|| ImageError::Missing(image.to_owned()))?;
        let names = entries
            .iter()
            .filter(|entry| entry.manifest == manifest)
            .map(|entry| entry.name.clone())
            .collect();
        let image = self.load(&manifest)?;
        let info = image.info(names, self.size(&image));
        Ok((image, info))
    }

    fn matching(&self, entries: &[Entry], image: &str) -> Result<Option<Digest>, ImageError> {
        if let Some(config) = Digest::parse(image) {
            for entry in entries {
                if entry.manifest == config || self.load(&entry.manifest)?.config_digest == config {
                    return Ok(Some(entry.manifest.clone()));
                }
            }
            return Ok(None);
        }
        let wanted = ImageRef::parse(image)?;
        for entry in entries {
            let Ok(named) = ImageRef::parse(&entry.name) else {
                continue;
            };
            let found = match wanted.digest() {
                None => named.same_image(&wanted),
                Some(digest) => named.same_repository(&wanted) && self.has_digest(entry, digest)?,
            };
            if found {
                return Ok(Some(entry.manifest.clone()));
            }
        }
        Ok(None)
    }

    /// `name@digest` may give the digest of the manifest, as registries do, or of the config, as managers do.
    fn has_digest(&self, entry: &Entry, digest: &Digest) -> Result<bool, ImageError> {
        let named = ImageRef::parse(&entry.name)?;
        Ok(entry.manifest == *digest
            || named.digest() == Some(digest)
            || self.load(&entry.manifest)?.config_digest == *digest)
    }

    /// Bytes of the unpacked layers, of the blobs where they are not unpacked.
    fn size(&self, image: &Image) -> u64 {
        let sizes = image
            .layers
            .iter()
            .map(|layer| self.layers.size(&layer.diff_id).unwrap_or(layer.blob_size));
        sizes.sum()
    }

    fn prepare(&self, name: &str, limits: UnpackLimits) -> Result<PreparedImage, ImageError> {
        let _work = self.work()?;
        let (image, _) = self.find(name)?;
        let (found, host) = (image.platform(), Platform::host());
        if found != host {
            return Err(ImageError::WrongArchitecture {
                image: name.to_owned(),
                found: found.to_string(),
                host: host.to_string(),
            });
        }
        self.unpack(&image, limits)?;
        let mut lowers: Vec<PathBuf> = Vec::new();
        let mut held = Vec::new();
        for layer in image.layers.iter().rev() {
            let lower = self.layers.fs(&layer.diff_id);
            // overlay refuses a folder that is there twice, and the lower one adds nothing.
            if !lowers.contains(&lower) {
                held.push(self.layers.hold(&layer.diff_id)?);
                lowers.push(lower);
            }
        }
        let (_, info) = self.find(name)?;
        Ok(PreparedImage {
            info,
            config: image.config,
            lowers,
            _held: held,
        })
    }

    /// Unpacks the layers of an image that are not.
    pub(super) fn unpack(&self, image: &Image, limits: UnpackLimits) -> Result<(), ImageError> {
        for layer in &image.layers {
            self.layers
                .ensure(&layer.diff_id, &self.blobs.path(&layer.blob), limits)?;
        }
        Ok(())
    }
}
