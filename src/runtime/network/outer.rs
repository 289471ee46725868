//! The network of an ordinary user's agent: a network namespace in which its user may make bridges and rules.
//!
//! It is bound to the file `net` of the folder and stays until the namespaces of the agent end. Its way out is `pasta`,
//! else `slirp4netns`: programs that turn packets into connections of the user's. Both are started so that containers
//! reach nothing on the host's loopback interface. Ports come in by a small program for each container, which listens on
//! the host and connects from in here (`backendai_monitor::Forward`).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use backendai_monitor::{Forward, Hold, begin_of};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Attachment, NetworkError};
use crate::sys::netns;

/// The device of programs that make packets.
const TUN: &str = "/dev/net/tun";
/// How long a way out may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// The network namespace of an ordinary user's agent.
#[derive(Clone, Debug)]
pub struct Outer {
    /// Folder of the agent's namespaces.
    folder: PathBuf,
    /// The program of `monitor/`.
    program: PathBuf,
    /// Reaps what is started here, from whichever thread.
    tokio: tokio::runtime::Handle,
}

impl Outer {
    /// The network whose files are in `folder`. Remembers the runtime that it is called in.
    #[must_use]
    pub fn new(folder: PathBuf, program: PathBuf) -> Self {
        Self {
            folder,
            program,
            tokio: tokio::runtime::Handle::current(),
        }
    }

    fn netns(&self) -> PathBuf {
        self.folder.join("net")
    }

    /// Does something on a thread in the namespace, which is made, with its way out, where it is missing.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        self.ensure()?;
        let path = self.netns();
        let enter = move || {
            let action = format!("enter network namespace {}", path.display());
            netns::enter(&path).map_err(NetworkError::host(action))?;
            work()
        };
        thread::scope(|scope| {
            scope
                .spawn(enter)
                .join()
                .expect("network work does not panic")
        })
    }

    fn ensure(&self) -> Result<(), NetworkError> {
        let _tokio = self.tokio.enter();
        let lock = self.folder.join("net.lock");
        let locked = File::create(&lock).and_then(|file| {
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        });
        let _alone = locked.map_err(NetworkError::host(format!("lock {}", lock.display())))?;
        let path = self.netns();
        if !netns::is_bound(&path) {
            let make = || {
                // Left by namespaces that have ended.
                netns::remove(&path)?;
                netns::create_with_loopback(&path)
            };
            let made = thread::scope(|scope| scope.spawn(make).join().expect("no panic"));
            let action = format!("make network namespace {}", path.display());
            made.map_err(NetworkError::host(action))?;
        }
        let way_out = self.folder.join(Hold::WAY_OUT);
        if lives(&way_out) {
            return Ok(());
        }
        match open_way(&path, &way_out) {
            // A host that has no way out itself has none to share.
            Err(NetworkError::WayOut(why)) if !has_default_route() => {
                tracing::debug!("this host has no default route, nor have containers: {why}");
                Ok(())
            }
            other => other,
        }
    }

    /// Starts the program that listens on a container's ports, unless it lives; its file tells of it then.
    pub(super) fn begin(
        &self,
        id: &str,
        file: &Path,
        attachment: &Attachment,
    ) -> Result<Option<Listener>, NetworkError> {
        if lives(file) {
            return Ok(None);
        }
        let forward = Forward {
            file: file.to_owned(),
            netns: self.netns(),
            address: attachment.address,
            ports: attachment.ports.clone(),
        };
        let started = self.start(&forward);
        let start = NetworkError::host(format!("start the listener of container {id}"));
        let mut listener = started.map_err(start)?;
        let heard = listener.hear(Forward::BEGUN);
        match heard {
            Ok(()) => Ok(Some(listener)),
            Err(said) => Err(listener.failed(id, file, said)),
        }
    }

    fn start(&self, forward: &Forward) -> io::Result<Listener> {
        let _tokio = self.tokio.enter();
        let (heard, says) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command = tokio::process::Command::new(&self.program);
        command.arg0("backendai-agent").args(forward.args());
        let pid = in_background(command.env_clear().stdout(says))?.to_string();
        // Held by the command until now.
        drop(command);
        let began = begin_of(Path::new("/proc"), &pid).unwrap_or_default();
        Ok(Listener {
            process: format!("{pid} {began}"),
            pipe: heard.into(),
        })
    }
}

/// A program that is beginning to listen on a container's ports.
#[derive(Debug)]
pub(super) struct Listener {
    /// What its file says.
    process: String,
    pipe: File,
}

impl Listener {
    /// Waits until it listens. Where it does not, it is ended and its file is gone.
    pub(super) fn until_ready(mut self, id: &str, file: &Path) -> Result<(), NetworkError> {
        let heard = self.hear(Forward::READY);
        heard.map_err(|said| self.failed(id, file, said))
    }

    /// Reads one word of it, or gives what it says instead.
    fn hear(&mut self, word: &str) -> Result<(), String> {
        let mut said = Vec::new();
        while said != word.as_bytes() {
            let mut part = vec![0; word.len().saturating_sub(said.len()).max(1)];
            match self.pipe.read(&mut part) {
                Ok(0) if said.is_empty() => {
                    return Err("the program that listens has ended".to_owned());
                }
                Ok(0) => return Err(String::from_utf8_lossy(&said).into_owned()),
                Ok(read) => said.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Ends it, and removes its file unless another's is there.
    fn failed(&self, id: &str, file: &Path, said: String) -> NetworkError {
        backendai_monitor::end(&self.process);
        if fs::read_to_string(file).is_ok_and(|text| text == self.process || text.is_empty()) {
            // Absent is what we want; another one finds its process dead.
            let _ = fs::remove_file(file);
        }
        NetworkError::Listener {
            id: id.to_owned(),
            said,
        }
    }
}

/// Ends the program that listens on a container's ports; absent is done.
pub(super) fn stop_listening(file: &Path) -> Result<(), NetworkError> {
    let stop = || {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        backendai_monitor::end(&text);
        match fs::remove_file(file) {
            // By whoever began it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    };
    stop().map_err(NetworkError::host(format!(
        "end the listener of {}",
        file.display()
    )))
}

/// Whether the process of this file, `PID TICKS`, lives.
fn lives(file: &Path) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    let process = text.trim().split_once(' ');
    process.is_some_and(|(pid, began)| {
        begin_of(Path::new("/proc"), pid).is_some_and(|found| found == began)
    })
}

/// Looks for a program that can be the way out, and for the device that both need.
pub(super) fn look() -> Result<&'static str, NetworkError> {
    if let Err(error) = File::options().read(true).write(true).open(TUN) {
        let why = format!("{TUN}: {error} (modprobe tun; chmod 0666 {TUN})");
        return Err(NetworkError::WayOut(why));
    }
    let runs = |name: &&str| {
        let asked = Command::new(name)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        asked.is_ok()
    };
    let none = || NetworkError::WayOut("there is neither pasta nor slirp4netns".to_owned());
    ["pasta", "slirp4netns"]
        .into_iter()
        .find(runs)
        .ok_or_else(none)
}

/// Opens the way out by whichever program can.
fn open_way(netns: &Path, file: &Path) -> Result<(), NetworkError> {
    let pid = match pasta(netns, file) {
        Ok(pid) => Ok(pid),
        Err(why) => slirp4netns(netns).map_err(|other| format!("{why}; {other}")),
    };
    let pid = pid.map_err(NetworkError::WayOut)?;
    let began = begin_of(Path::new("/proc"), &pid).unwrap_or_default();
    fs::write(file, format!("{pid} {began}"))
        .map_err(NetworkError::host(format!("write {}", file.display())))
}

/// Goes into the background when it is ready.
fn pasta(netns: &Path, file: &Path) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("pasta: {error}");
    let pid = file.with_extension("pid");
    let done = Command::new("pasta")
        .args(["--config-net", "--ipv4-only", "--no-map-gw", "--quiet"])
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"])
        .arg("--pid")
        .arg(&pid)
        .arg("--netns")
        .arg(netns)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| failed(&error))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(failed(&said.lines().last().unwrap_or("it failed")));
    }
    let text = fs::read_to_string(&pid).map_err(|error| failed(&error))?;
    // Only asked for to learn the number.
    let _ = fs::remove_file(&pid);
    Ok(text.trim().to_owned())
}

/// Says `1` when it is ready.
fn slirp4netns(netns: &Path) -> Result<String, String> {
    let start = || {
        let (heard, says) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command = tokio::process::Command::new("slirp4netns");
        command
            .args(["--configure", "--mtu=65520", "--disable-host-loopback"])
            .args(["--ready-fd=1", "--netns-type=path"])
            .arg(netns)
            .arg("tap0");
        let pid = in_background(command.stdout(says))?.to_string();
        drop(command);
        let limit = Timespec {
            tv_sec: PATIENCE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        rustix::io::retry_on_intr(|| {
            poll(&mut [PollFd::new(&heard, PollFlags::IN)], Some(&limit))
        })?;
        rustix::io::ioctl_fionbio(&heard, true)?;
        let mut said = [0; 1];
        match File::from(heard).read_exact(&mut said) {
            Ok(()) => Ok(pid),
            Err(_) => {
                let began = begin_of(Path::new("/proc"), &pid).unwrap_or_default();
                backendai_monitor::end(&format!("{pid} {began}"));
                Err(io::Error::other("it did not become ready"))
            }
        }
    };
    start().map_err(|error| format!("slirp4netns: {error}"))
}

/// Starts a program that outlives the agent, and that no terminal interrupts; gives its pid. Tokio reaps it.
fn in_background(command: &mut tokio::process::Command) -> io::Result<u32> {
    let child = command
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    child
        .id()
        .ok_or_else(|| io::Error::other("it ended at once"))
}

/// Whether the host, whose network namespace this thread is in, has an IPv4 default route.
fn has_default_route() -> bool {
    let text = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let mut lines = text.lines().skip(1);
    lines.any(|line| line.split_whitespace().nth(1) == Some("00000000"))
}
