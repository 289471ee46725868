//! dockerd as the engine, by its HTTP API: translation only. dockerd owns images, networks, ports and logs.
//!
//! dockerd gives containers ids of its own. The id that the agent asks for is kept as a label, so that a container
//! whose creation was not answered can still be found and removed by it.

mod adoption;
mod connect;
mod create;
mod device;
mod exec;
mod images;
mod life;
mod logs;
mod notes;
mod program;
mod status;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bollard::models::SystemInfo;
use futures_util::future::ready;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use self::connect::Client;
use self::images::DockerImages;
use self::notes::Notes;
use super::{Adoption, Engine, EngineConfig};
use crate::image::ImageAdmin;
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::{
    BoxError, ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ExecOutput, ExecSpec,
    ExitStatus, LogPart, Result, RuntimeError, RuntimeInfo, settled,
};

/// The engine's name.
const ENGINE: &str = "docker";
/// Label that carries the id that the agent asked for. It is not shown above.
const LABEL_ATTEMPT: &str = "ai.backend.container-id";

/// Containers or images that are looked at at a time.
const PARALLEL: usize = 8;

/// Opens the engine.
///
/// # Errors
/// [`RuntimeError::Unavailable`] when the daemon does not answer, [`RuntimeError::Invalid`] when its API is too old or
/// the endpoint is wrong.
pub async fn open(config: EngineConfig) -> Result<Engine> {
    let client = Client::connect(&config).await?;
    let images = Arc::new(DockerImages::new(client.clone()));
    let info = client.ask("asking what it is", client.api.info()).await?;
    let maps_users = maps_users(info.security_options.as_deref().unwrap_or_default());
    let runtime = Docker::open(client, config, info)?;
    Ok(Engine {
        runtime: Arc::new(runtime),
        images,
        listens: true,
        maps_users,
    })
}

/// Opens its images.
///
/// # Errors
/// As [`open`].
pub async fn open_images(config: EngineConfig) -> Result<Arc<dyn ImageAdmin>> {
    let client = Client::connect(&config).await?;
    Ok(Arc::new(DockerImages::new(client)))
}

/// dockerd.
#[derive(Debug)]
struct Docker {
    client: Client,
    /// Where cgroups are; also which version.
    cgroups: Hierarchies,
    /// Whether each container starts in a cgroup of ours, which has its limits.
    own_cgroups: bool,
    /// Folder of our own device nodes.
    devices: PathBuf,
    adoption: Option<Adoption>,
    notes: Notes,
    /// What goes on after its caller has gone.
    background: TaskTracker,
}

impl Docker {
    fn open(client: Client, config: EngineConfig, info: SystemInfo) -> Result<Self> {
        let cgroups = Hierarchies::read();
        let cgroups = cgroups.map_err(failed("reading the mounted cgroups"))?;
        let driver = info.cgroup_driver.map(|driver| driver.to_string());
        Ok(Self {
            // Under systemd the cgroups belong to systemd, which would write its own values over ours.
            own_cgroups: cgroups.is_unified() && driver.as_deref() == Some("cgroupfs"),
            cgroups,
            client,
            devices: config.run_dir.join("devices"),
            adoption: config.adoption,
            notes: Notes::default(),
            background: TaskTracker::new(),
        })
    }
}

/// Whether containers are in a user namespace, as dockerd tells: that of `userns-remap`, or of a rootless dockerd.
fn maps_users(security_options: &[String]) -> bool {
    let told = |option: &String| {
        let mut parts = option.split(',');
        parts.any(|part| ["name=userns", "name=rootless"].contains(&part))
    };
    security_options.iter().any(told)
}

/// dockerd takes names and beginnings of ids too, which are not ours to give.
fn known(id: &ContainerId) -> Result<()> {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if id.0.len() == 64 && id.0.bytes().all(digits) {
        Ok(())
    } else {
        Err(RuntimeError::NotFound(id.clone()))
    }
}

/// What dockerd answers when it does not know a container.
fn not_found(id: &ContainerId) -> impl FnOnce(RuntimeError) -> RuntimeError {
    move |error| match connect::status(&error) {
        Some(404) => RuntimeError::NotFound(id.clone()),
        _ => error,
    }
}

/// Looks at so many things at a time; those that were removed meanwhile are left out.
async fn there<I, T, F: Future<Output = Result<T>>>(
    all: impl IntoIterator<Item = I>,
    look: impl FnMut(I) -> F,
) -> Result<Vec<T>> {
    let gone = |error: &RuntimeError| {
        matches!(
            error,
            RuntimeError::NotFound(_) | RuntimeError::ImageMissing(_)
        )
    };
    let looked = stream::iter(all).map(look).buffered(PARALLEL);
    let kept = looked.filter(|it| ready(!it.as_ref().is_err_and(gone)));
    kept.try_collect().await
}

/// The error of work on this machine.
fn failed<E: Into<BoxError>>(action: impl Into<String>) -> impl FnOnce(E) -> RuntimeError {
    |error| RuntimeError::engine(ENGINE, action, error)
}

fn invalid(id: &ContainerId, text: &str) -> RuntimeError {
    RuntimeError::Invalid(format!("container {id}: {text}"))
}

#[async_trait]
impl ContainerRuntime for Docker {
    async fn info(&self) -> Result<RuntimeInfo> {
        let version = self
            .client
            .ask("asking for its version", self.client.api.version())
            .await?;
        Ok(RuntimeInfo {
            name: ENGINE,
            version: version.version.unwrap_or_default(),
        })
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        self.create_container(spec).await
    }

    async fn start(&self, id: &ContainerId) -> Result<()> {
        self.start_container(id).await
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.wait_for_end(id).await
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.send_signal(id, signal).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.remove_container(id).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.look_at(id).await
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>> {
        self.list_ours().await
    }

    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        self.read_log(id, limit).await
    }

    async fn follow(&self, id: &ContainerId, tail: usize, to: mpsc::Sender<LogPart>) -> Result<()> {
        self.follow_log(id, tail, to).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        self.run_in(id, spec).await
    }

    async fn settle(&self) {
        settled(&self.background, ENGINE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::maps_users;

    #[test]
    fn dockerd_tells_that_its_containers_are_in_a_user_namespace() {
        let told = |options: &[&str]| {
            let options: Vec<_> = options.iter().map(|&it| it.to_owned()).collect();
            maps_users(&options)
        };
        assert!(!told(&[]));
        assert!(!told(&["name=seccomp,profile=default", "name=cgroupns"]));
        assert!(told(&["name=seccomp,profile=builtin", "name=userns"]));
        assert!(told(&["name=seccomp,profile=builtin", "name=rootless"]));
    }
}
