//! User namespaces: in which one this process is, and the ways into a new one and another one.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Whether this process is in a user namespace other than the machine's own: root in there is no root of the machine.
#[must_use]
pub fn inside() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_whole(&map))
}

/// The machine's own namespace maps every number to itself.
fn is_whole(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Moves this process, which must have one thread, into a new user namespace without any user yet, and into a mount
/// namespace of its own.
///
/// # Errors
/// When Linux refuses.
pub fn unshare() -> io::Result<()> {
    // SAFETY: only CLONE_FILES makes unshare unsafe, by taking descriptors away from other code of this process.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?)
}

/// Moves this process, which must have one thread, into a user namespace and a mount namespace that belongs to it. Its
/// folder stays the one of the same path.
///
/// # Errors
/// When Linux refuses, or the folder is not there in the mount namespace.
pub fn enter(user: &File, mounts: &File) -> io::Result<()> {
    let folder = std::env::current_dir();
    move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
    match folder {
        Ok(folder) => Ok(rustix::process::chdir(&folder)?),
        // It has been removed: no path is relative to it.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_namespace_is_told_from_others() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("0 1000 1\n1 100000 65536\n"));
        assert!(!is_whole("0 0 65536\n"));
        assert!(!is_whole(""));
    }
}
