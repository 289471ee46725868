//! Pulls from a real registry, Debian's `docker-registry`, and from a small one that does what that one would not.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backendai_agent::image::{ImageError, Platform, PullOptions, Store};
use backendai_agent::runtime::{ImageStore as _, RegistryAuth, RuntimeError};
use oci_client::secrets::RegistryAuth as Secret;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::server::Proxy;
pub(super) use super::server::{HTPASSWD, Registry, me};
use super::support::{Image, Tar, architectures, image, layer, noise, remains, zstd};

pub(super) fn store() -> (TempDir, Arc<Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn simple() -> Image {
    let plain = Tar::new().file("p", b"plain").finish();
    let other = Tar::new().file("z", b"zstd").finish();
    let packed = zstd(&other);
    image(
        architectures().0,
        &[
            (plain.clone(), plain),
            (other, packed),
            layer("g", &noise(200_000, 3)),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_is_what_was_pushed() {
    let registry = Registry::start(None);
    let name = registry.name("lablup/python:3.6-debian");
    let pushed = simple();
    registry.push_one(&name, &pushed).await;
    let (_folder, store) = store();
    let image = store.pull(&name, None).await.unwrap();
    assert_eq!(
        (image.names.as_slice(), &image.id),
        ([name.clone()].as_slice(), &pushed.id())
    );
    assert_eq!(image.repo_digest, Some(pushed.digest()));
    assert_eq!(image.labels["ai.backend.kernelspec"], "1");
    let lowers = store.prepare(&name).unwrap().lowers;
    assert_eq!(
        std::fs::read(lowers[0].join("g")).unwrap(),
        noise(200_000, 3)
    );
    assert_eq!(std::fs::read(lowers[1].join("z")).unwrap(), b"zstd");
    assert_eq!(std::fs::read(lowers[2].join("p")).unwrap(), b"plain");
    // All is here: the layers are not asked for again.
    pushed
        .layers
        .iter()
        .for_each(|layer| std::fs::remove_file(registry.blob(layer)).unwrap());
    assert_eq!(store.pull(&name, None).await.unwrap(), image);
    let by_digest = format!("{}@{}", registry.name("lablup/python"), pushed.digest());
    assert_eq!(store.inspect(&by_digest).await.unwrap(), image);
    assert_eq!(store.pull(&by_digest, None).await.unwrap().id, image.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_registry_lacks_is_named() {
    let registry = Registry::start(None);
    let (folder, store) = store();
    let name = registry.name("no/such:1");
    let error = store
        .pull_with(&name, &PullOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::NotInRegistry(_)), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    assert_eq!(remains(folder.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_registry_is_unavailable() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (_folder, store) = store();
    let error = store
        .pull(&format!("{free}/a/b:1"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_basic_auth_wants_the_right_password() {
    let registry = Registry::start(Some(HTPASSWD));
    let name = registry.name("my/image:1");
    let pushed = simple();
    let secret = Secret::Basic("me".to_owned(), "secret".to_owned());
    registry
        .push(&name, secret, &[(architectures().0, &pushed)])
        .await;
    let (folder, store) = store();
    let wrong = RegistryAuth {
        password: "wrong".to_owned(),
        ..me()
    };
    for auth in [None, Some(wrong)] {
        let options = PullOptions {
            auth,
            ..PullOptions::default()
        };
        let error = store.pull_with(&name, &options).await.unwrap_err();
        assert!(matches!(error, ImageError::Denied { .. }), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
        assert_eq!(remains(folder.path()), Vec::<String>::new());
    }
    assert_eq!(
        store.pull(&name, Some(&me())).await.unwrap().id,
        pushed.id()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_is_chosen_from_an_index() {
    let (this, other) = architectures();
    let ours = image(this, &[layer("a", b"ours")]);
    let theirs = image(other, &[layer("a", b"theirs")]);
    let registry = Registry::start(None);
    let name = registry.name("my/image:1");
    registry
        .push(&name, Secret::Anonymous, &[(other, &theirs), (this, &ours)])
        .await;
    let (_folder, store) = store();
    assert_eq!(store.pull(&name, None).await.unwrap().id, ours.id());
    let platform = |text: &str| text.parse::<Platform>().unwrap();
    let options = PullOptions {
        platform: platform(&format!("linux/{other}")),
        ..PullOptions::default()
    };
    assert_eq!(
        store.pull_with(&name, &options).await.unwrap().id,
        theirs.id()
    );
    assert!(matches!(
        store.prepare(&name),
        Err(ImageError::WrongArchitecture { .. })
    ));
    let options = PullOptions {
        platform: platform("linux/riscv64"),
        ..PullOptions::default()
    };
    let error = store.pull_with(&name, &options).await.unwrap_err();
    assert!(matches!(error, ImageError::NoPlatform { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_blobs_are_refused_and_leave_nothing() {
    let registry = Registry::start(None);
    let name = registry.name("my/image:1");
    let pushed = simple();
    registry.push_one(&name, &pushed).await;
    let damaged = pushed
        .layers
        .iter()
        .chain([&pushed.id()])
        .cloned()
        .collect::<Vec<_>>();
    for digest in damaged {
        let path = registry.blob(&digest);
        let bytes = std::fs::read(&path).unwrap();
        let mut wrong = bytes.clone();
        wrong[bytes.len() / 2] ^= 1;
        std::fs::write(&path, wrong).unwrap();
        let (folder, store) = store();
        let error = store
            .pull_with(&name, &PullOptions::default())
            .await
            .unwrap_err();
        assert!(
            matches!(error, ImageError::WrongDigest { .. }),
            "{digest}: {error}"
        );
        assert!(error.to_string().contains(&digest), "{error}");
        assert_eq!(remains(folder.path()), Vec::<String>::new());
        assert_eq!(store.images().unwrap(), []);
        std::fs::write(&path, bytes).unwrap();
        store.pull(&name, None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_the_connection_broke() {
    let registry = Registry::start(None);
    let content = noise(3 << 20, 5);
    let pushed = image(architectures().0, &[layer("big", &content)]);
    registry
        .push_one(&registry.name("my/image:1"), &pushed)
        .await;
    let proxy = Proxy::start(registry.address, 1 << 20).await;
    let (folder, store) = store();
    let name = format!("{}/my/image:1", proxy.address);
    assert_eq!(store.pull(&name, None).await.unwrap().id, pushed.id());
    assert_eq!(
        proxy.left.load(Ordering::Relaxed),
        0,
        "the connection was never cut"
    );
    let lower = store.prepare(&name).unwrap().lowers.remove(0);
    assert_eq!(std::fs::read(lower.join("big")).unwrap(), content);
    assert!(
        !remains(folder.path())
            .iter()
            .any(|path| path.ends_with(".partial"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_begins_with_what_an_earlier_one_left() {
    let registry = Registry::start(None);
    let name = registry.name("my/image:1");
    let pushed = image(architectures().0, &[layer("big", &noise(1 << 20, 5))]);
    registry.push_one(&name, &pushed).await;
    let digest = &pushed.layers[0];
    let bytes = &pushed.blobs[digest];
    let (folder, _) = store();
    let hex = digest.trim_start_matches("sha256:");
    let partial = folder
        .path()
        .join("images/blobs/sha256")
        .join(format!("{hex}.partial"));
    // The first half comes from the file alone: the registry's own first half is wrong by now.
    let mut wrong = bytes.clone();
    wrong[..bytes.len() / 2].fill(0);
    std::fs::write(registry.blob(digest), wrong).unwrap();
    std::fs::write(&partial, &bytes[..bytes.len() / 2]).unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.pull(&name, None).await.unwrap().id, pushed.id());
    assert!(!partial.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_at_the_same_time_share_its_layers() {
    let registry = Registry::start(None);
    let name = registry.name("my/image:1");
    let pushed = simple();
    registry.push_one(&name, &pushed).await;
    let (folder, one) = store();
    let two = Store::open(folder.path()).unwrap();
    let mut pulls = JoinSet::new();
    for store in [&one, &two, &one, &two] {
        let (store, name) = (store.clone(), name.clone());
        pulls.spawn(async move { store.pull(&name, None).await.unwrap().id });
    }
    let ids = pulls.join_all().await;
    assert!(ids.iter().all(|id| *id == pushed.id()));
    assert_eq!(one.images().unwrap().len(), 1);
    let rest = remains(folder.path());
    assert!(
        !rest
            .iter()
            .any(|path| path.contains(".tmp-") || path.ends_with(".partial")),
        "{rest:?}"
    );
}
