//! Archives made to do harm: each is refused by a named error, and the store is then as before.

use std::path::Path;

use backendai_agent::image::{ImageError, ImportOptions, Limits, Store};
use tar::EntryType;

use super::support::{Tar, gzip, remains};

/// Imports the archive into a fresh store beside a file that must stay as it is.
fn refused(archive: &[u8], limits: Limits) -> ImageError {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    std::fs::write(&outside, "untouched").unwrap();
    let root = folder.path().join("state");
    let store = Store::open_with(&root, limits).unwrap();
    let path = folder.path().join("archive");
    std::fs::write(&path, archive).unwrap();
    let error = store
        .import(&path, Some("my/image:1"), &ImportOptions::default())
        .expect_err("the archive must be refused");
    assert_eq!(remains(&root), Vec::<String>::new(), "after {error}");
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    error
}

#[test]
fn an_absolute_path_is_refused() {
    let error = refused(&Tar::new().file("/etc/x", b"x").finish(), Limits::default());
    assert!(matches!(error, ImageError::EscapesRoot(path) if path == "/etc/x"));
}

#[test]
fn a_path_with_two_dots_is_refused() {
    for path in ["../outside", "a/../../outside", "a/..", "./.."] {
        let error = refused(&Tar::new().file(path, b"x").finish(), Limits::default());
        assert!(
            matches!(&error, ImageError::EscapesRoot(found) if found == path),
            "{error}"
        );
    }
}

#[test]
fn a_path_with_two_dots_in_a_pax_header_is_refused() {
    let archive = Tar::new()
        .pax(&[("path", b"../outside")])
        .file("x", b"x")
        .finish();
    let error = refused(&archive, Limits::default());
    assert!(matches!(error, ImageError::EscapesRoot(path) if path == "../outside"));
}

#[test]
fn a_hard_link_out_of_the_root_is_refused() {
    for target in ["../../outside", "/etc/passwd"] {
        let error = refused(
            &Tar::new().hard_link("x", target).finish(),
            Limits::default(),
        );
        assert!(
            matches!(error, ImageError::LinkEscapesRoot { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_hard_link_through_a_symbolic_link_stays_inside() {
    let archive = Tar::new()
        .symlink("up", "../../..")
        .hard_link("x", "up/outside")
        .finish();
    let error = refused(&archive, Limits::default());
    assert!(matches!(error, ImageError::BrokenLink { .. }), "{error}");
}

#[test]
fn a_hard_link_to_nothing_is_refused() {
    let error = refused(&Tar::new().hard_link("x", "y").finish(), Limits::default());
    assert!(matches!(error, ImageError::BrokenLink { .. }), "{error}");
}

#[test]
fn a_file_below_a_file_is_refused() {
    let archive = Tar::new().file("a", b"").file("a/b", b"").finish();
    let error = refused(&archive, Limits::default());
    assert!(matches!(error, ImageError::NotAFolder(path) if path == "a/b"));
}

#[test]
fn a_file_below_a_loop_of_links_is_refused() {
    let archive = Tar::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", b"")
        .finish();
    let error = refused(&archive, Limits::default());
    assert!(matches!(error, ImageError::NotAFolder(path) if path == "a/x"));
}

#[test]
fn files_written_through_links_stay_inside() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let absolute = outside.to_str().unwrap().to_owned();
    let inside = absolute.trim_start_matches('/').to_owned();
    let store = Store::open(&folder.path().join("state")).unwrap();
    let archive = Tar::new()
        .folder(&inside)
        .symlink("absolute", &absolute)
        .file("absolute/one", b"1")
        .symlink("final", &format!("{absolute}/two"))
        .file("final", b"2")
        .finish();
    let path = folder.path().join("archive.tar");
    std::fs::write(&path, archive).unwrap();
    store
        .import(&path, Some("my/image:1"), &ImportOptions::default())
        .unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    let lower = store.prepare("my/image:1").unwrap().lowers.remove(0);
    assert_eq!(std::fs::read(lower.join(inside).join("one")).unwrap(), b"1");
    assert!(lower.join("final").symlink_metadata().unwrap().is_file());
}

#[test]
fn too_many_bytes_are_refused() {
    let limits = Limits {
        bytes: 1000,
        ..Limits::default()
    };
    let archive = Tar::new()
        .file("a", &[1; 600])
        .file("b", &[1; 600])
        .finish();
    let error = refused(&archive, limits);
    assert!(
        matches!(error, ImageError::TooManyBytes { limit: 1000, .. }),
        "{error}"
    );
}

#[test]
fn a_size_in_the_header_beyond_the_limit_is_refused_before_it_is_read() {
    let mut header = Tar::header(EntryType::Regular, "a", 0o644);
    header.set_size(1 << 40);
    header.set_cksum();
    let error = refused(header.as_bytes(), Limits::default());
    assert!(matches!(error, ImageError::TooManyBytes { .. }), "{error}");
}

#[test]
fn too_many_entries_are_refused() {
    let limits = Limits {
        entries: 3,
        ..Limits::default()
    };
    let archive = Tar::new()
        .folder("a")
        .folder("b")
        .folder("c")
        .folder("d")
        .finish();
    let error = refused(&archive, limits);
    assert!(
        matches!(error, ImageError::TooManyEntries { limit: 3, .. }),
        "{error}"
    );
}

#[test]
fn endless_padding_is_refused() {
    let limits = Limits {
        bytes: 1 << 20,
        ..Limits::default()
    };
    let mut archive = Tar::new().file("a", b"a").finish();
    archive.resize(4 << 20, 0);
    let error = refused(&gzip(&archive), limits);
    assert!(matches!(error, ImageError::TooManyBytes { .. }), "{error}");
}

#[test]
fn a_name_of_many_megabytes_is_refused() {
    let long = vec![b'n'; 8 << 20];
    let header = Tar::header(EntryType::GNULongName, "././@LongLink", 0o644);
    let archive = Tar::new()
        .file("first", b"")
        .entry(header, &long)
        .file("x", b"")
        .finish();
    let error = refused(&gzip(&archive), Limits::default());
    assert!(matches!(error, ImageError::Malformed { .. }), "{error}");
}

#[test]
fn an_archive_cut_anywhere_is_refused() {
    let whole = Tar::new().folder("a").file("a/b", &[7; 3000]).unfinished();
    for length in [100, 512, 600, 1024, 1500, 4000, whole.len()] {
        let error = refused(&whole[..length], Limits::default());
        assert!(
            matches!(error, ImageError::Truncated(_)),
            "at {length}: {error}"
        );
    }
}

#[test]
fn a_compressed_archive_cut_in_the_middle_is_refused() {
    let whole = gzip(
        &Tar::new()
            .file("a/b", &super::support::noise(3000, 9))
            .finish(),
    );
    let error = refused(&whole[..whole.len() / 2], Limits::default());
    assert!(matches!(error, ImageError::Truncated(_)), "{error}");
}

#[test]
fn what_is_no_archive_is_refused() {
    for bytes in [b"hello".as_slice(), &[b'x'; 4096], b""] {
        let error = refused(bytes, Limits::default());
        assert!(
            matches!(
                error,
                ImageError::Malformed { .. } | ImageError::Truncated(_)
            ),
            "{error}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let error = store
        .import(
            Path::new("/nowhere/x.tar"),
            Some("a/b:1"),
            &ImportOptions::default(),
        )
        .unwrap_err();
    assert!(error.to_string().contains("/nowhere/x.tar"), "{error}");
}
