//! An agent that an ordinary user runs: before it has a second thread it enters a user namespace and a mount namespace in
//! which it is root, so that all else of it works as it does for root.
//!
//! A small process, the *holder*, keeps the namespaces of a run folder: whoever comes later (a restarted agent, `ps`,
//! `exec`) joins them and finds the kernels. It ends with the last of those who use them: each process of ours and each
//! container's monitor holds a shared lock on the file `users`, and the holder waits for an exclusive one.
//!
//! The agent stays in the machine's network namespace (2026-11): etcd, Redis, the manager and registries are where they
//! are for root, on loopback too, and its own ports need no forwarding. Only the work on bridge and rules is done in a
//! network namespace of ours (`runtime::network`), whose way out is `pasta` or `slirp4netns`; a small program for each
//! container listens on its host ports. Whichever program is the way out, ports work, and all ports of the pool stay free
//! for others until a kernel has them.

mod delegation;
mod holder;
mod ids;

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use self::holder::Holder;
pub use self::holder::hold_main;
use crate::sys::cgroup::ROOT;
use crate::sys::userns;

/// Names the folder of the namespaces to programs of ours that are started in them.
const VARIABLE: &str = "BACKENDAI_ROOTLESS";
/// Folder of the namespaces in the run folder.
const FOLDER: &str = "namespaces";
/// What an operator does to have limits applied.
const DELEGATE: &str = "start the agent where a cgroup is delegated to its user: as a service or scope of systemd's user \
manager with Delegate=yes (loginctl enable-linger USER; cpuset and io too: Delegate=cpu cpuset io memory pids in \
/etc/systemd/system/user@.service.d/delegate.conf)";

/// Why an ordinary user cannot make containers here.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// The administrator gave the user no numbers, or too few.
    #[error(
        "{file} gives user {user} {count} numbers and images need 65536; as root: usermod --add-subuids 100000-165535 \
         --add-subgids 100000-165535 {user} (other numbers where these are taken)"
    )]
    NoRange {
        /// The file.
        file: String,
        /// The user's name, or number.
        user: String,
        /// How many there are.
        count: u64,
    },
    /// A program is missing.
    #[error("no program {0}; install the package uidmap (on some systems shadow-utils)")]
    NoProgram(&'static str),
    /// A program did not map the numbers.
    #[error("{program} does not map the numbers of {file}: {said}")]
    Unmapped {
        /// The program.
        program: &'static str,
        /// The file.
        file: &'static str,
        /// What it said.
        said: String,
    },
    /// Linux makes no user namespace for this user.
    #[error(
        "Linux refuses a user namespace ({0}); allow it as root: sysctl -w user.max_user_namespaces=15000, and where \
         there are such settings kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0"
    )]
    Refused(String),
    /// No cgroup may be divided.
    #[error("no cgroup is delegated to this user, so that no limit could be applied; {DELEGATE}")]
    NoCgroup,
    /// A file or process failed.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl RootlessError {
    fn host(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Host { action, source }
    }
}

/// The namespaces that this process is in.
#[derive(Debug)]
pub struct Rootless {
    folder: PathBuf,
    cgroup: Option<PathBuf>,
    /// Keeps the holder.
    _user: File,
}

static CURRENT: OnceLock<Option<Rootless>> = OnceLock::new();

/// The namespaces that this process is in; `None` for root's agent.
pub fn current() -> Option<&'static Rootless> {
    CURRENT.get_or_init(inherited).as_ref()
}

/// Those that [`VARIABLE`] names: this process was started in them.
fn inherited() -> Option<Rootless> {
    #[allow(
        clippy::disallowed_methods,
        reason = "the word of our own program that started this one, which is no setting"
    )]
    let folder = env::var_os(VARIABLE).map(PathBuf::from)?;
    if !userns::inside() {
        return None;
    }
    let user = lock(&folder.join("users"), FlockOperation::LockShared).ok()?;
    let holder = Holder::read(&folder)?;
    Some(Rootless::new(folder, holder, user))
}

impl Rootless {
    fn new(folder: PathBuf, holder: Holder, user: File) -> Self {
        Self {
            folder,
            cgroup: holder.cgroup,
            _user: user,
        }
    }

    /// Where files of the namespaces are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The cgroup for kernels, below the root of every hierarchy.
    ///
    /// # Errors
    /// [`RootlessError::NoCgroup`] with the remedy.
    pub fn cgroup(&self) -> Result<&Path, RootlessError> {
        self.cgroup.as_deref().ok_or(RootlessError::NoCgroup)
    }
}

/// The cgroup below which kernels have theirs.
#[must_use]
pub fn kernels_cgroup() -> PathBuf {
    let base = current().and_then(|it| it.cgroup.as_deref());
    base.unwrap_or(Path::new("/")).join("backendai")
}

/// Keeps the namespaces of a run folder for as long as the process lives that gets this, also after it became another
/// program. Monitors call it: they outlive the agent.
///
/// # Errors
/// When the lock cannot be had.
pub fn keep(run_dir: &Path) -> io::Result<()> {
    let file = match current() {
        Some(current) => current.folder.join("users"),
        None => run_dir.join(FOLDER).join("users"),
    };
    if !file.exists() {
        return Ok(());
    }
    let user = lock(&file, FlockOperation::LockShared)?;
    rustix::io::fcntl_setfd(&user, rustix::io::FdFlags::empty())?;
    // Closed by Linux with the process.
    let _ = std::os::fd::IntoRawFd::into_raw_fd(user);
    Ok(())
}

/// Enters the namespaces of a run folder, which are made when nobody has them. The process must have one thread.
/// `program` is the small program of `monitor/`.
///
/// # Errors
/// [`RootlessError`]; the process is where it was then.
pub fn enter(
    run_dir: &Path,
    program: impl FnOnce() -> io::Result<File>,
) -> Result<(), RootlessError> {
    let folder = run_dir.join(FOLDER);
    let make = RootlessError::host(format!("make {}", folder.display()));
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(make)?;
    let locking = |name: &str, how| {
        let path = folder.join(name);
        lock(&path, how).map_err(RootlessError::host(format!("lock {}", path.display())))
    };
    // Waits for a holder that is ending; from here on none ends.
    let user = locking("users", FlockOperation::LockShared)?;
    let starting = locking("start", FlockOperation::LockExclusive)?;
    let holder = match Holder::read(&folder) {
        Some(holder) => holder,
        None => Holder::start(&folder, program)?,
    };
    drop(starting);
    if let Some(base) = &holder.cgroup {
        reach(base)?;
    }
    holder.join()?;
    // Set once: a process enters once.
    let _ = CURRENT.set(Some(Rootless::new(folder, holder, user)));
    Ok(())
}

/// Goes on in a scope of systemd's user manager where this process may not move its children to the kernels' cgroup: one
/// that somebody began in a login session.
fn reach(base: &Path) -> Result<(), RootlessError> {
    let own = fs::read_to_string("/proc/self/cgroup")
        .map_err(RootlessError::host("read /proc/self/cgroup"))?;
    if delegation::is_reached(Path::new(ROOT), &own, base) {
        return Ok(());
    }
    Err(holder::go_on_in_scope())
}

fn lock(path: &Path, how: FlockOperation) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .append(true)
        .read(true)
        .open(path)?;
    rustix::io::retry_on_intr(|| flock(&file, how))?;
    Ok(file)
}

/// The first program of this name in the search path that is good.
fn program(name: &str, is_good: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    #[allow(
        clippy::disallowed_methods,
        reason = "the search path is where programs are, and no setting of ours"
    )]
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| is_good(path))
}
