//! A folder that is filled from an untrusted archive: every step starts at the folder's descriptor, symbolic links
//! in parents are followed as if the folder were `/`, and the last part of a path is never followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, mkdirat, openat, openat2, statat,
    unlinkat,
};
use rustix::io::Errno;

/// Folder descriptors only serve as starting points.
const FOLDER: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// The folder, and the parent that was used last: archives go folder by folder.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    last: Option<(PathBuf, OwnedFd)>,
}

impl Tree {
    /// A tree in an existing folder.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(root, FOLDER, Mode::empty())?;
        Ok(Self { root, last: None })
    }

    /// The folder `path` in the tree, made with its parents where it is absent.
    pub(super) fn folder(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let fd = match self.resolve(path) {
                Err(Errno::NOENT) => self.make_folders(path)?,
                other => other?,
            };
            self.last = Some((path.to_owned(), fd));
        }
        let (_, fd) = self.last.as_ref().expect("set above");
        Ok(fd.as_fd())
    }

    /// The folder that a path is in, which must be there, and the path's last part; `None` for the root.
    pub(super) fn parent_of(&mut self, path: &Path) -> io::Result<Option<(OwnedFd, OsString)>> {
        let Some(name) = path.file_name() else {
            return Ok(None);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let fd = if parent.as_os_str().is_empty() {
            self.root.try_clone()?
        } else {
            self.resolve(parent)?
        };
        Ok(Some((fd, name.to_owned())))
    }

    /// Forgets the last parent: a folder or link that it went through has been replaced.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    fn resolve(&self, path: &Path) -> Result<OwnedFd, Errno> {
        // NOFOLLOW would refuse a parent that is a link; O_PATH of a folder needs no guard beyond IN_ROOT.
        let flags = FOLDER.difference(OFlags::NOFOLLOW);
        openat2(&self.root, path, flags, Mode::empty(), RESOLVE)
    }

    fn make_folders(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut so_far = PathBuf::new();
        let mut at = self.root.try_clone()?;
        for part in path.components() {
            so_far.push(part);
            at = match self.resolve(&so_far) {
                Err(Errno::NOENT) => {
                    mkdirat(&at, part.as_os_str(), Mode::from_raw_mode(0o755))?;
                    openat(&at, part.as_os_str(), FOLDER, Mode::empty())?
                }
                other => other?,
            };
        }
        Ok(at)
    }
}

/// What is at `name`; links are not followed.
pub(super) fn look(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Stat>> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The kind of file.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is the overlay's mark of a removed file: a character device 0/0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A folder opened for reading and for its attributes.
pub(super) fn open_folder(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty())?)
}

/// A new file.
pub(super) fn create_file(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(
        at,
        name,
        flags,
        Mode::from_raw_mode(0o600),
    )?))
}

/// Removes a file, or a folder with all that is in it, never through a link.
pub(super) fn remove_all(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(at, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return Ok(other?),
    }
    let mut open = vec![(OsString::new(), open_folder(at, name)?)];
    // Depth first with a stack of open folders, as deep as the archive's own paths (PATH_MAX / 2 at most).
    while let Some((_, folder)) = open.last() {
        match remove_files(folder)? {
            Some(child) => {
                let fd = open_folder(folder.as_fd(), &child)?;
                open.push((child, fd));
            }
            None => {
                let (name_here, _) = open.pop().expect("seen above");
                let (parent, name_here) = match open.last() {
                    Some((_, parent)) => (parent.as_fd(), name_here.as_os_str()),
                    None => (at, name),
                };
                unlinkat(parent, name_here, AtFlags::REMOVEDIR)?;
            }
        }
    }
    Ok(())
}

/// Removes all that is in a folder, never through a link.
pub(super) fn remove_content(folder: &OwnedFd) -> io::Result<()> {
    while let Some(child) = remove_files(folder)? {
        remove_all(folder.as_fd(), &child)?;
    }
    Ok(())
}

/// Removes what is no folder; returns the first folder it meets.
fn remove_files(folder: &OwnedFd) -> io::Result<Option<OsString>> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => return Ok(Some(name.to_owned())),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
