//! What is asked of a container between `create` and `remove`: all from its files.

use std::fs::File;
use std::io::{self, ErrorKind};

use backendai_monitor::log;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use super::monitor::{Answer, ask_start};
use super::record::{Init, Kept, started};
use super::{Inner, Youki, failed};
use crate::runtime::folder::Folder;
use crate::runtime::{
    BoxError, ContainerId, ContainerInfo, ContainerState, ExitStatus, LABEL_OWNER, OWNER, Result,
    RuntimeError, check,
};
use crate::sys::pidfd::PidFd;

/// What to do to learn of a container's end.
enum End {
    Known(ExitStatus),
    /// Wait until this process is gone, then look again.
    After(PidFd),
}

impl Youki {
    pub(super) async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        loop {
            match self.of(id, "waiting for", Inner::end).await? {
                End::Known(exit) => return Ok(exit),
                End::After(monitor) => {
                    let ended = monitor.ended().await;
                    ended.map_err(failed(format!("waiting for container {id}")))?;
                }
            }
        }
    }
}

impl Inner {
    /// The record of a container that was made to the end.
    pub(super) fn known(&self, id: &ContainerId) -> Result<(Folder, Kept, Init), BoxError> {
        let folder = self.folder(id)?;
        match (Kept::of(&folder)?, Init::of(&folder)?) {
            (Some(kept), Some(init)) => Ok((folder, kept, init)),
            _ => Err(RuntimeError::NotFound(id.clone()).into()),
        }
    }

    fn end(&self, id: &ContainerId) -> Result<End, BoxError> {
        let (folder, kept, init) = self.known(id)?;
        if let Some(exit) = folder.exit()? {
            return Ok(End::Known(exit));
        }
        if let Some(monitor) = monitor_of(&folder)? {
            return Ok(End::After(monitor));
        }
        // It may have ended between the two looks.
        if let Some(exit) = folder.exit()? {
            return Ok(End::Known(exit));
        }
        // The monitor was killed: Linux kills the first process with it, unless that has changed its user.
        if let Some(process) = init.process()? {
            process.signal(Signal::KILL)?;
            return Ok(End::After(process));
        }
        let exit = kept.record.ended(None);
        folder.set_exit(exit)?;
        Ok(End::Known(exit))
    }

    pub(super) fn start(&self, id: &ContainerId) -> Result<(), BoxError> {
        let (folder, ..) = self.known(id)?;
        if started(&folder) || folder.exit()?.is_some() {
            return Err(RuntimeError::Invalid(format!("container {id} was started before")).into());
        }
        match ask_start(&folder) {
            Ok(Answer::Pid(_)) => Ok(()),
            Ok(Answer::Invalid(text)) => Err(RuntimeError::Invalid(text).into()),
            Ok(Answer::Failed(text)) => Err(text.into()),
            // Someone else's start came first, and the monitor answers no more.
            Err(_) if started(&folder) => {
                Err(RuntimeError::Invalid(format!("container {id} was started before")).into())
            }
            Err(error) => {
                Err(format!("the monitor of container {id} does not answer: {error}").into())
            }
        }
    }

    pub(super) fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), BoxError> {
        let (_, _, init) = self.known(id)?;
        let signal = check::signal(signal)?;
        if let Some(process) = init.process()? {
            process.signal(signal)?;
        }
        Ok(())
    }

    pub(super) fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo, BoxError> {
        let (folder, kept, init) = self.known(id)?;
        Ok(info(&folder, kept, init)?)
    }

    pub(super) fn list(&self) -> Result<Vec<ContainerInfo>, BoxError> {
        let mut all = Vec::new();
        for id in self.folders.ids()? {
            let folder = self.folders.of(&id);
            let (Some(kept), Some(init)) = (Kept::of(&folder)?, Init::of(&folder)?) else {
                self.remove_torn(&id);
                continue;
            };
            let owner = kept.record.labels.get(LABEL_OWNER);
            if owner.map(String::as_str) == Some(OWNER) {
                all.push(info(&folder, kept, init)?);
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    pub(super) fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>, BoxError> {
        let (_, kept, _) = self.known(id)?;
        Ok(log::tail(&kept.state, limit)?)
    }
}

fn info(folder: &Folder, kept: Kept, init: Init) -> io::Result<ContainerInfo> {
    let alive = init.process()?.is_some() && folder.exit()?.is_none();
    let exit = if alive { None } else { folder.exit()? };
    let state = match (alive, started(folder)) {
        (true, true) => ContainerState::Running,
        (true, false) => ContainerState::Created,
        (false, _) => ContainerState::Stopped,
    };
    let id = kept.id();
    Ok(kept.record.info(id, state, Some(init.pid), exit))
}

/// The monitor of a container, if it lives.
pub(super) fn monitor_of(folder: &Folder) -> io::Result<Option<PidFd>> {
    let lock = match File::open(folder.file("lock")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let free = || match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(io::Error::from(error)),
    };
    if free()? {
        return Ok(None);
    }
    let pid = io::read_to_string(&lock)?;
    let Ok(pid) = pid.parse() else {
        return Ok(None);
    };
    let Some(process) = PidFd::open(pid)? else {
        return Ok(None);
    };
    // Held before and after: then this process is the monitor and no later one with its pid.
    Ok((!free()?).then_some(process))
}
