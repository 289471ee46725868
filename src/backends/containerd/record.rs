//! What containerd keeps of a container for us, and what it says of it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use containerd_client::services::v1::Container;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use prost_types::Any;
use serde::{Deserialize, Serialize};

use crate::runtime::{
    ContainerId, ContainerInfo, ContainerState, ExitStatus, LabelMap, Pid, PortBinding,
};

/// Label of a container by which its name is found.
pub(super) const LABEL_NAME: &str = "ai.backend.container-name";
/// Key and type of our record in a container.
const RECORD: &str = "ai.backend.container/1";
/// Most bytes of a label's key and value together.
const LABEL_SIZE: usize = 4096;

/// Who a container is: all that a later agent must know of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub name: String,
    pub image: String,
    /// Config digest of the image.
    pub image_id: String,
    pub labels: LabelMap,
    /// Host and container port of each forwarded port.
    pub ports: Vec<(u16, u16)>,
    pub address: Option<Ipv4Addr>,
    /// Path below the root of every hierarchy.
    pub cgroup: PathBuf,
}

impl Record {
    /// Reads the record of a container; those of others have none.
    pub fn of(container: &Container) -> Option<Self> {
        serde_json::from_slice(&container.extensions.get(RECORD)?.value).ok()
    }

    /// Puts it into a container, and the labels where other tools look for them.
    pub fn put(&self, container: &mut Container) {
        let value = serde_json::to_vec(self).expect("a record is plain data");
        let type_url = RECORD.to_owned();
        let any = Any { type_url, value };
        container.extensions.insert(RECORD.to_owned(), any);
        let fits = |(key, value): &(&String, &String)| key.len() + value.len() <= LABEL_SIZE;
        let labels = self.labels.iter().filter(fits);
        container.labels = labels
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        container
            .labels
            .insert(LABEL_NAME.to_owned(), self.name.clone());
    }

    /// What is known of the container.
    pub fn info(self, id: &str, task: Option<&Process>, exit: Option<ExitStatus>) -> ContainerInfo {
        let state = match (task.map(Process::status), exit) {
            (_, Some(_)) | (None | Some(TaskStatus::Stopped), _) => ContainerState::Stopped,
            (Some(TaskStatus::Created), None) => ContainerState::Created,
            (Some(_), None) => ContainerState::Running,
        };
        let alive = state != ContainerState::Stopped;
        let pid = task
            .filter(|_| alive)
            .and_then(|task| Pid::try_from(task.pid).ok());
        let binding = |(host, container)| PortBinding { host, container };
        ContainerInfo {
            id: ContainerId(id.to_owned()),
            name: self.name,
            image: self.image,
            state,
            labels: self.labels,
            pid,
            cgroup: Some(self.cgroup),
            address: self.address,
            ports: self.ports.into_iter().map(binding).collect(),
            exit,
        }
    }
}
