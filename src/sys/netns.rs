//! Network namespaces kept by a bind mount, as `ip netns` does it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::net::{AddressFamily, SocketType};
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

/// Whether a network namespace is bound to `path`.
#[must_use]
pub fn is_bound(path: &Path) -> bool {
    /// The file system of namespaces (linux/magic.h).
    const NSFS: u64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|it| u64::try_from(it.f_type) == Ok(NSFS))
}

/// Moves the calling thread into a new network namespace with its loopback interface up, bound to `path`, as [`create`].
///
/// # Errors
/// As [`create`].
pub fn create_with_loopback(path: &Path) -> io::Result<()> {
    create(path)?;
    raise(c"lo")
}

/// Brings the loopback interface up in the network namespace of a process, unless that is the caller's own. A thread that
/// ends goes there: root of a user namespace may not come back to a network namespace of the machine.
///
/// # Errors
/// When there is no such process or Linux refuses.
pub fn raise_loopback(pid: i32) -> io::Result<()> {
    let (own, other) = ("/proc/thread-self/ns/net", format!("/proc/{pid}/ns/net"));
    if fs::read_link(own)? == fs::read_link(&other)? {
        return Ok(());
    }
    let raise = || {
        enter(Path::new(&other))?;
        raise(c"lo")
    };
    thread::scope(|scope| scope.spawn(raise).join()).unwrap_or_else(|_| {
        Err(io::Error::other(
            "bringing the loopback interface up panicked",
        ))
    })
}

/// Brings an interface of the calling thread's namespace up.
fn raise(name: &CStr) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: an `ifreq` is plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name[..room].iter_mut().zip(name.to_bytes()) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    let ask = |number, request: &mut libc::ifreq| {
        // SAFETY: both calls take a pointer to an `ifreq`, which lives until they return.
        match unsafe { libc::ioctl(socket.as_raw_fd(), number, request) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    ask(libc::SIOCGIFFLAGS, &mut request)?;
    let up = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: the call above has filled the flags.
    unsafe { request.ifr_ifru.ifru_flags |= up };
    ask(libc::SIOCSIFFLAGS, &mut request)
}
