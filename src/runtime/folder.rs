//! The folder of a container of an engine that keeps records in files: who makes or removes the container locks it, and
//! a file in it tells that it was made to the end.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ContainerId, ExitStatus, kept};

/// Where it is kept how a container ended.
const EXIT: &str = "exit.json";

/// The folders of all containers of an engine.
#[derive(Clone, Debug)]
pub struct Folders {
    path: PathBuf,
    /// The file that the last step of `create` makes.
    made: &'static str,
}

impl Folders {
    /// Makes `path` if it is missing; a container with the file `made` in its folder was made to the end.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: PathBuf, made: &'static str) -> io::Result<Self> {
        fs::create_dir_all(&path).map_err(|error| named(&path, &error))?;
        Ok(Self { path, made })
    }

    /// The folder that holds them.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of one container, whose id is one.
    #[must_use]
    pub fn of(&self, id: &ContainerId) -> Folder {
        Folder::new(self.path.join(&id.0))
    }

    /// Makes the folder of a container and locks it until the file is dropped; `None` when it is there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn claim(&self, id: &ContainerId) -> io::Result<Option<(Folder, File)>> {
        let name = format!(".{id}.{}", uuid::Uuid::new_v4().simple());
        let new = self.path.join(name);
        let make = || {
            fs::create_dir(&new)?;
            // Never empty, so that no other can be renamed to its name.
            File::create(new.join("claimed"))?;
            let lock = File::open(&new)?;
            lock.lock()?;
            Ok(lock)
        };
        let lock = make().map_err(|error| named(&new, &error))?;
        let folder = self.of(id);
        match fs::rename(&new, &folder.0) {
            Ok(()) => Ok(Some((folder, lock))),
            Err(error) => {
                fs::remove_dir_all(&new)?;
                match error.kind() {
                    ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => Ok(None),
                    _ => Err(named(&folder.0, &error)),
                }
            }
        }
    }

    /// The containers that have a folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn ids(&self) -> io::Result<Vec<ContainerId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string()
                && !name.starts_with('.')
            {
                ids.push(ContainerId(name));
            }
        }
        Ok(ids)
    }

    /// Whether the container was made to the end.
    #[must_use]
    pub fn is_made(&self, id: &ContainerId) -> bool {
        self.of(id).file(self.made).exists()
    }

    /// Notes that the container was made to the end.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_made(&self, id: &ContainerId) -> io::Result<()> {
        fs::write(self.of(id).file(self.made), "")
    }

    /// Whether someone makes the container at this moment.
    #[must_use]
    pub fn is_being_made(&self, id: &ContainerId) -> bool {
        let lock = self.of(id).open();
        !self.is_made(id) && matches!(lock, Ok(Some(lock)) if lock.try_lock_shared().is_err())
    }

    /// The lock of a container that was not made to the end, and that nobody makes or removes now.
    ///
    /// # Errors
    /// When its folder cannot be opened.
    pub fn torn(&self, id: &ContainerId) -> io::Result<Option<File>> {
        if self.is_made(id) {
            return Ok(None);
        }
        let Some(lock) = self.of(id).open()? else {
            return Ok(None);
        };
        // It may have been made to the end, or be gone, while we asked.
        let torn = lock.try_lock().is_ok() && self.of(id).path().exists() && !self.is_made(id);
        Ok(torn.then_some(lock))
    }
}

/// The folder of one container.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Path of one of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// For locking; `None` when it is not there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self) -> io::Result<Option<File>> {
        absent(File::open(&self.0))
    }

    /// Locks it until the file is dropped, waiting for a `create` or `remove` of the same container to be over; `None`
    /// when it is not there. Blocks.
    ///
    /// # Errors
    /// When it cannot be opened or locked.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let folder = self.open()?;
        folder.as_ref().map(File::lock).transpose()?;
        Ok(folder)
    }

    /// Reads one of its JSON files; `None` when there is none.
    ///
    /// # Errors
    /// As [`kept::read`].
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        kept::read(&self.file(name))
    }

    /// Writes one of its JSON files.
    ///
    /// # Errors
    /// As [`kept::write`].
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        kept::write(&self.0, name, value, false)
    }

    /// How the container ended, if somebody has seen that.
    ///
    /// # Errors
    /// As [`kept::read`].
    pub fn exit(&self) -> io::Result<Option<ExitStatus>> {
        self.read(EXIT)
    }

    /// Keeps how it ended, also over a power cut.
    ///
    /// # Errors
    /// As [`kept::write`].
    pub fn set_exit(&self, exit: ExitStatus) -> io::Result<()> {
        kept::write(&self.0, EXIT, &exit, true)
    }

    /// Removes it with all that is in it.
    ///
    /// # Errors
    /// When Linux refuses.
    pub fn remove(&self) -> io::Result<()> {
        // Someone who waited for the end may be writing it meanwhile.
        for _ in 0..10 {
            match absent(fs::remove_dir_all(&self.0)) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                other => return other.map(drop).map_err(|error| named(&self.0, &error)),
            }
        }
        fs::remove_dir_all(&self.0).map_err(|error| named(&self.0, &error))
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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
        let folders = Folders::open(dir.path().join("all"), "made").expect("open");
        let id = ContainerId("a".to_owned());
        let torn = || folders.torn(&id).expect("torn").is_some();
        let (folder, lock) = folders.claim(&id).expect("claim").expect("new");
        assert!(folders.claim(&id).expect("claim").is_none());
        assert_eq!(folders.ids().expect("list"), std::slice::from_ref(&id));
        assert!(folders.is_being_made(&id) && !torn());
        drop(lock);
        assert!(!folders.is_being_made(&id) && torn());
        folders.set_made(&id).expect("made");
        assert!(!torn());
        folder.remove().expect("remove");
        folder.remove().expect("what is gone is removed");
        assert_eq!(fs::read_dir(folders.path()).expect("list").count(), 0);
    }

    #[test]
    fn how_it_ended_is_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let folder = Folder::new(dir.path().to_owned());
        assert!(folder.exit().expect("read").is_none());
        let (code, oom_killed) = (137, true);
        let exit = ExitStatus { code, oom_killed };
        folder.set_exit(exit).expect("write");
        assert_eq!(folder.exit().expect("read"), Some(exit));
    }
}
