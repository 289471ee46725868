//! An image of a registry as a bundle, for those who need its files and no store.

use std::fs::File;
use std::path::Path;

use super::Bundle;
use super::folder::Folder;
use super::write::Writer;
use crate::image::Added;
use crate::image::error::{ImageError, Result};
use crate::image::import::Destination as _;
use crate::image::layout::Temporary;
use crate::image::pull::{self, Described, FileUpload, PullOptions, Remote, Upload as _};
use crate::image::reference::ImageRef;

/// An image that a registry has.
pub(crate) struct RemoteImage {
    remote: Remote,
    name: ImageRef,
    found: Described,
    options: PullOptions,
}

impl RemoteImage {
    /// Asks for it.
    ///
    /// # Errors
    /// Those of a pull.
    pub(crate) async fn find(name: &str, options: PullOptions) -> Result<Self> {
        let name = ImageRef::parse(name)?;
        let (remote, found) = pull::describe(&name, &options).await?;
        Ok(Self {
            remote,
            name,
            found,
            options,
        })
    }

    /// Digest of its manifest.
    pub(crate) fn digest(&self) -> String {
        self.found.manifest_digest.clone()
    }

    /// Fetches its layers into a bundle below `scratch`.
    ///
    /// # Errors
    /// Those of a pull; nothing is then left.
    pub(crate) async fn fetch(self, scratch: &Path) -> Result<Bundle> {
        let mut assembly = Assembly::begin(scratch).await?;
        for layer in self.found.layers() {
            let file = assembly.file(&layer.what)?;
            let mut upload = FileUpload::open(&layer.what, file).await?;
            pull::fetch_blob(&self.remote, &layer, &mut upload, &self.options.progress).await?;
            upload.finish().await?;
        }
        let name = self.name.tagged().unwrap_or_else(|| self.name.to_string());
        assembly.finish(name, self.found).await
    }
}

/// A bundle that is being made of blobs that come one by one; without its end nothing is left of it.
pub(crate) struct Assembly {
    folder: Folder,
    fetched: Vec<(String, Temporary)>,
}

impl Assembly {
    /// Begins below `scratch`.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub(crate) async fn begin(scratch: &Path) -> Result<Self> {
        let scratch = scratch.to_owned();
        Ok(Self {
            folder: blocking(move || Folder::make(&scratch)).await?,
            fetched: Vec::new(),
        })
    }

    /// An empty file for the next layer, lowest first.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub(crate) fn file(&mut self, what: &str) -> Result<File> {
        let temporary = Temporary::within(&self.folder.path);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(temporary.path())
            .map_err(ImageError::io(format!("write {what}")))?;
        self.fetched.push((what.to_owned(), temporary));
        Ok(file)
    }

    /// Checks the layers, and makes the bundle.
    ///
    /// # Errors
    /// Those of an import.
    pub(crate) async fn finish(self, name: String, found: Described) -> Result<Bundle> {
        blocking(move || bundle(self.folder, name, &found, self.fetched)).await
    }
}

/// Checks what was fetched, and makes a layout of it.
fn bundle(
    folder: Folder,
    name: String,
    found: &Described,
    fetched: Vec<(String, Temporary)>,
) -> Result<Bundle> {
    let writer = Writer::new(folder)?;
    let diff_ids = found.config.rootfs().diff_ids();
    let layers = found.manifest.layers().iter().zip(diff_ids);
    for ((what, file), (layer, diff_id)) in fetched.iter().zip(layers) {
        let digest = layer.digest().to_string();
        let reading = ImageError::io(format!("read {what}"));
        let mut source = File::open(file.path()).map_err(reading)?;
        writer.add_layer(what, &mut source, Some(&digest), Some(diff_id))?;
    }
    writer.write_blob(&found.config_bytes)?;
    let added = Added {
        manifest: writer.write_blob(&found.manifest_bytes)?,
        manifest_size: found.manifest_bytes.len() as u64,
        repo_digest: Some(found.top_digest.clone()),
        names: vec![name],
    };
    drop(fetched);
    writer.finish(&[added])
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::io("work on images")(std::io::Error::other(
            error,
        ))),
    }
}
