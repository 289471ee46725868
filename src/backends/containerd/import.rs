//! Images out of files: read and checked as a layout in a folder of ours, then stored and unpacked like pulled ones.

use std::path::Path;

use tokio::io::AsyncReadExt as _;

use super::client::failed;
use super::content::Upload;
use super::images::{Images, chain};
use super::pull::target;
use super::unpack::{Layers, Source};
use crate::image::layout::{parse_config, parse_manifest};
use crate::image::{Bundle, BundledImage, BundledLayer, ImageError, ImportOptions};
use crate::runtime::{ImageInfo, ImageStore as _};

type Result<T> = std::result::Result<T, ImageError>;

/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;

impl Images {
    pub(super) async fn import_archive(
        &self,
        path: &Path,
        name: Option<&str>,
        options: &ImportOptions,
    ) -> Result<Vec<ImageInfo>> {
        let (path, name) = (path.to_owned(), name.map(str::to_owned));
        let (options, scratch) = (options.clone(), self.scratch.clone());
        let read = move || Bundle::open(&path, name.as_deref(), &options, &scratch);
        let bundle = tokio::task::spawn_blocking(read).await;
        let bundle = bundle.expect("reading an archive does not panic and is not aborted")?;
        let lease = self
            .client
            .lease()
            .await
            .map_err(failed("making a lease"))?;
        let stored = self.store(&lease, &bundle).await;
        self.client.give_back(&lease).await;
        stored?;
        let mut infos = Vec::new();
        for image in bundle.images() {
            infos.push(self.inspect(&image.config_digest).await?);
        }
        Ok(infos)
    }

    /// Names come last: when one image fails, none is there.
    async fn store(&self, lease: &str, bundle: &Bundle) -> Result<()> {
        for image in bundle.images() {
            self.store_image(lease, image).await?;
        }
        for image in bundle.images() {
            for name in &image.names {
                self.enter(name, target(&image.manifest)).await?;
            }
        }
        Ok(())
    }

    async fn store_image(&self, lease: &str, image: &BundledImage) -> Result<()> {
        let what = image.names.join(" ");
        for layer in &image.layers {
            self.store_layer(lease, layer).await?;
        }
        self.store_documents(lease, &what, &image.manifest, &image.config)
            .await?;
        let manifest = parse_manifest(&what, &image.manifest)?;
        let config = parse_config(&what, &image.config)?;
        let diff_ids = config.rootfs().diff_ids();
        let layers = Layers {
            name: &what,
            manifest_digest: &image.manifest_digest,
            config_digest: &image.config_digest,
            layers: manifest.layers(),
            diff_ids,
            chain: &chain(diff_ids),
        };
        self.unpack(lease, &layers, &Source::Stored).await
    }

    async fn store_layer(&self, lease: &str, layer: &BundledLayer) -> Result<()> {
        let failed = || failed(format!("storing layer {}", layer.digest));
        if self
            .client
            .holds_blob(lease, &layer.digest)
            .await
            .map_err(failed())?
        {
            return Ok(());
        }
        let size = i64::try_from(layer.size).unwrap_or(i64::MAX);
        // What somebody left of it is of the same digest or none.
        self.client.abort(&layer.digest).await;
        let upload = Upload::open(&self.client, lease, &layer.digest, size).await;
        let Some(mut upload) = upload.map_err(failed())? else {
            return Ok(());
        };
        let read = || ImageError::io(format!("read {}", layer.path.display()));
        let mut file = tokio::fs::File::open(&layer.path).await.map_err(read())?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            (&mut file)
                .take(PIECE as u64)
                .read_to_end(&mut piece)
                .await
                .map_err(read())?;
            if piece.is_empty() {
                break;
            }
            upload.write(piece).await.map_err(failed())?;
        }
        Ok(upload.commit().await.map_err(failed())?)
    }
}
