//! Images out of files for engines that keep images themselves: an OCI image layout in a temporary folder, checked as
//! the store checks it, with nothing unpacked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use oci_spec::image::{Descriptor, MediaType};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::error::{ImageError, Result};
use super::import::{self as files, Destination, ImportOptions};
use super::layout::{Temporary, digest_of, parse_config, parse_manifest, same_diff_id};
use super::reference::{ImageRef, digest_hex};
use super::unpack::{Limits, Unpacked, survey, unpack_over};
use super::{Added, NAME};

#[cfg(feature = "blob-store")]
mod add;
mod remote;
mod save;

#[cfg(feature = "blob-store")]
pub(crate) use self::add::import;
#[cfg(feature = "blob-store")]
pub(crate) use self::remote::Assembly;
pub(crate) use self::remote::RemoteImage;

/// Where containerd looks for an image's full name.
const FULL_NAME: &str = "io.containerd.image.name";
/// Folders of bundles begin so.
const PREFIX: &str = "bundle-";

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

/// A folder that nobody else removes while it is locked.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    fn make(scratch: &Path) -> Result<Self> {
        let making = |path: &Path| ImageError::io(format!("create {}", path.display()));
        fs::create_dir_all(scratch).map_err(making(scratch))?;
        sweep(scratch);
        loop {
            let path = scratch.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map_err(making(&path))?;
            // Another process's sweep may come between; then another name is taken.
            if let Some(lock) = lock(&path) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary folder of images");
        }
    }
}

/// The folder's lock, if it is free and the folder still there.
fn lock(path: &Path) -> Option<File> {
    let folder = File::open(path).ok()?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive).ok()?;
    path.exists().then_some(folder)
}

/// Removes the folders of processes that were killed. What cannot be removed stays for the next time.
fn sweep(scratch: &Path) {
    for entry in scratch.read_dir().into_iter().flatten().flatten() {
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        if ours && let Some(_lock) = lock(&entry.path()) {
            let _stays = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a layout.
struct Writer {
    folder: Folder,
    blobs: PathBuf,
    /// Layers by their blobs: digest and size of the plain tar.
    layers: RefCell<HashMap<String, (String, u64)>>,
}

impl Writer {
    fn new(folder: Folder) -> Result<Self> {
        let blobs = folder.path.join("blobs/sha256");
        fs::create_dir_all(&blobs)
            .map_err(ImageError::io(format!("create {}", blobs.display())))?;
        Ok(Self {
            folder,
            blobs,
            layers: RefCell::default(),
        })
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.blobs.join(digest_hex(digest).unwrap_or_default())
    }

    /// Copies the archive as it is, checks it, and looks into it.
    fn add_blob(&self, what: &str, source: &mut dyn Read, digest: &str) -> Result<Unpacked> {
        let (temporary, file) = self.create()?;
        let mut to = Copy::new(file);
        let mut hash = Sha256::new();
        let copied = copy(source, &mut to, &mut hash);
        let mut file = to.finish(
            what,
            copied.map_err(|error| super::unpack::broken(what, error)),
        )?;
        let found = format!("sha256:{}", hex::encode(hash.finalize()));
        if found != digest {
            return Err(ImageError::WrongDigest {
                what: what.to_owned(),
                expected: digest.to_owned(),
                found,
            });
        }
        file.seek(SeekFrom::Start(0))
            .map_err(ImageError::io(format!("read {what}")))?;
        let found = survey(what, file, self.limits(), io::sink())?;
        self.settle(&temporary, digest)?;
        Ok(found)
    }

    /// Copies the plain tar, looking into it.
    fn add_plain(&self, what: &str, source: &mut dyn Read) -> Result<(Unpacked, Temporary)> {
        let (temporary, file) = self.create()?;
        let mut to = Copy::new(file);
        let found = survey(what, source, self.limits(), &mut to);
        let mut result = None;
        to.finish(what, found.map(|found| result = Some(found)))?;
        let found = result.expect("set when it succeeded");
        Ok((found, temporary))
    }

    fn create(&self) -> Result<(Temporary, File)> {
        let temporary = self.temporary();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(temporary.path())
            .map_err(ImageError::io(format!(
                "create {}",
                temporary.path().display()
            )))?;
        Ok((temporary, file))
    }

    fn settle(&self, temporary: &Temporary, digest: &str) -> Result<()> {
        let path = temporary.path();
        fs::rename(path, self.blob(digest))
            .map_err(ImageError::io(format!("rename {}", path.display())))
    }

    /// Writes the layout's own files, and reads back what was added.
    fn finish(self, added: &[Added]) -> Result<Bundle> {
        let images: Result<Vec<_>> = added.iter().map(|added| self.image(added)).collect();
        let images = images?;
        let entries: Vec<Value> = images.iter().flat_map(entries).collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        });
        self.write("index.json", index.to_string().as_bytes())?;
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Bundle {
            folder: self.folder,
            images,
        })
    }

    fn image(&self, added: &Added) -> Result<BundledImage> {
        let manifest = self.read(&added.manifest)?;
        let parsed = parse_manifest(&added.manifest, &manifest)?;
        let config_digest = parsed.config().digest().to_string();
        let config = self.read(&config_digest)?;
        let diff_ids = parse_config(&config_digest, &config)?;
        let layers = parsed.layers().iter().zip(diff_ids.rootfs().diff_ids());
        Ok(BundledImage {
            names: added.names.clone(),
            repo_digest: added.repo_digest.clone(),
            manifest_digest: added.manifest.clone(),
            config_media_type: parsed.config().media_type().to_string(),
            layers: layers
                .map(|(layer, diff_id)| self.layer(layer, diff_id))
                .collect(),
            manifest,
            config,
            config_digest,
        })
    }

    fn layer(&self, layer: &Descriptor, diff_id: &str) -> BundledLayer {
        let digest = layer.digest().to_string();
        BundledLayer {
            diff_id: diff_id.to_owned(),
            media_type: layer.media_type().to_string(),
            size: layer.size(),
            tar_size: self.layers.borrow().get(&digest).map_or(0, |known| known.1),
            path: self.blob(&digest),
            digest,
        }
    }

    fn read(&self, digest: &str) -> Result<Vec<u8>> {
        super::layout::read_document(&self.blob(digest))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder.path.join(name);
        fs::write(&path, bytes).map_err(ImageError::io(format!("write {}", path.display())))
    }
}

impl Destination for Writer {
    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn temporary(&self) -> Temporary {
        Temporary::within(&self.folder.path)
    }

    fn has_layer(&self, blob: &str, diff_id: &str) -> bool {
        let layers = self.layers.borrow();
        layers.get(blob).is_some_and(|known| known.0 == diff_id)
    }

    fn add_layer(
        &self,
        what: &str,
        source: &mut dyn Read,
        blob: Option<&str>,
        diff_id: Option<&str>,
    ) -> Result<(String, u64)> {
        let right = |found: &Unpacked| match diff_id {
            Some(expected) => same_diff_id(what, expected, &found.diff_id),
            None => Ok(()),
        };
        let found = match blob {
            Some(digest) => {
                let found = self.add_blob(what, source, digest)?;
                right(&found)?;
                found
            }
            None => {
                let (found, temporary) = self.add_plain(what, source)?;
                right(&found)?;
                self.settle(&temporary, &found.diff_id)?;
                found
            }
        };
        let plain = (found.diff_id, found.tar_size);
        let blob = blob.unwrap_or(&plain.0).to_owned();
        self.layers.borrow_mut().insert(blob, plain.clone());
        Ok(plain)
    }

    fn write_blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = digest_of(bytes);
        let path = self.blob(&digest);
        fs::write(&path, bytes).map_err(ImageError::io(format!("write {}", path.display())))?;
        Ok(digest)
    }
}

/// The index's entries of an image, one for each name.
fn entries(image: &BundledImage) -> Vec<Value> {
    let entry = |name: &String| {
        json!({
            "mediaType": MediaType::ImageManifest.to_string(),
            "digest": image.manifest_digest,
            "size": image.manifest.len(),
            "annotations": { NAME: name, FULL_NAME: name },
        })
    };
    image.names.iter().map(entry).collect()
}

/// A file that remembers why it could not be written: its reader's reader would take that for a broken archive.
struct Copy {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl Copy {
    fn new(file: File) -> Self {
        Self {
            file: BufWriter::with_capacity(128 << 10, file),
            failed: None,
        }
    }

    /// The file, unless reading or writing it failed.
    fn finish(self, what: &str, result: Result<()>) -> Result<File> {
        let writing = || ImageError::io(format!("copy {what}"));
        if let Some(error) = self.failed {
            return Err(writing()(error));
        }
        result?;
        let file = self.file.into_inner();
        file.map_err(|error| writing()(error.into_error()))
    }
}

impl Write for Copy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| {
            let text = io::Error::new(error.kind(), error.to_string());
            self.failed = Some(error);
            text
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn copy(source: &mut dyn Read, to: &mut impl Write, hash: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            count => {
                hash.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
            }
        }
    }
}
