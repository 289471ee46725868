//! Looking up, removing, and several users of one store at once.

use std::fs;

use backendai_agent::image::{ImageError, Store};
use backendai_agent::runtime::{ImageStore, RuntimeError};

use crate::tars::{Home, Tar, names, small};

#[tokio::test]
async fn an_image_is_found_by_every_name_it_has() {
    let home = Home::new();
    let info = home
        .import(&small(), "index.docker.io/lablup/python:3.6")
        .await
        .expect("good")
        .remove(0);
    let repo_digest = info.repo_digest.clone().expect("it has one");
    for name in [
        "index.docker.io/lablup/python:3.6".to_owned(),
        "docker.io/lablup/python:3.6".to_owned(),
        "lablup/python:3.6".to_owned(),
        info.id.clone(),
        format!("lablup/python:3.6@{}", info.id),
        format!("index.docker.io/lablup/python@{repo_digest}"),
    ] {
        let found = home.store.inspect(&name).await.expect(&name);
        assert_eq!(found, info, "{name}");
    }
    for name in ["lablup/python:3.7", "example.com/lablup/python:3.6"] {
        let error = home.store.inspect(name).await.expect_err("it is another");
        assert!(
            matches!(&error, RuntimeError::ImageMissing(missing) if missing == name),
            "{error}"
        );
    }
    let error = home
        .store
        .inspect("Not A Name")
        .await
        .expect_err("it is none");
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn the_list_is_in_the_order_of_names_and_has_each_image_once() {
    let home = Home::new();
    home.import(&small(), "localhost/b:1").await.expect("good");
    home.import(&small(), "localhost/a:1").await.expect("good");
    home.import(&Tar::default().file("other", "").end(), "localhost/ab:1")
        .await
        .expect("good");
    let list = home.store.list().await.expect("it can be listed");
    let names: Vec<_> = list.iter().map(|info| info.names.join(" ")).collect();
    assert_eq!(names, ["localhost/a:1 localhost/b:1", "localhost/ab:1"]);
}

#[tokio::test]
async fn removal_takes_what_no_other_image_needs() {
    let home = Home::new();
    home.import(&small(), "localhost/a:1").await.expect("good");
    home.import(&small(), "localhost/b:1").await.expect("good");
    home.store
        .remove("localhost/a:1", &[])
        .await
        .expect("it is there");
    home.store
        .prepare("localhost/b:1")
        .await
        .expect("it is still there");
    let error = home
        .store
        .remove("localhost/a:1", &[])
        .await
        .expect_err("it is gone");
    assert!(matches!(error, ImageError::Missing(_)), "{error}");
    home.store
        .remove("localhost/b:1", &[])
        .await
        .expect("it is there");
    home.assert_empty();
}

#[tokio::test]
async fn an_image_in_use_is_not_removed() {
    let home = Home::new();
    home.import(&small(), "lablup/a:1").await.expect("good");
    let used = ["index.docker.io/lablup/a:1".to_owned()];
    let error = home
        .store
        .remove("lablup/a:1", &used)
        .await
        .expect_err("it is in use");
    assert!(matches!(error, ImageError::InUse(_)), "{error}");
    home.store
        .prepare("lablup/a:1")
        .await
        .expect("it is still there");
}

#[tokio::test]
async fn a_prepared_image_keeps_its_layers_through_a_removal() {
    let home = Home::new();
    let (root, prepared) = home.root(&small()).await;
    home.store
        .remove("localhost/root:1", &[])
        .await
        .expect("it is there");
    assert!(root.join("etc/name").exists());
    drop(prepared);
    home.import(&small(), "localhost/again:1")
        .await
        .expect("good");
    home.store
        .remove("localhost/again:1", &[])
        .await
        .expect("it is there");
    home.assert_empty();
}

#[tokio::test]
async fn layers_are_unpacked_again_when_they_are_gone() {
    let home = Home::new();
    let (root, prepared) = home.root(&small()).await;
    drop(prepared);
    fs::remove_dir_all(root.parent().expect("it has one")).expect("it is ours");
    let (root, _held) = home.root(&small()).await;
    assert_eq!(
        fs::read(root.join("etc/name")).expect("it is there"),
        b"small"
    );
}

#[tokio::test]
async fn what_a_dead_process_left_goes_at_the_next_start() {
    let home = Home::new();
    home.import(&small(), "localhost/a:1").await.expect("good");
    fs::create_dir_all(home.dir.path().join("layers/tmp/1-0-x/fs/etc")).expect("a folder");
    fs::write(home.dir.path().join("images/tmp/1-1-x"), "half").expect("a file");
    let again = Store::open(home.dir.path()).expect("it opens");
    assert!(names(&home.dir.path().join("layers/tmp")).is_empty());
    assert!(names(&home.dir.path().join("images/tmp")).is_empty());
    again
        .prepare("localhost/a:1")
        .await
        .expect("it is still there");
}

#[tokio::test]
async fn many_at_once_import_the_same_image() {
    let home = Home::new();
    let stores: Vec<_> = (0..4)
        .map(|_| Store::open(home.dir.path()).expect("it opens"))
        .collect();
    let path = home.input("r.tar", &small());
    let work = stores.iter().enumerate().map(|(n, store)| {
        let options = backendai_agent::image::ImportOptions {
            name: Some(format!("localhost/n:{n}")),
            ..Default::default()
        };
        store.import(&path, options)
    });
    let results = futures_util::future::join_all(work).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let list = home.store.images().await.expect("it can be listed");
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].names.len(), 4);
}
