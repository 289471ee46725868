//! Whether this process may do what an engine without a daemon needs.

use caps::{CapSet, Capability};

/// What making containers takes: mounts and namespaces, links and rules, owners of files, device nodes, other users'
/// processes.
const NEEDED: [Capability; 9] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_KILL,
];

/// This process lacks capabilities.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("making containers needs {}; run as root, or in a container with these capabilities", .0.join(", "))]
pub struct Lacking(pub Vec<String>);

/// Checks that this process may make containers.
///
/// # Errors
/// [`Lacking`] with every capability that is not effective.
pub fn check() -> Result<(), Lacking> {
    lacking(|capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false))
}

/// Whether this process may raise hard limits, which root of a user namespace may not.
#[must_use]
pub fn may_raise_limits() -> bool {
    !super::userns::inside()
        && caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap_or(false)
}

fn lacking(has: impl Fn(Capability) -> bool) -> Result<(), Lacking> {
    let lacking: Vec<String> = NEEDED
        .into_iter()
        .filter(|one| !has(*one))
        .map(|one| one.to_string())
        .collect();
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(Lacking(lacking))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named_with_the_remedy() {
        assert_eq!(lacking(|_| true), Ok(()));
        let text = lacking(|one| one != Capability::CAP_NET_ADMIN)
            .expect_err("one is lacking")
            .to_string();
        assert!(
            text.contains("CAP_NET_ADMIN") && !text.contains("CAP_CHOWN") && text.contains("root"),
            "{text}"
        );
    }
}
