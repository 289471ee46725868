//! Real etcd and Redis servers on free ports of the loopback, with folders of their own; gone when dropped.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use etcd_client::{Client, GetOptions};
use tempfile::TempDir;

use crate::stub::eventually;

/// A server process and its folder.
struct Server {
    child: Child,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on: each once, below those that the system gives to connections, so that none of them
/// takes it in between.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 9_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id() * 97;
    loop {
        let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).unwrap();
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

fn spawn(command: &mut Command, folder: TempDir) -> Server {
    let child = command
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; is it installed?"));
    Server {
        child,
        _folder: folder,
    }
}

/// An etcd server.
pub struct Etcd {
    _server: Server,
    pub address: String,
    pub client: Client,
}

impl Etcd {
    pub async fn start() -> Self {
        let (port, peer) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        let (client_url, peer_url) = (
            format!("http://127.0.0.1:{port}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let server = spawn(
            Command::new("etcd").args([
                "--data-dir",
                "data",
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
                "--initial-cluster",
                &format!("default={peer_url}"),
            ]),
            folder,
        );
        let address = format!("127.0.0.1:{port}");
        let client = eventually("etcd", async || {
            let mut client = Client::connect([&address], None).await.ok()?;
            client.get("x", None).await.ok()?;
            Some(client)
        })
        .await;
        Self {
            _server: server,
            address,
            client,
        }
    }

    pub async fn put(&self, key: &str, value: &str) {
        let mut client = self.client.clone();
        client.put(key, value, None).await.unwrap();
    }

    /// Key and value of everything, in the order of keys.
    pub async fn all(&self) -> Vec<(String, String)> {
        let mut client = self.client.clone();
        let all = GetOptions::new().with_all_keys();
        let found = client.get("", Some(all)).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let pair = |kv: &etcd_client::KeyValue| (text(kv.key()), text(kv.value()));
        found.kvs().iter().map(pair).collect()
    }

    /// Keys and values under a prefix.
    pub async fn under(&self, prefix: &str) -> Vec<(String, String)> {
        let mut all = self.all().await;
        all.retain(|(key, _)| key.starts_with(prefix));
        all
    }
}

/// A Redis server.
pub struct Redis {
    server: Option<Server>,
    pub port: u16,
    pub password: Option<&'static str>,
}

impl Redis {
    pub async fn start(password: Option<&'static str>) -> Self {
        let mut redis = Self {
            server: None,
            port: free_port(),
            password,
        };
        redis.restart().await;
        redis
    }

    pub fn stop(&mut self) {
        self.server = None;
    }

    pub async fn restart(&mut self) {
        self.server = None;
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no"]);
        if let Some(password) = self.password {
            command.args(["--requirepass", password]);
        }
        self.server = Some(spawn(&mut command, tempfile::tempdir().unwrap()));
        eventually("redis", async || self.connection().await.ok()).await;
    }

    pub async fn connection(&self) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
        let login = self.password.map_or(String::new(), |p| format!(":{p}@"));
        let url = format!("redis://{login}127.0.0.1:{}/0", self.port);
        let client = redis::Client::open(url)?;
        client.get_multiplexed_async_connection().await
    }

    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut connection).await.unwrap()
    }
}
