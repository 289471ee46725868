//! In front of runc and its like: a container's standard error becomes its standard output, so that one pipe carries
//! both and Linux keeps their order. A shim gives its logger two pipes, and what is read from two has no order.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the link to the real program is called, beside the name that this one is started by.
const SUFFIX: &str = ".real";

/// Where the link to the real program is, for the name that this program is started by.
#[must_use]
pub fn real(name: &Path) -> PathBuf {
    let mut link = name.as_os_str().to_owned();
    link.push(SUFFIX);
    link.into()
}

/// Becomes the program that stands behind `name`; returns when that fails. `None` when nothing stands there.
#[must_use]
pub fn become_real(name: &OsStr, args: &[OsString]) -> Option<io::Error> {
    let program = std::fs::read_link(real(Path::new(name))).ok()?;
    // Of all commands only this one passes its own output on to a container.
    if args.iter().any(|arg| arg == "create")
        && let Err(error) = rustix::stdio::dup2_stderr(rustix::stdio::stdout())
    {
        return Some(error.into());
    }
    Some(Command::new(program).args(args).exec())
}
