//! `create`: snapshot, network and cgroups side by side, then the container, then its task. `remove` undoes any part.

use std::collections::HashMap;
use std::path::Path;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, ListContainersRequest,
};
use containerd_client::types::Mount as RootMount;
use prost_types::Any;
use tonic::{Code, Status};

use super::client::{engine_error, failed};
use super::record::{Kept, LABEL_NAME};
use super::root::Layers;
use super::{Inner, LOGS, NAME};
use crate::image::engine::Known;
use crate::runtime::folder::Folder;
use crate::runtime::network::Attachment;
use crate::runtime::oci::{self, Placement};
use crate::runtime::record::{Claim, Record};
use crate::runtime::sandbox::Room;
use crate::runtime::{
    ContainerId, ContainerSpec, Mount, Result, RuntimeError, blocking, check, names,
};

/// Type of an OCI runtime spec in containerd's records.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

impl Inner {
    pub(super) async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        check::request(spec)?;
        let image = self.images.runnable(&spec.image).await?;
        check::sources(spec)?;
        let _name = self.claim_name(spec).await?;
        let claim = self.folders.claim(&spec.id);
        let claim = claim.map_err(|error| engine_error(action(&spec.id), error.into()))?;
        let Some((folder, lock)) = claim else {
            return Err(check::exists(&spec.id));
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
    async fn claim_name(&self, spec: &ContainerSpec) -> Result<Claim<'_>> {
        let claim = self.names.claim(&spec.name);
        let claim =
            claim.ok_or_else(|| check::name_taken(spec, "a container that is being made"))?;
        let same = |key: &str, value: &str| format!("{key}=={value:?}");
        let filters = vec![
            same("id", &spec.id.0),
            same(&format!("labels.{LABEL_NAME:?}"), &spec.name),
        ];
        let found = self.client.ask(ListContainersRequest { filters }).await;
        let found = found.map_err(failed("looking for containers"))?.containers;
        match found.first() {
            None => Ok(claim),
            Some(container) if container.id == spec.id.0 => Err(check::exists(&spec.id)),
            Some(container) => {
                let holder = format!("container {}", container.id);
                Err(check::name_taken(spec, &holder))
            }
        }
    }

    async fn make(&self, spec: &ContainerSpec, image: &Known, folder: &Folder) -> Result<()> {
        // All run to their end, so that what follows a failure finds nothing under way.
        let (mounts, around) = tokio::join!(
            self.images()
                .snapshot(&spec.id, &image.described, &spec.image),
            self.make_sandbox(spec)
        );
        let (mounts, (attachment, room)) = (mounts?, around?);
        let address = attachment.as_ref().map(|it| it.address);
        let broken = |error: std::io::Error| engine_error(action(&spec.id), error.into());
        std::fs::create_dir(folder.file(LOGS)).map_err(broken)?;
        let mut full = spec.clone();
        full.limits = room.limits;
        let name_files = names::mounts(spec, address, folder.path());
        let name_files = name_files.map_err(broken)?;
        full.mounts
            .extend(where_they_lead(spec, name_files, Layers::of(&mounts)).await);
        let place = Placement {
            netns: attachment.map(|it| it.netns),
            image_env: image.info.env.clone(),
            ..room.place
        };
        let oci = oci::spec(&full, &place);
        let oci = oci.map_err(|error| RuntimeError::Invalid(error.to_string()))?;
        let record = Kept {
            record: Record::new(spec, self.sandbox.cgroup(&spec.id), address),
            image_id: image.info.id.clone(),
        };
        let value = serde_json::to_vec(&oci).expect("an OCI spec is plain data");
        self.create_record(&spec.id, &record, value).await?;
        self.create_task(spec, folder, mounts).await?;
        self.folders.set_made(&spec.id).map_err(broken)
    }

    async fn make_sandbox(&self, spec: &ContainerSpec) -> Result<(Option<Attachment>, Room)> {
        let (sandbox, wanted) = (self.sandbox.clone(), spec.clone());
        let make = move || Ok(sandbox.make(&wanted)?);
        blocking(NAME, action(&spec.id), make).await
    }

    async fn create_record(&self, id: &ContainerId, record: &Kept, spec: Vec<u8>) -> Result<()> {
        let mut container = Container {
            id: id.0.clone(),
            image: record.record.image.clone(),
            runtime: Some(Runtime {
                name: self.handler.runtime.clone(),
                options: self.handler.options.clone(),
            }),
            spec: Some(Any {
                type_url: SPEC.to_owned(),
                value: spec,
            }),
            snapshotter: self.images().snapshotter().to_owned(),
            snapshot_key: id.0.clone(),
            ..Container::default()
        };
        record.put(&mut container);
        let container = Some(container);
        let made = self.client.ask(CreateContainerRequest { container }).await;
        made.map(drop).map_err(|status| match status.code() {
            Code::AlreadyExists => check::exists(id),
            _ => failed(action(id))(status),
        })
    }

    async fn create_task(
        &self,
        spec: &ContainerSpec,
        folder: &Folder,
        rootfs: Vec<RootMount>,
    ) -> Result<()> {
        let logger = self.handler.logger(&folder.file(LOGS), spec.log_limit);
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

/// Mounts files where the image's links lead, unless the request has mounts on the way.
async fn where_they_lead(
    spec: &ContainerSpec,
    mut files: Vec<Mount>,
    layers: Layers,
) -> Vec<Mount> {
    let covered = |path: &Path| spec.mounts.iter().any(|it| path.starts_with(&it.target));
    let resolved = files.clone();
    let resolved = tokio::task::spawn_blocking(move || {
        let ends = resolved.iter().map(|file| layers.resolve(&file.target));
        ends.collect::<Vec<_>>()
    });
    for (file, end) in files.iter_mut().zip(resolved.await.unwrap_or_default()) {
        if !covered(&file.target) {
            file.target = end;
        }
    }
    files
}

/// What runc and its like say of a request that is wrong: a program, folder or capability that is not there.
pub(super) fn refused(status: &Status) -> Option<&str> {
    let (_, text) = status.message().split_once("OCI runtime ")?;
    let wrong = ["exec: ", "executable file", "chdir", "cwd", "apability"];
    wrong.iter().any(|part| text.contains(part)).then_some(text)
}

fn action(id: &ContainerId) -> String {
    format!("creating container {id}")
}

/// Labels of a snapshot that the garbage collector leaves to us.
pub(super) fn kept() -> HashMap<String, String> {
    [(
        "containerd.io/gc.root".to_owned(),
        "backendai-agent".to_owned(),
    )]
    .into()
}
