//! What stands around a container whose engine makes neither network nor cgroups as we want them: made by `create`
//! before the engine's own part, and taken away by `remove`.

use std::path::{Path, PathBuf};
use std::thread;

use super::cgroup::Hierarchies;
use super::network::{Attachment, Network, NetworkConfig, NetworkError};
use super::oci::Placement;
use super::{BoxError, ContainerId, ContainerSpec, Limits, NetworkMode, Result, RuntimeError};
use crate::sys::userns;

/// Most open files of a container.
pub const OPEN_FILES: u64 = 1 << 20;

/// Makes and removes it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    engine: &'static str,
    network: Network,
    cgroups: PathBuf,
    open_files: u64,
}

/// How it is on this node.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// The bridge, and what is outside of it.
    pub network: NetworkConfig,
    /// The cgroup below which containers have theirs.
    pub cgroups: PathBuf,
    /// Most open files of a container.
    pub open_files: u64,
}

/// The cgroups of a container.
#[derive(Clone, Debug)]
pub struct Room {
    /// The limits that are left to the engine.
    pub limits: Limits,
    /// The container's place, without what the engine knows of it.
    pub place: Placement,
}

impl Sandbox {
    /// Opens the network of a run folder; nothing is made yet.
    ///
    /// # Errors
    /// When the folder for the records of the network cannot be made.
    pub fn open(engine: &'static str, run_dir: &Path, config: SandboxConfig) -> Result<Self> {
        let network = Network::open(run_dir, config.network);
        let failed = |error: NetworkError| {
            let action = "opening the network".to_owned();
            RuntimeError::engine(engine, action, error)
        };
        Ok(Self {
            engine,
            network: network.map_err(failed)?,
            cgroups: config.cgroups,
            open_files: config.open_files,
        })
    }

    /// The cgroup of a container, below the root of every hierarchy.
    #[must_use]
    pub fn cgroup(&self, id: &ContainerId) -> PathBuf {
        self.cgroups.join(&id.0)
    }

    /// Connects a container and makes its cgroups side by side: both wait for Linux more than they work. Blocks.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] for a port that is taken, else what Linux refused. Either may then be there.
    pub fn make(&self, spec: &ContainerSpec) -> Result<(Option<Attachment>, Room)> {
        let (attachment, room) = thread::scope(|scope| {
            let room = scope.spawn(|| self.make_room(spec));
            let attachment = match spec.network {
                NetworkMode::Bridge => self.attach(spec).map(Some),
                _ => Ok(None),
            };
            let room = room.join().expect("making cgroups does not panic");
            (attachment, room)
        });
        Ok((attachment?, room?))
    }

    fn attach(&self, spec: &ContainerSpec) -> Result<Attachment> {
        let attached = self.network.attach_blocking(&spec.id.0, &spec.ports);
        attached.map_err(|error| match error {
            NetworkError::PortTaken { .. } => {
                RuntimeError::Invalid(format!("container {}: {error}", spec.id))
            }
            other => {
                let action = format!("connecting container {}", spec.id);
                RuntimeError::engine(self.engine, action, other)
            }
        })
    }

    /// Takes away what [`Sandbox::make`] made, side by side. Blocks.
    ///
    /// # Errors
    /// What Linux refused.
    pub fn remove(&self, id: &ContainerId, cgroup: &Path, attached: bool) -> Result<(), BoxError> {
        let (detached, removed) = thread::scope(|scope| {
            let removed = scope.spawn(|| Self::remove_room(cgroup));
            let detached = match attached {
                true => self.network.detach_blocking(&id.0),
                false => Ok(()),
            };
            let removed = removed.join().expect("removing cgroups does not panic");
            (detached, removed)
        });
        detached?;
        removed
    }

    /// Disconnects a container; one that is not connected is no error.
    ///
    /// # Errors
    /// What Linux refused.
    pub async fn detach(&self, id: &ContainerId) -> Result<(), BoxError> {
        Ok(self.network.detach(&id.0).await?)
    }

    /// Makes the cgroups of a container and limits them, as far as that is not left to the engine.
    fn make_room(&self, spec: &ContainerSpec) -> Result<Room> {
        let path = self.cgroup(&spec.id);
        let make = || {
            let hierarchies = Hierarchies::read()?;
            hierarchies.create(&path)?;
            let mut limits = spec.limits.clone();
            hierarchies.limit(&path, &mut limits)?;
            let place = Placement {
                rootfs: PathBuf::from("rootfs"),
                netns: None,
                cgroup: hierarchies.inner(&path),
                limits: !hierarchies.is_unified(),
                image_env: Vec::new(),
                open_files: self.open_files,
                device_rules: !userns::inside(),
            };
            Ok(Room { limits, place })
        };
        make().map_err(|error: BoxError| {
            let action = format!("making the cgroups of container {}", spec.id);
            RuntimeError::engine(self.engine, action, error)
        })
    }

    /// Removes a container's cgroups; its processes must be dead or dying. Blocks.
    ///
    /// # Errors
    /// What Linux refused.
    pub fn remove_room(cgroup: &Path) -> Result<(), BoxError> {
        Ok(Hierarchies::read()?.remove(cgroup)?)
    }

    /// Puts back rules that somebody flushed. The agent lists containers every few seconds: that is the time for it.
    pub async fn look_after(&self) {
        if let Err(error) = self.network.ensure().await {
            tracing::warn!("cannot look after the bridge and its rules: {error}");
        }
    }
}
