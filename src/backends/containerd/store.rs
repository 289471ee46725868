//! containerd's stores as a place to pull and import into: each document keeps what it names, by labels.

use async_trait::async_trait;
use containerd_client::types::Descriptor;

use super::client::failed;
use super::content::{Labels, Upload, put_document};
use super::images::Images;
use crate::image::ImageError;
use crate::image::layout::digest_of;
use crate::image::pull::{BlobStore, Described, Layer, Source};

type Result<T> = std::result::Result<T, ImageError>;

#[async_trait]
impl BlobStore for Images {
    /// A lease.
    type Hold = String;
    type Upload = Upload;

    async fn hold(&self) -> Result<String> {
        Ok(self
            .client
            .lease()
            .await
            .map_err(failed("making a lease"))?)
    }

    async fn release(&self, lease: String, ended: Option<&ImageError>) {
        // Blobs that came whole before a connection broke are kept for the next try, until the lease expires.
        if !matches!(ended, Some(ImageError::Unreachable { .. })) {
            self.client.give_back(&lease).await;
        }
    }

    async fn has(&self, lease: &String, layer: &Layer) -> Result<bool> {
        let there = self.client.holds_blob(lease, &layer.digest).await;
        Ok(there.map_err(failed(format!("looking for {}", layer.what)))?)
    }

    async fn open(&self, lease: &String, layer: &Layer) -> Result<Option<Upload>> {
        let (what, size) = (&layer.what, layer.size());
        let opened = Upload::open(&self.client, lease, what, &layer.digest, size).await;
        Ok(opened.map_err(failed(format!("storing {what}")))?)
    }

    async fn forget(&self, layer: &Layer) {
        self.client.abort(&layer.digest).await;
    }

    fn is_lazy(&self) -> bool {
        self.is_remote()
    }

    async fn keep(&self, lease: &String, image: &Described, source: &Source<'_>) -> Result<()> {
        self.store_documents(lease, image).await?;
        self.unpack(lease, image, source).await
    }

    async fn name(&self, _: &String, image: &Described, names: &[String]) -> Result<()> {
        for name in names {
            self.enter(name, target(&image.top)).await?;
        }
        Ok(())
    }
}

impl Images {
    async fn store_documents(&self, lease: &str, image: &Described) -> Result<()> {
        let put = |bytes, labels| put_document(&self.client, lease, bytes, labels);
        put(&image.config_bytes, Labels::new()).await?;
        let label = |part: String| format!("containerd.io/gc.ref.content.{part}");
        let layers = image.layers().into_iter();
        let mut labels: Labels = layers
            .map(|layer| (label(format!("l.{}", layer.place)), layer.digest))
            .collect();
        labels.insert(label("config".to_owned()), image.id());
        put(&image.manifest_bytes, labels).await?;
        if image.top_digest != image.manifest_digest {
            let labels = [(label("m.0".to_owned()), image.manifest_digest.clone())];
            put(&image.top, labels.into()).await?;
        }
        Ok(())
    }
}

/// What an image's name points to.
fn target(document: &[u8]) -> Descriptor {
    let json: serde_json::Value = serde_json::from_slice(document).unwrap_or_default();
    let kind = match json["manifests"].is_array() {
        true => "application/vnd.oci.image.index.v1+json",
        false => "application/vnd.oci.image.manifest.v1+json",
    };
    Descriptor {
        media_type: json["mediaType"].as_str().unwrap_or(kind).to_owned(),
        digest: digest_of(document),
        size: i64::try_from(document.len()).unwrap_or(i64::MAX),
        ..Descriptor::default()
    }
}
