//! Whether a container's program can be run at all. dockerd starts a small init before it, so that a program which is
//! not there looks like one that has ended.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bollard::query_parameters::ContainerArchiveInfoOptionsBuilder;

use super::connect::status;
use super::{Docker, invalid};
use crate::runtime::{ContainerId, ContainerSpec, MountKind, Result};

/// Files that dockerd shows in place of the image's; they are text.
const SHOWN: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// Marks of a folder and of a link in dockerd's modes, which are those of Go.
const FOLDER: u32 = 1 << 31;
const LINK: u32 = 1 << 27;

impl Docker {
    /// Refuses a program, given by its absolute path, that is not there or cannot be executed.
    pub(super) async fn check_program(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<()> {
        let program = Path::new(&spec.args[0]);
        let problem = if !program.is_absolute() {
            None
        } else if let Some(source) = in_mount(spec, program) {
            match fs::metadata(source) {
                Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => None,
                Ok(_) => Some("cannot be executed"),
                Err(_) => Some("is not there"),
            }
        } else {
            self.in_image(id, program).await?
        };
        match problem {
            None => Ok(()),
            Some(problem) => {
                let text = format!("the program {} {problem}", program.display());
                Err(invalid(&spec.id, &text))
            }
        }
    }

    async fn in_image(&self, id: &ContainerId, program: &Path) -> Result<Option<&'static str>> {
        let options = ContainerArchiveInfoOptionsBuilder::default()
            .path(&program.to_string_lossy())
            .build();
        let call = self
            .client
            .api
            .get_container_archive_info(&id.0, Some(options));
        let found = match self.client.ask("looking for the program", call).await {
            Err(error) if status(&error) == Some(404) => return Ok(Some("is not there")),
            found => found?,
        };
        let mode = found.file_mode;
        let text = SHOWN.iter().any(|path| Path::new(path) == program);
        // What a link leads to is left to the start.
        let good = mode & LINK != 0 || (mode & FOLDER == 0 && mode & 0o111 != 0 && !text);
        Ok((!good).then_some("cannot be executed"))
    }
}

/// The file of the host that a program is, if a mount shows it.
fn in_mount(spec: &ContainerSpec, program: &Path) -> Option<PathBuf> {
    let mounts = spec
        .mounts
        .iter()
        .filter(|mount| program.starts_with(&mount.target));
    let nearest = mounts.max_by_key(|mount| mount.target.components().count())?;
    let MountKind::Bind(source) = &nearest.kind else {
        return None;
    };
    let rest = program.strip_prefix(&nearest.target).ok()?;
    Some(if rest.as_os_str().is_empty() {
        source.clone()
    } else {
        source.join(rest)
    })
}
