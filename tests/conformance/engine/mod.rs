//! An engine under test, on folders of its own and with a root of busybox; it must leave nothing behind.

mod leftovers;
mod open;
mod port;
mod processes;
mod recorder;
mod seen;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backendai_agent::backends::{self, RuntimeKind};
use backendai_agent::runtime::fake::{FakeRuntime, no_runner};
use backendai_agent::runtime::{
    ContainerId, ContainerRuntime, ContainerSpec, ExitStatus, ImageInfo, RuntimeError,
};
use tempfile::TempDir;

pub use self::open::PROGRAM;
use self::open::{ENV, config, import, open, open_with};
pub use self::port::{bridged, free_port, greeting};
use self::processes::Processes;
use self::recorder::Recorder;
pub use self::seen::{cgroup_of, members, own_namespace, pid_of, processes, unified};
use crate::busybox;
pub use crate::busybox::{IMAGE, exec_spec};
use crate::daemons::{self, Daemon};

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

impl TestEngine {
    /// The engine in memory, with processes as its programs; needs root.
    pub async fn fake() -> Self {
        let dir = dir();
        let [image, place] = ["busybox", "root"].map(|name| dir.path().join(name));
        busybox::root(&image);
        fs::create_dir(&place).expect("folder");
        let fake = FakeRuntime::with_programs(Processes { image, place });
        fake.add_image(ImageInfo {
            names: vec![IMAGE.to_owned()],
            env: ENV.map(str::to_owned).into(),
            ..ImageInfo::default()
        });
        let engine = Arc::new(fake.clone());
        Self::of(Kind::Fake(fake), dir, engine)
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

    /// Opens youki on the same state folder, but with another run folder.
    pub async fn neighbour(&self) -> Arc<dyn ContainerRuntime> {
        let folder = self.path("neighbour");
        fs::create_dir(&folder).expect("folder");
        std::os::unix::fs::symlink(self.path("state"), folder.join("state")).expect("link");
        open(&folder).await
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
        self.launch(&self.shell(&format!("exit {code}"))).await
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
