//! A node with a dockerd of its own.

use std::process::Command;
use std::sync::Arc;

use backendai_agent::backends::Adoption;
use backendai_agent::runtime::ContainerRuntime;

use crate::daemons::Kind;
use crate::node::{Node, printed};

impl Node {
    /// With these options of dockerd; `None`, and the reason is said, on a machine without Docker.
    pub async fn new(options: &[&str]) -> Option<Self> {
        Self::start(Kind::Docker, options, |_| {}).await
    }

    /// The engine once more, as an agent opens it that takes over another's containers.
    pub async fn adopting(&self, agent: &str) -> Arc<dyn ContainerRuntime> {
        let adoption = Adoption {
            agent_id: agent.to_owned(),
            scratch_root: self.dir.path().join("scratch"),
        };
        let opened = self.another(|config| config.adoption = Some(adoption));
        opened.await.expect("the engine opens")
    }

    /// What a command of Docker's own prints.
    pub fn docker(&self, args: &[&str]) -> String {
        let mut docker = Command::new("docker");
        docker.args(["-H", &self.daemon.endpoint()]).args(args);
        printed(docker)
    }
}
