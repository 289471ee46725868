//! Small JSON files that tell a later agent of a container: each is written whole, or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a JSON file; `None` when there is none.
///
/// # Errors
/// When it cannot be read or is torn; the text names it.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| named(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(error)),
    }
}

/// Writes a JSON file so that a reader sees all of it or none; `sync` also survives a power cut. Of several who write it
/// at once, the last one's stays.
///
/// # Errors
/// When the folder is gone or the disk refuses.
pub fn write<T: Serialize>(folder: &Path, name: &str, value: &T, sync: bool) -> io::Result<()> {
    let part = folder.join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let mut file = File::create(&part)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(part, folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ExitStatus;

    #[test]
    fn what_is_written_is_read_back_and_what_is_absent_is_none() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("exit.json");
        assert!(read::<ExitStatus>(&path).expect("read").is_none());
        let exit = ExitStatus {
            code: 137,
            oom_killed: true,
        };
        write(dir.path(), "exit.json", &exit, true).expect("write");
        assert_eq!(read(&path).expect("read"), Some(exit));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_torn_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("exit.json");
        fs::write(&path, "{\"code\":").expect("write");
        let error = read::<ExitStatus>(&path).expect_err("torn");
        assert!(error.to_string().contains("exit.json"), "{error}");
    }
}
