//! An engine under test, on folders of its own and with a root of busybox; it must leave nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backendai_agent::backends::EngineConfig;
use backendai_agent::backends::youki::{Rootfs, RootfsSource, Youki};
use backendai_agent::runtime::DEFAULT_CAPABILITIES;
use backendai_agent::runtime::fake::{FakeRuntime, no_runner};
use backendai_agent::runtime::{
    ContainerId, ContainerRuntime, ContainerSpec, ExitStatus, ImageInfo, LABEL_OWNER, Limits,
    NetworkMode, OWNER, Result, RuntimeError, Seccomp,
};
use tempfile::TempDir;

/// Name of the only image.
pub const IMAGE: &str = "local/busybox:latest";

/// An engine under test.
pub struct TestEngine {
    pub runtime: Arc<dyn ContainerRuntime>,
    kind: Kind,
    dir: TempDir,
    /// Every id that was given out.
    ids: Mutex<Vec<ContainerId>>,
}

enum Kind {
    Fake(FakeRuntime),
    Youki,
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
        let env = ["FROM_IMAGE=yes", "BOTH=image"].map(str::to_owned).into();
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
        Self {
            runtime: Arc::new(fake.clone()),
            kind: Kind::Fake(fake),
            dir: tempfile::tempdir().expect("temp dir"),
            ids: Mutex::default(),
        }
    }

    /// The engine without a daemon; needs root.
    pub async fn youki() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        make_root(&dir.path().join("busybox"));
        Self {
            runtime: open(dir.path()).await,
            kind: Kind::Youki,
            dir,
            ids: Mutex::default(),
        }
    }

    /// Lets the agent die and another take its place.
    pub async fn reopen(&mut self) {
        self.runtime = match &self.kind {
            Kind::Fake(fake) => Arc::new(fake.clone()),
            Kind::Youki => open(self.dir.path()).await,
        };
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
        self.ids.lock().expect("lock").push(ContainerId(id.clone()));
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
        let mut left = Vec::new();
        for folder in [
            "run/containers",
            "state/containers",
            "run/network/records",
            "run/netns",
        ] {
            for entry in fs::read_dir(self.path(folder)).into_iter().flatten() {
                left.push(entry.expect("entry").path().display().to_string());
            }
        }
        let dir = self.dir.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&dir))
                .map(str::to_owned),
        );
        left.extend(
            processes(&dir)
                .into_iter()
                .map(|(pid, text)| format!("{pid} {text}")),
        );
        for id in self.ids() {
            for cgroup in cgroups(&id) {
                left.push(cgroup.display().to_string());
            }
        }
        left
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
