//! Images out of files: a root file system's tar here, archives and folders of whole images in `archive`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType};
use serde_json::{Value, json};

use super::archive::{self, Members};
use super::compression::{Compression, decompress, peek};
use super::error::{ImageError, Result};
use super::layout::{Layout, Temporary, Work};
use super::platform::Platform;
use super::reference::ImageRef;
use super::unpack::{Limits, broken};
use super::{Added, architecture};
use crate::runtime::LabelMap;

/// What a root file system's tar does not say about its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Labels of the image.
    pub labels: LabelMap,
    /// Environment, `K=V`.
    pub env: Vec<String>,
    /// Command.
    pub command: Vec<String>,
    /// Working folder.
    pub workdir: Option<String>,
    /// User (and group) of the command.
    pub user: Option<String>,
    /// Folders that engines keep outside the container.
    pub volumes: Vec<String>,
    /// Architecture; this machine's when absent.
    pub architecture: Option<String>,
}

/// Where images out of files go.
pub(crate) trait Destination {
    /// Bounds for what is read.
    fn limits(&self) -> Limits;

    /// A name for something unfinished.
    fn temporary(&self) -> Temporary;

    /// Whether this layer is there: its blob's digest, and that of its plain tar.
    fn has_layer(&self, blob: &str, diff_id: &str) -> bool;

    /// Takes a layer's archive and returns the digest and size of its plain tar. `blob` is the digest of the archive
    /// itself where a manifest names it so; else the plain tar is the layer. `diff_id` is what the config says.
    fn add_layer(
        &self,
        what: &str,
        source: &mut dyn Read,
        blob: Option<&str>,
        diff_id: Option<&str>,
    ) -> Result<(String, u64)>;

    /// Takes a document and returns its digest.
    fn write_blob(&self, bytes: &[u8]) -> Result<String>;
}

/// The store as the place where images go.
pub(crate) struct IntoStore<'a> {
    /// Its folders.
    pub(crate) layout: &'a Layout,
    /// Keeps collections away.
    pub(crate) work: &'a Work,
}

impl Destination for IntoStore<'_> {
    fn limits(&self) -> Limits {
        self.layout.limits()
    }

    fn temporary(&self) -> Temporary {
        self.layout.temporary()
    }

    fn has_layer(&self, _: &str, diff_id: &str) -> bool {
        self.layout.layer(diff_id).is_some()
    }

    fn add_layer(
        &self,
        what: &str,
        source: &mut dyn Read,
        _: Option<&str>,
        diff_id: Option<&str>,
    ) -> Result<(String, u64)> {
        let unpacked = self.layout.add_layer(self.work, what, source, diff_id)?;
        Ok((unpacked.diff_id, unpacked.tar_size))
    }

    fn write_blob(&self, bytes: &[u8]) -> Result<String> {
        self.layout.write_blob(self.work, bytes)
    }
}

/// The name that an imported image is to have.
pub(crate) fn name(name: Option<&str>) -> Result<Option<ImageRef>> {
    let name = name.map(ImageRef::parse).transpose()?;
    if let Some(name) = &name
        && name.digest().is_some()
    {
        return Err(ImageError::Reference {
            text: name.to_string(),
            why: "an imported image's name has no digest",
        });
    }
    Ok(name)
}

/// Imports a file, folder or (`-`) standard input, whatever it holds.
pub(crate) fn import(
    into: &dyn Destination,
    path: &Path,
    name: Option<&ImageRef>,
    options: &ImportOptions,
) -> Result<Vec<Added>> {
    let what = path.display().to_string();
    let whole = |members: &Members| {
        if *options != ImportOptions::default() {
            return Err(ImageError::Inapplicable(what.clone()));
        }
        archive::import(into, &what, members, name, &Platform::default())
    };
    if path.is_dir() {
        return whole(&Members::Folder(path.to_owned()));
    }
    let (compression, source) = decompress(open(path)?).map_err(|error| broken(&what, error))?;
    let (start, source) = peek(source).map_err(|error| broken(&what, error))?;
    let mut source: Box<dyn Read> = Box::new(source);
    if may_hold_images(&start) {
        let plain = compression == Compression::None && path != Path::new("-");
        let file = if plain {
            File::open(path).map_err(ImageError::io(format!("open {what}")))?
        } else {
            spool(into, &what, source)?
        };
        let again = file
            .try_clone()
            .map_err(ImageError::io(format!("read {what}")))?;
        let members = Members::of_tar(&what, file)?;
        if members.holds_images() {
            return whole(&members);
        }
        source = rewound(again).map_err(ImageError::io(format!("read {what}")))?;
    }
    let name = name
        .ok_or_else(|| ImageError::malformed(&what, "a root file system has no name; give one"))?;
    Ok(vec![rootfs(into, &what, source, name, options)?])
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).map_err(ImageError::io(format!("open {}", path.display())))?;
    Ok(Box::new(file))
}

fn rewound(mut file: File) -> io::Result<Box<dyn Read>> {
    file.seek(SeekFrom::Start(0))?;
    Ok(Box::new(file))
}

/// Whether the first header of a tar may be that of an archive of images; the rest of it decides.
fn may_hold_images(start: &[u8]) -> bool {
    let name = start.get(..100).unwrap_or(start);
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let first = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let stem = first
        .strip_suffix(b".json")
        .or(first.strip_suffix(b".tar"))
        .unwrap_or(first);
    let metadata = start.get(156).is_some_and(|kind| b"gxLK".contains(kind));
    let names: [&[u8]; 6] = [
        b"",
        b"blobs",
        b"oci-layout",
        b"index.json",
        b"manifest.json",
        b"repositories",
    ];
    let digest = stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit);
    // `./` is how both kinds begin when they were packed by hand.
    metadata || digest || names.contains(&first)
}

/// An uncompressed copy on disk, without a name: archives of images are read out of order.
fn spool(into: &dyn Destination, what: &str, source: impl Read) -> Result<File> {
    let temporary = into.temporary();
    let failed = || ImageError::io(format!("copy {what} to {}", temporary.path().display()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(temporary.path())
        .map_err(failed())?;
    let limit = into.limits().bytes;
    let copied =
        io::copy(&mut source.take(limit), &mut file).map_err(|error| broken(what, error))?;
    if copied == limit {
        return Err(ImageError::TooManyBytes {
            what: what.to_owned(),
            limit,
        });
    }
    file.seek(SeekFrom::Start(0)).map_err(failed())?;
    Ok(file)
}

/// Makes an image of one layer out of a root file system's tar. The layer is named by the plain tar, so that the
/// same tar makes the same image however it is compressed.
pub(crate) fn rootfs(
    into: &dyn Destination,
    what: &str,
    mut source: impl Read,
    name: &ImageRef,
    options: &ImportOptions,
) -> Result<Added> {
    let (diff_id, tar_size) = into.add_layer(what, &mut source, None, None)?;
    let layer = Descriptor::new(MediaType::ImageLayer, tar_size, parsed(&diff_id));
    let config = config(options, &diff_id);
    let config = serde_json::to_vec(&config).expect("an image config is plain data");
    manifest_of(into, &config, vec![layer], vec![name.to_string()])
}

/// Stores a config and a manifest made for it.
pub(crate) fn manifest_of(
    into: &dyn Destination,
    config: &[u8],
    layers: Vec<Descriptor>,
    names: Vec<String>,
) -> Result<Added> {
    let digest = parsed(&into.write_blob(config)?);
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(Descriptor::new(
            MediaType::ImageConfig,
            config.len() as u64,
            digest,
        ))
        .layers(layers)
        .build()
        .expect("all that a manifest needs is given");
    let manifest = serde_json::to_vec(&manifest).expect("a manifest is plain data");
    Ok(Added {
        manifest: into.write_blob(&manifest)?,
        manifest_size: manifest.len() as u64,
        repo_digest: None,
        names,
    })
}

/// The config of a tar's image: no time stamp and sorted keys, so that the same tar always makes the same image.
fn config(options: &ImportOptions, diff_id: &str) -> Value {
    let mut config = serde_json::Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    if let Some(user) = &options.user {
        set("User", json!(user));
    }
    if !options.env.is_empty() {
        set("Env", json!(options.env));
    }
    if !options.command.is_empty() {
        set("Cmd", json!(options.command));
    }
    if let Some(workdir) = &options.workdir {
        set("WorkingDir", json!(workdir));
    }
    if !options.volumes.is_empty() {
        let volumes = options.volumes.iter().map(|path| (path.clone(), json!({})));
        set("Volumes", volumes.collect::<serde_json::Map<_, _>>().into());
    }
    if !options.labels.is_empty() {
        set(
            "Labels",
            json!(options.labels.iter().collect::<BTreeMap<_, _>>()),
        );
    }
    json!({
        "architecture": options.architecture.as_deref().unwrap_or(architecture()),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
}

/// A digest for a descriptor.
fn parsed(digest: &str) -> oci_spec::image::Digest {
    digest.parse().expect("made by this store")
}
