//! The keys of etcd that the agent reads and writes, as typed calls; nothing else knows a key (19.03, section "etcd").

use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, DeleteOptions, EventType, GetOptions, Txn, TxnOp, WatchOptions,
};

/// How long etcd may take for one answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where etcd is and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `host:port`.
    pub address: String,
    /// First part of every key.
    pub namespace: String,
    /// User; without one no authentication is tried.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// What can go wrong with etcd.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// It does not answer in time.
    #[error(
        "etcd at {address} does not answer within {} s ({action}); check --etcd-addr",
        DEADLINE.as_secs()
    )]
    Silent {
        /// Its address.
        address: String,
        /// What was asked.
        action: String,
    },
    /// There is no connection.
    #[error("etcd at {address} cannot be reached ({action}: {reason}); check --etcd-addr")]
    Unreachable {
        /// Its address.
        address: String,
        /// What was asked.
        action: String,
        /// Why.
        reason: String,
    },
    /// It answers with an error.
    #[error("etcd at {address}: {action}: {reason}")]
    Failed {
        /// Its address.
        address: String,
        /// What was asked.
        action: String,
        /// Its error.
        reason: String,
    },
    /// A key that the manager writes is not there.
    #[error("etcd at {address} has no key {key}; is the manager's set-up complete?")]
    Missing {
        /// Its address.
        address: String,
        /// The whole key.
        key: String,
    },
    /// A key has a value of the wrong form.
    #[error("etcd key {key}: {value:?} is not host:port")]
    Malformed {
        /// The whole key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// What the manager tells its agents in etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct ManagerSettings {
    /// Where events go: `host:port`.
    pub event_address: String,
    /// Host and port of Redis.
    pub redis: (String, u16),
    /// Password of Redis, if it has one.
    pub redis_password: Option<String>,
    /// Base folder of the volume hosts.
    pub volume_mount: String,
    /// Prefix inside a volume host, without leading slashes.
    pub volume_prefix: String,
}

impl std::fmt::Debug for ManagerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagerSettings")
            .field("event_address", &self.event_address)
            .field("redis", &self.redis)
            .field("volume_mount", &self.volume_mount)
            .field("volume_prefix", &self.volume_prefix)
            .finish_non_exhaustive()
    }
}

/// A connection to etcd.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    address: String,
    namespace: String,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects, logs in if there is a user, and makes sure that etcd answers.
    ///
    /// # Errors
    /// [`EtcdError::Silent`], [`EtcdError::Unreachable`], [`EtcdError::Failed`].
    pub async fn connect(config: &EtcdConfig) -> Result<Self, EtcdError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(DEADLINE)
            .with_keep_alive(Duration::from_secs(30), DEADLINE)
            .with_auto_token_refresh(true);
        if let Some(user) = &config.user {
            options = options.with_user(user, config.password.clone().unwrap_or_default());
        }
        let connect = Client::connect([&config.address], Some(options));
        let client = deadline(&config.address, "connecting", connect).await?;
        let mut etcd = Self {
            client,
            address: config.address.clone(),
            namespace: config.namespace.clone(),
        };
        etcd.get("nodes/manager").await?;
        Ok(etcd)
    }

    /// The whole key of a logical one.
    fn key(&self, logical: &str) -> String {
        let logical = logical.strip_prefix('/').unwrap_or(logical);
        format!("/sorna/{}/{logical}", self.namespace)
    }

    async fn get(&mut self, logical: &str) -> Result<Option<String>, EtcdError> {
        let key = self.key(logical);
        let action = format!("reading {key}");
        let found = deadline(&self.address, &action, self.client.get(key, None)).await?;
        let value = found.kvs().first();
        Ok(value.map(|kv| String::from_utf8_lossy(kv.value()).into_owned()))
    }

    async fn require(&mut self, logical: &str) -> Result<String, EtcdError> {
        let value = self.get(logical).await?;
        value.ok_or_else(|| EtcdError::Missing {
            address: self.address.clone(),
            key: self.key(logical),
        })
    }

    async fn put(&mut self, logical: &str, value: &str) -> Result<(), EtcdError> {
        let key = self.key(logical);
        let action = format!("writing {key}");
        deadline(&self.address, &action, self.client.put(key, value, None)).await?;
        Ok(())
    }

    /// Waits for ever until a manager has announced itself.
    ///
    /// # Errors
    /// When etcd stops to answer.
    pub async fn wait_for_manager(&mut self) -> Result<(), EtcdError> {
        let key = self.key("nodes/manager");
        let action = format!("reading {key}");
        loop {
            let get = self.client.get(key.clone(), Some(GetOptions::new()));
            let found = deadline(&self.address, &action, get).await?;
            if !found.kvs().is_empty() {
                return Ok(());
            }
            // From the revision of the answer on, so that no put between the two is missed.
            let revision = found.header().map_or(0, |header| header.revision() + 1);
            tracing::info!(key, "waiting for the manager");
            if self.watch_put(&key, revision).await? {
                return Ok(());
            }
            // The watch broke; whether etcd is still there is for the next read to find out.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// True after a put of the key, false when the watch ended without one.
    async fn watch_put(&mut self, key: &str, revision: i64) -> Result<bool, EtcdError> {
        let action = format!("watching {key}");
        let options = WatchOptions::new().with_start_revision(revision);
        let watch = self.client.watch(key, Some(options));
        let mut stream = deadline(&self.address, &action, watch).await?;
        loop {
            let Ok(Some(message)) = stream.message().await else {
                return Ok(false);
            };
            if message.canceled() {
                return Ok(false);
            }
            let put = |event: &etcd_client::Event| event.event_type() == EventType::Put;
            if message.events().iter().any(put) {
                return Ok(true);
            }
        }
    }

    /// Reads what the manager tells its agents.
    ///
    /// # Errors
    /// [`EtcdError::Missing`] names the key.
    pub async fn manager_settings(&mut self) -> Result<ManagerSettings, EtcdError> {
        let redis = self.require("nodes/redis").await?;
        let redis = split_host_port(&redis).ok_or_else(|| EtcdError::Malformed {
            key: self.key("nodes/redis"),
            value: redis.clone(),
        })?;
        let events = self.require("nodes/manager/event_addr").await?;
        let (host, port) = split_host_port(&events).ok_or_else(|| EtcdError::Malformed {
            key: self.key("nodes/manager/event_addr"),
            value: events.clone(),
        })?;
        let password = self.get("nodes/redis/password").await?;
        let mount = self.get("volumes/_mount").await?;
        let prefix = self.get("volumes/_fsprefix").await?.unwrap_or_default();
        Ok(ManagerSettings {
            event_address: join_host_port(&host, port),
            redis,
            redis_password: password.filter(|password| !password.is_empty()),
            volume_mount: mount.unwrap_or_else(|| "/mnt".to_owned()),
            volume_prefix: prefix.trim_start_matches('/').to_owned(),
        })
    }

    /// Announces that the agent starts.
    ///
    /// # Errors
    /// When etcd does not take it.
    pub async fn announce_starting(&mut self, agent: &str) -> Result<(), EtcdError> {
        self.put(&format!("nodes/agents/{agent}"), "starting").await
    }

    /// Announces the agent's address and that it runs.
    ///
    /// # Errors
    /// When etcd does not take it.
    pub async fn announce_running(&mut self, agent: &str, host: &str) -> Result<(), EtcdError> {
        let key = format!("nodes/agents/{agent}");
        self.put(&format!("{key}/ip"), host).await?;
        self.put(&key, "running").await
    }

    /// Removes the agent's own keys, and not those of agents whose names begin alike (Q23).
    ///
    /// # Errors
    /// When etcd does not take it.
    pub async fn forget_agent(&mut self, agent: &str) -> Result<(), EtcdError> {
        let key = self.key(&format!("nodes/agents/{agent}"));
        let action = format!("deleting {key}");
        let below = DeleteOptions::new().with_prefix();
        let both = Txn::new().and_then([
            TxnOp::delete(key.clone(), None),
            TxnOp::delete(format!("{key}/"), Some(below)),
        ]);
        deadline(&self.address, &action, self.client.txn(both)).await?;
        Ok(())
    }
}

/// Splits at the last colon; brackets around the host are removed, the port is 1 to 65535.
///
/// ```
/// use backendai_agent::etcd::split_host_port;
/// assert_eq!(split_host_port("[::1]:2379"), Some(("::1".to_owned(), 2379)));
/// assert_eq!(split_host_port("host:0"), None);
/// ```
pub fn split_host_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.trim().rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// The text form of host and port; an IPv6 address gets its brackets.
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Percent-encodes one component of a key, exempting only letters, digits, `_`, `.` and `-` (Python's `quote` with no
/// safe characters).
///
/// ```
/// use backendai_agent::etcd::encode_component;
/// assert_eq!(encode_component("index.docker.io:5000/a b"), "index.docker.io%3A5000%2Fa%20b");
/// ```
pub fn encode_component(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-') {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    out
}

async fn deadline<T>(
    address: &str,
    action: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, EtcdError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(address, action, error)),
        Err(_late) => Err(EtcdError::Silent {
            address: address.to_owned(),
            action: action.to_owned(),
        }),
    }
}

/// gRPC's code for a server that cannot be reached.
const UNAVAILABLE: i32 = 14;

fn failed(address: &str, action: &str, error: etcd_client::Error) -> EtcdError {
    let (address, action) = (address.to_owned(), action.to_owned());
    match error {
        etcd_client::Error::GRpcStatus(status) if status.code() as i32 == UNAVAILABLE => {
            EtcdError::Unreachable {
                address,
                action,
                reason: status.message().to_owned(),
            }
        }
        etcd_client::Error::GRpcStatus(status) => EtcdError::Failed {
            address,
            action,
            reason: status.message().to_owned(),
        },
        other => EtcdError::Failed {
            address,
            action,
            reason: other.to_string(),
        },
    }
}
