//! The engines' settings, and the image of each.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backendai_agent::backends::EngineConfig;
use backendai_agent::backends::youki::{Rootfs, RootfsSource, Youki};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::{ContainerRuntime, Result, RuntimeError};

use crate::busybox::{self, IMAGE};
use crate::daemons::{self, Daemon};

/// Environment of the image.
pub(super) const ENV: [&str; 2] = ["FROM_IMAGE=yes", "BOTH=image"];

/// Gives the folder of busybox as the root of the only image.
#[derive(Debug)]
struct Busybox(PathBuf);

#[async_trait]
impl RootfsSource for Busybox {
    async fn prepare(&self, image: &str) -> Result<Rootfs> {
        if image != IMAGE {
            return Err(RuntimeError::ImageMissing(image.to_owned()));
        }
        let env = ENV.map(str::to_owned).into();
        Ok(Rootfs {
            name: IMAGE.to_owned(),
            lowers: vec![self.0.clone()],
            env,
        })
    }
}

pub(super) fn config(dir: &Path, daemon: &Daemon) -> EngineConfig {
    EngineConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        monitor_exe: Some(PROGRAM.into()),
        endpoint: Some(daemon.endpoint()),
        handler: daemons::handler(),
        ..EngineConfig::default()
    }
}

/// Gives a daemon the image, once.
pub(super) async fn import(images: &dyn ImageAdmin, dir: &Path, daemon: &Daemon) {
    let lock = fs::File::create(daemon.folder().join("import.lock")).expect("lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    if images.inspect(IMAGE).await.is_ok() {
        return;
    }
    let tar = dir.join("busybox.tar");
    busybox::tar(&tar);
    let options = ImportOptions {
        env: ENV.map(str::to_owned).into(),
        ..ImportOptions::default()
    };
    let imported = images.import(&tar, Some(IMAGE), &options).await;
    imported.expect("the image can be imported");
}

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_backendai-agent");

pub(super) async fn open(dir: &Path) -> Arc<dyn ContainerRuntime> {
    open_with(dir, Path::new(PROGRAM), dir.join("busybox")).await
}

pub(super) async fn open_with(
    dir: &Path,
    monitor: &Path,
    root: PathBuf,
) -> Arc<dyn ContainerRuntime> {
    let config = EngineConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        monitor_exe: Some(monitor.to_owned()),
        ..EngineConfig::default()
    };
    let images = Arc::new(Busybox(root));
    Arc::new(
        Youki::open(config, images)
            .await
            .expect("the engine opens; the tests run as root"),
    )
}
