//! The connection: every call in our namespace, with a deadline, and given up soon when the daemon does not answer at all.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{CreateNamespaceRequest, Namespace, VersionResponse};
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::NAME;
use crate::runtime::{BoxError, RuntimeError};

/// A call that takes so long makes us ask whether the daemon answers anything.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the answer to that may take.
const PROBE: Duration = Duration::from_secs(3);
/// Deadline of calls that read or write a record.
pub(super) const QUICK: Duration = Duration::from_secs(20);
/// Deadline of calls that run programs or move data.
pub(super) const SLOW: Duration = Duration::from_secs(300);
/// A list of containers holds their whole specs.
const MOST: usize = 1 << 30;

/// Answer of a call.
pub(super) type Answer<T> = Result<T, Status>;

/// What was last heard of the daemon.
#[derive(Debug)]
struct Health {
    asked: Instant,
    alive: bool,
}

#[derive(Debug)]
pub(super) struct Client {
    channel: Channel,
    namespace: AsciiMetadataValue,
    socket: PathBuf,
    health: Mutex<Health>,
}

macro_rules! services {
    ($($name:ident: $client:ident)*) => {
        $(pub fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(MOST)
        })*
    };
}

impl Client {
    /// Connects with the first call, and again after each loss.
    pub fn new(endpoint: &str, namespace: &str) -> Result<Self, RuntimeError> {
        let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        let wrong = |what: String| RuntimeError::Invalid(format!("containerd: {what}"));
        if !Path::new(socket).is_absolute() {
            return Err(wrong(format!(
                "{endpoint:?} is no absolute path of a socket"
            )));
        }
        let channel = Endpoint::from_shared(format!("unix://{socket}"))
            .map_err(|error| wrong(format!("socket {socket}: {error}")))?
            .connect_timeout(PROBE);
        Ok(Self {
            channel: channel.connect_lazy(),
            namespace: namespace
                .parse()
                .map_err(|_| wrong(format!("{namespace:?} cannot be the name of a namespace")))?,
            socket: socket.into(),
            health: Mutex::new(Health {
                asked: Instant::now(),
                alive: true,
            }),
        })
    }

    services! {
        containers: ContainersClient
        content: ContentClient
        diff: DiffClient
        images: ImagesClient
        leases: LeasesClient
        snapshots: SnapshotsClient
        tasks: TasksClient
    }

    /// A request in our namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request whose results the garbage collector leaves alone as long as the lease is there.
    pub fn leased<T>(&self, lease: &str, message: T) -> Request<T> {
        let mut request = self.request(message);
        if let Ok(lease) = lease.parse() {
            request.metadata_mut().insert("containerd-lease", lease);
        }
        request
    }

    /// Waits for an answer: no longer than `limit`, and no longer than the daemon is alive. Boxed, as the futures of
    /// calls are large.
    pub fn call<'a, T: 'a>(
        &'a self,
        limit: Duration,
        answer: impl Future<Output = Answer<Response<T>>> + Send + 'a,
    ) -> BoxFuture<'a, Answer<T>> {
        Box::pin(async move {
            let late = |_| {
                Err(Status::deadline_exceeded(format!(
                    "no answer within {limit:?}"
                )))
            };
            let answered = timeout(limit, self.while_alive(PATIENCE, answer)).await;
            answered.unwrap_or_else(late).map(Response::into_inner)
        })
    }

    /// Waits for an answer that may take for ever; asks after the daemon so often.
    pub async fn while_alive<T>(
        &self,
        every: Duration,
        answer: impl Future<Output = Answer<T>>,
    ) -> Answer<T> {
        let mut answer = pin!(answer);
        let mut watched = pin!(async {
            loop {
                sleep(every).await;
                if let Err(error) = self.alive().await {
                    return error;
                }
            }
        });
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            error = &mut watched => Err(error),
        }
    }

    /// Asks the daemon for a sign of life, for all who want to know at the moment.
    async fn alive(&self) -> Answer<()> {
        let mut health = self.health.lock().await;
        if health.asked.elapsed() >= PATIENCE {
            health.alive = self.version().await.is_ok();
            health.asked = Instant::now();
        }
        match health.alive {
            true => Ok(()),
            false => Err(Status::unavailable(format!(
                "containerd does not answer on {}",
                self.socket.display()
            ))),
        }
    }

    pub async fn version(&self) -> Answer<VersionResponse> {
        let mut client = VersionClient::new(self.channel.clone());
        let answer = timeout(PROBE, client.version(self.request(()))).await;
        let silent = |_| Err(Status::unavailable(format!("no answer within {PROBE:?}")));
        answer.unwrap_or_else(silent).map(Response::into_inner)
    }

    /// Most open files that the daemon may give: what it starts cannot raise its limit without a privilege.
    pub async fn open_files(&self) -> Option<u64> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await.ok()?;
        let pid = stream.peer_cred().ok()?.pid()?;
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        hard_limit(&limits, "Max open files")
    }

    /// Makes our namespace when it is missing.
    pub async fn ensure_namespace(&self) -> Answer<()> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let name = self.namespace.to_str().unwrap_or_default().to_owned();
        let namespace = Some(Namespace {
            name,
            ..Namespace::default()
        });
        let request = CreateNamespaceRequest { namespace };
        match self.call(QUICK, client.create(Request::new(request))).await {
            // The first one ever has been seen to fail although it was made; what uses it makes it as well.
            Err(status) if [Code::AlreadyExists, Code::Unknown].contains(&status.code()) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// A hard limit out of the text of `/proc/<pid>/limits`; `None` when there is none.
fn hard_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether the daemon, and not the request, is the reason.
pub(super) fn is_down(status: &Status) -> bool {
    // Statuses with a cause were made on this side: the connection broke.
    let local = std::error::Error::source(status).is_some();
    local || [Code::Unavailable, Code::DeadlineExceeded].contains(&status.code())
}

/// The contract's error for a failed call.
pub(super) fn failed(action: impl Into<String>) -> impl FnOnce(Status) -> RuntimeError {
    let action = action.into();
    move |status| {
        if is_down(&status) {
            let source = Box::new(status);
            return RuntimeError::Unavailable {
                engine: NAME,
                source,
            };
        }
        engine_error(action, status.message().to_owned().into())
    }
}

pub(super) fn engine_error(action: impl Into<String>, source: BoxError) -> RuntimeError {
    RuntimeError::Engine {
        engine: NAME,
        action: action.into(),
        source,
    }
}

/// What is not there is done.
pub(super) fn absent_is_done<T>(answer: Answer<T>) -> Answer<Option<T>> {
    match answer {
        Err(status) if status.code() == Code::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_limit_is_read_unless_there_is_none() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 524288               files\n\
                    Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(hard_limit(text, "Max open files"), Some(524_288));
        assert_eq!(hard_limit(text, "Max locked memory"), None);
        assert_eq!(hard_limit(text, "Max processes"), None);
    }

    #[tokio::test]
    async fn an_endpoint_is_an_absolute_path_with_or_without_a_scheme() {
        for endpoint in ["/run/a.sock", "unix:///run/a.sock"] {
            let client = Client::new(endpoint, "backendai").expect("a path");
            assert_eq!(client.socket, Path::new("/run/a.sock"));
        }
        for endpoint in ["a.sock", "tcp://127.0.0.1:1", ""] {
            let error = Client::new(endpoint, "backendai").expect_err("no path");
            assert!(matches!(error, RuntimeError::Invalid(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_unavailable_at_once() {
        let dir = tempfile::tempdir().expect("temp dir");
        let socket = dir.path().join("none.sock");
        let client = Client::new(&socket.to_string_lossy(), "backendai").expect("a path");
        let status = client.ensure_namespace().await.expect_err("no daemon");
        assert!(is_down(&status), "{status:?}");
        let error = failed("asking")(status);
        assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error}");
    }
}
