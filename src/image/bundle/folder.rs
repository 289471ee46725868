//! Temporary folders of image layouts, locked for as long as they are used, so that those of dead processes can be told.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::image::error::{ImageError, Result};

/// Folders of bundles begin so.
const PREFIX: &str = "bundle-";

/// A folder that nobody else removes while it is locked.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    _lock: File,
}

impl Folder {
    pub(super) fn make(scratch: &Path) -> Result<Self> {
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
