//! Locks between processes: `flock` on a file of its own, given back on drop and by the death of the process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::ImageError;

/// A held lock.
#[derive(Debug)]
pub(super) struct FileLock(File);

/// How a lock is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockMode {
    /// With others who share, waiting for those who do not.
    Shared,
    /// Alone, waiting for all others.
    Exclusive,
    /// Alone, or not at all.
    TryExclusive,
}

impl FileLock {
    /// Takes the lock, making its file if need be; `None` if others hold what [`LockMode::TryExclusive`] wants.
    pub(super) fn take(path: &Path, mode: LockMode) -> Result<Option<Self>, ImageError> {
        let operation = match mode {
            LockMode::Shared => FlockOperation::LockShared,
            LockMode::Exclusive => FlockOperation::LockExclusive,
            LockMode::TryExclusive => FlockOperation::NonBlockingLockExclusive,
        };
        loop {
            let file = open(path).map_err(|e| ImageError::io("open lock", path, e))?;
            match flock(&file, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(ImageError::io("lock", path, e)),
            }
            if still_there(&file, path) {
                return Ok(Some(Self(file)));
            }
        }
    }

    /// Shares the lock, waiting as long as it takes.
    pub(super) fn shared(path: &Path) -> Result<Self, ImageError> {
        Ok(Self::take(path, LockMode::Shared)?.expect("only TryExclusive gives up"))
    }

    /// Takes the lock alone, waiting as long as it takes.
    pub(super) fn exclusive(path: &Path) -> Result<Self, ImageError> {
        Ok(Self::take(path, LockMode::Exclusive)?.expect("only TryExclusive gives up"))
    }

    /// The locked file, for those who lock what they write.
    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Deletes the lock's file while it is held alone; whoever waits for it will make another.
    pub(super) fn delete(self, path: &Path) {
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "cannot delete a lock file");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Whether the path still leads to the locked file: its last holder may have deleted it.
fn still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => held.ino() == named.ino() && held.dev() == named.dev(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("lock");
        let held = FileLock::shared(&path).expect("nobody else holds it");
        let tried = FileLock::take(&path, LockMode::TryExclusive).expect("it can be tried");
        assert!(tried.is_none());
        drop(held);
        let taken = FileLock::take(&path, LockMode::TryExclusive).expect("it can be tried");
        assert!(taken.is_some());
    }

    #[test]
    fn a_deleted_lock_is_made_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("lock");
        FileLock::exclusive(&path)
            .expect("it is free")
            .delete(&path);
        assert!(!path.exists());
        let again = FileLock::exclusive(&path).expect("it is free");
        assert!(path.exists());
        drop(again);
    }
}
