//! The images that dockerd keeps, and a registry that it pulls from.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backendai_agent::image::{ImageError, ImportOptions, PullOptions};
use backendai_agent::runtime::{ImageInfo, RegistryAuth, RuntimeError};
use indicatif::ProgressBar;
use tempfile::TempDir;

use crate::daemons::docker_stores_in_containerd;
use crate::node::{IMAGE, Node};

/// `me:secret`, as htpasswd writes it.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Debian's registry in the network of this test; it wants a login.
struct Registry {
    child: Child,
    host: String,
    folder: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let host = free.expect("a port").to_string();
        let (data, passwords) = (folder.path().join("data"), folder.path().join("htpasswd"));
        fs::write(&passwords, HTPASSWD).expect("a file");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"{host}\"}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            data.display(),
            passwords.display()
        );
        let path = folder.path().join("config.yml");
        fs::write(&path, config).expect("a file");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry runs (apt-get install docker-registry)");
        let registry = Self {
            child,
            host,
            folder,
        };
        for _ in 0..1000 {
            if TcpStream::connect(&registry.host).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry does not serve");
    }

    /// Pushes an image of the node under a name in this registry, and takes the name away again.
    fn push(&self, node: &Node, image: &str, name: &str) -> String {
        let config = self.folder.path().join("docker");
        let config = config.to_str().expect("text");
        let name = format!("{}/{name}", self.host);
        node.docker(&["tag", image, &name]);
        node.docker(&[
            "--config", config, "login", "-u", "me", "-p", "secret", &self.host,
        ]);
        node.docker(&["--config", config, "push", "-q", &name]);
        node.docker(&["rmi", &name]);
        name
    }
}

fn login(password: &str) -> RegistryAuth {
    RegistryAuth {
        username: "me".to_owned(),
        password: password.to_owned(),
    }
}

async fn names(node: &Node) -> Vec<String> {
    let listed = node.images.list().await.expect("list");
    listed
        .into_iter()
        .flat_map(|image: ImageInfo| image.names)
        .collect()
}

#[tokio::test]
async fn what_an_image_is_made_of_is_told() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let tar = node.dir.path().join("busybox.tar");
    let options = ImportOptions {
        labels: [("a".to_owned(), "b".to_owned())].into(),
        env: vec!["A=b".to_owned()],
        command: vec!["sh".to_owned(), "-i".to_owned()],
        ..ImportOptions::default()
    };
    let imported = node
        .images
        .import(&tar, Some("local/other:1"), &options)
        .await;
    let imported = imported.expect("import");
    let image = node.images.inspect("local/other:1").await.expect("inspect");
    assert_eq!(imported, std::slice::from_ref(&image));
    assert_eq!(
        (image.names.clone(), image.command.clone()),
        (vec!["local/other:1".to_owned()], options.command)
    );
    assert_eq!(
        (image.labels.clone(), image.env.clone()),
        (options.labels, options.env)
    );
    assert!(
        image.size > 100_000 && !image.architecture.is_empty(),
        "{image:?}"
    );
    let id = node.docker(&["image", "inspect", "-f", "{{.Id}}", "local/other:1"]);
    assert_eq!(image.id, id);
    assert_eq!(node.images.inspect(&id).await.expect("by id"), image);
    assert_eq!(names(&node).await, [IMAGE, "local/other:1"]);
}

#[tokio::test]
async fn a_name_of_the_default_registry_may_be_written_in_every_way() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    node.docker(&["tag", IMAGE, "lablup/python:3.6"]);
    for name in [
        "lablup/python:3.6",
        "docker.io/lablup/python:3.6",
        "index.docker.io/lablup/python:3.6",
    ] {
        let image = node.images.inspect(name).await.expect(name);
        assert!(image.names.iter().any(|known| known == name), "{image:?}");
        let mut spec = node.shell("true");
        spec.image = name.to_owned();
        let id = node.runtime.create(&spec).await.expect(name);
        assert_eq!(
            node.runtime.inspect(&id).await.expect("inspect").image,
            name
        );
        node.runtime.remove(&id).await.expect("remove");
    }
}

#[tokio::test]
async fn an_image_is_pulled_with_the_right_login_and_its_progress_is_shown() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let registry = Registry::start();
    node.import("local/pushed:1").await;
    let name = registry.push(&node, "local/pushed:1", "a/b:1");
    node.images.remove("local/pushed:1").await.expect("remove");
    node.images.remove(IMAGE).await.expect("remove");
    for auth in [None, Some(login("wrong"))] {
        let options = PullOptions {
            auth,
            ..PullOptions::default()
        };
        let error = node
            .images
            .pull_with(&name, &options)
            .await
            .expect_err("no access");
        assert!(matches!(error, ImageError::Denied { .. }), "{error:?}");
    }
    let progress = ProgressBar::hidden();
    let options = PullOptions {
        auth: Some(login("secret")),
        progress: progress.clone(),
        ..PullOptions::default()
    };
    let image = node.images.pull_with(&name, &options).await.expect("pull");
    assert_eq!(image.names, [name.as_str()]);
    // With containerd's store dockerd tells it ten times a second, and of a layer that came sooner nothing.
    let told = progress.length().is_some_and(|length| length > 100_000);
    assert!(told || docker_stores_in_containerd());
    let digest = image.repo_digest.clone().expect("it came from a registry");
    node.images.remove(&name).await.expect("remove");
    // The manager names the digest too; the name is there after it all the same.
    let exact = format!("{name}@{digest}");
    let again = node
        .images
        .pull(&exact, Some(&login("secret")))
        .await
        .expect("pull");
    assert_eq!(again.id, image.id);
    assert_eq!(
        node.images.inspect(&name).await.expect("by name").id,
        image.id
    );
    assert_eq!(
        node.images.inspect(&exact).await.expect("by digest").id,
        image.id
    );
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_named_with_the_reason() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let registry = Registry::start();
    let absent = format!("{}/a/none:1", registry.host);
    let error = node
        .images
        .pull(&absent, Some(&login("secret")))
        .await
        .expect_err("absent");
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains(&absent)),
        "{error:?}"
    );
    let error = node
        .images
        .pull("127.0.0.1:1/a/b:1", None)
        .await
        .expect_err("nobody there");
    assert!(
        matches!(error, RuntimeError::Unavailable { .. }),
        "{error:?}"
    );
    for wrong in ["A/b", "../x", "a b"] {
        let error = node.images.inspect(wrong).await.expect_err("no name");
        assert!(matches!(error, RuntimeError::Invalid(_)), "{error:?}");
    }
    let error = node
        .images
        .inspect("local/none:1")
        .await
        .expect_err("absent");
    assert!(
        matches!(&error, RuntimeError::ImageMissing(name) if name == "local/none:1"),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_image_that_a_container_stands_on_stays() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let container = node
        .runtime
        .create(&node.shell("true"))
        .await
        .expect("create");
    let id = node.images.inspect(IMAGE).await.expect("inspect").id;
    for name in [IMAGE, &id] {
        let error = node.images.remove(name).await.expect_err("in use");
        assert!(
            matches!(&error, ImageError::InUse(it) if it == name),
            "{error:?}"
        );
    }
    // One of two names may go.
    node.docker(&["tag", IMAGE, "local/second:1"]);
    node.images.remove("local/second:1").await.expect("remove");
    node.runtime.remove(&container).await.expect("remove");
    node.docker(&["tag", IMAGE, "local/second:1"]);
    node.images.remove(&id).await.expect("with all its names");
    assert_eq!(names(&node).await, Vec::<String>::new());
    let error = node.images.remove(IMAGE).await.expect_err("gone");
    assert!(matches!(error, ImageError::Missing(_)), "{error:?}");
}

#[tokio::test]
async fn an_image_that_is_known_by_its_digest_alone_has_no_name() {
    let Some(node) = Node::new(&[]).await else {
        return;
    };
    let registry = Registry::start();
    let name = registry.push(&node, IMAGE, "a/b:1");
    let options = PullOptions {
        auth: Some(login("secret")),
        ..PullOptions::default()
    };
    let image = node.images.pull_with(&name, &options).await.expect("pull");
    for name in [&name, IMAGE] {
        node.images.remove(name).await.expect("remove");
    }
    let exact = format!("{name}@{}", image.repo_digest.expect("a digest"));
    let config = registry.folder.path().join("docker");
    let config = config.to_str().expect("text");
    node.docker(&["--config", config, "pull", "-q", &exact]);
    // Managers take no list in which a name has a digest.
    let listed = node.images.list().await.expect("list");
    assert_eq!((listed.len(), &listed[0].id), (1, &image.id));
    assert_eq!(listed[0].names, Vec::<String>::new());
    let found = node.images.inspect(&exact).await.expect("inspect");
    assert_eq!(found.id, image.id);
}
