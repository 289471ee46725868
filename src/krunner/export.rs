//! The built-in layer as an OCI image layout, for registries and for other agents.

use std::path::Path;

use super::{KRUNNER, KrunnerLayer, MOUNT_POINT};
use crate::image::{Bundle, ImageError, ImportOptions};

/// Label with the version of the agent that the layer belongs to.
pub const VERSION_LABEL: &str = "ai.backend.krunner.version";
/// Label with the digest of the layer's plain tar.
pub const DIGEST_LABEL: &str = "ai.backend.krunner.digest";

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Name of the image in the layout.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Digest of its only layer.
    pub layer: String,
    /// Version of the agent.
    pub version: &'static str,
}

/// Writes the built-in layer as an OCI image layout of one image with one layer. The same layer makes the same bytes
/// everywhere. The folder must be absent or empty. Blocks.
///
/// # Errors
/// [`ImageError::Reference`] for the name, [`ImageError::NotEmpty`], [`ImageError::Io`].
pub fn export(name: &str, to: &Path) -> Result<Exported, ImageError> {
    let layer = KrunnerLayer::built_in();
    let version = env!("CARGO_PKG_VERSION");
    let labels = [
        (VERSION_LABEL, version),
        (DIGEST_LABEL, &layer.digest),
        ("org.opencontainers.image.title", "krunner"),
        (
            "org.opencontainers.image.description",
            "The runner inside Backend.AI kernels, at /opt/backend.ai",
        ),
        ("org.opencontainers.image.version", version),
        (
            "org.opencontainers.image.licenses",
            env!("CARGO_PKG_LICENSE"),
        ),
    ];
    let options = ImportOptions {
        labels: labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        command: vec![KRUNNER.to_owned()],
        // Agents that take the runner out of a container of this image need a volume there.
        volumes: vec![MOUNT_POINT.to_owned()],
        ..ImportOptions::default()
    };
    // Beside its place, so that it can be moved there.
    let beside = match to.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let bundle = Bundle::of_tar(layer.tar(), name, &options, beside)?;
    let image = &bundle.images()[0];
    let exported = Exported {
        name: image.names.join(" "),
        digest: image.manifest_digest.clone(),
        layer: layer.digest,
        version,
    };
    bundle.keep(to)?;
    Ok(exported)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every file below a folder, with its content.
    fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().expect("a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(root).expect("below it");
                    let bytes = std::fs::read(&path).expect("a file");
                    found.push((name.display().to_string(), bytes));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn two_exports_are_the_same_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = ["one", "deep/two"].map(|name| folder.path().join(name));
        let exported = paths
            .clone()
            .map(|path| export("local/krunner:1", &path).expect("written"));
        assert_eq!(exported[0], exported[1]);
        assert_eq!(files(&paths[0]), files(&paths[1]));
        assert_eq!(files(&paths[0]).len(), 5, "two documents, three blobs");
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 2);
    }

    #[test]
    fn an_exported_layer_is_labelled_with_its_version_and_digest() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("layout");
        let exported = export("local/krunner:1", &path).expect("written");
        let scratch = folder.path().join("scratch");
        let bundle = Bundle::open(&path, None, &ImportOptions::default(), &scratch).expect("whole");
        let image = &bundle.images()[0];
        let config: serde_json::Value = serde_json::from_slice(&image.config).expect("JSON");
        let labels = &config["config"]["Labels"];
        assert_eq!(labels[VERSION_LABEL], env!("CARGO_PKG_VERSION"));
        assert_eq!(labels[DIGEST_LABEL], KrunnerLayer::built_in().digest);
        assert_eq!(
            labels["org.opencontainers.image.licenses"],
            env!("CARGO_PKG_LICENSE")
        );
        assert_eq!(
            config["config"]["Volumes"][MOUNT_POINT],
            serde_json::json!({})
        );
        assert_eq!(image.manifest_digest, exported.digest);
        assert_eq!(image.layers.len(), 1);
        assert_eq!(image.layers[0].digest, exported.layer);
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("layout");
        std::fs::create_dir(&path).expect("a folder");
        export("local/krunner:1", &path).expect("an empty folder will do");
        let before = files(&path);
        let error = export("local/krunner:2", &path).expect_err("not empty");
        assert!(matches!(error, ImageError::NotEmpty(_)), "{error}");
        assert_eq!(files(&path), before);
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 1);
    }
}
