//! Root file systems: what is in the tar is in the layer, and the image is the same each time.

use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use backendai_agent::image::{ImageError, ImportOptions, Store};
use backendai_agent::runtime::{ImageInfo, ImageStore as _, RuntimeError};
use tar::EntryType;
use tempfile::TempDir;

use super::support::{Tar, architectures, gzip, remains, zstd};

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

    fn import(
        &self,
        archive: &[u8],
        name: &str,
        options: &ImportOptions,
    ) -> Result<ImageInfo, ImageError> {
        let path = self.folder.path().join("archive");
        std::fs::write(&path, archive).unwrap();
        let mut images = self.store.import(&path, Some(name), options)?;
        assert_eq!(images.len(), 1);
        Ok(images.remove(0))
    }

    /// The folder of an archive's layer.
    fn layer(&self, archive: &[u8]) -> PathBuf {
        self.import(archive, "my/image:1", &ImportOptions::default())
            .unwrap();
        self.store.prepare("my/image:1").unwrap().lowers.remove(0)
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(path, name).unwrap()
}

#[test]
fn files_keep_owner_mode_time_and_links() {
    let mut suid = Tar::header(EntryType::Regular, "bin/su", 0o4755);
    suid.set_uid(12);
    suid.set_gid(34);
    let mut sticky = Tar::header(EntryType::Directory, "tmp/", 0o1777);
    sticky.set_mtime(5);
    let fixture = Fixture::new();
    let layer = fixture.layer(
        &Tar::new()
            .entry(Tar::header(EntryType::Directory, "./", 0o750), &[])
            .entry(sticky, &[])
            .file("tmp/x", b"later than its folder")
            .entry(suid, b"su")
            .hard_link("bin/su2", "bin/su")
            .symlink("link", "../../anywhere")
            .entry(Tar::header(EntryType::Fifo, "pipe", 0o600), &[])
            .finish(),
    );
    let su = layer.join("bin/su").metadata().unwrap();
    assert_eq!((su.uid(), su.gid(), su.mode() & 0o7777), (12, 34, 0o4755));
    assert_eq!((su.mtime(), su.nlink()), (1_000_000_000, 2));
    assert_eq!(layer.join("bin/su2").metadata().unwrap().ino(), su.ino());
    let tmp = layer.join("tmp").metadata().unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 5));
    assert_eq!(layer.metadata().unwrap().mode() & 0o7777, 0o750);
    assert_eq!(
        layer.join("link").read_link().unwrap(),
        Path::new("../../anywhere")
    );
    assert!(layer.join("pipe").metadata().unwrap().file_type().is_fifo());
}

#[test]
fn device_nodes_are_made() {
    let mut null = Tar::header(EntryType::Char, "dev/null", 0o666);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let fixture = Fixture::new();
    let layer = fixture.layer(&Tar::new().entry(null, &[]).finish());
    let metadata = layer.join("dev/null").metadata().unwrap();
    assert!(metadata.file_type().is_char_device());
    assert_eq!(metadata.rdev(), rustix::fs::makedev(1, 3));
}

#[test]
fn only_harmless_attributes_are_kept() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let fixture = Fixture::new();
    let layer = fixture.layer(
        &Tar::new()
            .pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.note", b"hello"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ("mtime", b"77.5"),
            ])
            .file("ping", b"x")
            .finish(),
    );
    let ping = layer.join("ping");
    assert_eq!(xattr(&ping, "security.capability").unwrap(), capability);
    assert_eq!(xattr(&ping, "user.note").unwrap(), b"hello");
    assert_eq!(xattr(&ping, "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&ping, "user.overlay.opaque"), None);
    let metadata = ping.metadata().unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (77, 500_000_000));
}

#[test]
fn whiteouts_become_the_overlays_own() {
    let fixture = Fixture::new();
    let layer = fixture.layer(
        &Tar::new()
            .folder("a/")
            .file("a/.wh.gone", b"")
            .folder("b/")
            .file("b/.wh..wh..opq", b"")
            .file("b/new", b"n")
            .folder("c/d/")
            .file("c/.wh.d", b"")
            .file(".wh.e", b"")
            .folder("e/")
            .finish(),
    );
    let gone = layer.join("a/gone").metadata().unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    for opaque in ["b", "c/d", "e"] {
        let value = xattr(&layer.join(opaque), "trusted.overlay.opaque");
        assert_eq!(value.as_deref(), Some(b"y".as_slice()), "{opaque}");
    }
    assert!(layer.join("b/new").is_file());
    assert!(!layer.join("a/.wh.gone").exists());
}

#[test]
fn the_layers_show_one_tree_when_they_are_mounted() {
    let fixture = Fixture::new();
    let lower = fixture.layer(
        &Tar::new()
            .file("a", b"a")
            .file("d/old", b"o")
            .file("e/old", b"o")
            .file("keep", b"k")
            .finish(),
    );
    let upper = fixture.layer(
        &Tar::new()
            .file(".wh.a", b"")
            .folder("d/")
            .file("d/.wh..wh..opq", b"")
            .file("d/new", b"n")
            .file("e/.wh.old", b"")
            .finish(),
    );
    let target = fixture.folder.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg("mount -t overlay -o lowerdir=\"$0\":\"$1\" overlay \"$2\"; cd \"$2\"; find . | sort | xargs")
        .args([&upper, &lower, &target])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        ". ./d ./d/new ./e ./keep"
    );
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let fixture = Fixture::new();
    let layer = fixture.layer(
        &Tar::new()
            .file("a/b/c", b"1")
            .file("a", b"now a file")
            .symlink("s", "a")
            .folder("s/")
            .file("s/x", b"2")
            .finish(),
    );
    assert_eq!(std::fs::read(layer.join("a")).unwrap(), b"now a file");
    assert!(layer.join("s").symlink_metadata().unwrap().is_dir());
    assert_eq!(std::fs::read(layer.join("s/x")).unwrap(), b"2");
}

#[tokio::test]
async fn the_same_tar_makes_the_same_image_however_it_is_compressed() {
    let tar = Tar::new().file("bin/x", b"x").finish();
    let options = ImportOptions {
        labels: [("b", "2"), ("a", "1"), ("c", "3")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into_iter()
            .collect(),
        env: vec!["P=/bin".to_owned()],
        command: vec!["/bin/x".to_owned(), "-v".to_owned()],
        workdir: Some("/w".to_owned()),
        user: Some("1:1".to_owned()),
        volumes: vec!["/v".to_owned()],
        architecture: None,
    };
    let mut ids = Vec::new();
    for archive in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let fixture = Fixture::new();
        let image = fixture
            .import(&archive, "r.io:5000/my/image:1", &options)
            .unwrap();
        assert_eq!(image.names, ["r.io:5000/my/image:1"]);
        assert_eq!(image.labels["a"], "1");
        assert_eq!(image.env, ["P=/bin"]);
        assert_eq!(image.command, ["/bin/x", "-v"]);
        assert_eq!((image.size, image.repo_digest.clone()), (1, None));
        for name in ["r.io:5000/my/image:1", &image.id] {
            assert_eq!(fixture.store.inspect(name).await.unwrap(), image);
        }
        let prepared = fixture.store.prepare(&image.id).unwrap();
        let config = prepared.config.config().clone().unwrap();
        assert_eq!(config.working_dir().as_deref(), Some("/w"));
        assert_eq!(config.user().as_deref(), Some("1:1"));
        ids.push(image.id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn an_absent_image_is_missing() {
    let fixture = Fixture::new();
    for name in ["my/image:1", &format!("sha256:{}", "0".repeat(64))] {
        let error = fixture.store.inspect(name).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::ImageMissing(found) if found == name));
    }
    let error = fixture.store.inspect("NO/name").await.unwrap_err();
    assert!(matches!(error, RuntimeError::Invalid(_)));
}

#[tokio::test]
async fn an_image_of_the_default_registry_is_found_by_all_its_names() {
    let fixture = Fixture::new();
    let plain = ImportOptions::default();
    let image = fixture
        .import(&Tar::new().folder("a").finish(), "lablup/python:3", &plain)
        .unwrap();
    for name in [
        "lablup/python:3",
        "index.docker.io/lablup/python:3",
        "docker.io/lablup/python:3",
    ] {
        assert_eq!(fixture.store.inspect(name).await.unwrap(), image);
    }
    for name in [
        "lablup/python:4",
        "r.io/lablup/python:3",
        "index.docker.io/lablup/python",
    ] {
        assert!(fixture.store.inspect(name).await.is_err(), "{name}");
    }
}

#[test]
fn other_users_cannot_reach_the_programs_of_images() {
    let fixture = Fixture::new();
    let layer = fixture.layer(&Tar::new().folder("a").finish());
    assert_eq!(
        layer.parent().unwrap().metadata().unwrap().mode() & 0o7777,
        0o700
    );
}

#[test]
fn an_image_of_another_architecture_cannot_be_prepared() {
    let (this, other) = architectures();
    let fixture = Fixture::new();
    let options = ImportOptions {
        architecture: Some(other.to_owned()),
        ..ImportOptions::default()
    };
    fixture
        .import(&Tar::new().folder("a").finish(), "my/image:1", &options)
        .unwrap();
    let error = fixture.store.prepare("my/image:1").unwrap_err();
    assert!(matches!(&error, ImageError::WrongArchitecture { .. }));
    let text = error.to_string();
    assert!(
        text.contains(this) && text.contains(other) && text.contains("my/image:1"),
        "{text}"
    );
}

#[test]
fn a_removed_image_leaves_nothing_and_shared_layers_stay() {
    let fixture = Fixture::new();
    let root = fixture.folder.path().join("state");
    let tar = Tar::new().file("x", b"x").finish();
    let plain = ImportOptions::default();
    let labelled = ImportOptions {
        labels: [("a".to_owned(), "b".to_owned())].into_iter().collect(),
        ..ImportOptions::default()
    };
    let one = fixture.import(&tar, "my/one:1", &plain).unwrap();
    fixture.import(&tar, "my/alias:1", &plain).unwrap();
    fixture.import(&tar, "my/two:1", &labelled).unwrap();
    let error = fixture
        .store
        .remove(&one.id, &["my/alias:1".to_owned()])
        .unwrap_err();
    assert!(matches!(error, ImageError::InUse(_)));
    fixture
        .store
        .remove("my/one:1", &["my/alias:1".to_owned()])
        .unwrap();
    let error = fixture.store.remove("my/alias:1", &[one.id]).unwrap_err();
    assert!(matches!(error, ImageError::InUse(_)));
    fixture.store.remove("my/alias:1", &[]).unwrap();
    assert_eq!(fixture.store.prepare("my/two:1").unwrap().lowers.len(), 1);
    fixture.store.remove("my/two:1", &[]).unwrap();
    assert!(matches!(
        fixture.store.remove("my/two:1", &[]),
        Err(ImageError::Missing(_))
    ));
    assert_eq!(remains(&root), ["images/index.json"]);
}

#[test]
fn an_image_that_is_mounted_anywhere_is_not_removed() {
    let fixture = Fixture::new();
    let layer = fixture.layer(&Tar::new().file("x", b"x").finish());
    let target = fixture.folder.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let mut child = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-ec",
            "mount -t overlay -o lowerdir=\"$0\":\"$1\" overlay \"$1\"; echo; read x || true",
        ])
        .args([&layer, &target])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    let error = fixture.store.remove("my/image:1", &[]).unwrap_err();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(matches!(error, ImageError::InUse(_)), "{error}");
    fixture.store.remove("my/image:1", &[]).unwrap();
    assert!(!layer.exists());
}

#[test]
fn an_image_that_lost_its_name_stays_until_it_is_removed() {
    let fixture = Fixture::new();
    let plain = ImportOptions::default();
    let old = fixture
        .import(&Tar::new().file("x", b"1").finish(), "my/image:1", &plain)
        .unwrap();
    let new = fixture
        .import(&Tar::new().file("x", b"2").finish(), "my/image:1", &plain)
        .unwrap();
    assert_eq!(fixture.store.prepare("my/image:1").unwrap().info.id, new.id);
    let nameless = fixture.store.prepare(&old.id).unwrap();
    assert_eq!(nameless.info.names, Vec::<String>::new());
    assert_eq!(std::fs::read(nameless.lowers[0].join("x")).unwrap(), b"1");
    fixture.store.remove(&old.id, &[]).unwrap();
    assert!(!nameless.lowers[0].exists());
}

#[test]
fn leftovers_of_a_crash_are_cleaned_when_the_store_opens() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path()).unwrap());
    std::fs::create_dir_all(folder.path().join("layers/.tmp-1/deep/er")).unwrap();
    std::fs::write(folder.path().join("images/.tmp-2"), "x").unwrap();
    let unused = "0".repeat(64);
    std::fs::write(folder.path().join("images/blobs/sha256").join(&unused), "x").unwrap();
    std::fs::create_dir(folder.path().join("layers").join(&unused)).unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.images().unwrap(), []);
    assert_eq!(remains(folder.path()), Vec::<String>::new());
}
