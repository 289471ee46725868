//! What kernels get at `/opt/backend.ai`, from a folder, an image or a registry.

use std::path::{Path, PathBuf};

use backendai_agent::image::{Bundle, ImportOptions, PushOptions, push};
use backendai_agent::krunner::{self, KrunnerEnv, KrunnerError, Source};
use tempfile::TempDir;

use super::archives::{layout, packed};
use super::registry::Registry;
use super::support::{Tar, architectures, gzip, image};

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    async fn open(&self, source: &str) -> Result<KrunnerEnv, KrunnerError> {
        Source::parse(source).open(None, &self.path("state")).await
    }

    /// An image of two layers, the upper of which hides files of the lower one.
    fn layered(&self) -> PathBuf {
        let lower = Tar::new()
            .file("opt/backend.ai/bin/krunner", b"old")
            .file("opt/backend.ai/gone", b"x")
            .file("opt/backend.ai/hidden/deep/x", b"x")
            .file("opt/backend.ai/emptied/x", b"x")
            .file("opt/backend.ai/kept", b"lower")
            .finish();
        let upper = Tar::new()
            .file("opt/backend.ai/bin/krunner", b"new")
            .file("opt/backend.ai/.wh.gone", b"")
            .file("opt/backend.ai/.wh.hidden", b"")
            .file("opt/backend.ai/emptied/own", b"upper")
            .file("opt/backend.ai/emptied/.wh..wh..opq", b"")
            .file("opt/backend.ai/.wh.absent", b"")
            .hard_link("opt/backend.ai/again", "opt/backend.ai/bin/krunner")
            .finish();
        let packed_layers = [(lower.clone(), gzip(&lower)), (upper.clone(), gzip(&upper))];
        let source = image(architectures().0, &packed_layers);
        let files = layout(
            &source.manifest,
            &[("latest", &source.manifest)],
            &[&source],
        );
        let path = self.path("layered.tar");
        std::fs::write(&path, packed(&files)).unwrap();
        path
    }
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_layer_is_unpacked_once_and_its_runner_runs() {
    let fixture = Fixture::new();
    let layout = fixture.path("layout");
    let exported = krunner::export("any/name:1", &layout).unwrap();
    let first = fixture.open(layout.to_str().unwrap()).await.unwrap();
    assert_eq!(first.package, None);
    let folder = fixture
        .path("state/krunner")
        .join(exported.digest.trim_start_matches("sha256:"));
    assert_eq!(first.root, folder.join("opt/backend.ai"));
    let output = std::process::Command::new(first.root.join("bin/krunner"))
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success());
    std::fs::write(folder.join("trace"), "").unwrap();
    assert_eq!(fixture.open(layout.to_str().unwrap()).await.unwrap(), first);
    assert!(folder.join("trace").exists());
    assert_eq!(
        std::fs::read_dir(fixture.path("state/krunner"))
            .unwrap()
            .count(),
        1
    );
    // What is damaged is made again.
    std::fs::remove_file(first.root.join("bin/krunner")).unwrap();
    fixture.open(layout.to_str().unwrap()).await.unwrap();
    assert!(first.root.join("bin/krunner").exists() && !folder.join("trace").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_laid_over_each_other() {
    let fixture = Fixture::new();
    let path = fixture.layered();
    let root = fixture.open(path.to_str().unwrap()).await.unwrap().root;
    assert_eq!(text(root.join("bin/krunner")), "new");
    assert_eq!(text(root.join("kept")), "lower");
    assert_eq!(text(root.join("again")), "new");
    assert_eq!(text(root.join("emptied/own")), "upper");
    for gone in ["gone", "hidden", "emptied/x"] {
        assert!(!root.join(gone).exists(), "{gone}");
    }
    let names = std::fs::read_dir(&root).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[tokio::test]
async fn an_unpacked_folder_is_shown_where_it_is() {
    let fixture = Fixture::new();
    fixture.file("bare/bin/krunner", "x");
    fixture.file("root/opt/backend.ai/bin/krunner", "x");
    for (source, root) in [("bare", "bare"), ("root", "root/opt/backend.ai")] {
        let env = fixture
            .open(fixture.path(source).to_str().unwrap())
            .await
            .unwrap();
        assert_eq!(env.root, std::fs::canonicalize(fixture.path(root)).unwrap());
    }
    assert!(!fixture.path("state").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_of_a_registry_is_kept_for_when_the_registry_is_away() {
    let registry = Registry::start(None);
    let fixture = Fixture::new();
    let options = ImportOptions::default();
    let name = registry.name("ops/krunner:1");
    let scratch = fixture.path("scratch");
    let bundle = Bundle::open(&fixture.layered(), Some(&name), &options, &scratch).unwrap();
    let pushed = push(&bundle, &name, &PushOptions::default()).await.unwrap();
    let env = fixture.open(&name).await.unwrap();
    assert_eq!(text(env.root.join("bin/krunner")), "new");
    let by_digest = format!("{}@{}", registry.name("ops/krunner"), pushed.digest);
    assert_eq!(fixture.open(&by_digest).await.unwrap(), env);
    let other = registry.name("no/such:1");
    let error = fixture.open(&other).await.unwrap_err();
    assert!(error.to_string().contains(&other), "{error}");
    drop(registry);
    assert_eq!(fixture.open(&name).await.unwrap(), env);
    assert_eq!(fixture.open(&by_digest).await.unwrap(), env);
    let elsewhere = Fixture::new();
    let error = elsewhere.open(&name).await.unwrap_err();
    assert!(error.to_string().contains(&name), "{error}");
    let left = std::fs::read_dir(elsewhere.path("state/krunner"));
    assert_eq!(left.map_or(0, Iterator::count), 0);
}

#[tokio::test]
async fn what_holds_no_runner_is_refused() {
    let fixture = Fixture::new();
    let folder = fixture.file("folder/x", "x");
    let archive = fixture.path("root.tar");
    std::fs::write(&archive, Tar::new().file("x", b"x").finish()).unwrap();
    for path in [folder.parent().unwrap(), &archive] {
        let path = path.to_str().unwrap();
        let error = fixture.open(path).await.unwrap_err();
        assert!(matches!(error, KrunnerError::NoRunner(_)), "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
    let error = fixture.open("/nowhere/at/all").await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    let left = std::fs::read_dir(fixture.path("state/krunner")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn the_environment_of_2019_wants_the_operators_package() {
    let fixture = Fixture::new();
    fixture.file("env/bin/python", "");
    fixture.file("env/lib/python3.6/os.py", "");
    for name in [
        "runner/entrypoint.sh",
        "runner/su-exec.ubuntu16.04.bin",
        "kernel/__main__.py",
        "helpers/__init__.py",
    ] {
        fixture.file(&format!("agent/ai/backend/{name}"), "");
    }
    let source = Source::parse(fixture.path("env").to_str().unwrap());
    let state = fixture.path("state");
    let error = source.open(None, &state).await.unwrap_err();
    assert!(error.to_string().contains("--krunner-package"), "{error}");
    let error = source.open(Some(&fixture.path("env")), &state).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("runner/entrypoint.sh"), "{error}");
    let package = fixture.path("agent");
    let env = source.open(Some(&package), &state).await.unwrap();
    let binds = env.package.unwrap().binds("");
    for (from, to) in &binds {
        let below = to.strip_prefix("/opt/backend.ai/").unwrap();
        let place = env.root.join(below);
        assert!(from.exists() && place.exists(), "{to}");
        assert_eq!(from.is_dir(), place.is_dir(), "{to}");
    }
    assert!(env.root.join("agent.sock").exists());
}
