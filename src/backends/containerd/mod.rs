//! The engine containerd: containers, snapshots and tasks over its gRPC API, in a namespace of our own.
//!
//! containerd keeps what is known of a container (`record`), its shim is the container's parent, and the small program
//! of `monitor/` writes its log; so agents and daemon come and go while containers run. Network, cgroups and the
//! files of names are the agent's (`runtime`), as for every engine that has none.
//!
//! ```text
//! <state>/containerd/containers/<id>/logs/        log, log.1, pid of the shim's logger
//!                                    hosts …      mounted into the container
//!                                    made         it was made to the end
//!                                    exit.json    how it ended, once somebody has seen that
//! ```
//!
//! 2026-11-26: pulls are our own, also where containerd has a transfer service: that reads no credentials of ours
//! without a stream for each pull, tells no digest errors apart, and containerd 1.6 lacks it.

mod calls;
mod client;
mod collect;
mod content;
mod create;
mod exec;
mod handler;
mod images;
mod life;
mod record;
mod remove;
mod root;
mod store;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use self::client::{Client, engine_error, failed};
use self::collect::Collector;
use self::handler::Handler;
use self::images::Images;
use super::{Engine, EngineConfig};
use crate::image::ImageAdmin;
use crate::image::engine::EngineImages;
use crate::runtime::folder::Folders;
use crate::runtime::log::follow_files;
use crate::runtime::network::NetworkConfig;
use crate::runtime::record::Names;
use crate::runtime::sandbox::{OPEN_FILES, Sandbox, SandboxConfig};
use crate::runtime::{
    ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ExecOutput, ExecSpec, ExitStatus,
    LogPart, Result, RuntimeInfo, settled,
};
use crate::sys::rlimit;

/// Name of the engine.
const NAME: &str = "containerd";
/// Where its socket is by default.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Namespace of everything that we make in it.
const NAMESPACE: &str = "backendai";

/// Folder of a container's log, in its folder.
const LOGS: &str = "logs";

/// Opens the engine.
///
/// # Errors
/// When the daemon does not answer, or a program that it needs is missing.
pub async fn open(config: EngineConfig) -> Result<Engine> {
    let images = images_of(&config).await?;
    let state = config.state_dir.join(NAME);
    let handler = Handler::open(config.handler.as_deref().unwrap_or("runc"), &state)?;
    let folders = Folders::open(state.join("containers"), "made")
        .map_err(|error| engine_error("opening the folder of containers", error.into()))?;
    let client = Arc::clone(images.store().client());
    let open_files = client.open_files().await.unwrap_or(OPEN_FILES);
    let around = SandboxConfig {
        network: NetworkConfig::default(),
        cgroups: "/backendai".into(),
        open_files: rlimit::open_files_at_most(open_files.min(OPEN_FILES)),
    };
    let runtime = Containerd(Arc::new(Inner {
        sandbox: Sandbox::open(NAME, &config.run_dir, around)?,
        collector: Collector::new(Arc::clone(&client)),
        client,
        images: Arc::clone(&images),
        handler,
        folders,
        run_dir: config.run_dir,
        names: Names::default(),
        background: TaskTracker::new(),
    }));
    Ok(Engine {
        runtime: Arc::new(runtime),
        images,
        listens: false,
        maps_users: false,
    })
}

/// Opens its images.
///
/// # Errors
/// When the daemon does not answer, or has no such snapshotter.
pub async fn open_images(config: EngineConfig) -> Result<Arc<dyn ImageAdmin>> {
    Ok(images_of(&config).await?)
}

async fn images_of(config: &EngineConfig) -> Result<Arc<EngineImages<Images>>> {
    let endpoint = config.endpoint.as_deref().unwrap_or(SOCKET);
    let client = Client::new(endpoint, NAMESPACE)?;
    let ready = client.ensure_namespace().await;
    ready.map_err(failed("making the namespace"))?;
    let snapshotter = config.snapshotter.as_deref().unwrap_or("overlayfs");
    let state = config.state_dir.join(NAME);
    let store = Images::new(Arc::new(client), snapshotter, &state);
    store.check_snapshotter().await?;
    Ok(Arc::new(EngineImages::new(store)))
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Containerd(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Arc<Client>,
    images: Arc<EngineImages<Images>>,
    handler: Handler,
    /// Network and cgroups.
    sandbox: Sandbox,
    folders: Folders,
    /// What of removals is containerd's own affair.
    collector: Collector,
    /// Folder for the pipes of programs that run in containers.
    run_dir: PathBuf,
    /// Names of containers that are being made.
    names: Names,
    /// What goes on after its caller has been answered.
    background: TaskTracker,
}

impl Inner {
    /// Where images are.
    fn images(&self) -> &Images {
        self.images.store()
    }
}

#[async_trait]
impl ContainerRuntime for Containerd {
    async fn info(&self) -> Result<RuntimeInfo> {
        let version = self.0.client.version().await;
        let version = version.map_err(failed("asking for the version"))?.version;
        Ok(RuntimeInfo {
            name: NAME,
            version,
        })
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        self.0.create(spec).await
    }

    async fn start(&self, id: &ContainerId) -> Result<()> {
        self.0.start(id).await
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.0.wait(id).await
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.0.kill(id, signal).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.0.remove(id).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.0.inspect(id).await
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>> {
        self.0.sandbox.look_after().await;
        self.0.list().await
    }

    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        self.0.logs(id, limit).await
    }

    async fn follow(&self, id: &ContainerId, tail: usize, to: mpsc::Sender<LogPart>) -> Result<()> {
        let folder = self.0.log_folder(id).await?;
        follow_files(folder, tail, self.wait(id), to).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        exec::exec(&self.0, id, spec).await
    }

    async fn settle(&self) {
        self.0.collector.hurry();
        settled(&self.0.background, NAME).await;
    }
}
