//! Images from registries: documents first, then the missing blobs, four at a time, then the layers are unpacked.

use std::time::Duration;

use containerd_client::types::Descriptor;
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use oci_client::client::BlobResponse;
use oci_spec::image::Descriptor as Layer;
use tonic::{Code, Status};

use super::client::failed;
use super::content::{Labels, Upload};
use super::images::Images;
use super::unpack::{Layers, Source};
use crate::image::layout::digest_of;
use crate::image::pull::{Described, PARALLEL, Remote, describe};
use crate::image::{ImageError, ImageRef, PullOptions};
use crate::runtime::{ImageInfo, ImageStore as _};

type Result<T> = std::result::Result<T, ImageError>;

/// A broken connection is made again so often, each time from where it broke.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;

impl Images {
    pub(super) async fn pull_image(&self, image: &str, options: &PullOptions) -> Result<ImageInfo> {
        let name = ImageRef::parse(image)?;
        let (remote, described) = describe(&name, options).await?;
        let lease = self
            .client
            .lease()
            .await
            .map_err(failed("making a lease"))?;
        let pulled = self
            .pull_under(&lease, &remote, &name, &described, &options.progress)
            .await;
        // Blobs that came whole before a connection broke are kept for the next try, until the lease expires.
        if !matches!(pulled, Err(ImageError::Unreachable { .. })) {
            self.client.give_back(&lease).await;
        }
        let id = pulled?;
        Ok(self.inspect(&id).await?)
    }

    /// Gives the name under which it can be found.
    async fn pull_under(
        &self,
        lease: &str,
        remote: &Remote,
        name: &ImageRef,
        described: &Described,
        progress: &ProgressBar,
    ) -> Result<String> {
        let layers = described.manifest.layers();
        progress.set_length(layers.iter().map(Layer::size).sum());
        let full = name.to_string();
        let (manifest, config) = (&described.manifest_bytes, &described.config_bytes);
        let manifest_digest = self.store_documents(lease, &full, manifest, config).await?;
        let mut source = Source::Registry(remote, progress);
        if !self.is_remote() {
            let fetches = layers
                .iter()
                .map(|layer| self.fetch(lease, remote, layer, progress));
            let fetches: Vec<_> = fetches.collect();
            // All are waited for, so that each keeps what it fetched.
            let fetches = futures_util::stream::iter(fetches).buffer_unordered(PARALLEL);
            let results: Vec<Result<()>> = fetches.collect().await;
            results.into_iter().collect::<Result<()>>()?;
            source = Source::Stored;
        }
        let diff_ids = described.config.rootfs().diff_ids();
        let layers = Layers {
            name: &full,
            manifest_digest: &manifest_digest,
            config_digest: described.manifest.config().digest().as_ref(),
            layers,
            diff_ids,
            chain: &super::images::chain(diff_ids),
        };
        self.unpack(lease, &layers, &source).await?;
        if described.top_digest != manifest_digest {
            let labels = [(
                "containerd.io/gc.ref.content.m.0".to_owned(),
                manifest_digest,
            )]
            .into();
            self.put(lease, &described.top, labels).await?;
        }
        let known_as = name.tagged().unwrap_or_else(|| name.to_string());
        self.enter(&known_as, target(&described.top)).await?;
        Ok(known_as)
    }

    /// Stores the documents of an image, each of which keeps what it names; gives the digest of the manifest.
    pub(super) async fn store_documents(
        &self,
        lease: &str,
        what: &str,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<String> {
        let parsed = crate::image::layout::parse_manifest(what, manifest)?;
        self.put(lease, config, Labels::new()).await?;
        let label = |part: String| format!("containerd.io/gc.ref.content.{part}");
        let layers = parsed.layers().iter().enumerate();
        let mut labels: Labels = layers
            .map(|(index, layer)| (label(format!("l.{index}")), layer.digest().to_string()))
            .collect();
        labels.insert(
            label("config".to_owned()),
            parsed.config().digest().to_string(),
        );
        self.put(lease, manifest, labels).await
    }

    async fn put(&self, lease: &str, bytes: &[u8], labels: Labels) -> Result<String> {
        let put = self.client.put_document(lease, bytes, labels).await;
        Ok(put.map_err(failed(format!("storing blob {}", digest_of(bytes))))?)
    }

    pub(super) async fn fetch(
        &self,
        lease: &str,
        remote: &Remote,
        layer: &Layer,
        progress: &ProgressBar,
    ) -> Result<()> {
        let digest = layer.digest().to_string();
        let there = self.client.holds_blob(lease, &digest).await;
        if there.map_err(failed(format!("looking for blob {digest}")))? {
            progress.inc(layer.size());
            return Ok(());
        }
        for attempt in 1.. {
            match self.fetch_once(lease, remote, layer, progress).await {
                Err(error @ ImageError::Unreachable { .. }) if attempt < ATTEMPTS => {
                    tracing::warn!(%error, attempt, "the connection to the registry broke; resuming");
                    tokio::time::sleep(PAUSE * attempt).await;
                }
                Err(error) => {
                    if !matches!(
                        error,
                        ImageError::Unreachable { .. } | ImageError::Engine(_)
                    ) {
                        self.client.abort(&digest).await;
                    }
                    return Err(error);
                }
                Ok(()) => break,
            }
        }
        tracing::info!(
            image = remote.name(),
            digest,
            size = layer.size(),
            "layer pulled"
        );
        Ok(())
    }

    async fn fetch_once(
        &self,
        lease: &str,
        remote: &Remote,
        layer: &Layer,
        progress: &ProgressBar,
    ) -> Result<()> {
        let digest = layer.digest().to_string();
        let what = format!("blob {digest} of {}", remote.name());
        let failed = || failed(format!("storing {what}"));
        let size = i64::try_from(layer.size()).unwrap_or(i64::MAX);
        let upload = Upload::open(&self.client, lease, &digest, size).await;
        let Some(mut upload) = upload.map_err(failed())? else {
            return Ok(());
        };
        let mut done = Counted { progress, bytes: 0 };
        done.add(upload.offset());
        if upload.offset() < layer.size() {
            let stream = match remote.blob(&digest, upload.offset()).await? {
                BlobResponse::Partial(stream) => stream,
                BlobResponse::Full(stream) if upload.offset() == 0 => stream,
                BlobResponse::Full(stream) => {
                    drop(upload);
                    self.client.abort(&digest).await;
                    done.reset();
                    let again = Upload::open(&self.client, lease, &digest, size).await;
                    let Some(again) = again.map_err(failed())? else {
                        return Ok(());
                    };
                    upload = again;
                    stream
                }
            };
            self.receive(&what, layer.size(), stream, &mut upload, &mut done)
                .await?;
        }
        let committed = upload.commit().await;
        committed.map_err(|status| wrong_digest(&what, &digest, status))?;
        done.bytes = 0;
        Ok(())
    }

    async fn receive(
        &self,
        what: &str,
        size: u64,
        mut stream: impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Unpin,
        upload: &mut Upload<'_>,
        done: &mut Counted<'_>,
    ) -> Result<()> {
        let mut piece = Vec::with_capacity(PIECE);
        let received = loop {
            let chunk = stream.try_next().await;
            if let Ok(Some(chunk)) = &chunk {
                piece.extend_from_slice(chunk);
            }
            let end = upload.offset() + piece.len() as u64;
            if end > size {
                return Err(ImageError::malformed(
                    what,
                    "it is longer than its manifest says",
                ));
            }
            // A whole blob is judged by its digest, whatever the stream says.
            let over = end == size || !matches!(chunk, Ok(Some(_)));
            if over || piece.len() >= PIECE {
                done.add(piece.len() as u64);
                let written = upload.write(std::mem::take(&mut piece)).await;
                written.map_err(failed(format!("storing {what}")))?;
            }
            match chunk {
                _ if end == size => break Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => break Err(std::io::ErrorKind::UnexpectedEof.into()),
                Err(error) => break Err(error),
            }
        };
        received.map_err(|error: std::io::Error| ImageError::Unreachable {
            what: what.to_owned(),
            source: Box::new(error),
        })
    }
}

/// Progress that is taken back unless the blob is stored.
struct Counted<'a> {
    progress: &'a ProgressBar,
    bytes: u64,
}

impl Counted<'_> {
    fn add(&mut self, bytes: u64) {
        self.progress.inc(bytes);
        self.bytes += bytes;
    }

    fn reset(&mut self) {
        self.progress.dec(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.reset();
    }
}

/// What an image's name points to.
pub(super) fn target(document: &[u8]) -> Descriptor {
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

/// containerd compares the digest; what it found is in its words.
fn wrong_digest(what: &str, expected: &str, status: Status) -> ImageError {
    let text = status.message();
    if status.code() != Code::FailedPrecondition {
        return failed(format!("storing {what}"))(status).into();
    }
    let found = text.split(|c: char| c == ',' || c.is_whitespace());
    let mut found = found.filter(|word| word.starts_with("sha256:") && *word != expected);
    ImageError::WrongDigest {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found: found.next().unwrap_or("another one").to_owned(),
    }
}
