//! What containerd keeps of a container for us, and what it says of it.

use containerd_client::services::v1::Container;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use prost_types::Any;
use serde::{Deserialize, Serialize};

use crate::runtime::record::Record;
use crate::runtime::{ContainerId, ContainerInfo, ContainerState, ExitStatus, Pid};

/// Label of a container by which its name is found.
pub(super) const LABEL_NAME: &str = "ai.backend.container-name";
/// Key and type of our record in a container.
const RECORD: &str = "ai.backend.container/1";
/// Most bytes of a label's key and value together.
const LABEL_SIZE: usize = 4096;

/// The record of a container, as an extension of containerd's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(flatten)]
    pub record: Record,
    /// Config digest of the image.
    pub image_id: String,
}

impl Kept {
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
        let labels = self.record.labels.iter().filter(fits);
        container.labels = labels
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let name = self.record.name.clone();
        container.labels.insert(LABEL_NAME.to_owned(), name);
    }
}

/// What is known of a container by its record and its task.
pub(super) fn info(
    record: Record,
    id: ContainerId,
    task: Option<&Process>,
    exit: Option<ExitStatus>,
) -> ContainerInfo {
    let state = match (task.map(Process::status), exit) {
        (_, Some(_)) | (None | Some(TaskStatus::Stopped), _) => ContainerState::Stopped,
        (Some(TaskStatus::Created), None) => ContainerState::Created,
        (Some(_), None) => ContainerState::Running,
    };
    let pid = task.and_then(|task| Pid::try_from(task.pid).ok());
    record.info(id, state, pid, exit)
}
