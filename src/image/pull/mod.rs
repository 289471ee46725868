//! Images from registries into a store, the node's own or an engine's: documents first, then the missing layers, four
//! at a time, each with what an earlier pull left of it.

mod blob;
mod client;
mod described;
mod local;
mod store;

use std::path::PathBuf;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use indicatif::ProgressBar;
use oci_client::RegistryOperation;
use tokio_util::sync::CancellationToken;

pub(super) use self::blob::fetch as fetch_blob;
pub(crate) use self::client::Remote;
#[cfg(feature = "blob-store")]
pub(crate) use self::described::chain;
pub(crate) use self::described::{Described, Documents, Layer};
pub(super) use self::local::blocking;
pub(super) use self::store::FileUpload;
pub(crate) use self::store::{BlobStore, Upload};
use super::error::{ImageError, Result};
use super::layout::check_digest;
use super::platform::Platform;
use super::reference::ImageRef;
use crate::runtime::RegistryAuth;

/// Layers that are fetched and unpacked at a time.
const PARALLEL: usize = 4;

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Credentials; those of `docker login` when absent.
    pub auth: Option<RegistryAuth>,
    /// Talk to the registry without TLS. Registries on loopback addresses are always talked to so.
    pub plain_http: bool,
    /// Platform to choose from an index.
    pub platform: Platform,
    /// Where to show the progress, in bytes.
    pub progress: ProgressBar,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            auth: None,
            plain_http: false,
            platform: Platform::default(),
            progress: ProgressBar::hidden(),
        }
    }
}

impl PullOptions {
    /// As kernels want their images: with these credentials, and for this machine.
    #[must_use]
    pub fn with(auth: Option<&RegistryAuth>) -> Self {
        Self {
            auth: auth.cloned(),
            ..Self::default()
        }
    }
}

/// Where the blobs of an image come from.
pub(crate) enum Source<'a> {
    /// They are in the store.
    Stored,
    /// Files, in the order of layers.
    #[cfg_attr(
        not(feature = "blob-store"),
        expect(dead_code, reason = "the node's own store reads archives itself")
    )]
    Files(&'a [PathBuf]),
    /// A registry; with what tells of the progress.
    Registry(&'a Remote, &'a ProgressBar),
}

/// Pulls an image and gives the name under which it is then found; after an error only what was fetched of its blobs is
/// kept, to resume there.
pub(crate) async fn pull<S: BlobStore>(
    store: &S,
    image: &str,
    options: &PullOptions,
) -> Result<String> {
    let name = ImageRef::parse(image)?;
    let (remote, described) = describe(&name, options).await?;
    let known_as = name.tagged().unwrap_or_else(|| name.to_string());
    let hold = store.hold().await?;
    let layers = described.distinct_layers();
    let progress = &options.progress;
    progress.set_length(layers.iter().map(Layer::size).sum());
    let mut source = Source::Registry(&remote, progress);
    let pulled = async {
        if !store.is_lazy() {
            add_layers(store, &hold, layers, &source).await?;
            source = Source::Stored;
        }
        store.keep(&hold, &described, &source).await?;
        let names = std::slice::from_ref(&known_as);
        store.name(&hold, &described, names).await
    };
    let pulled = pulled.await;
    store.release(hold, pulled.as_ref().err()).await;
    pulled.map(|()| known_as)
}

/// Fetches the documents of an image for the platform; its blobs are to be had from the same remote.
pub(crate) async fn describe(
    name: &ImageRef,
    options: &PullOptions,
) -> Result<(Remote, Described)> {
    let remote = Remote::connect(
        name,
        options.auth.as_ref(),
        options.plain_http,
        RegistryOperation::Pull,
    )
    .await?;
    let top = remote.top(name.digest()).await?;
    if let Some(expected) = name.digest() {
        check_digest(&format!("manifest of {name}"), expected, &top)?;
    }
    let described = Described::read(&name.to_string(), top, &options.platform, &remote).await?;
    Ok((remote, described))
}

#[async_trait]
impl Documents for Remote {
    async fn document(&self, digest: &str) -> Result<Vec<u8>> {
        self.small_blob(digest).await
    }

    async fn manifest(&self, digest: &str) -> Result<Vec<u8>> {
        let bytes = self.top(Some(digest)).await?;
        let what = format!("manifest {digest} of {}", self.name());
        check_digest(&what, digest, &bytes)?;
        Ok(bytes)
    }
}

/// Brings all layers of an image that are missing into a store.
pub(crate) async fn add_layers<S: BlobStore>(
    store: &S,
    hold: &S::Hold,
    layers: Vec<Layer>,
    source: &Source<'_>,
) -> Result<()> {
    let stop = &CancellationToken::new();
    let additions: Vec<_> = layers
        .iter()
        .map(|layer| async move {
            let come = tokio::select! {
                biased;
                () = stop.cancelled() => Ok(None),
                come = come(store, hold, layer, source) => come,
            };
            let added = finish(layer, come).await;
            added.inspect_err(|_| stop.cancel())
        })
        .collect();
    // All are waited for, so that none goes on unpacking when the pull has failed.
    let results: Vec<Result<()>> = futures_util::stream::iter(additions)
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    let added: Result<()> = results.into_iter().collect();
    forget_damaged(store, &layers, &added).await;
    added
}

/// Brings one layer into a store, if it is missing.
#[cfg(feature = "blob-store")]
pub(crate) async fn add_layer<S: BlobStore>(
    store: &S,
    hold: &S::Hold,
    layer: &Layer,
    source: &Source<'_>,
) -> Result<()> {
    let added = finish(layer, come(store, hold, layer, source).await).await;
    forget_damaged(store, std::slice::from_ref(layer), &added).await;
    added
}

/// Has a store forget what came of layers, unless the next pull may go on there.
async fn forget_damaged<S: BlobStore>(store: &S, layers: &[Layer], added: &Result<()>) {
    if added.as_ref().is_err_and(|error| !may_pass(error)) {
        for layer in layers {
            store.forget(layer).await;
        }
    }
}

/// Writes a layer's blob, unless it is there or somebody else has done so meanwhile.
async fn come<S: BlobStore>(
    store: &S,
    hold: &S::Hold,
    layer: &Layer,
    source: &Source<'_>,
) -> Result<Option<S::Upload>> {
    let there = store.has(hold, layer).await?;
    let upload = match source {
        _ if there => None,
        Source::Stored => return Err(ImageError::Missing(layer.what.clone())),
        _ => store.open(hold, layer).await?,
    };
    match (source, upload) {
        (Source::Registry(_, progress), None) => progress.inc(layer.size()),
        (_, None) | (Source::Stored, _) => {}
        (Source::Files(paths), Some(mut upload)) => {
            blob::copy(&paths[layer.place], &mut upload).await?;
            return Ok(Some(upload));
        }
        (Source::Registry(remote, progress), Some(mut upload)) => {
            blob::fetch(remote, layer, &mut upload, progress).await?;
            return Ok(Some(upload));
        }
    }
    Ok(None)
}

async fn finish(layer: &Layer, come: Result<Option<impl Upload>>) -> Result<()> {
    if let Some(upload) = come? {
        upload.finish().await?;
        tracing::info!(size = layer.size(), "{} added", layer.what);
    }
    Ok(())
}

/// Whether the same pull may go on later where this one ended.
fn may_pass(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Unreachable { .. } | ImageError::Engine(_)
    )
}
