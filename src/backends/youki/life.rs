//! What is asked of a container between `create` and `remove`: all from its files.

use std::fs::File;
use std::io::{self, ErrorKind};

use backendai_monitor::log;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, pidfd_send_signal};

use super::monitor::{Answer, ask_start, began};
use super::record::{Folder, Init, Record};
use super::{Inner, Youki};
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::{
    BoxError, ContainerId, ContainerInfo, ContainerState, ExitStatus, LABEL_OWNER, OWNER, Result,
    RuntimeError,
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
            let (action, asked) = (format!("waiting for container {id}"), id.clone());
            let end = self
                .blocking(action.clone(), move |inner| inner.end(&asked))
                .await?;
            let monitor = match end {
                End::Known(exit) => return Ok(exit),
                End::After(monitor) => monitor,
            };
            let ended = monitor.ended().await;
            ended.map_err(|error| super::engine_error(action, error.into()))?;
        }
    }
}

impl Inner {
    /// The record of a container that was made to the end.
    pub(super) fn known(&self, id: &ContainerId) -> Result<(Folder, Record, Init), BoxError> {
        let folder = self.folder(id)?;
        match (folder.record()?, folder.init()?) {
            (Some(record), Some(init)) => Ok((folder, record, init)),
            _ => Err(RuntimeError::NotFound(id.clone()).into()),
        }
    }

    fn end(&self, id: &ContainerId) -> Result<End, BoxError> {
        let (folder, record, init) = self.known(id)?;
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
        if let Some(process) = process(init)? {
            pidfd_send_signal(&process, Signal::KILL).or_else(gone)?;
            return Ok(End::After(process));
        }
        let oom_killed = Hierarchies::read()?.oom_killed(&record.cgroup);
        let exit = ExitStatus {
            code: 137,
            oom_killed,
        };
        folder.write("exit.json", &exit, true)?;
        Ok(End::Known(exit))
    }

    pub(super) fn start(&self, id: &ContainerId) -> Result<(), BoxError> {
        let (folder, ..) = self.known(id)?;
        if folder.started() || folder.exit()?.is_some() {
            return Err(RuntimeError::Invalid(format!("container {id} was started before")).into());
        }
        match ask_start(&folder) {
            Ok(Answer::Pid(_)) => Ok(()),
            Ok(Answer::Invalid(text)) => Err(RuntimeError::Invalid(text).into()),
            Ok(Answer::Failed(text)) => Err(text.into()),
            // Someone else's start came first, and the monitor answers no more.
            Err(_) if folder.started() => {
                Err(RuntimeError::Invalid(format!("container {id} was started before")).into())
            }
            Err(error) => {
                Err(format!("the monitor of container {id} does not answer: {error}").into())
            }
        }
    }

    pub(super) fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), BoxError> {
        let (_, _, init) = self.known(id)?;
        let signal = Signal::from_named_raw(signal).ok_or_else(|| {
            RuntimeError::Invalid(format!("{signal} is not the number of a signal"))
        })?;
        if let Some(process) = process(init)? {
            pidfd_send_signal(process, signal).or_else(gone)?;
        }
        Ok(())
    }

    pub(super) fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo, BoxError> {
        let (folder, record, init) = self.known(id)?;
        Ok(info(&folder, record, init)?)
    }

    pub(super) fn list(&self) -> Result<Vec<ContainerInfo>, BoxError> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.containers())? {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let id = ContainerId(name);
            let folder = self.folder(&id)?;
            let (Some(record), Some(init)) = (folder.record()?, folder.init()?) else {
                self.remove_torn(&id, &folder);
                continue;
            };
            if record.labels.get(LABEL_OWNER).map(String::as_str) == Some(OWNER) {
                all.push(info(&folder, record, init)?);
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    pub(super) fn logs(&self, id: &ContainerId, limit: usize) -> Result<Vec<u8>, BoxError> {
        let (_, record, _) = self.known(id)?;
        Ok(log::tail(&record.state, limit)?)
    }
}

fn info(folder: &Folder, record: Record, init: Init) -> io::Result<ContainerInfo> {
    let alive = process(init)?.is_some() && folder.exit()?.is_none();
    let exit = if alive { None } else { folder.exit()? };
    let state = match (alive, folder.started()) {
        (true, true) => ContainerState::Running,
        (true, false) => ContainerState::Created,
        (false, _) => ContainerState::Stopped,
    };
    Ok(ContainerInfo {
        ports: record.ports(),
        id: ContainerId(record.id),
        name: record.name,
        image: record.image,
        state,
        labels: record.labels,
        pid: alive.then_some(init.pid),
        cgroup: Some(record.cgroup),
        address: record.address,
        exit,
    })
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

/// The first process of a container, if it lives.
pub(super) fn process(init: Init) -> io::Result<Option<PidFd>> {
    let Some(process) = PidFd::open(init.pid)? else {
        return Ok(None);
    };
    match began(init.pid) {
        Ok(ticks) if ticks == init.began => Ok(Some(process)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A process that is gone already is no error.
pub(super) fn gone(error: rustix::io::Errno) -> io::Result<()> {
    if error == rustix::io::Errno::SRCH {
        Ok(())
    } else {
        Err(error.into())
    }
}
