//! Programs of the host: where they are, and one that processes in a container may be started from without being able
//! to write to it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, access};
use rustix::mount::{OpenTreeFlags, open_tree};

/// Where daemons look for programs: they have the system's search path, whatever ours is.
pub const SYSTEM_PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The first program of this name in some folders.
pub fn find(name: &str, folders: impl IntoIterator<Item = impl AsRef<Path>>) -> Option<PathBuf> {
    let runs = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    let mut paths = folders.into_iter().map(|folder| folder.as_ref().join(name));
    paths.find(|path| runs(path))
}

/// A read-only view of a program's file.
///
/// A process that enters a container is for a moment reachable there as `/proc/<pid>/exe`, and that link leads to the
/// host's file (CVE-2019-5736). Started from this view, the link leads to a read-only mount that is nowhere in any
/// tree, so not even root in the container can write through it.
#[derive(Debug)]
pub struct ReadOnlyProgram(OwnedFd);

impl ReadOnlyProgram {
    /// Makes the view of the file at `path`.
    ///
    /// # Errors
    /// When the file is not there, or this process may not mount.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, path, flags)?;
        make_read_only(&mount)?;
        Ok(Self(mount))
    }

    /// The path to start it by, from this process or a child that has just been forked.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

fn make_read_only(mount: &OwnedFd) -> io::Result<()> {
    /// `struct mount_attr` of linux/mount.h, in its first version.
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, the attributes are a valid struct of the size given, and both outlive the call,
    // which only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_read_through_its_view_but_not_written() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("program");
        std::fs::write(&file, "text").expect("write");
        let view = match ReadOnlyProgram::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            other => other.expect("open"),
        };
        assert_eq!(std::fs::read(view.path()).expect("read"), b"text");
        let error = std::fs::write(view.path(), "other").expect_err("read-only");
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        std::fs::write(&file, "new").expect("the file itself stays writable");
    }
}
