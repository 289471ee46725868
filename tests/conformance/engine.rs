//! An engine under test, on folders of its own and with a root of busybox; it must leave nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backendai_agent::backends::youki::{Rootfs, RootfsSource, Youki};
use backendai_agent::backends::{self, EngineConfig, RuntimeKind};
use backendai_agent::image::{ImageAdmin, ImportOptions};
use backendai_agent::runtime::DEFAULT_CAPABILITIES;
use backendai_agent::runtime::fake::{FakeRuntime, no_runner};
use backendai_agent::runtime::{
    ContainerId, ContainerInfo, ContainerRuntime, ContainerSpec, ExecOutput, ExecSpec, ExitStatus,
    ImageInfo, LABEL_OWNER, Limits, NetworkMode, OWNER, Pid, Result, RuntimeError, RuntimeInfo,
    Seccomp,
};
use tempfile::TempDir;

use crate::daemons::{self, Daemon};

/// Name of the only image.
pub const IMAGE: &str = "local/busybox:latest";

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

fn make_root(root: &Path) {
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("folder");
    }
    // A link that must not lead out of the root when a file is put in its place.
    symlink("/etc/passwd", root.join("etc/hostname")).expect("link");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in "sh echo cat sleep ls id env nc touch mkdir mknod mount dd head tail kill grep readlink hostname wc pwd ip ps printf true stat unshare yes seq tr df".split(' ') {
        symlink("busybox", root.join("bin").join(name)).expect("link");
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
        make_root(&dir.path().join("busybox"));
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
        let dir = dir();
        let opened = match daemon {
            Ok(daemon) => backends::open(kind, config(dir.path(), &daemon))
                .await
                .map(|engine| (engine, daemon))
                .map_err(|error| format!("needs {kind:?} ({error})")),
            Err(lack) => Err(lack),
        };
        let (engine, daemon) = match opened {
            Ok(opened) => opened,
            Err(lack) => {
                println!("skipped: {lack}");
                return None;
            }
        };
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
        let engine: Arc<dyn ContainerRuntime> = match &self.kind {
            Kind::Fake(fake) => Arc::new(fake.clone()),
            Kind::Youki => open(self.dir.path()).await,
            Kind::Daemon(kind, daemon) => {
                let opened = backends::open(*kind, config(self.dir.path(), daemon)).await;
                opened.expect("the engine opens again").runtime
            }
        };
        self.runtime = recorded(&self.kind, engine, &self.ids);
    }

    /// Opens the engine without a daemon once more on the same folders.
    pub async fn another(&self) -> Arc<dyn ContainerRuntime> {
        open(self.dir.path()).await
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
        let id = format!("{0}{0}", uuid::Uuid::new_v4().simple());
        if !matches!(self.kind, Kind::Daemon(RuntimeKind::Docker, _)) {
            // What a create that fails may have left has this id.
            self.ids.lock().expect("lock").push(ContainerId(id.clone()));
        }
        ContainerSpec {
            name: format!("kernel.test.{id}"),
            id: ContainerId(id),
            image: IMAGE.to_owned(),
            args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            env: Vec::new(),
            cwd: "/".into(),
            hostname: Some("inside".to_owned()),
            mounts: Vec::new(),
            devices: Vec::new(),
            limits: Limits::default(),
            network: NetworkMode::None,
            ports: Vec::new(),
            labels: [(LABEL_OWNER.to_owned(), OWNER.to_owned())].into(),
            seccomp: Seccomp::Default,
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).into(),
            no_new_privileges: true,
            log_limit: 1 << 20,
        }
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
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
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
        for id in self.ids() {
            let cgroups = cgroups(&id).into_iter();
            left.extend(cgroups.map(|path| path.display().to_string()));
        }
        left
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
    let (root, tar) = (dir.join("busybox"), dir.join("busybox.tar"));
    make_root(&root);
    let mut archive = tar::Builder::new(fs::File::create(&tar).expect("file"));
    archive.follow_symlinks(false);
    archive.append_dir_all(".", &root).expect("tar");
    archive.finish().expect("tar");
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

/// The cgroups of a container, in every hierarchy.
pub fn cgroups(id: &ContainerId) -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(
        fs::read_dir(&roots[0])
            .expect("cgroups")
            .flatten()
            .map(|entry| entry.path()),
    );
    roots.retain(|root| root.is_dir());
    let paths = roots
        .into_iter()
        .map(|root| root.join("backendai").join(&id.0));
    paths.filter(|path| path.exists()).collect()
}

/// Whether this machine has only cgroup version 2.
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Reads a file of a container's cgroup: on version 1 in the hierarchy of `controller`.
pub fn cgroup_file(id: &ContainerId, controller: &str, file: &str) -> String {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchy = if unified() {
        root.to_owned()
    } else {
        root.join(controller)
    };
    let path = hierarchy.join("backendai").join(&id.0).join(file);
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}
