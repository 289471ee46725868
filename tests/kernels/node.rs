//! A node on a real engine, in the words of the tests.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backendai_agent::agent::event::Event;
use backendai_agent::agent::request::{
    ConsoleItem, Created, Execute, ExecuteMode, KernelConfig, KernelId, Reply, Request, RunResult,
    RunStatus,
};
use backendai_agent::agent::{Agent, AgentConfig, AgentError};
use backendai_agent::backends::{self, Engine, EngineConfig, RuntimeKind};
use backendai_agent::kernel::plan::PlanSettings;
use backendai_agent::kernel::runner::zmq::ZmqConnect;
use backendai_agent::krunner::KrunnerLayer;
use backendai_agent::manager::Node;
use backendai_agent::resource::device::{Cpu, Memory};
use backendai_agent::resource::slot::{Amount, SlotAmounts};
use backendai_agent::runtime::{ContainerId, ContainerInfo, LABEL_AGENT_ID};
use backendai_agent::stats::StatsCollector;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::daemons::{self, Daemon};
use crate::images::{give_image, reference};

/// How long anything may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of memory that every node deals out.
const MEMORY: u64 = 1 << 30;

/// A node and what it tells.
pub struct TestNode {
    pub agent: Agent,
    /// Every event since the last call of `events`.
    events: mpsc::UnboundedReceiver<Event>,
    kind: RuntimeKind,
    daemon: Option<Daemon>,
    /// Differs for each node, also where they share a daemon.
    name: String,
    image: (&'static str, backendai_agent::runtime::ImageInfo),
    folder: TempDir,
}

impl TestNode {
    /// On the engine without a daemon.
    pub async fn youki() -> Self {
        Self::start(RuntimeKind::Youki, None).await
    }

    /// On containerd: the lane's, else one of this test's own.
    pub async fn containerd() -> Option<Self> {
        Self::on(
            RuntimeKind::Containerd,
            Daemon::get(daemons::Kind::Containerd),
        )
        .await
    }

    /// On Docker: the lane's, else one of this test's own.
    pub async fn docker() -> Option<Self> {
        Self::on(RuntimeKind::Docker, Daemon::get(daemons::Kind::Docker)).await
    }

    /// On a daemon, or a line that says what the machine lacks.
    pub async fn on(kind: RuntimeKind, daemon: Result<Daemon, String>) -> Option<Self> {
        match daemon {
            Ok(daemon) => Some(Self::start(kind, Some(daemon)).await),
            Err(lack) => {
                println!("skipped: {lack}");
                None
            }
        }
    }

    async fn start(kind: RuntimeKind, daemon: Option<Daemon>) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temp dir");
        for name in ["state", "run", "scratch", "vfolders"] {
            fs::create_dir(folder.path().join(name)).expect("folder");
        }
        let name = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let engine = open(kind, folder.path(), daemon.as_ref()).await;
        let image = give_image("busybox", &engine, folder.path(), daemon.as_ref()).await;
        // The engine without a daemon finds the image when it is opened again.
        let engine = open(kind, folder.path(), daemon.as_ref()).await;
        let image = match image {
            Some(image) => image,
            None => engine
                .images
                .inspect(&reference("busybox"))
                .await
                .expect("imported"),
        };
        let (agent, events) = start(engine, folder.path(), &name).await;
        Self {
            agent,
            events,
            kind,
            daemon,
            name,
            image: ("busybox", image),
            folder,
        }
    }

    /// Uses the image with Python from now on.
    pub async fn use_python(&mut self) {
        let engine = open(self.kind, self.folder.path(), self.daemon.as_ref()).await;
        let place = self.folder.path();
        give_image("python", &engine, place, self.daemon.as_ref()).await;
        let engine = open(self.kind, place, self.daemon.as_ref()).await;
        let image = engine.images.inspect(&reference("python")).await;
        self.image = ("python", image.expect("imported"));
        self.agent.shutdown(false).await;
        self.start_agent().await;
    }

    /// This test's own daemon.
    pub fn own_daemon(&mut self) -> &mut daemons::OwnDaemon {
        match &mut self.daemon {
            Some(Daemon::Own(daemon)) => daemon,
            _ => panic!("the test asked for a daemon of its own"),
        }
    }

    /// Ends the agent as SIGINT does and starts it again.
    pub async fn restart_agent(&mut self) {
        self.agent.shutdown(false).await;
        self.start_agent().await;
    }

    /// Starts another agent in the place of one that has ended.
    pub async fn start_agent(&mut self) {
        let engine = open(self.kind, self.folder.path(), self.daemon.as_ref()).await;
        let (agent, events) = start(engine, self.folder.path(), &self.name).await;
        (self.agent, self.events) = (agent, events);
    }

    /// A folder of this node.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folders of the node and of its daemon.
    pub fn folders(&self) -> Vec<PathBuf> {
        let daemon = self.daemon.as_ref().map(Daemon::folder);
        daemon
            .into_iter()
            .chain([self.folder.path().to_owned()])
            .collect()
    }

    /// Folder of a kernel's scratch.
    pub fn scratch(&self, kernel: &str) -> PathBuf {
        self.path("scratch").join(self.id(kernel).as_str())
    }

    /// A kernel's id: the test's name for it and the node's.
    pub fn id(&self, kernel: &str) -> KernelId {
        KernelId::parse(&format!("{kernel}-{}", self.name)).expect("a plain name")
    }

    /// A request for a kernel of one core and 128 MiB.
    pub fn config(&self) -> KernelConfig {
        KernelConfig {
            image: reference(self.image.0),
            digest: self.image.1.id.clone(),
            labels: self.image.1.labels.clone(),
            slots: slots("1", 128 << 20),
            ..KernelConfig::default()
        }
    }

    pub async fn handle(&self, request: Request) -> Result<Reply, AgentError> {
        let answer = tokio::time::timeout(PATIENCE, self.agent.handle(request)).await;
        answer.expect("the agent answers in time")
    }

    pub async fn try_create(
        &self,
        kernel: &str,
        config: KernelConfig,
    ) -> Result<Created, AgentError> {
        let request = Request::CreateKernel {
            kernel: self.id(kernel),
            config: Box::new(config),
        };
        created(self.handle(request).await?)
    }

    pub async fn create(&self, kernel: &str) -> Created {
        let created = self.try_create(kernel, self.config()).await;
        created.expect("created")
    }

    pub async fn restart(&self, kernel: &str) -> Result<Created, AgentError> {
        let request = Request::RestartKernel {
            kernel: self.id(kernel),
            config: Box::new(KernelConfig {
                slots: SlotAmounts::default(),
                ..self.config()
            }),
        };
        created(self.handle(request).await?)
    }

    pub async fn destroy(&self, kernel: &str) -> Reply {
        let request = Request::DestroyKernel {
            kernel: self.id(kernel),
            reason: "user-requested".to_owned(),
        };
        self.handle(request).await.expect("destroyed")
    }

    pub async fn interrupt(&self, kernel: &str) {
        let kernel = self.id(kernel);
        let request = Request::InterruptKernel { kernel };
        self.handle(request).await.expect("interrupted");
    }

    pub async fn logs(&self, kernel: &str) -> String {
        let kernel = self.id(kernel);
        match self.handle(Request::GetLogs { kernel }).await {
            Ok(Reply::Logs(text)) => text,
            other => panic!("logs are answered by {other:?}"),
        }
    }

    pub async fn try_execute(
        &self,
        kernel: &str,
        run: &str,
        mode: ExecuteMode,
    ) -> Result<Reply, AgentError> {
        let call = Execute {
            kernel: self.id(kernel),
            run: Some(run.to_owned()),
            mode,
            flush_timeout: Some(Duration::from_secs(2)),
        };
        self.handle(Request::Execute(Box::new(call))).await
    }

    /// One call: to the next mark or the flush time.
    pub async fn execute(&self, kernel: &str, run: &str, mode: ExecuteMode) -> RunResult {
        match self.try_execute(kernel, run, mode).await {
            Ok(Reply::Run(result)) => *result,
            other => panic!("an execution is answered by {other:?}"),
        }
    }

    /// Goes on with a run to its end, or until it waits for input: its exit code or status, and all output since.
    pub async fn finish(&self, kernel: &str, run: &str, mode: ExecuteMode) -> Finished {
        let mut result = self.execute(kernel, run, mode).await;
        let mut console = result.console;
        let over = [RunStatus::Finished, RunStatus::WaitingInput];
        let began = Instant::now();
        while !over.contains(&result.status) {
            assert!(
                began.elapsed() < PATIENCE,
                "run {run} does not end: {console:?}"
            );
            result = self.execute(kernel, run, ExecuteMode::Continue).await;
            console.append(&mut result.console);
        }
        let stdout = |item: &ConsoleItem| match item {
            ConsoleItem::Stdout(text) => Some(text.clone()),
            _ => None,
        };
        let stderr = |item: &ConsoleItem| match item {
            ConsoleItem::Stderr(text) => Some(text.clone()),
            _ => None,
        };
        Finished {
            status: result.status,
            code: result.exit_code,
            out: console.iter().filter_map(stdout).collect(),
            err: console.iter().filter_map(stderr).collect(),
        }
    }

    /// Runs a command to its end.
    pub async fn batch(&self, kernel: &str, exec: &str) -> Finished {
        let run = uuid::Uuid::new_v4().simple().to_string();
        self.finish(kernel, &run, batch(exec)).await
    }

    /// What a command prints that ends well.
    pub async fn output(&self, kernel: &str, exec: &str) -> String {
        let finished = self.batch(kernel, exec).await;
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.out
    }

    /// Waits for output of a run that goes on.
    pub async fn until_printed(&self, kernel: &str, run: &str, first: ExecuteMode, text: &str) {
        let mut mode = first;
        let mut seen = String::new();
        for _ in 0..30 {
            let result = self.execute(kernel, run, mode).await;
            seen += &stdout(&result);
            if seen.contains(text) {
                return;
            }
            assert_ne!(result.status, RunStatus::Finished, "{seen}");
            mode = ExecuteMode::Continue;
        }
        panic!("{text:?} never came; there is {seen:?}");
    }

    /// What the node has told since the last call, with the test's names of kernels.
    pub fn events(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            names.push(self.told(&event));
        }
        names
    }

    /// Waits for one event.
    pub async fn next_event(&mut self) -> String {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        let event = event.expect("an event comes in time");
        self.told(&event.expect("the node lives"))
    }

    fn told(&self, event: &Event) -> String {
        told(event).replace(&format!("-{}", self.name), "")
    }

    /// The containers of this node, whatever else the engine has.
    pub async fn containers(&self) -> Vec<ContainerInfo> {
        let list = self.agent.parts().runtime.list().await.expect("list");
        let ours = |info: &ContainerInfo| info.labels.get(LABEL_AGENT_ID) == Some(&self.name);
        list.into_iter().filter(ours).collect()
    }

    /// Ends the container of a kernel behind the agent's back.
    pub async fn kill_container(&self, created: &Created) {
        let id = ContainerId(created.container.clone());
        let runtime = &self.agent.parts().runtime;
        runtime.kill(&id, 9).await.expect("kill");
        runtime.wait(&id).await.expect("wait");
    }

    /// Nothing is held any more: amounts, ports, folders, containers, kernels, mounts, cgroups, processes.
    pub async fn assert_nothing_held(&self) {
        let parts = self.agent.parts();
        assert_eq!(parts.ports.free(), ports(&self.name).count(), "ports");
        let all = parts.allocator.allocate(&slots("2", MEMORY));
        drop(all.unwrap_or_else(|error| panic!("amounts: {error}")));
        assert_eq!(parts.registry.ids(), [], "kernels");
        assert_eq!(self.containers().await, [], "containers");
        let left = |folder: &str| {
            let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
            entries
                .flatten()
                .map(|entry| entry.path())
                .collect::<Vec<_>>()
        };
        for folder in ["scratch", "run/containers", "state/containers", "run/netns"] {
            assert_eq!(left(folder), Vec::<PathBuf>::new(), "{folder}");
        }
        let place = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(&place), "{mounts}");
    }

    /// Ends the node with every kernel and checks that nothing is left.
    pub async fn close(self) {
        self.agent.shutdown(true).await;
        self.assert_nothing_held().await;
    }
}

impl Drop for TestNode {
    /// A test that failed leaves no container either.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (agent, name) = (self.agent.clone(), self.name.clone());
        let done = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            tokio.block_on(async {
                let runtime = &agent.parts().runtime;
                for info in runtime.list().await.unwrap_or_default() {
                    if info.labels.get(LABEL_AGENT_ID) == Some(&name) {
                        let _ = runtime.remove(&info.id).await;
                    }
                }
            });
        });
        let _ = done.join();
    }
}

/// How a run ended, or what it waits for.
#[derive(Debug)]
pub struct Finished {
    pub status: RunStatus,
    pub code: Option<i64>,
    pub out: String,
    pub err: String,
}

/// A command without clean and build steps.
pub fn batch(exec: &str) -> ExecuteMode {
    ExecuteMode::Batch {
        clean: String::new(),
        build: String::new(),
        exec: exec.to_owned(),
    }
}

pub fn slots(cpu: &str, mem: u64) -> SlotAmounts {
    [("cpu", cpu.to_owned()), ("mem", mem.to_string())]
        .map(|(slot, amount)| (slot.to_owned(), Amount::parse(&amount).expect("an amount")))
        .into_iter()
        .collect()
}

/// All text of standard output.
pub fn stdout(result: &RunResult) -> String {
    let text = |item: &ConsoleItem| match item {
        ConsoleItem::Stdout(text) => Some(text.clone()),
        _ => None,
    };
    result.console.iter().filter_map(text).collect()
}

fn created(reply: Reply) -> Result<Created, AgentError> {
    match reply {
        Reply::Created(created) => Ok(*created),
        other => panic!("a creation is answered by {other:?}"),
    }
}

fn told(event: &Event) -> String {
    match event {
        Event::KernelPreparing(kernel) => format!("preparing {kernel}"),
        Event::KernelPulling(kernel, image) => format!("pulling {kernel} {image}"),
        Event::KernelCreating(kernel) => format!("creating {kernel}"),
        Event::KernelStarted(kernel) => format!("started {kernel}"),
        Event::KernelTerminated { kernel, reason, .. } => format!("terminated {kernel} {reason}"),
    }
}

/// Host ports of a node: others run beside it.
fn ports(name: &str) -> RangeInclusive<u16> {
    let number = u32::from_str_radix(name, 16).expect("hex digits") % 400;
    let first = 22_000 + 20 * u16::try_from(number).expect("less than 400");
    first..=first + 19
}

async fn open(kind: RuntimeKind, folder: &Path, daemon: Option<&Daemon>) -> Engine {
    let config = EngineConfig {
        state_dir: folder.join("state"),
        run_dir: folder.join("run"),
        monitor_exe: Some(env!("CARGO_BIN_EXE_backendai-agent").into()),
        endpoint: daemon.map(Daemon::endpoint),
        handler: daemons::handler(),
        ..EngineConfig::default()
    };
    let engine = backends::open(kind, config).await;
    engine.expect("the engine opens; the tests run as root")
}

async fn start(
    engine: Engine,
    folder: &Path,
    name: &str,
) -> (Agent, mpsc::UnboundedReceiver<Event>) {
    let (events, receiver) = mpsc::unbounded_channel();
    let krunner = KrunnerLayer::built_in().ensure_unpacked(&folder.join("state"));
    let config = AgentConfig {
        plan: PlanSettings {
            agent_id: name.to_owned(),
            kernel_uid: 1000,
            own_user: None,
            krunner: krunner.expect("unpacked").join("opt/backend.ai").into(),
            agent_socket: None,
            vfolder_base: folder.join("vfolders"),
            vfolder_prefix: String::new(),
            jail: Vec::new(),
            runner_env: Vec::new(),
            no_new_privileges: Default::default(),
        },
        kernel_host: "127.0.0.1".to_owned(),
        runner_host: "127.0.0.1".to_owned(),
        port_range: ports(name),
        scratch_root: folder.join("scratch"),
        scratch_in_memory: false,
        devices: vec![
            Box::new(Cpu::new(vec![0, 1])),
            Box::new(Memory::new(MEMORY)),
        ],
        keep_containers: false,
        engine_listens: engine.listens,
        runtime: engine.runtime,
        images: engine.images,
        connect: Arc::new(ZmqConnect),
        stats: StatsCollector::default(),
        events,
    };
    let agent = Agent::start(config).await.expect("the engine answers");
    (agent, receiver)
}
