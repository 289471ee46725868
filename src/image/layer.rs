//! Unpacked layers: one folder for each diff id, shared by all images and containers that have it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::blob::{TempPath, remove_any};
use super::lock::{FileLock, LockMode};
use super::unpack::{self, UnpackLimits, Unpacked};
use super::{Digest, ImageError};

/// The folder of layers.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    dir: PathBuf,
    locks: PathBuf,
    tmp: PathBuf,
}

impl Layers {
    /// In the folder `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            dir: root.join("sha256"),
            locks: root.join("lock"),
            tmp: root.join("tmp"),
        }
    }

    /// Makes the folders; only their owner may enter, for setuid programs lie below.
    pub(super) fn create(&self) -> Result<(), ImageError> {
        for dir in [&self.dir, &self.locks, &self.tmp] {
            private_dir(dir)?;
        }
        Ok(())
    }

    /// The folder of half-made layers.
    pub(super) fn tmp(&self) -> &Path {
        &self.tmp
    }

    /// The folder to mount.
    pub(super) fn fs(&self, diff_id: &Digest) -> PathBuf {
        self.folder(diff_id).join("fs")
    }

    fn folder(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join(diff_id.hex())
    }

    fn lock(&self, diff_id: &Digest) -> PathBuf {
        self.locks.join(diff_id.hex())
    }

    /// Bytes of a layer, if it is unpacked.
    pub(super) fn size(&self, diff_id: &Digest) -> Option<u64> {
        fs::read_to_string(self.folder(diff_id).join("size"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Unpacks a blob unless its layer is there; two who ask at once do it once. The archive must have the diff id.
    pub(super) fn ensure(
        &self,
        diff_id: &Digest,
        blob: &Path,
        limits: UnpackLimits,
    ) -> Result<(), ImageError> {
        let _lock = FileLock::exclusive(&self.lock(diff_id))?;
        if self.fs(diff_id).is_dir() {
            return Ok(());
        }
        let (temp, unpacked) = self.unpack(blob, limits, false)?;
        if unpacked.diff_id != *diff_id {
            return Err(ImageError::DigestMismatch {
                what: format!("unpacked layer {}", blob.display()),
                expected: diff_id.clone(),
                actual: unpacked.diff_id,
            });
        }
        self.put(&temp, &unpacked)
    }

    /// Unpacks an archive of unknown diff id, which must have its end mark.
    pub(super) fn add(&self, archive: &Path, limits: UnpackLimits) -> Result<Digest, ImageError> {
        let (temp, unpacked) = self.unpack(archive, limits, true)?;
        let _lock = FileLock::exclusive(&self.lock(&unpacked.diff_id))?;
        if !self.fs(&unpacked.diff_id).is_dir() {
            self.put(&temp, &unpacked)?;
        }
        Ok(unpacked.diff_id)
    }

    fn unpack(
        &self,
        archive: &Path,
        limits: UnpackLimits,
        strict_end: bool,
    ) -> Result<(TempPath, Unpacked), ImageError> {
        let temp = TempPath::new_in(&self.tmp);
        let fs = temp.path().join("fs");
        DirBuilder::new()
            .mode(0o755)
            .recursive(true)
            .create(&fs)
            .map_err(|e| ImageError::io("create", &fs, e))?;
        let unpacked = unpack::unpack(archive, &fs, limits, strict_end)?;
        let size = temp.path().join("size");
        fs::write(&size, unpacked.bytes.to_string())
            .map_err(|e| ImageError::io("write", &size, e))?;
        Ok((temp, unpacked))
    }

    fn put(&self, temp: &TempPath, unpacked: &Unpacked) -> Result<(), ImageError> {
        let folder = self.folder(&unpacked.diff_id);
        fs::rename(temp.path(), &folder).map_err(|e| ImageError::io("put in place", &folder, e))
    }

    /// Keeps a layer from being removed, by any process, until the lock is dropped.
    pub(super) fn hold(&self, diff_id: &Digest) -> Result<FileLock, ImageError> {
        FileLock::shared(&self.lock(diff_id))
    }

    /// Removes all layers that are not in `keep` and that nobody holds.
    pub(super) fn collect(&self, keep: &dyn Fn(&Digest) -> bool) -> Result<(), ImageError> {
        for name in names(&self.dir)? {
            let Some(diff_id) = Digest::parse(&format!("sha256:{name}")) else {
                continue;
            };
            if keep(&diff_id) {
                continue;
            }
            let path = self.lock(&diff_id);
            let Some(lock) = FileLock::take(&path, LockMode::TryExclusive)? else {
                continue;
            };
            let temp = TempPath::new_in(&self.tmp);
            let folder = self.folder(&diff_id);
            // Out of sight at once, gone a little later: a half-deleted layer is never seen.
            fs::rename(&folder, temp.path()).map_err(|e| ImageError::io("remove", &folder, e))?;
            lock.delete(&path);
        }
        Ok(())
    }
}

/// Makes a folder, and those above it, for its owner alone.
pub(super) fn private_dir(path: &Path) -> Result<(), ImageError> {
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|e| ImageError::io("create folder", path, e))
}

/// File names in a folder.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let read = |dir: &Path| -> io::Result<Vec<String>> {
        fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    read(dir).map_err(|e| ImageError::io("read folder", dir, e))
}

/// Empties a folder of what dead processes left.
pub(super) fn sweep(dir: &Path) -> Result<(), ImageError> {
    for name in names(dir)? {
        remove_any(&dir.join(name));
    }
    Ok(())
}
