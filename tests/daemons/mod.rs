//! Daemons of engines for tests, on folders and sockets of their own: dockerd and containerd, which a test can kill, freeze
//! and start again. `BACKENDAI_TEST_DOCKER` (`unix://…`) and `BACKENDAI_TEST_CONTAINERD` (a path) name running ones for a
//! whole lane (`lane.sh`); without them each test starts its own. In a lane with another suite of Debian they are that
//! suite's, by `BACKENDAI_TEST_USR`.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod calls;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Where the scripts are.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/daemons");

/// A daemon that tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Containerd,
}

impl Kind {
    /// Name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Docker => "dockerd",
            Self::Containerd => "containerd",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Docker => "BACKENDAI_TEST_DOCKER",
            Self::Containerd => "BACKENDAI_TEST_CONTAINERD",
        }
    }

    fn socket(self) -> &'static str {
        match self {
            Self::Docker => "docker.sock",
            Self::Containerd => "containerd.sock",
        }
    }
}

/// Whether dockerds keep their images in containerd's store (`dockerd.sh`).
pub fn docker_stores_in_containerd() -> bool {
    #[allow(clippy::disallowed_methods, reason = "the lane's script tells")]
    let store = std::env::var("BACKENDAI_TEST_DOCKER_STORE");
    store.is_ok_and(|store| store == "containerd")
}

/// What shall run containers below containerd, when the lane names it.
pub fn handler() -> Option<String> {
    #[allow(clippy::disallowed_methods, reason = "the lane's script tells")]
    std::env::var("BACKENDAI_TEST_HANDLER").ok()
}

/// A daemon of this test's own, or the lane's.
#[derive(Debug)]
pub enum Daemon {
    /// Shared with other tests: it holds containers that are not ours, and must not be disturbed.
    Shared(Kind, PathBuf),
    /// This test's alone.
    Own(OwnDaemon),
}

impl Daemon {
    /// The lane's daemon, else a new one. Says what the machine lacks for it.
    pub fn get(kind: Kind) -> Result<Self, String> {
        #[allow(clippy::disallowed_methods, reason = "the lane's script tells")]
        let named = std::env::var(kind.variable()).ok();
        match named {
            Some(name) => {
                let path = name.strip_prefix("unix://").unwrap_or(&name);
                Ok(Self::Shared(kind, path.into()))
            }
            None => OwnDaemon::start(kind, &[]).map(Self::Own),
        }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        match self {
            Self::Shared(_, path) => path.clone(),
            Self::Own(daemon) => daemon.socket(),
        }
    }

    /// Its socket, as the agent's option names it.
    pub fn endpoint(&self) -> String {
        let (Self::Shared(kind, _) | Self::Own(OwnDaemon { kind, .. })) = self;
        endpoint(*kind, &self.socket())
    }

    /// The folder that holds everything it keeps.
    pub fn folder(&self) -> PathBuf {
        let socket = self.socket();
        socket.parent().expect("a socket is in a folder").to_owned()
    }

    /// Whether other tests use it too.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(..))
    }
}

fn endpoint(kind: Kind, socket: &Path) -> String {
    match kind {
        Kind::Docker => format!("unix://{}", socket.display()),
        Kind::Containerd => socket.display().to_string(),
    }
}

/// A daemon that nobody else uses; dropping it kills it and removes everything that it made.
#[derive(Debug)]
pub struct OwnDaemon {
    kind: Kind,
    folder: TempDir,
    options: Vec<String>,
    child: Child,
}

impl OwnDaemon {
    /// Starts one with further options (`--live-restore`) and waits until it serves. dockerd writes iptables rules: this
    /// thread, and whatever it starts from now on, gets a network namespace of its own.
    ///
    /// Says what the machine lacks when the program is not installed.
    pub fn start(kind: Kind, options: &[&str]) -> Result<Self, String> {
        lacking(kind).map_or(Ok(()), Err)?;
        own_network();
        Self::start_here(kind, options)
    }

    /// Like [`Self::start`], for a caller whose whole process is in a network namespace of its own.
    pub fn start_here(kind: Kind, options: &[&str]) -> Result<Self, String> {
        lacking(kind).map_or(Ok(()), Err)?;
        let prefix = format!("bai-{}-", kind.program());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir();
        let folder = folder.expect("temp dir");
        let options: Vec<_> = options.iter().map(|&it| it.to_owned()).collect();
        let child = spawn(kind, folder.path(), &options);
        let mut daemon = Self {
            kind,
            folder,
            options,
            child,
        };
        daemon.until_serving();
        Ok(daemon)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(self.kind.socket())
    }

    /// Its socket, as the agent's option names it.
    pub fn endpoint(&self) -> String {
        endpoint(self.kind, &self.socket())
    }

    /// The folder that holds everything it keeps.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once (SIGKILL). Containers of containerd, and of dockerd with `--live-restore`, live on.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Ends it in peace (SIGTERM): dockerd without `--live-restore` ends its containers first.
    pub fn stop(&mut self) {
        self.signal("TERM");
        self.child.wait().expect("wait");
    }

    /// Lets it answer nothing any more (SIGSTOP).
    pub fn freeze(&self) {
        self.signal("STOP");
        while !self.is_frozen() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether all of its threads are stopped.
    pub fn is_frozen(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it lives");
        threads.flatten().all(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status.contains("(stopped)")
        })
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`], and waits until it serves.
    pub fn start_again(&mut self) {
        // A file of a daemon that was killed would be taken for a living one's.
        let _ = fs::remove_file(self.socket());
        // dockerd's own containerd died with it, but may have no parent that buries it; then dockerd takes it for alive.
        let _ = fs::remove_file(self.folder().join("exec/containerd/containerd.pid"));
        self.child = spawn(self.kind, self.folder.path(), &self.options);
        self.until_serving();
    }

    /// Stops it in peace and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(log(self.folder.path())).unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("/bin/busybox")
            .args(["kill", &format!("-{name}"), &pid])
            .status();
        assert!(status.expect("kill").success());
    }

    fn until_serving(&mut self) {
        for _ in 0..600 {
            if serves(self.kind, &self.socket()) {
                return;
            }
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{:?} ended: {}", self.kind, self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{:?} does not serve: {}", self.kind, self.log());
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let sweep = Command::new(format!("{SCRIPTS}/sweep.sh"))
            .arg(self.folder.path())
            .status();
        assert!(
            std::thread::panicking() || sweep.is_ok_and(|status| status.success()),
            "what the daemon left cannot be removed"
        );
        let _ = fs::remove_file(log(self.folder.path()));
    }
}

/// Whether a daemon answers. dockerd listens long before it does.
pub fn serves(kind: Kind, socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    if kind == Kind::Containerd {
        return true;
    }
    let request = b"GET /_ping HTTP/1.0\r\n\r\n";
    let mut answer = [0; 12];
    let asked = stream
        .write_all(request)
        .and_then(|()| stream.read_exact(&mut answer));
    asked.is_ok() && answer.ends_with(b"200")
}

fn log(folder: &Path) -> PathBuf {
    folder.with_extension("log")
}

fn spawn(kind: Kind, folder: &Path, options: &[String]) -> Child {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log(folder))
        .expect("log");
    Command::new(format!("{SCRIPTS}/{}.sh", kind.program()))
        .arg(folder)
        .args(options)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("the script can be run")
}

/// What is missing to start a daemon.
fn lacking(kind: Kind) -> Option<String> {
    let program = kind.program();
    #[allow(clippy::disallowed_methods, reason = "the lane's script tells")]
    if std::env::var_os("BACKENDAI_TEST_USR").is_some() {
        return None;
    }
    let installed = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(program).exists());
    (!installed).then(|| format!("needs {program} (not installed)"))
}

/// Gives this thread, and the threads and programs that it starts, a network namespace of its own, once.
pub fn own_network() {
    std::thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if !DONE.replace(true) {
        backendai_agent::sys::netns::enter_new().expect("the tests run as root");
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.expect("ip").success(), "loopback stays down");
    }
}

/// Whether a `sleep` of such a length runs somewhere on this machine, in a container or not.
pub fn sleeps(length: &str) -> bool {
    let command = format!("sleep\0{length}\0");
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    entries
        .map(|entry| fs::read(entry.path().join("cmdline")).unwrap_or_default())
        .any(|line| line == command.as_bytes())
}
