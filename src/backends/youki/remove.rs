//! `remove`: takes apart whatever is there of a container, in any state, as often as asked.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, pidfd_send_signal};

use super::Inner;
use super::cgroup::Hierarchies;
use super::life::{gone, monitor_of, process};
use super::record::Folder;
use crate::runtime::{BoxError, ContainerId};
use crate::sys::pidfd::PidFd;

/// How long the death of a killed process may take before `remove` gives up, to be repeated.
const PATIENCE: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) fn remove(&self, id: &ContainerId) -> Result<(), BoxError> {
        let Ok(folder) = self.folder(id) else {
            return Ok(());
        };
        let lock = match File::open(folder.path()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        // Waits for a `create` or `remove` of the same container to be over.
        flock(&lock, FlockOperation::LockExclusive)?;
        self.take_apart(id, &folder)
    }

    /// Removes a container whose `create` was cut off with its agent; one that goes on is left alone.
    pub(super) fn remove_torn(&self, id: &ContainerId, folder: &Folder) {
        let Ok(lock) = File::open(folder.path()) else {
            return;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        // It may have been made to the end while we asked.
        if matches!(folder.init(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = self.take_apart(id, folder) {
            tracing::warn!("removing what is left of container {id}: {error}");
        }
    }

    /// Ends and removes everything; the caller holds the folder's lock.
    pub(super) fn take_apart(&self, id: &ContainerId, folder: &Folder) -> Result<(), BoxError> {
        self.end_processes(id, folder)?;
        let record = folder.record()?;
        if let Some(record) = &record {
            if record.attached {
                self.tokio.block_on(self.network.detach(&id.0))?;
            }
            Hierarchies::read()?.remove(&record.cgroup)?;
        }
        remove_folder(&self.states().join(&id.0))?;
        Ok(remove_folder(folder.path())?)
    }

    /// Kills the first process, and with it all others; then the monitor ends by itself, or is made to.
    fn end_processes(&self, id: &ContainerId, folder: &Folder) -> io::Result<()> {
        if let Some(init) = folder.init()?
            && let Some(process) = process(init)?
        {
            pidfd_send_signal(&process, Signal::KILL).or_else(gone)?;
            await_end(&process)?;
        } else if let Some(monitor) = monitor_of(folder)? {
            // It has no first process that we know of: what it is making goes with it.
            if folder.exit()?.is_none() {
                pidfd_send_signal(&monitor, Signal::KILL).or_else(gone)?;
            }
        }
        if let Some(monitor) = monitor_of(folder)? {
            await_end(&monitor)?;
        }
        self.reap(&id.0);
        Ok(())
    }
}

fn await_end(process: &PidFd) -> io::Result<()> {
    let limit = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit))? {
        0 => Err(io::Error::new(
            ErrorKind::TimedOut,
            "a killed process does not end; try again",
        )),
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}
