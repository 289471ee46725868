//! Images that an engine's daemon keeps, to a registry and back.

use backendai_agent::backends::{EngineConfig, RuntimeKind, open_images};
use backendai_agent::image::{ImageError, ImportOptions, PushOptions, Store, push};
use backendai_agent::runtime::ImageStore as _;

use super::archives::{layout, packed, two_layers};
use super::daemons::{Daemon, Kind};
use super::registry::Registry;

async fn there_and_back(runtime: RuntimeKind, kind: Kind, keeps_digests: bool) {
    let daemon = match Daemon::get(kind) {
        Ok(daemon) => daemon,
        Err(lack) => {
            println!("skipped: {lack}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path().join("scratch");
    let config = EngineConfig {
        state_dir: folder.path().join("state"),
        run_dir: folder.path().join("run"),
        endpoint: Some(daemon.endpoint()),
        ..EngineConfig::default()
    };
    let images = open_images(runtime, config).await.unwrap();
    let source = two_layers();
    let files = layout(
        &source.manifest,
        &[("local/pushed:1", &source.manifest)],
        &[&source],
    );
    let archive = folder.path().join("archive.tar");
    std::fs::write(&archive, packed(&files)).unwrap();
    let options = ImportOptions::default();
    images.import(&archive, None, &options).await.unwrap();
    // Docker's id is another one when containerd keeps its images.
    let id = images.inspect("local/pushed:1").await.unwrap().id;
    let registry = Registry::start(None);
    let name = registry.name("there/and/back:1");
    for given in ["local/pushed:1", &id] {
        let bundle = images.export(given, &scratch).await.unwrap();
        let pushed = push(&bundle, &name, &PushOptions::default()).await.unwrap();
        assert_eq!(pushed.digest == source.digest(), keeps_digests);
        let store = Store::open(&folder.path().join("store")).unwrap();
        assert_eq!(store.pull(&name, None).await.unwrap().id, source.id());
    }
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    let error = images.export("no/such:1", &scratch).await.unwrap_err();
    assert!(error.to_string().contains("no/such:1"), "{error}");
    assert!(!matches!(error, ImageError::NothingToPush { .. }));
    images.remove("local/pushed:1").await.unwrap();
}

mod docker {
    #[tokio::test]
    async fn an_image_that_it_keeps_goes_to_a_registry_and_comes_back() {
        let (runtime, kind) = (super::RuntimeKind::Docker, super::Kind::Docker);
        super::there_and_back(runtime, kind, false).await;
    }
}

mod containerd {
    #[tokio::test]
    async fn an_image_that_it_keeps_goes_to_a_registry_and_comes_back() {
        let (runtime, kind) = (super::RuntimeKind::Containerd, super::Kind::Containerd);
        super::there_and_back(runtime, kind, true).await;
    }
}
