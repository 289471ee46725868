//! The small program that watches a running container, as a file in memory that monitors run.
//!
//! Its source is `monitor/`; `build.rs` builds it static and this program carries it. All monitors that one agent
//! starts share its pages.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

static PROGRAM: &[u8] = include_bytes!(env!("MONITOR_PROGRAM"));

/// Makes the file; nobody can change it any more.
pub(super) fn file() -> io::Result<File> {
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
