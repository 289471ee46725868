//! Import of a root file system: the archive becomes the only layer, its config is made from the options.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};

use super::import::RootfsOptions;
use super::manifest::{OCI_CONFIG, OCI_MANIFEST};
use super::store::Folders;
use super::{Digest, ImageError, ImageRef, UnpackLimits};
use crate::runtime::ImageInfo;

/// Imports the archive, compressed or not.
pub(super) fn import(
    folders: &Folders,
    archive: &Path,
    name: &ImageRef,
    options: &RootfsOptions,
    limits: UnpackLimits,
) -> Result<ImageInfo, ImageError> {
    let what = format!("archive {}", archive.display());
    let file = File::open(archive).map_err(|e| ImageError::io("open", archive, e))?;
    let (blob, digest, size) = folders.blobs.ingest(file, &what)?;
    let diff_id = folders.layers.add(blob.path(), limits)?;
    folders.blobs.adopt(blob.path(), &digest)?;
    let config = put_json(folders, &config(options, &diff_id)?)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config.0.as_str(), "size": config.1},
        "layers": [{
            "mediaType": layer_type(digest == diff_id, &folders.blobs.path(&digest))?,
            "digest": digest.as_str(),
            "size": size,
        }],
    });
    let (manifest, _) = put_json(folders, &manifest)?;
    folders.record(&manifest, std::slice::from_ref(name), limits)
}

/// The config: no time of creation, sorted labels, so that the same input has the same digest.
fn config(options: &RootfsOptions, diff_id: &Digest) -> Result<Value, ImageError> {
    if let Some(bad) = options.env.iter().find(|entry| !entry.contains('=')) {
        return Err(ImageError::InvalidRequest(format!(
            "environment entry {bad:?} is not of the form NAME=VALUE"
        )));
    }
    let platform = options.platform();
    let mut config = json!({});
    if !options.env.is_empty() {
        config["Env"] = json!(options.env);
    }
    if !options.command.is_empty() {
        config["Cmd"] = json!(options.command);
    }
    if let Some(folder) = &options.working_dir {
        config["WorkingDir"] = json!(folder);
    }
    if let Some(user) = &options.user {
        config["User"] = json!(user);
    }
    let labels: BTreeMap<_, _> = options.labels.iter().cloned().collect();
    if !labels.is_empty() {
        config["Labels"] = json!(labels);
    }
    Ok(json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str()]},
    }))
}

/// Stores a document; its digest and length.
pub(super) fn put_json(folders: &Folders, value: &Value) -> Result<(Digest, usize), ImageError> {
    let text = value.to_string();
    Ok((folders.blobs.put(text.as_bytes())?, text.len()))
}

/// Media type of a layer, told by the blob's first bytes.
pub(super) fn layer_type(plain: bool, blob: &Path) -> Result<&'static str, ImageError> {
    use std::io::Read;
    if plain {
        return Ok("application/vnd.oci.image.layer.v1.tar");
    }
    let mut magic = [0; 1];
    File::open(blob)
        .and_then(|mut file| file.read_exact(&mut magic))
        .map_err(|e| ImageError::io("read", blob, e))?;
    Ok(if magic == [0x1f] {
        "application/vnd.oci.image.layer.v1.tar+gzip"
    } else {
        "application/vnd.oci.image.layer.v1.tar+zstd"
    })
}
