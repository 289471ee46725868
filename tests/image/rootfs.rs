//! What comes out of a root file system's archive.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use backendai_agent::image::{ImageError, ImportOptions, RootfsOptions};
use tar::EntryType;

use crate::tars::{Home, Tar, gzip, small, zstd};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn files_keep_their_contents_modes_and_times() {
    let home = Home::new();
    let tar = Tar::default()
        .folder("bin")
        .entry(EntryType::Regular, "bin/su", "", 0o4755, b"#!")
        .folder("tmp")
        .entry(EntryType::Directory, "tmp", "", 0o1777, b"")
        .end();
    let (root, _held) = home.root(&tar).await;
    let su = fs::metadata(root.join("bin/su")).expect("it is there");
    assert_eq!(su.mode() & 0o7777, 0o4755);
    assert_eq!(su.mtime(), 1_500_000_000);
    assert_eq!(
        fs::read(root.join("bin/su")).expect("it can be read"),
        b"#!"
    );
    let bin = fs::metadata(root.join("bin")).expect("it is there");
    assert_eq!(bin.mtime(), 1_500_000_000);
    assert_eq!(
        fs::metadata(root.join("tmp")).expect("it is there").mode() & 0o7777,
        0o1777
    );
    assert_eq!(
        fs::metadata(&root).expect("it is there").mode() & 0o7777,
        0o755
    );
}

#[tokio::test]
async fn links_lead_where_they_say_and_hard_links_share_a_file() {
    let home = Home::new();
    let tar = Tar::default()
        .folder("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/a", "a")
        .hard_link("b", "usr/lib/a")
        .hard_link("c", "./lib/a")
        .symlink("out", "/etc/passwd")
        .end();
    let (root, _held) = home.root(&tar).await;
    let inode = |name: &str| fs::metadata(root.join(name)).expect("it is there").ino();
    assert_eq!(inode("usr/lib/a"), inode("b"));
    assert_eq!(inode("usr/lib/a"), inode("c"));
    assert_eq!(
        fs::read_link(root.join("lib")).expect("a link").to_str(),
        Some("usr/lib")
    );
    assert_eq!(
        fs::read_link(root.join("out")).expect("a link").to_str(),
        Some("/etc/passwd")
    );
}

#[tokio::test]
async fn an_absolute_link_in_the_middle_of_a_path_stays_below_the_root() {
    let home = Home::new();
    let tar = Tar::default()
        .folder("data")
        .symlink("link", "/data")
        .file("link/inside", "x")
        .symlink("up", "../../../../data")
        .file("up/too", "y")
        .end();
    let (root, _held) = home.root(&tar).await;
    assert_eq!(
        fs::read(root.join("data/inside")).expect("it is there"),
        b"x"
    );
    assert_eq!(fs::read(root.join("data/too")).expect("it is there"), b"y");
}

#[tokio::test]
async fn a_later_entry_replaces_an_earlier_one() {
    let home = Home::new();
    let tar = Tar::default()
        .file("a", "old")
        .file("a", "new")
        .folder("d")
        .file("d/x", "x")
        .file("d", "now a file")
        .symlink("l", "nowhere")
        .folder("l")
        .file("l/y", "y")
        .end();
    let (root, _held) = home.root(&tar).await;
    assert_eq!(fs::read(root.join("a")).expect("it is there"), b"new");
    assert_eq!(
        fs::read(root.join("d")).expect("it is there"),
        b"now a file"
    );
    assert_eq!(fs::read(root.join("l/y")).expect("it is there"), b"y");
}

#[tokio::test]
async fn whiteouts_become_devices_and_opaque_folders_attributes() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let tar = Tar::default()
        .folder("d")
        .file("d/.wh.gone", "")
        .folder("o")
        .file("o/.wh..wh..opq", "")
        .file("o/new", "n")
        .file(".wh.again", "")
        .folder("again")
        .end();
    let (root, _held) = home.root(&tar).await;
    let gone = fs::symlink_metadata(root.join("d/gone")).expect("it is there");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |name: &str| {
        xattr::get(root.join(name), "trusted.overlay.opaque").expect("it can be asked")
    };
    assert_eq!(opaque("o").as_deref(), Some(b"y".as_slice()));
    assert_eq!(opaque("again").as_deref(), Some(b"y".as_slice()));
    assert_eq!(opaque("d"), None);
    assert!(!root.join("o/.wh..wh..opq").exists());
}

#[tokio::test]
async fn attributes_owners_pipes_and_devices_are_made() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"kept"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("uid", b"1234"),
            ("mtime", b"1600000000.25"),
        ])
        .file("ping", "elf")
        .entry(EntryType::Fifo, "pipe", "", 0o600, b"")
        .entry(EntryType::Char, "null", "", 0o666, b"")
        .end();
    let (root, _held) = home.root(&tar).await;
    let ping = root.join("ping");
    let attribute = |name: &str| xattr::get(&ping, name).expect("it can be asked");
    assert_eq!(
        attribute("security.capability").as_deref(),
        Some(capability.as_slice())
    );
    assert_eq!(attribute("user.note").as_deref(), Some(b"kept".as_slice()));
    assert_eq!(attribute("trusted.overlay.redirect"), None);
    assert_eq!(attribute("user.overlay.redirect"), None);
    let meta = fs::metadata(&ping).expect("it is there");
    assert_eq!(
        (meta.uid(), meta.mtime(), meta.mtime_nsec()),
        (1234, 1_600_000_000, 250_000_000)
    );
    assert!(
        fs::symlink_metadata(root.join("pipe"))
            .expect("it is there")
            .file_type()
            .is_fifo()
    );
    let null = fs::symlink_metadata(root.join("null")).expect("it is there");
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(null.mode() & 0o777, 0o666);
}

#[tokio::test]
async fn long_names_of_both_kinds_are_read() {
    let home = Home::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let longer = format!("{}/{}", "e".repeat(120), "g".repeat(200));
    let tar = Tar::default()
        .entry(
            EntryType::GNULongName,
            "././@LongLink",
            "",
            0,
            format!("{long}\0").as_bytes(),
        )
        .file("short", "gnu")
        .pax(&[("path", longer.as_bytes())])
        .file("short", "pax")
        .end();
    let (root, _held) = home.root(&tar).await;
    assert_eq!(fs::read(root.join(&long)).expect("it is there"), b"gnu");
    assert_eq!(fs::read(root.join(&longer)).expect("it is there"), b"pax");
}

#[tokio::test]
async fn plain_gzip_and_zstd_give_the_same_layer() {
    let home = Home::new();
    let mut lowers = Vec::new();
    for (n, data) in [small(), gzip(&small()), zstd(&small())]
        .into_iter()
        .enumerate()
    {
        let name = format!("localhost/kind:{n}");
        home.import(&data, &name).await.expect("it is good");
        lowers.push(home.store.prepare(&name).await.expect("it is there").lowers);
    }
    assert_eq!(lowers[0], lowers[1]);
    assert_eq!(lowers[0], lowers[2]);
}

#[tokio::test]
async fn options_become_the_config_and_the_same_input_the_same_digests() {
    let (one, two) = (Home::new(), Home::new());
    let options = |labels: [(&str, &str); 2]| ImportOptions {
        name: Some("example.com:5000/lab/python:3.6".to_owned()),
        rootfs: RootfsOptions {
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
            env: vec!["LANG=C".to_owned()],
            command: vec!["/bin/sh".to_owned(), "-l".to_owned()],
            working_dir: Some("/home".to_owned()),
            user: Some("1000".to_owned()),
            architecture: None,
        },
    };
    let a = [("ai.backend.kernelspec", "1"), ("b", "2")];
    let first = one
        .store
        .import(&one.input("r.tar", &small()), options(a))
        .await
        .expect("good");
    let second = two
        .store
        .import(&two.input("r.tar", &small()), options([a[1], a[0]]))
        .await
        .expect("good");
    assert_eq!(first, second);
    let info = &first[0];
    assert_eq!(info.names, ["example.com:5000/lab/python:3.6"]);
    assert_eq!(info.labels["ai.backend.kernelspec"], "1");
    assert_eq!(info.env, ["LANG=C"]);
    assert_eq!(info.command, ["/bin/sh", "-l"]);
    assert_eq!(info.size, 5);
    let prepared = one.store.prepare(&info.id).await.expect("found by its id");
    let config = prepared.config.config().clone().expect("it has one");
    assert_eq!(config.working_dir().as_deref(), Some("/home"));
    assert_eq!(config.user().as_deref(), Some("1000"));
}

#[tokio::test]
async fn an_image_of_another_architecture_is_kept_but_not_prepared() {
    let home = Home::new();
    let options = ImportOptions {
        name: Some("localhost/other:1".to_owned()),
        rootfs: RootfsOptions {
            architecture: Some("s390x".to_owned()),
            ..Default::default()
        },
    };
    home.store
        .import(&home.input("r.tar", &small()), options)
        .await
        .expect("it is good");
    let error = home
        .store
        .prepare("localhost/other:1")
        .await
        .expect_err("it cannot run");
    assert!(
        matches!(error, ImageError::WrongArchitecture { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn a_root_file_system_needs_a_name() {
    let home = Home::new();
    let path = home.input("r.tar", &small());
    let error = home
        .store
        .import(&path, ImportOptions::default())
        .await
        .expect_err("no name");
    assert!(matches!(error, ImageError::InvalidRequest(_)), "{error}");
    home.assert_empty();
}
