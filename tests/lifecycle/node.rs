//! A node on the engine in memory, in the words of the tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backendai_agent::agent::event::Event;
use backendai_agent::agent::request::{
    ConsoleItem, Created, Execute, ExecuteMode, KernelConfig, KernelId, Reply, Request, RunResult,
};
use backendai_agent::agent::{Agent, AgentConfig, AgentError};
use backendai_agent::kernel::plan::PlanSettings;
use backendai_agent::manager::Node;
use backendai_agent::resource::device::{Cpu, Memory};
use backendai_agent::resource::slot::Amount;
use backendai_agent::runtime::fake::{FakeRuntime, RunnerScript, tiny_runner};
use backendai_agent::runtime::{ContainerId, ImageInfo, LabelMap};
use backendai_agent::stats::StatsCollector;
use tokio::sync::mpsc;

/// The image that every node has.
pub const IMAGE: &str = "example.org/lab/python:3";
/// Its config digest.
pub const DIGEST: &str = "sha256:0123";
/// An image that can be pulled.
pub const REMOTE: &str = "example.org/lab/remote:1";
/// Host ports of every node; it needs few at a time.
const PORTS: std::ops::RangeInclusive<u16> = 21_000..=21_999;

/// A node and what it tells.
pub struct TestNode {
    pub runtime: FakeRuntime,
    pub agent: Agent,
    events: mpsc::UnboundedReceiver<Event>,
    folder: tempfile::TempDir,
    cgroups: tempfile::TempDir,
    in_memory: bool,
}

impl TestNode {
    /// A node whose containers understand the small language of the fake engine.
    pub async fn new() -> Self {
        Self::with(tiny_runner()).await
    }

    /// A node whose containers run this.
    pub async fn with(script: RunnerScript) -> Self {
        Self::made(script, false).await
    }

    /// A node whose scratch folders are tmpfs, with room for 64 MiB each; needs root.
    pub async fn in_memory() -> Self {
        Self::made(tiny_runner(), true).await
    }

    async fn made(script: RunnerScript, in_memory: bool) -> Self {
        let runtime = FakeRuntime::new(script);
        runtime.add_image(image(IMAGE, DIGEST));
        runtime.add_to_registry(image(REMOTE, "sha256:4567"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cgroups = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(cgroups.path().join("cgroup.controllers"), "cpu memory\n").expect("written");
        let (agent, events) = start(&runtime, folder.path(), cgroups.path(), in_memory).await;
        Self {
            runtime,
            agent,
            events,
            folder,
            cgroups,
            in_memory,
        }
    }

    /// Ends the agent as SIGINT does and starts it again.
    pub async fn restart_agent(&mut self) {
        self.agent.shutdown(false).await;
        self.start_agent().await;
    }

    /// Starts another agent in the place of the one that has ended.
    pub async fn start_agent(&mut self) {
        let (folder, cgroups) = (self.folder.path(), self.cgroups.path());
        let (agent, events) = start(&self.runtime, folder, cgroups, self.in_memory).await;
        (self.agent, self.events) = (agent, events);
    }

    /// Folder of a kernel's scratch.
    pub fn scratch(&self, kernel: &str) -> PathBuf {
        self.folder.path().join(kernel)
    }

    /// Sets what Linux says a container uses.
    pub fn uses(&self, created: &Created, cpu_us: u64, memory: u64) {
        let group = self.cgroups.path().join("fake").join(&created.container);
        std::fs::create_dir_all(&group).expect("made");
        std::fs::write(group.join("cpu.stat"), format!("usage_usec {cpu_us}\n")).expect("written");
        std::fs::write(group.join("memory.current"), format!("{memory}\n")).expect("written");
    }

    pub async fn handle(&self, request: Request) -> Result<Reply, AgentError> {
        self.agent.handle(request).await
    }

    pub async fn try_create(
        &self,
        kernel: &str,
        config: KernelConfig,
    ) -> Result<Created, AgentError> {
        let request = Request::CreateKernel {
            kernel: id(kernel),
            config: Box::new(config),
        };
        match self.handle(request).await? {
            Reply::Created(created) => Ok(*created),
            other => panic!("a creation is answered by {other:?}"),
        }
    }

    pub async fn create(&self, kernel: &str) -> Created {
        self.try_create(kernel, config()).await.expect("created")
    }

    pub async fn destroy(&self, kernel: &str) -> Result<Reply, AgentError> {
        let request = Request::DestroyKernel {
            kernel: id(kernel),
            reason: "user-requested".to_owned(),
        };
        self.handle(request).await
    }

    /// The kernel's only container.
    pub fn container(&self, created: &Created) -> ContainerId {
        ContainerId(created.container.clone())
    }

    pub async fn try_execute(
        &self,
        kernel: &str,
        run: &str,
        mode: ExecuteMode,
        flush: Option<Duration>,
    ) -> Result<Reply, AgentError> {
        let call = Execute {
            kernel: id(kernel),
            run: Some(run.to_owned()),
            mode,
            flush_timeout: flush,
        };
        self.handle(Request::Execute(Box::new(call))).await
    }

    /// Runs code to its next mark.
    pub async fn execute(&self, kernel: &str, run: &str, mode: ExecuteMode) -> RunResult {
        let reply = self.try_execute(kernel, run, mode, None).await;
        result(reply.expect("executed"))
    }

    /// Runs code to its end.
    pub async fn query(&self, kernel: &str, run: &str, code: &str) -> RunResult {
        self.execute(kernel, run, ExecuteMode::Query(code.to_owned()))
            .await
    }

    /// What the node has told since the last call.
    pub fn events(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            names.push(name(&event));
        }
        names
    }

    /// Waits for one event.
    pub async fn next_event(&mut self) -> String {
        name(&self.events.recv().await.expect("the node lives"))
    }

    /// Nothing is held any more: amounts, ports, folders, containers, kernels.
    pub fn assert_nothing_held(&self) {
        let parts = self.agent.parts();
        assert_eq!(parts.ports.free(), PORTS.count(), "ports");
        let all = parts.allocator.allocate(&slots("4", "1073741824"));
        assert!(all.is_ok(), "amounts: {:?}", all.err());
        let left: Vec<_> = std::fs::read_dir(self.folder.path())
            .expect("the scratch root is there")
            .flatten()
            .collect();
        assert!(left.is_empty(), "folders: {left:?}");
        assert_eq!(self.runtime.containers(), [], "containers");
        assert_eq!(parts.registry.ids(), [], "kernels");
    }
}

async fn start(
    runtime: &FakeRuntime,
    scratch_root: &Path,
    cgroups: &Path,
    scratch_in_memory: bool,
) -> (Agent, mpsc::UnboundedReceiver<Event>) {
    let (events, receiver) = mpsc::unbounded_channel();
    let config = AgentConfig {
        plan: PlanSettings {
            agent_id: "i-test".to_owned(),
            kernel_uid: 1000,
            own_user: None,
            // Any folder that is there: nothing runs from it.
            krunner: std::env::temp_dir().into(),
            agent_socket: None,
            vfolder_base: "/mnt".into(),
            vfolder_prefix: String::new(),
            jail: Vec::new(),
            runner_env: Vec::new(),
            no_new_privileges: Default::default(),
        },
        kernel_host: "10.0.0.1".to_owned(),
        runner_host: "127.0.0.1".to_owned(),
        port_range: PORTS,
        scratch_root: scratch_root.to_owned(),
        scratch_in_memory,
        devices: vec![
            Box::new(Cpu::new(vec![0, 1])),
            Box::new(Memory::new(1 << 30)),
        ],
        keep_containers: false,
        engine_listens: false,
        runtime: Arc::new(runtime.clone()),
        images: Arc::new(runtime.clone()),
        connect: Arc::new(runtime.clone()),
        stats: StatsCollector::open(cgroups, Path::new("/proc")),
        events,
    };
    let agent = Agent::start(config).await.expect("the engine answers");
    (agent, receiver)
}

fn image(name: &str, digest: &str) -> ImageInfo {
    ImageInfo {
        names: vec![name.to_owned()],
        id: digest.to_owned(),
        labels: labels(),
        ..ImageInfo::default()
    }
}

/// The labels of every test image.
pub fn labels() -> LabelMap {
    [
        ("ai.backend.kernelspec", "1"),
        ("ai.backend.service-ports", "jupyter:http:8080,web:tcp:8081"),
        ("ai.backend.envs.corecount", "OPENBLAS_NUM_THREADS"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

pub fn slots(cpu: &str, mem: &str) -> backendai_agent::resource::slot::SlotAmounts {
    [("cpu", cpu), ("mem", mem)]
        .map(|(slot, amount)| (slot.to_owned(), Amount::parse(amount).expect("an amount")))
        .into_iter()
        .collect()
}

/// A request for a kernel of one core.
pub fn config() -> KernelConfig {
    KernelConfig {
        image: IMAGE.to_owned(),
        digest: DIGEST.to_owned(),
        labels: labels(),
        slots: slots("1", "1048576"),
        ..KernelConfig::default()
    }
}

pub fn id(kernel: &str) -> KernelId {
    KernelId::parse(kernel).expect("a plain name")
}

pub fn result(reply: Reply) -> RunResult {
    match reply {
        Reply::Run(result) => *result,
        other => panic!("an execution is answered by {other:?}"),
    }
}

/// All text of one stream.
pub fn stdout(result: &RunResult) -> String {
    let text = |item: &ConsoleItem| match item {
        ConsoleItem::Stdout(text) => Some(text.clone()),
        _ => None,
    };
    result.console.iter().filter_map(text).collect()
}

fn name(event: &Event) -> String {
    match event {
        Event::KernelPreparing(kernel) => format!("preparing {kernel}"),
        Event::KernelPulling(kernel, image) => format!("pulling {kernel} {image}"),
        Event::KernelCreating(kernel) => format!("creating {kernel}"),
        Event::KernelStarted(kernel) => format!("started {kernel}"),
        Event::KernelTerminated { kernel, reason, .. } => format!("terminated {kernel} {reason}"),
    }
}
