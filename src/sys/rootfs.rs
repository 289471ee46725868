//! The root file system of a container: an overlay in a mount namespace of its parent's own, so that Linux unmounts it
//! when the last process is gone, whatever becomes of the agent.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
    move_mount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::userns;

/// Leaves the host's mount namespace; what the host mounts later still appears, what we mount does not show there.
///
/// # Errors
/// When Linux refuses.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: only CLONE_FILES makes unshare unsafe, by taking descriptors away from other code of this process.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let down = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", down)?)
}

/// Mounts an overlay of `lowers` (topmost first) with `state`'s folders `upper` and `work` on `target`.
///
/// # Errors
/// When Linux refuses.
pub fn mount_overlay(lowers: &[PathBuf], state: &Path, target: &Path) -> io::Result<()> {
    match by_fsopen(lowers, state, target) {
        // Linux before 6.5 does not know `lowerdir+`.
        Err(Errno::INVAL | Errno::NOSYS) => Ok(by_mount(lowers, state, target)?),
        other => Ok(other?),
    }
}

fn by_fsopen(lowers: &[PathBuf], state: &Path, target: &Path) -> Result<(), Errno> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in lowers {
        fsconfig_set_string(fs.as_fd(), "lowerdir+", lower)?;
    }
    fsconfig_set_string(fs.as_fd(), "upperdir", state.join("upper"))?;
    fsconfig_set_string(fs.as_fd(), "workdir", state.join("work"))?;
    // A container's root is never mounted again, so nothing in it need reach the disk in time.
    fsconfig_set_flag(fs.as_fd(), "volatile")?;
    if userns::inside() {
        // The attributes that root of the machine would use are not for root in here.
        fsconfig_set_flag(fs.as_fd(), "userxattr")?;
    }
    fsconfig_create(fs.as_fd())?;
    let tree = fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        tree.as_fd(),
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn by_mount(lowers: &[PathBuf], state: &Path, target: &Path) -> Result<(), Errno> {
    let quote = |path: &Path| {
        let text = path.to_string_lossy().into_owned();
        text.replace('\\', "\\\\")
            .replace(':', "\\:")
            .replace(',', "\\,")
    };
    let lowers: Vec<_> = lowers.iter().map(|lower| quote(lower)).collect();
    let state = quote(state);
    let attributes = if userns::inside() { ",userxattr" } else { "" };
    let data = format!(
        "lowerdir={},upperdir={state}/upper,workdir={state}/work{attributes}",
        lowers.join(":")
    );
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        data.as_c_str(),
    )
}

/// Opens the folder `inside` of a root, making what is missing; no link leads out of the root.
///
/// # Errors
/// When Linux refuses.
pub fn make_folder(root: &Path, inside: &Path) -> io::Result<OwnedFd> {
    let root = open_root(root)?;
    let mut done = PathBuf::from(".");
    for part in inside.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let parent = open_in(&root, &done)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => done.push(name),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(open_in(&root, &done)?)
}

/// Puts a file with this text into a root, instead of whatever had its name.
///
/// # Errors
/// When Linux refuses.
pub fn put_file(root: &Path, inside: &Path, text: &str) -> io::Result<()> {
    let name = inside.file_name().ok_or(Errno::INVAL)?;
    let folder = make_folder(root, inside.parent().unwrap_or(Path::new("/")))?;
    match unlinkat(&folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o644))?;
    File::from(file).write_all(text.as_bytes())
}

fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn open_in(root: &OwnedFd, inside: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(
        root,
        inside,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}
