//! The connection: every call in our namespace, with a deadline, and given up soon when the daemon does not answer at all.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{CreateNamespaceRequest, Namespace, VersionResponse};
use tokio::time::timeout;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::NAME;
use super::calls::Call;
use crate::runtime::watch::Watch;
use crate::runtime::{BoxError, RuntimeError};
use crate::sys::rlimit;

/// A call that takes so long makes us ask whether the daemon answers anything.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the answer to that may take.
const PROBE: Duration = Duration::from_secs(3);
/// Answer of a call.
pub(super) type Answer<T> = Result<T, Status>;

#[derive(Debug)]
pub(super) struct Client {
    channel: Channel,
    namespace: AsciiMetadataValue,
    socket: PathBuf,
    watch: Watch,
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
            watch: Watch::default(),
        })
    }

    /// The content service, for what moves both ways.
    pub fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
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

    /// Makes a call.
    pub async fn ask<C: Call>(&self, message: C) -> Answer<C::Answer> {
        self.ask_within(C::LIMIT, message).await
    }

    /// Makes a call whose answer may take so long.
    pub async fn ask_within<C: Call>(&self, limit: Duration, message: C) -> Answer<C::Answer> {
        let sent = C::send(self.channel.clone(), self.request(message));
        self.limited(limit, sent).await
    }

    /// Makes a call whose results a lease keeps.
    pub async fn ask_leased<C: Call>(&self, lease: &str, message: C) -> Answer<C::Answer> {
        let sent = C::send(self.channel.clone(), self.leased(lease, message));
        self.limited(C::LIMIT, sent).await
    }

    /// Makes a call whose answer may take for ever; asks after the daemon so often.
    pub async fn ask_watching<C: Call>(&self, every: Duration, message: C) -> Answer<C::Answer> {
        let sent = C::send(self.channel.clone(), self.request(message));
        let answer = self.while_alive(every, sent).await;
        answer.map(Response::into_inner)
    }

    /// Waits for an answer: no longer than `limit`, and no longer than the daemon is alive.
    pub async fn limited<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Answer<Response<T>>> + Send,
    ) -> Answer<T> {
        let answered = timeout(limit, self.while_alive(PATIENCE, answer)).await;
        let late = |_| {
            let text = format!("no answer within {limit:?}");
            Err(Status::deadline_exceeded(text))
        };
        answered.unwrap_or_else(late).map(Response::into_inner)
    }

    async fn while_alive<T>(
        &self,
        every: Duration,
        answer: impl Future<Output = Answer<T>>,
    ) -> Answer<T> {
        let ping = || async { self.version().await.is_ok() };
        let answer = self.watch.while_alive(every, ping, answer).await;
        let answer = answer.ok_or_else(|| self.silent())?;
        answer.map_err(|status| self.plainly(status))
    }

    fn silent(&self) -> Status {
        let socket = self.socket.display();
        Status::unavailable(format!("it does not answer on {socket}; is it well?"))
    }

    pub async fn version(&self) -> Answer<VersionResponse> {
        let mut client = VersionClient::new(self.channel.clone());
        // Kept off the stack: every call carries this one with it.
        let asked = Box::pin(client.version(self.request(())));
        let answer = timeout(PROBE, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(self.silent()));
        let answer = answer.map_err(|status| self.plainly(status));
        answer.map(Response::into_inner)
    }

    /// Says of a call that never reached the daemon what is wrong with the connection.
    fn plainly(&self, status: Status) -> Status {
        // Statuses with a cause were made on this side.
        let causes = std::iter::successors(std::error::Error::source(&status), |it| it.source());
        let Some(cause) = causes.last() else {
            return status;
        };
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let socket = self.socket.display();
        Status::unavailable(match kind {
            Some(io::ErrorKind::NotFound) => format!("there is no {socket}; is it running?"),
            Some(io::ErrorKind::ConnectionRefused) => {
                format!("nobody listens on {socket}; is it running?")
            }
            Some(io::ErrorKind::PermissionDenied) => {
                format!("{socket} is not for this user; run as root")
            }
            _ => format!("the connection to {socket} broke: {cause}"),
        })
    }

    /// Most open files that the daemon may give: what it starts cannot raise its limit without a privilege.
    pub async fn open_files(&self) -> Option<u64> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await.ok()?;
        rlimit::open_files_of(stream.peer_cred().ok()?.pid()?)
    }

    /// The contract's error for a failed call of a snapshotter: those that are programs of their own may be away while
    /// the daemon is there.
    pub async fn away(
        &self,
        snapshotter: &str,
        action: impl Into<String>,
        status: Status,
    ) -> RuntimeError {
        if status.code() != Code::Unavailable || self.version().await.is_err() {
            return failed(action)(status);
        }
        let said = status.message();
        let text = format!("{snapshotter} does not answer containerd; is it running? ({said})");
        RuntimeError::Unavailable {
            engine: "containerd's snapshotter",
            source: text.into(),
        }
    }

    /// Makes our namespace when it is missing.
    pub async fn ensure_namespace(&self) -> Answer<()> {
        let name = self.namespace.to_str().unwrap_or_default().to_owned();
        let namespace = Some(Namespace {
            name,
            ..Namespace::default()
        });
        match self.ask(CreateNamespaceRequest { namespace }).await {
            // The first one ever has been seen to fail although it was made; what uses it makes it as well.
            Err(status) if [Code::AlreadyExists, Code::Unknown].contains(&status.code()) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Whether the daemon, and not the request, is the reason.
pub(super) fn is_down(status: &Status) -> bool {
    [Code::Unavailable, Code::DeadlineExceeded].contains(&status.code())
}

/// The contract's error for a failed call.
pub(super) fn failed(action: impl Into<String>) -> impl FnOnce(Status) -> RuntimeError {
    let action = action.into();
    move |status| {
        let source = status.message().to_owned().into();
        match is_down(&status) {
            true => RuntimeError::Unavailable {
                engine: NAME,
                source,
            },
            false => engine_error(action, source),
        }
    }
}

pub(super) fn engine_error(action: impl Into<String>, source: BoxError) -> RuntimeError {
    RuntimeError::engine(NAME, action, source)
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
    async fn a_daemon_that_is_not_there_is_unavailable_at_once_and_in_plain_words() {
        let dir = tempfile::tempdir().expect("temp dir");
        let socket = dir.path().join("none.sock");
        for words in ["there is no", "nobody listens on"] {
            let client = Client::new(&socket.to_string_lossy(), "backendai").expect("a path");
            let status = client.ensure_namespace().await.expect_err("no daemon");
            let error = failed("asking")(status);
            let RuntimeError::Unavailable { source, .. } = error else {
                panic!("{error}");
            };
            let wanted = format!("{words} {}; is it running?", socket.display());
            assert_eq!(source.to_string(), wanted);
            // What a daemon leaves behind that was killed.
            drop(std::os::unix::net::UnixListener::bind(&socket));
        }
    }
}
