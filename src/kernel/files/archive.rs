//! Reading a file or folder as a tar archive, as Docker's archive call gives it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use tar::{Builder, EntryType, Header};

use super::view::reopen;

/// The whole archive must be smaller.
pub const LIMIT: u64 = 1_048_576;

/// The archive is too large.
#[derive(Debug, thiserror::Error)]
#[error("too large file.")]
pub struct TooLarge;

/// Packs what `file` is under the name `name`.
///
/// # Errors
/// Those of the file system; [`TooLarge`] inside an error of kind `FileTooLarge`.
pub fn pack(file: &OwnedFd, name: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Archive(Builder::new(Vec::new()));
    archive.add(file, name, &fstat(file)?)?;
    let bytes = archive.0.into_inner()?;
    check(bytes.len() as u64)?;
    Ok(bytes)
}

fn check(size: u64) -> io::Result<()> {
    if size >= LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, TooLarge));
    }
    Ok(())
}

struct Archive(Builder<Vec<u8>>);

impl Archive {
    /// Adds a file or folder that is opened at least for looking.
    fn add(&mut self, file: &OwnedFd, name: &Path, stat: &Stat) -> io::Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.add_folder(file, name, stat),
            FileType::RegularFile => self.add_file(file, name, stat),
            // Pipes, sockets and devices have no content to give.
            _ => Ok(()),
        }
    }

    fn add_file(&mut self, file: &OwnedFd, name: &Path, stat: &Stat) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        check(size.saturating_add(self.0.get_ref().len() as u64))?;
        let mut header = header(stat, EntryType::Regular);
        header.set_size(size);
        // The file may change its size meanwhile: the entry keeps the announced one.
        let content = File::from(reopen(file, OFlags::RDONLY | OFlags::NONBLOCK)?);
        let content = content.take(size).chain(io::repeat(0)).take(size);
        self.0.append_data(&mut header, name, content)
    }

    fn add_folder(&mut self, folder: &OwnedFd, name: &Path, stat: &Stat) -> io::Result<()> {
        let mut header = header(stat, EntryType::Directory);
        header.set_size(0);
        self.0
            .append_data(&mut header, name.join(""), io::empty())?;
        check(self.0.get_ref().len() as u64)?;
        let folder = reopen(folder, OFlags::RDONLY | OFlags::DIRECTORY)?;
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let file_name = entry.file_name();
            if matches!(file_name.to_bytes(), b"." | b"..") {
                continue;
            }
            let inner = name.join(Path::new(std::ffi::OsStr::new(
                &*file_name.to_string_lossy(),
            )));
            let stat = statat(&folder, file_name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                let target = readlinkat(&folder, file_name, Vec::new())?;
                self.add_link(&inner, &stat, &target.to_string_lossy())?;
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&folder, file_name, flags, Mode::empty())?;
            self.add(&file, &inner, &fstat(&file)?)?;
        }
        Ok(())
    }

    fn add_link(&mut self, name: &Path, stat: &Stat, target: &str) -> io::Result<()> {
        let mut header = header(stat, EntryType::Symlink);
        header.set_size(0);
        self.0.append_link(&mut header, name, target)?;
        check(self.0.get_ref().len() as u64)
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header
}
