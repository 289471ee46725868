//! `index.json`: which names the store has, and the manifest of each. Read whole, changed whole, by rename.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::blob::{TempPath, read_document};
use super::lock::FileLock;
use super::manifest::{OCI_INDEX, json};
use super::{Digest, ImageError};

/// OCI's annotation for a name in a layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The file, with its lock.
#[derive(Clone, Debug)]
pub(super) struct Index {
    path: PathBuf,
    lock: PathBuf,
    tmp: PathBuf,
}

/// A name and its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Canonical reference.
    pub(super) name: String,
    /// Digest of its manifest.
    pub(super) manifest: Digest,
    /// Length of its manifest.
    pub(super) size: u64,
    /// Media type of its manifest.
    pub(super) media_type: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexFile {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Manifest>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Index {
    /// In the layout at `images`.
    pub(super) fn new(images: &Path) -> Self {
        Self {
            path: images.join("index.json"),
            lock: images.join("index.lock"),
            tmp: images.join("tmp"),
        }
    }

    /// All entries, in the order of names. An absent file is an empty store.
    pub(super) fn read(&self) -> Result<Vec<Entry>, ImageError> {
        let what = self.path.display().to_string();
        let bytes = match fs::File::open(&self.path) {
            Ok(file) => read_document(file, &what)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(ImageError::io("open", &self.path, e)),
        };
        let file: IndexFile = json(&bytes, &what)?;
        let mut entries = file
            .manifests
            .into_iter()
            .filter_map(|manifest| entry(manifest, &what).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Changes the entries while nobody else does. What `change` fails with leaves the file as it was.
    pub(super) fn update<T>(
        &self,
        change: impl FnOnce(&mut Vec<Entry>) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let _lock = FileLock::exclusive(&self.lock)?;
        let mut entries = self.read()?;
        let before = entries.clone();
        let result = change(&mut entries)?;
        if entries != before || !self.path.exists() {
            self.write(entries)?;
        }
        Ok(result)
    }

    /// Sets the manifest of a name.
    pub(super) fn set(&self, entry: Entry) -> Result<(), ImageError> {
        self.update(|entries| {
            entries.retain(|old| old.name != entry.name);
            entries.push(entry);
            Ok(())
        })
    }

    fn write(&self, mut entries: Vec<Entry>) -> Result<(), ImageError> {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let file = IndexFile {
            schema_version: 2,
            media_type: OCI_INDEX.to_owned(),
            manifests: entries.into_iter().map(manifest).collect(),
        };
        let text = serde_json::to_vec_pretty(&file).expect("text and numbers have a JSON form");
        let temp = TempPath::new_in(&self.tmp);
        fs::write(temp.path(), text).map_err(|e| ImageError::io("write", temp.path(), e))?;
        fs::rename(temp.path(), &self.path).map_err(|e| ImageError::io("replace", &self.path, e))
    }
}

/// Entries without a name are none of ours and are passed over.
fn entry(manifest: Manifest, what: &str) -> Result<Option<Entry>, ImageError> {
    let Some(name) = manifest.annotations.get(REF_NAME) else {
        return Ok(None);
    };
    let digest = Digest::parse(&manifest.digest)
        .ok_or_else(|| ImageError::malformed(what, format!("{name} has no SHA-256 digest")))?;
    Ok(Some(Entry {
        name: name.clone(),
        manifest: digest,
        size: manifest.size,
        media_type: manifest.media_type,
    }))
}

fn manifest(entry: Entry) -> Manifest {
    Manifest {
        media_type: entry.media_type,
        digest: entry.manifest.to_string(),
        size: entry.size,
        annotations: [(REF_NAME.to_owned(), entry.name)].into(),
    }
}
