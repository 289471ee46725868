//! The images that containerd keeps, and a registry that we pull from into it.

use std::sync::atomic::Ordering;

use backendai_agent::image::{ImageError, ImportOptions, PullOptions};
use backendai_agent::runtime::{ImageInfo, RuntimeError};
use indicatif::ProgressBar;
use oci_client::secrets::RegistryAuth as Secret;

use crate::node::{IMAGE, Node};
use crate::server::{HTPASSWD, Proxy, Registry, me};
use crate::support::{Image, Tar, architectures, image, layer, noise, zstd};

fn pushed(size: usize) -> Image {
    let plain = Tar::new().file("p", b"plain").finish();
    let other = Tar::new().file("z", b"zstd").finish();
    let packed = zstd(&other);
    image(
        architectures().0,
        &[
            (plain.clone(), plain),
            (other, packed),
            layer("g", &noise(size, 3)),
        ],
    )
}

async fn names(node: &Node) -> Vec<String> {
    let listed = node.images.list().await.expect("list");
    listed
        .into_iter()
        .flat_map(|image: ImageInfo| image.names)
        .collect()
}

/// No lease, no half unpacked layer.
fn assert_nothing_held(node: &Node) {
    assert_eq!(node.ctr(&["leases", "ls", "-q"]), "");
    let snapshots = node.ctr(&["snapshots", "ls"]);
    assert!(!snapshots.contains("extract-"), "{snapshots}");
}

#[tokio::test]
async fn what_an_image_is_made_of_is_told_under_each_of_its_names() {
    let Some(node) = Node::new().await else {
        return;
    };
    let info = node.images.inspect(IMAGE).await.expect("inspect");
    assert_eq!(info.names, [IMAGE]);
    assert_eq!(info.labels["ai.backend.kernelspec"], "1");
    assert_eq!(
        (info.env.as_slice(), info.architecture.as_str()),
        (["A=b".to_owned()].as_slice(), architectures().0)
    );
    assert_eq!(info.command, ["sh", "-i"]);
    assert!(info.size > 1 << 20, "{info:?}");
    assert_eq!(node.images.inspect(&info.id).await.expect("by id"), info);
    node.import("local/other:1").await;
    let both = node.images.inspect(&info.id).await.expect("by id");
    assert_eq!(both.names, [IMAGE, "local/other:1"]);
    node.images.remove("local/other:1").await.expect("remove");
    assert_eq!(names(&node).await, [IMAGE]);
    node.images.remove(&info.id).await.expect("remove");
    assert_eq!(names(&node).await, Vec::<String>::new());
    let missing = node.images.inspect(IMAGE).await;
    assert!(
        matches!(missing, Err(RuntimeError::ImageMissing(_))),
        "{missing:?}"
    );
    // The layers are gone too, and nothing else was holding them.
    assert_eq!(node.ctr(&["content", "ls", "-q"]), "");
    assert_eq!(node.ctr(&["snapshots", "ls"]).lines().count(), 1);
}

#[tokio::test]
async fn an_image_under_a_container_is_in_use() {
    let Some(node) = Node::new().await else {
        return;
    };
    let id = node
        .runtime
        .create(&node.shell("true"))
        .await
        .expect("create");
    let refused = node.images.remove(IMAGE).await;
    assert!(matches!(refused, Err(ImageError::InUse(_))), "{refused:?}");
    node.import("local/other:1").await;
    node.images
        .remove(IMAGE)
        .await
        .expect("it has another name");
    node.runtime.start(&id).await.expect("start");
    assert_eq!(node.runtime.wait(&id).await.expect("wait").code, 0);
    node.runtime.remove(&id).await.expect("remove");
    node.images.remove("local/other:1").await.expect("remove");
}

#[tokio::test]
async fn an_image_for_another_machine_is_refused_by_a_container() {
    let Some(node) = Node::new().await else {
        return;
    };
    let tar = node.dir.path().join("busybox.tar");
    let options = ImportOptions {
        architecture: Some(architectures().1.to_owned()),
        ..ImportOptions::default()
    };
    let imported = node
        .images
        .import(&tar, Some("local/foreign:1"), &options)
        .await;
    imported.expect("import");
    let mut spec = node.shell("true");
    spec.image = "local/foreign:1".to_owned();
    let refused = node.runtime.create(&spec).await.expect_err("foreign");
    assert!(
        matches!(&refused, RuntimeError::Invalid(text) if text.contains(architectures().1)),
        "{refused}"
    );
}

#[tokio::test]
async fn a_pulled_image_is_what_was_pushed_and_a_second_pull_asks_for_no_layer() {
    let Some(node) = Node::new().await else {
        return;
    };
    let registry = Registry::start(Some(HTPASSWD));
    let name = registry.name("lablup/python:3.6-debian");
    let pushed = pushed(3_000_000);
    let secret = Secret::Basic("me".to_owned(), "secret".to_owned());
    registry.push(&name, secret, &[("amd64", &pushed)]).await;
    let denied = node.images.pull_with(&name, &PullOptions::default()).await;
    assert!(
        matches!(denied, Err(ImageError::Denied { .. })),
        "{denied:?}"
    );
    let options = PullOptions {
        auth: Some(me()),
        progress: ProgressBar::hidden(),
        ..PullOptions::default()
    };
    let image = node.images.pull_with(&name, &options).await.expect("pull");
    let all = options.progress.length();
    assert!(all > Some(3_000_000) && all == Some(options.progress.position()));
    assert_eq!(
        (image.names.as_slice(), &image.id),
        ([name.clone()].as_slice(), &pushed.id())
    );
    assert_eq!(image.repo_digest, Some(pushed.digest()));
    for layer in &pushed.layers {
        std::fs::remove_file(registry.blob(layer)).expect("a blob");
    }
    assert_eq!(
        node.images.pull(&name, Some(&me())).await.expect("pull"),
        image
    );
    let by_digest = format!("{}@{}", registry.name("lablup/python"), pushed.digest());
    assert_eq!(
        node.images.inspect(&by_digest).await.expect("inspect"),
        image
    );
    assert_nothing_held(&node);
    // Its layers stand above one another.
    let view = node.ctr(&["snapshots", "ls"]);
    assert_eq!(
        view.lines()
            .filter(|line| line.trim_end().ends_with("Committed"))
            .count(),
        4
    );
}

#[tokio::test]
async fn a_pull_goes_on_where_the_connection_broke() {
    let Some(node) = Node::new().await else {
        return;
    };
    let registry = Registry::start(None);
    let big = pushed(4_000_000);
    registry.push_one(&registry.name("a/b:1"), &big).await;
    let proxy = Proxy::start(registry.address, 2_500_000).await;
    let name = format!("{}/a/b:1", proxy.address);
    let image = node.images.pull(&name, None).await.expect("pull");
    assert_eq!(image.id, big.id());
    assert_eq!(proxy.left.load(Ordering::Relaxed), 0, "it was cut");
    assert_nothing_held(&node);
}

#[tokio::test]
async fn a_pull_begins_with_what_an_earlier_one_left() {
    let Some(node) = Node::new().await else {
        return;
    };
    let registry = Registry::start(None);
    let big = pushed(4_000_000);
    registry.push_one(&registry.name("a/b:1"), &big).await;
    let layer = big.layers.last().expect("a layer");
    let whole = std::fs::read(registry.blob(layer)).expect("a blob");
    // As if the registry had lost the end of its file: every try ends there.
    std::fs::write(registry.blob(layer), &whole[..2_500_000]).expect("a file");
    let name = registry.name("a/b:1");
    let broken = node.images.pull(&name, None).await;
    assert!(
        matches!(broken, Err(RuntimeError::Unavailable { .. })),
        "{broken:?}"
    );
    assert_eq!(names(&node).await, [IMAGE], "nothing has its name");
    let kept = node.ctr(&["content", "active"]);
    assert!(kept.contains(layer), "{kept}");
    // The beginning is not asked for again: here it would be wrong.
    let mut damaged = whole;
    damaged[..1000].fill(0);
    std::fs::write(registry.blob(layer), damaged).expect("a file");
    let image = node.images.pull(&name, None).await.expect("pull");
    assert_eq!(image.id, big.id());
}

#[tokio::test]
async fn a_damaged_blob_is_refused_and_nothing_of_it_is_kept() {
    let Some(node) = Node::new().await else {
        return;
    };
    let registry = Registry::start(None);
    let pushed = pushed(200_000);
    let name = registry.name("a/b:1");
    registry.push_one(&name, &pushed).await;
    let layer = pushed.layers.last().expect("a layer");
    let whole = std::fs::read(registry.blob(layer)).expect("a blob");
    let mut damaged = whole.clone();
    damaged[1000] ^= 1;
    std::fs::write(registry.blob(layer), damaged).expect("a file");
    let refused = node.images.pull_with(&name, &PullOptions::default()).await;
    assert!(
        matches!(&refused, Err(ImageError::WrongDigest { expected, .. }) if expected == layer),
        "{refused:?}"
    );
    assert_eq!(names(&node).await, [IMAGE]);
    assert_nothing_held(&node);
    std::fs::write(registry.blob(layer), whole).expect("a file");
    node.images
        .pull(&name, None)
        .await
        .expect("what was wrong is forgotten");
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index() {
    let Some(node) = Node::new().await else {
        return;
    };
    let registry = Registry::start(None);
    let (own, other) = architectures();
    let images = [own, other].map(|name| image(name, &[layer(name, name.as_bytes())]));
    let name = registry.name("a/b:1");
    registry
        .push(
            &name,
            Secret::Anonymous,
            &[(other, &images[1]), (own, &images[0])],
        )
        .await;
    let pulled = node.images.pull(&name, None).await.expect("pull");
    assert_eq!(
        (&pulled.id, pulled.architecture.as_str()),
        (&images[0].id(), own)
    );
    assert_ne!(
        pulled.repo_digest,
        Some(images[0].digest()),
        "the index has its own"
    );
}

#[tokio::test]
async fn an_image_that_another_tool_brought_is_unpacked_by_the_first_container() {
    let Some(node) = Node::new().await else {
        return;
    };
    let archive = node.dir.path().join("image.tar");
    let archive = archive.to_str().expect("text");
    node.ctr(&["images", "export", archive, IMAGE]);
    node.images.remove(IMAGE).await.expect("remove");
    node.ctr(&["images", "import", "--no-unpack", archive]);
    assert_eq!(names(&node).await, [IMAGE]);
    assert_eq!(node.output(&node.shell("echo hello")).await, "hello\n");
    assert_nothing_held(&node);
}

#[tokio::test]
async fn a_container_stands_on_another_snapshotter() {
    let native = |config: &mut backendai_agent::backends::EngineConfig| {
        config.snapshotter = Some("native".to_owned());
    };
    let Some(node) = Node::with(native).await else {
        return;
    };
    let script = "echo x > /tmp/made; cat /tmp/made; seq 3; echo err >&2";
    assert_eq!(node.output(&node.shell(script)).await, "x\n1\n2\n3\nerr\n");
    assert_eq!(
        node.ctr(&["snapshots", "ls"]).lines().count(),
        1,
        "overlayfs has none"
    );
    let native = node.ctr(&["snapshots", "--snapshotter", "native", "ls"]);
    assert_eq!(native.lines().count(), 2, "{native}");
}

#[tokio::test]
async fn name_files_are_mounted_where_the_images_links_lead() {
    let native = |config: &mut backendai_agent::backends::EngineConfig| {
        config.snapshotter = Some("native".to_owned());
    };
    for change in [|_: &mut _| {}, native] {
        let Some(node) = Node::with(change).await else {
            return;
        };
        // busybox's `/etc/hostname` is a link to `/etc/passwd`, which is not there.
        let spec = node.shell("cat /etc/hostname; hostname");
        let id = node.launch(&spec).await;
        node.runtime.wait(&id).await.expect("wait");
        let log = node.runtime.logs(&id, 100).await.expect("logs");
        assert_eq!(log, b"inside\ninside\n");
        let known = node.ctr(&["containers", "info", &id.0]);
        let known: serde_json::Value = serde_json::from_str(&known).expect("json");
        let mounts = known["Spec"]["mounts"].as_array().expect("mounts");
        let targets = mounts.iter().map(|it| it["destination"].as_str());
        let targets: Vec<_> = targets
            .flatten()
            .filter(|it| it.starts_with("/etc/"))
            .collect();
        assert_eq!(targets, ["/etc/passwd", "/etc/hosts"]);
        node.runtime.remove(&id).await.expect("remove");
    }
}

#[tokio::test]
async fn an_image_is_handed_on_with_the_digests_it_has() {
    let Some(node) = Node::new().await else {
        return;
    };
    let registry = Registry::start(None);
    let pushed = pushed(2_000_000);
    let name = registry.name("a/b:1");
    registry.push_one(&name, &pushed).await;
    let image = node.images.pull(&name, None).await.expect("pull");
    let scratch = node.dir.path().join("scratch");
    std::fs::create_dir(&scratch).expect("a folder");
    for what in [&name, &image.id] {
        let bundle = node.images.export(what, &scratch).await.expect("export");
        let exported = &bundle.images()[0];
        assert_eq!(
            (&exported.names, &exported.manifest_digest),
            (&image.names, &pushed.digest())
        );
        let layers = exported.layers.iter().map(|layer| layer.digest.clone());
        assert_eq!(layers.collect::<Vec<_>>(), pushed.layers);
    }
    let left = std::fs::read_dir(&scratch).expect("list");
    assert_eq!(left.count(), 0, "nothing stays when the bundle is gone");
}
