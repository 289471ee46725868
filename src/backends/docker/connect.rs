//! The way to dockerd: where it listens, which version of its API it speaks, and how long it may take.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, BollardRequest, ClientVersion, Docker};
use tokio::time::timeout;

use super::ENGINE;
use crate::backends::EngineConfig;
use crate::runtime::watch::Watch;
use crate::runtime::{Result, RuntimeError, chain};

/// Where dockerd listens when nobody says otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// The oldest API that can be spoken: Docker 17.12.
const OLDEST: ClientVersion = ClientVersion {
    major_version: 1,
    minor_version: 35,
};
/// How long a call that only asks may take.
const ASK: Duration = Duration::from_secs(15);
/// How long a call that makes or removes something may take.
const ACT: Duration = Duration::from_secs(120);
/// While a long call goes on, the daemon is asked whether it lives: how often, and how long it may take to answer.
const LIVES: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(8));
/// The client's own limit, seconds: the limits above are what counts.
const CLIENT_LIMIT: u64 = 24 * 3600;

/// A connection to dockerd, whose calls have limits and whose errors say what to do.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// The client of the API.
    pub(super) api: Docker,
    endpoint: String,
    watch: Arc<Watch>,
}

impl Client {
    /// Connects and agrees on a version of the API.
    pub(super) async fn connect(config: &EngineConfig) -> Result<Self> {
        // Fails when the process has a provider already, which then serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let endpoint = config.endpoint.as_deref().unwrap_or(SOCKET).to_owned();
        let api = dial(&endpoint, config.tls.as_deref()).map_err(|error| match error {
            Error::SocketNotFoundError(_) => unavailable(&endpoint, "there is no such socket"),
            error => RuntimeError::Invalid(format!(
                "docker: cannot connect to {endpoint}: {error}; check the endpoint and DOCKER_CERT_PATH"
            )),
        })?;
        let api = api.with_request_modifier(url_safe_auth);
        let asked = timeout(ASK, api.negotiate_version()).await;
        let api = asked
            .map_err(|_| unavailable(&endpoint, "it does not answer"))?
            .map_err(|error| failed(&endpoint, "asking for the version of the API", error))?;
        let version = api.client_version();
        if version < OLDEST {
            return Err(RuntimeError::Invalid(format!(
                "docker: the daemon at {endpoint} speaks API {version}, {OLDEST} is the oldest that will do; \
                 update Docker to 17.12 or later"
            )));
        }
        Ok(Self {
            api,
            endpoint,
            watch: Arc::default(),
        })
    }

    /// A call that only asks. `action` names the object.
    pub(super) async fn ask<T>(
        &self,
        action: impl Display,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T> {
        // Requests with a body are large; they are kept off the stack.
        self.limited(ASK, action, Box::pin(call)).await
    }

    /// A call that makes or removes something. A daemon that has stopped answering is noticed early.
    pub(super) async fn act<T>(
        &self,
        action: impl Display,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T> {
        let work = self.limited(ACT, action, Box::pin(call));
        self.watched(work).await
    }

    /// Containers, dead or alive: all, or those that match a filter.
    pub(super) async fn containers(
        &self,
        action: impl Display,
        filter: Option<(&str, String)>,
    ) -> Result<Vec<ContainerSummary>> {
        let mut options = ListContainersOptionsBuilder::default().all(true);
        if let Some((key, value)) = filter {
            options = options.filters(&HashMap::from([(key, vec![value])]));
        }
        let call = self.api.list_containers(Some(options.build()));
        self.ask(action, call).await
    }

    /// Work of any length that ends when the daemon no longer answers.
    pub(super) async fn watched<T, E: From<RuntimeError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (every, limit) = LIVES;
        let ping = || async { matches!(timeout(limit, self.api.ping()).await, Ok(Ok(_))) };
        let done = self.watch.while_alive(every, ping, work).await;
        done.unwrap_or_else(|| Err(unavailable(&self.endpoint, "it does not answer").into()))
    }

    async fn limited<T>(
        &self,
        limit: Duration,
        action: impl Display,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T> {
        match timeout(limit, call).await {
            Ok(done) => done.map_err(|error| failed(&self.endpoint, action, error)),
            Err(_) => Err(unavailable(
                &self.endpoint,
                &format!("{action} took more than {} s", limit.as_secs()),
            )),
        }
    }

    /// An error of the API in the words of the contract, for calls that have no limit.
    pub(super) fn failed(&self, action: impl Display, error: Error) -> RuntimeError {
        failed(&self.endpoint, action, error)
    }
}

fn dial(endpoint: &str, certificates: Option<&Path>) -> Result<Docker, Error> {
    match (endpoint.split_once("://"), certificates) {
        (None | Some(("unix", _)), _) => {
            Docker::connect_with_unix(endpoint, CLIENT_LIMIT, API_DEFAULT_VERSION)
        }
        (Some(("tcp" | "http" | "https", _)), Some(folder)) => {
            let [key, certificate, authority] =
                ["key.pem", "cert.pem", "ca.pem"].map(|name| folder.join(name));
            let version = API_DEFAULT_VERSION;
            Docker::connect_with_ssl(
                endpoint,
                &key,
                &certificate,
                &authority,
                CLIENT_LIMIT,
                version,
            )
        }
        (Some(("tcp" | "http", _)), None) => {
            Docker::connect_with_http(endpoint, CLIENT_LIMIT, API_DEFAULT_VERSION)
        }
        _ => Err(Error::UnsupportedURISchemeError {
            uri: endpoint.to_owned(),
        }),
    }
}

/// dockerd reads the credentials as URL-safe base64 and drops them silently when they are not; the client writes the
/// other alphabet.
fn url_safe_auth(mut request: BollardRequest) -> BollardRequest {
    if let Some(value) = request.headers_mut().get_mut("x-registry-auth")
        && let Ok(text) = value.to_str()
        && let Ok(safe) = text.replace('+', "-").replace('/', "_").parse()
    {
        *value = safe;
    }
    request
}

/// The HTTP status of dockerd's own answer.
pub(super) fn status(error: &RuntimeError) -> Option<u16> {
    let RuntimeError::Engine { source, .. } = error else {
        return None;
    };
    match source.downcast_ref::<Error>() {
        Some(Error::DockerResponseServerError { status_code, .. }) => Some(*status_code),
        _ => None,
    }
}

/// dockerd's own words.
pub(super) fn message(error: &RuntimeError) -> String {
    let RuntimeError::Engine { source, .. } = error else {
        return error.to_string();
    };
    match source.downcast_ref::<Error>() {
        Some(Error::DockerResponseServerError { message, .. }) => message.clone(),
        Some(Error::DockerStreamError { error }) => error.clone(),
        _ => source.to_string(),
    }
}

/// What dockerd answered is the engine's error; that it did not answer is another.
fn failed(endpoint: &str, action: impl Display, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { .. }
        | Error::DockerStreamError { .. }
        | Error::JsonDataError { .. }
        | Error::JsonSerdeError { .. } => RuntimeError::engine(ENGINE, action.to_string(), error),
        error => RuntimeError::Unavailable {
            engine: ENGINE,
            source: format!("{endpoint}: {action}: {}", chain(&error)).into(),
        },
    }
}

fn unavailable(endpoint: &str, why: &str) -> RuntimeError {
    RuntimeError::Unavailable {
        engine: ENGINE,
        source: format!("{endpoint}: {why}; is dockerd running?").into(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn credentials_are_written_in_the_alphabet_that_dockerd_reads() {
        let mut request = BollardRequest::new(bollard::body_full(Bytes::new()));
        let value = "ab+/cd==".parse().expect("a header");
        request.headers_mut().insert("x-registry-auth", value);
        let request = url_safe_auth(request);
        assert_eq!(request.headers()["x-registry-auth"], "ab-_cd==");
    }

    #[tokio::test]
    async fn an_endpoint_that_nobody_can_dial_is_refused_by_its_name() {
        for (endpoint, wanted) in [
            ("ftp://h:1", "ftp://h:1"),
            ("/no/such/docker.sock", "no such socket"),
            ("tcp://127.0.0.1:1", "127.0.0.1:1"),
        ] {
            let config = EngineConfig {
                endpoint: Some(endpoint.to_owned()),
                ..EngineConfig::default()
            };
            let error = Client::connect(&config).await.expect_err("nobody is there");
            let text = match &error {
                RuntimeError::Unavailable { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            assert!(text.contains(wanted), "{text}");
        }
    }

    /// A daemon that answers everything with this version of its API.
    async fn connected_to(version: &str) -> Result<ClientVersion> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let body = format!(r#"{{"ApiVersion":"{version}"}}"#);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let _request = stream.read(&mut [0; 4096]).await;
                let _sent = stream.write_all(answer.as_bytes()).await;
            }
        };
        let config = EngineConfig {
            endpoint: Some(socket.display().to_string()),
            ..EngineConfig::default()
        };
        tokio::select! {
            () = serve => unreachable!("it serves without end"),
            client = Client::connect(&config) => Ok(client?.api.client_version()),
        }
    }

    #[tokio::test]
    async fn the_version_of_the_api_is_the_daemons_and_too_old_a_one_is_refused() {
        for (daemons, spoken) in [("1.35", "1.35"), ("1.41", "1.41"), ("1.99", "1.53")] {
            let version = connected_to(daemons).await.expect("it will do");
            assert_eq!(version.to_string(), spoken);
        }
        for old in ["1.34", "1.9"] {
            let error = connected_to(old).await.expect_err("too old");
            let text = error.to_string();
            assert!(text.contains(old) && text.contains("1.35"), "{text}");
        }
        connected_to("what").await.expect_err("no version");
    }
}
