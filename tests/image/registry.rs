//! Pulls from a real registry, Debian's `docker-registry`, and from a small one that does what that one would not.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backendai_agent::image::{ImageError, Platform, PullOptions, Store};
use backendai_agent::runtime::{ImageStore as _, RegistryAuth, RuntimeError};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth as Secret;
use oci_client::{Client, Reference};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::support::{Image, Tar, architectures, image, index, layer, noise, remains, zstd};

/// `me:secret`, as htpasswd writes it.
pub(super) const HTPASSWD: &str =
    "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Debian's registry with a folder of its own; ended when dropped.
pub(super) struct Registry {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub(super) fn start(htpasswd: Option<&str>) -> Self {
        // Another process may take the free port first: then the registry ends, and another port is tried.
        for _ in 0..10 {
            if let Some(registry) = Self::try_start(htpasswd) {
                return registry;
            }
        }
        panic!("docker-registry does not start (apt-get install docker-registry)");
    }

    fn try_start(htpasswd: Option<&str>) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            folder.path().join("data").display()
        );
        if let Some(htpasswd) = htpasswd {
            let path = folder.path().join("htpasswd");
            std::fs::write(&path, htpasswd).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path.display()
            );
        }
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry runs (apt-get install docker-registry)");
        let mut registry = Self {
            child,
            address,
            folder,
        };
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            if TcpStream::connect(address).is_ok() {
                return Some(registry);
            }
            if registry.child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    pub(super) fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Pushes images, and an index of them where there are several, under one name.
    async fn push(&self, name: &str, secret: Secret, images: &[(&str, &Image)]) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            use_monolithic_push: true,
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).unwrap();
        let reference: Reference = name.parse().unwrap();
        client
            .auth(&reference, &secret, oci_client::RegistryOperation::Push)
            .await
            .unwrap();
        let oci = |kind: &str| {
            format!("application/vnd.oci.image.{kind}.v1+json")
                .parse()
                .unwrap()
        };
        for (_, image) in images {
            for (digest, bytes) in &image.blobs {
                client
                    .push_blob(&reference, bytes.clone(), digest)
                    .await
                    .unwrap();
            }
            let to = match images {
                [_] => reference.clone(),
                _ => reference.clone_with_digest(image.digest()),
            };
            client
                .push_manifest_raw(&to, image.manifest.clone(), oci("manifest"))
                .await
                .unwrap();
        }
        if images.len() > 1 {
            client
                .push_manifest_raw(&reference, index(images), oci("index"))
                .await
                .unwrap();
        }
    }

    async fn push_one(&self, name: &str, image: &Image) {
        self.push(name, Secret::Anonymous, &[(architectures().0, image)])
            .await;
    }

    /// Where the registry keeps a blob.
    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self
            .folder
            .path()
            .join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

/// A way to a server that breaks once, after so many bytes of its answers.
struct Proxy {
    address: SocketAddr,
    left: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn start(to: SocketAddr, cut_after: usize) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let left = Arc::new(AtomicUsize::new(cut_after));
        let budget = left.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(to).await.unwrap();
                connections.spawn(forward(client, server, budget.clone()));
            }
        });
        Self {
            address,
            left,
            _tasks: tasks,
        }
    }
}

async fn forward(
    client: tokio::net::TcpStream,
    server: tokio::net::TcpStream,
    left: Arc<AtomicUsize>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_server)
            .await
            .map(drop)
    };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = from_server.read(&mut buffer).await?;
            let before = left.load(Ordering::Relaxed);
            if count == 0 {
                return Ok(());
            }
            if before > 0 && before <= count {
                left.store(0, Ordering::Relaxed);
                return Ok::<_, std::io::Error>(());
            }
            left.store(before.saturating_sub(count), Ordering::Relaxed);
            to_client.write_all(&buffer[..count]).await?;
        }
    };
    tokio::select! { _ = up => {}, _ = down => {} }
}

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

pub(super) fn me() -> RegistryAuth {
    RegistryAuth {
        username: "me".to_owned(),
        password: "secret".to_owned(),
    }
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
