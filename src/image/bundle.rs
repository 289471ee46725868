//! Images out of files for engines that keep images themselves: an OCI image layout in a temporary folder, checked as
//! the store checks it, with nothing unpacked.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;

use self::folder::Folder;
use self::write::Writer;
use super::error::{ImageError, Result};
use super::import::{self as files, ImportOptions};
use super::layout::Temporary;
use super::reference::ImageRef;
use super::unpack::{Limits, unpack_over};

#[cfg(feature = "blob-store")]
mod add;
mod folder;
mod remote;
mod save;
mod write;

#[cfg(feature = "blob-store")]
pub(crate) use self::add::import;
#[cfg(feature = "blob-store")]
pub(crate) use self::remote::Assembly;
pub(crate) use self::remote::RemoteImage;

/// Images in an OCI image layout, which is removed when this is dropped.
#[derive(Debug)]
pub struct Bundle {
    folder: Folder,
    images: Vec<BundledImage>,
}

/// One image of a [`Bundle`].
#[derive(Clone, Debug)]
pub struct BundledImage {
    /// Its names in canonical form.
    pub names: Vec<String>,
    /// Digest that its layout knew it by, `sha256:…`: of its manifest, or of the index of its platforms.
    pub repo_digest: Option<String>,
    /// Its manifest.
    pub manifest: Vec<u8>,
    /// Digest of the manifest.
    pub manifest_digest: String,
    /// Its config.
    pub config: Vec<u8>,
    /// Digest of the config: the image's id.
    pub config_digest: String,
    /// Media type of the config.
    pub config_media_type: String,
    /// Its layers, lowest first.
    pub layers: Vec<BundledLayer>,
}

/// One layer of a [`BundledImage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundledLayer {
    /// Digest of the blob as the manifest names it.
    pub digest: String,
    /// Digest of the plain tar.
    pub diff_id: String,
    /// Media type, with the compression.
    pub media_type: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the plain tar.
    pub tar_size: u64,
    /// The blob.
    pub path: PathBuf,
}

impl Bundle {
    /// Reads what [`Store::import`](super::Store::import) reads into a new folder below `scratch`, and clears up
    /// after processes that ended before they could. Blocks.
    ///
    /// # Errors
    /// Those of [`Store::import`](super::Store::import); nothing is then left.
    pub fn open(
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
        scratch: &Path,
    ) -> Result<Self> {
        let name = files::name(name)?;
        let writer = Writer::new(Folder::make(scratch)?)?;
        let added = files::import(&writer, path, name.as_ref(), options)?;
        writer.finish(&added)
    }

    /// Like [`Bundle::open`], and blocks nobody.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub async fn read(
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
        scratch: &Path,
    ) -> Result<Self> {
        let (path, name) = (path.to_owned(), name.map(str::to_owned));
        let (options, scratch) = (options.clone(), scratch.to_owned());
        let open = move || Self::open(&path, name.as_deref(), &options, &scratch);
        let opened = tokio::task::spawn_blocking(open).await;
        opened.expect("reading images does not panic and is not aborted")
    }

    /// Like [`Bundle::read`] of an archive that comes in pieces; they are kept below `scratch` until it is read.
    ///
    /// # Errors
    /// As [`Bundle::open`], and those of the pieces.
    pub async fn receive(
        pieces: impl Stream<Item = Result<Bytes>>,
        name: &str,
        scratch: &Path,
    ) -> Result<Self> {
        let writing = || ImageError::io(format!("write the archive of {name}"));
        let made = tokio::fs::create_dir_all(scratch).await;
        made.map_err(writing())?;
        let archive = Temporary::within(scratch);
        let file = tokio::fs::File::create_new(archive.path()).await;
        let mut file = file.map_err(writing())?;
        let mut pieces = pin!(pieces);
        while let Some(piece) = pieces.try_next().await? {
            file.write_all(&piece).await.map_err(writing())?;
        }
        file.flush().await.map_err(writing())?;
        let options = ImportOptions::default();
        Self::read(archive.path(), Some(name), &options, scratch).await
    }

    /// Like [`Bundle::open`] of a root file system's tar that is at hand.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn of_tar(
        tar: impl Read,
        name: &str,
        options: &ImportOptions,
        scratch: &Path,
    ) -> Result<Self> {
        let parsed = ImageRef::parse(name)?;
        let writer = Writer::new(Folder::make(scratch)?)?;
        let added = files::rootfs(&writer, name, tar, &parsed, options)?;
        writer.finish(&[added])
    }

    /// Keeps the layout as a folder of this name, which must be absent or empty. Blocks.
    ///
    /// # Errors
    /// [`ImageError::NotEmpty`], [`ImageError::Io`] when it cannot be moved there, as between file systems.
    pub fn keep(self, to: &Path) -> Result<()> {
        let from = &self.folder.path;
        let moving = || ImageError::io(format!("write {}", to.display()));
        fs::set_permissions(from, fs::Permissions::from_mode(0o755)).map_err(moving())?;
        match fs::rename(from, to) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::AlreadyExists
                        | io::ErrorKind::NotADirectory
                ) =>
            {
                Err(ImageError::NotEmpty(to.display().to_string()))
            }
            other => other.map_err(moving()),
        }
    }

    /// Its images.
    #[must_use]
    pub fn images(&self) -> &[BundledImage] {
        &self.images
    }

    /// The folder of the layout, for programs that read layouts.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }
}

impl BundledImage {
    /// Unpacks all layers into one empty folder, which then shows what a container of the image would see. Blocks.
    ///
    /// # Errors
    /// As [`Store::import`](super::Store::import); what it leaves is the caller's to remove.
    pub fn unpack(&self, to: &Path) -> Result<()> {
        for layer in &self.layers {
            let what = format!("blob {} of {}", layer.digest, self.names.join(" "));
            unpack_over(&what, &layer.path, to, Limits::default())?;
        }
        Ok(())
    }
}
