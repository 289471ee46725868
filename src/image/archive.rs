//! Whole images out of archives and folders: what `docker save` writes, and OCI image layouts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Added;
use super::error::{ImageError, Result};
use super::import::{Destination, manifest_of};
use super::layout::{
    MAX_DOCUMENT, check_digest, digest_of, parse_config, parse_manifest, same_diff_id,
};
use super::platform::{Platform, choose};
use super::reference::{ImageRef, digest_hex};
use super::unpack::{broken, survey};

/// Where containerd and newer `docker save` put the full name.
const FULL_NAME: &str = "io.containerd.image.name";
/// An archive of images has a few files for each image; more is no such archive.
const MAX_MEMBERS: usize = 100_000;
const MAX_LINKS: usize = 8;

/// The files of an archive or folder, by their paths in it.
#[derive(Debug)]
pub(crate) enum Members {
    /// A folder.
    Folder(PathBuf),
    /// A tar without compression: where each file lies in it.
    Archive {
        /// The tar.
        file: File,
        /// Its members.
        places: HashMap<PathBuf, Place>,
    },
}

/// A file in a tar.
#[derive(Debug)]
pub(crate) enum Place {
    /// First byte and length.
    Bytes(u64, u64),
    /// A link to another member.
    Link(PathBuf),
}

impl Members {
    /// Reads the headers of a tar.
    pub(crate) fn of_tar(what: &str, file: File) -> Result<Self> {
        let mut places = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        let entries = archive.entries_with_seek();
        for entry in entries.map_err(|error| broken(what, error))? {
            let entry = entry.map_err(|error| broken(what, error))?;
            if places.len() == MAX_MEMBERS {
                break;
            }
            let path = entry.path().map_err(|error| broken(what, error))?;
            let path = plain(&path);
            let place = match entry.header().entry_type() {
                kind if kind.is_file() => Place::Bytes(entry.raw_file_position(), entry.size()),
                kind if kind.is_symlink() || kind.is_hard_link() => {
                    let target = entry.link_name().ok().flatten().unwrap_or_default();
                    let base = path.parent().filter(|_| kind.is_symlink());
                    Place::Link(plain(&base.unwrap_or(Path::new("")).join(target)))
                }
                _ => continue,
            };
            places.insert(path, place);
        }
        Ok(Self::Archive { file, places })
    }

    /// Whether this is an archive of images and not of a root file system.
    pub(crate) fn holds_images(&self) -> bool {
        self.has("manifest.json") || (self.has("oci-layout") && self.has("index.json"))
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(root) => root.join(name).is_file(),
            Self::Archive { places, .. } => places.contains_key(Path::new(name)),
        }
    }

    /// Opens a file; readers of one archive are used one after another.
    fn open(&self, what: &str, name: &str) -> Result<Box<dyn Read + '_>> {
        let missing = || ImageError::malformed(what, format!("it lacks {name:?}"));
        let (file, places) = match self {
            Self::Folder(root) => {
                let path = Path::new(name);
                let inside = |part| matches!(part, Component::Normal(_));
                if !path.components().all(inside) {
                    return Err(ImageError::EscapesRoot(name.to_owned()));
                }
                let path = root.join(path);
                let file = File::open(&path).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => ImageError::io(format!("open {}", path.display()))(error),
                })?;
                return Ok(Box::new(file));
            }
            Self::Archive { file, places } => (file, places),
        };
        let mut path = plain(Path::new(name));
        for _ in 0..MAX_LINKS {
            match places.get(&path) {
                Some(Place::Bytes(start, size)) => {
                    let mut file = file;
                    file.seek(SeekFrom::Start(*start))
                        .map_err(ImageError::io(format!("read {what}")))?;
                    return Ok(Box::new(Exactly {
                        source: file,
                        left: *size,
                    }));
                }
                Some(Place::Link(target)) => path.clone_from(target),
                None => break,
            }
        }
        Err(missing())
    }

    fn document(&self, what: &str, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let reader = self.open(what, name)?;
        let read = reader.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(|error| broken(what, error))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            let why = format!("{name:?} is larger than 8 MiB");
            return Err(ImageError::malformed(what, why));
        }
        Ok(bytes)
    }

    /// A document of a layout, checked against its digest.
    fn blob(&self, what: &str, digest: &str) -> Result<Vec<u8>> {
        let bytes = self.document(what, &blob_path(what, digest)?)?;
        check_digest(&format!("{what}: blob {digest}"), digest, &bytes)?;
        Ok(bytes)
    }

    /// Reads a blob of any size and checks it.
    fn check_blob(&self, what: &str, digest: &str) -> Result<()> {
        let mut hash = Sha256::new();
        let mut reader = self.open(what, &blob_path(what, digest)?)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader
                .read(&mut buffer)
                .map_err(|error| broken(what, error))?
            {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        let found = format!("sha256:{}", hex::encode(hash.finalize()));
        if found == digest {
            return Ok(());
        }
        Err(ImageError::WrongDigest {
            what: format!("{what}: blob {digest}"),
            expected: digest.to_owned(),
            found,
        })
    }
}

/// Adds every image of the archive (with a name given: its only image, under that name).
pub(crate) fn import(
    into: &dyn Destination,
    what: &str,
    members: &Members,
    name: Option<&ImageRef>,
    platform: &Platform,
) -> Result<Vec<Added>> {
    if members.has("manifest.json") {
        saved(into, what, members, name)
    } else {
        oci(into, what, members, name, platform)
    }
}

/// One image in `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn saved(
    into: &dyn Destination,
    what: &str,
    members: &Members,
    name: Option<&ImageRef>,
) -> Result<Vec<Added>> {
    let images: Vec<Saved> = serde_json::from_slice(&members.document(what, "manifest.json")?)
        .map_err(|error| ImageError::malformed(format!("{what}: manifest.json"), error))?;
    only_one(what, images.len(), name)?;
    let mut added = Vec::new();
    for image in images {
        let bytes = members.document(what, &image.config)?;
        let digest = digest_of(&bytes);
        let stem = Path::new(&image.config).file_stem();
        let stem = format!("sha256:{}", stem.unwrap_or_default().to_string_lossy());
        if digest_hex(&stem).is_some() {
            check_digest(&format!("{what}: {}", image.config), &stem, &bytes)?;
        }
        let config = parse_config(&digest, &bytes)?;
        let diff_ids = config.rootfs().diff_ids();
        same_length(what, diff_ids.len(), image.layers.len())?;
        let mut layers = Vec::new();
        for (layer, diff_id) in image.layers.iter().zip(diff_ids) {
            let label = format!("{what}: {layer}");
            let mut source = members.open(what, layer)?;
            let (_, tar_size) = if into.has_layer(diff_id, diff_id) {
                check_layer(&label, source, into, diff_id)?
            } else {
                into.add_layer(&label, &mut source, None, Some(diff_id))?
            };
            let parsed = diff_id
                .parse::<oci_spec::image::Digest>()
                .map_err(|error| ImageError::malformed(label, error))?;
            layers.push(Descriptor::new(MediaType::ImageLayer, tar_size, parsed));
        }
        let names = match (name, image.repo_tags.unwrap_or_default()) {
            (Some(name), _) => vec![name.to_string()],
            (None, tags) if tags.is_empty() => return Err(nameless(what)),
            (None, tags) => canonical(&tags)?,
        };
        into.write_blob(&bytes)?;
        added.push(manifest_of(into, &bytes, layers, names)?);
    }
    Ok(added)
}

fn oci(
    into: &dyn Destination,
    what: &str,
    members: &Members,
    name: Option<&ImageRef>,
    platform: &Platform,
) -> Result<Vec<Added>> {
    let index: ImageIndex = serde_json::from_slice(&members.document(what, "index.json")?)
        .map_err(|error| ImageError::malformed(format!("{what}: index.json"), error))?;
    let entries = top_level(what, &index, name, platform)?;
    only_one(what, entries.len(), name)?;
    let mut added = Vec::new();
    for entry in entries {
        let names = match name {
            Some(name) => vec![name.to_string()],
            None => vec![name_in(what, entry)?],
        };
        let repo_digest = entry.digest().to_string();
        let (digest, bytes) = manifest(what, members, entry, platform)?;
        let manifest = parse_manifest(&digest, &bytes)?;
        manifest_layers(into, what, members, &manifest)?;
        into.write_blob(&bytes)?;
        added.push(Added {
            manifest: digest,
            manifest_size: bytes.len() as u64,
            repo_digest: Some(repo_digest),
            names,
        });
    }
    Ok(added)
}

/// The images of a layout. An index of one image for several platforms counts as that image.
fn top_level<'a>(
    what: &str,
    index: &'a ImageIndex,
    name: Option<&ImageRef>,
    platform: &Platform,
) -> Result<Vec<&'a Descriptor>> {
    let entries = index.manifests();
    let platforms = entries.iter().all(|entry| entry.platform().is_some());
    if name.is_some() && entries.len() > 1 && platforms {
        return Ok(vec![choose(what, entries, platform)?]);
    }
    Ok(entries.iter().collect())
}

/// The manifest an entry stands for, through an index of platforms if need be.
fn manifest(
    what: &str,
    members: &Members,
    entry: &Descriptor,
    platform: &Platform,
) -> Result<(String, Vec<u8>)> {
    let digest = entry.digest().to_string();
    let bytes = members.blob(what, &digest)?;
    let Ok(index) = serde_json::from_slice::<ImageIndex>(&bytes) else {
        return Ok((digest, bytes));
    };
    let digest = choose(what, index.manifests(), platform)?
        .digest()
        .to_string();
    let bytes = members.blob(what, &digest)?;
    Ok((digest, bytes))
}

fn manifest_layers(
    into: &dyn Destination,
    what: &str,
    members: &Members,
    manifest: &ImageManifest,
) -> Result<()> {
    let config_digest = manifest.config().digest().to_string();
    let bytes = members.blob(what, &config_digest)?;
    let config = parse_config(&config_digest, &bytes)?;
    let diff_ids = config.rootfs().diff_ids();
    same_length(what, diff_ids.len(), manifest.layers().len())?;
    for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
        let digest = layer.digest().to_string();
        if into.has_layer(&digest, diff_id) {
            continue;
        }
        members.check_blob(what, &digest)?;
        let mut source = members.open(what, &blob_path(what, &digest)?)?;
        into.add_layer(
            &format!("{what}: blob {digest}"),
            &mut source,
            Some(&digest),
            Some(diff_id),
        )?;
    }
    into.write_blob(&bytes)?;
    Ok(())
}

/// Digest and size of the plain tar of a layer that is there already: a manifest is made of both.
fn check_layer(
    what: &str,
    source: impl Read,
    into: &dyn Destination,
    diff_id: &str,
) -> Result<(String, u64)> {
    let found = survey(what, source, into.limits(), io::sink())?;
    same_diff_id(what, diff_id, &found.diff_id)?;
    Ok((found.diff_id, found.tar_size))
}

/// Refuses a config that tells of other layers than the manifest.
pub(crate) fn same_length(what: &str, diff_ids: usize, layers: usize) -> Result<()> {
    if diff_ids == layers {
        return Ok(());
    }
    let why = format!("its config has {diff_ids} layers, its manifest {layers}");
    Err(ImageError::malformed(what, why))
}

fn only_one(what: &str, images: usize, name: Option<&ImageRef>) -> Result<()> {
    match (images, name) {
        (0, _) => Err(ImageError::malformed(what, "it has no image")),
        (2.., Some(_)) => {
            let why = format!(
                "it has {images} images, which cannot have one name; import it without a name"
            );
            Err(ImageError::malformed(what, why))
        }
        _ => Ok(()),
    }
}

fn name_in(what: &str, entry: &Descriptor) -> Result<String> {
    let annotations = entry.annotations().as_ref();
    let get = |key| annotations.and_then(|annotations| annotations.get(key));
    // Many tools write a bare tag into the layout's own annotation.
    let full = get(super::NAME).filter(|name| name.contains(['/', ':']));
    let name = get(FULL_NAME).or(full).ok_or_else(|| nameless(what))?;
    Ok(ImageRef::parse(name)?.to_string())
}

fn nameless(what: &str) -> ImageError {
    ImageError::malformed(what, "its image has no name; give one")
}

fn canonical(tags: &[String]) -> Result<Vec<String>> {
    let names = tags.iter().map(|tag| Ok(ImageRef::parse(tag)?.to_string()));
    names.collect()
}

fn blob_path(what: &str, digest: &str) -> Result<String> {
    let hex = digest_hex(digest).ok_or_else(|| ImageError::Unsupported {
        what: format!("{what}: blob {digest:?}"),
        why: "the digest algorithm".to_owned(),
    })?;
    Ok(format!("blobs/sha256/{hex}"))
}

/// A path without `.`, `..` and `/`, for looking up only.
fn plain(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// Reads a known number of bytes; fewer is an error.
struct Exactly<R> {
    source: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.source.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}
