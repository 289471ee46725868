//! The program under test on folders of its own, and the search for what it leaves behind.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::daemons::{self, Daemon, Kind, OwnDaemon};
use crate::program::{OnTerminal, Outcome, Run};

/// What is imported once and used by every test.
const SHARED: [&str; 3] = ["images", "layers", "krunner"];
/// Names the engine of the tests; youki when absent.
const ENGINE: &str = "BACKENDAI_TEST_RUNTIME";

/// The daemon of the engine that the lane names; none for the engine without one.
fn daemon_kind() -> Option<Kind> {
    #[allow(clippy::disallowed_methods, reason = "the lane tells")]
    let named = std::env::var(ENGINE).unwrap_or_default();
    match named.as_str() {
        "" | "youki" => None,
        "docker" => Some(Kind::Docker),
        "containerd" => Some(Kind::Containerd),
        other => panic!("{ENGINE}={other}: there are youki, docker and containerd"),
    }
}

/// Folders of the program, with one image.
pub struct Node {
    dir: TempDir,
    image: &'static str,
    daemon: Option<(Kind, Daemon)>,
    /// Kernels that were seen.
    kernels: Arc<Mutex<BTreeSet<String>>>,
    /// Containers that were seen.
    ids: Arc<Mutex<BTreeSet<String>>>,
    watching: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl Node {
    /// With the Python image.
    pub fn python() -> Self {
        Self::new("python")
    }

    /// With the image of busybox.
    pub fn busybox() -> Self {
        Self::new("busybox")
    }

    fn new(image: &'static str) -> Self {
        let daemon = daemon_kind().map(|kind| (kind, Daemon::get(kind).expect("a daemon")));
        let (shared, shares) = match &daemon {
            None => (shared_store(image), &SHARED[..]),
            // A daemon has the images.
            Some((kind, daemon)) => (import_into(*kind, daemon, image), &["krunner"][..]),
        };
        let node = Self::empty(image, daemon);
        for name in shares {
            symlink(shared.join(name), node.dir.path().join("state").join(name)).expect("link");
        }
        node
    }

    /// Without any image.
    pub fn without_images() -> Self {
        let own = |kind| Daemon::Own(OwnDaemon::start(kind, &[]).expect("a daemon"));
        Self::empty("none", daemon_kind().map(|kind| (kind, own(kind))))
    }

    fn empty(image: &'static str, daemon: Option<(Kind, Daemon)>) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let containers = match &daemon {
            Some((Kind::Containerd, _)) => "state/containerd/containers",
            _ => "state/containers",
        };
        fs::create_dir_all(dir.path().join("state/containers")).expect("folder");
        let (ids, kernels) = (Arc::<Mutex<BTreeSet<String>>>::default(), Arc::default());
        let watching = Arc::new(AtomicBool::new(true));
        let watched = [
            (dir.path().join(containers), Arc::clone(&ids)),
            (dir.path().join("state/runs"), Arc::clone(&kernels)),
        ];
        let go = Arc::clone(&watching);
        let watcher = std::thread::spawn(move || {
            while go.load(Ordering::Relaxed) {
                for (folder, seen) in &watched {
                    let now = names(folder).into_iter();
                    let whole = now.filter(|name| !name.starts_with('.'));
                    seen.lock().expect("lock").extend(whole);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self {
            dir,
            image,
            daemon,
            kernels,
            ids,
            watching,
            watcher: Some(watcher),
        }
    }

    /// Whether the engine is dockerd, which has a network and cgroups of its own.
    pub fn is_docker(&self) -> bool {
        matches!(self.daemon, Some((Kind::Docker, _)))
    }

    /// A new empty folder of this test's.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).expect("folder");
        path
    }

    /// Containers that were seen so far; dockerd keeps its own where nobody looks.
    pub fn ids(&self) -> BTreeSet<String> {
        self.ids.lock().expect("lock").clone()
    }

    /// Kernels that were seen so far.
    pub fn kernels(&self) -> BTreeSet<String> {
        self.kernels.lock().expect("lock").clone()
    }

    /// `backendai-agent run` with these arguments.
    pub fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        self.command_as(Command::new(env!("CARGO_BIN_EXE_backendai-agent")), args)
    }

    fn command_as(
        &self,
        mut command: Command,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Command {
        command.arg("run");
        command.args(["--image", self.image]);
        command.args(args);
        self.settle(&mut command);
        command
    }

    /// Folders and surroundings of the program.
    pub fn settle(&self, command: &mut Command) {
        let dir = self.dir.path();
        command
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--run-dir")
            .arg(dir.join("run"))
            .env_remove("SUDO_UID")
            .current_dir("/");
        if let Some((kind, daemon)) = &self.daemon {
            settle_engine(command, *kind, daemon);
        }
    }

    /// Starts `backendai-agent run` on pipes.
    pub fn start(&self, args: &[&str]) -> Run {
        Run::start(&mut self.command(args))
    }

    /// Starts `backendai-agent run` on a terminal of its own.
    pub fn start_on_terminal(&self, args: &[&str]) -> OnTerminal {
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_backendai-agent")]);
        OnTerminal::start(&mut self.command_as(command, args))
    }

    /// Runs to the end: exit code, standard output and standard error.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.start(args).end()
    }

    /// Runs Python code that must end well; gives its output.
    pub fn output(&self, code: &str) -> String {
        let outcome = self.run(&["-c", code]);
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        outcome.out
    }

    /// Checks that nothing is left of any run.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }

    /// Everything that is left of any run.
    pub fn leftovers(&self) -> Vec<String> {
        let dir = self.dir.path();
        let mut left = Vec::new();
        for folder in [
            "run/containers",
            "run/containerd",
            "run/netns",
            "state/containers",
            "state/containerd/containers",
            "state/runs",
        ] {
            let names = names(&dir.join(folder));
            left.extend(names.into_iter().map(|name| format!("{folder}/{name}")));
        }
        let records = names(&dir.join("run/network"));
        let lock = |name: &String| ["bridge", "lock", "rules"].contains(&name.as_str());
        left.extend(records.into_iter().filter(|name| !lock(name)));
        left.extend(self.processes());
        left.extend(self.containers());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let place = dir.to_string_lossy().into_owned();
        let ours = mounts.lines().filter(|line| line.contains(&place));
        left.extend(ours.map(str::to_owned));
        left.extend(self.ids().iter().flat_map(|id| cgroups(id)));
        let name = self.network_name();
        if Path::new("/sys/class/net").join(&name).exists() {
            left.push(format!("link {name}"));
        }
        if nft_tables().contains(&name) {
            left.push(format!("nft table {name}"));
        }
        left
    }

    /// Containers of kernels of this node that the daemon still has.
    fn containers(&self) -> Vec<String> {
        if self.daemon.is_none() {
            return Vec::new();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
        command.args(["ps", "-a", "--json"]);
        self.settle(&mut command);
        let outcome = Run::start(&mut command).end();
        let listed: Vec<Value> = serde_json::from_str(&outcome.out).expect("a list");
        let kernels = self.kernels.lock().expect("lock");
        let ours = listed.iter().filter(|it| {
            let kernel = it["kernel_id"].as_str();
            kernel.is_some_and(|kernel| kernels.contains(kernel))
        });
        ours.map(|it| format!("container {it}")).collect()
    }

    /// The name of the bridge and of the rule table.
    pub fn network_name(&self) -> String {
        let run = self.dir.path().join("run");
        let digest = hex::encode(Sha256::digest(run.as_os_str().as_encoded_bytes()));
        format!("bai{}", &digest[..8])
    }

    /// Every process that works for this node, or sees a container's root of it.
    pub fn processes(&self) -> Vec<String> {
        let place = self.dir.path().to_string_lossy().into_owned();
        let pids = names(Path::new("/proc")).into_iter();
        let pids = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let ours = pids.filter_map(|pid| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let mounts = read("mountinfo");
            let ours =
                command.contains(&place) || String::from_utf8_lossy(&mounts).contains(&place);
            ours.then(|| format!("process {pid} {command}"))
        });
        ours.collect()
    }
}

impl Drop for Node {
    /// A test that failed leaves nothing either: the next run would remove it, but there is none.
    fn drop(&mut self) {
        self.watching.store(false, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        if self.leftovers().is_empty() || self.image == "none" {
            return;
        }
        // Everything that a run leaves is removed by the next.
        let _ = self.command(["--quiet", "--exec", "true"]).output();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The cgroups of a container, in every hierarchy.
pub fn cgroups(id: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let mut roots: Vec<PathBuf> = names(root)
        .into_iter()
        .map(|name| root.join(name))
        .collect();
    roots.push(root.to_owned());
    let paths = roots
        .into_iter()
        .map(|root| root.join("backendai").join(id));
    paths
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect()
}

/// Every rule table of the machine, as nft says it.
pub fn nft_tables() -> String {
    let output = Command::new("nft").args(["list", "tables"]).output();
    let output = output.expect("nft is installed; the tests run as root");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The state folder with the image, imported once for all tests, also those of other processes.
fn shared_store(image: &str) -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node-images");
    fs::create_dir_all(&base).expect("folder");
    let lock = File::create(base.join(format!("{image}.lock"))).expect("lock");
    flock(&lock, FlockOperation::LockExclusive).expect("lock");
    let tar = PathBuf::from(script(&[image]).trim());
    let state = base.join(tar.file_stem().expect("a file"));
    let done = state.join("done");
    if !done.exists() {
        let _ = fs::remove_dir_all(&state);
        let flags = script(&["--flags", image]);
        let mut import = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
        import.args(["image", "import"]).arg(&tar).arg(image);
        import.args(flags.lines());
        import.arg("--state-dir").arg(&state);
        import.arg("--run-dir").arg(base.join("run"));
        let output = import.output().expect("started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "image import: {text}");
        fs::create_dir_all(state.join("krunner")).expect("folder");
        File::create(done).expect("marked");
    }
    state
}

/// The engine of the tests, as the program's environment names it.
fn settle_engine(command: &mut Command, kind: Kind, daemon: &Daemon) {
    let name = match kind {
        Kind::Docker => "docker",
        Kind::Containerd => "containerd",
    };
    command.env("BACKEND_RUNTIME", name);
    command.env("BACKEND_RUNTIME_ENDPOINT", daemon.endpoint());
    if let Some(handler) = daemons::handler() {
        command.env("BACKEND_RUNTIME_HANDLER", handler);
    }
}

/// Imports the image into a daemon that lacks it; gives a folder with what tests share besides.
fn import_into(kind: Kind, daemon: &Daemon, image: &str) -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node-images/daemon");
    fs::create_dir_all(base.join("krunner")).expect("folder");
    let lock = File::create(base.join(format!("{image}.lock"))).expect("lock");
    flock(&lock, FlockOperation::LockExclusive).expect("lock");
    let agent = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backendai-agent"));
        command.args(args);
        command.arg("--state-dir").arg(&base);
        command.arg("--run-dir").arg(base.join("run"));
        settle_engine(&mut command, kind, daemon);
        let output = command.output().expect("started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {text}");
        String::from_utf8(output.stdout).expect("text")
    };
    let there: Vec<Value> = serde_json::from_str(&agent(&["image", "ls", "--json"])).expect("list");
    let name = Value::from(format!("{image}:latest"));
    let is_there = |it: &Value| {
        it["names"]
            .as_array()
            .is_some_and(|all| all.contains(&name))
    };
    if !there.iter().any(is_there) {
        let (tar, flags) = (script(&[image]), script(&["--flags", image]));
        let mut args = vec!["image", "import", tar.trim(), image];
        args.extend(flags.lines());
        agent(&args);
    }
    base
}

fn script(args: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel-image.sh");
    let output = Command::new(path).args(args).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kernel-image.sh: {text}");
    String::from_utf8(output.stdout).expect("text")
}
