//! Archives made in the test, images out of them, and a look at what a store holds.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// A tar under construction, which lets through what `tar` itself would refuse.
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    pub fn header(kind: EntryType, path: &str, mode: u32) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header
    }

    /// An entry with its content; the header's size is the content's.
    pub fn entry(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.raw(&header, content);
        self
    }

    fn raw(&mut self, header: &Header, content: &[u8]) {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(Self::header(EntryType::Regular, path, 0o644), content)
    }

    pub fn folder(self, path: &str) -> Self {
        self.entry(Self::header(EntryType::Directory, path, 0o755), &[])
    }

    pub fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, path, 0o777);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.entry(header, &[])
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    /// A PAX header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry(
            Self::header(EntryType::XHeader, "PaxHeaders/x", 0o644),
            &body,
        )
    }

    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// An image as it lies in a layout or a registry: documents and blobs by digest.
pub struct Image {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub blobs: HashMap<String, Vec<u8>>,
    pub layers: Vec<String>,
}

impl Image {
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    pub fn id(&self) -> String {
        digest(&self.config)
    }
}

/// An image of tars, each given with its compressed form.
pub fn image(architecture: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Image {
    let diff_ids: Vec<String> = layers.iter().map(|(plain, _)| digest(plain)).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": {
            "Env": ["A=1"], "Cmd": ["/bin/x"], "Entrypoint": null, "Volumes": null, "OnBuild": null,
            "Labels": { "ai.backend.kernelspec": "1" },
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))
    .unwrap();
    let digests: Vec<String> = layers.iter().map(|(_, packed)| digest(packed)).collect();
    let descriptors: Vec<Value> = layers
        .iter()
        .zip(&digests)
        .map(|((_, packed), digest)| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest, "size": packed.len(),
            })
        })
        .collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config), "size": config.len(),
        },
        "layers": descriptors,
    }))
    .unwrap();
    let mut blobs: HashMap<String, Vec<u8>> = HashMap::from([(digest(&config), config.clone())]);
    blobs.extend(
        digests
            .iter()
            .cloned()
            .zip(layers.iter().map(|(_, packed)| packed.clone())),
    );
    Image {
        manifest,
        config,
        blobs,
        layers: digests,
    }
}

/// An index of images with their platforms' architectures.
pub fn index(images: &[(&str, &Image)]) -> Vec<u8> {
    let manifests: Vec<Value> = images
        .iter()
        .map(|(architecture, image)| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": image.digest(), "size": image.manifest.len(),
                "platform": { "os": "linux", "architecture": architecture },
            })
        })
        .collect();
    serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }))
    .unwrap()
}

/// A layer of one file, plain and compressed.
pub fn layer(path: &str, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let plain = Tar::new().file(path, content).finish();
    let packed = gzip(&plain);
    (plain, packed)
}

/// This machine's architecture and another one.
pub fn architectures() -> (&'static str, &'static str) {
    match backendai_agent::image::architecture() {
        "amd64" => ("amd64", "arm64"),
        this => (this, "amd64"),
    }
}

/// Everything below a store's folder that is not a lock or the layout's mark, as sorted paths.
pub fn remains(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            let path = entry
                .path()
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let known = [
                "images",
                "images/blobs",
                "images/blobs/sha256",
                "images/oci-layout",
                "layers",
            ];
            if !known.contains(&path.as_str()) && !path.ends_with(".lock") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
