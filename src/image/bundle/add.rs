//! Images out of files into an engine's store: read and checked as a layout in a folder of ours, then added as pulled
//! ones are.

use std::path::{Path, PathBuf};

use super::{Bundle, BundledImage};
use crate::image::ImportOptions;
use crate::image::error::Result;
use crate::image::layout::{parse_config, parse_manifest};
use crate::image::pull::{BlobStore, Described, Source, add_layers};

/// Reads an archive or folder, adds its images, and gives their ids. Names come last: when one image fails, none is
/// there.
///
/// # Errors
/// Those of [`Bundle::open`], and the store's.
pub(crate) async fn import<S: BlobStore>(
    store: &S,
    path: &Path,
    name: Option<&str>,
    options: &ImportOptions,
    scratch: &Path,
) -> Result<Vec<String>> {
    let bundle = Bundle::read(path, name, options, scratch).await?;
    let hold = store.hold().await?;
    let added = add(store, &hold, bundle.images()).await;
    store.release(hold, added.as_ref().err()).await;
    added?;
    let ids = bundle.images().iter();
    Ok(ids.map(|image| image.config_digest.clone()).collect())
}

async fn add<S: BlobStore>(store: &S, hold: &S::Hold, images: &[BundledImage]) -> Result<()> {
    let mut kept = Vec::new();
    for image in images {
        let described = described(image)?;
        let paths = image.layers.iter().map(|layer| layer.path.clone());
        let paths: Vec<PathBuf> = paths.collect();
        let source = Source::Files(&paths);
        add_layers(store, hold, described.distinct_layers(), &source).await?;
        store.keep(hold, &described, &Source::Stored).await?;
        kept.push(described);
    }
    for (image, described) in images.iter().zip(&kept) {
        store.name(hold, described, &image.names).await?;
    }
    Ok(())
}

fn described(image: &BundledImage) -> Result<Described> {
    let name = image.names.join(" ");
    Ok(Described {
        top: image.manifest.clone(),
        top_digest: image.manifest_digest.clone(),
        manifest: parse_manifest(&name, &image.manifest)?,
        manifest_bytes: image.manifest.clone(),
        manifest_digest: image.manifest_digest.clone(),
        config: parse_config(&name, &image.config)?,
        config_bytes: image.config.clone(),
        name,
    })
}
