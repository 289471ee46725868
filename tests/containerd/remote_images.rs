//! Images whose layers a snapshotter has by itself: what it takes is not fetched, what it does not take is.

use backendai_agent::image::{ImageError, PullOptions};
use backendai_agent::runtime::RuntimeError;
use indicatif::ProgressBar;

use crate::away::in_time;
use crate::busybox;
use crate::daemons::{self, Kind};
use crate::node::{IMAGE, Node};
use crate::server::Registry;
use crate::snapshotter::{NAME, Snapshotter, cri};
use crate::support::{Image, architectures, gzip, image, layer, noise};

/// A label that a manifest has for the snapshotter.
const TOC: &str = "containerd.io/snapshot/stargz/toc.digest";

/// A registry, and in it an image: busybox between two layers of a file each, `/one` and `/three`.
struct Remote {
    registry: Registry,
    name: String,
    image: Image,
}

impl Remote {
    async fn new() -> Self {
        daemons::own_network();
        let folder = tempfile::tempdir().expect("a folder");
        let tar = folder.path().join("busybox.tar");
        busybox::tar(&tar);
        let plain = std::fs::read(tar).expect("a tar");
        let packed = gzip(&plain);
        // The lowest one is no other image's.
        let layers = [
            layer("one", b"first\n"),
            (plain, packed),
            layer("three", &noise(100_000, 3)),
        ];
        let mut image = image(architectures().0, &layers);
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&image.manifest).expect("a manifest");
        for layer in manifest["layers"].as_array_mut().expect("layers") {
            layer["annotations"] = serde_json::json!({TOC: "sha256:1", "other": "not told"});
        }
        image.manifest = serde_json::to_vec(&manifest).expect("a manifest");
        let registry = Registry::start(None);
        let name = registry.name("a/b:1");
        registry.push_one(&name, &image).await;
        Self {
            registry,
            name,
            image,
        }
    }

    fn layer(&self, place: usize) -> &str {
        &self.image.layers[place]
    }
}

/// A node whose containerd knows the snapshotter, and whose agent uses it.
async fn node(snapshotter: &Snapshotter) -> Option<Node> {
    let option = snapshotter.option();
    Node::start(Kind::Containerd, &[&option], |config| {
        config.snapshotter = Some(NAME.to_owned());
    })
    .await
}

fn blobs(node: &Node) -> String {
    node.ctr(&["content", "ls", "-q"])
}

fn snapshots(node: &Node) -> String {
    node.ctr(&["snapshots", "--snapshotter", NAME, "ls"])
}

/// What a container of the image sees of the layers around busybox's.
async fn seen(node: &Node, image: &str) -> String {
    let mut spec = node.shell("cat /one; wc -c < /three; echo own > /one; cat /one");
    spec.image = image.to_owned();
    node.output(&spec).await
}

const SEEN: &str = "first\n100000\nown\n";

#[tokio::test]
async fn layers_that_the_snapshotter_has_are_not_fetched_and_the_others_are() {
    let remote = Remote::new().await;
    let snapshotter = Snapshotter::start(&[remote.layer(0), remote.layer(2)]);
    let Some(node) = node(&snapshotter).await else {
        return;
    };
    let options = PullOptions {
        progress: ProgressBar::hidden(),
        ..PullOptions::default()
    };
    let pulled = node.images.pull_with(&remote.name, &options).await;
    let pulled = pulled.expect("pull");
    assert_eq!(pulled.id, remote.image.id());
    let progress = &options.progress;
    assert_eq!(progress.length(), Some(progress.position()));
    let here = [0, 1, 2].map(|place| blobs(&node).contains(remote.layer(place)));
    assert_eq!(here, [false, true, false]);
    assert_eq!(seen(&node, &remote.name).await, SEEN);
    // It was told all that such snapshotters ask for, from the first layer on.
    let asked = snapshotter.asked();
    let asked = &asked[asked.len() - 3..];
    for (place, labels) in asked.iter().enumerate() {
        assert_eq!(labels[&cri("image-ref")], remote.name);
        assert_eq!(labels[&cri("manifest-digest")], remote.image.digest());
        assert_eq!(labels[&cri("layer-digest")], remote.layer(place));
        let rest = remote.image.layers[place..].join(",");
        assert_eq!(labels[&cri("image-layers")], rest);
        assert_eq!(labels[TOC], "sha256:1");
        assert!(!labels.contains_key("other"));
    }
    // It finds them again at the layers that we have unpacked.
    let kept = snapshotter.kept(remote.layer(1)).expect("kept");
    assert_eq!(
        (&kept[TOC], kept[&cri("image-ref")].as_str()),
        (&asked[1][TOC], remote.name.as_str())
    );
    let before = snapshotter.asked().len();
    assert_eq!(
        node.images.pull(&remote.name, None).await.expect("again"),
        pulled
    );
    assert_eq!(snapshotter.asked().len(), before, "all is there");
    // Nothing is left of either image.
    for image in [&remote.name, IMAGE] {
        node.images.remove(image).await.expect("remove");
    }
    assert_eq!(blobs(&node), "");
    assert_eq!(snapshots(&node).lines().count(), 1);
    assert_eq!(node.ctr(&["leases", "ls", "-q"]), "");
    assert_eq!(snapshotter.names(), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_that_another_snapshotter_unpacked_is_asked_for_by_its_name() {
    let remote = Remote::new().await;
    let all = [0, 1, 2].map(|place| remote.layer(place));
    let snapshotter = Snapshotter::start(&all);
    let option = snapshotter.option();
    let Some(mut node) = Node::start(Kind::Containerd, &[&option], |_| {}).await else {
        return;
    };
    node.images.pull(&remote.name, None).await.expect("pull");
    assert_eq!(snapshotter.asked().len(), 0);
    let other = node.another(|config| config.snapshotter = Some(NAME.to_owned()));
    node.runtime = other.await.expect("the engine opens");
    assert_eq!(seen(&node, &remote.name).await, SEEN);
    let asked = snapshotter.asked();
    assert_eq!(asked.len(), 3);
    assert!(
        asked
            .iter()
            .all(|labels| labels[&cri("image-ref")] == remote.name)
    );
}

#[tokio::test]
async fn layers_that_were_never_fetched_cannot_be_handed_on_and_that_is_said() {
    let remote = Remote::new().await;
    let snapshotter = Snapshotter::start(&[remote.layer(1)]);
    let Some(node) = node(&snapshotter).await else {
        return;
    };
    node.images.pull(&remote.name, None).await.expect("pull");
    let scratch = node.dir.path().join("scratch");
    std::fs::create_dir(&scratch).expect("a folder");
    let refused = node.images.export(&remote.name, &scratch).await;
    let refused = refused.expect_err("it is not here").to_string();
    assert!(
        refused.contains(remote.layer(1)) && refused.contains(NAME),
        "{refused}"
    );
}

#[tokio::test]
async fn a_damaged_layer_that_is_fetched_after_all_is_forgotten() {
    let remote = Remote::new().await;
    let snapshotter = Snapshotter::start(&[remote.layer(0)]);
    let Some(node) = node(&snapshotter).await else {
        return;
    };
    let file = remote.registry.blob(remote.layer(2));
    let whole = std::fs::read(&file).expect("a blob");
    let mut damaged = whole.clone();
    damaged[1000] ^= 1;
    std::fs::write(&file, damaged).expect("a file");
    let refused = node
        .images
        .pull_with(&remote.name, &PullOptions::default())
        .await;
    assert!(
        matches!(&refused, Err(ImageError::WrongDigest { .. })),
        "{refused:?}"
    );
    let left = snapshots(&node);
    assert!(!left.contains("extract-"), "{left}");
    std::fs::write(&file, whole).expect("a file");
    node.images.pull(&remote.name, None).await.expect("pull");
    assert_eq!(seen(&node, &remote.name).await, SEEN);
}

#[tokio::test]
async fn a_snapshotter_that_is_away_is_named_and_all_goes_on_when_it_is_back() {
    let remote = Remote::new().await;
    let mut snapshotter = Snapshotter::start(&[remote.layer(0)]);
    let Some(node) = node(&snapshotter).await else {
        return;
    };
    let id = node.launch(&node.shell("true")).await;
    node.runtime.wait(&id).await.expect("wait");
    snapshotter.stop();
    let failed = [
        node.images.pull(&remote.name, None).await.map(drop),
        node.runtime.create(&node.shell("true")).await.map(drop),
    ];
    for failed in failed {
        let Err(RuntimeError::Unavailable { engine, source }) = &failed else {
            panic!("{failed:?}");
        };
        assert_eq!(*engine, "containerd's snapshotter");
        let text = source.to_string();
        let said = text.starts_with(NAME) && text.contains("is it running?");
        assert!(said, "{text}");
    }
    // All that containerd does alone is done.
    let listed = node.images.list().await.expect("images");
    assert_eq!(listed.len(), 1);
    let another = node.another(|config| config.snapshotter = Some(NAME.to_owned()));
    another.await.expect("it may come back");
    node.runtime.remove(&id).await.expect("remove");
    assert_eq!(node.runtime.list().await.expect("list"), []);
    snapshotter.start_again();
    // containerd tries again by itself, now and then.
    let back = async {
        while node.images.pull(&remote.name, None).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    in_time(back).await;
    assert_eq!(seen(&node, &remote.name).await, SEEN);
    let left = snapshots(&node);
    assert!(!left.contains("Active"), "{left}");
}

#[tokio::test]
async fn a_snapshotter_that_containerd_does_not_know_is_refused_at_the_start() {
    let Some(node) = Node::new().await else {
        return;
    };
    let another = node.another(|config| config.snapshotter = Some("nowhere".to_owned()));
    let refused = another.await.expect_err("no such snapshotter");
    assert!(matches!(refused, RuntimeError::Invalid(_)), "{refused}");
    let text = refused.to_string();
    for part in ["\"nowhere\"", "--snapshotter", "proxy_plugins"] {
        assert!(text.contains(part), "{text}");
    }
}
