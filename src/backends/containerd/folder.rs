//! The folder of a container below the state folder: what its shim and its mounts need, and how it ended.
//!
//! ```text
//! <state>/containerd/containers/<id>/             locked by whoever makes or removes the container
//!                                    logs/        log, log.1, pid of the shim's logger
//!                                    hosts …      mounted into the container
//!                                    made         it was made to the end
//!                                    exit.json    how it ended, once somebody has seen that
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::runtime::{ContainerId, ExitStatus, kept};

/// How long a logger may take to write what a dead container left in its pipe.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The folders of all containers.
#[derive(Clone, Debug)]
pub(super) struct Folders(PathBuf);

impl Folders {
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self(path.to_owned()))
    }

    /// The folder of one container, whose id is one.
    pub fn of(&self, id: &ContainerId) -> Folder {
        Folder(self.0.join(&id.0))
    }

    /// Makes the folder of a container and locks it until the file is dropped; `None` when it is there.
    pub fn claim(&self, id: &ContainerId) -> io::Result<Option<(Folder, File)>> {
        let new = self
            .0
            .join(format!(".{id}.{}", uuid::Uuid::new_v4().simple()));
        // Never empty, so that no other can be renamed to its name.
        fs::create_dir_all(new.join("logs"))?;
        let lock = File::open(&new)?;
        lock.lock()?;
        let folder = self.of(id);
        match fs::rename(&new, &folder.0) {
            Ok(()) => Ok(Some((folder, lock))),
            Err(error) => {
                fs::remove_dir_all(&new)?;
                match error.kind() {
                    ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// Containers that were not made to the end, and that nobody makes or removes now; locked.
    pub fn torn(&self) -> io::Result<Vec<(ContainerId, File)>> {
        let mut torn = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            let folder = Folder(self.0.join(&name));
            if name.starts_with('.') || folder.is_made() {
                continue;
            }
            let Some(lock) = folder.open()? else { continue };
            // It may have been made to the end, or be gone, while we asked.
            if lock.try_lock().is_ok() && folder.0.exists() && !folder.is_made() {
                torn.push((ContainerId(name), lock));
            }
        }
        Ok(torn)
    }
}

/// The folder of one container.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// For locking; `None` when it is not there.
    pub fn open(&self) -> io::Result<Option<File>> {
        absent(File::open(&self.0))
    }

    pub fn is_made(&self) -> bool {
        self.file("made").exists()
    }

    /// Notes that the container was made to the end.
    pub fn set_made(&self) -> io::Result<()> {
        fs::write(self.file("made"), "")
    }

    /// Whether someone makes the container at this moment.
    pub fn is_being_made(&self) -> bool {
        let lock = self.open();
        !self.is_made() && matches!(lock, Ok(Some(lock)) if lock.try_lock_shared().is_err())
    }

    pub fn exit(&self) -> io::Result<Option<ExitStatus>> {
        kept::read(&self.file("exit.json"))
    }

    /// Keeps how it ended, also over a power cut.
    pub fn set_exit(&self, exit: ExitStatus) -> io::Result<()> {
        kept::write(&self.0, "exit.json", &exit, true)
    }

    /// Waits until the log holds all that the dead container printed.
    pub async fn log_complete(&self) {
        let logs = self.logs();
        let complete = async {
            while let Ok(false) = backendai_monitor::is_complete(&logs) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, complete).await;
    }

    pub fn remove(&self) -> io::Result<()> {
        // Someone who waited for the end may be writing it meanwhile.
        for _ in 0..10 {
            match absent(fs::remove_dir_all(&self.0)) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                other => return other.map(drop),
            }
        }
        fs::remove_dir_all(&self.0)
    }
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_claimed_once_and_torn_only_when_nobody_makes_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let folders = Folders::open(dir.path()).expect("open");
        let id = ContainerId("a".to_owned());
        let claim = folders.claim(&id).expect("claim").expect("new");
        assert!(folders.claim(&id).expect("claim").is_none());
        assert!(claim.0.is_being_made() && folders.torn().expect("torn").is_empty());
        drop(claim.1);
        let torn = folders.torn().expect("torn");
        assert_eq!(torn.into_iter().map(|it| it.0).collect::<Vec<_>>(), [id]);
        claim.0.set_made().expect("made");
        assert!(folders.torn().expect("torn").is_empty());
        claim.0.remove().expect("remove");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn how_it_ended_is_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let folder = Folder(dir.path().to_owned());
        assert!(folder.exit().expect("read").is_none());
        let (code, oom_killed) = (137, true);
        folder
            .set_exit(ExitStatus { code, oom_killed })
            .expect("write");
        let back = folder.exit().expect("read").expect("present");
        assert_eq!((back.code, back.oom_killed), (code, oom_killed));
    }
}
