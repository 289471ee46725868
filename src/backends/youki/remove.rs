//! `remove`: takes apart whatever is there of a container, in any state, as often as asked.

use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use super::Inner;
use super::life::monitor_of;
use super::record::{Init, Kept, OWNER};
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::folder::Folder;
use crate::runtime::{BoxError, ContainerId};

/// How long the death of a killed process may take before `remove` gives up, to be repeated.
const PATIENCE: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) fn remove(&self, id: &ContainerId) -> Result<(), BoxError> {
        let Ok(folder) = self.folder(id) else {
            return Ok(());
        };
        // Waits for a `create` or `remove` of the same container to be over.
        match folder.lock()? {
            Some(_lock) => self.take_apart(id, &folder),
            None => Ok(()),
        }
    }

    /// Removes a container whose `create` was cut off with its agent; one that goes on is left alone.
    pub(super) fn remove_torn(&self, id: &ContainerId) {
        if let Ok(Some(_lock)) = self.folders.torn(id)
            && let Err(error) = self.take_apart(id, &self.folders.of(id))
        {
            tracing::warn!("removing what is left of container {id}: {error}");
        }
    }

    /// Removes what no container has any more: folders that never got their name, and, after the run folder was lost
    /// in a reboot, what containers wrote.
    pub(super) fn sweep(&self) -> io::Result<()> {
        // A folder with its name comes first in `create` and goes last in `remove`.
        let _alone = self.lock_containers()?;
        let nameless = |entry: &DirEntry| entry.file_name().to_string_lossy().starts_with('.');
        let ownerless = |entry: &DirEntry| {
            let known = self.folders.path().join(entry.file_name());
            [known, entry.path().join(OWNER)].iter().all(|owner| {
                let owner = fs::metadata(owner);
                owner.is_err_and(|error| error.kind() == ErrorKind::NotFound)
            })
        };
        sweep_folder(self.folders.path(), nameless)?;
        sweep_folder(&self.states(), ownerless)
    }

    /// Ends the containers of namespaces whose holder was killed: their networks went with it, and root of other namespaces
    /// may not even signal them. `list` then tells of their end.
    pub(super) fn end_strangers(&self) -> io::Result<()> {
        let user_namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user"));
        let own = user_namespace("self")?;
        for id in self.folders.ids()? {
            let folder = self.folders.of(&id);
            let (Ok(Some(monitor)), Ok(Some(kept))) = (monitor_of(&folder), Kept::of(&folder))
            else {
                continue;
            };
            let pid = fs::read_to_string(folder.file("lock"))?;
            // What may not be looked at is in other namespaces too.
            if user_namespace(&pid).is_ok_and(|theirs| theirs == own) {
                continue;
            }
            tracing::warn!("ending container {id}: its namespaces were ended");
            if !Hierarchies::read()?.kill(&kept.record.cgroup)? {
                monitor.signal(Signal::KILL)?;
            }
            monitor.await_end(PATIENCE)?;
        }
        Ok(())
    }

    /// Locks the folder of all containers: nobody else makes one, or sweeps, until this is dropped.
    pub(super) fn lock_containers(&self) -> io::Result<File> {
        let folder = File::open(self.folders.path())?;
        flock(&folder, FlockOperation::LockExclusive)?;
        Ok(folder)
    }

    /// Ends and removes everything; the caller holds the folder's lock.
    pub(super) fn take_apart(&self, id: &ContainerId, folder: &Folder) -> Result<(), BoxError> {
        Self::end_processes(folder)?;
        if let Some(kept) = Kept::of(folder)? {
            let cgroup = &kept.record.cgroup;
            self.sandbox.remove(id, cgroup, kept.attached)?;
        }
        Folder::new(self.states().join(&id.0)).remove()?;
        Ok(folder.remove()?)
    }

    /// Kills the first process, and with it all others; then the monitor ends by itself, or is made to.
    fn end_processes(folder: &Folder) -> io::Result<()> {
        if let Some(init) = Init::of(folder)?
            && let Some(process) = init.process()?
        {
            process.signal(Signal::KILL)?;
            process.await_end(PATIENCE)?;
        } else if let Some(monitor) = monitor_of(folder)? {
            // It has no first process that we know of: what it is making goes with it.
            if folder.exit()?.is_none() {
                monitor.signal(Signal::KILL)?;
            }
        }
        if let Some(monitor) = monitor_of(folder)? {
            monitor.await_end(PATIENCE)?;
        }
        Ok(())
    }
}

/// Removes the entries that are left over; what does not go is told and stays.
fn sweep_folder(folder: &Path, left_over: impl Fn(&DirEntry) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if left_over(&entry)
            && let Err(error) = Folder::new(entry.path()).remove()
        {
            tracing::warn!("removing what is left of a container: {error}");
        }
    }
    Ok(())
}
