//! Containers of the Python agent 19.03, taken for ours: `kernel.<image>.<kernel id>` without labels of the agent's, a
//! container `kernel-env.<kernel id>` beside each for its volume (19.03 agent, `scan_running_containers`).
//!
//! Other agents may use the same engine. A container is ours when the kernel's scratch folder below our scratch root
//! names it. The agent's socket that is shown inside tells nothing: its name is made from the place where that agent's
//! program is installed.

use std::fs;

use crate::backends::Adoption;
use crate::runtime::{ContainerInfo, LABEL_AGENT_ID, LABEL_KERNEL_ID, LABEL_OWNER, OWNER};

impl Adoption {
    /// Adds the labels that the container would have if this agent had made it, where it is taken for ours. Those of the
    /// image are there: Docker copies them.
    pub(super) fn label(&self, info: &mut ContainerInfo) {
        let Some(kernel) = self.adopted(info) else {
            return;
        };
        let own = [
            (LABEL_KERNEL_ID, kernel),
            (LABEL_AGENT_ID, &self.agent_id),
            (LABEL_OWNER, OWNER),
        ];
        let own = own.into_iter().filter(|(_, value)| !value.is_empty());
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let own: Vec<_> = own.collect();
        info.labels.extend(own);
    }

    /// Name of the container beside one that is taken for ours, which goes with it. `info` is without the labels that
    /// [`Self::label`] adds.
    pub(super) fn beside(&self, info: &ContainerInfo) -> Option<String> {
        Some(format!("kernel-env.{}", self.adopted(info)?))
    }

    /// The kernel of a container that the Python agent made in our place.
    fn adopted<'a>(&self, info: &'a ContainerInfo) -> Option<&'a str> {
        if info.labels.contains_key(LABEL_OWNER) {
            return None;
        }
        let kernel = kernel(&info.name)?;
        let folder = self.scratch_root.join(kernel);
        let text = fs::read_to_string(folder.join("config/resource.txt")).ok()?;
        let named = text.lines().find_map(|line| line.strip_prefix("CID="))?;
        (named.trim() == info.id.0).then_some(kernel)
    }
}

/// The kernel that a container's name tells.
pub(super) fn kernel(name: &str) -> Option<&str> {
    let (image, kernel) = name.strip_prefix("kernel.")?.rsplit_once('.')?;
    let is_id = kernel.len() == 36 && uuid::Uuid::try_parse(kernel).is_ok();
    (is_id && !image.is_empty()).then_some(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{ContainerId, ContainerState};

    const KERNEL: &str = "11111111-2222-3333-4444-555555555555";
    const ID: &str = "c88fe72fe87bb88a62d2eff94ace9b682070dfbf3248e6bbfe28c9bb7ef743e5";

    struct Node {
        folder: tempfile::TempDir,
        adoption: Adoption,
    }

    impl Node {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let adoption = Adoption {
                agent_id: "i-node".to_owned(),
                scratch_root: folder.path().to_owned(),
            };
            Self { folder, adoption }
        }

        fn scratch_names(&self, id: &str) {
            let config = self.folder.path().join(KERNEL).join("config");
            fs::create_dir_all(&config).expect("a folder");
            let text = format!("CID={id}\nSCRATCH_SIZE=0m\n");
            fs::write(config.join("resource.txt"), text).expect("a file");
        }
    }

    fn container() -> ContainerInfo {
        ContainerInfo {
            id: ContainerId(ID.to_owned()),
            name: format!("kernel.python.{KERNEL}"),
            image: "python".to_owned(),
            state: ContainerState::Running,
            labels: [("l".to_owned(), "v".to_owned())].into(),
            pid: None,
            cgroup: None,
            address: None,
            ports: Vec::new(),
            exit: None,
        }
    }

    #[test]
    fn a_container_that_its_scratch_folder_names_is_ours() {
        let node = Node::new();
        node.scratch_names(ID);
        let mut info = container();
        let beside = node.adoption.beside(&info);
        assert_eq!(beside, Some(format!("kernel-env.{KERNEL}")));
        node.adoption.label(&mut info);
        let own = [
            (LABEL_KERNEL_ID, KERNEL),
            (LABEL_AGENT_ID, "i-node"),
            (LABEL_OWNER, OWNER),
            ("l", "v"),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(info.labels, own.into());
    }

    #[test]
    fn one_without_a_folder_or_of_another_name_in_it_is_not() {
        let node = Node::new();
        assert_eq!(node.adoption.adopted(&container()), None);
        for id in ["None", "c88fe7"] {
            node.scratch_names(id);
            assert_eq!(node.adoption.adopted(&container()), None);
        }
    }

    #[test]
    fn one_that_this_agent_made_keeps_its_labels() {
        let node = Node::new();
        node.scratch_names(ID);
        let mut info = container();
        info.labels = [(LABEL_OWNER.to_owned(), OWNER.to_owned())].into();
        let before = info.clone();
        node.adoption.label(&mut info);
        assert_eq!(info, before);
        assert_eq!(node.adoption.beside(&info), None);
    }

    #[test]
    fn only_a_kernels_name_tells_a_kernel() {
        let dotted = format!("kernel.a.b.{KERNEL}");
        assert_eq!(kernel(&dotted), Some(KERNEL));
        for name in [
            format!("kernel-env.{KERNEL}"),
            format!("kernel.{KERNEL}"),
            "kernel.python.1".to_owned(),
            format!("mykernel.python.{KERNEL}"),
        ] {
            assert_eq!(kernel(&name), None, "{name}");
        }
    }
}
