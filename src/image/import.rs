//! Images out of files: a root file system's tar here, archives and folders of whole images in `archive`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, ImageConfiguration, ImageConfigurationBuilder,
    ImageManifestBuilder, MediaType, Os, RootFsBuilder,
};
use sha2::{Digest, Sha256};

use super::compression::{Compression, peek};
use super::error::{ImageError, Result};
use super::layout::{Layout, Work};
use super::reference::ImageRef;
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
    /// Architecture; this machine's when absent.
    pub architecture: Option<String>,
}

/// The archive's bytes: a file, or standard input for `-`.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).map_err(ImageError::io(format!("open {}", path.display())))?;
    Ok(Box::new(file))
}

/// Makes an image of one layer out of a root file system's tar.
pub(crate) fn rootfs(
    layout: &Layout,
    work: &Work,
    what: &str,
    source: impl Read,
    name: &ImageRef,
    options: &ImportOptions,
) -> Result<Added> {
    let (start, source) = peek(source).map_err(ImageError::io(format!("read {what}")))?;
    let mut source = Digesting::new(source);
    let unpacked = layout.add_layer(work, what, &mut source, None)?;
    // What follows a compressed stream's end belongs to the blob all the same.
    io::copy(&mut source, &mut io::sink()).map_err(ImageError::io(format!("read {what}")))?;
    let media_type = match Compression::of(&start) {
        Compression::None => MediaType::ImageLayer,
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
    };
    let (digest, size) = source.finish();
    let layer = Descriptor::new(media_type, size, digest);
    let config = config(options, &unpacked.diff_id);
    let config = serde_json::to_vec(&config).expect("an image config is plain data");
    let config_digest = layout.write_blob(work, &config)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(Descriptor::new(
            MediaType::ImageConfig,
            config.len() as u64,
            parsed(&config_digest),
        ))
        .layers(vec![layer])
        .build()
        .expect("all that a manifest needs is given");
    let manifest = serde_json::to_vec(&manifest).expect("a manifest is plain data");
    Ok(Added {
        manifest: layout.write_blob(work, &manifest)?,
        manifest_size: manifest.len() as u64,
        repo_digest: None,
        names: vec![name.to_string()],
    })
}

/// The config of a tar's image: no time stamp, so that the same tar always makes the same image.
fn config(options: &ImportOptions, diff_id: &str) -> ImageConfiguration {
    let mut config = ConfigBuilder::default();
    if !options.labels.is_empty() {
        config = config.labels(
            options
                .labels
                .clone()
                .into_iter()
                .collect::<std::collections::HashMap<_, _>>(),
        );
    }
    if !options.env.is_empty() {
        config = config.env(options.env.clone());
    }
    if !options.command.is_empty() {
        config = config.cmd(options.command.clone());
    }
    if let Some(workdir) = &options.workdir {
        config = config.working_dir(workdir.clone());
    }
    if let Some(user) = &options.user {
        config = config.user(user.clone());
    }
    let arch = options.architecture.as_deref().unwrap_or(architecture());
    ImageConfigurationBuilder::default()
        .architecture(Arch::from(arch))
        .os(Os::Linux)
        .config(config.build().expect("nothing is required"))
        .rootfs(
            RootFsBuilder::default()
                .typ("layers")
                .diff_ids(vec![diff_id.to_owned()])
                .build()
                .expect("all that it needs is given"),
        )
        .build()
        .expect("all that a config needs is given")
}

/// A digest for a descriptor.
fn parsed(digest: &str) -> oci_spec::image::Digest {
    digest.parse().expect("made by this store")
}

/// Digests what is read.
struct Digesting<R> {
    source: R,
    hash: Sha256,
    size: u64,
}

impl<R> Digesting<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn finish(self) -> (oci_spec::image::Digest, u64) {
        let digest = format!("sha256:{}", hex::encode(self.hash.finalize()));
        (parsed(&digest), self.size)
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}
