//! A node with a containerd of its own.

use std::process::Command;

use backendai_agent::backends::EngineConfig;

use crate::daemons::Kind;
use crate::node::{Node, printed};

impl Node {
    /// `None`, and the reason is said, on a machine without containerd.
    pub async fn new() -> Option<Self> {
        Self::with(|_| {}).await
    }

    /// With other settings of the engine.
    pub async fn with(change: impl FnOnce(&mut EngineConfig)) -> Option<Self> {
        Self::start(Kind::Containerd, &[], change).await
    }

    /// What containerd's own client prints, in our namespace.
    pub fn ctr(&self, args: &[&str]) -> String {
        let mut ctr = Command::new("ctr");
        ctr.args(["-n", "backendai", "-a"])
            .arg(self.daemon.socket())
            .args(args);
        printed(ctr)
    }
}
