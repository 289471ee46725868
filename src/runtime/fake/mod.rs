//! The contract in memory: what every test above the runtime runs on.
//!
//! A container is an entry in a map, its program a [script](RunnerScript) that plays the krunner, or whatever
//! [`Programs`] make of it: the conformance tests run real ones. What an engine owes its callers it does itself, for
//! every kind of program: states, names, ports, refusals, environments, signals, ends, logs, time limits.
//! [`FakeRuntime::fail_next`] makes the next call of one kind fail; [`FakeRuntime::exit`] ends a container from inside.

mod engine;
mod images;
mod krunner;
mod log;
mod program;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

pub use self::krunner::{RunnerEnd, RunnerScript, RunnerSide, no_runner, tiny_runner};
use self::log::Log;
pub use self::program::{Call, Program, Programs};
use super::{
    ContainerId, ContainerSpec, ContainerState, ExitStatus, ImageInfo, Pid, Result, RuntimeError,
};

/// Process ids of the fake are above those that Linux gives: nobody must take them for a real process.
const FIRST_PID: Pid = 1 << 24;

/// The calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`super::ContainerRuntime::create`].
    Create,
    /// [`super::ContainerRuntime::start`].
    Start,
    /// [`super::ContainerRuntime::wait`].
    Wait,
    /// [`super::ContainerRuntime::kill`].
    Kill,
    /// [`super::ContainerRuntime::remove`].
    Remove,
    /// [`super::ContainerRuntime::inspect`].
    Inspect,
    /// [`super::ContainerRuntime::list`].
    List,
    /// [`super::ContainerRuntime::logs`].
    Logs,
    /// [`super::ContainerRuntime::exec`].
    Exec,
    /// [`super::ImageStore::inspect`].
    ImageInspect,
    /// [`super::ImageStore::list`].
    ImageList,
    /// [`super::ImageStore::pull`].
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
    programs: Arc<dyn Programs>,
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
    log: Arc<Mutex<Log>>,
    /// While it runs.
    program: Option<Arc<dyn Program>>,
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
        Self::with_programs(krunner::Scripted::new(script))
    }

    /// An engine without containers and images, whose containers run these programs.
    #[must_use]
    pub fn with_programs(programs: impl Programs + 'static) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            changed: Notify::new(),
            programs: Arc::new(programs),
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
        if let Some(container) = self.state().containers.get(id) {
            container.log().write(text);
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
        found.and_then(|it| it.program.as_ref()?.runner())
    }

    fn end(&self, id: &ContainerId, status: ExitStatus) {
        if let Some(container) = self.state().containers.get_mut(id)
            && container.exit.is_none()
        {
            container.state = ContainerState::Stopped;
            container.pid = None;
            container.exit = Some(status);
            container.program = None;
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
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic while held")
    }
}
