//! Whose code a run's code is: files that it makes in mounted folders should belong to the person, not to root.

use std::os::unix::fs::MetadataExt;

/// The runner's own choice where nobody is known.
const NOBODY_KNOWN: u32 = 9001;

/// The uid of the person who runs this.
pub(super) fn find() -> u32 {
    #[allow(
        clippy::disallowed_methods,
        reason = "sudo's word on its caller, which is no setting of ours"
    )]
    let sudo = std::env::var("SUDO_UID").ok();
    let folder = std::fs::metadata(".").ok().map(|it| it.uid());
    choose(rustix::process::geteuid().as_raw(), sudo.as_deref(), folder)
}

/// From the process's own uid, sudo's caller and the current folder's owner; root means that nobody is known.
fn choose(own: u32, sudo: Option<&str>, folder: Option<u32>) -> u32 {
    let sudo = sudo.and_then(|text| text.parse().ok());
    let all = [Some(own), sudo, folder];
    let person = all.into_iter().flatten().find(|uid| *uid > 0);
    person.unwrap_or(NOBODY_KNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_person_is_the_first_who_is_not_root() {
        assert_eq!(choose(1000, Some("5"), Some(6)), 1000);
        assert_eq!(choose(0, Some("5"), Some(6)), 5);
        assert_eq!(choose(0, Some("0"), Some(6)), 6);
        assert_eq!(choose(0, Some("x"), Some(6)), 6);
        assert_eq!(choose(0, None, Some(0)), 9001);
        assert_eq!(choose(0, None, None), 9001);
    }
}
