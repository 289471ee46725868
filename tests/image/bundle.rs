//! Images out of files as a layout in a temporary folder, for engines that keep images themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backendai_agent::image::{Bundle, ImportOptions, Store};
use futures_util::TryStreamExt as _;
use tempfile::TempDir;

use super::archives::{layout, packed, plain_layers, saved, spread, two_layers};
use super::support::{Image, Tar, digest, gzip, image, layer, noise, zstd};

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path("archive");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn bundle(&self, path: &Path, name: Option<&str>) -> Bundle {
        let options = ImportOptions::default();
        Bundle::open(path, name, &options, &self.path("scratch")).unwrap()
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(self.path("scratch")).unwrap().count() == 0
    }

    /// Digests of the manifests in the index of a fresh store that takes the same.
    fn stored(&self, path: &Path, name: Option<&str>, options: &ImportOptions) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        store.import(path, name, options).unwrap();
        let index = std::fs::read(root.path().join("images/index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let entries = index["manifests"].as_array().unwrap().iter();
        entries
            .map(|entry| entry["digest"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn oci_files(image: &Image) -> Vec<(String, Vec<u8>)> {
    layout(
        &image.manifest,
        &[("r.io/my/image:1", &image.manifest)],
        &[image],
    )
}

#[test]
fn a_root_file_system_is_the_same_image_in_a_bundle_and_in_the_store_however_it_is_packed() {
    let tar = Tar::new()
        .folder("etc/")
        .file("etc/large", &noise(3 << 20, 1))
        .file("etc/x", b"x")
        .finish();
    let options = ImportOptions {
        env: vec!["A=1".to_owned()],
        command: vec!["sh".to_owned()],
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..ImportOptions::default()
    };
    let fixture = Fixture::new();
    for archive in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let path = fixture.file(&archive);
        let bundle =
            Bundle::open(&path, Some("a/b:1"), &options, &fixture.path("scratch")).unwrap();
        let [image] = bundle.images() else {
            panic!("{bundle:?}");
        };
        let [layer] = image.layers.as_slice() else {
            panic!("{image:?}");
        };
        assert_eq!(
            std::slice::from_ref(&image.manifest_digest),
            fixture.stored(&path, Some("a/b:1"), &options).as_slice()
        );
        assert_eq!(
            (&layer.digest, &layer.diff_id),
            (&digest(&tar), &digest(&tar))
        );
        assert_eq!(
            (layer.size, layer.tar_size),
            (tar.len() as u64, tar.len() as u64)
        );
        assert_eq!(std::fs::read(&layer.path).unwrap(), tar);
        assert_eq!(image.config_digest, digest(&image.config));
        assert_eq!(image.names, ["a/b:1"]);
    }
    assert!(fixture.is_empty());
}

#[test]
fn whole_images_are_the_same_in_a_bundle_and_in_the_store() {
    let source = two_layers();
    let fixture = Fixture::new();
    let archive = saved(&source, &plain_layers(), &["my/image:1", "my/image:2"]).finish();
    let files = oci_files(&source);
    spread(&files, &fixture.path("folder"));
    std::fs::write(fixture.path("docker"), gzip(&archive)).unwrap();
    std::fs::write(fixture.path("oci"), packed(&files)).unwrap();
    for path in ["docker", "oci", "folder"].map(|name| fixture.path(name)) {
        let bundle = fixture.bundle(&path, None);
        let image = &bundle.images()[0];
        assert_eq!(image.config_digest, source.id());
        assert_eq!(image.config, source.config);
        let stored = fixture.stored(&path, None, &ImportOptions::default());
        assert_eq!(
            stored,
            vec![image.manifest_digest.clone(); image.names.len()]
        );
        for layer in &image.layers {
            let blob = std::fs::read(&layer.path).unwrap();
            assert_eq!(
                (digest(&blob), blob.len() as u64),
                (layer.digest.clone(), layer.size)
            );
        }
        // It is a layout itself.
        assert_eq!(
            fixture.stored(bundle.folder(), None, &ImportOptions::default()),
            stored
        );
    }
    assert!(fixture.is_empty());
}

#[test]
fn a_compressed_layer_of_a_layout_stays_as_it_is() {
    let source = two_layers();
    let fixture = Fixture::new();
    let bundle = fixture.bundle(&fixture.file(&packed(&oci_files(&source))), None);
    let image = &bundle.images()[0];
    let digests: Vec<_> = image
        .layers
        .iter()
        .map(|layer| layer.digest.clone())
        .collect();
    assert_eq!(digests, source.layers);
    assert_eq!(image.repo_digest, Some(source.digest()));
    let plain: Vec<_> = image.layers.iter().map(|layer| layer.tar_size).collect();
    assert_eq!(
        plain,
        plain_layers()
            .iter()
            .map(|tar| tar.len() as u64)
            .collect::<Vec<_>>()
    );
}

#[test]
fn what_the_store_refuses_a_bundle_refuses_with_the_same_words() {
    let source = two_layers();
    let mut forged = plain_layers();
    forged[1] = Tar::new().file("b", b"forged").finish();
    let mut damaged = oci_files(&source);
    let blob = damaged
        .iter_mut()
        .find(|(path, _)| path.ends_with(source.layers[0].trim_start_matches("sha256:")))
        .unwrap();
    blob.1[100] ^= 1;
    let whole = layer("a", b"content").0;
    let archives = [
        saved(&source, &forged, &["a/b:1"]).finish(),
        packed(&damaged),
        Tar::new().file("../x", b"x").finish(),
        Tar::new().file("/x", b"x").finish(),
        Tar::new().hard_link("x", "../../x").finish(),
        Tar::new().hard_link("x", "absent").finish(),
        Tar::new().folder("f/").hard_link("x", "f").finish(),
        Tar::new().file("x", b"x").unfinished(),
        gzip(&whole)[..20].to_vec(),
        b"not an archive at all".repeat(100),
        Tar::new()
            .entry(Tar::header(tar::EntryType::new(b'Z'), "x", 0o644), &[])
            .finish(),
    ];
    for archive in archives {
        let fixture = Fixture::new();
        let path = fixture.file(&archive);
        let options = ImportOptions::default();
        let name = Some("my/image:1");
        let store = Store::open(&fixture.path("state")).unwrap();
        let stored = store.import(&path, name, &options).unwrap_err().to_string();
        let bundled = Bundle::open(&path, name, &options, &fixture.path("scratch"))
            .unwrap_err()
            .to_string();
        assert_eq!(bundled, stored);
        assert!(fixture.is_empty(), "after {bundled}");
    }
}

#[test]
fn folders_of_the_dead_are_swept_and_those_of_the_living_stay() {
    let fixture = Fixture::new();
    let left = fixture.path("scratch/bundle-left");
    std::fs::create_dir_all(left.join("blobs")).unwrap();
    let path = fixture.file(&Tar::new().file("x", b"x").finish());
    let first = fixture.bundle(&path, Some("a/b:1"));
    assert!(!left.exists());
    let second = fixture.bundle(&path, Some("a/b:1"));
    assert!(first.folder().join("index.json").exists());
    assert_ne!(first.folder(), second.folder());
    drop((first, second));
    assert!(fixture.is_empty());
}

#[tokio::test]
async fn a_bundled_image_becomes_an_archive_for_docker_with_plain_layers() {
    let twice = layer("a", b"twice");
    let sources = [
        two_layers(),
        image("amd64", &[twice.clone(), layer("b", b"b"), twice]),
    ];
    for source in sources {
        let fixture = Fixture::new();
        let path = fixture.file(&packed(&oci_files(&source)));
        let bundle = Arc::new(fixture.bundle(&path, Some("other/name:2")));
        let mut archive = Vec::new();
        bundle
            .docker_save(&bundle.images()[0], &mut archive)
            .unwrap();
        let streamed: Vec<bytes::Bytes> = bundle.docker_save_stream(0).try_collect().await.unwrap();
        assert_eq!(streamed.concat(), archive);
        let again = fixture.bundle(&fixture.file(&archive), None);
        let [image] = again.images() else {
            panic!("{again:?}");
        };
        assert_eq!(image.config_digest, source.id());
        assert_eq!(image.names, ["other/name:2"]);
        for layer in &image.layers {
            assert_eq!(layer.digest, layer.diff_id);
        }
    }
}

#[test]
fn a_hard_link_through_a_symbolic_link_is_taken() {
    let fixture = Fixture::new();
    let tar = Tar::new()
        .folder("real/")
        .file("real/f", b"f")
        .symlink("way", "real")
        .hard_link("x", "way/f")
        .finish();
    let path = fixture.file(&tar);
    let options = ImportOptions::default();
    assert_eq!(fixture.stored(&path, Some("a/b:1"), &options).len(), 1);
    assert_eq!(fixture.bundle(&path, Some("a/b:1")).images().len(), 1);
}

#[test]
fn an_archive_imported_twice_is_the_same_image() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let fixture = Fixture::new();
    let path = fixture.file(&saved(&two_layers(), &plain_layers(), &["a/b:1"]).finish());
    let import = || {
        store
            .import(&path, None, &ImportOptions::default())
            .unwrap()
    };
    assert_eq!(import(), import());
    assert_eq!(store.images().unwrap().len(), 1);
}
