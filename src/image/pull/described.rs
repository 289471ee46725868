//! The documents of an image, from wherever they are.

use std::collections::HashSet;

use async_trait::async_trait;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
#[cfg(feature = "blob-store")]
use sha2::{Digest as _, Sha256};

use crate::image::archive::same_length;
use crate::image::error::Result;
use crate::image::layout::{digest_of, parse_config, parse_manifest};
use crate::image::platform::{Platform, choose};

/// Where small blobs come from; each is checked against its digest there.
#[async_trait]
pub(crate) trait Documents: Sync {
    /// One document, which must be there.
    async fn document(&self, digest: &str) -> Result<Vec<u8>>;

    /// A manifest, where these are kept apart.
    async fn manifest(&self, digest: &str) -> Result<Vec<u8>> {
        self.document(digest).await
    }
}

/// The documents of an image.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    /// What it is called in messages.
    pub(crate) name: String,
    /// What the name stands for: the manifest, or the index of several platforms.
    #[cfg_attr(
        not(feature = "blob-store"),
        expect(dead_code, reason = "kept by stores of engines alone")
    )]
    pub(crate) top: Vec<u8>,
    pub(crate) top_digest: String,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) manifest_digest: String,
    pub(crate) manifest: ImageManifest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: ImageConfiguration,
}

/// A layer of an image that is being added.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Its place in the image, from below.
    pub(crate) place: usize,
    /// What its manifest says of the blob.
    pub(crate) descriptor: Descriptor,
    /// Digest of the blob.
    pub(crate) digest: String,
    /// Digest of the plain tar, as the config says.
    pub(crate) diff_id: String,
    /// What it is called in messages.
    pub(crate) what: String,
}

impl Layer {
    /// Bytes of the blob.
    pub(crate) fn size(&self) -> u64 {
        self.descriptor.size()
    }
}

impl Described {
    /// Goes from what a name stands for to the image for the platform.
    pub(crate) async fn read(
        name: &str,
        top: Vec<u8>,
        platform: &Platform,
        from: &impl Documents,
    ) -> Result<Self> {
        let manifest_bytes = match serde_json::from_slice::<ImageIndex>(&top) {
            Ok(index) => {
                let entry = choose(name, index.manifests(), platform)?;
                from.manifest(entry.digest().as_ref()).await?
            }
            Err(_) => top.clone(),
        };
        let manifest_digest = digest_of(&manifest_bytes);
        let manifest = parse_manifest(&manifest_digest, &manifest_bytes)?;
        let config_digest = manifest.config().digest().to_string();
        let config_bytes = from.document(&config_digest).await?;
        let config = parse_config(&config_digest, &config_bytes)?;
        let described = Self {
            name: name.to_owned(),
            top_digest: digest_of(&top),
            top,
            manifest_bytes,
            manifest_digest,
            manifest,
            config_bytes,
            config,
        };
        let (diff_ids, layers) = (described.diff_ids(), described.manifest.layers());
        same_length(name, diff_ids.len(), layers.len())?;
        Ok(described)
    }

    /// Digest of the config: the image's id.
    #[cfg(feature = "blob-store")]
    pub(crate) fn id(&self) -> String {
        self.manifest.config().digest().to_string()
    }

    /// Digests of the plain tars of its layers, lowest first.
    pub(crate) fn diff_ids(&self) -> &[String] {
        self.config.rootfs().diff_ids()
    }

    /// Its layers, lowest first.
    pub(crate) fn layers(&self) -> Vec<Layer> {
        let layers = self.manifest.layers().iter().zip(self.diff_ids());
        let layer = |(place, (descriptor, diff_id)): (usize, (&Descriptor, &String))| {
            let digest = descriptor.digest().to_string();
            Layer {
                place,
                what: format!("blob {digest} of {}", self.name),
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
                digest,
            }
        };
        layers.enumerate().map(layer).collect()
    }

    /// Its layers without those whose blob another one has too.
    pub(crate) fn distinct_layers(&self) -> Vec<Layer> {
        let mut seen = HashSet::new();
        let mut layers = self.layers();
        layers.retain(|layer| seen.insert(layer.digest.clone()));
        layers
    }
}

/// Names of stacks of layers, as all that unpack them compute them (OCI image specification, ChainID).
#[cfg(feature = "blob-store")]
pub(crate) fn chain(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => {
                let digest = Sha256::digest(format!("{parent} {diff_id}"));
                format!("sha256:{}", hex::encode(digest))
            }
        };
        chain.push(id);
    }
    chain
}

#[cfg(all(test, feature = "blob-store"))]
mod tests {
    use super::*;

    #[test]
    fn stacks_of_layers_are_named_as_the_specification_says() {
        assert!(chain(&[]).is_empty());
        let ids = ["sha256:a", "sha256:b"].map(str::to_owned);
        let second = hex::encode(Sha256::digest("sha256:a sha256:b"));
        assert_eq!(
            chain(&ids),
            ["sha256:a".to_owned(), format!("sha256:{second}")]
        );
    }
}
