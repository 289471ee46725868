//! Device nodes: dockerd copies nodes of the host, so each must be there as the container is to see it.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bollard::models::DeviceMapping;
use rustix::fs::{CWD, FileType, Mode, major, makedev, minor, mknodat};
use rustix::io::Errno;

use super::ENGINE;
use crate::runtime::{BoxError, DeviceNode, Result, RuntimeError};

/// The nodes in dockerd's words; those that the host does not have in this form are made in `folder`.
pub(super) fn on_host(folder: &Path, nodes: &[DeviceNode]) -> Result<Vec<DeviceMapping>> {
    nodes.iter().map(|node| mapping(folder, node)).collect()
}

fn mapping(folder: &Path, node: &DeviceNode) -> Result<DeviceMapping> {
    if !matches!(node.kind, 'c' | 'b') {
        let (path, kind) = (&node.path, node.kind);
        return Err(RuntimeError::Invalid(format!(
            "device {path:?} is of unknown kind {kind:?}; use c or b"
        )));
    }
    let host = if is_there(node) {
        node.path.clone()
    } else {
        make(folder, node).map_err(|source| RuntimeError::Engine {
            engine: ENGINE,
            action: format!("making device node {}", node.path.display()),
            source,
        })?
    };
    Ok(DeviceMapping {
        path_on_host: Some(host.to_string_lossy().into_owned()),
        path_in_container: Some(node.path.to_string_lossy().into_owned()),
        cgroup_permissions: Some(node.access.clone()),
    })
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
    // dockerd takes folders of devices apart itself; others must not open what is in here.
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
