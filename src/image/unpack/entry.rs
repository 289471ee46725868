//! One entry of a layer's tar.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::Limits;
use super::tree::{self, Tree};
use crate::image::error::{ImageError, Result};
use crate::sys::userns;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const METADATA: &[u8] = b".wh..wh.";
/// Prefix of extended attributes in PAX headers.
const PAX_XATTR: &str = "SCHILY.xattr.";

/// Owner, mode, time and attributes of an entry.
struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// What becomes of whiteouts, and of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layering {
    /// One layer alone: whiteouts become those of the overlay.
    Overlay,
    /// A layer over others: only what it hides is removed.
    Whiteouts,
    /// A layer over others: all but its whiteouts.
    Content,
}

/// Puts entries into a folder, one by one.
pub(super) struct Unpacker<'a> {
    what: &'a str,
    layering: Layering,
    limits: Limits,
    tree: Tree,
    privileged: bool,
    /// Root of a user namespace only: owners can be set, but there are no devices and no attributes for the machine's root.
    confined: bool,
    bytes: u64,
    entries: u64,
    /// Folders get their times last: filling them changes them.
    folders: Vec<(PathBuf, Timestamps)>,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(what: &'a str, to: &Path, limits: Limits) -> Result<Self> {
        let tree = Tree::open(to).map_err(ImageError::io(format!("open {}", to.display())))?;
        Ok(Self {
            what,
            layering: Layering::Overlay,
            limits,
            tree,
            privileged: rustix::process::geteuid().is_root(),
            confined: userns::inside(),
            bytes: 0,
            entries: 0,
            folders: Vec::new(),
        })
    }

    /// With another treatment of whiteouts.
    pub(super) fn layered(self, layering: Layering) -> Self {
        Self { layering, ..self }
    }

    /// Adds one entry.
    pub(super) fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ImageError::TooManyEntries {
                what: self.what.to_owned(),
                limit: self.limits.entries,
            });
        }
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let path = clean(&raw).ok_or_else(|| ImageError::EscapesRoot(shown.clone()))?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let metadata = self.metadata(entry, &shown)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return match self.layering {
                Layering::Whiteouts => Ok(()),
                Layering::Overlay | Layering::Content => self.root(kind, &metadata, &shown),
            };
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        match (self.layering, name.as_bytes().starts_with(WHITEOUT)) {
            (Layering::Content, true) | (Layering::Whiteouts, false) => return Ok(()),
            (Layering::Whiteouts, true) => {
                return self.hide(&path).map_err(|error| self.failed(&shown, error));
            }
            (Layering::Overlay, true) => {
                return self
                    .whiteout(parent, &name)
                    .map_err(|error| self.failed(&shown, error));
            }
            (Layering::Overlay | Layering::Content, false) => {}
        }
        match kind {
            EntryType::Directory => self.directory(parent, &name, &path, &metadata),
            EntryType::Link => return self.hard_link(entry, parent, &name, &shown),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.symlink(parent, &name, &target, &metadata)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return self.node(entry, parent, &name, &metadata, &shown);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(entry, parent, &name, &metadata, &shown);
            }
            other => {
                return Err(ImageError::Unsupported {
                    what: format!("{}, entry {shown:?}", self.what),
                    why: format!("the tar entry type {:?}", other.as_byte() as char),
                });
            }
        }
        .map_err(|error| self.failed(&shown, error))
    }

    /// Sets the folders' times; returns the bytes of all files.
    pub(super) fn finish(mut self) -> Result<u64> {
        for (path, times) in std::mem::take(&mut self.folders) {
            let mut set = || -> io::Result<()> {
                let Some((parent, name)) = self.tree.parent_of(&path)? else {
                    let root = self.tree.folder(Path::new(""))?;
                    return Ok(utimensat(root, ".", &times, AtFlags::empty())?);
                };
                Ok(utimensat(parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            };
            match set() {
                // Replaced by a later entry.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|error| self.failed(&path.to_string_lossy(), error))?,
            }
        }
        Ok(self.bytes)
    }

    fn metadata<R: Read>(&self, entry: &mut tar::Entry<'_, R>, shown: &str) -> Result<Metadata> {
        let wrong = |error: io::Error| {
            ImageError::malformed(format!("{}, entry {shown:?}", self.what), error)
        };
        let header = entry.header();
        let mode = header.mode().map_err(wrong)? & 0o7777;
        let mut uid = header.uid().map_err(wrong)?;
        let mut gid = header.gid().map_err(wrong)?;
        let mut mtime = (header.mtime().map_err(wrong)?, 0);
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions().map_err(wrong)? {
            for extension in extensions {
                let extension = extension.map_err(wrong)?;
                let Ok(key) = extension.key() else { continue };
                let value = extension.value_bytes();
                let number = || std::str::from_utf8(value).ok()?.parse().ok();
                match key {
                    "uid" => uid = number().unwrap_or(uid),
                    "gid" => gid = number().unwrap_or(gid),
                    "mtime" => mtime = pax_time(value).unwrap_or(mtime),
                    _ => {
                        if let Some(name) = key.strip_prefix(PAX_XATTR).filter(|name| kept(name)) {
                            xattrs.push((name.to_owned(), value.to_vec()));
                        }
                    }
                }
            }
        }
        let id = |value: u64| u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (id(uid), id(gid)) else {
            return Err(wrong(io::Error::other("the owner's number is too large")));
        };
        let time = Timespec {
            tv_sec: i64::try_from(mtime.0).unwrap_or(i64::MAX),
            tv_nsec: mtime.1.into(),
        };
        Ok(Metadata {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            mode: Mode::from_raw_mode(mode),
            times: Timestamps {
                last_access: time,
                last_modification: time,
            },
            xattrs,
        })
    }

    /// `./` tells the root folder's owner and mode.
    fn root(&mut self, kind: EntryType, metadata: &Metadata, shown: &str) -> Result<()> {
        if kind != EntryType::Directory {
            return Err(ImageError::NotAFolder(shown.to_owned()));
        }
        let mut set = || -> io::Result<()> {
            let root = self.tree.folder(Path::new(""))?;
            let root = tree::open_folder(root, OsStr::new("."))?;
            self.describe(root.as_fd(), metadata)
        };
        set().map_err(|error| self.failed(shown, error))?;
        self.folders.push((PathBuf::new(), metadata.times.clone()));
        Ok(())
    }

    fn directory(
        &mut self,
        parent: &Path,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
    ) -> io::Result<()> {
        let at = self.tree.folder(parent)?.try_clone_to_owned()?;
        let before = tree::look(at.as_fd(), name)?;
        let mut opaque = false;
        let is_folder = |stat: &Stat| tree::kind(stat) == FileType::Directory;
        if !before.as_ref().is_some_and(is_folder) {
            opaque = before.as_ref().is_some_and(tree::is_whiteout);
            if before.is_some() {
                self.make_way(at.as_fd(), name, before.as_ref())?;
            }
            mkdirat(&at, name, Mode::from_raw_mode(0o700))?;
        }
        let folder = tree::open_folder(at.as_fd(), name)?;
        self.describe(folder.as_fd(), metadata)?;
        if opaque {
            self.make_opaque(folder.as_fd())?;
        }
        self.folders.push((path.to_owned(), metadata.times.clone()));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: &Path,
        name: &OsStr,
        metadata: &Metadata,
        shown: &str,
    ) -> Result<()> {
        let size = entry.size();
        if size > self.limits.bytes - self.bytes {
            return Err(ImageError::TooManyBytes {
                what: self.what.to_owned(),
                limit: self.limits.bytes,
            });
        }
        self.bytes += size;
        let mut open = || {
            let at = self.tree.folder(parent)?.try_clone_to_owned()?;
            self.clear(at.as_fd(), name)?;
            tree::create_file(at.as_fd(), name)
        };
        let mut file = open().map_err(|error| self.failed(shown, error))?;
        let copied = copy(entry, &mut file).map_err(|error| match error {
            CopyError::Read(error) => super::broken(self.what, error),
            CopyError::Write(error) => self.failed(shown, error),
        })?;
        if copied != size {
            return Err(ImageError::Truncated(self.what.to_owned()));
        }
        let described = self
            .describe(file.as_fd(), metadata)
            .and_then(|()| Ok(futimens(&file, &metadata.times)?));
        described.map_err(|error| self.failed(shown, error))
    }

    fn symlink(
        &mut self,
        parent: &Path,
        name: &OsStr,
        target: &[u8],
        metadata: &Metadata,
    ) -> io::Result<()> {
        let at = self.tree.folder(parent)?.try_clone_to_owned()?;
        self.clear(at.as_fd(), name)?;
        symlinkat(OsStr::from_bytes(target), &at, name)?;
        self.own(at.as_fd(), name, metadata)?;
        Ok(utimensat(
            &at,
            name,
            &metadata.times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &tar::Entry<'_, R>,
        parent: &Path,
        name: &OsStr,
        shown: &str,
    ) -> Result<()> {
        let raw = entry.link_name_bytes().unwrap_or_default().into_owned();
        let target = clean(&raw).ok_or_else(|| ImageError::LinkEscapesRoot {
            entry: shown.to_owned(),
            target: String::from_utf8_lossy(&raw).into_owned(),
        })?;
        let broken = || ImageError::BrokenLink {
            entry: shown.to_owned(),
            target: String::from_utf8_lossy(&raw).into_owned(),
        };
        let mut link = || -> io::Result<bool> {
            let Some((from, from_name)) = self.tree.parent_of(&target)? else {
                return Ok(false);
            };
            let Some(stat) = tree::look(from.as_fd(), &from_name)? else {
                return Ok(false);
            };
            if tree::kind(&stat) == FileType::Directory {
                return Ok(false);
            }
            let at = self.tree.folder(parent)?.try_clone_to_owned()?;
            if tree::look(at.as_fd(), name)?
                .is_some_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino))
            {
                return Ok(true);
            }
            self.clear(at.as_fd(), name)?;
            // No AT_SYMLINK_FOLLOW: a link to a symbolic link stays one.
            linkat(&from, &from_name, &at, name, AtFlags::empty())?;
            Ok(true)
        };
        match link() {
            Ok(true) => Ok(()),
            Ok(false) => Err(broken()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(broken()),
            Err(error) => Err(self.failed(shown, error)),
        }
    }

    fn node<R: Read>(
        &mut self,
        entry: &tar::Entry<'_, R>,
        parent: &Path,
        name: &OsStr,
        metadata: &Metadata,
        shown: &str,
    ) -> Result<()> {
        let kind = match entry.header().entry_type() {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind != FileType::Fifo && !self.privileged {
            return Err(ImageError::DeviceRefused(shown.to_owned()));
        }
        if kind != FileType::Fifo && self.confined {
            // Containers get their devices when they are made, and could not use this one.
            tracing::debug!(
                "{shown} is a device, which only the machine's root can make: left out"
            );
            return Ok(());
        }
        let header = entry.header();
        let number = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        let device = makedev(number(header.device_major()), number(header.device_minor()));
        let mut make = || -> io::Result<()> {
            let at = self.tree.folder(parent)?.try_clone_to_owned()?;
            self.clear(at.as_fd(), name)?;
            mknodat(&at, name, kind, Mode::from_raw_mode(0o600), device)?;
            self.own(at.as_fd(), name, metadata)?;
            chmodat(&at, name, metadata.mode, AtFlags::empty())?;
            Ok(utimensat(
                &at,
                name,
                &metadata.times,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        };
        make().map_err(|error| self.failed(shown, error))
    }

    /// `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all that they have in this folder.
    fn whiteout(&mut self, parent: &Path, name: &OsStr) -> io::Result<()> {
        let name = name.as_bytes();
        let at = self.tree.folder(parent)?.try_clone_to_owned()?;
        if name == OPAQUE {
            let folder = tree::open_folder(at.as_fd(), OsStr::new("."))?;
            return self.make_opaque(folder.as_fd());
        }
        let hidden = OsString::from_vec(name[WHITEOUT.len()..].to_vec());
        if name.starts_with(METADATA) || hidden.is_empty() || hidden == "." || hidden == ".." {
            return Ok(());
        }
        match tree::look(at.as_fd(), &hidden)? {
            None => Ok(mknodat(
                &at,
                &hidden,
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )?),
            // The layer's own folder stays, without what lies below it.
            Some(stat) if tree::kind(&stat) == FileType::Directory => {
                let folder = tree::open_folder(at.as_fd(), &hidden)?;
                self.make_opaque(folder.as_fd())
            }
            Some(_) => Ok(()),
        }
    }

    /// Removes what a whiteout hides of the layers below.
    fn hide(&mut self, path: &Path) -> io::Result<()> {
        let (at, name) = match self.tree.parent_of(path) {
            Ok(Some(place)) => place,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(None) | Err(_) => return Ok(()),
        };
        self.tree.forget();
        let name = name.as_bytes();
        if name == OPAQUE {
            return tree::remove_content(&tree::open_folder(at.as_fd(), OsStr::new("."))?);
        }
        let hidden = OsStr::from_bytes(&name[WHITEOUT.len()..]);
        let nothing = hidden.is_empty() || hidden == "." || hidden == "..";
        if name.starts_with(METADATA) || nothing || tree::look(at.as_fd(), hidden)?.is_none() {
            return Ok(());
        }
        tree::remove_all(at.as_fd(), hidden)
    }

    fn make_opaque(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        let name = if self.privileged && !self.confined {
            "trusted.overlay.opaque"
        } else {
            "user.overlay.opaque"
        };
        Ok(fsetxattr(folder, name, b"y", XattrFlags::empty())?)
    }

    /// Owner first: a change of owner drops setuid bits and capabilities.
    fn describe(&self, fd: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<()> {
        if self.privileged {
            fchown(fd, Some(metadata.uid), Some(metadata.gid))?;
        }
        fchmod(fd, metadata.mode)?;
        for (name, value) in &metadata.xattrs {
            if !self.may_set(name) {
                continue;
            }
            match fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
                // The store's file system has none: the file works without.
                Err(Errno::NOTSUP) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether this user may set an extended attribute; files work without those that it may not.
    fn may_set(&self, name: &str) -> bool {
        match (self.privileged, self.confined) {
            (true, false) => true,
            // Linux ties a program's capabilities to the user namespace.
            (true, true) => name.starts_with("user.") || name == "security.capability",
            (false, _) => !name.starts_with("security."),
        }
    }

    fn own(&self, at: BorrowedFd<'_>, name: &OsStr, metadata: &Metadata) -> io::Result<()> {
        if self.privileged {
            let (uid, gid) = (Some(metadata.uid), Some(metadata.gid));
            chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Removes what an earlier entry put at the place of this one.
    fn clear(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let before = tree::look(at, name)?;
        if before.is_some() {
            self.make_way(at, name, before.as_ref())?;
        }
        Ok(())
    }

    fn make_way(
        &mut self,
        at: BorrowedFd<'_>,
        name: &OsStr,
        there: Option<&Stat>,
    ) -> io::Result<()> {
        if !there.is_some_and(|stat| tree::kind(stat) == FileType::RegularFile) {
            self.tree.forget();
        }
        tree::remove_all(at, name)
    }

    fn failed(&self, shown: &str, error: io::Error) -> ImageError {
        match Errno::from_io_error(&error) {
            Some(Errno::NOTDIR | Errno::LOOP | Errno::EXIST) => {
                ImageError::NotAFolder(shown.to_owned())
            }
            _ => ImageError::Io {
                action: format!("unpack {shown:?} of {}", self.what),
                source: error,
            },
        }
    }
}

/// The entry's path below the root; `None` when it is absolute or climbs.
pub(super) fn clean(raw: &[u8]) -> Option<PathBuf> {
    if raw.starts_with(b"/") {
        return None;
    }
    let mut path = PathBuf::new();
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Some(path)
}

/// Only attributes that mean something inside a container; never the overlay's own.
fn kept(xattr: &str) -> bool {
    xattr == "security.capability"
        || (xattr.starts_with("user.") && !xattr.starts_with("user.overlay."))
}

/// Seconds and nanoseconds of a PAX time, `1700000000.25`.
fn pax_time(value: &[u8]) -> Option<(u64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    Some((seconds.parse().ok()?, digits.parse().ok()?))
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Like `io::copy`, but says which side failed.
fn copy(from: &mut impl Read, to: &mut impl io::Write) -> Result<u64, CopyError> {
    let mut buffer = vec![0; 128 << 10];
    let mut copied = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        to.write_all(&buffer[..count]).map_err(CopyError::Write)?;
        copied += count as u64;
    }
}
