//! What is kept of a container on disk: one folder below the run folder with small JSON files, each written whole.
//!
//! ```text
//! <run>/containers/<id>/record.json   who it is: written by the agent before anything else
//!                       config.json   the OCI spec, for libcontainer
//!                       lock          held by the monitor as long as it lives; its text is the monitor's pid
//!                       init.json     the first process: written by the monitor when `create` is done
//!                       started       the first process runs the container's program
//!                       exit.json     how it ended: the last thing the monitor writes
//!                       ctl           socket of the monitor
//!                       oci/<id>/     libcontainer's own state
//! <state>/containers/<id>/upper work  what the container wrote into its root
//!                         log log.1   what it printed
//! ```

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::runtime::{ExitStatus, LabelMap, Pid, PortBinding, kept};

/// Who a container is: all that a later agent must know of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub name: String,
    pub image: String,
    pub labels: LabelMap,
    /// Host and container port of each forwarded port.
    pub ports: Vec<(u16, u16)>,
    pub address: Option<Ipv4Addr>,
    /// Path below the root of every hierarchy.
    pub cgroup: PathBuf,
    /// Whether the network has to be told when the container goes.
    pub attached: bool,
    /// Folders of the root file system, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Folder of upper, work and log.
    pub state: PathBuf,
    pub log_limit: u64,
    /// Files to write into the root before the start, by absolute path inside.
    pub files: Vec<(PathBuf, String)>,
    /// Folder to make in the root when it is missing.
    pub cwd: PathBuf,
}

impl Record {
    /// The forwarded ports.
    pub fn ports(&self) -> Vec<PortBinding> {
        let binding = |&(host, container)| PortBinding { host, container };
        self.ports.iter().map(binding).collect()
    }
}

/// The first process of a container.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Init {
    pub pid: Pid,
    /// Ticks after boot at which it began: tells it from a later process with the same pid.
    pub began: u64,
}

/// The folder of one container below the run folder.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn record(&self) -> io::Result<Option<Record>> {
        kept::read(&self.file("record.json"))
    }

    pub fn init(&self) -> io::Result<Option<Init>> {
        kept::read(&self.file("init.json"))
    }

    pub fn exit(&self) -> io::Result<Option<ExitStatus>> {
        kept::read(&self.file("exit.json"))
    }

    pub fn started(&self) -> bool {
        self.file("started").exists()
    }

    pub fn write<T: Serialize>(&self, name: &str, value: &T, sync: bool) -> io::Result<()> {
        kept::write(&self.0, name, value, sync)
    }
}
