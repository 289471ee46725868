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
//! <state>/containers/<id>/owner       a link to the folder above
//!                         upper work  what the container wrote into its root
//!                         log log.1   what it printed
//! ```

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runtime::folder::Folder;
use crate::runtime::record::Record;
use crate::runtime::{ContainerId, Pid};
use crate::sys::pidfd::PidFd;

/// The file that the last step of `create` makes.
pub(super) const INIT: &str = "init.json";
/// In the state folder: whose it is.
pub(super) const OWNER: &str = "owner";
/// Where the record is.
pub(super) const RECORD: &str = "record.json";

/// The record of a container, with what its monitor must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub id: String,
    #[serde(flatten)]
    pub record: Record,
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

impl Kept {
    /// That of the container with this folder.
    pub fn of(folder: &Folder) -> io::Result<Option<Self>> {
        folder.read(RECORD)
    }

    pub fn id(&self) -> ContainerId {
        ContainerId(self.id.clone())
    }
}

/// The first process of a container.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Init {
    pub pid: Pid,
    /// Ticks after boot at which it began: tells it from a later process with the same pid.
    pub began: u64,
}

impl Init {
    /// That of the container with this folder.
    pub fn of(folder: &Folder) -> io::Result<Option<Self>> {
        folder.read(INIT)
    }

    /// The process, if it lives.
    pub fn process(self) -> io::Result<Option<PidFd>> {
        PidFd::of(self.pid, self.began)
    }
}

/// Whether the first process runs the container's program.
pub(super) fn started(folder: &Folder) -> bool {
    folder.file("started").exists()
}
