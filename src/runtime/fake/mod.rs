//! The contract in memory: what every test above the runtime runs on.
//!
//! A container is an entry in a map, its program a [script](RunnerScript) that plays the krunner, or nothing at all.
//! [`FakeRuntime::fail_next`] makes the next call of one kind fail; [`FakeRuntime::exit`] ends a container from inside.

mod krunner;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

pub use self::krunner::{RunnerEnd, RunnerScript, RunnerSide, no_runner, tiny_runner};
use super::{
    ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ContainerState, ExecOutput,
    ExecSpec, ExitStatus, ImageInfo, ImageStore, LABEL_OWNER, OWNER, Pid, RegistryAuth, Result,
    RuntimeError, RuntimeInfo, check,
};

/// Process ids of the fake are above those that Linux gives: nobody must take them for a real process.
const FIRST_PID: Pid = 1 << 24;

/// The calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`ContainerRuntime::create`].
    Create,
    /// [`ContainerRuntime::start`].
    Start,
    /// [`ContainerRuntime::wait`].
    Wait,
    /// [`ContainerRuntime::kill`].
    Kill,
    /// [`ContainerRuntime::remove`].
    Remove,
    /// [`ContainerRuntime::inspect`].
    Inspect,
    /// [`ContainerRuntime::list`].
    List,
    /// [`ContainerRuntime::logs`].
    Logs,
    /// [`ContainerRuntime::exec`].
    Exec,
    /// [`ImageStore::inspect`].
    ImageInspect,
    /// [`ImageStore::list`].
    ImageList,
    /// [`ImageStore::pull`].
    Pull,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With [`RuntimeError::Engine`].
    Engine,
    /// With [`RuntimeError::Unavailable`].
    Unavailable,
    /// It never returns.
    Hang,
}

/// An engine and an image store in memory. Clones are the same engine, as two agents would see it.
#[derive(Clone)]
pub struct FakeRuntime(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Told at every change of a container's state.
    changed: Notify,
    script: RunnerScript,
    /// The containers' programs.
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<ContainerId, Container>,
    images: Vec<ImageInfo>,
    /// Images that `pull` finds.
    registry: Vec<ImageInfo>,
    failures: HashMap<Verb, VecDeque<Failure>>,
    started: Pid,
}

struct Container {
    spec: ContainerSpec,
    state: ContainerState,
    pid: Option<Pid>,
    exit: Option<ExitStatus>,
    log: Vec<u8>,
    runner: Option<krunner::Running>,
}

impl std::fmt::Debug for FakeRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.state().containers.keys().cloned().collect();
        f.debug_struct("FakeRuntime")
            .field("containers", &ids)
            .finish_non_exhaustive()
    }
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new(tiny_runner())
    }
}

impl FakeRuntime {
    /// An engine without containers and images, whose containers run this script.
    #[must_use]
    pub fn new(script: RunnerScript) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            changed: Notify::new(),
            script,
            tasks: TaskTracker::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while held")
    }

    /// Puts an image into the store.
    pub fn add_image(&self, image: ImageInfo) {
        self.state().images.push(image);
    }

    /// Puts an image where `pull` finds it.
    pub fn add_to_registry(&self, image: ImageInfo) {
        self.state().registry.push(image);
    }

    /// Makes the next call of this kind fail; repeat it for further calls.
    pub fn fail_next(&self, verb: Verb, failure: Failure) {
        let mut state = self.state();
        state.failures.entry(verb).or_default().push_back(failure);
    }

    /// Ends a container as if its program had ended by itself; an unknown one is not an error.
    pub fn exit(&self, id: &ContainerId, code: i32) {
        let status = ExitStatus {
            code,
            oom_killed: false,
        };
        self.end(id, status);
    }

    /// Ids of all containers, dead or alive.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerId> {
        self.state().containers.keys().cloned().collect()
    }

    /// What a container was made of.
    #[must_use]
    pub fn spec(&self, id: &ContainerId) -> Option<ContainerSpec> {
        let state = self.state();
        state.containers.get(id).map(|it| it.spec.clone())
    }

    /// Adds to a container's log.
    pub fn log(&self, id: &ContainerId, text: &[u8]) {
        if let Some(container) = self.state().containers.get_mut(id) {
            container.log.extend_from_slice(text);
        }
    }

    /// The script's end of the container that is reached at this host port.
    #[must_use]
    pub fn runner_at(&self, host_port: u16) -> Option<RunnerEnd> {
        let state = self.state();
        let found = state
            .containers
            .values()
            .find(|it| it.spec.ports.iter().any(|port| port.host == host_port));
        found.and_then(|it| it.runner.as_ref().map(krunner::Running::end))
    }

    fn end(&self, id: &ContainerId, status: ExitStatus) {
        if let Some(container) = self.state().containers.get_mut(id)
            && container.exit.is_none()
        {
            container.state = ContainerState::Stopped;
            container.pid = None;
            container.exit = Some(status);
            container.runner = None;
        }
        self.0.changed.notify_waiters();
    }

    async fn injected(&self, verb: Verb) -> Result<()> {
        let failure = self
            .state()
            .failures
            .get_mut(&verb)
            .and_then(VecDeque::pop_front);
        let source = "as the test asked".into();
        match failure {
            None => Ok(()),
            Some(Failure::Hang) => std::future::pending().await,
            Some(Failure::Unavailable) => Err(RuntimeError::Unavailable {
                engine: "fake",
                source,
            }),
            Some(Failure::Engine) => Err(RuntimeError::Engine {
                engine: "fake",
                action: format!("{verb:?}"),
                source,
            }),
        }
    }
}

impl Container {
    fn info(&self) -> ContainerInfo {
        ContainerInfo {
            id: self.spec.id.clone(),
            name: self.spec.name.clone(),
            image: self.spec.image.clone(),
            state: self.state,
            labels: self.spec.labels.clone(),
            pid: self.pid,
            cgroup: Some(format!("/fake/{}", self.spec.id).into()),
            address: None,
            ports: self.spec.ports.clone(),
            exit: self.exit,
        }
    }
}

fn invalid(text: impl Into<String>) -> RuntimeError {
    RuntimeError::Invalid(text.into())
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    async fn info(&self) -> Result<RuntimeInfo> {
        Ok(RuntimeInfo {
            name: "fake",
            version: "1".to_owned(),
        })
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        self.injected(Verb::Create).await?;
        if !check::is_id(&spec.id) {
            return Err(check::invalid_id(&spec.id));
        }
        check::request(spec)?;
        let mut state = self.state();
        let mut others = state.containers.values();
        if let Some(other) = others.find(|it| it.spec.name == spec.name && it.spec.id != spec.id) {
            let text = format!("the name {} is taken by {}", spec.name, other.spec.id);
            return Err(invalid(text));
        }
        if state.containers.contains_key(&spec.id) {
            return Err(invalid(format!("container {} exists already", spec.id)));
        }
        if !state
            .images
            .iter()
            .any(|image| is_called(image, &spec.image))
        {
            return Err(RuntimeError::ImageMissing(spec.image.clone()));
        }
        let container = Container {
            spec: spec.clone(),
            state: ContainerState::Created,
            pid: None,
            exit: None,
            log: Vec::new(),
            runner: None,
        };
        state.containers.insert(spec.id.clone(), container);
        Ok(spec.id.clone())
    }

    async fn start(&self, id: &ContainerId) -> Result<()> {
        self.injected(Verb::Start).await?;
        let runner = krunner::start(&self.0.script, &self.0.tasks, self.clone(), id.clone());
        let mut state = self.state();
        state.started += 1;
        let pid = FIRST_PID + state.started;
        let container = state.containers.get_mut(id);
        let container = container.ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        if container.state != ContainerState::Created {
            return Err(invalid(format!("container {id} was started already")));
        }
        container.state = ContainerState::Running;
        container.pid = Some(pid);
        container.runner = Some(runner);
        Ok(())
    }

    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.injected(Verb::Wait).await?;
        loop {
            let changed = self.0.changed.notified();
            match self.state().containers.get(id) {
                None => return Err(RuntimeError::NotFound(id.clone())),
                Some(container) => {
                    if let Some(status) = container.exit {
                        return Ok(status);
                    }
                }
            }
            changed.await;
        }
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.injected(Verb::Kill).await?;
        if !self.state().containers.contains_key(id) {
            return Err(RuntimeError::NotFound(id.clone()));
        }
        let status = ExitStatus {
            code: 128 + signal,
            oom_killed: false,
        };
        self.end(id, status);
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.injected(Verb::Remove).await?;
        self.state().containers.remove(id);
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.injected(Verb::Inspect).await?;
        let state = self.state();
        let container = state.containers.get(id);
        container
            .map(Container::info)
            .ok_or_else(|| RuntimeError::NotFound(id.clone()))
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>> {
        self.injected(Verb::List).await?;
        let state = self.state();
        let infos = state.containers.values().map(Container::info);
        let ours =
            |info: &ContainerInfo| info.labels.get(LABEL_OWNER).is_some_and(|it| it == OWNER);
        Ok(infos.filter(ours).collect())
    }

    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        self.injected(Verb::Logs).await?;
        let state = self.state();
        let container = state.containers.get(id);
        let log = &container
            .ok_or_else(|| RuntimeError::NotFound(id.clone()))?
            .log;
        Ok(log[log.len().saturating_sub(limit)..].to_vec())
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        self.injected(Verb::Exec).await?;
        let state = self.state();
        match state.containers.get(id).map(|it| it.state) {
            None => Err(RuntimeError::NotFound(id.clone())),
            Some(ContainerState::Running) => Ok(ExecOutput {
                code: 0,
                stdout: spec.args.join(" ").into_bytes(),
                stderr: Vec::new(),
            }),
            Some(_) => Err(invalid(format!("container {id} does not run"))),
        }
    }
}

fn is_called(image: &ImageInfo, name: &str) -> bool {
    image.id == name || image.names.iter().any(|it| it == name)
}

#[async_trait]
impl ImageStore for FakeRuntime {
    async fn list(&self) -> Result<Vec<ImageInfo>> {
        self.injected(Verb::ImageList).await?;
        let mut images = self.state().images.clone();
        images.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(images)
    }

    async fn inspect(&self, image: &str) -> Result<ImageInfo> {
        self.injected(Verb::ImageInspect).await?;
        let state = self.state();
        let found = state.images.iter().find(|it| is_called(it, image));
        found
            .cloned()
            .ok_or_else(|| RuntimeError::ImageMissing(image.to_owned()))
    }

    async fn pull(&self, image: &str, _auth: Option<&RegistryAuth>) -> Result<ImageInfo> {
        self.injected(Verb::Pull).await?;
        let mut state = self.state();
        let found = state.registry.iter().find(|it| is_called(it, image));
        let found = found
            .cloned()
            .ok_or_else(|| RuntimeError::ImageMissing(image.to_owned()))?;
        state.images.push(found.clone());
        Ok(found)
    }
}
