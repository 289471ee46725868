//! The engine without a daemon: libcontainer in a small monitor process for each container, overlay snapshots.
//!
//! The agent itself holds nothing: what is known of a container lies in files (`record`), so that an agent
//! that begins anew finds all of it. `create` makes a folder, a network and cgroups, and starts the monitor, which
//! makes the container; `remove` takes everything apart, from whatever state it finds.

mod create;
mod exec;
mod images;
mod life;
mod monitor;
mod record;
mod remove;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Engine, EngineConfig};
use crate::image::{ImageAdmin, NodeImages, Store};
use crate::rootless::{self, Rootless};
use crate::runtime::folder::{Folder, Folders};
use crate::runtime::log::follow_files;
use crate::runtime::monitor as monitor_program;
use crate::runtime::network::{NetworkConfig, Outer};
use crate::runtime::sandbox::{OPEN_FILES, Sandbox, SandboxConfig};
use crate::runtime::{
    self, BoxError, ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ExecOutput,
    ExecSpec, ExitStatus, LogPart, Result, RuntimeError, RuntimeInfo, check,
};
use crate::sys::program::ReadOnlyProgram;
use crate::sys::{capability, rlimit};

/// Name of the engine.
const NAME: &str = "youki";

/// Opens the engine.
///
/// # Errors
/// What this machine or this user lacks for it.
pub async fn open(config: EngineConfig) -> Result<Engine> {
    let lacking = |error: &dyn fmt::Display| RuntimeError::Invalid(format!("{NAME}: {error}"));
    capability::check().map_err(|error| lacking(&error))?;
    let rootless = rootless::current();
    if let Some(Err(error)) = rootless.map(Rootless::cgroup) {
        return Err(lacking(&error));
    }
    let store = Store::open(&config.state_dir)?;
    let runtime = Youki::open(config, Arc::new(Arc::clone(&store))).await?;
    Ok(Engine {
        runtime: Arc::new(runtime),
        images: Arc::new(NodeImages(store)),
        listens: rootless.is_some(),
        maps_users: rootless.is_some(),
    })
}

/// Opens its images, which needs no privileges.
///
/// # Errors
/// When they cannot be read.
pub async fn open_images(config: EngineConfig) -> Result<Arc<dyn ImageAdmin>> {
    let open = move || Ok(Store::open(&config.state_dir).map_err(RuntimeError::from)?);
    let store = runtime::blocking(NAME, "opening its images", open).await?;
    Ok(Arc::new(NodeImages(store)))
}

/// Where the engine takes root file systems from.
#[async_trait]
pub trait RootfsSource: Send + Sync + fmt::Debug {
    /// Unpacks an image if need be.
    async fn prepare(&self, image: &str) -> Result<Rootfs>;
}

/// A root file system to put a container on.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// Canonical reference of the image.
    pub name: String,
    /// Folders, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Environment of the image, `K=V`.
    pub env: Vec<String>,
}

/// Runs this process as a monitor when it was started as one; otherwise `None`. To be called before the process has
/// a second thread, and before its command line is read: the names are not for people.
#[must_use]
pub fn helper_main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match (args.next()?.to_str()?, args.next()) {
        ("__monitor", Some(folder)) => Some(monitor::monitor_main(folder.into())),
        ("__exec", None) => Some(exec::exec_main()),
        ("__hold", Some(folder)) => Some(rootless::hold_main(&PathBuf::from(folder))),
        _ => None,
    }
}

/// The small program of monitors, as a file in memory: the namespaces' holder becomes it too.
///
/// # Errors
/// When Linux makes no such file.
pub fn small_program() -> io::Result<File> {
    monitor_program::in_memory()
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Youki(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: EngineConfig,
    images: Arc<dyn RootfsSource>,
    /// This program, for monitors and helpers.
    program: ReadOnlyProgram,
    /// The program that monitors become.
    watcher: File,
    /// Network and cgroups.
    sandbox: Sandbox,
    /// Records of containers.
    folders: Folders,
}

impl Youki {
    /// Opens the engine on its two folders; makes them when they are missing.
    ///
    /// # Errors
    /// When a folder cannot be made, or libcontainer's needs are not met.
    pub async fn open(config: EngineConfig, images: Arc<dyn RootfsSource>) -> Result<Self> {
        let program = config.monitor_exe.clone().unwrap_or_else(own_program);
        let program = ReadOnlyProgram::open(&program)
            .map_err(failed(format!("opening the program {}", program.display())))?;
        let watcher =
            monitor_program::in_memory().map_err(failed("making the monitor's program"))?;
        let outer = rootless::current().map(|it| {
            let program = format!("/proc/self/fd/{}", watcher.as_raw_fd());
            Outer::new(it.folder().to_owned(), program.into())
        });
        let around = SandboxConfig {
            network: NetworkConfig {
                outer,
                ..NetworkConfig::default()
            },
            cgroups: rootless::kernels_cgroup(),
            open_files: rlimit::open_files_at_most(OPEN_FILES),
        };
        let sandbox = Sandbox::open(NAME, &config.run_dir, around)?;
        let folders = Folders::open(config.run_dir.join("containers"), record::INIT);
        let folders = folders.map_err(failed("opening the folder of containers"))?;
        let this = Self(Arc::new(Inner {
            config,
            images,
            program,
            watcher,
            sandbox,
            folders,
        }));
        this.blocking("opening the engine", |inner| inner.open_folders())
            .await?;
        Ok(this)
    }

    /// Runs file work off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        action: impl Into<String>,
        work: impl FnOnce(&Inner) -> Result<T, BoxError> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.0);
        runtime::blocking(NAME, action, move || work(&inner)).await
    }

    /// Does something with a container off the async threads.
    async fn of<T: Send + 'static>(
        &self,
        id: &ContainerId,
        doing: &str,
        work: impl FnOnce(&Inner, &ContainerId) -> Result<T, BoxError> + Send + 'static,
    ) -> Result<T> {
        let (action, id) = (format!("{doing} container {id}"), id.clone());
        self.blocking(action, move |inner| work(inner, &id)).await
    }
}

impl Inner {
    fn folder(&self, id: &ContainerId) -> Result<Folder> {
        if !check::is_id(id) {
            return Err(RuntimeError::NotFound(id.clone()));
        }
        Ok(self.folders.of(id))
    }

    fn states(&self) -> PathBuf {
        self.config.state_dir.join("containers")
    }

    fn open_folders(&self) -> Result<(), BoxError> {
        let states = self.states();
        std::fs::create_dir_all(&states)
            .map_err(|error| format!("{}: {error}", states.display()))?;
        self.sweep()?;
        if rootless::current().is_some() {
            self.end_strangers()?;
        }
        Ok(())
    }
}

/// This program. In namespaces that it entered, its file is looked up anew: the one it was started from is on a mount of
/// outside, which cannot be mounted again in here.
fn own_program() -> PathBuf {
    let entered = rootless::current().and_then(|_| std::env::current_exe().ok());
    entered.unwrap_or_else(|| "/proc/self/exe".into())
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    |error| RuntimeError::engine(NAME, action, error)
}

#[async_trait]
impl ContainerRuntime for Youki {
    async fn info(&self) -> Result<RuntimeInfo> {
        Ok(RuntimeInfo {
            name: NAME,
            version: "libcontainer 0.7".to_owned(),
        })
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        self.create_container(spec).await
    }

    async fn start(&self, id: &ContainerId) -> Result<()> {
        self.of(id, "starting", Inner::start).await
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.wait_container(id).await
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        let kill = move |inner: &Inner, id: &_| inner.kill(id, signal);
        self.of(id, "signalling", kill).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.of(id, "removing", Inner::remove).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.of(id, "inspecting", Inner::inspect).await
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>> {
        self.0.sandbox.look_after().await;
        self.blocking("listing containers", |inner| inner.list())
            .await
    }

    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        let logs = move |inner: &Inner, id: &_| inner.logs(id, limit);
        self.of(id, "reading the log of", logs).await
    }

    async fn follow(&self, id: &ContainerId, tail: usize, to: mpsc::Sender<LogPart>) -> Result<()> {
        let folder = |inner: &Inner, id: &_| Ok(inner.known(id)?.1.state);
        let folder = self.of(id, "reading the log of", folder).await?;
        follow_files(folder, tail, self.wait(id), to).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        self.exec_in(id, spec).await
    }
}
