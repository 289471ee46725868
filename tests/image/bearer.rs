//! A registry with a token server, as the large ones have it; and one that serves forged manifests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode, header};
use backendai_agent::image::{ImageError, PullOptions, Store};
use backendai_agent::runtime::{ImageStore as _, RegistryAuth};
use base64::Engine as _;
use tokio::task::JoinSet;

use super::support::{Image, architectures, image, layer, remains};

const TOKEN: &str = "a-token";

/// What is served: documents and blobs by the last part of their path.
#[derive(Clone, Default)]
struct Content {
    files: HashMap<String, Vec<u8>>,
    /// `user:password` that the token server wants; no tokens without.
    login: Option<&'static str>,
}

impl Content {
    fn of(image: &Image, login: Option<&'static str>) -> Self {
        let mut files = image.blobs.clone();
        files.insert("1".to_owned(), image.manifest.clone());
        files.insert(image.digest(), image.manifest.clone());
        Self { files, login }
    }

    fn answer(
        &self,
        address: SocketAddr,
        path: &str,
        headers: &HeaderMap,
    ) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut answer = HeaderMap::new();
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let Some(login) = self.login else {
            return self.file(path, answer);
        };
        if path == "/token" {
            let wanted = base64::engine::general_purpose::STANDARD.encode(login);
            return if given == Some(&format!("Basic {wanted}")) {
                (
                    StatusCode::OK,
                    answer,
                    format!(r#"{{"token":"{TOKEN}"}}"#).into_bytes(),
                )
            } else {
                (StatusCode::UNAUTHORIZED, answer, Vec::new())
            };
        }
        if given != Some(&format!("Bearer {TOKEN}")) {
            let challenge = format!(r#"Bearer realm="http://{address}/token",service="test""#);
            answer.insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            return (StatusCode::UNAUTHORIZED, answer, Vec::new());
        }
        self.file(path, answer)
    }

    fn file(&self, path: &str, answer: HeaderMap) -> (StatusCode, HeaderMap, Vec<u8>) {
        if path == "/v2/" {
            return (StatusCode::OK, answer, b"{}".to_vec());
        }
        let name = path.rsplit('/').next().unwrap();
        match self.files.get(name) {
            Some(bytes) => (StatusCode::OK, answer, bytes.clone()),
            None => (StatusCode::NOT_FOUND, answer, Vec::new()),
        }
    }
}

/// Serves the content until the set is dropped.
async fn serve(content: Content) -> (SocketAddr, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let content = Arc::new(content);
    let app = axum::Router::new().fallback(move |request: Request| {
        let content = content.clone();
        async move {
            let (status, headers, body) =
                content.answer(address, request.uri().path(), request.headers());
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, tasks)
}

fn small() -> Image {
    image(architectures().0, &[layer("a", b"content")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_with_the_password() {
    let served = small();
    let (address, _server) = serve(Content::of(&served, Some("me:secret"))).await;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let name = format!("{address}/my/image:1");
    let auth = |password: &str| RegistryAuth {
        username: "me".to_owned(),
        password: password.to_owned(),
    };
    let options = PullOptions {
        auth: Some(auth("wrong")),
        ..PullOptions::default()
    };
    let error = store.pull_with(&name, &options).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    assert_eq!(remains(folder.path()), Vec::<String>::new());
    // This server knows no ranges: the layer comes whole.
    assert_eq!(
        store.pull(&name, Some(&auth("secret"))).await.unwrap().id,
        served.id()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_manifest_is_refused() {
    let served = small();
    let mut content = Content::of(&served, None);
    content.files.get_mut(&served.digest()).unwrap().push(b' ');
    let (address, _server) = serve(content).await;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let name = format!("{address}/my/image@{}", served.digest());
    let error = store
        .pull_with(&name, &PullOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::WrongDigest { .. }), "{error}");
    assert_eq!(remains(folder.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_longer_than_its_manifest_says_is_refused() {
    let mut served = small();
    let digest = served.layers[0].clone();
    served
        .blobs
        .get_mut(&digest)
        .unwrap()
        .extend_from_slice(&[0; 100]);
    let (address, _server) = serve(Content::of(&served, None)).await;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let error = store
        .pull_with(&format!("{address}/my/image:1"), &PullOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Malformed { .. }), "{error}");
    assert_eq!(remains(folder.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_of_other_layers_is_refused() {
    let mut served = small();
    let forged = image(architectures().0, &[layer("a", b"something else")]);
    // The manifest names the forged layer with its right digest, the config the diff id of another one.
    let manifest = String::from_utf8(served.manifest.clone()).unwrap();
    let (old, new) = (&served.layers[0], &forged.layers[0]);
    let size = |length: usize| format!("\"size\":{length}}}]");
    served.manifest = manifest
        .replace(old, new)
        .replace(
            &size(served.blobs[old].len()),
            &size(forged.blobs[new].len()),
        )
        .into_bytes();
    served.blobs.extend(forged.blobs.clone());
    let (address, _server) = serve(Content::of(&served, None)).await;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let error = store
        .pull_with(&format!("{address}/my/image:1"), &PullOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::WrongDiffId { .. }), "{error}");
    assert_eq!(remains(folder.path()), Vec::<String>::new());
}
