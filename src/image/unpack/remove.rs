//! Deletes a tree of any depth and with any modes, for archives choose both.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Deletes the folder and all in it. Symbolic links are deleted, not followed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Too deep for a descriptor on each level, or folders that their owner may not enter.
        Err(_) => flatten(path),
    }
}

/// Likewise for a folder in an open folder.
pub(super) fn remove_tree_at(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let path = Path::new("/proc/self/fd")
        .join(parent.as_raw_fd().to_string())
        .join(name);
    remove_tree(&path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Moves folders of folders to the top until there are none, so that depth does not matter.
fn flatten(path: &Path) -> io::Result<()> {
    let mut serial = 0_u64;
    loop {
        let folders = clear(CWD, &CString::new(path.as_os_str().as_encoded_bytes())?)?;
        if folders.is_empty() {
            return std::fs::remove_dir(path);
        }
        let top = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for folder in folders {
            for inner in clear(&top, &folder)? {
                let sub = openat(
                    &top,
                    &folder,
                    OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                loop {
                    serial += 1;
                    match renameat(&sub, &inner, &top, format!("{serial:x}")) {
                        // The name is taken by a folder that was there before.
                        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                        other => break other?,
                    }
                }
            }
            unlinkat(&top, &folder, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Deletes all in a folder but the folders that are not empty, whose names are returned.
fn clear(at: impl std::os::fd::AsFd, name: &CStr) -> io::Result<Vec<CString>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(&at, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            chmodat(&at, name, Mode::RWXU, AtFlags::empty())?;
            openat(&at, name, flags, Mode::empty())?
        }
        other => other?,
    };
    rustix::fs::fchmod(&fd, Mode::RWXU)?;
    let entries: Vec<_> = Dir::read_from(&fd)?.collect::<Result<_, _>>()?;
    let mut folders = Vec::new();
    for entry in entries {
        let inner = entry.file_name();
        if matches!(inner.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            unlinkat(&fd, inner, AtFlags::empty())?;
            continue;
        }
        match unlinkat(&fd, inner, AtFlags::REMOVEDIR) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                chmodat(&fd, inner, Mode::RWXU, AtFlags::empty())?;
                folders.push(inner.to_owned());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_deleted() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().join("tree");
        std::fs::create_dir(&root).expect("a folder");
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(&root, flags, Mode::empty()).expect("it is there");
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("a folder");
            at = openat(&at, "d", flags, Mode::empty()).expect("it is there");
        }
        drop(at);
        flatten(&root).expect("it can be deleted");
        assert!(!root.exists());
    }
}
