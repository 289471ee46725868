//! Archives that mean harm, and broken ones: each has its error, and nothing stays.

use std::fs;

use backendai_agent::image::{ImageError, UnpackLimits};
use tar::EntryType;

use crate::tars::{Home, Tar, gzip, small, zstd};

/// Imports and returns the refusal; the store must be empty after it.
async fn refused(home: &Home, data: &[u8]) -> ImageError {
    let error = home
        .import(data, "localhost/bad:1")
        .await
        .expect_err("it must be refused");
    home.assert_empty();
    assert!(
        home.store
            .images()
            .await
            .expect("it can be listed")
            .is_empty()
    );
    error
}

#[tokio::test]
async fn absolute_and_parent_paths_are_refused() {
    let home = Home::new();
    let name = format!("escape-{}", std::process::id());
    for path in [
        format!("/tmp/{name}"),
        format!("../{name}"),
        format!("a/../../{name}"),
        "..".to_owned(),
        "a/..".to_owned(),
    ] {
        let error = refused(&home, &Tar::default().folder("a").file(&path, "x").end()).await;
        assert!(
            matches!(error, ImageError::PathEscapes(_)),
            "{path}: {error}"
        );
    }
    assert!(!std::path::Path::new("/tmp").join(&name).exists());
    let outside = home.dir.path().join("layers/tmp");
    assert!(!outside.join(&name).exists());
}

#[tokio::test]
async fn a_link_out_and_a_file_through_it_leave_the_outside_alone() {
    let home = Home::new();
    let outside = home.dir.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("victim"), "mine").expect("a file");
    let target = outside.to_str().expect("it is text");
    let tar = Tar::default()
        .symlink("way", target)
        .file("way/victim", "theirs")
        .end();
    let error = refused(&home, &tar).await;
    assert!(matches!(error, ImageError::PathEscapes(_)), "{error}");
    let up = format!("{}{}", "../".repeat(20), target);
    let error = refused(
        &home,
        &Tar::default()
            .symlink("way", &up)
            .file("way/victim", "theirs")
            .end(),
    )
    .await;
    assert!(matches!(error, ImageError::PathEscapes(_)), "{error}");
    assert_eq!(
        fs::read(outside.join("victim")).expect("it is there"),
        b"mine"
    );
}

#[tokio::test]
async fn a_folder_swapped_for_a_link_is_not_followed_out() {
    let home = Home::new();
    let outside = home.dir.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    let target = outside.to_str().expect("it is text");
    let tar = Tar::default()
        .folder("d")
        .file("d/first", "1")
        .symlink("d", target)
        .file("d/second", "2")
        .end();
    let error = refused(&home, &tar).await;
    assert!(matches!(error, ImageError::PathEscapes(_)), "{error}");
    assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0);
}

#[tokio::test]
async fn a_file_over_a_link_replaces_the_link_not_its_target() {
    let home = Home::new();
    let victim = home.input("victim", b"mine");
    let tar = Tar::default()
        .symlink("a", victim.to_str().expect("it is text"))
        .file("a", "theirs")
        .end();
    let (root, _held) = home.root(&tar).await;
    assert_eq!(fs::read(&victim).expect("it is there"), b"mine");
    assert!(
        fs::symlink_metadata(root.join("a"))
            .expect("it is there")
            .is_file()
    );
}

#[tokio::test]
async fn folder_entries_over_links_do_not_change_what_is_outside() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let home = Home::new();
    let outside = home.dir.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let tar = Tar::default()
        .symlink("d", outside.to_str().expect("it is text"))
        .entry(EntryType::Directory, "d", "", 0o777, b"")
        .end();
    let (root, _held) = home.root(&tar).await;
    assert_eq!(
        fs::metadata(&outside).expect("it is there").mode() & 0o777,
        0o700
    );
    assert!(
        fs::symlink_metadata(root.join("d"))
            .expect("it is there")
            .is_dir()
    );
}

#[tokio::test]
async fn hard_links_out_of_the_root_or_to_nothing_are_refused() {
    let home = Home::new();
    for target in [
        "/etc/passwd",
        "../../../etc/passwd",
        "nothing",
        "d",
        "d/nothing",
        "no/thing",
    ] {
        let error = refused(
            &home,
            &Tar::default().folder("d").hard_link("l", target).end(),
        )
        .await;
        assert!(
            matches!(error, ImageError::BadHardLink { .. }),
            "{target}: {error}"
        );
    }
    let tar = Tar::default()
        .symlink("e", "/etc")
        .hard_link("l", "e/passwd")
        .end();
    let error = refused(&home, &tar).await;
    assert!(matches!(error, ImageError::BadHardLink { .. }), "{error}");
}

#[tokio::test]
async fn a_hard_link_to_a_link_links_the_link() {
    let home = Home::new();
    let tar = Tar::default()
        .symlink("s", "/etc/passwd")
        .hard_link("h", "s")
        .file("h", "x")
        .end();
    let (root, _held) = home.root(&tar).await;
    assert_eq!(fs::read(root.join("h")).expect("it is there"), b"x");
}

#[tokio::test]
async fn whiteouts_of_dots_are_refused() {
    let home = Home::new();
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        let error = refused(&home, &Tar::default().folder("d").file(name, "").end()).await;
        assert!(
            matches!(error, ImageError::PathEscapes(_)),
            "{name}: {error}"
        );
    }
}

#[tokio::test]
async fn too_many_bytes_are_refused_before_they_are_written() {
    let home = Home::with(UnpackLimits {
        bytes: 1 << 20,
        entries: 100,
    });
    let big = vec![0; 2 << 20];
    let tar = Tar::default()
        .entry(EntryType::Regular, "zeros", "", 0o644, &big)
        .end();
    for data in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let error = refused(&home, &data).await;
        assert!(
            matches!(error, ImageError::TooLarge { limit } if limit == 1 << 20),
            "{error}"
        );
    }
    let halves = Tar::default()
        .entry(EntryType::Regular, "a", "", 0o644, &big[..600_000])
        .entry(EntryType::Regular, "b", "", 0o644, &big[..600_000])
        .end();
    let error = refused(&home, &halves).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_bomb_behind_the_end_mark_is_refused() {
    let home = Home::with(UnpackLimits {
        bytes: 1 << 20,
        entries: 100,
    });
    let mut tar = small();
    tar.resize(8 << 20, 0);
    let error = refused(&home, &gzip(&tar)).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn too_many_entries_are_refused() {
    let home = Home::with(UnpackLimits {
        bytes: 1 << 20,
        entries: 10,
    });
    let mut tar = Tar::default();
    for n in 0..11 {
        tar = tar.file(&format!("f{n}"), "");
    }
    let error = refused(&home, &tar.end()).await;
    assert!(
        matches!(error, ImageError::TooManyEntries { limit: 10 }),
        "{error}"
    );
}

#[tokio::test]
async fn an_extended_header_of_any_length_does_not_fill_the_memory() {
    let home = Home::new();
    let data = vec![b'a'; 2 << 20];
    let tar = Tar::default()
        .entry(EntryType::GNULongName, "././@LongLink", "", 0, &data)
        .file("short", "")
        .end();
    let error = refused(&home, &tar).await;
    assert!(matches!(error, ImageError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn truncated_archives_are_refused_wherever_they_end() {
    let home = Home::new();
    let whole = Tar::default()
        .folder("d")
        .file("d/f", &"x".repeat(3000))
        .end();
    // In a header, in the data, in the padding, at a border of entries.
    for length in [100, 512, 700, 1024, 2000, 4050] {
        let error = refused(&home, &whole[..length]).await;
        assert!(
            matches!(error, ImageError::Truncated(_)),
            "{length}: {error}"
        );
    }
    let packed = gzip(&whole);
    let error = refused(&home, &packed[..packed.len() - 10]).await;
    assert!(matches!(error, ImageError::Truncated(_)), "{error}");
    let packed = zstd(&whole);
    let error = refused(&home, &packed[..packed.len() - 10]).await;
    assert!(matches!(error, ImageError::Truncated(_)), "{error}");
    let error = refused(&home, &Tar::default().file("f", "x").cut()).await;
    assert!(matches!(error, ImageError::Truncated(_)), "{error}");
    let error = refused(&home, b"").await;
    assert!(matches!(error, ImageError::Truncated(_)), "{error}");
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    let home = Home::new();
    let error = refused(&home, &[b'x'; 4096]).await;
    assert!(matches!(error, ImageError::Malformed { .. }), "{error}");
    let mut packed = gzip(&small());
    let middle = packed.len() / 2;
    packed[middle] ^= 0xff;
    let error = refused(&home, &packed).await;
    assert!(
        matches!(
            error,
            ImageError::Malformed { .. } | ImageError::Truncated(_)
        ),
        "{error}"
    );
    let error = refused(&home, b"\xfd7zXZ\0 and so on").await;
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
    let sparse = Tar::default()
        .entry(EntryType::GNUSparse, "s", "", 0o644, b"")
        .end();
    let error = refused(&home, &sparse).await;
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
}

#[tokio::test]
async fn paths_that_no_file_system_takes_are_refused() {
    let home = Home::new();
    let deep = "d/".repeat(600);
    let long = "n".repeat(300);
    for path in [deep, long] {
        let tar = Tar::default()
            .pax(&[("path", path.as_bytes())])
            .file("x", "")
            .end();
        let error = refused(&home, &tar).await;
        assert!(matches!(error, ImageError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn link_loops_are_refused() {
    let home = Home::new();
    let tar = Tar::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "")
        .end();
    let error = refused(&home, &tar).await;
    assert!(matches!(error, ImageError::PathEscapes(_)), "{error}");
}
