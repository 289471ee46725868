//! Makes the entries of an archive: files with owner, mode, time and attributes, links, devices, and overlay's forms of
//! whiteouts (a character device 0:0) and opaque folders (an attribute).

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use super::reader::{Entry, EntryKind};
use super::root::{Place, Root};
use super::{UnpackLimits, read_error};
use crate::image::ImageError;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks entry after entry.
pub(super) struct Applier {
    root: Root,
    limits: UnpackLimits,
    entries: u64,
    bytes: u64,
    /// Whether owners, devices and privileged attributes can be set.
    is_root: bool,
    /// Times of folders, set last, for each entry made in a folder changes its time.
    folder_times: BTreeMap<PathBuf, (i64, u32)>,
    buffer: Vec<u8>,
}

impl Applier {
    /// Into the folder.
    pub(super) fn new(folder: &Path, limits: UnpackLimits) -> Result<Self, ImageError> {
        let root = Root::open(folder)?;
        // The mode of a root without an entry of its own must not depend on the umask.
        chmodat(root.fd(), ".", Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(|e| ImageError::io("set the mode of", folder, e))?;
        Ok(Self {
            root,
            limits,
            entries: 0,
            bytes: 0,
            is_root: rustix::process::geteuid().is_root(),
            folder_times: BTreeMap::new(),
            buffer: vec![0; 128 << 10],
        })
    }

    /// Makes one entry.
    pub(super) fn apply<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ImageError> {
        self.count(entry)?;
        let path = entry.path.clone();
        let Some(place) = self.root.place(&path)? else {
            return self.apply_root(entry);
        };
        let name = place.name.as_bytes();
        if name == OPAQUE {
            return self.make_opaque(&place).map_err(at(&path));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(ImageError::PathEscapes(path));
            }
            return self
                .whiteout(&place, OsStr::from_bytes(hidden))
                .map_err(at(&path));
        }
        match entry.kind.clone() {
            EntryKind::Folder => self.folder(&place, entry),
            EntryKind::File => self.file(&place, entry),
            EntryKind::Symlink(target) => self.symlink(&place, entry, &target),
            EntryKind::HardLink(target) => self.hard_link(&place, entry, &target),
            EntryKind::Fifo => self.node(&place, entry, FileType::Fifo, (0, 0)),
            EntryKind::Char(major, minor) => {
                self.node(&place, entry, FileType::CharacterDevice, (major, minor))
            }
            EntryKind::Block(major, minor) => {
                self.node(&place, entry, FileType::BlockDevice, (major, minor))
            }
        }
    }

    /// Sets what must be set last; the number of bytes unpacked.
    pub(super) fn finish(mut self) -> Result<u64, ImageError> {
        self.root.forget();
        let times = std::mem::take(&mut self.folder_times);
        for (path, mtime) in times.iter().rev() {
            let result = match self.root.find(path)? {
                None => utimensat(self.root.fd(), ".", &timestamps(*mtime), AtFlags::empty()),
                Some(place) => utimensat(
                    &*place.parent,
                    &place.name,
                    &timestamps(*mtime),
                    AtFlags::SYMLINK_NOFOLLOW,
                ),
            };
            match result {
                // Replaced by a later entry.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(at(path)(e)),
            }
        }
        Ok(self.bytes)
    }

    fn count<R: Read>(&mut self, entry: &Entry<'_, R>) -> Result<(), ImageError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ImageError::TooManyEntries {
                limit: self.limits.entries,
            });
        }
        if entry.kind == EntryKind::File {
            self.bytes = self.bytes.saturating_add(entry.size);
        }
        if self.bytes > self.limits.bytes {
            return Err(ImageError::TooLarge {
                limit: self.limits.bytes,
            });
        }
        Ok(())
    }

    /// `./` sets owner, mode and time of the root.
    fn apply_root<R: Read>(&mut self, entry: &Entry<'_, R>) -> Result<(), ImageError> {
        if entry.kind != EntryKind::Folder {
            return Err(ImageError::PathEscapes(entry.path.clone()));
        }
        let fd = open_folder(self.root.fd(), OsStr::new(".")).map_err(at(&entry.path))?;
        self.dress(&fd, entry).map_err(at(&entry.path))?;
        self.folder_times.insert(PathBuf::new(), entry.mtime);
        Ok(())
    }

    fn folder<R: Read>(&mut self, place: &Place, entry: &Entry<'_, R>) -> Result<(), ImageError> {
        let path = &entry.path;
        let make = |applier: &mut Self| -> Result<(), Errno> {
            let hidden = match kind_at(place)? {
                Some(Found::Folder) => return Ok(()),
                Some(found) => {
                    applier.clear(place)?;
                    found == Found::Whiteout
                }
                None => false,
            };
            mkdirat(&*place.parent, &place.name, Mode::RWXU)?;
            if hidden {
                // The whiteout came first: the folder below must stay hidden.
                let fd = open_folder(&*place.parent, &place.name)?;
                applier.set_opaque(&fd)?;
            }
            Ok(())
        };
        make(self).map_err(at(path))?;
        let fd = open_folder(&*place.parent, &place.name).map_err(at(path))?;
        self.dress(&fd, entry).map_err(at(path))?;
        let clean: PathBuf = path
            .components()
            .filter(|c| matches!(c, std::path::Component::Normal(_)))
            .collect();
        self.folder_times.insert(clean, entry.mtime);
        Ok(())
    }

    fn file<R: Read>(&mut self, place: &Place, entry: &mut Entry<'_, R>) -> Result<(), ImageError> {
        let path = entry.path.clone();
        self.clear(place).map_err(at(&path))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*place.parent, &place.name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(at(&path))?;
        let mut file = File::from(fd);
        loop {
            let n = match entry.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(entry.archive(), e)),
            };
            file.write_all(&self.buffer[..n])
                .map_err(|e| ImageError::io("write archive entry", &path, e))?;
        }
        self.dress(&file, entry).map_err(at(&path))?;
        futimens(&file, &timestamps(entry.mtime)).map_err(at(&path))
    }

    fn symlink<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry<'_, R>,
        target: &Path,
    ) -> Result<(), ImageError> {
        let mut make = || -> Result<(), Errno> {
            self.clear(place)?;
            symlinkat(target, &*place.parent, &place.name)?;
            self.own_link(place, entry)
        };
        make().map_err(at(&entry.path))
    }

    fn hard_link<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry<'_, R>,
        target: &Path,
    ) -> Result<(), ImageError> {
        let bad = || ImageError::BadHardLink {
            path: entry.path.clone(),
            target: target.to_owned(),
        };
        let source = match self.root.find(target) {
            Ok(Some(source)) => source,
            Ok(None) | Err(ImageError::PathEscapes(_) | ImageError::Io { .. }) => return Err(bad()),
            Err(e) => return Err(e),
        };
        match kind_at(&source).map_err(at(target))? {
            None | Some(Found::Folder | Found::Whiteout) => return Err(bad()),
            Some(Found::Other) => {}
        }
        if same_place(&source, place).map_err(at(&entry.path))? {
            return Ok(());
        }
        self.clear(place).map_err(at(&entry.path))?;
        linkat(
            &*source.parent,
            &source.name,
            &*place.parent,
            &place.name,
            AtFlags::empty(),
        )
        .map_err(at(&entry.path))
    }

    fn node<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry<'_, R>,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), ImageError> {
        if kind != FileType::Fifo && !self.is_root {
            return Err(ImageError::DeviceRefused(entry.path.clone()));
        }
        self.clear(place).map_err(at(&entry.path))?;
        let mode = Mode::from_raw_mode(entry.mode);
        match mknodat(
            &*place.parent,
            &place.name,
            kind,
            mode,
            makedev(major, minor),
        ) {
            Ok(()) => {}
            Err(Errno::PERM) => return Err(ImageError::DeviceRefused(entry.path.clone())),
            Err(e) => return Err(at(&entry.path)(e)),
        }
        self.own_link(place, entry)
            .and_then(|()| chmodat(&*place.parent, &place.name, mode, AtFlags::empty()))
            .map_err(at(&entry.path))
    }

    /// Hides what lower layers have under the name; what this very layer made stays, but hides what is below.
    fn whiteout(&mut self, place: &Place, hidden: &OsStr) -> Result<(), Errno> {
        let place = Place {
            parent: place.parent.clone(),
            name: hidden.to_owned(),
        };
        match kind_at(&place)? {
            Some(Found::Folder) => {
                let fd = open_folder(&*place.parent, &place.name)?;
                self.set_opaque(&fd)
            }
            Some(_) => Ok(()),
            None => mknodat(
                &*place.parent,
                &place.name,
                FileType::CharacterDevice,
                Mode::empty(),
                makedev(0, 0),
            ),
        }
    }

    fn make_opaque(&mut self, place: &Place) -> Result<(), Errno> {
        let fd = open_folder(&*place.parent, OsStr::new("."))?;
        self.set_opaque(&fd)
    }

    fn set_opaque(&self, folder: &OwnedFd) -> Result<(), Errno> {
        let name = if self.is_root {
            "trusted.overlay.opaque"
        } else {
            "user.overlay.opaque"
        };
        fsetxattr(folder, name, b"y", XattrFlags::empty())
    }

    /// Owner, mode and attributes; the mode after the owner, for a change of owner clears setuid, and the attributes
    /// after both, for it clears capabilities too.
    fn dress<R: Read>(&self, fd: impl AsFd, entry: &Entry<'_, R>) -> Result<(), Errno> {
        if self.is_root {
            fchown(
                &fd,
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
            )?;
        }
        fchmod(&fd, Mode::from_raw_mode(entry.mode))?;
        for (name, value) in &entry.xattrs {
            if !self.may_set(name) {
                tracing::debug!(path = %entry.path.display(), name, "attribute not unpacked");
                continue;
            }
            let name = CString::new(name.as_str()).map_err(|_| Errno::INVAL)?;
            match fsetxattr(&fd, name.as_c_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    tracing::debug!(path = %entry.path.display(), "the file system has no such attributes");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Capabilities and users' attributes; never overlay's own, by which an archive could reach into other layers.
    fn may_set(&self, name: &str) -> bool {
        (name == "security.capability" && self.is_root)
            || (name.starts_with("user.") && !name.starts_with("user.overlay."))
    }

    /// Owner and time of what cannot be opened.
    fn own_link<R: Read>(&self, place: &Place, entry: &Entry<'_, R>) -> Result<(), Errno> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.is_root {
            let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(
                &*place.parent,
                &place.name,
                Some(owner.0),
                Some(owner.1),
                nofollow,
            )?;
        }
        utimensat(
            &*place.parent,
            &place.name,
            &timestamps(entry.mtime),
            nofollow,
        )
    }

    /// Deletes what an earlier entry of the same archive made under the name.
    fn clear(&mut self, place: &Place) -> Result<(), Errno> {
        match unlinkat(&*place.parent, &place.name, AtFlags::empty()) {
            Ok(()) => {
                // It may have been a link that a known folder was reached by.
                self.root.forget();
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                self.root.forget();
                super::remove::remove_tree_at(&*place.parent, &place.name)
            }
            Err(e) => Err(e),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Folder,
    Whiteout,
    Other,
}

/// What is under a name, links not followed.
fn kind_at(place: &Place) -> Result<Option<Found>, Errno> {
    let stat = match statat(&*place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Folder,
        FileType::CharacterDevice if stat.st_rdev == makedev(0, 0) => Found::Whiteout,
        _ => Found::Other,
    }))
}

/// Whether two places are one file already: an archive may link a name to itself.
fn same_place(a: &Place, b: &Place) -> Result<bool, Errno> {
    let stat = |place: &Place| statat(&*place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW);
    let there = match stat(b) {
        Err(Errno::NOENT) => return Ok(false),
        other => other?,
    };
    let source = stat(a)?;
    Ok((source.st_dev, source.st_ino) == (there.st_dev, there.st_ino))
}

fn open_folder(at: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Turns Linux's refusal into an error that names the entry.
fn at(path: &Path) -> impl Fn(Errno) -> ImageError {
    move |errno| ImageError::io("make archive entry", path, errno)
}
