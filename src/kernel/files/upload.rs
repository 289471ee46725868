//! Writing a file below the work folder.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fchown, fstat, mkdirat};
use rustix::process::{Gid, Uid};

use super::view::{WorkPath, dot_if_empty, resolve, resolve_mode};

/// Writes a file and the folders above it. What is new belongs to the owner of the work folder.
///
/// # Errors
/// Those of the file system; a link that leads out of the work folder is `CrossesDevices`.
pub fn write(work: &OwnedFd, path: &WorkPath, data: &[u8]) -> io::Result<()> {
    let owner = fstat(work)?;
    let path = path.relative();
    let Some(name) = path.file_name() else {
        return Err(io::ErrorKind::IsADirectory.into());
    };
    let folder = folder(work, path.parent().unwrap_or(Path::new("")), &owner)?;
    // Without blocking on a named pipe that somebody has put there.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o644);
    let file = resolve_mode(&folder, Path::new(name), flags, mode, ResolveFlags::BENEATH)?;
    own(&file, &owner)?;
    let mut file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    file.set_len(0)?;
    file.write_all(data)
}

/// Opens the folder at a path below `work`, making what is missing.
fn folder(work: &OwnedFd, path: &Path, owner: &Stat) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut made = PathBuf::new();
    let mut folder = resolve(work, Path::new("."), flags, ResolveFlags::BENEATH)?;
    for part in path {
        made.push(part);
        let open = || resolve(work, dot_if_empty(&made), flags, ResolveFlags::BENEATH);
        folder = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                mkdirat(&folder, part, Mode::from_raw_mode(0o755))?;
                let new = open()?;
                own(&super::view::reopen(&new, OFlags::RDONLY)?, owner)?;
                new
            }
            other => other?,
        };
    }
    Ok(folder)
}

fn own(file: &OwnedFd, owner: &Stat) -> io::Result<()> {
    let new = fstat(file)?;
    if (new.st_uid, new.st_gid) == (owner.st_uid, owner.st_gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    Ok(fchown(file, Some(uid), Some(gid))?)
}
