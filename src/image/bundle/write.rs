//! Writes a bundle's layout: blobs are copied as they are, checked, and looked into on the way.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use oci_spec::image::{Descriptor, MediaType};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::folder::Folder;
use super::{Bundle, BundledImage, BundledLayer};
use crate::image::error::{ImageError, Result};
use crate::image::import::Destination;
use crate::image::layout::{
    Temporary, digest_of, parse_config, parse_manifest, read_document, same_diff_id,
};
use crate::image::reference::digest_hex;
use crate::image::unpack::{Limits, Unpacked, broken, survey};
use crate::image::{Added, NAME};

/// Where containerd looks for an image's full name.
const FULL_NAME: &str = "io.containerd.image.name";
/// Writes a layout.
pub(super) struct Writer {
    folder: Folder,
    blobs: PathBuf,
    /// Layers by their blobs: digest and size of the plain tar.
    layers: RefCell<HashMap<String, (String, u64)>>,
}

impl Writer {
    pub(super) fn new(folder: Folder) -> Result<Self> {
        let blobs = folder.path.join("blobs/sha256");
        fs::create_dir_all(&blobs)
            .map_err(ImageError::io(format!("create {}", blobs.display())))?;
        Ok(Self {
            folder,
            blobs,
            layers: RefCell::default(),
        })
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.blobs.join(digest_hex(digest).unwrap_or_default())
    }

    /// Copies the archive as it is, checks it, and looks into it.
    fn add_blob(&self, what: &str, source: &mut dyn Read, digest: &str) -> Result<Unpacked> {
        let (temporary, file) = self.create()?;
        let mut to = Copy::new(file);
        let mut hash = Sha256::new();
        let copied = copy(source, &mut to, &mut hash);
        let mut file = to.finish(what, copied.map_err(|error| broken(what, error)))?;
        let found = format!("sha256:{}", hex::encode(hash.finalize()));
        if found != digest {
            return Err(ImageError::WrongDigest {
                what: what.to_owned(),
                expected: digest.to_owned(),
                found,
            });
        }
        file.seek(SeekFrom::Start(0))
            .map_err(ImageError::io(format!("read {what}")))?;
        let found = survey(what, file, self.limits(), io::sink())?;
        self.settle(&temporary, digest)?;
        Ok(found)
    }

    /// Copies the plain tar, looking into it.
    fn add_plain(&self, what: &str, source: &mut dyn Read) -> Result<(Unpacked, Temporary)> {
        let (temporary, file) = self.create()?;
        let mut to = Copy::new(file);
        let found = survey(what, source, self.limits(), &mut to);
        let mut result = None;
        to.finish(what, found.map(|found| result = Some(found)))?;
        let found = result.expect("set when it succeeded");
        Ok((found, temporary))
    }

    fn create(&self) -> Result<(Temporary, File)> {
        let temporary = self.temporary();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(temporary.path())
            .map_err(ImageError::io(format!(
                "create {}",
                temporary.path().display()
            )))?;
        Ok((temporary, file))
    }

    fn settle(&self, temporary: &Temporary, digest: &str) -> Result<()> {
        let path = temporary.path();
        fs::rename(path, self.blob(digest))
            .map_err(ImageError::io(format!("rename {}", path.display())))
    }

    /// Writes the layout's own files, and reads back what was added.
    pub(super) fn finish(self, added: &[Added]) -> Result<Bundle> {
        let images: Result<Vec<_>> = added.iter().map(|added| self.image(added)).collect();
        let images = images?;
        let entries: Vec<Value> = images.iter().flat_map(entries).collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        });
        self.write("index.json", index.to_string().as_bytes())?;
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Bundle {
            folder: self.folder,
            images,
        })
    }

    fn image(&self, added: &Added) -> Result<BundledImage> {
        let manifest = self.read(&added.manifest)?;
        let parsed = parse_manifest(&added.manifest, &manifest)?;
        let config_digest = parsed.config().digest().to_string();
        let config = self.read(&config_digest)?;
        let diff_ids = parse_config(&config_digest, &config)?;
        let layers = parsed.layers().iter().zip(diff_ids.rootfs().diff_ids());
        Ok(BundledImage {
            names: added.names.clone(),
            repo_digest: added.repo_digest.clone(),
            manifest_digest: added.manifest.clone(),
            config_media_type: parsed.config().media_type().to_string(),
            layers: layers
                .map(|(layer, diff_id)| self.layer(layer, diff_id))
                .collect(),
            manifest,
            config,
            config_digest,
        })
    }

    fn layer(&self, layer: &Descriptor, diff_id: &str) -> BundledLayer {
        let digest = layer.digest().to_string();
        BundledLayer {
            diff_id: diff_id.to_owned(),
            media_type: layer.media_type().to_string(),
            size: layer.size(),
            tar_size: self.layers.borrow().get(&digest).map_or(0, |known| known.1),
            path: self.blob(&digest),
            digest,
        }
    }

    fn read(&self, digest: &str) -> Result<Vec<u8>> {
        read_document(&self.blob(digest))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder.path.join(name);
        fs::write(&path, bytes).map_err(ImageError::io(format!("write {}", path.display())))
    }
}

impl Destination for Writer {
    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn temporary(&self) -> Temporary {
        Temporary::within(&self.folder.path)
    }

    fn has_layer(&self, blob: &str, diff_id: &str) -> bool {
        let layers = self.layers.borrow();
        layers.get(blob).is_some_and(|known| known.0 == diff_id)
    }

    fn add_layer(
        &self,
        what: &str,
        source: &mut dyn Read,
        blob: Option<&str>,
        diff_id: Option<&str>,
    ) -> Result<(String, u64)> {
        let right = |found: &Unpacked| match diff_id {
            Some(expected) => same_diff_id(what, expected, &found.diff_id),
            None => Ok(()),
        };
        let found = match blob {
            Some(digest) => {
                let found = self.add_blob(what, source, digest)?;
                right(&found)?;
                found
            }
            None => {
                let (found, temporary) = self.add_plain(what, source)?;
                right(&found)?;
                self.settle(&temporary, &found.diff_id)?;
                found
            }
        };
        let plain = (found.diff_id, found.tar_size);
        let blob = blob.unwrap_or(&plain.0).to_owned();
        self.layers.borrow_mut().insert(blob, plain.clone());
        Ok(plain)
    }

    fn write_blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = digest_of(bytes);
        let path = self.blob(&digest);
        fs::write(&path, bytes).map_err(ImageError::io(format!("write {}", path.display())))?;
        Ok(digest)
    }
}

/// The index's entries of an image, one for each name.
fn entries(image: &BundledImage) -> Vec<Value> {
    let entry = |name: &String| {
        json!({
            "mediaType": MediaType::ImageManifest.to_string(),
            "digest": image.manifest_digest,
            "size": image.manifest.len(),
            "annotations": { NAME: name, FULL_NAME: name },
        })
    };
    image.names.iter().map(entry).collect()
}

/// A file that remembers why it could not be written: its reader's reader would take that for a broken archive.
struct Copy {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl Copy {
    fn new(file: File) -> Self {
        Self {
            file: BufWriter::with_capacity(128 << 10, file),
            failed: None,
        }
    }

    /// The file, unless reading or writing it failed.
    fn finish(self, what: &str, result: Result<()>) -> Result<File> {
        let writing = || ImageError::io(format!("copy {what}"));
        if let Some(error) = self.failed {
            return Err(writing()(error));
        }
        result?;
        let file = self.file.into_inner();
        file.map_err(|error| writing()(error.into_error()))
    }
}

impl Write for Copy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| {
            let text = io::Error::new(error.kind(), error.to_string());
            self.failed = Some(error);
            text
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn copy(source: &mut dyn Read, to: &mut impl Write, hash: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            count => {
                hash.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
            }
        }
    }
}
