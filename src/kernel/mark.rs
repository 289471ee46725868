//! Whose a scratch folder is: the folder of all of them may be shared with other agents.

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
    let Some(folder) = config.parent() else {
        return false;
    };
    let owner = xattr::get(folder, ATTRIBUTE).ok().flatten();
    owner.as_deref() == Some(agent.as_bytes())
}
