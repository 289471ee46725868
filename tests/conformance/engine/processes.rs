//! The programs of the engine in memory, as processes: what it tells its programs is seen by busybox.
//!
//! A container is a thread in namespaces of its own for mounts, processes and the host name, with changes to its image
//! in memory: every process that it starts is there too, and all is gone with the first of them. There is nothing more to it: no
//! network, no cgroup, no filter, no devices beyond the ordinary.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use backendai_agent::runtime::fake::{Call, FakeRuntime, Program, Programs};
use backendai_agent::runtime::output::gather;
use backendai_agent::runtime::{
    ContainerId, ContainerSpec, ExecOutput, Mount, MountKind, Pid, Result, RuntimeError, names,
};
use backendai_agent::sys::pidfd::PidFd;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::process::{Signal, chroot, pidfd_send_signal};
use tokio::sync::{mpsc, oneshot};

/// Starts containers whose image is busybox.
pub(super) struct Processes {
    /// The root of the image.
    pub(super) image: PathBuf,
    /// An empty folder, over which every container has what it writes.
    pub(super) place: PathBuf,
}

/// A process that a container's thread is asked to start.
struct Order {
    command: Command,
    answer: oneshot::Sender<io::Result<Child>>,
}

/// The first process of a container.
struct First {
    id: ContainerId,
    pid: Pid,
    process: PidFd,
    orders: mpsc::Sender<Order>,
}

/// A process that is killed when nobody waits for it any more.
struct Second(Child);

#[async_trait]
impl Programs for Processes {
    async fn start(
        &self,
        engine: &FakeRuntime,
        container: &ContainerSpec,
        call: Call,
    ) -> Result<Arc<dyn Program>> {
        let id = container.id.clone();
        let (orders, inbox) = mpsc::channel(1);
        let (spec, image, place) = (container.clone(), self.image.clone(), self.place.clone());
        std::thread::spawn(move || {
            let entered = enter(&spec, &image, &place);
            entered.unwrap_or_else(|error| panic!("container {}: {error}", spec.id));
            keep(inbox);
        });
        let (log, output) = io::pipe().expect("pipe");
        let mut command = command(&call);
        command
            .stdout(output.try_clone().expect("pipe"))
            .stderr(output);
        let child = order(&id, &orders, call, command).await?;
        let pid = Pid::try_from(child.id()).expect("pid");
        let process = PidFd::open(pid).expect("pidfd").expect("not waited for");
        let (engine, first) = (engine.clone(), id.clone());
        std::thread::spawn(move || watch(&engine, &first, child, log));
        Ok(Arc::new(First {
            id,
            pid,
            process,
            orders,
        }))
    }
}

#[async_trait]
impl Program for First {
    fn pid(&self) -> Option<Pid> {
        Some(self.pid)
    }

    fn signal(&self, signal: i32) -> bool {
        let signal = Signal::from_named_raw(signal).expect("the engine has looked");
        // One that has ended minds no signal, and its watcher will tell.
        let _ = pidfd_send_signal(&self.process, signal);
        true
    }

    async fn exec(&self, call: Call) -> Result<ExecOutput> {
        let mut command = command(&call);
        command.uid(call.user.0).gid(call.user.1);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Second(order(&self.id, &self.orders, call, command).await?);
        let stdout = child.0.stdout.take().expect("piped");
        let stdout = tokio::process::ChildStdout::from_std(stdout).expect("pipe");
        let stderr = child.0.stderr.take().expect("piped");
        let stderr = tokio::process::ChildStderr::from_std(stderr).expect("pipe");
        let ((), stdout, stderr) = gather(stdout, stderr, child.ended()).await;
        Ok(ExecOutput {
            code: code(child.0.wait().expect("wait")),
            stdout,
            stderr,
        })
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.signal(Signal::KILL.as_raw());
    }
}

impl Second {
    /// Waits until the process is dead.
    async fn ended(&self) {
        let pid = Pid::try_from(self.0.id()).expect("pid");
        let process = PidFd::open(pid).expect("pidfd").expect("not waited for");
        process.ended().await.expect("it ends");
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(call: &Call) -> Command {
    let mut command = Command::new(&call.args[0]);
    let variables = call.env.iter().filter_map(|entry| entry.split_once('='));
    command.args(&call.args[1..]).env_clear().envs(variables);
    command.current_dir(&call.cwd).stdin(Stdio::null());
    command
}

/// Lets the thread of a container start a process.
async fn order(
    id: &ContainerId,
    orders: &mpsc::Sender<Order>,
    call: Call,
    command: Command,
) -> Result<Child> {
    let wrong = |text: String| {
        let program = &call.args[0];
        RuntimeError::Invalid(format!("container {id}: {program}: {text}"))
    };
    let (answer, answered) = oneshot::channel();
    let gone = |_| wrong("the container is gone".to_owned());
    let sent = orders.send(Order { command, answer }).await;
    sent.map_err(|_| wrong("the container is gone".to_owned()))?;
    let started = answered.await.map_err(gone)?;
    started.map_err(|error| wrong(error.to_string()))
}

/// The thread of a container, in whose namespaces it is: starts what it is asked to.
fn keep(mut orders: mpsc::Receiver<Order>) {
    while let Some(mut order) = orders.blocking_recv() {
        // Whoever asked may have gone.
        if let Err(Ok(child)) = order.answer.send(order.command.spawn()) {
            drop(Second(child));
        }
    }
}

/// Takes a first process to its end.
fn watch(engine: &FakeRuntime, id: &ContainerId, mut child: Child, mut log: impl Read) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = log.read(&mut bytes) {
        engine.log(id, &bytes[..length]);
    }
    // It is dead, by the kernel's promise, when all others of its namespace are.
    engine.exit(id, code(child.wait().expect("wait")));
}

fn code(status: std::process::ExitStatus) -> i32 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).expect("one of the two")
}

fn enter(spec: &ContainerSpec, image: &Path, place: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    rustix::system::sethostname(spec.hostname().as_bytes())?;
    let root = &layered(image, place)?;
    for (path, text) in names::files(spec, None) {
        let path = inside(root, &path);
        // A link of the image does not lead out.
        let _ = fs::remove_file(&path);
        fs::write(path, text)?;
    }
    for (name, minor) in [("null", 3), ("zero", 5), ("urandom", 9)] {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(
            CWD,
            root.join("dev").join(name),
            FileType::CharacterDevice,
            mode,
            makedev(1, minor),
        )?;
    }
    mount("proc", root.join("proc"), "proc", MountFlags::RDONLY, None)?;
    for mount in &spec.mounts {
        show(mount, root)?;
    }
    fs::create_dir_all(inside(root, &spec.cwd))?;
    give_up(&spec.capabilities)?;
    chroot(root)?;
    Ok(rustix::process::chdir("/")?)
}

/// The image's files with changes in memory; gives the root.
fn layered(image: &Path, place: &Path) -> io::Result<PathBuf> {
    tmpfs(place, "", false)?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| place.join(name));
    for folder in [&upper, &work, &root] {
        fs::create_dir(folder)?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        image.display(),
        upper.display(),
        work.display()
    );
    let options = CString::new(options)?;
    mount(
        "overlay",
        &root,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    Ok(root)
}

/// A path of the container, from outside.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn show(mount: &Mount, root: &Path) -> io::Result<()> {
    let target = inside(root, &mount.target);
    match &mount.kind {
        MountKind::Tmpfs(size) => {
            fs::create_dir_all(&target)?;
            tmpfs(&target, &format!("size={size}"), mount.read_only)
        }
        MountKind::Bind(source) => {
            if source.is_dir() {
                fs::create_dir_all(&target)?;
            } else if let Some(folder) = target.parent() {
                fs::create_dir_all(folder)?;
                fs::write(&target, "")?;
            }
            mount_bind_recursive(source, &target)?;
            if mount.read_only {
                mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "")?;
            }
            Ok(())
        }
    }
}

fn tmpfs(target: &Path, options: &str, read_only: bool) -> io::Result<()> {
    let flags = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let options = CString::new(options)?;
    Ok(mount("tmpfs", target, "tmpfs", flags, options.as_c_str())?)
}

/// What processes of this thread may do: no more than was asked for, so that no script can harm the machine.
fn give_up(capabilities: &[String]) -> io::Result<()> {
    for capability in caps::all() {
        if !capabilities.contains(&capability.to_string()) {
            caps::drop(None, caps::CapSet::Bounding, capability).map_err(io::Error::other)?;
        }
    }
    Ok(())
}
