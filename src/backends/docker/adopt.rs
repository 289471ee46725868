//! Containers of the Python agent 19.03, taken for ours: `kernel.<image>.<kernel id>` without labels of the agent's, a
//! container `kernel-env.<kernel id>` beside each for its volume (19.03 agent, `scan_running_containers`).
//!
//! Other agents may use the same dockerd. A container is ours when the kernel's scratch folder below our scratch root
//! names it. The agent's socket that is shown inside tells nothing: its name is made from the place where that agent's
//! program is installed.

use std::fs;

use bollard::models::ContainerInspectResponse;

use crate::backends::Adoption;
use crate::runtime::{ContainerInfo, LABEL_AGENT_ID, LABEL_KERNEL_ID, LABEL_OWNER, OWNER};

/// Tells which containers of the Python agent are ours.
#[derive(Debug)]
pub(super) struct Adopter(Adoption);

impl Adopter {
    pub(super) fn new(adoption: Adoption) -> Self {
        Self(adoption)
    }

    /// Adds the labels that the container would have if this agent had made it. Those of the image are there: dockerd
    /// copies them.
    pub(super) fn label(&self, raw: &ContainerInspectResponse, info: &mut ContainerInfo) {
        let Some(kernel) = self.adopted(raw) else {
            return;
        };
        let own = [
            (LABEL_KERNEL_ID, kernel),
            (LABEL_AGENT_ID, &self.0.agent_id),
            (LABEL_OWNER, OWNER),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        info.labels.extend(own);
    }

    /// The container beside an adopted one, which goes with it.
    pub(super) fn beside(&self, raw: &ContainerInspectResponse) -> Option<String> {
        Some(format!("kernel-env.{}", self.adopted(raw)?))
    }

    /// The kernel of a container that the Python agent made in our place.
    fn adopted<'a>(&self, raw: &'a ContainerInspectResponse) -> Option<&'a str> {
        let labels = raw
            .config
            .as_ref()
            .and_then(|config| config.labels.as_ref());
        if labels.is_some_and(|labels| labels.contains_key(LABEL_OWNER)) {
            return None;
        }
        let kernel = kernel(raw.name.as_deref()?)?;
        let folder = self.0.scratch_root.join(kernel);
        let text = fs::read_to_string(folder.join("config/resource.txt")).ok()?;
        let named = text.lines().find_map(|line| line.strip_prefix("CID="))?;
        (Some(named.trim()) == raw.id.as_deref()).then_some(kernel)
    }
}

/// The kernel that a container's name tells.
pub(super) fn kernel(name: &str) -> Option<&str> {
    let rest = name.trim_start_matches('/').strip_prefix("kernel.")?;
    let (image, kernel) = rest.rsplit_once('.')?;
    let is_id = kernel.len() == 36 && uuid::Uuid::try_parse(kernel).is_ok();
    (is_id && !image.is_empty()).then_some(kernel)
}

#[cfg(test)]
mod tests {
    use bollard::models::ContainerConfig;

    use super::*;

    const KERNEL: &str = "11111111-2222-3333-4444-555555555555";
    const ID: &str = "c88fe72fe87bb88a62d2eff94ace9b682070dfbf3248e6bbfe28c9bb7ef743e5";

    struct Node {
        folder: tempfile::TempDir,
        adopter: Adopter,
    }

    impl Node {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let adopter = Adopter::new(Adoption {
                agent_id: "i-node".to_owned(),
                scratch_root: folder.path().to_owned(),
            });
            Self { folder, adopter }
        }

        fn scratch_names(&self, id: &str) {
            let config = self.folder.path().join(KERNEL).join("config");
            fs::create_dir_all(&config).expect("a folder");
            let text = format!("CID={id}\nSCRATCH_SIZE=0m\n");
            fs::write(config.join("resource.txt"), text).expect("a file");
        }
    }

    fn container() -> ContainerInspectResponse {
        ContainerInspectResponse {
            id: Some(ID.to_owned()),
            name: Some(format!("/kernel.python.{KERNEL}")),
            config: Some(ContainerConfig::default()),
            ..ContainerInspectResponse::default()
        }
    }

    #[test]
    fn a_container_that_its_scratch_folder_names_is_ours() {
        let node = Node::new();
        node.scratch_names(ID);
        let raw = container();
        assert_eq!(node.adopter.adopted(&raw), Some(KERNEL));
        let beside = node.adopter.beside(&raw);
        assert_eq!(beside, Some(format!("kernel-env.{KERNEL}")));
    }

    #[test]
    fn one_without_a_folder_or_of_another_name_in_it_is_not() {
        let node = Node::new();
        assert_eq!(node.adopter.adopted(&container()), None);
        for id in ["None", "c88fe7"] {
            node.scratch_names(id);
            assert_eq!(node.adopter.adopted(&container()), None);
        }
    }

    #[test]
    fn one_that_this_agent_made_keeps_its_labels() {
        let node = Node::new();
        node.scratch_names(ID);
        let mut raw = container();
        let labels = [(LABEL_OWNER.to_owned(), OWNER.to_owned())].into();
        raw.config = Some(ContainerConfig {
            labels: Some(labels),
            ..ContainerConfig::default()
        });
        assert_eq!(node.adopter.adopted(&raw), None);
    }

    #[test]
    fn only_a_kernels_name_tells_a_kernel() {
        let named = format!("/kernel.python.{KERNEL}");
        assert_eq!(kernel(&named), Some(KERNEL));
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
