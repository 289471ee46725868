//! Manifests and configs: reading them from bytes, of OCI's and Docker's media types, and what an image tells.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;

use super::{Digest, ImageError, Platform};
use crate::runtime::ImageInfo;

/// Media types of manifests.
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of OCI indexes.
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of OCI configs.
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What is asked of a registry.
pub(super) const ACCEPTED: &[&str] = &[OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
/// Bound for manifests, indexes and configs, which are read as a whole.
pub(super) const MAX_DOCUMENT: u64 = 8 << 20;

/// One image's documents.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// Digest of the manifest.
    pub(super) manifest_digest: Digest,
    /// Digest of the config: the image's id.
    pub(super) config_digest: Digest,
    /// Layers' blobs, lowest first.
    pub(super) layers: Vec<Layer>,
    /// The config.
    pub(super) config: ImageConfiguration,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// Digest of the blob, as it is transferred.
    pub(super) blob: Digest,
    /// Length of the blob.
    pub(super) blob_size: u64,
    /// Digest of the uncompressed archive.
    pub(super) diff_id: Digest,
}

/// A manifest, or an index of manifests.
#[derive(Debug)]
pub(super) enum Document {
    /// Of one platform.
    Manifest(Box<ImageManifest>),
    /// Of several.
    Index(ImageIndex),
}

impl Document {
    /// Reads either, by its media type or, without one, by its fields.
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self, ImageError> {
        let value: serde_json::Value = json(bytes, what)?;
        let kind = value.get("mediaType").and_then(serde_json::Value::as_str);
        let is_index = match kind {
            Some(OCI_INDEX | DOCKER_LIST) => true,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => false,
            Some(other) => {
                return Err(ImageError::Unsupported {
                    what: what.to_owned(),
                    kind: other.to_owned(),
                });
            }
            None if value.get("schemaVersion") == Some(&serde_json::Value::from(1)) => {
                return Err(ImageError::Unsupported {
                    what: what.to_owned(),
                    kind: "manifest schema 1".to_owned(),
                });
            }
            None => value.get("manifests").is_some(),
        };
        Ok(if is_index {
            Self::Index(json(bytes, what)?)
        } else {
            Self::Manifest(json(bytes, what)?)
        })
    }
}

/// Parses JSON, naming the document on failure.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|e| ImageError::malformed(what, e))
}

/// The digest of a descriptor, which must be SHA-256.
pub(super) fn digest_of(descriptor: &Descriptor, what: &str) -> Result<Digest, ImageError> {
    let text: &str = descriptor.digest().as_ref();
    Digest::parse(text)
        .ok_or_else(|| ImageError::malformed(what, format!("{text:?} is not a SHA-256 digest")))
}

/// The index entry for a platform; entries of unknown platform are attestations and do not count.
pub(super) fn choose<'a>(
    index: &'a ImageIndex,
    wanted: &Platform,
    image: &str,
) -> Result<&'a Descriptor, ImageError> {
    let platform_of = |entry: &Descriptor| {
        entry.platform().as_ref().map(|platform| Platform {
            os: platform.os().to_string(),
            architecture: platform.architecture().to_string(),
        })
    };
    let entries = index.manifests();
    if let Some(entry) = entries
        .iter()
        .find(|entry| platform_of(entry).as_ref() == Some(wanted))
    {
        return Ok(entry);
    }
    if let [only] = entries.as_slice()
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let mut offered: Vec<String> = entries
        .iter()
        .filter_map(platform_of)
        .filter(|platform| platform.os != "unknown")
        .map(|platform| platform.to_string())
        .collect();
    offered.dedup();
    Err(ImageError::NoPlatform {
        image: image.to_owned(),
        wanted: wanted.to_string(),
        offered: if offered.is_empty() {
            "none".to_owned()
        } else {
            offered.join(", ")
        },
    })
}

impl Image {
    /// Puts manifest and config together and checks that they fit.
    pub(super) fn new(
        manifest_digest: Digest,
        manifest: &ImageManifest,
        config: ImageConfiguration,
    ) -> Result<Self, ImageError> {
        let what = format!("manifest {manifest_digest}");
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers().len() {
            return Err(ImageError::malformed(
                what,
                format!(
                    "it has {} layers, its config {}",
                    manifest.layers().len(),
                    diff_ids.len()
                ),
            ));
        }
        let layers = manifest
            .layers()
            .iter()
            .zip(diff_ids)
            .map(|(descriptor, diff_id)| {
                Ok(Layer {
                    blob: digest_of(descriptor, &what)?,
                    blob_size: descriptor.size(),
                    diff_id: Digest::parse(diff_id).ok_or_else(|| {
                        ImageError::malformed(&what, format!("{diff_id:?} is not a SHA-256 digest"))
                    })?,
                })
            })
            .collect::<Result<_, ImageError>>()?;
        Ok(Self {
            config_digest: digest_of(manifest.config(), &what)?,
            manifest_digest,
            layers,
            config,
        })
    }

    /// The platform it says to be for.
    pub(super) fn platform(&self) -> Platform {
        Platform {
            os: self.config.os().to_string(),
            architecture: self.config.architecture().to_string(),
        }
    }

    /// What the runtime's callers want to know.
    pub(super) fn info(&self, names: Vec<String>, size: u64) -> ImageInfo {
        let config = self.config.config().as_ref();
        let list =
            |field: Option<&Option<Vec<String>>>| field.cloned().flatten().unwrap_or_default();
        let mut command = list(config.map(oci_spec::image::Config::entrypoint));
        command.extend(list(config.map(oci_spec::image::Config::cmd)));
        let labels: BTreeMap<String, String> = config
            .and_then(|config| config.labels().clone())
            .unwrap_or_default()
            .into_iter()
            .collect();
        ImageInfo {
            names,
            id: self.config_digest.to_string(),
            repo_digest: Some(self.manifest_digest.to_string()),
            labels: labels.into_iter().collect(),
            env: list(config.map(oci_spec::image::Config::env)),
            command,
            architecture: self.config.architecture().to_string(),
            size,
        }
    }
}
