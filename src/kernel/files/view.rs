//! A kernel's work folder as its programs see it, so that what is mounted below it is seen too, and opened so that no
//! path and no symbolic link leads out of it (19.03 lets both out).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::kernel::live::Live;
use crate::runtime::Pid;

/// Where the work folder is inside the container.
pub const WORK: &str = "/home/work";
/// How folders are opened that are only gone through.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Opening is tried again when something was renamed meanwhile.
const TRIES: usize = 16;

/// An opened work folder.
#[derive(Debug)]
pub struct View {
    /// The container's root, while it runs.
    root: Option<OwnedFd>,
    /// The work folder.
    pub work: OwnedFd,
}

/// A path below the work folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkPath(PathBuf);

impl WorkPath {
    /// Reads a path that is relative to the work folder or absolute; `None` when it leads out of it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut normal = PathBuf::new();
        for part in Path::new(WORK).join(text).components() {
            match part {
                Component::Normal(name) => normal.push(name),
                Component::ParentDir => {
                    normal.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        let below = Path::new("/").join(normal);
        let below = below.strip_prefix(WORK).ok()?;
        (!text.contains('\0')).then(|| Self(below.to_owned()))
    }

    /// The path as seen inside the container.
    #[must_use]
    pub fn inside(&self) -> String {
        if self.0.as_os_str().is_empty() {
            return WORK.to_owned();
        }
        format!("{WORK}/{}", self.0.display())
    }

    /// The path relative to the work folder; empty for the folder itself.
    #[must_use]
    pub fn relative(&self) -> &Path {
        &self.0
    }
}

impl View {
    /// Opens the work folder of a running container, or of its scratch folder where no process shows it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open(live: &Live) -> io::Result<Self> {
        let scratch = openat(CWD, live.scratch.work(), FOLDER, Mode::empty())?;
        Ok(match live.pid.and_then(|pid| Self::inside(pid, &scratch)) {
            Some(view) => view,
            None => Self {
                root: None,
                work: scratch,
            },
        })
    }

    /// The work folder as a process sees it. The process may have ended and its number be another's: what counts is
    /// that its work folder is the kernel's.
    fn inside(pid: Pid, scratch: &OwnedFd) -> Option<Self> {
        let root = openat(CWD, format!("/proc/{pid}/root"), FOLDER, Mode::empty()).ok()?;
        let work = resolve(&root, Path::new(WORK), FOLDER, ResolveFlags::IN_ROOT).ok()?;
        let (seen, wanted) = (fstat(&work).ok()?, fstat(scratch).ok()?);
        let same = (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino);
        let root = Some(root);
        same.then_some(Self { root, work })
    }

    /// Opens what is at a path for looking at it; also through absolute links, as a program inside would, if they stay
    /// below the work folder.
    ///
    /// # Errors
    /// `NotFound` when it is not there or outside.
    pub fn find(&self, path: &WorkPath) -> io::Result<(OwnedFd, WorkPath)> {
        let Some(root) = &self.root else {
            let relative = dot_if_empty(path.relative());
            let found = resolve(&self.work, relative, OFlags::PATH, ResolveFlags::BENEATH)?;
            let real = self.real(&found)?;
            return Ok((found, real));
        };
        let inside = path.inside();
        let found = resolve(
            root,
            Path::new(&inside),
            OFlags::PATH,
            ResolveFlags::IN_ROOT,
        )?;
        let real = self.real(&found)?;
        Ok((found, real))
    }

    /// Where an opened file really is, below the work folder.
    fn real(&self, file: &OwnedFd) -> io::Result<WorkPath> {
        let below = path_of(file)?;
        let below = below.strip_prefix(path_of(&self.work)?);
        let below = below.map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(WorkPath(below.to_owned()))
    }
}

/// Opens a path below a folder under a rule, and never through `/proc`'s magic links.
///
/// # Errors
/// Those of the file system.
pub fn resolve(
    folder: &OwnedFd,
    path: &Path,
    flags: OFlags,
    rule: ResolveFlags,
) -> io::Result<OwnedFd> {
    resolve_mode(folder, path, flags, Mode::empty(), rule)
}

/// As [`resolve`], for files that may have to be made.
///
/// # Errors
/// Those of the file system.
pub fn resolve_mode(
    folder: &OwnedFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    rule: ResolveFlags,
) -> io::Result<OwnedFd> {
    let (flags, rule) = (flags | OFlags::CLOEXEC, rule | ResolveFlags::NO_MAGICLINKS);
    for _ in 0..TRIES {
        match openat2(folder, path, flags, mode, rule) {
            Err(Errno::AGAIN) => {}
            other => return other.map_err(Into::into),
        }
    }
    Err(Errno::AGAIN.into())
}

/// `.` for the empty path, which the system calls do not take.
#[must_use]
pub fn dot_if_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Opens a file again that was opened for looking only.
///
/// # Errors
/// Those of the file system.
pub fn reopen(file: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_work_folder_or_absolute_below_it() {
        for (text, inside) in [
            (".", "/home/work"),
            ("", "/home/work"),
            ("a/b", "/home/work/a/b"),
            ("/home/work/a", "/home/work/a"),
            ("a/../b", "/home/work/b"),
            ("../work/b", "/home/work/b"),
        ] {
            let path = WorkPath::parse(text).map(|path| path.inside());
            assert_eq!(path.as_deref(), Some(inside), "{text}");
        }
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for text in [
            "..",
            "../x",
            "/etc/passwd",
            "a/../../x",
            "/home/workshop",
            "a\0b",
        ] {
            assert_eq!(WorkPath::parse(text), None, "{text}");
        }
    }
}
