//! `create`: folder, network, cgroups, files, monitor; each step is undone by `remove`, which takes any state.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use rustix::fs::{FlockOperation, flock};
use tokio::process::Command;

use super::monitor::Answer;
use super::record::{Folder, Record};
use super::{Inner, Rootfs, Youki};
use crate::rootless;
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::check;
use crate::runtime::names;
use crate::runtime::network::{Attachment, NetworkError};
use crate::runtime::oci::{self, Placement};
use crate::runtime::{
    BoxError, ContainerId, ContainerSpec, Limits, NetworkMode, Result, RuntimeError,
};
use crate::sys::userns;

impl Youki {
    pub(super) async fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        check::request(spec)?;
        let rootfs = self.0.images.prepare(&spec.image).await?;
        let (spec, id) = (spec.clone(), spec.id.clone());
        self.blocking(format!("creating container {id}"), move |inner| {
            inner.create(&spec, rootfs)
        })
        .await?;
        Ok(id)
    }
}

impl Inner {
    fn create(&self, spec: &ContainerSpec, rootfs: Rootfs) -> Result<(), BoxError> {
        check::sources(spec)?;
        let folder = self
            .folder(&spec.id)
            .map_err(|_| check::invalid_id(&spec.id))?;
        // No `sweep`, and no other container of this name, until the record is written.
        let claiming = self.lock_containers()?;
        self.check_name(spec)?;
        let lock = self.claim(&folder, &spec.id)?;
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
        for entry in fs::read_dir(self.containers())? {
            let folder = Folder::new(entry?.path());
            // One that is being removed or cannot be read has no say; `list` tells of it.
            let Ok(Some(other)) = folder.record() else {
                continue;
            };
            if other.name == spec.name && other.id != spec.id.0 {
                let text = format!(
                    "container {}: the name {} is taken by container {}; remove that first",
                    spec.id, spec.name, other.id
                );
                return Err(RuntimeError::Invalid(text).into());
            }
        }
        Ok(())
    }

    /// Makes the container's folder and locks it: it is ours until the lock is dropped.
    fn claim(&self, folder: &Folder, id: &ContainerId) -> Result<File, BoxError> {
        let new = self
            .containers()
            .join(format!(".{id}.{}", uuid::Uuid::new_v4()));
        fs::create_dir(&new).map_err(|error| format!("{}: {error}", new.display()))?;
        let lock = File::open(&new)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        // A folder that is there has files in it: then this fails, and the container exists.
        match fs::rename(&new, folder.path()) {
            Ok(()) => Ok(lock),
            Err(error) => {
                let _ = fs::remove_dir(&new);
                match error.kind() {
                    ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => {
                        Err(RuntimeError::Invalid(format!(
                            "container {id} exists already; remove it first"
                        ))
                        .into())
                    }
                    _ => Err(error.into()),
                }
            }
        }
    }

    fn fill(
        &self,
        spec: &ContainerSpec,
        rootfs: Rootfs,
        folder: &Folder,
        claiming: File,
    ) -> Result<(), BoxError> {
        let state = self.states().join(&spec.id.0);
        let cgroup = rootless::kernels_cgroup().join(&spec.id.0);
        let bridged = spec.network == NetworkMode::Bridge;
        let mut record = Record {
            id: spec.id.0.clone(),
            name: spec.name.clone(),
            image: rootfs.name,
            labels: spec.labels.clone(),
            ports: spec
                .ports
                .iter()
                .map(|port| (port.host, port.container))
                .collect(),
            address: None,
            cgroup: cgroup.clone(),
            attached: bridged,
            lowers: rootfs.lowers,
            state: state.clone(),
            log_limit: spec.log_limit,
            files: Vec::new(),
            cwd: spec.cwd.clone(),
        };
        // First of all: whoever finds it can undo what follows.
        folder.write("record.json", &record, false)?;
        drop(claiming);
        // Both wait for Linux more than they work.
        let (attachment, limited) = thread::scope(|scope| {
            let limited = scope.spawn(|| limited(&cgroup, spec.limits.clone()));
            let attachment = bridged.then(|| self.attach(spec)).transpose();
            (
                attachment,
                limited.join().expect("making cgroups does not panic"),
            )
        });
        let (attachment, (hierarchies, limits)) = (attachment?, limited?);
        record.address = attachment.as_ref().map(|it| it.address);
        record.files = names::files(spec, record.address);
        folder.write("record.json", &record, false)?;
        for part in ["upper", "work"] {
            fs::create_dir_all(state.join(part))
                .map_err(|error| format!("{}: {error}", state.display()))?;
        }
        let mut spec = spec.clone();
        spec.limits = limits;
        let place = Placement {
            rootfs: PathBuf::from("rootfs"),
            netns: attachment.map(|it| it.netns),
            cgroup: hierarchies.inner(&cgroup),
            limits: !hierarchies.is_unified(),
            image_env: rootfs.env,
            open_files: open_files(),
            device_rules: !userns::inside(),
        };
        let oci =
            oci::spec(&spec, &place).map_err(|error| RuntimeError::Invalid(error.to_string()))?;
        folder.write("config.json", &oci, false)?;
        self.spawn_monitor(&spec.id, folder)
    }

    /// Connects a container; runs to its end, as all of `create` does.
    fn attach(&self, spec: &ContainerSpec) -> Result<Attachment, BoxError> {
        let attached = self.network.attach_blocking(&spec.id.0, &spec.ports);
        attached.map_err(|error| match error {
            NetworkError::PortTaken { .. } => {
                RuntimeError::Invalid(format!("container {}: {error}", spec.id)).into()
            }
            other => BoxError::from(other),
        })
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

/// Makes a container's cgroups with its limits; gives those that are left to the OCI spec.
fn limited(cgroup: &Path, mut limits: Limits) -> Result<(Hierarchies, Limits), BoxError> {
    let hierarchies = Hierarchies::read()?;
    hierarchies.create(cgroup)?;
    hierarchies.limit(cgroup, &mut limits)?;
    Ok((hierarchies, limits))
}

fn open_files() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.maximum.unwrap_or(1 << 20).min(1 << 20)
}
