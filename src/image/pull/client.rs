//! The registry that an image comes from.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth as Secret;
use oci_client::{Client, Reference, RegistryOperation};

use crate::image::credentials::{self, Credentials};
use crate::image::error::{ImageError, Result};
use crate::image::layout::{MAX_DOCUMENT, check_digest};
use crate::image::reference::ImageRef;
use crate::runtime::RegistryAuth;

/// A registry that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(15);
/// What the agent understands: OCI and Docker's schema 2.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One repository of a registry, logged in.
pub(crate) struct Remote {
    client: Client,
    image: Reference,
    secret: Secret,
    name: String,
}

impl Remote {
    /// Connects, and logs in where the registry asks for it.
    pub(in crate::image) async fn connect(
        name: &ImageRef,
        auth: Option<&RegistryAuth>,
        plain_http: bool,
        operation: RegistryOperation,
    ) -> Result<Self> {
        // Fails when the process has a provider already, which then serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = name.pull_registry().to_owned();
        let protocol = if plain_http || is_loopback(&registry) {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let config = ClientConfig {
            protocol,
            platform_resolver: None,
            read_timeout: Some(SILENCE),
            connect_timeout: Some(CONNECT),
            user_agent: concat!("backendai-agent/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let text = name.to_string();
        let client = Client::try_from(config).map_err(|error| failed(&text, &text, error))?;
        let secret = secret(name, auth).await;
        let repository = name.pull_repository();
        let tag = name.tag().unwrap_or("latest").to_owned();
        let remote = Self {
            client,
            image: Reference::with_tag(registry, repository, tag),
            secret,
            name: text,
        };
        let login = remote
            .client
            .auth(&remote.image, &remote.secret, operation)
            .await;
        login.map_err(|error| remote.failed(&remote.name, error))?;
        Ok(remote)
    }

    /// The manifest or index, by digest or by the image's tag. The caller checks the digest.
    pub(super) async fn top(&self, digest: Option<&str>) -> Result<Vec<u8>> {
        let image = match digest {
            Some(digest) => self.by_digest(digest),
            None => self.image.clone(),
        };
        let pulled = self
            .client
            .pull_manifest_raw(&image, &self.secret, &MANIFESTS)
            .await;
        let (bytes, _) = pulled.map_err(|error| self.failed(&self.name, error))?;
        Ok(bytes.to_vec())
    }

    /// A small blob, checked.
    pub(super) async fn small_blob(&self, digest: &str) -> Result<Vec<u8>> {
        let what = format!("blob {digest} of {}", self.name);
        let mut stream = match self.blob(digest, 0).await? {
            BlobResponse::Full(stream) | BlobResponse::Partial(stream) => stream,
        };
        let mut bytes = Vec::new();
        loop {
            match stream.try_next().await {
                Ok(None) => break,
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                // The client's own check of the digest is an error of the stream; ours has the better words.
                Err(_)
                    if check_digest(&what, digest, &bytes).is_err()
                        && stream.content_length == Some(bytes.len() as u64) =>
                {
                    break;
                }
                Err(error) => {
                    return Err(ImageError::Unreachable {
                        what,
                        source: Box::new(error),
                    });
                }
            }
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(ImageError::malformed(what, "it is larger than 8 MiB"));
            }
        }
        check_digest(&what, digest, &bytes)?;
        Ok(bytes)
    }

    /// A blob from `offset` on, or the whole of it where the registry knows no ranges.
    pub(crate) async fn blob(&self, digest: &str, offset: u64) -> Result<BlobResponse> {
        let response = self
            .client
            .pull_blob_stream_partial(&self.image, digest, offset, None)
            .await;
        response.map_err(|error| self.failed(&format!("blob {digest} of {}", self.name), error))
    }

    /// Sends a blob, unless the registry has it. Says whether it was sent.
    pub(in crate::image) async fn push_blob(
        &self,
        digest: &str,
        size: u64,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<bool> {
        let what = || format!("blob {digest} to {}", self.name);
        // A registry that will not say whether it has it gets it once more.
        if let Ok(true) = self.client.blob_exists(&self.image, digest).await {
            return Ok(false);
        }
        let content = content.map_err(OciDistributionError::IoError);
        let pushed = self
            .client
            .push_blob_stream(&self.image, content, digest, Some(size))
            .await;
        pushed.map_err(|error| not_pushed(what(), &self.name, error))?;
        Ok(true)
    }

    /// Gives the tag a manifest, whose blobs are there.
    pub(in crate::image) async fn push_manifest(
        &self,
        kind: &str,
        manifest: Vec<u8>,
    ) -> Result<()> {
        let kind = kind
            .parse()
            .map_err(|error| ImageError::malformed(format!("manifest of {}", self.name), error))?;
        let pushed = self.client.push_manifest_raw(&self.image, manifest, kind);
        let what = || format!("the manifest of {}", self.name);
        pushed
            .await
            .map_err(|error| not_pushed(what(), &self.name, error))?;
        Ok(())
    }

    /// The image's name, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn by_digest(&self, digest: &str) -> Reference {
        let registry = self.image.registry().to_owned();
        Reference::with_digest(
            registry,
            self.image.repository().to_owned(),
            digest.to_owned(),
        )
    }

    fn failed(&self, what: &str, error: OciDistributionError) -> ImageError {
        failed(what, &self.name, error)
    }
}

/// What the registry is told of its user: what was given, or else what `docker login` left.
async fn secret(name: &ImageRef, given: Option<&RegistryAuth>) -> Secret {
    match credentials::of(name, given).await {
        Some(Credentials::Password(auth)) => Secret::Basic(auth.username, auth.password),
        Some(Credentials::RegistryToken(token)) => Secret::Bearer(token),
        Some(Credentials::IdentityToken(_)) => {
            let registry = name.pull_registry();
            tracing::warn!(
                registry,
                "an identity token is stored for the registry, which this engine cannot use; give user name and password"
            );
            Secret::Anonymous
        }
        None => Secret::Anonymous,
    }
}

/// What the caller can do about the registry's answer.
fn failed(what: &str, image: &str, error: OciDistributionError) -> ImageError {
    use OciDistributionError as E;
    let code = match &error {
        E::RegistryError { envelope, .. } => envelope.errors.first().map(|error| &error.code),
        _ => None,
    };
    match (&error, code) {
        (E::UnauthorizedError { .. } | E::AuthenticationFailure(_), _)
        | (_, Some(OciErrorCode::Unauthorized | OciErrorCode::Denied))
        | (
            E::ServerError {
                code: 401 | 403, ..
            },
            _,
        ) => ImageError::Denied {
            image: image.to_owned(),
            source: Box::new(error),
        },
        (E::ImageManifestNotFoundError(_) | E::ServerError { code: 404, .. }, _)
        | (
            _,
            Some(
                OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NotFound
                | OciErrorCode::NameInvalid
                | OciErrorCode::BlobUnknown,
            ),
        ) => ImageError::NotInRegistry(what.to_owned()),
        (E::DigestError(DigestError::VerificationError { expected, actual }), _) => {
            ImageError::WrongDigest {
                what: what.to_owned(),
                expected: expected.clone(),
                found: actual.clone(),
            }
        }
        _ => ImageError::Unreachable {
            what: what.to_owned(),
            source: Box::new(error),
        },
    }
}

/// What the registry says to one who brings something.
fn not_pushed(what: String, image: &str, error: OciDistributionError) -> ImageError {
    match failed(&what, image, error) {
        denied @ ImageError::Denied { .. } => denied,
        ImageError::Unreachable { source, .. } => ImageError::NotPushed { what, source },
        other => ImageError::NotPushed {
            what,
            source: Box::new(other),
        },
    }
}

/// Whether a registry's host (and port) is this machine.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.3.2.1",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example.com",
            "10.0.0.1:5000",
            "127.0.0.1.example.com:80",
            "r.io",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
