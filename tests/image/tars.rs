//! Archives made in memory, also such as no archiver would make, and a store to put them into.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backendai_agent::image::{ImageError, ImportOptions, Store, UnpackLimits};
use backendai_agent::runtime::ImageInfo;
use tar::{EntryType, Header};
use tempfile::TempDir;

/// An archive in the making.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// Any entry: the name and the target go into the header as they are.
    pub fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        target: &str,
        mode: u32,
        data: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        put(&mut header.as_old_mut().name, name);
        put(&mut header.as_old_mut().linkname, target);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_500_000_000);
        header.set_size(data.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).expect("it fits");
            header.set_device_minor(3).expect("it fits");
        }
        header.set_cksum();
        self.raw(&header, data)
    }

    /// A header and its data.
    pub fn raw(&mut self, header: &Header, data: &[u8]) -> Self {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Self(bytes)
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, name, "", 0o644, data.as_bytes())
    }

    pub fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", 0o755, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, 0o644, b"")
    }

    /// Pax records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            data.extend_from_slice(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", 0o644, &data)
    }

    /// The archive, with its end mark.
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// The archive, without its end mark.
    pub fn cut(self) -> Vec<u8> {
        self.0
    }
}

fn put(field: &mut [u8], text: &str) {
    field.fill(0);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(data, 1).expect("memory takes it")
}

/// A small root file system.
pub fn small() -> Vec<u8> {
    Tar::default().folder("etc").file("etc/name", "small").end()
}

/// A store in a folder of its own.
pub struct Home {
    pub dir: TempDir,
    pub store: Arc<Store>,
}

impl Home {
    pub fn new() -> Self {
        Self::with(UnpackLimits::default())
    }

    pub fn with(limits: UnpackLimits) -> Self {
        let dir = TempDir::new().expect("a folder");
        let store = Store::open_with(dir.path(), limits).expect("the store opens");
        Self { dir, store }
    }

    /// Writes a file beside the store.
    pub fn input(&self, name: &str, data: &[u8]) -> PathBuf {
        let folder = self.dir.path().join("input");
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join(name);
        fs::write(&path, data).expect("a file");
        path
    }

    pub async fn import(&self, data: &[u8], name: &str) -> Result<Vec<ImageInfo>, ImageError> {
        let path = self.input(&format!("{}.tar", name.replace(['/', ':'], "_")), data);
        let options = ImportOptions {
            name: Some(name.to_owned()),
            ..Default::default()
        };
        self.store.import(&path, options).await
    }

    /// Imports a root file system and returns its unpacked folder, with what keeps it.
    pub async fn root(&self, data: &[u8]) -> (PathBuf, backendai_agent::image::PreparedImage) {
        self.import(data, "localhost/root:1")
            .await
            .expect("it is good");
        let prepared = self
            .store
            .prepare("localhost/root:1")
            .await
            .expect("it is there");
        assert_eq!(prepared.lowers.len(), 1);
        (prepared.lowers[0].clone(), prepared)
    }

    /// Asserts that the store holds neither image, nor blob, nor layer, nor anything half-made.
    pub fn assert_empty(&self) {
        for folder in [
            "images/blobs/sha256",
            "images/tmp",
            "layers/sha256",
            "layers/tmp",
        ] {
            assert_eq!(
                names(&self.dir.path().join(folder)),
                Vec::<String>::new(),
                "{folder}"
            );
        }
    }
}

/// Sorted names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| {
            entry
                .expect("it can be read")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}
