//! `create`: snapshot, network and cgroups side by side, then the container, then its task. `remove` undoes any part.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, ListContainersRequest,
};
use containerd_client::types::Mount as RootMount;
use prost_types::Any;
use tonic::{Code, Status};

use super::Inner;
use super::client::{engine_error, failed};
use super::folder::Folder;
use super::images::Known;
use super::record::{LABEL_NAME, Record};
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::network::{Attachment, NetworkError};
use crate::runtime::oci::{self, Placement};
use crate::runtime::{
    ContainerId, ContainerSpec, Limits, Mount, MountKind, NetworkMode, Result, RuntimeError, check,
    names,
};
use crate::sys::userns;

/// Type of an OCI runtime spec in containerd's records.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A name that only this `create` may give.
struct NameClaim<'a>(&'a Inner, String);

impl Drop for NameClaim<'_> {
    fn drop(&mut self) {
        self.0
            .names
            .lock()
            .expect("no panic while held")
            .remove(&self.1);
    }
}

impl Inner {
    pub(super) async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        check::request(spec)?;
        if !check::is_id(&spec.id) {
            return Err(check::invalid_id(&spec.id));
        }
        let image = self.images.runnable(&spec.image).await?;
        check::sources(spec)?;
        let _name = self.claim_name(spec).await?;
        let claim = self.folders.claim(&spec.id);
        let claim = claim.map_err(|error| engine_error(action(&spec.id), error.into()))?;
        let Some((folder, lock)) = claim else {
            return Err(exists(&spec.id));
        };
        let made = self.make(spec, &image, &folder).await;
        if made.is_err()
            && let Err(error) = self.take_apart(&spec.id).await
        {
            tracing::warn!("undoing the creation of container {}: {error}", spec.id);
        }
        drop(lock);
        made.map(|()| spec.id.clone())
    }

    /// Refuses an id or a name that another container has, or is getting.
    async fn claim_name(&self, spec: &ContainerSpec) -> Result<NameClaim<'_>> {
        let taken = |holder: &str| {
            RuntimeError::Invalid(format!(
                "container {}: the name {} is taken by {holder}; remove that first",
                spec.id, spec.name
            ))
        };
        let new = |name: &String| {
            let mut names = self.names.lock().expect("no panic while held");
            names.insert(name.clone())
        };
        if !new(&spec.name) {
            return Err(taken("a container that is being made"));
        }
        let claim = NameClaim(self, spec.name.clone());
        let same = |key: &str, value: &str| format!("{key}=={value:?}");
        let filters = vec![
            same("id", &spec.id.0),
            same(&format!("labels.{LABEL_NAME:?}"), &spec.name),
        ];
        let found = self.client.ask(ListContainersRequest { filters }).await;
        let found = found.map_err(failed("looking for containers"))?.containers;
        match found.first() {
            None => Ok(claim),
            Some(container) if container.id == spec.id.0 => Err(exists(&spec.id)),
            Some(container) => Err(taken(&format!("container {}", container.id))),
        }
    }

    async fn make(&self, spec: &ContainerSpec, image: &Known, folder: &Folder) -> Result<()> {
        let cgroup = Path::new("/backendai").join(&spec.id.0);
        // All run to their end, so that what follows a failure finds nothing under way.
        let (mounts, attachment, limits) = tokio::join!(
            self.images.snapshot(&spec.id, image),
            self.attach(spec),
            self.make_cgroup(spec, &cgroup)
        );
        let (mounts, attachment, (limits, place)) = (mounts?, attachment?, limits?);
        let address = attachment.as_ref().map(|it| it.address);
        let mut full = spec.clone();
        full.limits = limits;
        full.mounts.extend(name_files(spec, address, folder)?);
        let place = Placement {
            netns: attachment.map(|it| it.netns),
            image_env: image.info.env.clone(),
            ..place
        };
        let oci = oci::spec(&full, &place);
        let oci = oci.map_err(|error| RuntimeError::Invalid(error.to_string()))?;
        let record = Record {
            name: spec.name.clone(),
            image: spec.image.clone(),
            image_id: image.info.id.clone(),
            labels: spec.labels.clone(),
            ports: spec
                .ports
                .iter()
                .map(|it| (it.host, it.container))
                .collect(),
            address,
            cgroup,
        };
        let value = serde_json::to_vec(&oci).expect("an OCI spec is plain data");
        self.create_record(&spec.id, &record, value).await?;
        self.create_task(spec, folder, mounts).await?;
        folder
            .set_made()
            .map_err(|error| engine_error(action(&spec.id), error.into()))
    }

    async fn attach(&self, spec: &ContainerSpec) -> Result<Option<Attachment>> {
        if spec.network != NetworkMode::Bridge {
            return Ok(None);
        }
        let attached = self.network.attach(&spec.id.0, &spec.ports).await;
        attached.map(Some).map_err(|error| match error {
            NetworkError::PortTaken { .. } => {
                RuntimeError::Invalid(format!("container {}: {error}", spec.id))
            }
            other => engine_error(format!("connecting container {}", spec.id), other.into()),
        })
    }

    /// Makes the cgroups; gives the limits that are left to the engine, and the container's place.
    async fn make_cgroup(&self, spec: &ContainerSpec, path: &Path) -> Result<(Limits, Placement)> {
        let (mut limits, path) = (spec.limits.clone(), path.to_owned());
        let open_files = self.open_files;
        let make = move || {
            let hierarchies = Hierarchies::read()?;
            hierarchies.create(&path)?;
            hierarchies.limit(&path, &mut limits)?;
            let place = Placement {
                rootfs: PathBuf::from("rootfs"),
                netns: None,
                cgroup: hierarchies.inner(&path),
                limits: !hierarchies.is_unified(),
                image_env: Vec::new(),
                open_files,
                device_rules: !userns::inside(),
            };
            Ok((limits, place))
        };
        let made = tokio::task::spawn_blocking(make).await;
        made.unwrap_or_else(|error| Err(error.into()))
            .map_err(|error| {
                engine_error(
                    format!("making the cgroups of container {}", spec.id),
                    error,
                )
            })
    }

    async fn create_record(&self, id: &ContainerId, record: &Record, spec: Vec<u8>) -> Result<()> {
        let mut container = Container {
            id: id.0.clone(),
            image: record.image.clone(),
            runtime: Some(Runtime {
                name: self.handler.runtime.clone(),
                options: self.handler.options.clone(),
            }),
            spec: Some(Any {
                type_url: SPEC.to_owned(),
                value: spec,
            }),
            snapshotter: self.images.snapshotter().to_owned(),
            snapshot_key: id.0.clone(),
            ..Container::default()
        };
        record.put(&mut container);
        let container = Some(container);
        let made = self.client.ask(CreateContainerRequest { container }).await;
        made.map(drop).map_err(|status| match status.code() {
            Code::AlreadyExists => exists(id),
            _ => failed(action(id))(status),
        })
    }

    async fn create_task(
        &self,
        spec: &ContainerSpec,
        folder: &Folder,
        rootfs: Vec<RootMount>,
    ) -> Result<()> {
        let logger = self.handler.logger(&folder.logs(), spec.log_limit);
        let request = CreateTaskRequest {
            container_id: spec.id.0.clone(),
            rootfs,
            stdout: logger.clone(),
            stderr: logger,
            ..CreateTaskRequest::default()
        };
        let made = self.client.ask(request).await;
        made.map(drop).map_err(|status| {
            refused(&status)
                .map(|text| RuntimeError::Invalid(format!("container {}: {text}", spec.id)))
                .unwrap_or_else(|| failed(action(&spec.id))(status))
        })
    }
}

/// What runc and its like say of a request that is wrong: a program, folder or capability that is not there.
pub(super) fn refused(status: &Status) -> Option<&str> {
    let (_, text) = status.message().split_once("OCI runtime ")?;
    let wrong = ["exec: ", "executable file", "chdir", "cwd", "apability"];
    wrong.iter().any(|part| text.contains(part)).then_some(text)
}

/// Writes the files by which the container resolves names, and gives their mounts.
fn name_files(
    spec: &ContainerSpec,
    address: Option<std::net::Ipv4Addr>,
    folder: &Folder,
) -> Result<Vec<Mount>> {
    let files = names::files(spec, address).into_iter();
    let mounts = files.map(|(target, text)| {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let source = folder.file(&name);
        fs::write(&source, text)
            .map_err(|error| engine_error(format!("writing {}", source.display()), error.into()))?;
        Ok(Mount {
            kind: MountKind::Bind(source),
            target,
            read_only: false,
        })
    });
    mounts.collect()
}

fn action(id: &ContainerId) -> String {
    format!("creating container {id}")
}

fn exists(id: &ContainerId) -> RuntimeError {
    RuntimeError::Invalid(format!("container {id} exists already; remove it first"))
}

/// Labels of a snapshot that the garbage collector leaves to us.
pub(super) fn kept() -> HashMap<String, String> {
    [(
        "containerd.io/gc.root".to_owned(),
        "backendai-agent".to_owned(),
    )]
    .into()
}
