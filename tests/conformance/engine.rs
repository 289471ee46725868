//! An engine under test, on folders of its own and with a root of busybox; it must leave nothing behind.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use backendai_agent::backends::youki::{Rootfs, RootfsSource, Youki};
use backendai_agent::backends::{self, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::fake::{FakeRuntime, no_runner};
use backendai_agent::runtime::{
    ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ExecOutput, ExecSpec, ExitStatus,
    ImageInfo, LogPart, NetworkMode, Pid, PortBinding, Result, RuntimeError, RuntimeInfo,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::busybox;
pub use crate::busybox::{IMAGE, exec_spec};
use crate::daemons::{self, Daemon};

/// Environment of the image.
const ENV: [&str; 2] = ["FROM_IMAGE=yes", "BOTH=image"];

/// An engine under test.
pub struct TestEngine {
    pub runtime: Arc<dyn ContainerRuntime>,
    kind: Kind,
    dir: TempDir,
    /// Every id that was given out.
    ids: Arc<Mutex<Vec<ContainerId>>>,
}

enum Kind {
    Fake(FakeRuntime),
    Youki,
    /// An engine with a daemon.
    Daemon(RuntimeKind, Daemon),
}

/// Notes the ids that an engine gives, and lists no others where other tests use the same daemon.
#[derive(Debug)]
struct Recorder {
    engine: Arc<dyn ContainerRuntime>,
    ids: Arc<Mutex<Vec<ContainerId>>>,
    shared: bool,
}

#[async_trait]
impl ContainerRuntime for Recorder {
    async fn info(&self) -> Result<RuntimeInfo> {
        self.engine.info().await
    }
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        let id = self.engine.create(spec).await?;
        self.ids.lock().expect("lock").push(id.clone());
        Ok(id)
    }
    async fn start(&self, id: &ContainerId) -> Result<Pid> {
        self.engine.start(id).await
    }
    async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.engine.wait(id).await
    }
    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.engine.kill(id, signal).await
    }
    async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.engine.remove(id).await
    }
    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.engine.inspect(id).await
    }
    async fn list(&self) -> Result<Vec<ContainerInfo>> {
        let mut list = self.engine.list().await?;
        if self.shared {
            let ids = self.ids.lock().expect("lock");
            list.retain(|info| ids.contains(&info.id));
        }
        Ok(list)
    }
    async fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>> {
        self.engine.logs(id, limit).await
    }
    async fn follow(&self, id: &ContainerId, tail: usize, to: mpsc::Sender<LogPart>) -> Result<()> {
        self.engine.follow(id, tail, to).await
    }
    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecOutput> {
        self.engine.exec(id, spec).await
    }
}

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

impl TestEngine {
    /// The engine in memory.
    pub async fn fake() -> Self {
        let fake = FakeRuntime::new(no_runner());
        fake.add_image(ImageInfo {
            names: vec![IMAGE.to_owned()],
            ..ImageInfo::default()
        });
        let engine = Arc::new(fake.clone());
        Self::of(Kind::Fake(fake), dir(), engine)
    }

    /// The engine without a daemon; needs root.
    pub async fn youki() -> Self {
        let dir = dir();
        busybox::root(&dir.path().join("busybox"));
        let engine = open(dir.path()).await;
        Self::of(Kind::Youki, dir, engine)
    }

    /// containerd: the lane's, else one of this test's own.
    pub async fn containerd() -> Option<Self> {
        let daemon = Daemon::get(daemons::Kind::Containerd);
        Self::with_daemon(RuntimeKind::Containerd, daemon).await
    }

    /// Docker: the lane's, else one of this test's own in a network namespace of the test's own.
    pub async fn docker() -> Option<Self> {
        let daemon = Daemon::get(daemons::Kind::Docker);
        Self::with_daemon(RuntimeKind::Docker, daemon).await
    }

    async fn with_daemon(kind: RuntimeKind, daemon: Result<Daemon, String>) -> Option<Self> {
        let daemon = match daemon {
            Ok(daemon) => daemon,
            Err(lack) => {
                println!("skipped: {lack}");
                return None;
            }
        };
        let dir = dir();
        let engine = backends::open(kind, config(dir.path(), &daemon)).await;
        let engine = engine.expect("the engine opens");
        import(&*engine.images, dir.path(), &daemon).await;
        Some(Self::of(Kind::Daemon(kind, daemon), dir, engine.runtime))
    }

    fn of(kind: Kind, dir: TempDir, engine: Arc<dyn ContainerRuntime>) -> Self {
        let ids = Arc::default();
        Self {
            runtime: recorded(&kind, engine, &ids),
            kind,
            dir,
            ids,
        }
    }

    /// Lets the agent die and another take its place.
    pub async fn reopen(&mut self) {
        let engine = self.another().await;
        self.runtime = recorded(&self.kind, engine, &self.ids);
    }

    /// Lets the agent die; [`Self::reopen`] lets another take its place.
    pub fn leave(&mut self) {
        self.runtime = Arc::new(FakeRuntime::new(no_runner()));
    }

    /// Opens the engine once more on the same folders.
    pub async fn another(&self) -> Arc<dyn ContainerRuntime> {
        match &self.kind {
            Kind::Fake(fake) => Arc::new(fake.clone()),
            Kind::Youki => open(self.dir.path()).await,
            Kind::Daemon(kind, daemon) => {
                let opened = backends::open(*kind, config(self.dir.path(), daemon)).await;
                opened.expect("the engine opens again").runtime
            }
        }
    }

    /// Opens it once more with another program as monitor and another folder as the image's root.
    pub async fn broken(&self, monitor: &Path, root: &Path) -> Arc<dyn ContainerRuntime> {
        open_with(self.dir.path(), monitor, root.to_owned()).await
    }

    /// A folder of this engine's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The monitor of a container; its lock file tells.
    pub fn monitor(&self, id: &ContainerId) -> i32 {
        let lock = self.path("run/containers").join(&id.0).join("lock");
        let pid = fs::read_to_string(lock).expect("lock");
        pid.parse().expect("pid")
    }

    /// A container that runs a script.
    pub fn shell(&self, script: &str) -> ContainerSpec {
        let spec = busybox::shell(script);
        // What a create that fails may have left has this id.
        self.ids.lock().expect("lock").push(spec.id.clone());
        spec
    }

    /// Makes and starts a container.
    pub async fn launch(&self, spec: &ContainerSpec) -> ContainerId {
        let id = self.runtime.create(spec).await.expect("create");
        self.runtime.start(&id).await.expect("start");
        id
    }

    /// Makes and starts a container that ends by itself with this code.
    pub async fn launch_to_end(&self, code: i32) -> ContainerId {
        let id = self.launch(&self.shell(&format!("exit {code}"))).await;
        if let Kind::Fake(fake) = &self.kind {
            fake.exit(&id, code);
        }
        id
    }

    /// Asks for what cannot be: the error of `create`, or of `start` where only that shows it; then the container, which
    /// is still there, is removed.
    pub async fn refused(&self, spec: &ContainerSpec) -> RuntimeError {
        let id = match self.runtime.create(spec).await {
            Ok(id) => id,
            Err(error) => return error,
        };
        let error = self.runtime.start(&id).await.expect_err("it cannot");
        self.runtime.remove(&id).await.expect("remove");
        error
    }

    /// Runs a container to its end, removes it, and gives its end and its log.
    pub async fn run(&self, spec: &ContainerSpec) -> (ExitStatus, String) {
        let id = self.launch(spec).await;
        let status = self.runtime.wait(&id).await.expect("wait");
        let log = self.runtime.logs(&id, 16 << 20).await.expect("logs");
        self.runtime.remove(&id).await.expect("remove");
        (status, String::from_utf8_lossy(&log).into_owned())
    }

    /// What a script prints that ends well.
    pub async fn output(&self, script: &str) -> String {
        self.output_of(&self.shell(script)).await
    }

    /// What a container prints that ends well.
    pub async fn output_of(&self, spec: &ContainerSpec) -> String {
        let (status, log) = self.run(spec).await;
        assert_eq!(status.code, 0, "{log}");
        log
    }

    /// Waits until the log holds a text.
    pub async fn until_logged(&self, id: &ContainerId, text: &str) {
        for _ in 0..2000 {
            let log = self.runtime.logs(id, 1 << 20).await.expect("logs");
            if String::from_utf8_lossy(&log).contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the container never printed {text:?}");
    }

    /// Removes what is left and checks that Linux has nothing more of it.
    pub async fn close(self) {
        for id in self.ids() {
            self.runtime.remove(&id).await.expect("remove");
        }
        self.assert_nothing_left();
    }

    fn ids(&self) -> Vec<ContainerId> {
        self.ids.lock().expect("lock").clone()
    }

    /// Checks that no process, mount, cgroup or file of any container is left.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }

    fn leftovers(&self) -> Vec<String> {
        // A daemon that is this test's own has processes and mounts itself: what tells of containers are their ids.
        let mut marks: Vec<_> = self.ids().into_iter().map(|id| id.0).collect();
        marks.push(self.dir.path().display().to_string());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mut left = self.files_left();
        for mark in marks {
            let mounts = mounts.lines().filter(|line| line.contains(&mark));
            left.extend(mounts.map(str::to_owned));
            let processes = processes(&mark).into_iter();
            left.extend(processes.map(|(pid, text)| format!("{pid} {text}")));
        }
        let cgroups = self.cgroups().into_iter();
        left.extend(cgroups.map(|path| path.display().to_string()));
        left
    }

    /// The cgroups of all containers, in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut parents = vec![PathBuf::from("backendai")];
        if let Kind::Daemon(_, daemon) = &self.kind {
            let name = daemon.folder();
            let name = name.file_name().expect("a folder has a name");
            parents.push(Path::new("backendai-test").join(name));
        }
        let mut found = Vec::new();
        for root in hierarchies() {
            for parent in &parents {
                found.extend(self.ids().iter().map(|id| root.join(parent).join(&id.0)));
            }
        }
        found.retain(|path| path.exists());
        found
    }

    /// Files and folders of containers.
    fn files_left(&self) -> Vec<String> {
        let own = [
            "run/containers",
            "state/containers",
            "run/network/records",
            "run/netns",
        ];
        let mut left: Vec<_> = own
            .iter()
            .flat_map(|folder| fs::read_dir(self.path(folder)).into_iter().flatten())
            .map(|entry| entry.expect("entry").path())
            .collect();
        if let Kind::Daemon(_, daemon) = &self.kind {
            for id in self.ids() {
                let kept = [
                    "data/containers",
                    "state/io.containerd.runtime.v2.task/backendai",
                    "root/io.containerd.runtime.v2.task/backendai",
                ];
                left.extend(kept.map(|folder| daemon.folder().join(folder).join(&id.0)));
            }
        }
        left.retain(|path| path.exists());
        left.iter().map(|path| path.display().to_string()).collect()
    }
}

impl Drop for TestEngine {
    /// A test that failed leaves no container either.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (runtime, ids) = (Arc::clone(&self.runtime), self.ids());
        let done = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            tokio.block_on(async {
                for id in ids {
                    let _ = runtime.remove(&id).await;
                }
            });
        });
        let _ = done.join();
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("temp dir")
}

fn recorded(
    kind: &Kind,
    engine: Arc<dyn ContainerRuntime>,
    ids: &Arc<Mutex<Vec<ContainerId>>>,
) -> Arc<dyn ContainerRuntime> {
    Arc::new(Recorder {
        engine,
        ids: Arc::clone(ids),
        shared: matches!(kind, Kind::Daemon(_, daemon) if daemon.is_shared()),
    })
}

fn config(dir: &Path, daemon: &Daemon) -> EngineConfig {
    EngineConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        monitor_exe: Some(PROGRAM.into()),
        endpoint: Some(daemon.endpoint()),
        ..EngineConfig::default()
    }
}

/// Gives a daemon the image, once.
async fn import(images: &dyn ImageAdmin, dir: &Path, daemon: &Daemon) {
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

async fn open(dir: &Path) -> Arc<dyn ContainerRuntime> {
    open_with(dir, Path::new(PROGRAM), dir.join("busybox")).await
}

async fn open_with(dir: &Path, monitor: &Path, root: PathBuf) -> Arc<dyn ContainerRuntime> {
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

/// Processes whose command line holds a text.
pub fn processes(text: &str) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let lines = pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    lines.filter(|(_, line)| line.contains(text)).collect()
}

/// Whether this machine has only cgroup version 2.
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The roots of all hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let entries = fs::read_dir(&root).expect("cgroups").flatten();
    let mut roots: Vec<_> = entries.map(|entry| entry.path()).collect();
    roots.push(root);
    roots.retain(|root| root.is_dir());
    roots
}

/// Where a container's cgroups are, as the engine tells it.
pub struct Cgroup(PathBuf);

/// The cgroup of a container.
pub async fn cgroup_of(engine: &TestEngine, id: &ContainerId) -> Cgroup {
    let info = engine.runtime.inspect(id).await.expect("inspect");
    Cgroup(info.cgroup.expect("it has a cgroup"))
}

impl Cgroup {
    /// Its folder: on version 1 in the hierarchy of `controller`.
    pub fn folder(&self, controller: &str) -> PathBuf {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchy = if unified() {
            root.to_owned()
        } else {
            root.join(controller)
        };
        hierarchy.join(self.0.strip_prefix("/").expect("an absolute path"))
    }

    /// The text of one of its files.
    pub fn file(&self, controller: &str, file: &str) -> String {
        let path = self.folder(controller).join(file);
        let text = fs::read_to_string(&path);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().to_owned()
    }
}

/// The processes of a cgroup and of those below it.
pub fn members(folder: &Path) -> Vec<i32> {
    let file = folder.join("cgroup.procs");
    let text = fs::read_to_string(&file);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut pids: Vec<_> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(folder).expect("cgroup").flatten() {
        if entry.path().is_dir() {
            pids.extend(members(&entry.path()));
        }
    }
    pids
}

/// The namespace of this thread, as its link tells it.
pub fn own_namespace(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/thread-self/ns/{kind}"));
    link.expect("namespace").display().to_string()
}

/// The first process of a container.
pub async fn pid_of(engine: &TestEngine, id: &ContainerId) -> Pid {
    let info = engine.runtime.inspect(id).await.expect("inspect");
    info.pid.expect("it runs")
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    listener.local_addr().expect("address").port()
}

/// A container on the bridge whose port 2000 is forwarded.
pub fn bridged(engine: &TestEngine, script: &str, port: u16) -> ContainerSpec {
    let mut spec = engine.shell(script);
    spec.network = NetworkMode::Bridge;
    spec.ports = vec![PortBinding {
        host: port,
        container: 2000,
    }];
    spec
}

/// What the server behind a port says, once it can be reached.
pub async fn greeting(address: Ipv4Addr, port: u16) -> String {
    let mut text = String::new();
    for _ in 0..400 {
        if let Ok(mut stream) = TcpStream::connect((address, port)) {
            let patience = Some(Duration::from_secs(10));
            stream.set_read_timeout(patience).expect("timeout");
            if matches!(stream.read_to_string(&mut text), Ok(1..)) {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    text
}
