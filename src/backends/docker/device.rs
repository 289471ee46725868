//! Device nodes of the host, which dockerd copies: each must be there as the container is to see it.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, major, makedev, minor, mknodat};
use rustix::io::Errno;

use crate::runtime::{BoxError, DeviceNode};

/// The host's node of the same place, number and mode, else one that is made in `folder`.
pub(super) fn on_host(folder: &Path, node: &DeviceNode) -> Result<PathBuf, BoxError> {
    if is_there(node) {
        return Ok(node.path.clone());
    }
    make(folder, node)
}

/// Whether the host has the same node at the same place.
fn is_there(node: &DeviceNode) -> bool {
    let Ok(found) = fs::symlink_metadata(&node.path) else {
        return false;
    };
    let kind = if node.kind == 'c' {
        found.file_type().is_char_device()
    } else {
        found.file_type().is_block_device()
    };
    let number = (
        i64::from(major(found.rdev())),
        i64::from(minor(found.rdev())),
    );
    kind && number == (node.major, node.minor) && found.mode() & 0o7777 == node.mode & 0o7777
}

fn make(folder: &Path, node: &DeviceNode) -> Result<PathBuf, BoxError> {
    // Engines take folders of devices apart themselves; others must not open what is in here.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let DeviceNode {
        kind,
        major,
        minor,
        mode,
        ..
    } = node;
    let path = folder.join(format!("{kind}-{major}-{minor}-{mode:o}"));
    let number = makedev(u32::try_from(*major)?, u32::try_from(*minor)?);
    let kind = if *kind == 'c' {
        FileType::CharacterDevice
    } else {
        FileType::BlockDevice
    };
    match mknodat(CWD, &path, kind, Mode::from_raw_mode(mode & 0o7777), number) {
        Err(error) if error != Errno::EXIST => Err(error.into()),
        // The mask of the process has its say in what `mknod` makes.
        _ => Ok(rustix::fs::chmod(&path, Mode::from_raw_mode(mode & 0o7777)).map(|()| path)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null(path: &str, minor: i64) -> DeviceNode {
        DeviceNode {
            path: path.into(),
            kind: 'c',
            major: 1,
            minor,
            mode: 0o666,
            access: "rw".to_owned(),
        }
    }

    #[test]
    fn the_hosts_own_node_serves_and_another_is_made_as_it_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = on_host(folder.path(), &null("/dev/null", 3));
        assert_eq!(found.expect("it is there"), Path::new("/dev/null"));
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to make device nodes");
            return;
        }
        for _ in 0..2 {
            let made = on_host(folder.path(), &null("/dev/null", 5)).expect("made");
            let found = fs::symlink_metadata(&made).expect("it is there");
            assert!(found.file_type().is_char_device());
            assert_eq!(
                (
                    major(found.rdev()),
                    minor(found.rdev()),
                    found.mode() & 0o7777
                ),
                (1, 5, 0o666)
            );
        }
    }
}
