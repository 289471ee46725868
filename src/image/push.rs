//! An image to a registry: the blobs that it lacks, then the manifest.

use std::io;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use indicatif::ProgressBar;
use oci_client::RegistryOperation;
use tokio_util::io::ReaderStream;

use super::bundle::{Bundle, BundledImage, BundledLayer};
use super::error::{ImageError, Result};
use super::layout::parse_manifest;
use super::pull::Remote;
use super::reference::ImageRef;
use crate::runtime::RegistryAuth;

/// Size of the pieces that a blob is sent in, bytes; each has an answer of its own.
const PIECE: usize = 4 << 20;

/// How to push.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Credentials; those of `docker login` when absent.
    pub auth: Option<RegistryAuth>,
    /// Talk to the registry without TLS. Registries on loopback addresses are always talked to so.
    pub plain_http: bool,
    /// Where to show the progress, in bytes.
    pub progress: ProgressBar,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self {
            auth: None,
            plain_http: false,
            progress: ProgressBar::hidden(),
        }
    }
}

/// What a registry has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Its name there.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Blobs that were sent; the registry had the others.
    pub sent: usize,
}

/// Pushes the only image of a bundle.
///
/// # Errors
/// [`ImageError::Reference`], [`ImageError::NothingToPush`] when there is not one image, [`ImageError::Denied`],
/// [`ImageError::NotPushed`].
pub async fn push(bundle: &Bundle, name: &str, options: &PushOptions) -> Result<Pushed> {
    let reference = ImageRef::parse(name)?;
    if reference.digest().is_some() {
        return Err(ImageError::Reference {
            text: name.to_owned(),
            why: "an image is pushed by a tag; its digest is a result",
        });
    }
    let [image] = bundle.images() else {
        return Err(ImageError::NothingToPush {
            image: name.to_owned(),
            why: format!("there are {} images; give one", bundle.images().len()),
        });
    };
    let (auth, plain_http) = (options.auth.as_ref(), options.plain_http);
    let remote = Remote::connect(&reference, auth, plain_http, RegistryOperation::Push).await;
    let remote = remote.map_err(|error| match error {
        ImageError::Unreachable { what, source } => ImageError::NotPushed { what, source },
        other => other,
    })?;
    let sent = send(&remote, image, &options.progress).await?;
    Ok(Pushed {
        name: reference.to_string(),
        digest: image.manifest_digest.clone(),
        sent,
    })
}

async fn send(remote: &Remote, image: &BundledImage, progress: &ProgressBar) -> Result<usize> {
    let config = Bytes::from(image.config.clone());
    progress.set_length(image.layers.iter().map(|layer| layer.size).sum());
    let mut sent = 0;
    for layer in &image.layers {
        let content = content(layer, progress.clone()).await?;
        if remote.push_blob(&layer.digest, layer.size, content).await? {
            sent += 1;
        } else {
            progress.inc(layer.size);
        }
    }
    let size = config.len() as u64;
    let content = futures_util::stream::iter([Ok(config)]);
    if remote
        .push_blob(&image.config_digest, size, content)
        .await?
    {
        sent += 1;
    }
    let manifest = parse_manifest(&image.manifest_digest, &image.manifest)?;
    let kind = manifest
        .media_type()
        .clone()
        .unwrap_or(oci_spec::image::MediaType::ImageManifest);
    remote
        .push_manifest(kind.as_ref(), image.manifest.clone())
        .await?;
    Ok(sent)
}

/// A layer's blob piece by piece.
async fn content(
    layer: &BundledLayer,
    progress: ProgressBar,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let opening = ImageError::io(format!("open {}", layer.path.display()));
    let mut file = tokio::fs::File::open(&layer.path).await.map_err(opening)?;
    file.set_max_buf_size(PIECE);
    let pieces = ReaderStream::with_capacity(file, PIECE);
    Ok(pieces.inspect(move |piece| {
        progress.inc(piece.as_ref().map_or(0, |piece| piece.len() as u64));
    }))
}
