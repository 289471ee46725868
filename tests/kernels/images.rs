//! The images of kernels under test, given to each engine once.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use backendai_agent::backends::{self, Engine, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::ImageInfo;
use rustix::fs::{FlockOperation, flock};

use crate::daemons::Daemon;

/// The name of an image of the tests'.
pub fn reference(image: &str) -> String {
    format!("local/kernel-{image}:latest")
}

/// Gives an engine an image, once for each daemon, and once for all tests of the engine without one.
pub async fn give_image(
    image: &str,
    engine: &Engine,
    folder: &Path,
    daemon: Option<&Daemon>,
) -> Option<ImageInfo> {
    match daemon {
        Some(daemon) => {
            let _lock = locked(&daemon.folder().join(format!("{image}.lock")));
            Some(import(image, &*engine.images).await)
        }
        None => {
            let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-images");
            fs::create_dir_all(&base).expect("folder");
            let _lock = locked(&base.join("lock"));
            let config = EngineConfig {
                state_dir: base.clone(),
                ..EngineConfig::default()
            };
            let images = backends::open_images(RuntimeKind::Youki, config).await;
            import(image, &*images.expect("a store")).await;
            for name in ["images", "layers"] {
                let place = folder.join("state").join(name);
                let _ = fs::remove_dir_all(&place).or_else(|_| fs::remove_file(&place));
                symlink(base.join(name), place).expect("link");
            }
            None
        }
    }
}

fn locked(path: &Path) -> File {
    let lock = File::create(path).expect("lock");
    flock(&lock, FlockOperation::LockExclusive).expect("lock");
    lock
}

async fn import(image: &str, images: &dyn ImageAdmin) -> ImageInfo {
    if let Ok(info) = images.inspect(&reference(image)).await {
        return info;
    }
    let tar = script(&[image]);
    let json = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("images/{image}/image.json"));
    let json = fs::read(json).expect("read");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let texts = |value: &serde_json::Value, line: fn(&String, &str) -> String| -> Vec<String> {
        let map = value.as_object().expect("a map").iter();
        map.map(|(name, value)| line(name, value.as_str().expect("text")))
            .collect()
    };
    let labels = json["labels"].as_object().expect("labels").iter();
    let options = ImportOptions {
        labels: labels
            .map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned()))
            .collect(),
        env: texts(&json["env"], |name, value| format!("{name}={value}")),
        ..ImportOptions::default()
    };
    let name = reference(image);
    let imported = images.import(Path::new(tar.trim()), Some(&name), &options);
    imported.await.expect("the image can be imported").remove(0)
}

fn script(args: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel-image.sh");
    let output = Command::new(path).args(args).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kernel-image.sh: {text}");
    String::from_utf8(output.stdout).expect("text")
}
