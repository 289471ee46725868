//! Who the process is. Called before anything else runs, in a process with one thread.

use std::io;

use super::check;

/// Whether the process runs as root (of its user namespace).
pub(crate) fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Becomes this user for good: supplementary groups, group, user; then lets others of the same user look into `/proc/self`
/// again, which Linux closes after such a switch (PR_SET_DUMPABLE).
///
/// # Errors
/// Linux refuses one of the switches; the process must not go on then.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is valid for its length.
    let result = check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) });
    // A user namespace without permission for setgroups has no foreign groups to drop either.
    if let Err(error) = result
        && !groups_are_denied()
    {
        return Err(error);
    }
    // SAFETY: no pointers.
    check(unsafe { libc::setgid(gid) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setuid(uid) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }).map(|_| ())
}

fn groups_are_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}
