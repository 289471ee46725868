//! Layers become snapshots: prepared on their parent, filled by containerd, committed under the name of their chain.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::{Descriptor, Mount};
use tonic::{Code, Status};

use super::client::{Answer, absent_is_done, failed};
use super::images::Images;
use crate::image::ImageError;
use crate::image::layout::same_diff_id;
use crate::image::pull::{BlobStore as _, Described, Layer, Source, add_layer, chain};

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

/// What labels that snapshotters are told begin with.
const INHERITED: &str = "containerd.io/snapshot/";
/// Bytes of a label with its name.
const LONGEST_LABEL: usize = 4096;

impl Images {
    /// Unpacks an image whose blobs are here, as far as it is not.
    pub async fn unpack_stored(&self, image: &Described) -> Result<(), ImageError> {
        let lease = self.hold().await?;
        let unpacked = self.unpack(&lease, image, &Source::Stored).await;
        self.release(lease, unpacked.as_ref().err()).await;
        unpacked
    }

    /// Whether its snapshotter may have layers that were never fetched.
    pub fn is_remote(&self) -> bool {
        !LOCAL.contains(&self.snapshotter())
    }

    /// Unpacks the layers that are not; each blob is taken from `source` before that.
    pub async fn unpack(
        &self,
        lease: &String,
        image: &Described,
        source: &Source<'_>,
    ) -> Result<(), ImageError> {
        let _alone = self.unpacking.lock().await;
        let mut below = String::new();
        for (layer, name) in image.layers().iter().zip(chain(image.diff_ids())) {
            if self.has_snapshot(lease, &name).await? {
                come(source, layer);
            } else {
                let key = format!("extract-{} {name}", uuid::Uuid::new_v4().simple());
                let snapshot = Snapshot {
                    name: &name,
                    below: &below,
                    key: &key,
                };
                let unpacked = self.unpack_layer(lease, image, layer, &snapshot, source);
                let unpacked = unpacked.await;
                if unpacked.is_err() {
                    self.remove_leftover(&key).await;
                }
                unpacked?;
            }
            below = name;
        }
        if !below.is_empty() {
            let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter());
            let labels = [(label, below)].into();
            let done = self.client.label(&image.id(), labels).await;
            done.map_err(failed(format!("keeping the layers of {}", image.name)))?;
        }
        Ok(())
    }

    async fn unpack_layer(
        &self,
        lease: &String,
        image: &Described,
        layer: &Layer,
        snapshot: &Snapshot<'_>,
        source: &Source<'_>,
    ) -> Result<(), ImageError> {
        let what = format!("layer {} of {}", layer.digest, image.name);
        let labels = self.labels(image, layer, snapshot.name);
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: snapshot.key.to_owned(),
            parent: snapshot.below.to_owned(),
            labels: labels.clone(),
        };
        let mounts = match self.client.ask_leased(lease, request).await {
            Ok(prepared) => prepared.mounts,
            // The snapshotter has the layer by itself, or another agent was faster.
            Err(status)
                if status.code() == Code::AlreadyExists
                    && self.has_snapshot(lease, snapshot.name).await? =>
            {
                come(source, layer);
                return Ok(());
            }
            Err(status) => return Err(self.away(format!("preparing {what}"), status).await.into()),
        };
        add_layer(self, lease, layer, source).await?;
        let found = self.apply(&what, layer, mounts).await?;
        same_diff_id(&what, &layer.diff_id, &found)?;
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            name: snapshot.name.to_owned(),
            key: snapshot.key.to_owned(),
            // Those that it was prepared with are not kept by themselves.
            labels,
        };
        match self.client.ask_leased(lease, request).await {
            Ok(()) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove_leftover(snapshot.key).await;
                Ok(())
            }
            Err(status) => Err(self.away(format!("keeping {what}"), status).await.into()),
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
            media_type: layer.descriptor.media_type().to_string(),
            digest: layer.digest.clone(),
            size: i64::try_from(layer.size()).unwrap_or(i64::MAX),
            ..Descriptor::default()
        };
        let request = ApplyRequest {
            diff: Some(diff),
            mounts,
            ..ApplyRequest::default()
        };
        let applied = self.client.ask(request).await;
        let applied = applied.map_err(|status| unreadable(what, status))?;
        Ok(applied.applied.unwrap_or_default().digest)
    }

    /// Whether a layer is unpacked; if so, the lease holds it.
    async fn has_snapshot(&self, lease: &str, name: &str) -> Result<bool, ImageError> {
        let kind = format!("snapshots/{}", self.snapshotter());
        let request = StatSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: name.to_owned(),
        };
        let stat = async {
            self.client.hold(lease, &kind, name).await?;
            absent_is_done(self.client.ask(request).await)
        };
        match stat.await {
            Ok(found) => Ok(found.is_some()),
            Err(status) => {
                let action = format!("looking for snapshot {name}");
                Err(self.away(action, status).await.into())
            }
        }
    }

    async fn remove_leftover(&self, key: &str) {
        if let Err(status) = self.remove_snapshot(self.snapshotter(), key).await {
            tracing::debug!("removing snapshot {key}: {}", status.message());
        }
    }

    /// Removes a snapshot if it is there.
    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Answer<()> {
        let request = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        absent_is_done(self.client.ask(request).await).map(drop)
    }

    /// What snapshotters that fetch by themselves want to be told, in the names that the CRI plugin gave it; and what the
    /// manifest tells them of the layer: stargz takes none without the digest of its table of contents, nydus knows its
    /// own by no other sign.
    fn labels(&self, image: &Described, layer: &Layer, name: &str) -> HashMap<String, String> {
        if !self.is_remote() {
            return HashMap::new();
        }
        let told = layer.descriptor.annotations().iter().flatten();
        let told = told.filter(|(name, value)| {
            name.starts_with(INHERITED) && name.len() + value.len() <= LONGEST_LABEL
        });
        let mut labels: HashMap<_, _> = told
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let layers = image.layers().into_iter().skip(layer.place).take(50);
        let layers: Vec<String> = layers.map(|layer| layer.digest).collect();
        let cri = |name: &str| format!("{INHERITED}cri.{name}");
        labels.extend([
            ("containerd.io/snapshot.ref".to_owned(), name.to_owned()),
            (cri("image-ref"), image.name.clone()),
            (cri("manifest-digest"), image.manifest_digest.clone()),
            (cri("layer-digest"), layer.digest.clone()),
            (cri("image-layers"), layers.join(",")),
        ]);
        labels
    }
}

/// Tells of the progress that a layer need not come.
fn come(source: &Source<'_>, layer: &Layer) {
    if let Source::Registry(_, progress) = source {
        progress.inc(layer.size());
    }
}

/// A layer's snapshot that is being made.
struct Snapshot<'a> {
    /// The name that it is to have.
    name: &'a str,
    /// That of the one below; empty for the lowest.
    below: &'a str,
    /// What it is called until then.
    key: &'a str,
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
