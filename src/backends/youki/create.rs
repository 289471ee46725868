//! `create`: folder, network, cgroups, files, monitor; each step is undone by `remove`, which takes any state.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::monitor::Answer;
use super::record::{Kept, OWNER, RECORD};
use super::{Inner, Rootfs, Youki};
use crate::runtime::folder::Folder;
use crate::runtime::oci::{self, Placement};
use crate::runtime::record::Record;
use crate::runtime::{
    BoxError, ContainerId, ContainerSpec, NetworkMode, Result, RuntimeError, check, names,
};

impl Youki {
    pub(super) async fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        check::request(spec)?;
        let rootfs = self.0.images.prepare(&spec.image).await?;
        let wanted = spec.clone();
        let create = move |inner: &Inner, _: &_| inner.create(&wanted, rootfs);
        self.of(&spec.id, "creating", create).await?;
        Ok(spec.id.clone())
    }
}

impl Inner {
    fn create(&self, spec: &ContainerSpec, rootfs: Rootfs) -> Result<(), BoxError> {
        check::sources(spec)?;
        // No `sweep`, and no other container of this name, until the record is written.
        let claiming = self.lock_containers()?;
        self.check_name(spec)?;
        let claim = self.folders.claim(&spec.id)?;
        let (folder, lock) = claim.ok_or_else(|| check::exists(&spec.id))?;
        let done = self.fill(spec, rootfs, &folder, claiming);
        if done.is_err()
            && let Err(error) = self.take_apart(&spec.id, &folder)
        {
            tracing::warn!("undoing the creation of container {}: {error}", spec.id);
        }
        drop(lock);
        done
    }

    /// Refuses a name that another container has.
    fn check_name(&self, spec: &ContainerSpec) -> Result<(), BoxError> {
        for id in self.folders.ids()? {
            // One that is being removed or cannot be read has no say; `list` tells of it.
            let Ok(Some(other)) = Kept::of(&self.folders.of(&id)) else {
                continue;
            };
            if other.record.name == spec.name && id != spec.id {
                return Err(check::name_taken(spec, &format!("container {id}")).into());
            }
        }
        Ok(())
    }

    fn fill(
        &self,
        spec: &ContainerSpec,
        rootfs: Rootfs,
        folder: &Folder,
        claiming: File,
    ) -> Result<(), BoxError> {
        let state = self.states().join(&spec.id.0);
        let mut kept = Kept {
            id: spec.id.0.clone(),
            record: Record {
                image: rootfs.name,
                ..Record::new(spec, self.sandbox.cgroup(&spec.id), None)
            },
            attached: spec.network == NetworkMode::Bridge,
            lowers: rootfs.lowers,
            state: state.clone(),
            log_limit: spec.log_limit,
            files: Vec::new(),
            cwd: spec.cwd.clone(),
        };
        // First of all: whoever finds it can undo what follows.
        folder.write(RECORD, &kept)?;
        drop(claiming);
        // Runs to its end, as all of `create` does.
        let (attachment, room) = self.sandbox.make(spec)?;
        kept.record.address = attachment.as_ref().map(|it| it.address);
        kept.files = names::files(spec, kept.record.address);
        folder.write(RECORD, &kept)?;
        Self::make_state(&state, folder)
            .map_err(|error| format!("{}: {error}", state.display()))?;
        let mut spec = spec.clone();
        spec.limits = room.limits;
        let place = Placement {
            netns: attachment.map(|it| it.netns),
            image_env: rootfs.env,
            ..room.place
        };
        let oci =
            oci::spec(&spec, &place).map_err(|error| RuntimeError::Invalid(error.to_string()))?;
        folder.write("config.json", &oci)?;
        self.spawn_monitor(&spec.id, folder)
    }

    /// The container's part of the state folder. Another agent that was given the same one, but not our run folder, sees by the
    /// link whose it is.
    fn make_state(state: &Path, folder: &Folder) -> io::Result<()> {
        fs::create_dir_all(state)?;
        symlink(folder.path(), state.join(OWNER))?;
        ["upper", "work"]
            .iter()
            .try_for_each(|part| fs::create_dir(state.join(part)))
    }

    /// Starts the monitor and waits until it has made the container.
    fn spawn_monitor(&self, id: &ContainerId, folder: &Folder) -> Result<(), BoxError> {
        let (mut ours, theirs) = UnixStream::pair()?;
        // Not waited for by us: tokio reaps it when it ends, and after us whoever adopts it.
        let monitor = Command::new(self.program.path())
            .arg("__monitor")
            .arg(folder.path())
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(self.watcher.try_clone()?)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("starting the monitor: {error}"))?;
        drop(monitor);
        let mut answer = Vec::new();
        // The monitor closes its end when it has answered, or when it dies.
        ours.read_to_end(&mut answer)?;
        match serde_json::from_slice(&answer) {
            Ok(Answer::Pid(_)) => Ok(()),
            Ok(Answer::Invalid(text)) => {
                Err(RuntimeError::Invalid(format!("container {id}: {text}")).into())
            }
            Ok(Answer::Failed(text)) => Err(text.into()),
            Err(_) => Err("the monitor died before it had made the container".into()),
        }
    }
}
