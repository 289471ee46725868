//! The small program of `monitor/` that this one carries: it watches containers, and keeps their logs.
//!
//! `build.rs` builds it static. It is a file in memory for those who run it by a descriptor, or one on disk for those
//! who are told a path.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

static PROGRAM: &[u8] = include_bytes!(env!("MONITOR_PROGRAM"));

/// Makes a file in memory, which nobody can change any more. All that run it share its pages.
///
/// # Errors
/// When Linux has no memory for it, or forbids such files.
pub fn in_memory() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match memfd_create("backendai-monitor", flags | MemfdFlags::EXEC) {
        // Linux before 6.3 does not know the flag; there, every such file may be run.
        Err(Errno::INVAL) => memfd_create("backendai-monitor", flags),
        other => other,
    };
    let mut file = File::from(made?);
    file.write_all(PROGRAM)?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file)
}

/// Writes it below `bin` as `<digest>/<name>`, whole or not at all, and gives the folder: whoever was started with one
/// version keeps it when another comes.
///
/// # Errors
/// When the folder cannot be written.
pub fn on_disk(bin: &Path, name: &str) -> io::Result<PathBuf> {
    let digest = hex::encode(&Sha256::digest(PROGRAM)[..8]);
    let folder = bin.join(digest);
    let program = folder.join(name);
    if program.exists() {
        return Ok(folder);
    }
    fs::create_dir_all(&folder)?;
    let part = folder.join(format!(".{}", uuid::Uuid::new_v4().simple()));
    fs::write(&part, PROGRAM)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o555))?;
    fs::rename(&part, program)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_on_disk_is_written_once_and_is_that_in_memory() {
        let dir = tempfile::tempdir().expect("temp dir");
        let folder = on_disk(dir.path(), "logger").expect("written");
        let program = folder.join("logger");
        let written = fs::metadata(&program).expect("a file");
        assert_eq!(on_disk(dir.path(), "logger").expect("there"), folder);
        let after = fs::metadata(&program).expect("a file");
        assert_eq!(
            written.modified().expect("a time"),
            after.modified().expect("a time")
        );
        let in_memory = in_memory().expect("memory").metadata().expect("a size");
        assert_eq!(in_memory.len(), written.len());
    }
}
