//! Blobs by digest, and temporary files that vanish unless they become one.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest::Hashing;
use super::manifest::MAX_DOCUMENT;
use super::{Digest, ImageError};

/// The folder `blobs/sha256` and the folder of files not yet there.
#[derive(Clone, Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
    tmp: PathBuf,
}

/// A path of a file or folder that goes on drop, unless it was moved away.
#[derive(Debug)]
pub(super) struct TempPath(PathBuf);

impl TempPath {
    /// A path in `dir` that nobody else uses, in this process or another. Nothing is made.
    pub(super) fn new_in(dir: &Path) -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let unique = uuid::Uuid::new_v4().simple();
        Self(dir.join(format!("{}-{n}-{unique}", std::process::id())))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        remove_any(&self.0);
    }
}

/// Deletes a file or a folder with all in it; what cannot be deleted is logged and left to the next start.
pub(super) fn remove_any(path: &Path) {
    let result = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => super::unpack::remove_tree(path),
        Ok(_) => fs::remove_file(path),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot delete what is no longer needed");
        }
        _ => {}
    }
}

impl Blobs {
    /// In the folders of the layout at `images`.
    pub(super) fn new(images: &Path) -> Self {
        Self {
            dir: images.join("blobs/sha256"),
            tmp: images.join("tmp"),
        }
    }

    /// The folder of the blobs.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of what is not a blob yet.
    pub(super) fn tmp(&self) -> &Path {
        &self.tmp
    }

    /// Where a blob is, or would be.
    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Whether it is there.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Reads a document and checks its digest.
    pub(super) fn document(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|e| ImageError::io("open blob", &path, e))?;
        let bytes = read_document(file, &format!("blob {digest}"))?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            return Ok(bytes);
        }
        Err(ImageError::DigestMismatch {
            what: format!("blob {}", path.display()),
            expected: digest.clone(),
            actual,
        })
    }

    /// Stores a few bytes.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let temp = self.temp();
        fs::write(temp.path(), bytes).map_err(|e| ImageError::io("write", temp.path(), e))?;
        let digest = Digest::of(bytes);
        self.adopt(temp.path(), &digest)?;
        Ok(digest)
    }

    /// A path for a file to come.
    pub(super) fn temp(&self) -> TempPath {
        TempPath::new_in(&self.tmp)
    }

    /// Copies a stream of unknown digest to a temporary file.
    pub(super) fn ingest(
        &self,
        reader: impl Read,
        what: &str,
    ) -> Result<(TempPath, Digest, u64), ImageError> {
        let temp = self.temp();
        let file =
            File::create_new(temp.path()).map_err(|e| ImageError::io("create", temp.path(), e))?;
        let mut writer = Hashing::new(file);
        copy(reader, &mut writer).map_err(|e| ImageError::Io {
            action: format!("copy {what} to {}", temp.path().display()),
            source: e,
        })?;
        let (digest, size) = writer.finish();
        Ok((temp, digest, size))
    }

    /// Makes a file, whose digest the caller has computed, the blob of that digest.
    pub(super) fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        fs::rename(file, &path).map_err(|e| ImageError::io("make blob", &path, e))
    }
}

/// Copies with a buffer that suits archives.
pub(super) fn copy(reader: impl Read, writer: &mut impl Write) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(128 << 10, reader);
    io::copy(&mut reader, writer)
}

/// Reads a whole document of bounded size.
pub(super) fn read_document(reader: impl Read, what: &str) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    reader
        .take(MAX_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ImageError::Io {
            action: format!("read {what}"),
            source,
        })?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(ImageError::malformed(
            what,
            format!("it is longer than {MAX_DOCUMENT} bytes"),
        ));
    }
    Ok(bytes)
}
