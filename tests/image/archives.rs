//! Whole images out of archives and folders.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backendai_agent::image::{ImageError, ImportOptions, Store};
use backendai_agent::runtime::ImageInfo;
use serde_json::json;
use tempfile::TempDir;

use super::support::{
    Image, Tar, architectures, digest, gzip, image, index, layer, noise, remains, zstd,
};

struct Fixture {
    folder: TempDir,
    store: Arc<Store>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state")).unwrap();
        Self { folder, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn import(&self, archive: &[u8], name: Option<&str>) -> Result<Vec<ImageInfo>, ImageError> {
        let path = self.path("archive");
        std::fs::write(&path, archive).unwrap();
        self.store.import(&path, name, &ImportOptions::default())
    }

    fn is_empty(&self) -> bool {
        remains(&self.path("state")).is_empty()
    }
}

pub(super) fn two_layers() -> Image {
    let upper = Tar::new().file("b", b"upper").file(".wh.a", b"").finish();
    let packed = zstd(&upper);
    image(
        architectures().0,
        &[layer("a", &noise(50_000, 1)), (upper, packed)],
    )
}

/// What `docker save` writes: the config, the layers uncompressed, the names.
pub(super) fn saved(image: &Image, plain: &[Vec<u8>], tags: &[&str]) -> Tar {
    let config = format!("{}.json", image.id().trim_start_matches("sha256:"));
    let mut tar = Tar::new().file(&config, &image.config);
    let mut layers = Vec::new();
    for (number, layer) in plain.iter().enumerate() {
        let path = format!("{number:064}/layer.tar");
        tar = tar.file(&path, layer);
        layers.push(path);
    }
    // Docker writes a layer that it has written already as a link to it.
    tar = tar.symlink("link.tar", &layers[0]);
    layers[0] = "link.tar".to_owned();
    let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]);
    tar.file("manifest.json", manifest.to_string().as_bytes())
}

/// The files of an OCI layout.
pub(super) fn layout(
    top: &[u8],
    entries: &[(&str, &[u8])],
    blobs: &[&Image],
) -> Vec<(String, Vec<u8>)> {
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, document)| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(document), "size": document.len(),
                "annotations": { "org.opencontainers.image.ref.name": name },
            })
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "manifests": entries }).to_string();
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.into_bytes()),
    ];
    let mut blob = |bytes: &[u8], name: &str| {
        files.push((
            format!("blobs/sha256/{}", name.trim_start_matches("sha256:")),
            bytes.to_vec(),
        ));
    };
    blob(top, &digest(top));
    for image in blobs {
        blob(&image.manifest, &image.digest());
        image
            .blobs
            .iter()
            .for_each(|(name, bytes)| blob(bytes, name));
    }
    files.sort();
    files.dedup();
    files
}

pub(super) fn packed(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Tar::new().folder("blobs/");
    for (path, bytes) in files {
        tar = tar.file(path, bytes);
    }
    tar.finish()
}

pub(super) fn spread(files: &[(String, Vec<u8>)], to: &Path) {
    for (path, bytes) in files {
        let path = to.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

pub(super) fn plain_layers() -> Vec<Vec<u8>> {
    let upper = Tar::new().file("b", b"upper").file(".wh.a", b"").finish();
    vec![layer("a", &noise(50_000, 1)).0, upper]
}

#[test]
fn an_archive_of_docker_save_becomes_its_images() {
    let image = two_layers();
    let archive = saved(&image, &plain_layers(), &["my/image:1", "my/image:2"]).finish();
    for archive in [archive.clone(), gzip(&archive)] {
        let fixture = Fixture::new();
        let images = fixture.import(&archive, None).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].names, ["my/image:1", "my/image:2"]);
        assert_eq!(images[0].id, image.id());
        assert_eq!(
            (images[0].repo_digest.clone(), &images[0].command),
            (None, &vec!["/bin/x".to_owned()])
        );
        let lowers = fixture.store.prepare("my/image:2").unwrap().lowers;
        assert_eq!(std::fs::read(lowers[0].join("b")).unwrap(), b"upper");
        assert_eq!(
            std::fs::read(lowers[1].join("a")).unwrap(),
            noise(50_000, 1)
        );
        let renamed = fixture.import(&archive, Some("other/name")).unwrap();
        assert_eq!(renamed[0].id, image.id());
        assert!(renamed[0].names.contains(&"other/name:latest".to_owned()));
    }
}

#[test]
fn a_saved_image_with_another_layer_than_its_config_says_is_refused() {
    let image = two_layers();
    let mut layers = plain_layers();
    layers[1] = Tar::new().file("b", b"forged").finish();
    let fixture = Fixture::new();
    let error = fixture
        .import(&saved(&image, &layers, &["a/b:1"]).finish(), None)
        .unwrap_err();
    assert!(matches!(error, ImageError::WrongDiffId { .. }), "{error}");
    assert!(fixture.is_empty());
}

#[test]
fn a_saved_image_with_another_config_than_its_name_says_is_refused() {
    let mut image = two_layers();
    let name = image.id();
    image.config.push(b' ');
    let config = format!("{}.json", name.trim_start_matches("sha256:"));
    let manifest = json!([{ "Config": config, "RepoTags": ["a/b:1"], "Layers": [] }]);
    let archive = Tar::new()
        .file(&config, &image.config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish();
    let fixture = Fixture::new();
    let error = fixture.import(&archive, None).unwrap_err();
    assert!(matches!(error, ImageError::WrongDigest { .. }), "{error}");
    assert!(fixture.is_empty());
}

#[test]
fn oci_archives_and_folders_become_their_images() {
    let image = two_layers();
    let files = layout(
        &image.manifest,
        &[("r.io/my/image:1", &image.manifest)],
        &[&image],
    );
    let fixture = Fixture::new();
    let folder = fixture.path("folder");
    spread(&files, &folder);
    let archive = fixture.path("archive.tar");
    std::fs::write(&archive, packed(&files)).unwrap();
    for path in [folder, archive] {
        let images = fixture
            .store
            .import(&path, None, &ImportOptions::default())
            .unwrap();
        assert_eq!(images[0].names, ["r.io/my/image:1"]);
        assert_eq!(images[0].id, image.id());
        assert_eq!(images[0].repo_digest, Some(image.digest()));
        let by_digest = format!("r.io/my/image@{}", image.digest());
        assert_eq!(fixture.store.prepare(&by_digest).unwrap().info, images[0]);
        fixture.store.remove("r.io/my/image:1", &[]).unwrap();
        assert_eq!(remains(&fixture.path("state")), ["images/index.json"]);
    }
}

#[test]
fn a_layout_with_a_bare_tag_needs_a_name() {
    let image = two_layers();
    let archive = packed(&layout(
        &image.manifest,
        &[("latest", &image.manifest)],
        &[&image],
    ));
    let fixture = Fixture::new();
    let error = fixture.import(&archive, None).unwrap_err();
    assert!(error.to_string().contains("give one"), "{error}");
    assert!(fixture.is_empty());
    assert_eq!(
        fixture.import(&archive, Some("my/image:1")).unwrap()[0].names,
        ["my/image:1"]
    );
}

#[test]
fn an_index_of_two_platforms_gives_this_machines_image() {
    let (this, other) = architectures();
    let ours = image(this, &[layer("a", b"ours")]);
    let theirs = image(other, &[layer("a", b"theirs")]);
    let both = index(&[(other, &theirs), (this, &ours)]);
    let fixture = Fixture::new();
    let archive = packed(&layout(&both, &[("my/image:1", &both)], &[&ours, &theirs]));
    let images = fixture.import(&archive, None).unwrap();
    assert_eq!(
        (&images[0].id, images[0].architecture.as_str()),
        (&ours.id(), this)
    );
    assert_eq!(images[0].repo_digest, Some(digest(&both)));
    let only_theirs = index(&[(other, &theirs)]);
    let archive = packed(&layout(
        &only_theirs,
        &[("my/image:2", &only_theirs)],
        &[&theirs],
    ));
    let error = fixture.import(&archive, None).unwrap_err();
    assert!(matches!(&error, ImageError::NoPlatform { .. }), "{error}");
    assert!(error.to_string().contains(other), "{error}");
}

#[test]
fn a_layout_with_a_damaged_blob_is_refused() {
    let image = two_layers();
    let files = layout(
        &image.manifest,
        &[("my/image:1", &image.manifest)],
        &[&image],
    );
    for (number, (path, _)) in files
        .iter()
        .enumerate()
        .filter(|(_, (path, _))| path.starts_with("blobs/"))
    {
        let mut damaged = files.clone();
        let bytes = &mut damaged[number].1;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let fixture = Fixture::new();
        let error = fixture.import(&packed(&damaged), None).unwrap_err();
        assert!(
            matches!(error, ImageError::WrongDigest { .. }),
            "{path}: {error}"
        );
        assert!(fixture.is_empty(), "{path}");
    }
}

#[test]
fn a_layout_that_lacks_a_blob_is_refused() {
    let image = two_layers();
    let files = layout(
        &image.manifest,
        &[("my/image:1", &image.manifest)],
        &[&image],
    );
    for (number, (path, _)) in files
        .iter()
        .enumerate()
        .filter(|(_, (path, _))| path.starts_with("blobs/"))
    {
        let mut files = files.clone();
        files.remove(number);
        let fixture = Fixture::new();
        let error = fixture.import(&packed(&files), None).unwrap_err();
        assert!(
            matches!(error, ImageError::Malformed { .. }),
            "{path}: {error}"
        );
        assert!(fixture.is_empty());
    }
}

#[test]
fn labels_do_not_go_with_whole_images() {
    let image = two_layers();
    let fixture = Fixture::new();
    let path = fixture.path("archive");
    std::fs::write(&path, saved(&image, &plain_layers(), &["a/b:1"]).finish()).unwrap();
    let options = ImportOptions {
        command: vec!["x".to_owned()],
        ..ImportOptions::default()
    };
    let error = fixture.store.import(&path, None, &options).unwrap_err();
    assert!(matches!(error, ImageError::Inapplicable(_)), "{error}");
}

#[test]
fn a_root_file_system_that_begins_like_an_archive_of_images_is_one() {
    let fixture = Fixture::new();
    let tar = Tar::new().folder("blobs/").file("blobs/x", b"x").finish();
    for archive in [tar.clone(), gzip(&tar)] {
        let images = fixture.import(&archive, Some("my/image:1")).unwrap();
        let lowers = fixture.store.prepare(&images[0].id).unwrap().lowers;
        assert_eq!(std::fs::read(lowers[0].join("blobs/x")).unwrap(), b"x");
    }
    let error = fixture
        .import(&Tar::new().file("x", b"").finish(), None)
        .unwrap_err();
    assert!(error.to_string().contains("give one"), "{error}");
}
