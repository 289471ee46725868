//! Files of a kernel: upload, download, listing, virtual folders.

use std::fs;
use std::io::Read;

use backendai_agent::agent::request::{KernelConfig, Reply, Request, VfolderMount};
use bytes::Bytes;

use crate::node::TestNode;

on_every_engine! {
    files_go_in_and_come_out
    a_listing_shows_what_is_there
    a_virtual_folder_is_shown_as_asked
}

async fn files_go_in_and_come_out(node: TestNode) {
    node.create("k1").await;
    let request = Request::UploadFile {
        kernel: node.id("k1"),
        filename: "in/data.txt".to_owned(),
        data: Bytes::from_static(b"from outside"),
    };
    node.handle(request).await.expect("uploaded");
    let output = node
        .output("k1", "cat in/data.txt; echo back > out.txt")
        .await;
    assert_eq!(output, "from outside");
    let request = Request::DownloadFile {
        kernel: node.id("k1"),
        filepath: "out.txt".to_owned(),
    };
    let Ok(Reply::Archive(archive)) = node.handle(request).await else {
        panic!("a download is an archive");
    };
    let mut archive = tar::Archive::new(&*archive);
    let mut entry = archive
        .entries()
        .expect("tar")
        .next()
        .expect("one")
        .expect("tar");
    let mut text = String::new();
    entry.read_to_string(&mut text).expect("read");
    assert_eq!(text, "back\n");
    node.close().await;
}

async fn a_listing_shows_what_is_there(node: TestNode) {
    node.create("k1").await;
    node.output("k1", "mkdir d; echo x > d/file").await;
    let request = Request::ListFiles {
        kernel: node.id("k1"),
        path: "d".to_owned(),
    };
    let Ok(Reply::Files(listing)) = node.handle(request).await else {
        panic!("a listing is a listing");
    };
    assert!(listing.files.contains("\"file\""), "{listing:?}");
    assert_eq!(listing.abspath.as_deref(), Some("/home/work/d\n"));
    node.close().await;
}

async fn a_virtual_folder_is_shown_as_asked(node: TestNode) {
    let id = "0123456789abcdef0123456789abcdef";
    let folder = node.path("vfolders/local").join(id);
    fs::create_dir_all(&folder).expect("folder");
    fs::write(folder.join("file"), "shared").expect("write");
    for (kernel, read_only) in [("k1", true), ("k2", false)] {
        let mount = VfolderMount {
            name: "data".to_owned(),
            host: "local".to_owned(),
            id: id.to_owned(),
            read_only,
        };
        let config = KernelConfig {
            mounts: vec![mount],
            ..node.config()
        };
        node.try_create(kernel, config).await.expect("created");
        let script = "cat data/file; touch data/made 2>&1 | grep -c Read-only; true";
        let output = node.output(kernel, script).await;
        let refused = if read_only { "1" } else { "0" };
        assert_eq!(output, format!("shared{refused}\n"));
        node.destroy(kernel).await;
    }
    node.close().await;
}
