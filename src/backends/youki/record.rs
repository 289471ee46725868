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

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::runtime::{ExitStatus, LabelMap, Pid, PortBinding};

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

/// How a container ended; monitors write it (`monitor/src/watch.rs`).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Exit {
    pub code: i32,
    pub oom_killed: bool,
}

impl From<Exit> for ExitStatus {
    fn from(exit: Exit) -> Self {
        Self {
            code: exit.code,
            oom_killed: exit.oom_killed,
        }
    }
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
        read(&self.file("record.json"))
    }

    pub fn init(&self) -> io::Result<Option<Init>> {
        read(&self.file("init.json"))
    }

    pub fn exit(&self) -> io::Result<Option<Exit>> {
        read(&self.file("exit.json"))
    }

    pub fn started(&self) -> bool {
        self.file("started").exists()
    }

    pub fn write<T: Serialize>(&self, name: &str, value: &T, sync: bool) -> io::Result<()> {
        write(&self.0, name, value, sync)
    }
}

/// Reads a JSON file; `None` when there is none.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| named(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(error)),
    }
}

/// Writes a JSON file so that a reader sees all of it or none; `sync` also survives a power cut.
fn write<T: Serialize>(folder: &Path, name: &str, value: &T, sync: bool) -> io::Result<()> {
    let part = folder.join(format!(".{name}.part"));
    let mut file = fs::File::create(&part)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(part, folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_what_is_absent_is_none() {
        let dir = tempfile::tempdir().expect("temp dir");
        let folder = Folder::new(dir.path().to_owned());
        assert!(folder.exit().expect("read").is_none());
        let exit = Exit {
            code: 137,
            oom_killed: true,
        };
        folder.write("exit.json", &exit, true).expect("write");
        let back = folder.exit().expect("read").expect("present");
        assert_eq!((back.code, back.oom_killed), (137, true));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_torn_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("exit.json"), "{\"code\":").expect("write");
        let error = Folder::new(dir.path().to_owned()).exit().expect_err("torn");
        assert!(error.to_string().contains("exit.json"), "{error}");
    }
}
