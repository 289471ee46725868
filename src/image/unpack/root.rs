//! The folder that an archive is unpacked into: every path is resolved below it by Linux itself, whatever links say.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use crate::image::ImageError;

/// Folders below folders that one name may have.
const MAX_DEPTH: usize = 512;

/// An open root.
#[derive(Debug)]
pub(super) struct Root {
    fd: Rc<OwnedFd>,
    /// The last parent; entries of one folder stand together in an archive.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

/// A parent folder and a name in it that is a plain file name.
pub(super) struct Place {
    /// The open folder.
    pub(super) parent: Rc<OwnedFd>,
    /// The name in it.
    pub(super) name: OsString,
}

impl Root {
    /// Opens the folder.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| ImageError::io("open", path, e))?;
        Ok(Self {
            fd: Rc::new(fd),
            last: None,
        })
    }

    /// Forgets what it knows of folders, because one was replaced.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// The root itself.
    pub(super) fn fd(&self) -> impl AsFd + '_ {
        &*self.fd
    }

    /// Where an entry belongs; its parent folders are made if they are missing. `None` is the root itself.
    pub(super) fn place(&mut self, path: &Path) -> Result<Option<Place>, ImageError> {
        let path = clean(path)?;
        let Some(name) = path.file_name() else {
            return Ok(None);
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.folder(parent_path, true)?;
        Ok(Some(Place {
            parent,
            name: name.to_owned(),
        }))
    }

    /// Where an existing entry is; an error of Linux if its parent is missing.
    pub(super) fn find(&mut self, path: &Path) -> Result<Option<Place>, ImageError> {
        let path = clean(path)?;
        let Some(name) = path.file_name() else {
            return Ok(None);
        };
        let parent = self.folder(path.parent().unwrap_or(Path::new("")), false)?;
        Ok(Some(Place {
            parent,
            name: name.to_owned(),
        }))
    }

    fn folder(&mut self, path: &Path, make: bool) -> Result<Rc<OwnedFd>, ImageError> {
        if path.as_os_str().is_empty() {
            return Ok(Rc::clone(&self.fd));
        }
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.resolve(path) {
            Err(Errno::NOENT) if make => self.make(path),
            other => other,
        };
        let fd = Rc::new(fd.map_err(|errno| match errno {
            // Linux's words for a path that leads out or into a loop, or through what is no folder.
            Errno::XDEV | Errno::LOOP | Errno::NOTDIR | Errno::EXIST => {
                ImageError::PathEscapes(path.to_owned())
            }
            errno => ImageError::io("open folder of the archive", path, errno),
        })?);
        self.last = Some((path.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn resolve(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&*self.fd, path, flags, Mode::empty(), inside) {
                // Something was renamed elsewhere while `..` of a link was resolved.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Makes the folders of a path that are missing, each below what the path before it resolves to.
    fn make(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut so_far = PathBuf::new();
        let mut fd = None;
        for component in path.components() {
            so_far.push(component);
            fd = Some(match self.resolve(&so_far) {
                Err(Errno::NOENT) => {
                    let parent: &OwnedFd = fd.as_ref().unwrap_or(&self.fd);
                    // A link to nothing is there already and is not followed: EEXIST.
                    mkdirat(parent, component.as_os_str(), Mode::from_raw_mode(0o755))?;
                    self.resolve(&so_far)?
                }
                other => other?,
            });
        }
        fd.ok_or(Errno::NOENT)
    }
}

/// The path without `.`; absolute paths and those with `..` are refused, as is what no file system takes.
fn clean(path: &Path) -> Result<PathBuf, ImageError> {
    let mut clean = PathBuf::new();
    let mut depth = 0;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                depth += 1;
                if name.as_encoded_bytes().contains(&0) || depth > MAX_DEPTH || name.len() > 255 {
                    return Err(ImageError::malformed(
                        "an archive entry",
                        format!("its name is no path: {}", shorten(path.as_os_str())),
                    ));
                }
                clean.push(name);
            }
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(ImageError::PathEscapes(path.to_owned()));
            }
        }
    }
    Ok(clean)
}

fn shorten(text: &OsStr) -> String {
    text.to_string_lossy().chars().take(80).collect()
}
