//! The store's folders: an OCI image layout (`images/`) with the manifests and configs, and the unpacked layers
//! (`layers/<hex of the diff id>/`). Compressed layers are not kept once they are unpacked: the disk holds each once.
//!
//! Several processes may use one store. Who adds holds `work.lock` shared; who collects garbage holds it exclusively;
//! the index changes under `index.lock`. Everything is written beside its place and renamed into it, so that after a
//! crash a thing is whole or absent; the leftovers go with the next collection.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageIndexBuilder, ImageManifest,
};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::error::{ImageError, Result};
use super::reference::digest_hex;
use super::unpack::{Limits, Unpacked, unpack};

/// Manifests, configs and indexes are small documents; more is refused.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;
/// Nobody comes back to a broken pull after so long.
const KEEP_PARTIAL: Duration = Duration::from_secs(7 * 24 * 3600);
const TEMPORARY: &str = ".tmp-";

/// The folders of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    images: PathBuf,
    layers: PathBuf,
    limits: Limits,
}

/// Held while something is added, so that no collection takes it for garbage.
#[derive(Debug)]
pub(crate) struct Work(File);

impl Work {
    /// The same lock once more: it is held until both are dropped.
    pub(crate) fn share(&self) -> Result<Self> {
        let file = self.0.try_clone();
        Ok(Self(file.map_err(ImageError::io(
            "share a lock of the image store",
        ))?))
    }
}

/// Removed when dropped, unless it was renamed away.
#[derive(Debug)]
pub(crate) struct Temporary(PathBuf);

impl Temporary {
    /// A new name in a folder.
    pub(crate) fn within(folder: &Path) -> Self {
        Self(temporary_in(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let removed = match fs::symlink_metadata(&self.0) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&self.0),
            Ok(_) => fs::remove_file(&self.0),
            Err(_) => return,
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary of the image store");
        }
    }
}

impl Layout {
    /// Opens the store below `root`, making its folders.
    pub(crate) fn open(root: &Path, limits: Limits) -> Result<Self> {
        let layout = Self {
            images: root.join("images"),
            layers: root.join("layers"),
            limits,
        };
        fs::create_dir_all(root).map_err(ImageError::io(format!("create {}", root.display())))?;
        for folder in [layout.images.join("blobs/sha256"), layout.layers.clone()] {
            // Layers hold setuid programs and device nodes, which are not for this machine's users.
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder);
            made.map_err(ImageError::io(format!("create {}", folder.display())))?;
        }
        let _work = layout.work()?;
        let marker = layout.images.join("oci-layout");
        if !marker.exists() {
            layout.replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(layout)
    }

    /// Bounds for what is unpacked.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Registers work on the store; waits for a collection to end.
    pub(crate) fn work(&self) -> Result<Work> {
        Ok(Work(self.lock("work.lock", FlockOperation::LockShared)?))
    }

    /// A name for something unfinished, beside the blobs.
    pub(crate) fn temporary(&self) -> Temporary {
        Temporary::within(&self.images)
    }

    /// The place of a blob.
    pub(crate) fn blob(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest_hex(digest).ok_or_else(|| ImageError::Unsupported {
            what: format!("blob {digest:?}"),
            why: "the digest algorithm".to_owned(),
        })?;
        Ok(self.images.join("blobs/sha256").join(hex))
    }

    /// Stores a document and returns its digest.
    pub(crate) fn write_blob(&self, _work: &Work, bytes: &[u8]) -> Result<String> {
        let digest = digest_of(bytes);
        let path = self.blob(&digest)?;
        if !path.exists() {
            self.replace(&path, bytes)?;
        }
        Ok(digest)
    }

    /// A stored document, checked.
    pub(crate) fn read_blob(&self, digest: &str) -> Result<Vec<u8>> {
        let bytes = read_document(&self.blob(digest)?)?;
        check_digest(&format!("blob {digest} of the store"), digest, &bytes)?;
        Ok(bytes)
    }

    /// The index; empty before the first image.
    pub(crate) fn index(&self) -> Result<ImageIndex> {
        let path = self.images.join("index.json");
        if !path.exists() {
            return Ok(ImageIndexBuilder::default()
                .schema_version(2_u32)
                .manifests(Vec::new())
                .build()
                .expect("all that an index needs is given"));
        }
        serde_json::from_slice(&read_document(&path)?)
            .map_err(|error| ImageError::malformed(path.display().to_string(), error))
    }

    /// Changes the index; nobody else does meanwhile. An error leaves it as it was.
    pub(crate) fn change_index<T>(
        &self,
        _work: &Work,
        change: impl FnOnce(&mut Vec<Descriptor>) -> Result<T>,
    ) -> Result<T> {
        let _lock = self.lock("index.lock", FlockOperation::LockExclusive)?;
        let mut index = self.index()?;
        let mut manifests = index.manifests().clone();
        let result = change(&mut manifests)?;
        index.set_manifests(manifests);
        let bytes = serde_json::to_vec(&index).expect("an index is plain data");
        self.replace(&self.images.join("index.json"), &bytes)?;
        Ok(result)
    }

    /// Manifest and config of an entry of the index.
    pub(crate) fn documents(&self, digest: &str) -> Result<(ImageManifest, ImageConfiguration)> {
        let manifest = parse_manifest(digest, &self.read_blob(digest)?)?;
        let config = manifest.config().digest().to_string();
        let config = parse_config(&config, &self.read_blob(&config)?)?;
        Ok((manifest, config))
    }

    /// The folder of an unpacked layer, if it is there.
    pub(crate) fn layer(&self, diff_id: &str) -> Option<PathBuf> {
        let path = self.layers.join(digest_hex(diff_id)?);
        path.is_dir().then_some(path)
    }

    /// Bytes of an unpacked layer, as counted then.
    pub(crate) fn layer_size(&self, diff_id: &str) -> u64 {
        let size = digest_hex(diff_id)
            .and_then(|hex| fs::read_to_string(self.layers.join(format!("{hex}.size"))).ok());
        size.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Unpacks a layer's archive into its place; `expected` is the diff id that its image's config gives.
    pub(crate) fn add_layer(
        &self,
        _work: &Work,
        what: &str,
        source: impl Read,
        expected: Option<&str>,
    ) -> Result<Unpacked> {
        let temporary = Temporary::within(&self.layers);
        let path = temporary.path();
        let making = || ImageError::io(format!("create {}", path.display()));
        fs::create_dir(path).map_err(making())?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).map_err(making())?;
        let unpacked = unpack(what, source, path, self.limits)?;
        if let Some(expected) = expected {
            same_diff_id(what, expected, &unpacked.diff_id)?;
        }
        self.settle(path, &unpacked)?;
        Ok(unpacked)
    }

    /// Puts an unpacked layer into its place, unless another process was faster.
    fn settle(&self, path: &Path, unpacked: &Unpacked) -> Result<()> {
        let hex = digest_hex(&unpacked.diff_id).expect("made by unpack");
        let folder =
            File::open(path).map_err(ImageError::io(format!("open {}", path.display())))?;
        rustix::fs::syncfs(&folder).map_err(ImageError::io(format!("write {}", path.display())))?;
        let size = self.layers.join(format!("{hex}.size"));
        self.replace(&size, unpacked.size.to_string().as_bytes())?;
        match fs::rename(path, self.layers.join(hex)) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(())
            }
            other => other.map_err(ImageError::io(format!("rename {}", path.display()))),
        }
    }

    /// Removes blobs and layers that no image of the index needs, and leftovers of crashes. Returns `false` without
    /// doing it while somebody adds to the store.
    pub(crate) fn collect(&self) -> Result<bool> {
        let path = self.images.join("work.lock");
        let file = open_lock(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(ImageError::io(format!("lock {}", path.display()))(error)),
        }
        let mut blobs = HashSet::new();
        let mut layers = HashSet::new();
        for descriptor in self.index()?.manifests() {
            let digest = descriptor.digest().to_string();
            let (manifest, config) = self.documents(&digest)?;
            blobs.extend([digest, manifest.config().digest().to_string()]);
            layers.extend(config.rootfs().diff_ids().iter().cloned());
        }
        let kept = |set: &HashSet<String>, name: &str| set.contains(&format!("sha256:{name}"));
        let folder = self.images.join("blobs/sha256");
        sweep(&folder, |name| {
            kept(&blobs, name) || is_fresh_partial(&folder, name)
        })?;
        sweep(&self.layers, |name| {
            kept(&layers, name.strip_suffix(".size").unwrap_or(name))
        })?;
        sweep(&self.images, |name| !name.starts_with(TEMPORARY))?;
        Ok(true)
    }

    /// Writes a small file beside its place and renames it.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        let write = || -> io::Result<()> {
            let mut file = File::create_new(temporary.path())?;
            io::Write::write_all(&mut file, bytes)?;
            file.sync_data()?;
            fs::rename(temporary.path(), path)
        };
        write().map_err(ImageError::io(format!("write {}", path.display())))
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> Result<File> {
        let path = self.images.join(name);
        let file = open_lock(&path)?;
        loop {
            match flock(&file, operation) {
                Err(rustix::io::Errno::INTR) => {}
                other => {
                    other.map_err(ImageError::io(format!("lock {}", path.display())))?;
                    return Ok(file);
                }
            }
        }
    }
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Refuses bytes that are not what the digest says.
pub(crate) fn check_digest(what: &str, expected: &str, bytes: &[u8]) -> Result<()> {
    let found = digest_of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(ImageError::WrongDigest {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}

/// Refuses a layer that is not what its image's config says.
pub(crate) fn same_diff_id(what: &str, expected: &str, found: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ImageError::WrongDiffId {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    })
}

/// An image manifest; Docker's schema 2 has the same form.
pub(crate) fn parse_manifest(what: &str, bytes: &[u8]) -> Result<ImageManifest> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImageError::malformed(format!("manifest {what}"), error))
}

/// An image config.
pub(crate) fn parse_config(what: &str, bytes: &[u8]) -> Result<ImageConfiguration> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImageError::malformed(format!("image config {what}"), error))
}

/// A small file.
pub(crate) fn read_document(path: &Path) -> Result<Vec<u8>> {
    let what = path.display();
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(ImageError::io(format!("read {what}")))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(ImageError::malformed(
            what.to_string(),
            "it is larger than 8 MiB",
        ));
    }
    Ok(bytes)
}

fn temporary_in(folder: &Path) -> PathBuf {
    folder.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4().simple()))
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(ImageError::io(format!("open {}", path.display())))
}

/// Whether it is the beginning of a layer that a pull may still resume.
fn is_fresh_partial(folder: &Path, name: &str) -> bool {
    let modified = || fs::metadata(folder.join(name))?.modified();
    name.ends_with(".partial")
        && modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age < KEEP_PARTIAL))
}

/// Removes what is not kept from a folder.
fn sweep(folder: &Path, keep: impl Fn(&str) -> bool) -> Result<()> {
    let failed = || ImageError::io(format!("clean {}", folder.display()));
    for entry in fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if !entry.file_name().to_str().is_some_and(&keep) {
            drop(Temporary(entry.path()));
        }
    }
    Ok(())
}
