//! The monitor: one single-threaded process for each container, the parent of its first process.
//!
//! It is our own program under the name `__monitor`. libcontainer clones without exec and changes the process's
//! folder, so it can live only in a process with one thread; and a parent that outlives the agent keeps the log and the
//! exit status. Its standard input is one end of a socket pair: it answers there once, when `create` is done. After
//! that it is asked through the socket `ctl` of its folder, and ends with the container.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::{DefaultExecutor, get_executor};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, OFlags, fcntl_setfl, flock};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, set_child_subreaper,
    set_parent_process_death_signal, setsid, waitpid,
};
use serde::{Deserialize, Serialize};

use super::cgroup::Hierarchies;
use super::record::{Exit, Folder, Init, Record};
use super::rootfs;
use crate::runtime::log::LogWriter;

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
        Ok(mut monitor) => match monitor.watch() {
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
    record: Record,
    container: Container,
    init: Pid,
    /// Held until the end: it tells the agent that this monitor lives.
    _lock: File,
    control: UnixListener,
    output: File,
    log: LogWriter,
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
        // Fails when it leads a group already, which does no harm.
        let _ = setsid();
        std::env::set_current_dir("/")?;
        set_child_subreaper(Some(Pid::INIT))?;
        let record = folder.record()?.ok_or("the container has no record")?;
        rootfs::own_mounts()?;
        let root = folder.file("rootfs");
        std::fs::create_dir(&root)?;
        rootfs::mount_overlay(&record.lowers, &record.state, &root)
            .map_err(|error| format!("mounting the overlay of {}: {error}", record.image))?;
        for (path, text) in &record.files {
            rootfs::put_file(&root, path, text)?;
        }
        rootfs::make_folder(&root, &record.cwd)?;
        let log = LogWriter::open(&record.state, record.log_limit)?;
        // Both streams into one pipe: Linux keeps their order.
        let (output, output_in) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&output, OFlags::NONBLOCK)?;
        let container = ContainerBuilder::new(record.id.clone(), SyscallType::Linux)
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
        std::env::set_current_dir(folder.path())?;
        let control = UnixListener::bind("ctl")?;
        std::env::set_current_dir("/")?;
        Ok(Self {
            init: Pid::from_raw(pid).ok_or("libcontainer gave pid 0")?,
            hierarchies: Hierarchies::read()?,
            folder,
            record,
            container,
            _lock: lock,
            control,
            output: output.into(),
            log,
            executed: None,
        })
    }

    /// Says that the container is made; if nobody is there to hear it, it is unmade.
    fn announce(&self) -> io::Result<()> {
        let pid = self.init.as_raw_nonzero().get();
        let init = Init {
            pid,
            began: began(pid)?,
        };
        self.folder.write("init.json", &init, false)?;
        reply(
            &mut io::stdin().as_fd().try_clone_to_owned().map(File::from),
            &Answer::Pid(pid),
        )?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 0)?;
        Ok(())
    }

    /// Copies output, answers, and waits for the end of the first process.
    fn watch(&mut self) -> BoxResult<()> {
        let ended = pidfd_open(self.init, PidfdFlags::empty())?;
        let mut open = true;
        loop {
            let mut fds = vec![
                PollFd::new(&ended, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
            ];
            if open {
                fds.push(PollFd::new(&self.output, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready.get(2) == Some(&true) {
                open = self.copy_output(16);
            }
            if ready[1] {
                self.answer();
            }
            if ready[0] {
                return self.finish();
            }
            reap_strangers(self.init);
        }
    }

    /// Copies what the container printed, at most so many buffers; false when nobody can print any more.
    fn copy_output(&mut self, buffers: usize) -> bool {
        let mut buffer = [0; 16 << 10];
        for _ in 0..buffers {
            match self.output.read(&mut buffer) {
                Ok(0) => return false,
                // A full disk loses log lines, not the container.
                Ok(size) => drop(self.log.write(&buffer[..size])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
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
            return Answer::Invalid(format!("container {} was started before", self.record.id));
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

    /// The first process is dead, and with it all others: the rest of the log, then the exit status.
    fn finish(&mut self) -> BoxResult<()> {
        while matches!(self.output.as_fd(), fd if readable(fd)) && self.copy_output(1) {}
        let status = waitpid(Some(self.init), WaitOptions::empty())?.map(|(_, status)| status);
        let code = status.map_or(255, |status| {
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            status.exit_status().or(signal).unwrap_or(255)
        });
        let oom_killed = self.hierarchies.oom_killed(&self.record.cgroup);
        self.folder
            .write("exit.json", &Exit { code, oom_killed }, true)?;
        Ok(())
    }
}

fn readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::IN)
}

/// Takes the lock that says this monitor lives.
fn hold(folder: &Folder) -> io::Result<File> {
    let mut lock = File::create(folder.file("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    write!(lock, "{}", std::process::id())?;
    Ok(lock)
}

/// As a subreaper the monitor inherits what libcontainer leaves behind.
fn reap_strangers(init: Pid) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while let Ok(Some(_)) = waitid(WaitId::All, look) {
        // The first process is waited for by `finish` alone; it is polled by its pidfd.
        if !matches!(waitpid_any_but(init), Ok(true)) {
            return;
        }
    }
}

fn waitpid_any_but(init: Pid) -> io::Result<bool> {
    let children =
        std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id()))?;
    let mut reaped = false;
    for child in children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter_map(Pid::from_raw)
    {
        if child != init {
            reaped |= waitpid(Some(child), WaitOptions::NOHANG)?.is_some();
        }
    }
    Ok(reaped)
}

/// The time at which a process began, in ticks after boot: with the pid it names a process for good.
pub(super) fn began(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may contain anything.
    let fields = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').nth(19));
    fields
        .flatten()
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat: no start time"),
            )
        })
}

/// An error with all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
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
    let path = format!(
        "/proc/self/fd/{}/ctl",
        std::os::fd::AsRawFd::as_raw_fd(&dir)
    );
    let mut peer = UnixStream::connect(path)?;
    peer.set_read_timeout(Some(Duration::from_secs(30)))?;
    peer.write_all(b"s")?;
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
