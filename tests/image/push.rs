//! Images to a real registry, and back.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use backendai_agent::image::{Bundle, ImageError, ImportOptions, PushOptions, Pushed, push};
use backendai_agent::runtime::{ImageStore as _, RegistryAuth};
use serde_json::Value;
use tempfile::TempDir;

use super::archives::{layout, packed, plain_layers, saved, two_layers};
use super::command::{agent, run};
use super::registry::{HTPASSWD, Registry, me, store};
use super::support::{Image, Tar, architectures, digest, gzip, image, layer, noise};

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bundle(&self, archive: &[u8], name: &str) -> Bundle {
        let path = self.path("archive");
        std::fs::write(&path, archive).unwrap();
        let options = ImportOptions::default();
        Bundle::open(&path, Some(name), &options, &self.path("scratch")).unwrap()
    }
}

fn oci(image: &Image) -> Vec<u8> {
    packed(&layout(
        &image.manifest,
        &[("some/name:1", &image.manifest)],
        &[image],
    ))
}

async fn pushed(bundle: &Bundle, name: &str) -> Result<Pushed, ImageError> {
    push(bundle, name, &PushOptions::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_image_is_pulled_back_under_the_digest_that_was_told() {
    let registry = Registry::start(None);
    let fixture = Fixture::new();
    // Larger than one piece, so that it goes in several.
    let source = image(
        architectures().0,
        &[
            layer("big", &noise(9 << 20, 7)),
            layer("small", b"x"),
            layer("small", b"x"),
        ],
    );
    let name = registry.name("my/image:1");
    let bundle = fixture.bundle(&oci(&source), &name);
    let first = pushed(&bundle, &name).await.unwrap();
    assert_eq!((&first.name, &first.digest), (&name, &source.digest()));
    assert_eq!(first.sent, 3);
    let (_folder, store) = store();
    let image = store.pull(&name, None).await.unwrap();
    assert_eq!(image.id, source.id());
    assert_eq!(image.repo_digest.as_ref(), Some(&first.digest));
    let again = pushed(&bundle, &name).await.unwrap();
    assert_eq!((again.sent, again.digest), (0, first.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_docker_and_root_file_systems_are_pushed_too() {
    let registry = Registry::start(None);
    let fixture = Fixture::new();
    let source = two_layers();
    let archives = [
        gzip(&saved(&source, &plain_layers(), &["a/b:1"]).finish()),
        Tar::new().file("x", b"x").finish(),
    ];
    for archive in archives {
        let name = registry.name("my/image");
        let bundle = fixture.bundle(&archive, &name);
        let told = pushed(&bundle, &name).await.unwrap();
        assert_eq!(told.name, format!("{name}:latest"));
        let (_folder, store) = store();
        let image = store.pull(&name, None).await.unwrap();
        assert_eq!(image.id, bundle.images()[0].config_digest);
        assert_eq!(image.repo_digest, Some(told.digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_password_takes_images_from_those_who_know_it() {
    let registry = Registry::start(Some(HTPASSWD));
    let fixture = Fixture::new();
    let source = two_layers();
    let name = registry.name("my/image:1");
    let bundle = fixture.bundle(&oci(&source), &name);
    let wrong = RegistryAuth {
        password: "wrong".to_owned(),
        ..me()
    };
    for auth in [None, Some(wrong)] {
        let options = PushOptions {
            auth,
            ..PushOptions::default()
        };
        let error = push(&bundle, &name, &options).await.unwrap_err();
        assert!(matches!(error, ImageError::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains(&name), "{error}");
    }
    let options = PushOptions {
        auth: Some(me()),
        ..PushOptions::default()
    };
    push(&bundle, &name, &options).await.unwrap();
    let (_folder, store) = store();
    assert_eq!(
        store.pull(&name, Some(&me())).await.unwrap().id,
        source.id()
    );
}

#[tokio::test]
async fn what_cannot_be_pushed_is_named() {
    let fixture = Fixture::new();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let name = format!("{free}/a/b:1");
    let bundle = fixture.bundle(&oci(&two_layers()), &name);
    let error = pushed(&bundle, &name).await.unwrap_err();
    assert!(matches!(error, ImageError::NotPushed { .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    let by_digest = format!("{free}/a/b@{}", digest(b""));
    let error = pushed(&bundle, &by_digest).await.unwrap_err();
    assert!(matches!(error, ImageError::Reference { .. }), "{error}");
}

#[test]
fn a_krunner_layer_is_exported_pushed_and_pulled_by_commands() {
    let registry = Registry::start(None);
    let fixture = Fixture::new();
    let exported = fixture.path("layout");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_backendai-agent"))
        .args(["krunner", "export", "--json"])
        .arg(&exported)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let exported_as: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = registry.name("ops/krunner:1");
    let state = fixture.path("state");
    let path = exported.to_str().unwrap();
    let told: Value = serde_json::from_str(&run(&state, &["push", path, &name, "--json"])).unwrap();
    assert_eq!(told["digest"], exported_as["digest"]);
    assert_eq!(told["name"], name.as_str());
    let pulled: Value = serde_json::from_str(&run(&state, &["pull", &name, "--json"])).unwrap();
    assert_eq!(pulled["repo_digest"], told["digest"]);
    assert_eq!(
        pulled["labels"]["ai.backend.krunner.digest"],
        exported_as["layer"]
    );
    assert_eq!(std::fs::read_dir(state.join("tmp")).unwrap().count(), 0);
    refused(&state, &[&name, &name], "archives not kept");
    refused(&state, &["no/such:1", &name], "no/such:1");
    refused(
        &state,
        &["-", &name, "--username", "me", "--password-stdin"],
        "not both",
    );
}

fn refused(state: &Path, arguments: &[&str], text: &str) {
    let output = agent(state)
        .arg("push")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains(text), "{errors}");
}
