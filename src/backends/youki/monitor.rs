//! The monitor: one single-threaded process for each container, the parent of its first process.
//!
//! It is our own program under the name `__monitor`. libcontainer clones without exec and changes the process's
//! folder, so it can live only in a process with one thread; and a parent that outlives the agent keeps the log and the
//! exit status. Its standard input is one end of a socket pair: it answers there once, when `create` is done. After
//! that it is asked through the socket `ctl` of its folder to start the container. A container that runs needs none of
//! libcontainer any more: then the process becomes a small program (`watcher`) that ends with the container.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::time::Duration;

use backendai_monitor::Watch;
use backendai_monitor::log::LogWriter;
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::{DefaultExecutor, get_executor};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, OFlags, fcntl_setfl, flock};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, pidfd_open, set_child_subreaper, set_parent_process_death_signal,
    setsid,
};
use serde::{Deserialize, Serialize};

use super::record::{INIT, Init, Kept, started};
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::chain;
use crate::runtime::folder::Folder;
use crate::sys::proc::Proc;
use crate::sys::{netns, rootfs};

/// What the monitor answers to `create` and `start`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// Done; the first process.
    Pid(i32),
    /// The request is wrong.
    Invalid(String),
    /// Something else is wrong.
    Failed(String),
}

type BoxResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs the monitor of the container with this folder, to the container's end.
pub(super) fn monitor_main(folder: PathBuf) -> ExitCode {
    match Monitor::create(Folder::new(folder)) {
        Ok(mut monitor) => match monitor.await_start().and_then(|()| monitor.hand_over()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(answer) => {
            // When nobody listens any more there is nobody to tell.
            let _ = reply(
                &mut io::stdin().as_fd().try_clone_to_owned().map(File::from),
                &answer,
            );
            ExitCode::FAILURE
        }
    }
}

fn reply(to: &mut io::Result<impl Write>, answer: &Answer) -> io::Result<()> {
    let to = to.as_mut().map_err(|error| io::Error::from(error.kind()))?;
    to.write_all(&serde_json::to_vec(answer)?)
}

struct Monitor {
    folder: Folder,
    kept: Kept,
    container: Container,
    init: Pid,
    /// Held until the end: it tells the agent that this monitor lives.
    lock: File,
    control: UnixListener,
    output: File,
    /// The program to become.
    watcher: File,
    /// End of file when the container's program runs; otherwise why it does not.
    executed: Option<File>,
    hierarchies: Hierarchies,
}

impl Monitor {
    fn create(folder: Folder) -> Result<Self, Answer> {
        let (trouble, trouble_in) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| Answer::Failed(error.to_string()))?;
        let mut trouble = File::from(trouble);
        match Self::try_create(folder, trouble_in) {
            Ok(mut monitor) => {
                monitor.executed = Some(trouble);
                monitor
                    .announce()
                    .map_err(|error| Answer::Failed(error.to_string()))?;
                Ok(monitor)
            }
            Err(error) => {
                let mut wrong = Vec::new();
                // Nothing to read is an error here, and means nothing was said.
                let _ = trouble.read_to_end(&mut wrong);
                if wrong.is_empty() {
                    Err(Answer::Failed(chain(&*error)))
                } else {
                    Err(Answer::Invalid(
                        String::from_utf8_lossy(&wrong).into_owned(),
                    ))
                }
            }
        }
    }

    fn try_create(folder: Folder, trouble: OwnedFd) -> BoxResult<Self> {
        let lock = hold(&folder)?;
        keep_namespaces(&folder)?;
        let watcher = take_stdout()?;
        // Fails when it leads a group already, which does no harm.
        let _ = setsid();
        go_to("/")?;
        set_child_subreaper(Some(Pid::INIT))?;
        let kept = Kept::of(&folder)?.ok_or("the container has no record")?;
        rootfs::own_mounts()?;
        let root = folder.file("rootfs");
        std::fs::create_dir(&root)?;
        rootfs::mount_overlay(&kept.lowers, &kept.state, &root)
            .map_err(|error| format!("mounting the overlay of {}: {error}", kept.record.image))?;
        for (path, text) in &kept.files {
            rootfs::put_file(&root, path, text)?;
        }
        rootfs::make_folder(&root, &kept.cwd)?;
        // What is wrong with its folder shows now.
        LogWriter::open(&kept.state, kept.log_limit)?;
        // Both streams into one pipe: Linux keeps their order.
        let (output, output_in) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&output, OFlags::NONBLOCK)?;
        let container = ContainerBuilder::new(kept.id.clone(), SyscallType::Linux)
            .with_root_path(folder.file("oci"))?
            .with_executor(Program::new(trouble))
            .with_stdin(File::open("/dev/null")?)
            .with_stdout(output_in.try_clone()?)
            .with_stderr(output_in)
            .as_init(folder.path())
            .with_systemd(false)
            .with_detach(true)
            .build()?;
        let pid = container.pid().ok_or("libcontainer gave no pid")?.as_raw();
        // libcontainer leaves it down in a namespace that it makes.
        netns::raise_loopback(pid)?;
        go_to(folder.path())?;
        let control = UnixListener::bind("ctl")?;
        go_to("/")?;
        Ok(Self {
            init: Pid::from_raw(pid).ok_or("libcontainer gave pid 0")?,
            hierarchies: Hierarchies::read()?,
            folder,
            kept,
            container,
            lock,
            control,
            output: output.into(),
            watcher,
            executed: None,
        })
    }

    /// Says that the container is made; if nobody is there to hear it, it is unmade.
    fn announce(&self) -> io::Result<()> {
        let pid = self.init.as_raw_nonzero().get();
        let began = Proc::default().began(pid)?.ok_or(io::ErrorKind::NotFound)?;
        let init = Init { pid, began };
        self.folder.write(INIT, &init)?;
        reply(
            &mut io::stdin().as_fd().try_clone_to_owned().map(File::from),
            &Answer::Pid(pid),
        )?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2(null.as_raw_fd(), 0)?;
        Ok(())
    }

    /// Answers until the container's program runs or its first process has ended.
    fn await_start(&mut self) -> BoxResult<()> {
        let ended = pidfd_open(self.init, PidfdFlags::empty())?;
        loop {
            let mut fds = [
                PollFd::new(&ended, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
            ];
            retry_on_intr(|| poll(&mut fds, None))?;
            let [over, asked] = fds.map(|fd| !fd.revents().is_empty());
            if asked {
                self.answer();
            }
            if over || started(&self.folder) {
                return Ok(());
            }
        }
    }

    /// From here on this process is the small program that only watches: children, lock and pid stay what they are.
    fn hand_over(self) -> BoxResult<()> {
        let watch = Watch {
            folder: self.folder.path().to_owned(),
            init: self.init.as_raw_nonzero().get(),
            logs: self.kept.state,
            log_limit: self.kept.log_limit,
            oom_counter: self.hierarchies.oom_counter(&self.kept.record.cgroup),
        };
        let program = format!("/proc/self/fd/{}", self.watcher.as_raw_fd());
        let error = Command::new(program)
            .arg0("backendai-agent")
            .args(watch.args())
            .env_clear()
            .stdin(self.output.try_clone()?)
            .stdout(self.lock.try_clone()?)
            .exec();
        // Some machines forbid to run files in memory. The watch is ours too, only dearer here.
        drop(error);
        Ok(watch.run(&self.output)?)
    }

    fn answer(&mut self) {
        let Ok((peer, _)) = self.control.accept() else {
            return;
        };
        let _ = peer.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = peer.set_write_timeout(Some(Duration::from_secs(2)));
        let mut word = [0; 1];
        if let Ok(1) = (&peer).read(&mut word) {
            let answer = match word {
                [b's'] => self.start(),
                _ => Answer::Invalid("the monitor knows only start".into()),
            };
            let _ = reply(&mut Ok::<_, io::Error>(&peer), &answer);
        }
    }

    fn start(&mut self) -> Answer {
        let Some(mut executed) = self.executed.take() else {
            return Answer::Invalid(format!("container {} was started before", self.kept.id));
        };
        match self.try_start(&mut executed) {
            Ok(None) => Answer::Pid(self.init.as_raw_nonzero().get()),
            Ok(Some(wrong)) => Answer::Invalid(wrong),
            Err(error) => Answer::Failed(chain(&*error)),
        }
    }

    fn try_start(&mut self, executed: &mut File) -> BoxResult<Option<String>> {
        self.container.start()?;
        fcntl_setfl(&*executed, OFlags::empty())?;
        let mut wrong = String::new();
        executed.read_to_string(&mut wrong)?;
        if !wrong.is_empty() {
            return Ok(Some(wrong));
        }
        File::create(self.folder.file("started"))?;
        Ok(None)
    }
}

/// Changes the folder of this process.
#[expect(
    clippy::disallowed_methods,
    reason = "monitors and helpers have one thread"
)]
pub(super) fn go_to(folder: impl AsRef<std::path::Path>) -> io::Result<()> {
    std::env::set_current_dir(folder)
}

/// Standard output is the program to become; libcontainer must not have it there.
fn take_stdout() -> io::Result<File> {
    let program = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2(null.as_raw_fd(), 1)?;
    Ok(program.into())
}

/// Takes the lock that says this monitor lives.
fn hold(folder: &Folder) -> io::Result<File> {
    let mut lock = File::create(folder.file("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    write!(lock, "{}", std::process::id())?;
    Ok(lock)
}

/// The namespaces of an ordinary user's agent stay for as long as this process.
fn keep_namespaces(folder: &Folder) -> io::Result<()> {
    // `<run-dir>/containers/<id>`.
    match folder.path().parent().and_then(std::path::Path::parent) {
        Some(run_dir) => crate::rootless::keep(run_dir),
        None => Ok(()),
    }
}

/// Runs the container's program, after binding its life to the monitor's.
#[derive(Clone)]
pub(super) struct Program {
    trouble: Rc<RefCell<File>>,
}

impl Program {
    pub fn new(trouble: OwnedFd) -> Self {
        Self {
            trouble: Rc::new(RefCell::new(trouble.into())),
        }
    }

    /// Says what is wrong with the request; the pipe closes by itself when the program runs.
    fn say(&self, text: &str) {
        let _ = self.trouble.borrow_mut().write_all(text.as_bytes());
    }
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        crate::sys::signal::default_sigpipe();
        get_executor()
            .exec(spec)
            .inspect_err(|error| self.say(&chain(error)))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // Whatever kills the monitor ends the container: nobody else could tell how it ended.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| ExecutorValidationError::ArgValidationError(error.to_string()))?;
        DefaultExecutor {}
            .validate(spec)
            .inspect_err(|error| self.say(&error.to_string()))
    }
}

/// Asks the monitor in `folder` to start its container; blocks.
pub(super) fn ask_start(folder: &Folder) -> io::Result<Answer> {
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(folder.path(), open, rustix::fs::Mode::empty())?;
    // A socket's path may have 107 bytes only.
    let path = format!("/proc/self/fd/{}/ctl", dir.as_raw_fd());
    let mut peer = UnixStream::connect(path)?;
    peer.set_read_timeout(Some(Duration::from_secs(30)))?;
    peer.write_all(b"s")?;
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
