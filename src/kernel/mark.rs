//! Whose a scratch folder is: the folder of all of them may be shared with other agents.

use std::path::Path;

use super::scratch::Scratch;

/// Attribute of a scratch folder that names its agent.
const ATTRIBUTE: &str = "user.backendai.agent";

/// Notes on a scratch folder that it is this agent's. Where the file system takes no attributes, a kernel that
/// vanishes together with its container is not reported after the agent's restart.
pub fn set(scratch: &Scratch, agent: &str) {
    if let Some(folder) = scratch.config().parent()
        && let Err(error) = xattr::set(folder, ATTRIBUTE, agent.as_bytes())
    {
        tracing::debug!(folder = %folder.display(), "cannot mark the folder as ours: {error}");
    }
}

/// Whether it is this agent's.
#[must_use]
pub fn is_ours(scratch: &Scratch, agent: &str) -> bool {
    let config = scratch.config();
    config.parent().and_then(agent_of).as_deref() == Some(agent)
}

/// The agent that a scratch folder belongs to, where it is noted.
#[must_use]
pub fn agent_of(folder: &Path) -> Option<String> {
    let agent = xattr::get(folder, ATTRIBUTE).ok().flatten()?;
    String::from_utf8(agent).ok()
}
