//! Import from files: which kind it is, and the way into the store that all kinds share.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blob::TempPath;
use super::index::Entry;
use super::manifest::{Image, OCI_MANIFEST};
use super::store::{Folders, blocking};
use super::unpack::{Limited, Tar, decoder};
use super::{Digest, ImageError, ImageRef, Platform, Store, UnpackLimits, archive, rootfs};
use crate::runtime::ImageInfo;

/// What to import, and how.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name to give it; archives that bring names of their own need none.
    pub name: Option<String>,
    /// Config for a root file system, which brings none.
    pub rootfs: RootfsOptions,
}

/// The config of an imported root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsOptions {
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Environment, `K=V`.
    pub env: Vec<String>,
    /// Command.
    pub command: Vec<String>,
    /// Working folder.
    pub working_dir: Option<String>,
    /// User, `name`, `uid` or `uid:gid`.
    pub user: Option<String>,
    /// Architecture; this machine's when absent.
    pub architecture: Option<String>,
}

impl RootfsOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The architecture asked for, or this machine's.
    pub(super) fn platform(&self) -> Platform {
        let mut platform = Platform::host();
        if let Some(architecture) = &self.architecture {
            architecture.clone_into(&mut platform.architecture);
        }
        platform
    }
}

/// What a path holds.
enum Kind {
    Rootfs,
    Archive,
}

impl Store {
    /// Imports a root file system (tar), a `docker save` archive, or an OCI archive or folder; `-` is standard input.
    /// The same input gives the same digests.
    ///
    /// # Errors
    /// [`ImageError::InvalidRequest`] where name and archive do not fit, and whatever the archive is refused with;
    /// nothing is left in the store then.
    pub async fn import(
        self: &Arc<Self>,
        path: &Path,
        options: ImportOptions,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let (folders, limits, path) = (self.folders.clone(), self.limits, path.to_owned());
        blocking(move || {
            let result = {
                let _work = folders.work()?;
                folders.import(&path, &options, limits)
            };
            if result.is_err() {
                folders.collect()?;
            }
            result
        })
        .await
    }
}

impl Folders {
    fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        limits: UnpackLimits,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let name = options.name.as_deref().map(ImageRef::parse).transpose()?;
        if path.is_dir() {
            refuse_rootfs_options(path, options)?;
            return archive::import_folder(self, path, name.as_ref(), limits);
        }
        let (file, _temp) = self.at_hand(path)?;
        match kind(&file, limits)? {
            Kind::Archive => {
                refuse_rootfs_options(path, options)?;
                archive::import_archive(self, &file, name.as_ref(), limits)
            }
            Kind::Rootfs => {
                let name = name.ok_or_else(|| {
                    ImageError::InvalidRequest(format!(
                        "{} is a root file system: give the image a name",
                        path.display()
                    ))
                })?;
                rootfs::import(self, &file, &name, &options.rootfs, limits).map(|info| vec![info])
            }
        }
    }

    /// The file itself, or standard input as a file.
    fn at_hand(&self, path: &Path) -> Result<(PathBuf, Option<TempPath>), ImageError> {
        if path.as_os_str() != "-" {
            return Ok((path.to_owned(), None));
        }
        let (temp, _, _) = self.blobs.ingest(io::stdin().lock(), "standard input")?;
        Ok((temp.path().to_owned(), Some(temp)))
    }

    /// Unpacks an image whose blobs are there, and gives it its names.
    pub(super) fn record(
        &self,
        manifest: &Digest,
        names: &[ImageRef],
        limits: UnpackLimits,
    ) -> Result<ImageInfo, ImageError> {
        let image: Image = self.load(manifest)?;
        self.unpack(&image, limits)?;
        let size = self
            .blobs
            .path(manifest)
            .metadata()
            .map_err(|e| ImageError::io("look at blob", &self.blobs.path(manifest), e))?
            .len();
        for name in names {
            self.index.set(Entry {
                name: name.store_name(),
                manifest: manifest.clone(),
                size,
                media_type: OCI_MANIFEST.to_owned(),
            })?;
        }
        Ok(self.find(manifest.as_str())?.1)
    }
}

fn refuse_rootfs_options(path: &Path, options: &ImportOptions) -> Result<(), ImageError> {
    if options.rootfs.is_empty() {
        return Ok(());
    }
    Err(ImageError::InvalidRequest(format!(
        "{} is an image with a config of its own: labels, environment, command, folder, user and architecture are \
         for root file systems",
        path.display()
    )))
}

/// Looks at the first entry: image archives begin with one of few names, which no root file system has.
fn kind(path: &Path, limits: UnpackLimits) -> Result<Kind, ImageError> {
    let what = format!("archive {}", path.display());
    let file = File::open(path).map_err(|e| ImageError::io("open", path, e))?;
    let stream = Limited::new(decoder(file, &what)?, limits.stream(), limits.bytes);
    let mut tar = Tar::new(stream, &what);
    let Some(first) = first_name(&mut tar)? else {
        return Err(if tar.saw_end() {
            ImageError::malformed(what, "it is empty")
        } else {
            ImageError::Truncated(what)
        });
    };
    let is_hex = |name: &str| name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit());
    let known = [
        "blobs",
        "oci-layout",
        "index.json",
        "manifest.json",
        "repositories",
    ];
    let image = known.contains(&first.as_str()) || is_hex(first.trim_end_matches(".json"));
    Ok(if image { Kind::Archive } else { Kind::Rootfs })
}

/// First component of the first entry's name that has one.
fn first_name<R: Read>(tar: &mut Tar<R>) -> Result<Option<String>, ImageError> {
    while let Some(entry) = tar.next_entry()? {
        let name = entry.path.components().find_map(|part| match part {
            std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        });
        // A folder `./` alone tells nothing.
        if name.is_some() {
            return Ok(name);
        }
    }
    Ok(tar.saw_end().then(|| ".".to_owned()))
}
