//! The holder: a process that does nothing but be in the namespaces.
//!
//! It is our own program under the name `__hold`, which makes the namespaces, has its parent map the users (that takes
//! the set-uid programs newuidmap and newgidmap from outside), and becomes the small program of `monitor/` by exec.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use backendai_monitor::Hold;
use rustix::mount::{MountPropagationFlags, mount_change};
use serde::{Deserialize, Serialize};

use super::{RootlessError, delegation, ids};
use crate::runtime::Pid;
use crate::sys::cgroup::{Hierarchies, Mode, ROOT};
use crate::sys::proc::Proc;
use crate::sys::userns;

/// First word of the command line.
pub(super) const WORD: &str = "__hold";
/// Set when the agent was started again in a scope.
const SCOPE: &str = "BACKENDAI_AGENT_SCOPE";
/// What the holder says when it waits for its users, and when it is done.
const UNSHARED: &str = "unshared";
const DONE: &str = "done";

/// A living holder, as its file tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pid: Pid,
    /// When it began, in ticks after boot: with the pid it names the process for good.
    began: u64,
    /// The cgroup that kernels may have, if there is one.
    pub cgroup: Option<PathBuf>,
}

impl Holder {
    /// The holder of these namespaces, if it lives.
    pub fn read(folder: &Path) -> Option<Self> {
        let text = fs::read(folder.join(Hold::FILE)).ok()?;
        let holder: Self = serde_json::from_slice(&text).ok()?;
        holder.lives().then_some(holder)
    }

    fn lives(&self) -> bool {
        Proc::default().start_time(self.pid) == Some(self.began)
    }

    /// Starts a holder; the caller holds the lock on starting.
    pub fn start(
        folder: &Path,
        program: impl FnOnce() -> io::Result<File>,
    ) -> Result<Self, RootlessError> {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let users = ids::ranges(ids::Kind::Users, uid.as_raw())?;
        let groups = ids::ranges(ids::Kind::Groups, uid.as_raw())?;
        let start = |error| RootlessError::host("start the holder of the namespaces")(error);
        let (ours, theirs) = UnixStream::pair().map_err(start)?;
        let mut child = command(folder)
            .map_err(start)?
            .stdin(OwnedFd::from(theirs))
            .stdout(program().map_err(start)?)
            .spawn()
            .map_err(start)?;
        let mut talk = Talk::new(ours);
        let made = talk.expect(UNSHARED).and_then(|()| {
            ids::map(ids::Kind::Users, child.id(), uid.as_raw(), &users)?;
            ids::map(ids::Kind::Groups, child.id(), gid.as_raw(), &groups)?;
            talk.say(DONE).map_err(start)?;
            talk.expect(DONE)
        });
        if let Err(error) = made {
            // It ends when nobody talks to it any more, or has ended.
            drop(talk);
            let _ = child.wait();
            return Err(error);
        }
        Self::read(folder).ok_or_else(|| start(io::Error::other("it ended at once")))
    }

    /// Moves this process into the namespaces.
    pub fn join(&self) -> Result<(), RootlessError> {
        let folder = PathBuf::from(format!("/proc/{}/ns", self.pid));
        let enter = || {
            let namespaces = (
                File::open(folder.join("user"))?,
                File::open(folder.join("mnt"))?,
            );
            if !self.lives() {
                return Err(io::Error::other("their holder has ended; try again"));
            }
            userns::enter(&namespaces.0, &namespaces.1)
        };
        enter().map_err(RootlessError::host("enter the namespaces"))
    }
}

/// Our own program as holder; in a scope of its own where systemd's user manager can give one, which is then delegated.
fn command(folder: &Path) -> io::Result<Command> {
    let own = env::current_exe()?;
    let mut command = if has_manager() {
        scope(true, own)
    } else {
        Command::new(own)
    };
    command.arg(WORD).arg(folder);
    Ok(command)
}

/// Runs a program in a scope of systemd's user manager.
fn scope(delegate: bool, program: PathBuf) -> Command {
    let mut command = Command::new("systemd-run");
    command.args(["--user", "--scope", "--quiet", "--collect"]);
    if delegate {
        command.arg("--property=Delegate=yes");
    }
    command.arg("--").arg(program);
    command
}

/// Whether systemd's user manager serves this user, on a machine where it can delegate cgroups.
fn has_manager() -> bool {
    #[allow(
        clippy::disallowed_methods,
        reason = "where the user's session keeps its sockets, which is no setting of ours"
    )]
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let private = runtime.is_some_and(|folder| folder.join("systemd/private").exists());
    private
        && Hierarchies::detect(Path::new(ROOT)).mode() == Mode::V2
        && super::program("systemd-run", Path::is_file).is_some()
}

/// Starts this program anew in a scope of the user manager; returns only when that fails.
pub(super) fn go_on_in_scope() -> RootlessError {
    #[allow(
        clippy::disallowed_methods,
        reason = "our own word to ourselves, which is no setting"
    )]
    let again = env::var_os(SCOPE).is_some();
    if again || !has_manager() {
        return RootlessError::NoCgroup;
    }
    let error = match env::current_exe() {
        Ok(own) => scope(false, own)
            .args(env::args_os().skip(1))
            .env(SCOPE, "1")
            .exec(),
        Err(error) => error,
    };
    RootlessError::host("start the agent in a scope of systemd's user manager")(error)
}

/// The lines that parent and holder exchange.
struct Talk(BufReader<UnixStream>);

impl Talk {
    fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.0.get_mut(), "{line}")
    }

    fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for a word; another one is what went wrong.
    fn expect(&mut self, word: &str) -> Result<(), RootlessError> {
        let action = "make the namespaces";
        let heard = self.hear().map_err(RootlessError::host(action))?;
        match heard.split_once(' ') {
            _ if heard == word => Ok(()),
            Some(("refused", text)) => Err(RootlessError::Refused(text.to_owned())),
            _ if heard.is_empty() => {
                let ended = io::Error::other("their holder ended");
                Err(RootlessError::host(action)(ended))
            }
            _ => Err(RootlessError::host(action)(io::Error::other(heard))),
        }
    }
}

/// Runs the holder of the namespaces of this folder, to the end of their last user.
#[must_use]
pub fn hold_main(folder: &Path) -> ExitCode {
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut talk = Talk::new(UnixStream::from(socket));
    let error = match hold(folder, &mut talk) {
        Ok(error) | Err(error) => error,
    };
    let _ = talk.say(&error.to_string());
    ExitCode::FAILURE
}

/// Makes the namespaces and becomes the small program; gives why that failed.
fn hold(folder: &Path, talk: &mut Talk) -> io::Result<io::Error> {
    let program = io::stdout().as_fd().try_clone_to_owned()?;
    // Fails when it leads a group already, which does no harm.
    let _ = rustix::process::setsid();
    let cgroup = take_cgroup();
    userns::unshare().map_err(|error| io::Error::other(format!("refused {error}")))?;
    talk.say(UNSHARED)?;
    if talk.hear()? != DONE {
        return Ok(io::Error::other("its parent has ended"));
    }
    // What the machine mounts later still appears, what we mount does not show there.
    let down = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", down)?;
    rustix::process::chdir("/")?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let holder = Holder {
        pid,
        began: Proc::default()
            .start_time(pid)
            .ok_or_else(|| io::Error::other("no /proc"))?,
        cgroup,
    };
    fs::write(folder.join(Hold::FILE), serde_json::to_vec(&holder)?)?;
    talk.say(DONE)?;
    let hold = Hold {
        folder: folder.to_owned(),
    };
    let error = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("backendai-agent")
        .args(hold.args())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .exec();
    // Some machines forbid to run files in memory. The holder is ours too, only dearer here.
    drop(error);
    hold.run()?;
    std::process::exit(0)
}

/// The delegated cgroup, made ready for kernels; what keeps it from that is as if there were none.
fn take_cgroup() -> Option<PathBuf> {
    let root = Path::new(ROOT);
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let base = delegation::find(root, &own)?;
    delegation::clear(root, &base).ok()?;
    Some(base)
}
