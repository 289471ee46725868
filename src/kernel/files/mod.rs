//! Files below the work folder: upload, download, listing, and what a run leaves in `.output`.

mod archive;
mod listing;
mod output;
mod upload;
mod view;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use self::output::{OutputFiles, changed, scan};
use self::view::{View, WorkPath};
use super::live::Live;
use crate::agent::AgentError;
use crate::agent::request::FileListing;

/// Writes a file below the work folder and makes the folders above it.
///
/// # Errors
/// [`AgentError::PathEscapes`] for a path out of the work folder, [`AgentError::Host`] for what the file system says.
pub async fn upload(live: Arc<Live>, name: String, data: Bytes) -> Result<(), AgentError> {
    blocking(move || {
        let path = WorkPath::parse(&name).ok_or_else(|| AgentError::PathEscapes(name.clone()))?;
        let written = View::open(&live).and_then(|view| upload::write(&view.work, &path, &data));
        written.map_err(|source| match source.kind() {
            // A symbolic link on the way leads out.
            io::ErrorKind::CrossesDevices => AgentError::PathEscapes(name),
            _ => AgentError::Host {
                action: format!("cannot write {}", path.inside()),
                source,
            },
        })
    })
    .await
}

/// Reads a file or folder as a tar archive of less than 1 MiB.
///
/// # Errors
/// [`AgentError::FileNotFound`] with the absolute path, [`AgentError::PathEscapes`], [`AgentError::Assertion`] when it
/// is too large.
pub async fn download(live: Arc<Live>, text: String) -> Result<Bytes, AgentError> {
    blocking(move || {
        let path = WorkPath::parse(&text).ok_or_else(|| AgentError::PathEscapes(text))?;
        let inside = path.inside();
        let missing = |_| AgentError::FileNotFound(inside.clone());
        let (file, _) = View::open(&live)
            .and_then(|view| view.find(&path))
            .map_err(missing)?;
        let name = Path::new(&inside).file_name().unwrap_or_default();
        match archive::pack(&file, Path::new(name)) {
            Ok(bytes) => Ok(Bytes::from(bytes)),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(AgentError::Assertion(error.to_string()))
            }
            Err(source) => Err(AgentError::Host {
                action: format!("cannot read {inside}"),
                source,
            }),
        }
    })
    .await
}

/// Lists a folder. What is missing, outside or no folder is told in the listing itself.
///
/// # Errors
/// Never; the result's shape is that of the other calls.
pub async fn list(live: Arc<Live>, text: String) -> Result<FileListing, AgentError> {
    blocking(move || {
        let absent = FileListing {
            files: String::new(),
            errors: "No such file or directory".to_owned(),
            abspath: None,
        };
        let Some(path) = WorkPath::parse(&text) else {
            return Ok(absent);
        };
        let Ok((folder, real)) = View::open(&live).and_then(|view| view.find(&path)) else {
            return Ok(absent);
        };
        let (files, errors) = match listing::list(&folder) {
            Ok(files) => (files, String::new()),
            Err(error) => (String::new(), format!("{error}\n")),
        };
        let abspath = Some(format!("{}\n", real.inside()));
        Ok(FileListing {
            files,
            errors,
            abspath,
        })
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::task::spawn_blocking(work)
        .await
        .expect("file work does not panic and is not aborted")
}
