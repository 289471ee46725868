//! Files of a kernel: upload, download, listing, and that no path leads out.

use std::io::Read;
use std::os::unix::fs::symlink;

use backendai_agent::agent::AgentError;
use backendai_agent::agent::request::{FileListing, Reply, Request};
use bytes::Bytes;

use crate::node::{TestNode, id};

async fn upload(node: &TestNode, name: &str, data: &str) -> Result<Reply, AgentError> {
    let request = Request::UploadFile {
        kernel: id("k1"),
        filename: name.to_owned(),
        data: Bytes::copy_from_slice(data.as_bytes()),
    };
    node.handle(request).await
}

async fn download(node: &TestNode, path: &str) -> Result<Bytes, AgentError> {
    let request = Request::DownloadFile {
        kernel: id("k1"),
        filepath: path.to_owned(),
    };
    match node.handle(request).await? {
        Reply::Archive(bytes) => Ok(bytes),
        other => panic!("a download is answered by {other:?}"),
    }
}

async fn list(node: &TestNode, path: &str) -> FileListing {
    let request = Request::ListFiles {
        kernel: id("k1"),
        path: path.to_owned(),
    };
    match node.handle(request).await {
        Ok(Reply::Files(listing)) => listing,
        other => panic!("a listing is answered by {other:?}"),
    }
}

#[tokio::test]
async fn an_uploaded_file_is_below_the_work_folder() {
    let node = TestNode::new().await;
    node.create("k1").await;
    upload(&node, "a/b/c.txt", "first").await.expect("written");
    upload(&node, "/home/work/a/b/c.txt", "2")
        .await
        .expect("written");
    let file = node.scratch("k1").join("work/a/b/c.txt");
    assert_eq!(std::fs::read_to_string(file).expect("there"), "2");
}

#[tokio::test]
async fn an_upload_does_not_leave_the_work_folder() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let outside = tempfile::tempdir().expect("a temporary folder");
    let work = node.scratch("k1").join("work");
    symlink(outside.path(), work.join("link")).expect("linked");
    symlink(outside.path().join("file"), work.join("file")).expect("linked");
    for name in ["../x", "/etc/x", "a/../../x", "link/x"] {
        let error = upload(&node, name, "x").await;
        assert!(
            matches!(error, Err(AgentError::PathEscapes(_))),
            "{name}: {error:?}"
        );
    }
    assert!(upload(&node, "file", "x").await.is_err());
    assert_eq!(std::fs::read_dir(outside.path()).expect("there").count(), 0);
    assert!(upload(&node, ".", "x").await.is_err());
}

#[tokio::test]
async fn a_download_is_a_tar_archive() {
    let node = TestNode::new().await;
    node.create("k1").await;
    upload(&node, "d/one.txt", "hello").await.expect("written");
    symlink("/etc/passwd", node.scratch("k1").join("work/d/link")).expect("linked");
    let bytes = download(&node, "d").await.expect("read");
    let mut archive = tar::Archive::new(bytes.as_ref());
    let mut found = Vec::new();
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        found.push((path, text));
    }
    found.sort();
    let expected = [("d/", ""), ("d/link", ""), ("d/one.txt", "hello")];
    assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[tokio::test]
async fn a_download_of_what_is_not_there_names_the_path() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let error = download(&node, "none").await.expect_err("not there");
    assert_eq!(
        error.to_string(),
        "Could not found the file: /home/work/none"
    );
    let outside = tempfile::NamedTempFile::new().expect("a temporary file");
    let link = node.scratch("k1").join("work/link");
    symlink(outside.path(), link).expect("linked");
    for path in ["../x", "/etc/passwd"] {
        let error = download(&node, path).await;
        assert!(matches!(error, Err(AgentError::PathEscapes(_))), "{path}");
    }
    assert!(download(&node, "link").await.is_err());
}

#[tokio::test]
async fn an_archive_of_a_mebibyte_is_refused() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let work = node.scratch("k1").join("work");
    std::fs::write(work.join("large"), vec![0; 1_048_576]).expect("written");
    let error = download(&node, "large").await.expect_err("too large");
    assert!(matches!(&error, AgentError::Assertion(text) if text == "too large file."));
    std::fs::write(work.join("fits"), vec![0; 1_040_000]).expect("written");
    assert!(download(&node, "fits").await.is_ok());
}

#[tokio::test]
async fn a_listing_has_the_originals_shape() {
    let node = TestNode::new().await;
    node.create("k1").await;
    upload(&node, "d/one.txt", "hello").await.expect("written");
    let listing = list(&node, "d").await;
    assert_eq!(listing.errors, "");
    assert_eq!(listing.abspath.as_deref(), Some("/home/work/d\n"));
    let start = r#"[{"mode": "-rw-r--r--", "size": 5, "ctime": "#;
    assert!(listing.files.starts_with(start), "{}", listing.files);
    assert!(listing.files.ends_with("\"filename\": \"one.txt\"}]\n"));
    let all = list(&node, ".").await;
    assert_eq!(all.abspath.as_deref(), Some("/home/work\n"));
}

#[tokio::test]
async fn a_listing_of_what_is_not_there_or_outside_says_so() {
    let node = TestNode::new().await;
    node.create("k1").await;
    symlink("/etc", node.scratch("k1").join("work/link")).expect("linked");
    for path in ["none", "..", "/etc", "link"] {
        let listing = list(&node, path).await;
        let absent = FileListing {
            files: String::new(),
            errors: "No such file or directory".to_owned(),
            abspath: None,
        };
        assert_eq!(listing, absent, "{path}");
    }
}
