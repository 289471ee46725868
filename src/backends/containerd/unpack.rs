//! Layers become snapshots: prepared on their parent, filled by containerd, committed under the name of their chain.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::{Descriptor, Mount};
use indicatif::ProgressBar;
use oci_spec::image::Descriptor as Layer;
use tonic::{Code, Status};

use super::client::{QUICK, SLOW, absent_is_done, failed};
use super::images::{Images, Known};
use crate::image::ImageError;
use crate::image::layout::same_diff_id;
use crate::image::pull::Remote;

/// Snapshotters that have nothing but what is unpacked into them; any other may know a layer before it is fetched.
const LOCAL: [&str; 7] = [
    "overlayfs",
    "native",
    "btrfs",
    "zfs",
    "devmapper",
    "blockfile",
    "erofs",
];

/// An image whose layers are to be unpacked.
pub(super) struct Layers<'a> {
    /// Its name, for messages and for snapshotters that fetch by themselves.
    pub name: &'a str,
    pub manifest_digest: &'a str,
    pub config_digest: &'a str,
    pub layers: &'a [Layer],
    pub diff_ids: &'a [String],
    pub chain: &'a [String],
}

/// Where blobs come from.
pub(super) enum Source<'a> {
    /// They are here.
    Stored,
    /// They are fetched where they are missing.
    Registry(&'a Remote, &'a ProgressBar),
}

impl Images {
    /// Unpacks an image whose blobs are here, as far as it is not.
    pub async fn unpack_stored(&self, image: &Known) -> Result<(), ImageError> {
        let what = image.info.id.clone();
        let lease = self
            .client
            .lease()
            .await
            .map_err(failed("making a lease"))?;
        let layers = Layers {
            name: &what,
            manifest_digest: &image.manifest_digest,
            config_digest: &what,
            layers: image.manifest.layers(),
            diff_ids: image.config.rootfs().diff_ids(),
            chain: &image.chain,
        };
        let unpacked = self.unpack(&lease, &layers, &Source::Stored).await;
        self.client.give_back(&lease).await;
        unpacked
    }

    /// Whether its snapshotter may have layers that were never fetched.
    pub fn is_remote(&self) -> bool {
        !LOCAL.contains(&self.snapshotter())
    }

    /// Unpacks the layers that are not; each blob is taken from `source` before that.
    pub async fn unpack(
        &self,
        lease: &str,
        image: &Layers<'_>,
        source: &Source<'_>,
    ) -> Result<(), ImageError> {
        let _alone = self.unpacking.lock().await;
        for index in 0..image.chain.len() {
            if self.has_snapshot(lease, &image.chain[index]).await? {
                continue;
            }
            let key = format!(
                "extract-{} {}",
                uuid::Uuid::new_v4().simple(),
                image.chain[index]
            );
            let unpacked = self.unpack_layer(lease, image, index, &key, source).await;
            if unpacked.is_err() {
                self.remove_snapshot(&key).await;
            }
            unpacked?;
        }
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter());
        if let Some(top) = image.chain.last() {
            let labels = [(label, top.clone())].into();
            let done = self.client.label(image.config_digest, labels).await;
            done.map_err(failed(format!("keeping the layers of {}", image.name)))?;
        }
        Ok(())
    }

    async fn unpack_layer(
        &self,
        lease: &str,
        image: &Layers<'_>,
        index: usize,
        key: &str,
        source: &Source<'_>,
    ) -> Result<(), ImageError> {
        let (layer, name) = (&image.layers[index], &image.chain[index]);
        let what = format!("layer {} of {}", layer.digest(), image.name);
        let parent = index.checked_sub(1).map_or("", |below| &image.chain[below]);
        let request = self.client.leased(
            lease,
            PrepareSnapshotRequest {
                snapshotter: self.snapshotter().to_owned(),
                key: key.to_owned(),
                parent: parent.to_owned(),
                labels: self.labels(image, index),
            },
        );
        let prepared = self
            .client
            .call(SLOW, self.client.snapshots().prepare(request))
            .await;
        let mounts = match prepared {
            Ok(prepared) => prepared.mounts,
            // The snapshotter has the layer by itself, or another agent was faster.
            Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
            Err(status) => return Err(failed(format!("preparing {what}"))(status).into()),
        };
        self.supply(lease, image, layer, source).await?;
        let found = self.apply(&what, layer, mounts).await?;
        same_diff_id(&what, &image.diff_ids[index], &found)?;
        let request = self.client.leased(
            lease,
            CommitSnapshotRequest {
                snapshotter: self.snapshotter().to_owned(),
                name: name.clone(),
                key: key.to_owned(),
                labels: HashMap::new(),
            },
        );
        let committed = self
            .client
            .call(SLOW, self.client.snapshots().commit(request))
            .await;
        match committed {
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove_snapshot(key).await;
                Ok(())
            }
            other => Ok(other.map_err(failed(format!("keeping {what}")))?),
        }
    }

    /// Makes sure that a layer's blob is here.
    async fn supply(
        &self,
        lease: &str,
        image: &Layers<'_>,
        layer: &Layer,
        source: &Source<'_>,
    ) -> Result<(), ImageError> {
        if let Source::Registry(remote, progress) = source {
            return self.fetch(lease, remote, layer, progress).await;
        }
        let digest = layer.digest().to_string();
        let there = self.client.holds_blob(lease, &digest).await;
        match there.map_err(failed(format!("looking for blob {digest}")))? {
            true => Ok(()),
            false => Err(ImageError::Missing(format!(
                "{} (layer {digest})",
                image.name
            ))),
        }
    }

    /// Unpacks a blob into a mounted snapshot; gives the digest of the plain tar.
    async fn apply(
        &self,
        what: &str,
        layer: &Layer,
        mounts: Vec<Mount>,
    ) -> Result<String, ImageError> {
        let diff = Descriptor {
            media_type: layer.media_type().to_string(),
            digest: layer.digest().to_string(),
            size: i64::try_from(layer.size()).unwrap_or(i64::MAX),
            ..Descriptor::default()
        };
        let request = self.client.request(ApplyRequest {
            diff: Some(diff),
            mounts,
            ..ApplyRequest::default()
        });
        let applied = self
            .client
            .call(SLOW, self.client.diff().apply(request))
            .await;
        let applied = applied.map_err(|status| unreadable(what, status))?;
        Ok(applied.applied.unwrap_or_default().digest)
    }

    /// Whether a layer is unpacked; if so, the lease holds it.
    async fn has_snapshot(&self, lease: &str, name: &str) -> Result<bool, ImageError> {
        let failed = || failed(format!("looking for snapshot {name}"));
        let kind = format!("snapshots/{}", self.snapshotter());
        self.client
            .hold(lease, &kind, name)
            .await
            .map_err(failed())?;
        let request = self.client.request(StatSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: name.to_owned(),
        });
        let stat = self
            .client
            .call(QUICK, self.client.snapshots().stat(request))
            .await;
        Ok(absent_is_done(stat).map_err(failed())?.is_some())
    }

    async fn remove_snapshot(&self, key: &str) {
        let request = self.client.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
        });
        let mut client = self.client.snapshots();
        let removed = self.client.call(SLOW, client.remove(request)).await;
        if let Err(status) = absent_is_done(removed) {
            tracing::debug!("removing snapshot {key}: {}", status.message());
        }
    }

    /// What snapshotters that fetch by themselves want to be told: stargz and nydus read these names.
    fn labels(&self, image: &Layers<'_>, index: usize) -> HashMap<String, String> {
        if !self.is_remote() {
            return HashMap::new();
        }
        let layers = image.layers[index..].iter();
        let layers: Vec<_> = layers.map(|layer| layer.digest().to_string()).collect();
        // A label holds 4096 bytes with its name.
        let layers = layers[..layers.len().min(50)].join(",");
        let cri = |name: &str| format!("containerd.io/snapshot/cri.{name}");
        [
            (
                "containerd.io/snapshot.ref".to_owned(),
                image.chain[index].clone(),
            ),
            (cri("image-ref"), image.name.to_owned()),
            (cri("manifest-digest"), image.manifest_digest.to_owned()),
            (
                cri("layer-digest"),
                image.layers[index].digest().to_string(),
            ),
            (cri("image-layers"), layers),
        ]
        .into()
    }
}

/// containerd tells a layer that cannot be read from a disk that is full by its words only.
fn unreadable(what: &str, status: Status) -> ImageError {
    let text = status.message();
    let damaged = [
        "archive/tar",
        "gzip",
        "zstd",
        "unexpected EOF",
        "magic number",
        "stream processor",
    ];
    if damaged.iter().any(|part| text.contains(part)) {
        return ImageError::malformed(what, text);
    }
    failed(format!("unpacking {what}"))(status).into()
}
