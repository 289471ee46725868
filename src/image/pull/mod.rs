//! Images from registries: manifest and config first, then the missing layers, four at a time.

mod blob;
mod client;

use std::collections::HashSet;

use futures_util::StreamExt as _;
use indicatif::ProgressBar;
use oci_client::RegistryOperation;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use tokio_util::sync::CancellationToken;

pub(super) use self::blob::fetch as fetch_blob;
pub(crate) use self::client::Remote;
use super::archive::same_length;
use super::error::{ImageError, Result};
use super::layout::{Layout, Work, check_digest, digest_of, parse_config, parse_manifest};
use super::platform::{Platform, choose};
use super::reference::ImageRef;
use super::{Added, enter_all};
use crate::runtime::{ImageInfo, RegistryAuth};

/// Layers that are fetched and unpacked at a time.
pub(crate) const PARALLEL: usize = 4;

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

/// Pulls an image; after an error only what was fetched of its blobs is kept, to resume there.
pub(super) async fn pull(
    layout: &Layout,
    name: &ImageRef,
    options: &PullOptions,
) -> Result<ImageInfo> {
    let work = blocking(layout, Layout::work).await?;
    let result = match fetch(layout, &work, name, options).await {
        Ok(added) => {
            let work = work.share()?;
            blocking(layout, move |layout| enter_all(layout, &work, &[added])).await
        }
        Err(error) => Err(error),
    };
    drop(work);
    if result.is_err()
        && let Err(error) = blocking(layout, Layout::collect).await
    {
        tracing::warn!(%error, "cannot clean the image store");
    }
    let images = result?;
    let image = images.into_iter().next();
    image.ok_or_else(|| ImageError::Missing(name.to_string()))
}

async fn fetch(
    layout: &Layout,
    work: &Work,
    name: &ImageRef,
    options: &PullOptions,
) -> Result<Added> {
    let (remote, described) = describe(name, options).await?;
    let diff_ids = described.config.rootfs().diff_ids().iter().cloned();
    let layers = described.manifest.layers().iter().cloned().zip(diff_ids);
    fetch_layers(layout, work, &remote, layers.collect(), &options.progress).await?;
    layout.write_blob(work, &described.config_bytes)?;
    Ok(Added {
        manifest: layout.write_blob(work, &described.manifest_bytes)?,
        manifest_size: described.manifest_bytes.len() as u64,
        repo_digest: Some(described.top_digest),
        names: vec![name.tagged().unwrap_or_else(|| name.to_string())],
    })
}

/// The documents of an image, as its registry gave them and checked.
pub(crate) struct Described {
    /// What the name stands for: the manifest, or the index of several platforms.
    #[cfg_attr(
        not(feature = "containerd"),
        expect(dead_code, reason = "kept by containerd's store alone")
    )]
    pub(crate) top: Vec<u8>,
    pub(crate) top_digest: String,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) manifest: ImageManifest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: ImageConfiguration,
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
    let top = remote.manifest(name.digest()).await?;
    let top_digest = digest_of(&top);
    if let Some(expected) = name.digest() {
        check_digest(&format!("manifest of {name}"), expected, &top)?;
    }
    let manifest_bytes = match serde_json::from_slice::<ImageIndex>(&top) {
        Ok(index) => {
            let entry = choose(&name.to_string(), index.manifests(), &options.platform)?;
            let digest = entry.digest().to_string();
            let bytes = remote.manifest(Some(&digest)).await?;
            check_digest(&format!("manifest {digest} of {name}"), &digest, &bytes)?;
            bytes
        }
        Err(_) => top.clone(),
    };
    let manifest = parse_manifest(&digest_of(&manifest_bytes), &manifest_bytes)?;
    let config_digest = manifest.config().digest().to_string();
    let config_bytes = remote.document(&config_digest).await?;
    let config = parse_config(&config_digest, &config_bytes)?;
    let diff_ids = config.rootfs().diff_ids();
    same_length(&name.to_string(), diff_ids.len(), manifest.layers().len())?;
    let described = Described {
        top,
        top_digest,
        manifest_bytes,
        manifest,
        config_bytes,
        config,
    };
    Ok((remote, described))
}

async fn fetch_layers(
    layout: &Layout,
    work: &Work,
    remote: &Remote,
    mut layers: Vec<(Descriptor, String)>,
    progress: &ProgressBar,
) -> Result<()> {
    let mut seen = HashSet::new();
    layers.retain(|(_, diff_id)| seen.insert(diff_id.clone()) && layout.layer(diff_id).is_none());
    progress.set_length(layers.iter().map(|(layer, _)| layer.size()).sum());
    let stop = &CancellationToken::new();
    let fetches = layers
        .clone()
        .into_iter()
        .map(|(layer, diff_id)| async move {
            let fetched = blob::layer(layout, work, remote, &layer, &diff_id, progress, stop).await;
            fetched.inspect_err(|_| stop.cancel())
        });
    // All are waited for, so that none goes on unpacking when the pull has failed.
    let results: Vec<Result<()>> = futures_util::stream::iter(fetches)
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    let result: Result<()> = results.into_iter().collect();
    if let Err(error) = &result
        && !matches!(error, ImageError::Unreachable { .. })
    {
        for (layer, _) in &layers {
            blob::forget(&blob::partial(layout, layer.digest().as_ref())?);
        }
    }
    result
}

/// Runs blocking work on the store where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    layout: &Layout,
    work: impl FnOnce(&Layout) -> Result<T> + Send + 'static,
) -> Result<T> {
    let layout = layout.clone();
    match tokio::task::spawn_blocking(move || work(&layout)).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::io("work on the image store")(
            std::io::Error::other(error),
        )),
    }
}
