//! Network namespaces kept by a bind mount, as `ip netns` does it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Moves the calling thread into a new network namespace and binds it to `path`, which must not be there yet. The
/// thread must be one that ends soon: whatever runs on it later would be in the namespace too.
///
/// # Errors
/// When a step fails; nothing is left at `path` then, but the thread may be in the new namespace.
pub fn create(path: &Path) -> io::Result<File> {
    File::create_new(path)?;
    let created = enter_new().and_then(|file| {
        mount_bind("/proc/thread-self/ns/net", path)?;
        Ok(file)
    });
    if created.is_err() {
        // The first error is the one to tell.
        let _ = remove(path);
    }
    created
}

/// Unbinds a namespace and removes its file. The namespace ends with its last process. Absent is done.
///
/// # Errors
/// When Linux refuses.
pub fn remove(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH) {
        // Not a mount point: it was unbound, or never bound.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Moves the calling thread into the namespace bound to `path`. The thread must be one that ends soon.
///
/// # Errors
/// When there is no namespace at `path` or Linux refuses.
pub fn enter(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(move_into_link_name_space(
        file.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Moves the calling thread into a new network namespace that ends with it and its children. The thread must be one
/// that ends soon.
///
/// # Errors
/// When Linux refuses.
pub fn enter_new() -> io::Result<File> {
    // SAFETY: only CLONE_FILES makes unshare unsafe, by taking descriptors away from other code of this thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    File::open("/proc/thread-self/ns/net")
}
