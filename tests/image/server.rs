//! A real registry, Debian's `docker-registry`, and a proxy that breaks connections as that one would not.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backendai_agent::runtime::RegistryAuth;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth as Secret;
use oci_client::{Client, Reference};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::support::{Image, architectures, index};

/// `me:secret`, as htpasswd writes it.
pub const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Debian's registry with a folder of its own; ended when dropped.
pub struct Registry {
    child: Child,
    pub address: SocketAddr,
    folder: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub fn start(htpasswd: Option<&str>) -> Self {
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

    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Pushes images, and an index of them where there are several, under one name.
    pub async fn push(&self, name: &str, secret: Secret, images: &[(&str, &Image)]) {
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

    pub async fn push_one(&self, name: &str, image: &Image) {
        self.push(name, Secret::Anonymous, &[(architectures().0, image)])
            .await;
    }

    /// Where the registry keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self
            .folder
            .path()
            .join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

/// A way to a server that breaks once, after so many bytes of its answers.
pub struct Proxy {
    pub address: SocketAddr,
    pub left: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn start(to: SocketAddr, cut_after: usize) -> Self {
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

pub fn me() -> RegistryAuth {
    RegistryAuth {
        username: "me".to_owned(),
        password: "secret".to_owned(),
    }
}
